//! The answer on standard output, the rest on standard error.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Error, Result};
use crate::session::{Next, Timing};
use crate::tokenizer::{StopStrings, TextStream, Tokenizer};

/// Writes a piece of the answer at once.
///
/// # Errors
/// When standard output cannot be written, or nobody reads it any more.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Error::ReaderLeft),
        Err(error) => Err(Error::failed(format!("cannot write to standard output: {error}"))),
    }
}

/// A line for the person at the terminal. Standard error may be closed; that is no reason to stop.
pub fn note(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Text as it comes, up to a stop string.
struct Watched<'t> {
    stream: TextStream<'t>,
    stops: StopStrings,
}

impl<'t> Watched<'t> {
    fn new(tokenizer: &'t Tokenizer, stop_strings: &[String], show_control: bool) -> Self {
        let stops = StopStrings::new(stop_strings.to_vec());
        Self { stream: TextStream::new(tokenizer, show_control), stops }
    }

    /// The text that is safe to print now, and whether a stop string came.
    fn push(&mut self, id: u32) -> Result<(String, bool)> {
        Ok(self.stops.push(&self.stream.push(id)?))
    }

    fn finish(&mut self) -> Result<String> {
        let (text, _) = self.stops.push(&self.stream.finish()?);
        Ok(text + &self.stops.finish())
    }
}

/// Streams an answer's text: whole characters only, and nothing of a stop string.
pub struct Printer<'t> {
    said: Watched<'t>,
    /// As `said`, with control tokens, where they are to be shown.
    shown: Option<Watched<'t>>,
    /// Whether the text goes to standard output; stop strings are watched for in any case.
    echo: bool,
    /// The text so far, without control tokens.
    pub text: String,
    ends_line: bool,
}

impl<'t> Printer<'t> {
    pub fn new(tokenizer: &'t Tokenizer, stop_strings: &[String], echo: bool, show: bool) -> Self {
        Self {
            said: Watched::new(tokenizer, stop_strings, false),
            shown: (echo && show).then(|| Watched::new(tokenizer, stop_strings, true)),
            echo,
            text: String::new(),
            ends_line: false,
        }
    }

    pub fn push(&mut self, id: u32) -> Result<Next> {
        let (text, stopped) = self.said.push(id)?;
        let shown = self.shown.as_mut().map(|shown| shown.push(id)).transpose()?;
        self.text.push_str(&text);
        self.print(shown.as_ref().map_or(&text, |(shown, _)| shown))?;
        Ok(if stopped { Next::Stop } else { Next::Continue })
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
        let shown = self.shown.as_mut().map(Watched::finish).transpose()?;
        self.text.push_str(&text);
        self.print(shown.as_ref().unwrap_or(&text))?;
        if self.ends_line { Ok(()) } else { self.print("\n") }
    }

    fn print(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.ends_line = text.ends_with('\n');
        if self.echo { print(text) } else { Ok(()) }
    }
}

/// Prefill and decode apart: a rate that mixes them says nothing about either.
pub fn note_timing(timing: &Timing) {
    let rate = |tokens: usize, time: std::time::Duration| {
        let seconds = time.as_secs_f64();
        format!("{tokens} tokens in {seconds:.3} s, {:.1} tokens/s", tokens as f64 / seconds)
    };
    if timing.prefill_tokens > 0 && !timing.prefill.is_zero() {
        note(format_args!("prefill      {}", rate(timing.prefill_tokens, timing.prefill)));
        note(format_args!("first token  after {:.3} s", timing.first_token.as_secs_f64()));
    }
    if timing.decode_tokens > 0 {
        note(format_args!("decode       {}", rate(timing.decode_tokens, timing.decode)));
    }
}

/// A progress bar on standard error, if that is a terminal.
pub fn progress(length: u64, what: &'static str) -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(length), target).with_message(what);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    bar.with_style(style.expect("the template is a constant"))
}
