//! The answer on standard output, the rest on standard error.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use terminal_size::{Width, terminal_size_of};

use super::wrap::Wrap;
use crate::error::{Error, MOST_CHARS, Result, count, for_terminal, one_line};
use crate::session::{AnswerText, Next, Timing};
use crate::tokenizer::Tokenizer;

/// Writes a piece of the answer at once. A terminal is shown control characters in it, and does not obey
/// them; anything else gets the very bytes.
///
/// # Errors
/// When standard output cannot be written, or nobody reads it any more.
pub fn print(text: &str) -> Result<()> {
    if io::stdout().is_terminal() { print_own(&for_terminal(text)) } else { print_own(text) }
}

/// As [`print`], of what nobody else has written: it may have colours.
///
/// # Errors
/// As [`print`].
pub fn print_own(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Error::ReaderLeft),
        Err(error) => Err(Error::failed(format!("cannot write to standard output: {error}"))),
    }
}

/// Whether nobody wants to know what goes as it should.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on [`note`] says nothing, and no bars move.
pub fn be_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// A line for the person at the terminal about what goes on.
pub fn note(line: impl Display) {
    if !is_quiet() {
        tell(line);
    }
}

/// As [`note`], of what goes wrong, or was asked for. Standard error may be closed; that is no reason to
/// stop.
pub fn tell(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{}", one_line(&with_flags(line), MOST_CHARS));
}

/// Streams an answer's text: whole characters only, and nothing of a stop string.
pub struct Printer<'t> {
    said: AnswerText<'t>,
    /// As `said`, with control tokens, where they are to be shown.
    shown: Option<AnswerText<'t>>,
    /// Whether the text goes to standard output; stop strings are watched for in any case.
    echo: bool,
    /// The text so far, without control tokens.
    pub text: String,
    /// On a terminal, if its lines are to end between words.
    wrap: Option<Wrap>,
    ends_line: bool,
}

impl<'t> Printer<'t> {
    pub fn new(tokenizer: &'t Tokenizer, stop_strings: &[String], echo: bool, show: bool) -> Self {
        Self {
            said: AnswerText::new(tokenizer, stop_strings, false),
            shown: (echo && show).then(|| AnswerText::new(tokenizer, stop_strings, true)),
            echo,
            text: String::new(),
            wrap: None,
            ends_line: false,
        }
    }

    /// On a terminal, with lines that end between words.
    pub fn wrapped(mut self) -> Self {
        let width = terminal_size_of(io::stdout()).map(|(Width(columns), _)| columns.into());
        self.wrap = width.map(Wrap::new);
        self
    }

    pub fn push(&mut self, id: u32) -> Result<Next> {
        let (text, next) = self.said.push(id)?;
        let shown = self.shown.as_mut().map(|shown| shown.push(id)).transpose()?;
        self.text.push_str(&text);
        self.print(shown.as_ref().map_or(&text, |(shown, _)| shown))?;
        Ok(next)
    }

    /// The token that ended the answer, to be shown where control tokens are.
    pub fn push_stop(&mut self, id: u32) -> Result<()> {
        match &mut self.shown {
            None => Ok(()),
            Some(shown) => {
                let (text, _) = shown.push(id)?;
                self.print(&text)
            }
        }
    }

    /// Prints what was held back, and ends the line.
    pub fn finish(&mut self) -> Result<()> {
        let text = self.said.finish()?;
        let shown = self.shown.as_mut().map(AnswerText::finish).transpose()?;
        self.text.push_str(&text);
        self.print(shown.as_ref().unwrap_or(&text))?;
        if self.ends_line { Ok(()) } else { self.print("\n") }
    }

    fn print(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.ends_line = text.ends_with('\n');
        match &mut self.wrap {
            _ if !self.echo => Ok(()),
            None => print(text),
            Some(wrap) => print_own(&wrap.push(&for_terminal(text))),
        }
    }
}

/// Options by the names that the library's messages have for them, between backticks, and by their flags.
const FLAGS: [(&str, &str); 29] = [
    ("activations", "--activations"),
    ("against", "--against"),
    ("arg", "--arg"),
    ("context", "--context"),
    ("cors", "--cors"),
    ("device", "--device"),
    ("devices", "--devices"),
    ("emulate", "--emulate"),
    ("entry", "--entry"),
    ("frequency_penalty", "--frequency-penalty"),
    ("ids", "--ids"),
    ("join", "--join"),
    ("kernels", "--kernel"),
    ("kv_type", "--kv-type"),
    ("layers", "--layers"),
    ("logit_bias", "--logit-bias"),
    ("min_p", "--min-p"),
    ("offline", "--offline"),
    ("presence_penalty", "--presence-penalty"),
    ("print_ids", "--print-ids"),
    ("rendezvous", "--rendezvous"),
    ("repeat_penalty", "--repeat-penalty"),
    ("sanitize", "--sanitize"),
    ("secret", "--secret-file"),
    ("stop", "--stop"),
    ("temperature", "--temp"),
    ("timeout", "--timeout"),
    ("top_p", "--top-p"),
    ("trust_kernels", "--trust-kernels"),
];

/// A line of the library's for the command line's user, who knows options by their flags.
pub fn with_flags(line: impl Display) -> String {
    let mut text = line.to_string();
    for (field, flag) in FLAGS {
        text = text.replace(&format!("`{field}`"), flag);
    }
    text
}

/// Says what an answer took.
pub fn note_timing(timing: &Timing) {
    timing_lines(timing).iter().for_each(note);
}

/// Prefill and decode apart: a rate that mixes them says nothing about either.
pub fn timing_lines(timing: &Timing) -> Vec<String> {
    let rate = |tokens: usize, time: std::time::Duration| {
        let seconds = time.as_secs_f64();
        let rate = tokens as f64 / seconds;
        format!("{} in {seconds:.3} s, {rate:.1} tokens/s", count(tokens, "token"))
    };
    let mut lines = Vec::new();
    if timing.prefill_tokens > 0 && !timing.prefill.is_zero() {
        lines.push(format!("prefill      {}", rate(timing.prefill_tokens, timing.prefill)));
        lines.push(format!("first token  after {:.3} s", timing.first_token.as_secs_f64()));
    }
    if timing.decode_tokens > 0 {
        lines.push(format!("decode       {}", rate(timing.decode_tokens, timing.decode)));
    }
    lines
}

/// A progress bar on standard error, if that is a terminal.
pub fn progress(length: u64, what: &'static str) -> ProgressBar {
    let target = if io::stderr().is_terminal() && !is_quiet() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(length), target).with_message(what);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    bar.with_style(style.expect("the template is a constant"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::CommandLine;

    #[test]
    fn fields_are_told_by_flags_that_there_are() {
        fn has(command: &clap::Command, flag: &str) -> bool {
            let is_it = |arg: &clap::Arg| arg.get_long() == flag.strip_prefix("--");
            command.get_arguments().any(is_it) || command.get_subcommands().any(|c| has(c, flag))
        }
        let command = CommandLine::command();
        for (field, flag) in FLAGS {
            assert!(has(&command, flag), "{field}: {flag}");
        }
        assert_eq!(with_flags("a `context` of 8, `none`"), "a --context of 8, `none`");
    }
}
