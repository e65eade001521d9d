//! Control tokens, and where they stand in a text.

use std::collections::HashMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use super::definition::AddedToken;

/// The tokens that steer the model, and how to find them in a text.
pub(super) struct ControlTokens {
    /// Leftmost-longest; its patterns are `tokens`.
    pub finder: AhoCorasick,
    pub tokens: Vec<AddedToken>,
    pub by_id: HashMap<u32, usize>,
}

impl ControlTokens {
    pub fn new(tokens: Vec<AddedToken>) -> Result<Self, String> {
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| token.content.as_bytes()))
            .map_err(|error| format!("added_tokens: {error}"))?;
        let by_id = tokens.iter().enumerate().map(|(index, token)| (token.id, index)).collect();
        Ok(Self { finder, tokens, by_id })
    }
}

/// Whether no letter or digit touches a range of the text.
pub(super) fn stands_alone(text: &str, range: Range<usize>) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..range.start].ends_with(is_word) && !text[range.end..].starts_with(is_word)
}
