//! What is checked of tokens before they are taken.

use crate::error::{Error, Result};

/// That the model knows these tokens.
///
/// # Errors
/// Ids outside the vocabulary.
pub fn check(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::failed(format!(
            "token id {id} is outside the model's vocabulary of {vocab}"
        ))),
    }
}

/// That the cache holds at least `tokens` tokens.
///
/// # Errors
/// Tokens past the context.
pub fn check_room(tokens: usize, context: usize) -> Result<()> {
    if tokens <= context {
        return Ok(());
    }
    Err(Error::failed(format!(
        "{tokens} tokens do not fit the context of {context}; shorten the prompt or raise `context`"
    )))
}
