//! What a step looks for in a text: a piece of text, or a stranger's regular expression, which is
//! compiled within bounds and whose search fails where the engine's own iterator panics or never
//! ends.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use onig::{MatchParam, Regex, SearchOptions};
use serde_json::Value;
use tokenizers::Offsets;
use tokenizers::pattern::Pattern as FindMatches;

use crate::json;

/// The longest published patterns have some 1,500 bytes.
const MAX_PATTERN_BYTES: usize = 4096;
/// How deep groups and classes nest.
const MAX_DEPTH: usize = 32;
/// The product of all counts of repetitions: the engine writes out what is repeated.
const MAX_REPEATS: usize = 4096;
/// Steps back within one match. A run of white space of the longest piece takes one for each
/// character.
const MAX_STEPS_BACK: u32 = 4_000_000;
/// Time on a processor that a search may take, and more for each byte. What is published takes a
/// tenth of that.
const MAX_TIME: Duration = Duration::from_secs(1);
const MAX_TIME_PER_BYTE: Duration = Duration::from_micros(2);
/// Matches between two looks at the clock.
const LOOK: usize = 8;

/// Calls and conditions within a pattern, and what runs backwards for more than a few characters.
const NOT_SUPPORTED: [&str; 8] = ["\\g", "\\k", "(?(", "(?~", "(?{", "(*", "\\X", "\\y"];

pub(super) enum Pattern {
    Text(String),
    Regex(Regex),
}

impl Pattern {
    /// Reads `{"String": ...}` or `{"Regex": ...}`.
    pub fn read(value: &Value) -> Result<Self, String> {
        let entry =
            value.as_object().and_then(|object| object.iter().next().filter(|_| object.len() == 1));
        match entry.map(|(kind, text)| (kind.as_str(), text.as_str())) {
            Some(("String", Some(""))) => Err("pattern is empty".to_owned()),
            Some(("String", Some(text))) => Ok(Self::Text(text.to_owned())),
            Some(("Regex", Some(pattern))) => Self::regex(pattern),
            _ => Err("pattern is neither a String nor a Regex".to_owned()),
        }
    }

    pub fn regex(pattern: &str) -> Result<Self, String> {
        let refused = |what: &str| format!("the pattern {}: {what}", json::quote(pattern));
        check(pattern).map_err(|what| refused(&what))?;
        Regex::new(pattern)
            .map(Self::Regex)
            .map_err(|error| refused(&json::one_line(error.description())))
    }
}

/// Refuses what compiles to something huge, or takes the compiler's stack.
fn check(pattern: &str) -> Result<(), String> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(format!("has over {MAX_PATTERN_BYTES} bytes"));
    }
    if let Some(what) = NOT_SUPPORTED.iter().find(|what| pattern.contains(**what)) {
        return Err(format!("{what} is not supported"));
    }
    let (mut depth, mut repeats) = (0_usize, 1_usize);
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '\\' => {
                let escaped = rest.chars().next().map_or(0, char::len_utf8);
                // Not a count: the name of a property, or a character's number.
                let is_named =
                    rest.starts_with(['p', 'P', 'x', 'o', 'u']) && rest[escaped..].starts_with('{');
                rest = &rest[if is_named { rest.find('}').unwrap_or(escaped) } else { escaped }..];
            }
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '{' => {
                let end = rest.find('}').unwrap_or(0);
                let counts =
                    rest[..end].split(',').map_while(|count| count.trim().parse::<usize>().ok());
                repeats = repeats.saturating_mul(counts.max().unwrap_or(1).max(1));
            }
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(format!("nests deeper than {MAX_DEPTH} levels"));
        }
        if repeats > MAX_REPEATS {
            return Err(format!("repeats more than {MAX_REPEATS} times"));
        }
    }
    Ok(())
}

/// A pattern that is looked for within a time.
pub(super) struct TimedSearch<'a> {
    pub pattern: &'a Pattern,
    pub time: &'a Time,
}

impl FindMatches for TimedSearch<'_> {
    /// The matches in a text and what lies between them, with whether it is a match.
    ///
    /// # Errors
    /// The search takes too many steps or too long.
    fn find_matches(&self, text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut found = Found { parts: Vec::with_capacity(text.len() / 3 + 1), end: 0 };
        match self.pattern {
            Pattern::Text(wanted) => {
                text.match_indices(wanted).for_each(|(at, _)| found.push(at, at + wanted.len()));
            }
            Pattern::Regex(regex) => find_all(regex, text, self.time, &mut found)?,
        }
        if found.end != text.len() {
            found.parts.push(((found.end, text.len()), false));
        }
        Ok(found.parts)
    }
}

struct Found {
    parts: Vec<(Offsets, bool)>,
    end: usize,
}

impl Found {
    fn push(&mut self, start: usize, end: usize) {
        if self.end != start {
            self.parts.push(((self.end, start), false));
        }
        self.parts.push(((start, end), true));
        self.end = end;
    }
}

/// As the engine's own iterator, but place by place: so that each place's steps are bounded, and
/// the time.
fn find_all(regex: &Regex, text: &str, time: &Time, found: &mut Found) -> tokenizers::Result<()> {
    let mut last_match = None;
    let (mut at, mut tries) = (0, 0);
    while at <= text.len() {
        if tries % LOOK == 0 && time.is_over() {
            return Err("a pattern takes too long to find".into());
        }
        tries += 1;
        let mut bounds = MatchParam::default();
        bounds.set_retry_limit_in_match(MAX_STEPS_BACK);
        let matched =
            regex.match_with_param(text, at, SearchOptions::SEARCH_OPTION_NONE, None, bounds);
        let matched = matched
            .map_err(|error| format!("a pattern is too costly to find: {}", error.description()))?;
        match matched {
            // An empty match right after another one is none.
            Some(length) if length > 0 || last_match != Some(at) => {
                found.push(at, at + length);
                at += length;
                last_match = Some(at);
            }
            _ => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    Ok(())
}

/// The time that this thread may spend on a processor: no clock, so a machine that is busy with
/// other things, or was stopped, refuses nothing.
pub(super) struct Time {
    start: Instant,
    limit: Duration,
    /// What the thread had spent when its limit had passed on the clock.
    spent: OnceLock<Duration>,
}

impl Time {
    /// For a text of so many bytes.
    pub fn for_text(bytes: usize) -> Self {
        let limit = MAX_TIME + MAX_TIME_PER_BYTE * u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { start: Instant::now(), limit, spent: OnceLock::new() }
    }

    fn is_over(&self) -> bool {
        self.start.elapsed() > self.limit
            && thread_time().is_none_or(|now| now - *self.spent.get_or_init(|| now) > self.limit)
    }
}

/// What this thread has spent, where the system tells it.
fn thread_time() -> Option<Duration> {
    let thread = fs::read_link("/proc/thread-self").ok()?;
    let text = fs::read_to_string(Path::new("/proc").join(thread).join("stat")).ok()?;
    // The second field is a name in parentheses, in which anything may stand. The 14th and 15th are
    // the user's and the system's time, in hundredths of a second.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis(10 * (next()? + next()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pattern: &str, text: &str) -> Result<Vec<(Offsets, bool)>, String> {
        let pattern = Pattern::regex(pattern)?;
        let search = TimedSearch { pattern: &pattern, time: &Time::for_text(text.len()) };
        search.find_matches(text).map_err(|error| error.to_string())
    }

    /// The engine's own iterator is the oracle.
    #[test]
    fn matches_are_the_engines() {
        let patterns = [
            r"\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+",
            "b",
            "x*",
            "a|",
            r"(?<=a)b",
            r"\b",
            r"$",
            r"^a",
            "é?",
        ];
        for text in ["ab 1234  x", "", "aab", "éé b", "xaxx", "a\nb  \n"] {
            for pattern in patterns {
                let mut oracle = Found { parts: Vec::new(), end: 0 };
                Regex::new(pattern)
                    .unwrap()
                    .find_iter(text)
                    .for_each(|(start, end)| oracle.push(start, end));
                if oracle.end != text.len() {
                    oracle.parts.push(((oracle.end, text.len()), false));
                }
                let expected = if text.is_empty() { vec![((0, 0), false)] } else { oracle.parts };
                assert_eq!(found(pattern, text), Ok(expected), "{pattern} in {text:?}");
            }
        }
    }

    #[test]
    fn costly_patterns_are_refused() {
        let nested = ["[a".repeat(5000), "(".repeat(100) + &")".repeat(100)];
        for (pattern, what) in [
            ("(a{1000}){1000}", "repeats more than"),
            ("(((a{99}){99}){99}){99}", "repeats more than"),
            ("a{9999999999999999999999}{2000}{3}", "repeats more than"),
            (&nested[0], "has over 4096 bytes"),
            (&nested[1], "nests deeper than 32"),
            (r"(?<a>x\g<a>?)", "\\g is not supported"),
            ("(", "end pattern"),
            ("[", "premature end"),
            ("*", "target of repeat"),
        ] {
            let error = Pattern::regex(pattern).err().unwrap_or_default();
            assert!(error.contains(what), "{pattern:?}: {error}");
        }
        for pattern in [r"\p{L}{1,3}\x{4e00}[\x{1000}-\x{9999}]", r"\{9999999}", "a{,5}b{2,}{x}"] {
            assert!(Pattern::regex(pattern).is_ok(), "{pattern}");
        }
    }

    #[test]
    fn costly_searches_end() {
        let run = "a".repeat(1 << 17);
        for (pattern, what) in [("(a+)+$", "too costly"), ("a++a", "too long"), (r"a*(?=b)", "too")]
        {
            let error = found(pattern, &(run.clone() + "c")).unwrap_err();
            assert!(error.contains(what), "{pattern}: {error}");
        }
    }
}
