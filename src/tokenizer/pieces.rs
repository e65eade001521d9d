//! Cuts a long text where the Llama 3 encoding is sure to cut it too, so that the pieces' ids laid
//! end to end are the text's. What it bounds: an encoding takes some 500 bytes of memory for a byte
//! of text, and the regular expression gives up (a panic in the regex library) after ten million
//! steps back within one match, as over ten million spaces.

use serde_json::Value;

use std::ops::Range;

pub(super) use crate::source::LLAMA3_PATTERN;

/// Whether `pattern` is Llama 3's, or the one that differs only in taking numbers digit by digit.
pub(super) fn is_llama3_pattern(pattern: &str) -> bool {
    let by_digit = |pattern: &str| pattern.replacen("{1,3}", "", 1);
    by_digit(pattern) == by_digit(LLAMA3_PATTERN)
}

/// A piece ends at the first sure cut after this many bytes ...
const PIECE_BYTES: usize = 1 << 16;
/// ... or, where a run of one kind of character has none, at this length at the latest: Meta's own
/// encoder cuts such runs after 25,000 characters, and `transformers` never.
const MAX_PIECE_BYTES: usize = 1 << 20;

/// The pieces of `text`, in order; together they are the whole text.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let end = start + piece_bytes(&text[start..]);
        let piece = start..end;
        start = end;
        (!piece.is_empty()).then_some(piece)
    })
}

fn piece_bytes(text: &str) -> usize {
    if text.len() <= PIECE_BYTES {
        return text.len();
    }
    let limit = text.len().min(MAX_PIECE_BYTES);
    let sure = (PIECE_BYTES..limit).find(|&at| text.is_char_boundary(at) && is_sure_cut(text, at));
    let any = || (0..=limit).rev().find(|&at| text.is_char_boundary(at));
    sure.or_else(any).unwrap_or(limit)
}

/// Whether no match of [`LLAMA3_PATTERN`] reaches across `at`, and none looks across it.
///
/// A letter before a space or a line break: `\p{L}+` ends there, nothing else holds a letter, and
/// the only look-ahead stands after white space. A line break before a visible character: whatever
/// holds the line break ends with it.
fn is_sure_cut(text: &str, at: usize) -> bool {
    let before = text.as_bytes()[at - 1];
    let after = text[at..].chars().next();
    match before {
        b'a'..=b'z' | b'A'..=b'Z' => matches!(after, Some(' ' | '\n')),
        b'\n' => after.is_some_and(|c| c.is_alphanumeric() || c.is_ascii_graphic()),
        _ => false,
    }
}

/// Whether this is Llama 3's pre-tokenizer: its split, then bytes without a space put before them.
pub fn is_llama3(pre_tokenizer: &Value) -> bool {
    let Some([split, bytes]) = pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice) else {
        return false;
    };
    split["type"] == "Split"
        && split["pattern"]["Regex"].as_str().is_some_and(is_llama3_pattern)
        && split["behavior"] == "Isolated"
        && split["invert"] == false
        && bytes["type"] == "ByteLevel"
        && bytes["add_prefix_space"] == false
        && bytes["use_regex"] == false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text() {
        let texts = [
            String::new(),
            "short".to_owned(),
            "a word and another\n".repeat(20_000),
            "é".repeat(MAX_PIECE_BYTES),
            " ".repeat(3 * MAX_PIECE_BYTES + 1),
        ];
        for text in texts {
            let mut end = 0;
            for piece in pieces(&text) {
                assert_eq!(piece.start, end);
                assert!(piece.len() <= MAX_PIECE_BYTES);
                end = piece.end;
            }
            assert_eq!(end, text.len());
        }
    }

    #[test]
    fn short_texts_are_whole_and_long_ones_are_not() {
        assert_eq!(pieces(&"word ".repeat(10_000)).count(), 1);
        assert!(pieces(&"word ".repeat(100_000)).count() > 5);
    }
}
