//! Texts and tokens that end an answer.

/// Tokens that end an answer in any model that has them as control tokens: those of llama.cpp
/// (`special_eog_ids` in its llama-vocab.cpp, of 2026-11).
pub(super) const END_OF_GENERATION: [&str; 33] = [
    "<|eot_id|>",
    "<|im_end|>",
    END,
    RETURN_AND_CALL[0],
    RETURN_AND_CALL[1],
    CALLS_AND_FLUSH[0],
    CALLS_AND_FLUSH[1],
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    // What stands between files, or fills up, in models of code.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Ends a message and not the answer, where a model has one of these pairs as well.
pub(super) const END: &str = "<|end|>";
pub(super) const RETURN_AND_CALL: [&str; 2] = ["<|return|>", "<|call|>"];
pub(super) const CALLS_AND_FLUSH: [&str; 2] = ["<|calls|>", "<|flush|>"];

/// Watches a stream of text for stop strings. Text is held back as long as it may be the beginning
/// of one.
pub struct StopStrings {
    stops: Vec<String>,
    /// The end of the text so far that a stop string may begin with.
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// Watches for `stops`; empty ones are ignored.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new(), stopped: false }
    }

    /// Adds a piece of text. Returns what is safe to print, and whether a stop string came: then
    /// the text ends before the one that was complete first, however the text was cut into pieces,
    /// and what follows is ignored.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        if self.stopped {
            return (String::new(), true);
        }
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        let first = found.min();
        self.stopped = first.is_some();
        let safe = first.map_or_else(|| self.first_beginning(), |(_, start)| start);
        let rest = self.held.split_off(safe);
        let printable = std::mem::replace(&mut self.held, rest);
        (printable, self.stopped)
    }

    /// What was held back and can no longer become a stop string.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        if self.stopped { String::new() } else { held }
    }

    /// Where the longest end of the text lies that a stop string begins with.
    fn first_beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        (from..self.held.len())
            .filter(|at| self.held.is_char_boundary(*at))
            .find(|at| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything printed for a text that comes in pieces, and whether it was stopped.
    fn run(stops: &[String], pieces: &[String]) -> (String, bool) {
        let mut watcher = StopStrings::new(stops.to_vec());
        let mut printed = String::new();
        let mut stopped = false;
        for piece in pieces {
            let (text, now) = watcher.push(piece);
            printed.push_str(&text);
            stopped |= now;
        }
        printed.push_str(&watcher.finish());
        (printed, stopped)
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop() {
        let mut watcher = StopStrings::new(vec!["END".to_owned()]);
        assert_eq!(watcher.push("the E"), ("the ".to_owned(), false));
        assert_eq!(watcher.push("agle EN"), ("Eagle ".to_owned(), false));
        assert_eq!(watcher.push("D and more"), (String::new(), true));
        assert_eq!(watcher.push("even more"), (String::new(), true));
        assert_eq!(watcher.finish(), "");
    }

    #[test]
    fn finish_flushes() {
        let mut watcher = StopStrings::new(vec!["END".to_owned(), String::new()]);
        assert_eq!(watcher.push("the EN"), ("the ".to_owned(), false));
        assert_eq!(watcher.finish(), "EN");
    }

    proptest! {
        /// The oracle looks at every prefix of the text for a stop at its end, the longest first.
        #[test]
        fn cuts_at_the_first_complete_stop(
            mut stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,5}", 0..12),
        ) {
            let text = pieces.concat();
            stops.sort_by_key(|stop| std::cmp::Reverse(stop.len()));
            let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
            let expected = ends.clone().find_map(|end| {
                let stop = stops.iter().find(|stop| text[..end].ends_with(stop.as_str()))?;
                Some(text[..end - stop.len()].to_owned())
            });
            let stopped = expected.is_some();
            prop_assert_eq!(run(&stops, &pieces), (expected.unwrap_or(text), stopped));
        }
    }
}
