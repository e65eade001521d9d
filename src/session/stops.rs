//! What ends an answer.

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Tokens and texts that end an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stops {
    pub ids: Vec<u32>,
    pub texts: Vec<String>,
}

impl Stops {
    /// The tokens that end an answer of a model: those `named` by its config, those that end one in any
    /// model, and the chat format's. Returns which of them the config does not name, sorted, beside.
    pub fn usual(
        named: &[u32],
        tokenizer: Option<&Tokenizer>,
        of_chat: &[u32],
    ) -> (Self, Vec<u32>) {
        let of_vocabulary = tokenizer.map(Tokenizer::end_of_generation).unwrap_or_default();
        let mut unnamed: Vec<u32> = of_vocabulary.into_iter().chain(of_chat.to_vec()).collect();
        unnamed.retain(|id| !named.contains(id));
        unnamed.sort_unstable();
        unnamed.dedup();
        (Self { ids: [named, &unnamed].concat(), texts: Vec::new() }, unnamed)
    }

    /// This text ends an answer, too, or the control token of this name.
    ///
    /// # Errors
    /// One that holds a control token beside other text: it would never be seen.
    pub fn add_text(&mut self, text: &str, tokenizer: &Tokenizer) -> Result<()> {
        match (tokenizer.id(text), tokenizer.find_control(text)) {
            (Some(id), _) => self.ids.push(id),
            (None, None) => self.texts.push(text.to_owned()),
            (None, Some(_)) => {
                return Err(Error::usage(format!(
                    "`stop` {text:?} holds a control token beside other text, which an answer's text \
                     never does: give the token alone"
                )));
            }
        }
        Ok(())
    }
}
