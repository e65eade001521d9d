//! How the processes of a run find each other: all connect to the first one, which checks that they are
//! all there, each once, and mean the same.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::ProcessLink;
use super::frame::{PeerMessage, is_timeout};
use super::guests::{Guest, hear};
use super::seal::Secret;
use crate::error::{Error, Result};

/// Between two attempts to reach the first process.
const PAUSE: Duration = Duration::from_millis(50);

/// Between two looks at who has connected.
const GLANCE: Duration = Duration::from_millis(5);

/// What a process that will not come has for saying so.
const SHORT: Duration = Duration::from_secs(1);

/// What a process tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// This program's: other versions may tell each other other things.
    pub version: String,
    /// The launcher's name of the run, if it has one.
    pub run: String,
    /// Which of the processes it is, and of how many.
    pub process: usize,
    pub processes: usize,
    /// What its ranks run on, and where.
    pub devices: Vec<String>,
    /// The model, and a hash of all that must be the same about it.
    pub model: String,
    /// Tokens that its ranks have room for.
    pub context: usize,
}

impl Hello {
    fn place(&self) -> String {
        format!("process {} on {}", self.process, self.devices.join(" and "))
    }

    /// Why a process that says `other` does not belong to the same run as this one.
    fn trouble(&self, other: &Self) -> Option<String> {
        let differs = [
            ("run", self.run.clone(), other.run.clone()),
            ("version of chaski", self.version.clone(), other.version.clone()),
            ("number of processes", self.processes.to_string(), other.processes.to_string()),
            (
                "number of ranks a process",
                self.devices.len().to_string(),
                other.devices.len().to_string(),
            ),
            ("model", self.model.clone(), other.model.clone()),
        ];
        let (what, own, others) = differs.into_iter().find(|(_, own, others)| own != others)?;
        Some(format!("{} has {what} {others}, {} has {own}", other.place(), self.place()))
    }
}

/// Brings the processes together that have the same secret, at the address of the first, `host:port`, within
/// `timeout`.
///
/// # Errors
/// One that does not come, comes twice or does not suit the others; an address that cannot be used.
pub fn join(
    hello: Hello,
    address: &str,
    secret: &Secret,
    timeout: Duration,
) -> Result<Arc<ProcessLink>> {
    let deadline = Instant::now() + timeout;
    let joined = match hello.process {
        0 => gather(&hello, address, secret, deadline),
        _ => reach(&hello, address, secret, deadline),
    };
    let (all, streams) = joined?;
    ProcessLink::new(hello.process, all, streams, timeout)
        .map_err(|error| cannot("join", address, &error))
}

/// Tells the first process, if it is there, why another one will not come.
pub fn excuse(process: usize, address: &str, secret: &Secret, why: &Error) {
    let addresses = address.to_socket_addrs().into_iter().flatten();
    let mut streams = addresses.filter_map(|to| TcpStream::connect_timeout(&to, SHORT).ok());
    if let Some(stream) = streams.next() {
        let why = format!("process {process} cannot join: {why}");
        // Else it is missed in time.
        let _ = Guest::introduce(stream, secret, &PeerMessage::Failed(why), Instant::now() + SHORT);
    }
}

type Streams = Vec<TcpStream>;

fn cannot(what: &str, address: &str, error: &dyn std::fmt::Display) -> Error {
    Error::failed(format!("cannot {what} the other processes at {address}: {error}"))
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// Listens at all addresses of this machine, unless the others are on this machine too. What a name of the
/// machine means to itself may not be what it means to others.
fn listen(address: &str) -> io::Result<TcpListener> {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let bad_port = |_| io::Error::other("a port is needed, as in node1:29501");
    let port = port.parse::<u16>().map_err(bad_port)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() => TcpListener::bind((ip, port)),
        _ if host == "localhost" => TcpListener::bind((host, port)),
        _ => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))),
    }
}

/// Waits for all others to come. Their greetings and connections, by number.
fn gather(
    own: &Hello,
    address: &str,
    secret: &Secret,
    deadline: Instant,
) -> Result<(Vec<Hello>, Streams)> {
    let listening = || -> io::Result<_> {
        let listener = listen(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let listener = listening().map_err(|error| {
        Error::failed(format!(
            "process 0 cannot wait for the others at {address}: {error}; `rendezvous` HOST:PORT names \
             another address"
        ))
    })?;
    let mut come: Vec<Option<(Hello, Guest)>> = (0..own.processes).map(|_| None).collect();
    let (mut strangers, mut turned_away) = (VecDeque::new(), String::new());
    let missing = |come: &[Option<_>]| -> Vec<String> {
        (1..own.processes).filter(|i| come[*i].is_none()).map(|i| i.to_string()).collect()
    };
    while !missing(&come).is_empty() {
        let mut trouble = None;
        for (from, heard) in hear(&listener, &mut strangers, secret) {
            match heard {
                Ok((PeerMessage::Hello(hello), guest)) => match refusal(own, &hello, &come) {
                    None => {
                        let process = hello.process;
                        come[process] = Some((hello, guest));
                    }
                    Some(why) => {
                        guest.tell(secret, &PeerMessage::Failed(why.clone()));
                        trouble = trouble.or(Some(why));
                    }
                },
                Ok((PeerMessage::Failed(why), _)) => trouble = trouble.or(Some(why)),
                Ok(_) => turned_away = format!("; {from} was turned away: it does not greet"),
                Err(why) => turned_away = format!("; {from} was turned away: {why}"),
            }
        }
        if trouble.is_none() && Instant::now() < deadline {
            thread::sleep(GLANCE);
            continue;
        }
        let trouble = trouble.or_else(|| {
            let missing = Some(missing(&come)).filter(|missing| !missing.is_empty())?;
            Some(format!(
                "process {} of {} did not connect to {address} in time{turned_away}; `timeout` allows more",
                missing.join(", "),
                own.processes
            ))
        });
        if let Some(trouble) = trouble {
            for (_, guest) in come.iter().flatten() {
                guest.tell(secret, &PeerMessage::Failed(trouble.clone()));
            }
            return Err(Error::failed(trouble));
        }
    }
    let (mut all, guests): (Vec<_>, Vec<_>) = come.into_iter().flatten().unzip();
    all.insert(0, own.clone());
    let welcome = PeerMessage::Welcome(all.clone());
    let welcome = |guest: Guest| guest.welcome(secret, &welcome);
    let streams = guests.into_iter().map(welcome).collect::<io::Result<_>>();
    Ok((all, streams.map_err(|error| cannot("welcome", address, &error))?))
}

/// Why a process cannot be taken in.
fn refusal(own: &Hello, other: &Hello, come: &[Option<(Hello, Guest)>]) -> Option<String> {
    if let Some(trouble) = own.trouble(other) {
        return Some(trouble);
    }
    match come.get(other.process) {
        _ if other.process == 0 => {
            Some(format!("{} and {} both have number 0", own.place(), other.place()))
        }
        None => Some(format!("{} is not one of {}", other.place(), own.processes)),
        Some(Some((first, _))) => Some(format!(
            "two processes have number {}: {} and {}",
            other.process,
            first.place(),
            other.place()
        )),
        Some(None) => None,
    }
}

/// Connects to the first process, which may start later than this one.
fn reach(
    own: &Hello,
    address: &str,
    secret: &Secret,
    deadline: Instant,
) -> Result<(Vec<Hello>, Streams)> {
    let connect = || -> io::Result<TcpStream> {
        let mut last = io::Error::other("the name has no address");
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, left(deadline)) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    let greeting = PeerMessage::Hello(own.clone());
    loop {
        let is_last = Instant::now() + PAUSE >= deadline;
        let stream = match connect() {
            Ok(stream) => stream,
            Err(_) if !is_last => {
                thread::sleep(PAUSE);
                continue;
            }
            Err(error) => {
                return Err(Error::failed(format!(
                    "process {} of {} cannot reach process 0 at {address}: {error}; `timeout` allows more",
                    own.process, own.processes
                )));
            }
        };
        // The first process has the last word for as long as it waits itself.
        let last_word = Instant::now() + 2 * left(deadline);
        let answer = Guest::introduce(stream, secret, &greeting, last_word)
            .and_then(|guest| Ok((guest.answer(secret, last_word)?, guest.stream)));
        match answer {
            Ok((PeerMessage::Welcome(all), stream)) if all.len() == own.processes => {
                return Ok((all, vec![stream]));
            }
            Ok((PeerMessage::Failed(why), _)) => return Err(Error::failed(why)),
            Ok(_) => {
                return Err(cannot("join", address, &"what answers is not this version of chaski"));
            }
            Err(error) if !is_last && is_gone(&error) => thread::sleep(PAUSE),
            Err(error) if is_timeout(&error) => {
                return Err(cannot("join", address, &"no answer; is another program there?"));
            }
            Err(error) => return Err(cannot("join", address, &error)),
        }
    }
}

/// Whether a connection has ended, as one does that had to give way to others.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}
