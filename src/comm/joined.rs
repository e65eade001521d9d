//! A rank whose peers are in other processes, too.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::{Communicator, Gather, InProcess, Look, ProcessLink};
use crate::error::Result;

/// A rank's place in its process, and the way to the others.
pub struct Joined {
    own: InProcess,
    link: Arc<ProcessLink>,
    stages: usize,
    /// NCCL, once its ranks have found each other.
    gather: OnceLock<Gather>,
}

impl Joined {
    /// For the rank of this place in its process. All processes' ranks are in `stages`.
    pub fn new(own: InProcess, link: Arc<ProcessLink>, stages: usize) -> Self {
        Self { own, link, stages, gather: OnceLock::new() }
    }

    /// By the processes' rendezvous: what the ranks of each have put together, put together again.
    fn gather_at_rendezvous(&self, own: &[u64]) -> Result<Vec<u64>> {
        let here = self.own.all_gather(own);
        let all = match self.own.is_first() {
            true => self.link.gather(&here, || self.own.failure())?,
            false => Vec::new(),
        };
        Ok(self.own.of_first(&all, own.len() * self.world()))
    }
}

impl Communicator for Joined {
    fn rank(&self) -> usize {
        self.own.rank()
    }

    fn world(&self) -> usize {
        self.link.world()
    }

    fn stages(&self) -> usize {
        self.stages
    }

    fn timeout(&self) -> Duration {
        self.own.timeout()
    }

    fn all_gather(&self, own: &[u64]) -> Vec<u64> {
        let gathered = match self.gather.get() {
            Some(gather) => gather(own),
            None => self.gather_at_rendezvous(own),
        };
        gathered.unwrap_or_else(|error| {
            self.own.fail(&error.to_string());
            own.repeat(self.world())
        })
    }

    fn carry(&self, make: &mut dyn FnMut() -> Result<Gather>) -> Result<()> {
        let _ = self.gather.set(make()?); // the first stands
        Ok(())
    }

    fn enter(&self, op: &'static str) -> Result<()> {
        self.own.enter(op)
    }

    fn watch(&self, look: Look) {
        self.own.watch(look);
    }

    fn on_failure(&self, act: Box<dyn Fn() + Send>) {
        self.own.on_failure(act);
    }

    fn leave(&self) -> Result<()> {
        self.own.leave()
    }
}
