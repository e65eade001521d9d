//! A team: all ranks of a model, each on a thread of its own, as one model that takes tokens. Where there
//! are several processes, the team of the first one has those of the others do the same.

mod gather;
mod loading;
mod options;
mod processes;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use crate::checkpoint::Progress;
use crate::comm::{Communicator, Joined, LocalGroup, ProcessLink, SingleRank};
use crate::error::{Error, Result};
use crate::executor::{Blueprint, Executor, Hardware};
use crate::model::Logits;
use crate::rank::{self, OpTime, Rank, RankSpec, Sequence};
use crate::sampler::{Outcome, SamplingOptions};
use gather::gather;
use loading::Loading;
pub use options::{Stuck, TeamOptions};
use processes::Command;

/// A model that can take the next token, and choose it.
pub struct Team {
    ranks: Ranks,
    sizes: Sizes,
    sequence: Sequence,
    /// What the ranks have last said of the logits. `[_, V]`
    logits: Vec<f32>,
}

#[derive(Clone, Copy)]
struct Sizes {
    context: usize,
    chunk: usize,
    vocab: usize,
    stages: usize,
    /// The longest text whose rotations do not depend on its length, if there is one.
    fixed_up_to: Option<usize>,
}

enum Ranks {
    /// On the thread of whoever asks.
    One(Box<Rank>),
    Several {
        members: Vec<Member>,
        room: Arc<LocalGroup>,
        /// To other processes.
        link: Option<Arc<ProcessLink>>,
    },
}

/// A rank on its thread.
struct Member {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

type Job = Box<dyn FnOnce(&mut Rank) + Send>;

impl From<Rank> for Team {
    /// A model that is not split.
    fn from(rank: Rank) -> Self {
        let (context, chunk, vocab) = (rank.context(), rank.chunk(), rank.vocab());
        Self {
            sequence: Sequence::default(),
            sizes: Sizes { context, chunk, vocab, stages: 1, fixed_up_to: rank.fixed_up_to() },
            ranks: Ranks::One(Box::new(rank)),
            logits: Vec::new(),
        }
    }
}

impl Team {
    /// Loads a rank on each of `hardware`. `spec` is that of any rank, with a plan for the largest of them;
    /// `on_progress` is told of bytes of weights that have been copied.
    ///
    /// # Errors
    /// What keeps a rank from being loaded.
    pub fn new(
        spec: RankSpec<'_>,
        hardware: &[Hardware],
        options: TeamOptions,
        on_progress: Progress<'_>,
    ) -> Result<Self> {
        let TeamOptions { timeout, fault, link, stuck } = options;
        let RankSpec { config, dims, mut checkpoint, plan } = spec;
        let stages = dims.stage.parts;
        let first = link.as_ref().map_or(0, |link| link.first_rank());
        if let ([hardware], None) = (hardware, &link) {
            let spec = RankSpec { config, dims, checkpoint, plan };
            let comm = Arc::new(SingleRank { timeout });
            let rank = Rank::new(spec, |blueprint| {
                Executor::new(hardware, Blueprint { comm, on_progress, ..blueprint })
            });
            return rank.map(Self::from);
        }
        if let Some(Hardware::Cpu(threads)) = hardware.first() {
            threads.run(|| checkpoint.make(on_progress))?; // once for all
        }
        let names = match &link {
            None => hardware.iter().map(Hardware::name).collect(),
            Some(link) => link.own_devices().to_vec(),
        };
        let stages_here = if link.is_some() { 1 } else { stages };
        let room = LocalGroup::in_stages(stages_here, first, names, timeout, fault);
        link.iter().for_each(|link| link.watch(&room));
        let loading = Loading::begin(&room, hardware.len(), stuck);
        let load = |place: usize| {
            let (dims, checkpoint) = (dims.of_rank(first + place), checkpoint.clone());
            let (own, hardware) = (room.place(place), &hardware[place]);
            let comm: Arc<dyn Communicator> = match &link {
                None => Arc::new(own),
                Some(link) => Arc::new(Joined::new(own, link.clone(), stages)),
            };
            let on_progress = |bytes| {
                room.gets_on(place);
                on_progress(bytes)
            };
            let rank = Rank::new(RankSpec { config, dims, checkpoint, plan }, |blueprint| {
                let on_progress = &on_progress;
                Executor::new(hardware, Blueprint { comm, on_progress, ..blueprint })
            });
            loading.ended(place);
            room.is_at_work(place, false);
            rank.map_err(|error| {
                let (rank, name) = (first + place, hardware.name());
                let own = match error {
                    Error::Interrupted | Error::ReaderLeft => error,
                    _ => Error::failed(format!("rank {rank} on {name} cannot start: {error}")),
                };
                room.end(own.clone()); // others may be waiting for it
                room.failure().unwrap_or(own) // an earlier one may have caused it
            })
        };
        let ranks: Vec<Result<Rank>> = thread::scope(|scope| {
            let load = &load;
            let threads: Vec<_> =
                (0..hardware.len()).map(|place| scope.spawn(move || load(place))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panics in it")).collect()
        });
        let ranks = match ranks.into_iter().collect::<Result<Vec<_>>>() {
            Ok(ranks) => ranks,
            Err(error) => {
                let stall = room.verdict().filter(|_| room.has_stalled());
                link.iter().for_each(|link| link.close());
                return Err(stall.unwrap_or(error));
            }
        };
        let (context, chunk, vocab) = (ranks[0].context(), ranks[0].chunk(), ranks[0].vocab());
        let fixed_up_to = ranks[0].fixed_up_to();
        let members =
            ranks.into_iter().zip(first..).map(|(rank, number)| Member::new(number, rank));
        let members = members.collect::<Result<_>>()?;
        let team = Self {
            ranks: Ranks::Several { members, room, link },
            sizes: Sizes { context, chunk, vocab, stages, fixed_up_to },
            sequence: Sequence::default(),
            logits: Vec::new(),
        };
        team.ready()?;
        Ok(team)
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        match &self.ranks {
            Ranks::One(_) => 1,
            Ranks::Several { link: Some(link), .. } => link.world(),
            Ranks::Several { members, .. } => members.len(),
        }
    }

    /// Number of stages of layers.
    pub fn stages(&self) -> usize {
        self.sizes.stages
    }

    /// Whether a failure has ended the run of all ranks.
    pub fn has_ended(&self) -> bool {
        matches!(&self.ranks, Ranks::Several { room, .. } if room.failure().is_some())
    }

    /// Tokens in the KV cache.
    pub fn position(&self) -> usize {
        self.sequence.position
    }

    /// What is known of the text that is being taken.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// The rank of a model that is not split.
    pub fn single_mut(&mut self) -> Option<&mut Rank> {
        match &mut self.ranks {
            Ranks::One(rank) => Some(rank),
            Ranks::Several { .. } => None,
        }
    }

    /// S: tokens the KV cache can hold.
    pub fn context(&self) -> usize {
        self.sizes.context
    }

    /// Tokens that one [`Self::prefill`] takes at most.
    pub fn chunk(&self) -> usize {
        self.sizes.chunk
    }

    /// V
    pub fn vocab(&self) -> usize {
        self.sizes.vocab
    }

    /// Forgets all tokens from `position` on.
    ///
    /// # Errors
    /// When the run has ended.
    pub fn rewind(&mut self, position: usize) -> Result<()> {
        let known = self.sequence.position;
        assert!(position <= known, "rewind from {known} to {position}");
        self.tell(|| Command::Rewind(position))?;
        self.sequence.position = position;
        Ok(())
    }

    /// The text whose tokens follow is `tokens` long in all. Whether the cache is as such a text's: a
    /// model may turn by the length of the text.
    ///
    /// # Errors
    /// When the run has ended.
    pub fn expect(&mut self, tokens: usize) -> Result<bool> {
        let Some(fixed) = self.sizes.fixed_up_to else { return Ok(true) };
        self.tell(|| Command::Expect(tokens))?;
        self.sequence.text = tokens;
        Ok(tokens.max(self.sequence.position) <= fixed)
    }

    /// Takes up to [`Self::chunk`] tokens at once.
    ///
    /// # Errors
    /// Ids outside the vocabulary; tokens past the context; a rank that fails.
    pub fn forward(&mut self, ids: &[u32], logits: Logits) -> Result<()> {
        self.check(ids)?;
        self.tell(|| Command::Forward(ids.into(), logits))?;
        self.take(ids, move |rank, sequence, ids| rank.forward(sequence, ids, logits)).map(drop)
    }

    /// As [`Self::forward`], and waits until it is done.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_and_finish(&mut self, ids: &[u32], logits: Logits) -> Result<()> {
        self.check(ids)?;
        let take = move |rank: &mut Rank, sequence: &Sequence, ids: &[u32]| {
            rank.forward(sequence, ids, logits)?;
            rank.finish()
        };
        self.take(ids, take).map(drop)
    }

    /// As [`Self::forward`], op by op. Returns what each op had to do and how long it took, by rank.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_timed(&mut self, ids: &[u32], logits: Logits) -> Result<Vec<Vec<OpTime>>> {
        self.check(ids)?;
        self.take(ids, move |rank, sequence, ids| rank.forward_timed(sequence, ids, logits))
    }

    /// Goes on as if `tokens` tokens had been taken: see [`Rank::pretend`].
    ///
    /// # Errors
    /// Tokens past the context; a device that fails.
    pub fn pretend(&mut self, tokens: usize) -> Result<()> {
        self.each(move |rank| {
            rank.pretend(tokens)?;
            rank.finish()
        })?;
        self.sequence.position = tokens;
        Ok(())
    }

    /// As [`Self::forward`]. Returns the logits asked for, those of the ranks side by side, `[_, V]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn prefill(&mut self, ids: &[u32], logits: Logits) -> Result<&[f32]> {
        self.check(ids)?;
        self.tell(|| Command::Prefill(ids.into(), logits))?;
        if matches!(self.ranks, Ranks::Several { .. }) {
            let mut logits = self
                .take(ids, move |rank, sequence, ids| rank.prefill_whole(sequence, ids, logits))?;
            self.logits = logits.swap_remove(0);
            return Ok(&self.logits);
        }
        match &mut self.ranks {
            Ranks::One(rank) => {
                let logits = rank.prefill(&self.sequence, ids, logits)?;
                self.sequence.position += ids.len();
                Ok(logits)
            }
            Ranks::Several { .. } => Ok(&self.logits),
        }
    }

    /// Takes one token and returns the logits of the next, `[V]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.prefill(&[id], Logits::Last)
    }

    /// Sets how tokens are chosen from now on, and what has been said so far.
    ///
    /// # Errors
    /// TeamOptions without meaning; a rank that fails.
    pub fn begin(&mut self, options: &SamplingOptions, prompt: &[u32]) -> Result<()> {
        self.sequence.begin(options, prompt, self.sizes.vocab)?;
        self.tell(|| Command::Begin(options.clone(), prompt.into()))?;
        let sequence = self.sequence.clone();
        self.each(move |rank| rank.begin(&sequence))?;
        Ok(())
    }

    /// Chooses the token that follows those taken, of the last of which the logits were asked for.
    ///
    /// # Errors
    /// Logits that are no numbers, or leave no choice; a rank that fails.
    pub fn sample(&mut self) -> Result<u32> {
        self.choice()?.token()
    }

    fn choice(&mut self) -> Result<Outcome> {
        self.tell(|| Command::Sample)?;
        let sequence = self.sequence.clone();
        Ok(self.each(move |rank| rank.choice(&sequence))?[0])
    }

    /// Takes the token that was chosen last, and chooses the next.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn decode_step(&mut self) -> Result<u32> {
        self.next_choice()?.token()
    }

    fn next_choice(&mut self) -> Result<Outcome> {
        self.tell(|| Command::DecodeStep)?;
        let sequence = self.sequence.clone();
        self.sequence.position += 1;
        Ok(self.each(move |rank| rank.next_choice(&sequence))?[0])
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        rank::check(ids, self.vocab())?;
        rank::check_room(self.sequence.position + ids.len(), self.context())
    }

    /// Has all ranks of this process take `ids` by `work`, and moves on.
    fn take<R: Send + 'static>(
        &mut self,
        ids: &[u32],
        work: impl Fn(&mut Rank, &Sequence, &[u32]) -> Result<R> + Clone + Send + 'static,
    ) -> Result<Vec<R>> {
        let (sequence, taken): (_, Arc<[u32]>) = (self.sequence.clone(), ids.into());
        let results = self.each(move |rank| work(rank, &sequence, &taken))?;
        self.sequence.position += ids.len();
        Ok(results)
    }

    /// What `work` comes to on every rank of this process, by rank.
    ///
    /// # Errors
    /// The first rank's error, or what else has ended the run.
    pub fn each<R: Send + 'static>(
        &mut self,
        work: impl Fn(&mut Rank) -> Result<R> + Clone + Send + 'static,
    ) -> Result<Vec<R>> {
        let (members, room) = match &mut self.ranks {
            Ranks::One(rank) => return work(rank).map(|result| vec![result]),
            Ranks::Several { members, room, .. } => (members, room),
        };
        let (results, done) = channel();
        for (number, member) in members.iter().enumerate() {
            let (work, results, its_room) = (work.clone(), results.clone(), room.clone());
            let job = move |rank: &mut Rank| {
                let result = match catch_unwind(AssertUnwindSafe(|| work(rank))) {
                    Ok(result) => result.map_err(|error| error.to_string()),
                    Err(panic) => Err(format!("it panicked: {}", said(&*panic))),
                };
                let result = result.map_err(|reason| its_room.fail(number, &reason)).ok();
                its_room.is_at_work(number, false);
                // Nobody listens any more where another rank has failed before.
                let _ = results.send((number, result));
            };
            room.is_at_work(number, true);
            if member.jobs.send(Box::new(job)).is_err() {
                room.fail(number, "its thread has ended");
            }
        }
        drop(results);
        gather(&done, members.len(), room)
    }
}

/// A panic's message.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it does not say why")
}

impl Member {
    fn new(number: usize, mut rank: Rank) -> Result<Self> {
        let (jobs, todo) = channel::<Job>();
        let work = move || todo.iter().for_each(|job| job(&mut rank));
        let thread = thread::Builder::new().name(format!("rank {number}")).spawn(work);
        let thread =
            thread.map_err(|error| Error::failed(format!("cannot start a thread: {error}")))?;
        Ok(Self { jobs, thread })
    }
}

impl Drop for Team {
    /// Waits until the ranks have given back what they hold, unless one of them may never come to that.
    fn drop(&mut self) {
        let Ranks::Several { members, room, link } = &mut self.ranks else { return };
        if room.failure().is_none() {
            link.iter().for_each(|link| link.end());
            // All at once: NCCL wants the ranks of a machine to leave it together.
            let threads: Vec<_> = members.drain(..).map(|member| member.thread).collect();
            threads.into_iter().for_each(|thread| drop(thread.join()));
        }
        link.iter().for_each(|link| link.close());
    }
}
