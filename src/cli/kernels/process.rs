//! A process that runs kernels: what it tells on standard output, and how it ends.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Of its standard output.
pub enum Line<E> {
    Event(E),
    /// What a kernel prints.
    Printed(String),
}

pub struct Process<E> {
    child: Child,
    pub events: Receiver<Line<E>>,
    errors: thread::JoinHandle<String>,
    /// It ends when this does.
    _input: Option<ChildStdin>,
}

impl<E: DeserializeOwned + Send + 'static> Process<E> {
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let (events, errors) = (events_of(&mut child), errors_of(&mut child));
        Ok(Self { events, errors, _input: child.stdin.take(), child })
    }

    /// How it has ended, or is made to unless it ends `by_itself`, and what it wrote on standard error.
    pub fn end(mut self, by_itself: bool) -> Result<(ExitStatus, String)> {
        if !by_itself {
            self.child.kill().map_err(failed)?;
        }
        let status = self.child.wait().map_err(failed)?;
        Ok((status, self.errors.join().unwrap_or_default()))
    }
}

fn failed(error: io::Error) -> Error {
    Error::failed(format!("cannot start a process to check kernels: {error}"))
}

/// All that the process writes on standard error.
fn errors_of(child: &mut Child) -> thread::JoinHandle<String> {
    let mut errors = child.stderr.take().expect("piped");
    thread::spawn(move || {
        let mut text = Vec::new();
        // What cannot be read is missing from a message that is incomplete anyway.
        let _ = errors.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// What the process tells, as it comes.
fn events_of<E: DeserializeOwned + Send + 'static>(child: &mut Child) -> Receiver<Line<E>> {
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let (told, events) = mpsc::channel();
    thread::spawn(move || {
        let mut line = Vec::new();
        // An error means that nobody listens any more, or nothing more comes.
        while matches!(output.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            let event = serde_json::from_str(&text);
            if told.send(event.map_or(Line::Printed(text), Line::Event)).is_err() {
                break;
            }
            line.clear();
        }
    });
    events
}
