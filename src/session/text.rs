//! The text of an answer.

use super::Next;
use crate::error::Result;
use crate::tokenizer::{StopStrings, TextStream, Tokenizer};

/// The text of an answer as its tokens come, up to a stop string.
pub struct AnswerText<'t> {
    stream: TextStream<'t>,
    stops: StopStrings,
}

impl<'t> AnswerText<'t> {
    /// With the text of control tokens, if they are to be shown.
    pub fn new(tokenizer: &'t Tokenizer, stop_strings: &[String], show_control: bool) -> Self {
        let stops = StopStrings::new(stop_strings.to_vec());
        Self { stream: TextStream::new(tokenizer, show_control), stops }
    }

    /// The text that is certain now, and whether a stop string has come: then there is no more.
    ///
    /// # Errors
    /// What cannot be decoded.
    pub fn push(&mut self, id: u32) -> Result<(String, Next)> {
        let (text, stopped) = self.stops.push(&self.stream.push(id)?);
        Ok((text, if stopped { Next::Stop } else { Next::Continue }))
    }

    /// What was held back, at the end.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(&mut self) -> Result<String> {
        let (text, _) = self.stops.push(&self.stream.finish()?);
        Ok(text + &self.stops.finish())
    }
}
