//! Keeps what people type from becoming a control token when a template mixes it with its own.
//!
//! A character that occurs nowhere in the conversation is put into each control token's text found
//! in it, and is taken out again where the rendered text is encoded as plain text.

use super::Request;
use crate::tokenizer::Tokenizer;

/// The guard is chosen among these: the private-use characters of the basic plane.
const CANDIDATES: std::ops::RangeInclusive<char> = '\u{e000}'..='\u{f8ff}';

/// Guards a conversation. Returns it and the guard that is in it; `None` if it uses every candidate
/// itself.
pub(super) fn guard(tokenizer: &Tokenizer, request: &Request) -> Option<(Request, char)> {
    let mut used = std::collections::HashSet::new();
    request.map_texts(&mut |text, _| {
        used.extend(text.chars().filter(|c| CANDIDATES.contains(c)));
        String::new()
    });
    let guard = CANDIDATES.into_iter().find(|c| !used.contains(c))?;
    let guarded = request.map_texts(&mut |text, is_content| {
        let whole = guard_whole(tokenizer, text, guard);
        if is_content { guard_edges(tokenizer, &whole, guard) } else { whole }
    });
    Some((guarded, guard))
}

/// Breaks every control token in `text`, also those that overlap, after its first character.
fn guard_whole(tokenizer: &Tokenizer, text: &str, guard: char) -> String {
    let mut guarded = String::with_capacity(text.len());
    let mut end = 0;
    while let Some(start) = tokenizer.find_control(&text[end..]) {
        let start = end + start;
        let first = text[start..].chars().next().map_or(0, char::len_utf8);
        guarded.push_str(&text[end..start + first]);
        guarded.push(guard);
        end = start + first;
    }
    guarded.push_str(&text[end..]);
    guarded
}
/// Puts guards around a text that could complete a control token with what a template puts beside
/// it. They stand inside the white space at the edges, for the template to take that off.
fn guard_edges(tokenizer: &Tokenizer, text: &str, guard: char) -> String {
    let inner = text.trim();
    let (mut at_start, mut at_end) = (false, false);
    for control in tokenizer.control_texts() {
        at_start |= control.contains(inner);
        for (at, _) in control.char_indices().skip(1) {
            let (beginning, rest) = control.split_at(at);
            at_start |= inner.starts_with(rest);
            at_end |= inner.ends_with(beginning);
        }
    }
    if inner.is_empty() || !(at_start || at_end) {
        return text.to_owned();
    }
    let (before, after) = (text.len() - text.trim_start().len(), text.trim_end().len());
    let mut guarded = text.to_owned();
    if at_end {
        guarded.insert(after, guard);
    }
    if at_start {
        guarded.insert(before, guard);
    }
    guarded
}
