//! From what a rank is made of to all ranks of this process, each loaded on a thread.

use std::sync::Arc;
use std::thread;

use super::loading::Loading;
use super::members::Member;
use super::{Ranks, Sizes, Team, TeamOptions, sequences_of};
use crate::checkpoint::Progress;
use crate::comm::{Communicator, Joined, LocalGroup, ProcessLink, SingleRank};
use crate::error::{Error, Result};
use crate::executor::{Blueprint, Executor, Hardware};
use crate::rank::{Rank, RankSpec};

impl Team {
    /// Loads a rank on each of `hardware`. `spec` is that of any rank, with a plan for the largest of them;
    /// `on_progress` is told of bytes of weights that have been copied.
    ///
    /// # Errors
    /// What keeps a rank from being loaded.
    pub fn new(
        mut spec: RankSpec<'_>,
        hardware: &[Hardware],
        options: TeamOptions,
        on_progress: Progress<'_>,
    ) -> Result<Self> {
        let TeamOptions { timeout, fault, link, stuck } = options;
        if let ([hardware], None) = (hardware, &link) {
            let comm = Arc::new(SingleRank { timeout });
            let rank = Rank::new(spec, |blueprint| {
                Executor::new(hardware, Blueprint { comm, on_progress, ..blueprint })
            });
            return rank.map(Self::from);
        }
        if let Some(Hardware::Cpu(threads)) = hardware.first() {
            threads.run(|| spec.checkpoint.make(on_progress))?; // once for all
        }
        let names = match &link {
            None => hardware.iter().map(Hardware::name).collect(),
            Some(link) => link.own_devices().to_vec(),
        };
        let stages = spec.dims.stage.parts;
        let stages_here = if link.is_some() { 1 } else { stages };
        let first = link.as_ref().map_or(0, |link| link.first_rank());
        let room = LocalGroup::in_stages(stages_here, first, names, timeout, fault);
        link.iter().for_each(|link| link.watch(&room));
        let loading = Loading::begin(&room, hardware.len(), stuck);
        let link = link.as_ref();
        let ranks = Loader { spec, first, room: &room, link, loading, on_progress }.all(hardware);
        let ranks = ranks.map_err(|error| {
            let stall = room.verdict().filter(|_| room.has_stalled());
            link.iter().for_each(|link| link.close());
            stall.unwrap_or(error)
        })?;
        let (sequences, sizes) = (sequences_of(&ranks[0]), Sizes::of(&ranks[0], stages));
        let members =
            ranks.into_iter().zip(first..).map(|(rank, number)| Member::new(number, rank));
        let members = members.collect::<Result<_>>()?;
        let team = Self {
            ranks: Ranks::Several { members, room, link: link.cloned() },
            sequences,
            at: 0,
            sizes,
            logits: Vec::new(),
        };
        team.ready()?;
        Ok(team)
    }
}

/// What threads that load ranks share.
struct Loader<'a> {
    /// Of any rank.
    spec: RankSpec<'a>,
    /// The number of this process's first rank.
    first: usize,
    room: &'a Arc<LocalGroup>,
    link: Option<&'a Arc<ProcessLink>>,
    loading: Loading,
    on_progress: Progress<'a>,
}

impl Loader<'_> {
    fn all(&self, hardware: &[Hardware]) -> Result<Vec<Rank>> {
        thread::scope(|scope| {
            let each = hardware.iter().enumerate();
            let threads: Vec<_> =
                each.map(|(place, own)| scope.spawn(move || self.one(place, own))).collect();
            let ranks = threads.into_iter().map(|thread| thread.join().expect("no panics in it"));
            ranks.collect::<Vec<Result<Rank>>>()
        })
        .into_iter()
        .collect()
    }

    /// The rank at `place` in this process. Its failure ends the run of all.
    fn one(&self, place: usize, hardware: &Hardware) -> Result<Rank> {
        let Self { spec, room, .. } = self;
        let number = self.first + place;
        let own = room.place(place);
        let comm: Arc<dyn Communicator> = match self.link {
            None => Arc::new(own),
            Some(link) => Arc::new(Joined::new(own, link.clone(), spec.dims.stage.parts)),
        };
        let on_progress = |bytes| {
            room.gets_on(place);
            (self.on_progress)(bytes)
        };
        let spec = RankSpec { dims: spec.dims.of_rank(number), ..spec.clone() };
        let rank = Rank::new(spec, |blueprint| {
            let on_progress = &on_progress;
            Executor::new(hardware, Blueprint { comm, on_progress, ..blueprint })
        });
        self.loading.ended(place);
        room.is_at_work(place, false);
        rank.map_err(|error| {
            let own = match error {
                Error::Interrupted | Error::ReaderLeft => error,
                _ => Error::failed(format!(
                    "rank {number} on {} cannot start: {error}",
                    hardware.name()
                )),
            };
            room.end(own.clone()); // others may be waiting for it
            room.failure().unwrap_or(own) // an earlier one may have caused it
        })
    }
}
