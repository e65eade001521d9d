//! A team whose ranks are in several processes.

use serde::{Deserialize, Serialize};
use serde_json::{from_value, to_value};

use super::{Ranks, Team};
use crate::error::{Error, Result};
use crate::model::Logits;
use crate::sampler::SamplingOptions;

/// What the first process has the others do: the methods of [`Team`].
#[derive(Serialize, Deserialize)]
pub(super) enum TeamCommand {
    TurnTo(usize),
    Rewind(usize),
    Expect(usize),
    Forward(Vec<u32>, Logits),
    Prefill(Vec<u32>, Logits),
    Begin(SamplingOptions, Vec<u32>),
    Sample,
    DecodeStep,
}

impl Team {
    /// Whether this is the first process, or the only one: the others [`Self::serve`].
    pub fn leads(&self) -> bool {
        match &self.ranks {
            Ranks::Several { link: Some(link), .. } => link.is_first(),
            _ => true,
        }
    }

    /// Does what the first process says until all is done.
    ///
    /// # Errors
    /// What has ended the run.
    pub fn serve(&mut self) -> Result<()> {
        let Ranks::Several { link: Some(link), room, .. } = &self.ranks else { return Ok(()) };
        let (link, room) = (link.clone(), room.clone());
        while let Some(command) =
            link.next(|| room.failure()).map_err(|error| room.verdict().unwrap_or(error))?
        {
            let obeyed = from_value(command)
                .map_err(|error| {
                    Error::failed(format!("process 0 sent an invalid message: {error}"))
                })
                .and_then(|command| self.obey(&command));
            // The ranks' own failures have been told of already: the first one stands.
            obeyed.inspect_err(|error| room.end(error.clone()))?;
        }
        Ok(())
    }

    fn obey(&mut self, command: &TeamCommand) -> Result<()> {
        match command {
            TeamCommand::TurnTo(place) => self.turn_to(*place),
            TeamCommand::Rewind(position) => self.rewind(*position),
            TeamCommand::Expect(tokens) => self.expect(*tokens).map(drop),
            TeamCommand::Forward(ids, logits) => self.forward(ids, *logits),
            TeamCommand::Prefill(ids, logits) => self.prefill(ids, *logits).map(drop),
            TeamCommand::Begin(options, prompt) => self.begin(options, prompt),
            // Logits that leave no choice are for the first process to tell of.
            TeamCommand::Sample => self.choice().map(drop),
            TeamCommand::DecodeStep => self.next_choice().map(drop),
        }
    }

    /// Has the other processes do what this one is about to do.
    pub(super) fn tell(&self, command: impl FnOnce() -> TeamCommand) -> Result<()> {
        let Ranks::Several { link: Some(link), room, .. } = &self.ranks else { return Ok(()) };
        if let Some(failure) = room.verdict() {
            return Err(failure);
        }
        if !link.is_first() {
            return Ok(());
        }
        let command = to_value(command()).map_err(|error| Error::failed(error.to_string()))?;
        link.tell(command).map_err(|error| {
            room.end(error.clone());
            room.verdict().unwrap_or(error)
        })
    }

    /// Waits until the ranks of all processes are there.
    pub(super) fn ready(&self) -> Result<()> {
        let Ranks::Several { link: Some(link), room, .. } = &self.ranks else { return Ok(()) };
        link.ready(|| room.failure()).map_err(|error| {
            room.end(error.clone());
            room.verdict().unwrap_or(error)
        })
    }
}
