//! A team: all ranks of a model, each on a thread of its own, as one model that takes tokens. Where there
//! are several processes, the team of the first one has those of the others do the same.

mod gather;
mod load;
mod loading;
mod members;
mod options;
mod processes;

use std::sync::Arc;

use crate::comm::{LocalGroup, ProcessLink};
use crate::error::Result;
use crate::model::Logits;
use crate::rank::{self, OpTime, Rank, Sequence};
use crate::sampler::{Outcome, SamplingOptions};
use members::Member;
pub use options::{Stuck, TeamOptions};
use processes::TeamCommand;

/// A model that can take the next token, and choose it.
pub struct Team {
    ranks: Ranks,
    sizes: Sizes,
    /// By their places in the cache.
    sequences: Vec<Sequence>,
    /// The one at hand, which takes tokens.
    at: usize,
    /// What the ranks have last said of the logits. `[_, V]`
    logits: Vec<f32>,
}

#[derive(Clone, Copy)]
struct Sizes {
    context: usize,
    chunk: usize,
    scored: usize,
    vocab: usize,
    stages: usize,
    /// The longest text whose rotations do not depend on its length, if there is one.
    fixed_up_to: Option<usize>,
}

impl Sizes {
    /// Those of a rank, one of its stage's.
    fn of(rank: &Rank, stages: usize) -> Self {
        Self {
            context: rank.context(),
            chunk: rank.chunk(),
            scored: rank.scored(),
            vocab: rank.vocab(),
            stages,
            fixed_up_to: rank.fixed_up_to(),
        }
    }
}

/// As many as such a rank has caches for, of which nothing has been said.
fn sequences_of(rank: &Rank) -> Vec<Sequence> {
    let counts: Arc<[u32]> = vec![0; rank.vocab()].into();
    let new = |place| Sequence { place, counts: counts.clone(), ..Sequence::default() };
    (0..rank.sequences()).map(new).collect()
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

impl From<Rank> for Team {
    /// A model that is not split.
    fn from(rank: Rank) -> Self {
        Self {
            sequences: sequences_of(&rank),
            at: 0,
            sizes: Sizes::of(&rank, 1),
            ranks: Ranks::One(Box::new(rank)),
            logits: Vec::new(),
        }
    }
}

impl Team {
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

    /// Tokens in the KV cache, of the sequence at hand.
    pub fn position(&self) -> usize {
        self.sequence().position
    }

    /// What is known of the text that is being taken.
    pub fn sequence(&self) -> &Sequence {
        &self.sequences[self.at]
    }

    fn sequence_mut(&mut self) -> &mut Sequence {
        &mut self.sequences[self.at]
    }

    /// B: sequences whose tokens the KV cache holds side by side.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// The tokens that follow are of the sequence at `place`, below [`Self::sequences`]. Where it is another
    /// than before, the next step is not [`Self::decode_step`]: the ranks have to be told its last token.
    ///
    /// # Errors
    /// A rank that fails.
    pub fn turn_to(&mut self, place: usize) -> Result<()> {
        if place == self.at {
            return Ok(());
        }
        self.tell(|| TeamCommand::TurnTo(place))?;
        self.at = place;
        let sequence = self.sequence().clone();
        self.each(move |rank| rank.begin(&sequence)).map(drop)
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

    /// Of so many of them the logits of all can be asked for.
    pub fn scored(&self) -> usize {
        self.sizes.scored
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
        let known = self.position();
        assert!(position <= known, "rewind from {known} to {position}");
        self.tell(|| TeamCommand::Rewind(position))?;
        self.sequence_mut().position = position;
        Ok(())
    }

    /// The text whose tokens follow is `tokens` long in all. Whether the cache is as such a text's: a
    /// model may turn by the length of the text.
    ///
    /// # Errors
    /// When the run has ended.
    pub fn expect(&mut self, tokens: usize) -> Result<bool> {
        let Some(fixed) = self.sizes.fixed_up_to else { return Ok(true) };
        self.tell(|| TeamCommand::Expect(tokens))?;
        self.sequence_mut().text = tokens;
        Ok(tokens.max(self.position()) <= fixed)
    }

    /// Takes up to [`Self::chunk`] tokens at once.
    ///
    /// # Errors
    /// Ids outside the vocabulary; tokens past the context; a rank that fails.
    pub fn forward(&mut self, ids: &[u32], logits: Logits) -> Result<()> {
        self.check(ids)?;
        self.tell(|| TeamCommand::Forward(ids.into(), logits))?;
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
        self.sequence_mut().position = tokens;
        Ok(())
    }

    /// As [`Self::forward`]. Returns the logits asked for, those of the ranks side by side, `[_, V]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn prefill(&mut self, ids: &[u32], logits: Logits) -> Result<&[f32]> {
        self.check(ids)?;
        self.tell(|| TeamCommand::Prefill(ids.into(), logits))?;
        if matches!(self.ranks, Ranks::Several { .. }) {
            let mut logits = self
                .take(ids, move |rank, sequence, ids| rank.prefill_whole(sequence, ids, logits))?;
            self.logits = logits.swap_remove(0);
            return Ok(&self.logits);
        }
        let sequence = &mut self.sequences[self.at];
        match &mut self.ranks {
            Ranks::One(rank) => {
                let logits = rank.prefill(sequence, ids, logits)?;
                sequence.position += ids.len();
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
    /// Options without meaning; a rank that fails.
    pub fn begin(&mut self, options: &SamplingOptions, prompt: &[u32]) -> Result<()> {
        self.sequences[self.at].begin(options, prompt, self.sizes.vocab)?;
        self.tell(|| TeamCommand::Begin(options.clone(), prompt.into()))?;
        let sequence = self.sequence().clone();
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
        self.tell(|| TeamCommand::Sample)?;
        let sequence = self.sequence().clone();
        let outcome = self.each(move |rank| rank.choice(&sequence))?[0];
        Ok(self.said(outcome))
    }

    /// Counts what was chosen, as the ranks have.
    fn said(&mut self, outcome: Outcome) -> Outcome {
        let counts = Arc::make_mut(&mut self.sequence_mut().counts);
        if let Outcome::Token(id) = outcome {
            counts[id as usize] += 1;
        }
        outcome
    }

    /// Takes the token that was chosen last, and chooses the next.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn decode_step(&mut self) -> Result<u32> {
        self.next_choice()?.token()
    }

    fn next_choice(&mut self) -> Result<Outcome> {
        self.tell(|| TeamCommand::DecodeStep)?;
        let sequence = self.sequence().clone();
        self.sequence_mut().position += 1;
        let outcome = self.each(move |rank| rank.next_choice(&sequence))?[0];
        Ok(self.said(outcome))
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        rank::check(ids, self.vocab())?;
        rank::check_room(self.position() + ids.len(), self.context())
    }

    /// Has all ranks of this process take `ids` by `work`, and moves on.
    fn take<R: Send + 'static>(
        &mut self,
        ids: &[u32],
        work: impl Fn(&mut Rank, &Sequence, &[u32]) -> Result<R> + Clone + Send + 'static,
    ) -> Result<Vec<R>> {
        let (sequence, taken): (_, Arc<[u32]>) = (self.sequence().clone(), ids.into());
        let results = self.each(move |rank| work(rank, &sequence, &taken))?;
        self.sequence_mut().position += ids.len();
        Ok(results)
    }
}
