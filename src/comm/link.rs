//! What keeps the processes of a run together: the connection of each to the first one, by which they found
//! each other. It carries what the ranks are to do, and why the run has ended; both must come through while
//! a GPU hangs. What is computed goes by NCCL.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::LocalGroup;
use super::frame::{Frames, MOST, PeerMessage, is_timeout, send};
use super::rendezvous::Hello;
use crate::error::{Error, Result};

/// How often those who wait look whether the run has ended.
const GLANCE: Duration = Duration::from_millis(100);

/// How long a process that ends waits for the others to notice.
const PARTING: Duration = Duration::from_secs(5);

/// How long the first process waits after a stall for what the others say of it: longer than they take.
const HEARING: Duration = Duration::from_secs(6);

/// A process's connections.
#[derive(Debug)]
pub struct ProcessLink {
    process: usize,
    /// Of all processes, by number.
    all: Vec<Hello>,
    /// To all others, or from them to the first one.
    connections: Vec<Connection>,
    timeout: Duration,
    is_closing: AtomicBool,
    /// What the others have said after a stall, by connection: which of their ranks is late, if one is.
    said: Mutex<Vec<Option<Option<String>>>>,
    has_said: Condvar,
}

/// A connection to another process.
#[derive(Debug)]
struct Connection {
    process: usize,
    /// Held while a message is sent.
    stream: Mutex<TcpStream>,
    inbox: Mutex<Receiver<PeerMessage>>,
    /// Until somebody listens.
    listener: Mutex<Option<(TcpStream, Sender<PeerMessage>)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProcessLink {
    /// `streams` lead to all processes but the first in order, or to the first.
    pub(super) fn new(
        process: usize,
        all: Vec<Hello>,
        streams: Vec<TcpStream>,
        timeout: Duration,
    ) -> io::Result<Arc<Self>> {
        let connection = |(i, stream): (usize, TcpStream)| -> io::Result<Connection> {
            stream.set_nodelay(true)?;
            // Whatever is there is alive: it tells so four times as often.
            stream.set_read_timeout(Some(timeout / 2))?;
            stream.set_write_timeout(Some(timeout))?;
            let (sender, inbox) = channel();
            Ok(Connection {
                process: if process == 0 { i + 1 } else { 0 },
                listener: Mutex::new(Some((stream.try_clone()?, sender))),
                stream: Mutex::new(stream),
                inbox: Mutex::new(inbox),
            })
        };
        let said = Mutex::new(vec![None; streams.len()]);
        let connections = streams.into_iter().enumerate().map(connection);
        Ok(Arc::new(Self {
            process,
            said,
            has_said: Condvar::new(),
            connections: connections.collect::<io::Result<_>>()?,
            all,
            timeout,
            is_closing: AtomicBool::new(false),
        }))
    }

    /// Whether this process tells the others what to do.
    pub fn is_first(&self) -> bool {
        self.process == 0
    }

    /// Number of ranks, of all processes.
    pub fn world(&self) -> usize {
        self.all.len() * self.ranks()
    }

    /// Number of ranks of a process.
    pub fn ranks(&self) -> usize {
        self.all[0].devices.len()
    }

    /// The first rank of this process.
    pub fn first_rank(&self) -> usize {
        self.process * self.ranks()
    }

    /// What the ranks of this process run on, and where.
    pub fn own_devices(&self) -> &[String] {
        &self.all[self.process].devices
    }

    /// What the ranks of all processes run on.
    pub fn devices(&self) -> String {
        self.all.iter().flat_map(|hello| hello.devices.clone()).collect::<Vec<_>>().join(", ")
    }

    /// Tokens that all ranks have room for.
    pub fn context(&self) -> usize {
        self.all.iter().map(|hello| hello.context).min().unwrap_or(0)
    }

    /// From now on a failure in `room` ends the run of all processes, and one of theirs that of the room.
    pub fn watch(self: &Arc<Self>, room: &Arc<LocalGroup>) {
        let (link, its_room) = (Arc::downgrade(self), Arc::downgrade(room));
        room.on_failure(Box::new(move || {
            if let (Some(link), Some(room)) = (link.upgrade(), its_room.upgrade())
                && let Some(failure) = room.failure().map(|failure| failure.to_string())
            {
                link.tell_all(&match room.has_stalled() {
                    true => PeerMessage::Stalled(failure),
                    false => PeerMessage::Failed(failure),
                });
            }
        }));
        room.join(self);
        for (number, connection) in self.connections.iter().enumerate() {
            if let Some((stream, inbox)) = lock(&connection.listener).take() {
                let (link, room) = (Arc::downgrade(self), room.clone());
                thread::spawn(move || listen(Frames::new(stream), &inbox, number, &link, &room));
            }
        }
        let (link, pause) = (Arc::downgrade(self), self.timeout / 8);
        thread::spawn(move || {
            while let Some(link) = link.upgrade().filter(|link| !link.is_closing()) {
                link.tell_all(&PeerMessage::Beat);
                drop(link);
                thread::sleep(pause);
            }
        });
    }

    /// Tells the first process, if this is another one, which of its ranks is late after a stall, if one is.
    pub(super) fn tell_late(&self, late: Option<&Error>) {
        if !self.is_first() {
            self.tell_all(&PeerMessage::Late(late.map(Error::to_string)));
        }
    }

    /// A rank of the other processes that is late after a stall: one that they tell of, or all those of a
    /// process that does not say anything.
    pub(super) fn hear_late(&self) -> Option<Error> {
        let said = lock(&self.said);
        let missing = |said: &mut Vec<Option<Option<String>>>| said.contains(&None);
        let waited = self.has_said.wait_timeout_while(said, HEARING, missing);
        let said = waited.unwrap_or_else(PoisonError::into_inner).0;
        let told = said.iter().flatten().flatten().next();
        let silent = || said.iter().zip(&self.connections).find(|(said, _)| said.is_none());
        let unheard = |connection: &Connection| {
            let who = self.name(connection.process);
            Error::failed(format!("{who} reports no failure, yet the others wait for it"))
        };
        told.map(Error::failed).or_else(|| silent().map(|(_, of)| unheard(of)))
    }

    fn says(&self, number: usize, late: Option<String>) {
        lock(&self.said)[number].get_or_insert(late);
        self.has_said.notify_all();
    }

    /// Tells all others why the run has ended.
    pub(super) fn tell_failure(&self, failure: &Error) {
        self.tell_all(&PeerMessage::Failed(failure.to_string()));
    }

    /// Tells all others what their ranks are to do.
    ///
    /// # Errors
    /// One that cannot be told.
    pub fn tell(&self, work: Value) -> Result<()> {
        let work = PeerMessage::Work(work);
        self.connections.iter().try_for_each(|connection| self.send(connection, &work))
    }

    /// What this process's ranks are to do next; none when the run is over.
    ///
    /// # Errors
    /// What `failure` says, or the first process that makes no sense.
    pub fn next(&self, failure: impl Fn() -> Option<Error>) -> Result<Option<Value>> {
        let connection = &self.connections[0];
        match self.receive(connection, None, failure)? {
            PeerMessage::Work(work) => Ok(Some(work)),
            PeerMessage::End => Ok(None),
            _ => Err(self.out_of_turn(connection)),
        }
    }

    /// Tells the first process that the ranks of this one have been loaded; the first waits for all.
    ///
    /// # Errors
    /// What `failure` says, or a process that makes no sense.
    pub fn ready(&self, failure: impl Fn() -> Option<Error>) -> Result<()> {
        for connection in &self.connections {
            match self.is_first() {
                false => self.send(connection, &PeerMessage::Ready)?,
                true => match self.receive(connection, None, &failure)? {
                    PeerMessage::Ready => {}
                    _ => return Err(self.out_of_turn(connection)),
                },
            }
        }
        Ok(())
    }

    /// What every process gives, put together in their order.
    pub(super) fn gather(
        &self,
        own: &[u64],
        failure: impl Fn() -> Option<Error>,
    ) -> Result<Vec<u64>> {
        let deadline = Some(Instant::now() + self.timeout);
        let mut all = own.to_vec();
        if !self.is_first() {
            self.send(&self.connections[0], &PeerMessage::Words(all.clone()))?;
            all.clear();
        }
        for connection in &self.connections {
            match self.receive(connection, deadline, &failure)? {
                PeerMessage::Words(words) => all.extend(words),
                _ => return Err(self.out_of_turn(connection)),
            }
        }
        if all.len() != own.len() * self.all.len() {
            return Err(Error::failed("the processes contribute different amounts"));
        }
        if self.is_first() {
            let words = PeerMessage::Words(all.clone());
            self.connections.iter().try_for_each(|connection| self.send(connection, &words))?;
        }
        Ok(all)
    }

    fn receive(
        &self,
        connection: &Connection,
        deadline: Option<Instant>,
        failure: impl Fn() -> Option<Error>,
    ) -> Result<PeerMessage> {
        let inbox = lock(&connection.inbox);
        loop {
            if let Some(failure) = failure() {
                return Err(failure);
            }
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                let who = self.name(connection.process);
                return Err(Error::failed(format!("{who} did not come")));
            }
            match inbox.recv_timeout(GLANCE) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failure().unwrap_or_else(|| self.gone(connection)));
                }
            }
        }
    }

    fn send(&self, connection: &Connection, message: &PeerMessage) -> Result<()> {
        send(&lock(&connection.stream), message).map_err(|error| {
            Error::failed(format!("cannot send to {}: {error}", self.name(connection.process)))
        })
    }

    /// What cannot be told shows when nothing comes back.
    fn tell_all(&self, message: &PeerMessage) {
        for connection in &self.connections {
            let _ = self.send(connection, message);
        }
    }

    /// A process by its ranks and what they run on.
    fn name(&self, process: usize) -> String {
        let first = process * self.ranks();
        let ranks = self.all[process].devices.iter().zip(first..);
        let ranks: Vec<_> =
            ranks.map(|(device, rank)| format!("rank {rank} on {device}")).collect();
        ranks.join(" and ")
    }

    fn gone(&self, connection: &Connection) -> Error {
        let who = self.name(connection.process);
        Error::failed(format!("{who} is gone: its process was ended, or cannot be reached"))
    }

    fn out_of_turn(&self, connection: &Connection) -> Error {
        Error::failed(format!("{} sent a message out of turn", self.name(connection.process)))
    }

    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Tells the others that all is done: from now on whoever leaves is not missed.
    pub fn end(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        if self.is_first() {
            self.tell_all(&PeerMessage::End);
        }
    }

    /// Leaves when all have heard what this process has said, or do not listen any more.
    pub fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        for connection in &self.connections {
            let _ = lock(&connection.stream).shutdown(Shutdown::Write);
        }
        let deadline = Instant::now() + PARTING;
        for connection in &self.connections {
            let inbox = lock(&connection.inbox);
            while inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
        }
    }
}

/// Passes on what comes by a connection, until it ends.
fn listen(
    mut frames: Frames,
    inbox: &Sender<PeerMessage>,
    number: usize,
    link: &Weak<ProcessLink>,
    room: &LocalGroup,
) {
    loop {
        let next = frames.next(MOST, None);
        let Some(link) = link.upgrade() else { return };
        let connection = &link.connections[number];
        let is_silent = matches!(&next, Err(error) if is_timeout(error));
        let failure = match next {
            Ok(Some(PeerMessage::Beat)) => continue,
            Ok(Some(PeerMessage::Stalled(why))) => {
                room.end_by_stall(Error::failed(why), None);
                continue;
            }
            Ok(Some(PeerMessage::Late(late))) => {
                link.says(number, late);
                continue;
            }
            Ok(Some(PeerMessage::Failed(why))) => {
                let failure = Error::failed(why);
                room.end(failure.clone());
                match link.is_first() {
                    true => link.says(number, None), // what comes of a stall is none
                    false => room.blame(failure),
                }
                continue; // until it leaves
            }
            Ok(Some(message)) => {
                if matches!(message, PeerMessage::End) {
                    link.is_closing.store(true, Ordering::Relaxed);
                }
                match inbox.send(message) {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
            Err(_) if is_silent && link.is_closing() => continue,
            Err(_) if is_silent => {
                let (who, seconds) =
                    (link.name(connection.process), (link.timeout / 2).as_secs_f64());
                Error::failed(format!(
                    "{who} has not been heard from for {seconds} s; `timeout` allows more"
                ))
            }
            _ if link.is_closing() => return,
            Ok(None) => link.gone(connection),
            Err(error) => Error::failed(format!("{}: {error}", link.gone(connection))),
        };
        room.end(failure);
        if !is_silent {
            return;
        }
    }
}
