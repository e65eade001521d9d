//! Token ids, as they come, to text that can be printed at once.

use super::Tokenizer;
use crate::error::Result;

/// What a decoder makes of bytes that are no character, or not yet.
const BROKEN: char = char::REPLACEMENT_CHARACTER;
/// The most tokens that an incomplete character is spread over.
const MAX_INCOMPLETE: usize = 3;
/// Held back ids beyond this number are mostly noise and are handed out where they can be cut: else
/// each further id would cost more than the one before.
const MAX_HELD: usize = 16;

/// Turns ids into text piece by piece. What has been handed out is never taken back and never holds
/// half a character; the pieces together are the decoding of all the ids.
///
/// It holds ids back until their text ends with a whole character, and then forgets them: right for
/// any decoder that looks at no more than whether a token is the first.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    show_control: bool,
    /// The ids whose text has not been handed out.
    held: Vec<u32>,
    at_start: bool,
}

impl<'t> TextStream<'t> {
    /// A stream at the beginning of a text. Control tokens leave no trace in it unless
    /// `show_control`.
    pub fn new(tokenizer: &'t Tokenizer, show_control: bool) -> Self {
        Self { tokenizer, show_control, held: Vec::new(), at_start: true }
    }

    /// The text that `id` completes: empty while a character is incomplete. An id that is no token
    /// has no text: a model's vocabulary may be padded beyond its tokenizer's.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let is_hidden = self.tokenizer.is_control(id) && !self.show_control;
        if is_hidden || !self.tokenizer.is_token(id) {
            return Ok(String::new());
        }
        self.held.push(id);
        let text = self.decode(&self.held, self.at_start)?;
        if !text.ends_with(BROKEN) {
            return Ok(self.hand_out(self.held.len(), text));
        }
        if self.held.len() > MAX_HELD {
            return self.cut_noise(&text);
        }
        Ok(String::new())
    }

    /// What is left at the end: characters that never became whole, as U+FFFD. The stream is then
    /// at a beginning.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.decode(&self.held, self.at_start)?;
        *self = Self::new(self.tokenizer, self.show_control);
        Ok(text)
    }

    /// Hands out the beginning of what is held, whose text is `all`, if it can be cut without a
    /// change to the text.
    fn cut_noise(&mut self, all: &str) -> Result<String> {
        for cut in (1..=self.held.len() - MAX_INCOMPLETE).rev().take(MAX_INCOMPLETE + 1) {
            let (first, rest) = self.held.split_at(cut);
            let first = self.decode(first, self.at_start)?;
            let rest = self.decode(rest, false)?;
            if all.strip_prefix(first.as_str()) == Some(rest.as_str()) {
                return Ok(self.hand_out(cut, first));
            }
        }
        Ok(String::new())
    }

    fn hand_out(&mut self, ids: usize, text: String) -> String {
        self.held.drain(..ids);
        self.at_start = false;
        text
    }

    fn decode(&self, ids: &[u32], at_start: bool) -> Result<String> {
        self.tokenizer.decode_part(ids, self.show_control, at_start)
    }
}
