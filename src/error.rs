//! What the outside world can do to us: one line that says what was being done, to what, and what to do now.
//! Our own mistakes are assertions, not errors.

use std::fmt;

/// Characters of a message, at most: a path and what to do have room.
pub const MOST_CHARS: usize = 600;

/// Why a command ended early. The variant decides the exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The arguments make no sense together: exit status 2.
    Usage(String),
    /// A file, a device or the system failed us: exit status 1.
    Failed(String),
    /// The user pressed Ctrl-C: exit status 130.
    Interrupted,
    /// Whoever read standard output has left, as `head` does, and has all it wanted: exit status 0, and not
    /// a word.
    ReaderLeft,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// The process's exit status for this error.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) => 1,
            Self::Interrupted => 130,
            Self::ReaderLeft => 0,
        }
    }
}

/// `12.34 MiB`, in the largest unit that leaves a digit before the point.
pub fn binary(bytes: usize) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() as usize / 10).min(UNITS.len() - 1);
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{:.2} {}", bytes as f64 / 1024f64.powi(unit as i32), UNITS[unit]),
    }
}

/// `1 layer`, `2 layers`
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// `; did you mean NAME?`, of the name that is most like `given`, where one is.
pub fn did_you_mean<'n>(given: &str, names: impl IntoIterator<Item = &'n str>) -> String {
    let alike = names.into_iter().map(|name| (strsim::jaro(given, name), name));
    let nearest = alike.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.7);
    nearest.map_or(String::new(), |(_, name)| format!("; did you mean {name}?"))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) | Self::Failed(message) => {
                f.write_str(&one_line(message, MOST_CHARS))
            }
            Self::Interrupted => f.write_str("interrupted"),
            Self::ReaderLeft => f.write_str("the reader of standard output has left"),
        }
    }
}

impl std::error::Error for Error {}

/// `text` for people, who may have it from strangers: on one line, control characters written out, and of
/// at most `most` characters, the first and the last ones.
pub fn one_line(text: &str, most: usize) -> String {
    let line: String = text.chars().flat_map(|c| visible(c, false)).take(most + 1).collect();
    if line.chars().count() <= most {
        return line;
    }
    let tail_chars = most / 3;
    let tail: Vec<char> = text.chars().rev().take(tail_chars).collect();
    let tail: String = tail.into_iter().rev().flat_map(|c| visible(c, false)).collect();
    let tail = tail.chars().rev().take(tail_chars).collect::<Vec<_>>().into_iter().rev();
    line.chars().take(most - tail_chars - 1).chain(['…']).chain(tail).collect()
}

/// `text` for a terminal: control characters other than line feeds and tabs, which would act on it, are
/// written out.
pub fn for_terminal(text: &str) -> String {
    text.chars().flat_map(|c| visible(c, true)).collect()
}

/// A character, written out if it is a control character.
fn visible(character: char, has_lines: bool) -> impl Iterator<Item = char> {
    let is_plain = !character.is_control() || (has_lines && matches!(character, '\n' | '\t'));
    let written_out = (!is_plain).then(|| character.escape_default());
    is_plain.then_some(character).into_iter().chain(written_out.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_the_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1 << 20, "1.00 MiB"),
            (13_002_342, "12.40 MiB"),
            (3 << 40, "3.00 TiB"),
        ] {
            assert_eq!(binary(bytes), text);
        }
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|n| count(n, "layer")), ["0 layers", "1 layer", "2 layers"]);
    }

    #[test]
    fn the_nearest_name_is_meant_if_it_is_near() {
        let names = ["rms_norm", "norm_qkv", "embed"];
        assert_eq!(did_you_mean("rmsnorm", names), "; did you mean rms_norm?");
        assert_eq!(did_you_mean("embedding", names), "; did you mean embed?");
        assert_eq!(did_you_mean("xyz", names), "");
    }

    #[test]
    fn messages_are_one_short_line_whatever_is_in_them() {
        let told = |text: &str| Error::failed(text).to_string();
        assert_eq!(told("plain é\u{2028}"), "plain é\u{2028}");
        assert_eq!(
            told("a\u{1b}[31mb\nc\td\re\u{9b}0m\u{7f}\0"),
            "a\\u{1b}[31mb\\nc\\td\\re\\u{9b}0m\\u{7f}\\u{0}"
        );
        let long = format!("cannot read {}\u{1b}{}: no", "é".repeat(1 << 20), "\n".repeat(1 << 20));
        let short = told(&long);
        assert_eq!(short.chars().count(), MOST_CHARS);
        assert!(short.starts_with("cannot read éé") && short.ends_with("\\n\\n: no"), "{short}");
        assert_eq!(told(&"x".repeat(MOST_CHARS)).len(), MOST_CHARS);
        assert!(!told(&"\u{1b}".repeat(MOST_CHARS)).contains(char::is_control));
    }

    #[test]
    fn a_terminal_is_given_lines_and_no_commands() {
        assert_eq!(for_terminal("a\n\tb\u{1b}]0;x\u{7}\r"), "a\n\tb\\u{1b}]0;x\\u{7}\\r");
    }
}
