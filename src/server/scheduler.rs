//! The engine's thread: whose turn it is. It owns the model; tasks wait in order, as many run side by side as
//! the cache has places, a step each in turn. A step is a token or a part of a prompt, so nobody waits for
//! longer than one of each of the others.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

use super::answer::RunningAnswer;
use super::log::ServerLog;
use super::metrics::Metrics;
use super::refusal::Refusal;
use super::task::{ServerOrder, Task, TaskAnswers, TaskEvent, Ticket};
use crate::error::{Error, Result};
use crate::session::{Session, common};
use crate::tokenizer::Tokenizer;

pub struct Scheduler<'t> {
    session: Session,
    tokenizer: &'t Tokenizer,
    /// Whether a token that was generated has the bits in the cache that it has in a prompt.
    decodes_as_prefill: bool,
    waiting: VecDeque<(Task, Ticket)>,
    running: Vec<RunningAnswer<'t>>,
    /// When each place was last used, by the count of tasks that have begun; 0 is never.
    used: Vec<u64>,
    begun: u64,
    metrics: &'t Metrics,
    log: ServerLog,
}

impl<'t> Scheduler<'t> {
    pub fn new(
        session: Session,
        tokenizer: &'t Tokenizer,
        decodes_as_prefill: bool,
        metrics: &'t Metrics,
        log: ServerLog,
    ) -> Self {
        let used = vec![0; session.places()];
        let (waiting, running) = (VecDeque::new(), Vec::new());
        Self {
            session,
            tokenizer,
            decodes_as_prefill,
            waiting,
            running,
            used,
            begun: 0,
            metrics,
            log,
        }
    }

    /// Does what is ordered until the order to stop. [`Self::end`] is to follow.
    ///
    /// # Errors
    /// What runs the model has failed.
    pub fn run(&mut self, orders: &Receiver<ServerOrder>) -> Result<()> {
        while self.take(orders) {
            self.begin_waiting()?;
            self.step()?;
        }
        Ok(())
    }

    /// Ends what runs where it is, if the model still runs, and refuses what waits: for this reason.
    pub fn end(mut self, outcome: &Result<()>) {
        if outcome.is_ok() {
            for running in self.running.drain(..) {
                running.interrupt(&mut self.session, self.metrics, &self.log);
            }
        }
        let refusal = match outcome {
            Ok(()) => Refusal::unavailable("the server ends"),
            Err(error) => Refusal::failed(error),
        };
        let running = self.running.drain(..).map(|running| running.tell());
        let waiting = self.waiting.drain(..).map(|(task, _)| (task.answer, task.index));
        for (answer, index) in running.chain(waiting) {
            let _ = answer.send((index, TaskEvent::Refused(refusal.clone())));
        }
    }

    /// Takes what orders there are, and waits for one where there is nothing to do. Whether to go on.
    fn take(&mut self, orders: &Receiver<ServerOrder>) -> bool {
        loop {
            let is_idle = self.running.is_empty() && self.waiting.is_empty();
            let order = if is_idle { orders.recv().ok() } else { orders.try_recv().ok() };
            match order {
                Some(ServerOrder::Answer(task, ticket)) => self.waiting.push_back((*task, ticket)),
                Some(ServerOrder::Stop) => return false,
                None => return !is_idle,
            }
        }
    }

    /// Begins what waits, as far as there are places.
    fn begin_waiting(&mut self) -> Result<()> {
        self.waiting.retain(|(task, _)| !task.answer.is_closed());
        while self.running.len() < self.used.len() {
            let Some((task, ticket)) = self.waiting.pop_front() else { break };
            drop(ticket);
            let place = self.place_for(&task.prompt);
            self.begun += 1;
            self.used[place] = self.begun;
            let tell = (task.answer.clone(), task.index);
            match RunningAnswer::begin(task, place, self.tokenizer, &mut self.session) {
                Ok(running) => self.running.push(running),
                Err(error) => self.refuse(tell, error)?,
            }
            self.metrics.running.set(self.running.len());
        }
        Ok(())
    }

    /// The free place of which most is of use, if that is at least half of what it holds: else the one that
    /// was not used for longest.
    fn place_for(&self, prompt: &[u32]) -> usize {
        let is_free = |place: &usize| self.running.iter().all(|running| running.place != *place);
        let free = || (0..self.used.len()).filter(is_free);
        let of_use = |place: &usize| common(self.session.cached(*place), prompt);
        let is_worth_it = |place: &usize| {
            let common = of_use(place);
            common > 0 && 2 * common >= self.session.cached(*place).len()
        };
        let oldest = || free().min_by_key(|place| self.used[*place]);
        let best = free().filter(is_worth_it).max_by_key(of_use);
        best.or_else(oldest).expect("fewer run than there are places")
    }

    /// A step of each that runs.
    fn step(&mut self) -> Result<()> {
        let mut turns = VecDeque::from(std::mem::take(&mut self.running));
        while let Some(mut running) = turns.pop_front() {
            let tell = running.tell();
            match running.step(&mut self.session) {
                Ok(true) => self.running.push(running),
                Ok(false) => {
                    if !self.decodes_as_prefill {
                        let kept = running.prompt_tokens();
                        self.session.forget(running.place, if kept > 1 { kept } else { 0 });
                    }
                    self.metrics.running.set(self.running.len() + turns.len());
                    running.end(self.metrics, &self.log);
                }
                Err(error) => {
                    let concerns_all = self.refuse(tell, error);
                    concerns_all.inspect_err(|_| self.running.extend(turns.drain(..)))?;
                }
            }
        }
        Ok(())
    }

    /// Tells one client of an error that concerns it alone.
    ///
    /// # Errors
    /// That error, if it concerns all.
    fn refuse(&mut self, (answer, index): (TaskAnswers, usize), error: Error) -> Result<()> {
        let refusal = Refusal::failed(&error);
        (self.log)(&format!("failed: {}", refusal.message()));
        // Whoever has left wants to know nothing.
        let _ = answer.send((index, TaskEvent::Refused(refusal)));
        match self.session.check() {
            Ok(()) => Ok(()),
            Err(_) => Err(error),
        }
    }
}
