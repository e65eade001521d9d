//! A process that performs checks is asked for one after the other, and ended when it hangs.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{CheckOrder, Found, Wrong};
use crate::error::{Error, Result};

/// For what may take long: the driver starts, code is compiled and loaded.
const LOADING: Duration = Duration::from_secs(600);

/// What the process says, a line of JSON on its standard output each. It takes an [`CheckOrder`] a line from
/// standard input, and ends with that.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The GPU is there.
    Ready,
    /// Something begins that may take long.
    Loading,
    /// This case begins.
    Case(String),
    Ended(Found),
}

pub struct Dialogue {
    process: Option<Child>,
    orders: ChildStdin,
    events: Receiver<Reply>,
    errors: Option<JoinHandle<String>>,
}

impl Dialogue {
    /// Starts the process.
    fn begin(mut command: Command) -> Result<Self> {
        let failed = |error| Error::failed(format!("cannot start the checking process: {error}"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(failed)?;
        let orders = process.stdin.take().expect("piped");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let (told, events) = mpsc::channel();
        thread::spawn(move || {
            let events = lines.map_while(|line| line.ok());
            let mut events = events.filter_map(|line| serde_json::from_str(&line).ok());
            // An error means that nobody listens any more.
            events.try_for_each(|event| told.send(event))
        });
        let mut errors = process.stderr.take().expect("piped");
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            // What cannot be read is missing from a message that is incomplete anyway.
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let process = Some(process);
        let mut dialogue = Self { process, orders, events, errors: Some(errors) };
        match dialogue.events.recv_timeout(LOADING) {
            Ok(Reply::Ready) => Ok(dialogue),
            _ => Err(Error::failed(dialogue.last_words())),
        }
    }

    /// Has a check performed, in the process of the one before if that was right, else in one that `start`
    /// makes: number of cases, seconds, and what is wrong. A case may take `limit`.
    ///
    /// # Errors
    /// When no process can use the GPU.
    pub fn perform(
        dialogue: &mut Option<Self>,
        start: &dyn Fn() -> Command,
        order: &CheckOrder,
        limit: Duration,
    ) -> Result<Found> {
        let mut own = match dialogue.take() {
            Some(own) => own,
            None => Self::begin(start())?,
        };
        let ended = own.ask(order, limit);
        // What is wrong may have left behind anything, in the process or on the GPU.
        if ended.wrong.is_none() {
            *dialogue = Some(own);
        }
        Ok(ended)
    }

    fn ask(&mut self, order: &CheckOrder, limit: Duration) -> Found {
        let start = Instant::now();
        let line = serde_json::to_string(order).expect("plain data");
        // If nobody reads it, nobody answers either.
        let _ = writeln!(self.orders, "{line}");
        let (mut cases, mut case, mut patience) = (0, None, LOADING);
        let how = loop {
            match self.events.recv_timeout(patience) {
                Ok(Reply::Ready) => (),
                Ok(Reply::Loading) => patience = LOADING,
                Ok(Reply::Case(name)) => {
                    (case, patience) = (Some(name), limit);
                    cases += 1;
                }
                Ok(Reply::Ended(found)) => return found,
                Err(RecvTimeoutError::Timeout) => {
                    break format!("did not finish in {} s", patience.as_secs_f64());
                }
                Err(RecvTimeoutError::Disconnected) => break self.last_words(),
            }
        };
        let case = case.unwrap_or_else(|| "before the first case".to_owned());
        let seconds = start.elapsed().as_secs_f64();
        Found { cases, seconds, wrong: Some(Wrong { case, how }), tuned: None }
    }

    /// What a process that has ended said last.
    fn last_words(&mut self) -> String {
        let Some(mut process) = self.process.take() else { return String::new() };
        let status = process.wait();
        let errors = self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default();
        let own = errors.rsplit_once("chaski: ").map(|(_, message)| message.trim().to_owned());
        own.unwrap_or_else(|| match status {
            Ok(status) => format!("the checking process ended with {status}"),
            Err(error) => format!("cannot learn how the checking process ended: {error}"),
        })
    }
}

impl Drop for Dialogue {
    /// Ends the process, whatever it is at. Nobody waits for that: a driver may not let go of a kernel.
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended already.
            let _ = process.kill();
            thread::spawn(move || process.wait());
        }
    }
}
