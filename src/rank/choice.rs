//! The next token, chosen on the device.

use super::{Rank, Sequence};
use crate::error::{Error, Result};
use crate::memory::Slot;
use crate::ops;
use crate::sampler::{Outcome, SamplingOptions};

impl Rank {
    /// Has the tokens of `sequence` chosen as its options say from now on, and its counts known.
    ///
    /// # Errors
    /// A device that fails.
    pub fn begin(&mut self, sequence: &Sequence) -> Result<()> {
        let (dims, sampling) = (&self.model.dims, self.model.state.sampling);
        let own = |id: u32| {
            let row = (id as usize).checked_sub(dims.first_id());
            row.filter(|row| *row < dims.vocab)
        };
        let options = &*sequence.sampling;
        // The device adds to each logit at most once.
        let mut bias: Vec<(u32, f32)> = Vec::new();
        for (id, more) in &options.logit_bias {
            let Some(row) = own(*id).map(|row| row as u32) else { continue };
            match bias.iter_mut().find(|(known, _)| *known == row) {
                Some((_, bias)) => *bias += more,
                None => bias.push((row, *more)),
            }
        }
        let (bias_ids, biases): (Vec<u32>, Vec<f32>) = bias.into_iter().unzip();
        let counts = sequence.counts.get(dims.first_id()..).unwrap_or_default();
        let SamplingOptions { temperature, top_p, min_p, .. } = *options;
        let SamplingOptions { repeat_penalty, presence_penalty, frequency_penalty, .. } = *options;
        let penalties = [repeat_penalty, presence_penalty, frequency_penalty];
        let device = &mut self.device;
        device.write(sampling.options, &[&[temperature, top_p, min_p], &penalties[..]].concat())?;
        device.write(sampling.top_k, &[u32::try_from(options.top_k).unwrap_or(0)])?;
        device.write(sampling.seed, &[options.seed])?;
        device.write(sampling.bias_count, &[bias_ids.len() as u32])?;
        device.write(sampling.bias_ids, &bias_ids)?;
        device.write(sampling.biases, &biases)?;
        device.write(sampling.counts, &counts[..dims.vocab])
    }

    /// Chooses the token that follows those that `sequence` has taken, of the last of which the logits were
    /// asked for; tells so if there is none.
    ///
    /// # Errors
    /// A device or a rank that fails.
    pub fn choice(&mut self, sequence: &Sequence) -> Result<Outcome> {
        self.choice_at(sequence.position)
    }

    /// Takes the token that was chosen last, which is the next of `sequence`, and chooses the one after it.
    ///
    /// # Errors
    /// As [`Self::choice`].
    pub fn next_choice(&mut self, sequence: &Sequence) -> Result<Outcome> {
        let Sequence { position, text, .. } = *sequence;
        let context = self.sizes.context;
        assert!(position < context, "the context is full");
        if !std::mem::take(&mut self.is_ahead) {
            self.turn(text.max(position + 1))?;
            self.device.step(&mut self.decode)?;
        }
        let position = position + 1;
        if !self.device.runs_beside() || self.device.needs_hosts(&self.choose) {
            return self.choice_at(position);
        }
        self.device.clear(self.entry(position));
        // The device knows the token when it has chosen it: it need not wait for the host to learn of it.
        if position < context {
            self.turn(text.max(position + 1))?;
            self.device.step(&mut self.step)?;
            self.is_ahead = true;
        } else {
            self.device.run(&self.choose)?;
        }
        self.chosen(position)
    }

    fn choice_at(&mut self, position: usize) -> Result<Outcome> {
        self.is_ahead = false;
        self.device.write(self.model.state.placement.positions, &[position as u32 - 1])?;
        self.device.clear(self.entry(position));
        self.device.run(&self.choose)?;
        self.chosen(position)
    }

    /// Where the device tells what it has chosen for `position`.
    fn entry(&self, position: usize) -> Slot<u64> {
        self.model.state.ring.part(position % ops::RING, 1)
    }

    /// What is chosen for `position`, as soon as it is.
    fn chosen(&mut self, position: usize) -> Result<Outcome> {
        let outcome =
            self.device.watch(self.entry(position), |entry| ops::outcome(entry, position))?;
        self.device.comm().leave()?;
        outcome.ok_or_else(|| Error::failed("the device has chosen no token: a kernel did not run"))
    }
}
