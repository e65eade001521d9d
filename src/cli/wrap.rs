//! Words that come one by one, on lines of a terminal.

use std::mem;

use unicode_width::UnicodeWidthChar;

/// Puts words that no longer fit a line on the next one. A word is held back until it is whole.
pub struct Wrap {
    /// Of the terminal: 0 where that is not known, and nothing is wrapped.
    columns: usize,
    /// The column that comes next.
    at: usize,
    /// Blanks before the word.
    blanks: String,
    word: String,
}

/// Columns from one stop of the tabulator to the next.
const TAB: usize = 8;

impl Wrap {
    pub fn new(columns: usize) -> Self {
        Self { columns, at: 0, blanks: String::new(), word: String::new() }
    }

    /// More text; what of all text can be shown now. It has no control characters but line feeds and tabs.
    pub fn push(&mut self, text: &str) -> String {
        if self.columns == 0 {
            return text.to_owned();
        }
        let mut shown = String::new();
        for character in text.chars() {
            match character {
                '\n' => {
                    shown += &self.flush();
                    shown.push('\n');
                    self.at = 0;
                }
                ' ' | '\t' => {
                    shown += &self.flush_word();
                    self.blanks.push(character);
                }
                // Ideographs stand side by side without blanks: each is a word.
                wide if wide.width() == Some(2) => {
                    shown += &self.flush_word();
                    self.word.push(wide);
                    shown += &self.flush_word();
                }
                other => self.word.push(other),
            }
            // A word that fills a line stands over several, wherever it begins.
            if width(&self.word) >= self.columns {
                shown += &self.flush_word();
            }
        }
        shown
    }

    /// What was held back, at the end.
    pub fn flush(&mut self) -> String {
        let shown = self.flush_word();
        self.at += width(&self.blanks);
        shown + &mem::take(&mut self.blanks)
    }

    /// The word, with the blanks before it or on a new line.
    fn flush_word(&mut self) -> String {
        if self.word.is_empty() {
            return String::new();
        }
        let (blanks, word) = (mem::take(&mut self.blanks), mem::take(&mut self.word));
        let (before, own) = (self.at + width(&blanks), width(&word));
        if self.at > 0 && before + own > self.columns {
            self.at = own;
            return format!("\n{word}");
        }
        self.at = before + own;
        blanks + &word
    }
}

fn width(text: &str) -> usize {
    let of = |character: char| if character == '\t' { TAB } else { character.width().unwrap_or(0) };
    text.chars().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(columns: usize, text: &str) -> String {
        let mut wrap = Wrap::new(columns);
        let mut shown: String = text.chars().map(|c| wrap.push(&c.to_string())).collect();
        shown += &wrap.flush();
        // However it comes.
        let mut whole = Wrap::new(columns);
        assert_eq!(whole.push(text) + &whole.flush(), shown);
        shown
    }

    #[test]
    fn words_that_do_not_fit_stand_on_the_next_line() {
        assert_eq!(wrapped(10, "one two three four"), "one two\nthree four");
        assert_eq!(wrapped(10, "1234567890 a"), "1234567890\na");
        assert_eq!(wrapped(10, "a 1234567890"), "a\n1234567890");
        assert_eq!(wrapped(10, "a\n  b c\n\nd "), "a\n  b c\n\nd ");
        assert_eq!(wrapped(10, "ab 123456789012 c"), "ab\n1234567890\n12 c");
        assert_eq!(wrapped(1, "ab c"), "a\nb\nc");
        assert_eq!(wrapped(0, "one two three"), "one two three");
        assert_eq!(wrapped(6, "日本語日本"), "日本語\n日本");
        assert_eq!(wrapped(9, "naïve café été"), "naïve\ncafé été");
    }

    #[test]
    fn a_word_is_held_back_until_it_is_whole() {
        let mut wrap = Wrap::new(10);
        assert_eq!(
            [wrap.push("Hel"), wrap.push("lo wor"), wrap.push("ld\n")],
            ["", "Hello", "\nworld\n"]
        );
        assert_eq!((wrap.push("a"), wrap.flush()), (String::new(), "a".to_owned()));
    }
}
