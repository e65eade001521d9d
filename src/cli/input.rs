//! What is said in a conversation, line by line: by a person at a terminal, or from a pipe or a file.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Read, StdinLock, Write};
use std::path::PathBuf;

use rustyline::config::Behavior;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

#[cfg(unix)]
use super::echo::Unechoed;
use super::file::Output;
use super::interrupt::while_waiting;
use super::output::note;
use crate::error::{Error, Result};

/// Values of TERM under which rustyline edits nothing, and prints its prompt among the answers.
const WITHOUT_EDITOR: [&str; 3] = ["dumb", "cons25", "emacs"];

/// What comes next in a conversation.
pub enum Said {
    Message(String),
    /// Ctrl-C, in the place of a message.
    Interrupted,
    /// There is no more.
    End,
}

/// Where messages come from. Standard output holds answers alone: prompts and what is typed go to
/// the terminal.
pub enum Input {
    /// A terminal with an editor, and where its history is kept.
    Terminal { editor: Box<Editor<(), FileHistory>>, history: Option<PathBuf> },
    /// Anything else; a person, if it is one, is prompted on standard error.
    Plain { input: StdinLock<'static>, lines: usize },
}

impl Input {
    /// With what was typed before, and what is typed kept for the next time, if `has_history`.
    ///
    /// # Errors
    /// A terminal that cannot be set up; what is no value of CHASKI_HISTORY.
    pub fn open(has_history: bool) -> Result<Self> {
        let has_history = has_history && is_history_on()?;
        let term = std::env::var("TERM").unwrap_or_default();
        if !io::stdin().is_terminal() || WITHOUT_EDITOR.contains(&&*term.to_lowercase()) {
            return Ok(Self::Plain { input: io::stdin().lock(), lines: 0 });
        }
        let behavior = match io::stdout().is_terminal() {
            true => Behavior::Stdio,
            false => Behavior::PreferTerm, // answers go elsewhere
        };
        let config = Config::builder().auto_add_history(true).behavior(behavior).build();
        let mut editor = Box::new(Editor::with_config(config).map_err(failed)?);
        // A pipe, a device or what is endless in its place would be read for ever.
        let is_usable = |metadata: fs::Metadata| metadata.is_file() && metadata.len() <= MOST_BYTES;
        let history = history_file().filter(|_| has_history);
        let history = history.filter(|file| fs::metadata(file).map_or(true, is_usable));
        if let Some(history) = &history {
            let _ = editor.load_history(history); // there is none the first time
        }
        Ok(Self::Terminal { editor, history })
    }

    /// Whether a person is there to read what is not an answer.
    pub fn is_for_people(&self) -> bool {
        matches!(self, Self::Terminal { .. }) || io::stdin().is_terminal()
    }

    /// While it exists, what is typed is not shown, and is part of the next message.
    #[cfg(unix)]
    pub fn unechoed(&self) -> Option<Unechoed> {
        Unechoed::begin(matches!(self, Self::Terminal { .. }))
    }

    /// Elsewhere terminals are as they are.
    #[cfg(not(unix))]
    pub fn unechoed(&self) {}

    /// One message: a line, and those after it while they end in a backslash.
    ///
    /// # Errors
    /// What keeps it from being read.
    pub fn message(&mut self) -> Result<Said> {
        let mut message = match self.line("> ")? {
            Said::Message(line) => line,
            other => return Ok(other),
        };
        while message.ends_with('\\') {
            message.pop();
            match self.line("  ")? {
                Said::Message(line) => message = message + "\n" + &line,
                Said::End => break,
                Said::Interrupted => return Ok(Said::Interrupted),
            }
        }
        Ok(Said::Message(message))
    }

    fn line(&mut self, prompt: &str) -> Result<Said> {
        match self {
            Self::Terminal { editor, .. } => match editor.readline(prompt) {
                Ok(line) => Ok(Said::Message(line)),
                Err(ReadlineError::Interrupted) => Ok(Said::Interrupted),
                Err(ReadlineError::Eof) => Ok(Said::End),
                Err(error) => Err(failed(error)),
            },
            Self::Plain { input, lines } => {
                if io::stdin().is_terminal() {
                    let _ = write!(io::stderr(), "{prompt}");
                }
                let mut line = Vec::new();
                let read = while_waiting(|| read_line(input, &mut line));
                let cannot = |error| Error::failed(format!("cannot read standard input: {error}"));
                if read.map_err(cannot)? == 0 {
                    return Ok(Said::End);
                }
                *lines += 1;
                Ok(Said::Message(text(&line, *lines)))
            }
        }
    }

    /// Keeps what was said for the next time, where a person said it.
    pub fn keep_history(&mut self) {
        let Self::Terminal { editor, history: Some(file) } = self else { return };
        let mut keep = || {
            if let Some(folder) = file.parent() {
                let cannot =
                    |error| Error::failed(format!("cannot write {}: {error}", folder.display()));
                fs::create_dir_all(folder).map_err(cannot)?;
            }
            let output = Output::create(file)?;
            let Some(beside) = output.beside() else { return Ok(()) };
            editor.save_history(beside).map_err(failed)?;
            // Nothing is written where nothing is new.
            let is_new = fs::metadata(beside).is_ok_and(|metadata| metadata.len() > 0);
            if is_new { output.finish() } else { Ok(()) }
        };
        if let Err(error) = keep() {
            note(format_args!(
                "the history is not kept: {error}; XDG_STATE_HOME can name another folder"
            ));
        }
    }
}

/// Bytes of a line, at most; and of the history.
const MOST_BYTES: u64 = 16 << 20;

/// Reads a line with its end: so many bytes, 0 at the end of the input.
///
/// # Errors
/// A line without end; what the system says.
pub fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    let count = input.take(MOST_BYTES + 1).read_until(b'\n', line)?;
    match count as u64 <= MOST_BYTES {
        true => Ok(count),
        false => Err(io::Error::other(format!("a line is over {} MiB", MOST_BYTES >> 20))),
    }
}

/// A line without its end. What is not UTF-8 is replaced, and told.
fn text(line: &[u8], number: usize) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = String::from_utf8_lossy(line);
    if matches!(text, std::borrow::Cow::Owned(_)) {
        note(format_args!("line {number} is not UTF-8: U+FFFD stands where it is not"));
    }
    text.into_owned()
}

fn failed(error: ReadlineError) -> Error {
    Error::failed(format!("cannot use the terminal: {error}"))
}

/// As CHASKI_HISTORY has it.
fn is_history_on() -> Result<bool> {
    match std::env::var("CHASKI_HISTORY").as_deref() {
        Err(_) | Ok("" | "on") => Ok(true),
        Ok("off") => Ok(false),
        Ok(other) => Err(Error::usage(format!("CHASKI_HISTORY={other}: it is on or off"))),
    }
}

/// `$XDG_STATE_HOME/chaski/history`
fn history_file() -> Option<PathBuf> {
    let set =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("chaski/history"))
}
