//! How the processes of a run find each other: all connect to the first one, which checks that they are
//! all there, each once, and mean the same.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Link;
use super::frame::{Frames, MOST, MOST_OF_STRANGERS, Message, is_timeout, send};
use crate::error::{Error, Result};

/// Between two attempts to reach the first process.
const PAUSE: Duration = Duration::from_millis(50);

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

/// Brings the processes together at the address of the first, `host:port`, within `timeout`.
///
/// # Errors
/// One that does not come, comes twice or does not suit the others; an address that cannot be used.
pub fn join(hello: Hello, address: &str, timeout: Duration) -> Result<Arc<Link>> {
    let deadline = Instant::now() + timeout;
    let joined = match hello.process {
        0 => gather(&hello, address, deadline),
        _ => reach(&hello, address, deadline),
    };
    let (all, streams) = joined?;
    Link::new(hello.process, all, streams, timeout).map_err(|error| cannot("join", address, &error))
}

/// Tells the first process, if it is there, why another one will not come.
pub fn excuse(process: usize, address: &str, why: &Error) {
    let addresses = address.to_socket_addrs().into_iter().flatten();
    let mut streams = addresses.filter_map(|to| TcpStream::connect_timeout(&to, SHORT).ok());
    if let Some(stream) = streams.next() {
        let why = format!("process {process} cannot join: {why}");
        let _ = send(&stream, &Message::Failed(why)); // else it is missed in time
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
fn gather(own: &Hello, address: &str, deadline: Instant) -> Result<(Vec<Hello>, Streams)> {
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
    let mut come: Vec<Option<(Hello, TcpStream)>> = (0..own.processes).map(|_| None).collect();
    let mut strangers = String::new();
    let (told, greetings) = channel();
    let missing = |come: &[Option<_>]| -> Vec<String> {
        (1..own.processes).filter(|i| come[*i].is_none()).map(|i| i.to_string()).collect()
    };
    while !missing(&come).is_empty() {
        while let Ok((stream, from)) = listener.accept() {
            let told = told.clone();
            thread::spawn(move || greet(stream, from, deadline, &told));
        }
        let trouble = match greetings.recv_timeout(PAUSE.min(left(deadline))) {
            Ok((_, Ok(Greeting::Hello(hello, stream)))) => match refusal(own, &hello, &come) {
                None => {
                    let process = hello.process;
                    come[process] = Some((hello, stream));
                    continue;
                }
                Some(trouble) => {
                    let _ = send(&stream, &Message::Failed(trouble.clone()));
                    trouble
                }
            },
            Ok((_, Ok(Greeting::Excuse(why)))) => why,
            Ok((from, Err(why))) => {
                strangers = format!("; {from} was turned away: {why}");
                continue;
            }
            Err(_) if Instant::now() < deadline => continue,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => format!(
                "process {} of {} did not connect to {address} in time{strangers}; `timeout` allows more",
                missing(&come).join(", "),
                own.processes
            ),
        };
        for (_, stream) in come.iter().flatten() {
            let _ = send(stream, &Message::Failed(trouble.clone()));
        }
        return Err(Error::failed(trouble));
    }
    let (mut all, streams): (Vec<_>, Vec<_>) = come.into_iter().flatten().unzip();
    all.insert(0, own.clone());
    for stream in &streams {
        let welcome = send(stream, &Message::Welcome(all.clone()));
        welcome.map_err(|error| cannot("welcome", address, &error))?;
    }
    Ok((all, streams))
}

/// Why a process cannot be taken in.
fn refusal(own: &Hello, other: &Hello, come: &[Option<(Hello, TcpStream)>]) -> Option<String> {
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

/// What somebody says who has connected.
enum Greeting {
    Hello(Hello, TcpStream),
    /// It will not come.
    Excuse(String),
}

type Heard = (SocketAddr, std::result::Result<Greeting, String>);

/// Hears who somebody is that has connected.
fn greet(stream: TcpStream, from: SocketAddr, deadline: Instant, told: &Sender<Heard>) {
    let hear = || -> io::Result<Message> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(left(deadline)))?;
        let first = Frames::new(stream.try_clone()?).next(MOST_OF_STRANGERS)?;
        first.ok_or_else(|| io::Error::other("it has left"))
    };
    let heard = match hear() {
        Ok(Message::Hello(hello)) => Ok(Greeting::Hello(hello, stream)),
        Ok(Message::Failed(why)) => Ok(Greeting::Excuse(why)),
        Ok(_) => Err("it does not begin with a greeting".to_owned()),
        Err(error) => Err(format!("it is not a chaski process: {error}")),
    };
    // Nobody listens any more once all have come.
    let _ = told.send((from, heard));
}

/// Connects to the first process, which may start later than this one.
fn reach(own: &Hello, address: &str, deadline: Instant) -> Result<(Vec<Hello>, Streams)> {
    let attempt = || -> io::Result<TcpStream> {
        let mut last = io::Error::other("the name has no address");
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, left(deadline)) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    let stream = loop {
        match attempt() {
            Ok(stream) => break stream,
            Err(error) if Instant::now() + PAUSE >= deadline => {
                return Err(Error::failed(format!(
                    "process {} of {} cannot reach process 0 at {address}: {error}; `timeout` allows more",
                    own.process, own.processes
                )));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    };
    let greet = || -> io::Result<Option<Message>> {
        send(&stream, &Message::Hello(own.clone()))?;
        // The first process has the last word for as long as it waits itself.
        stream.set_read_timeout(Some(2 * left(deadline)))?;
        Frames::new(stream.try_clone()?).next(MOST)
    };
    match greet() {
        Ok(Some(Message::Welcome(all))) if all.len() == own.processes => Ok((all, vec![stream])),
        Ok(Some(Message::Failed(why))) => Err(Error::failed(why)),
        Ok(Some(_)) => Err(cannot("join", address, &"what answers is not this version of chaski")),
        Ok(None) => Err(cannot("join", address, &"process 0 has left")),
        Err(error) if is_timeout(&error) => {
            Err(cannot("join", address, &"no answer; is another program there?"))
        }
        Err(error) => Err(cannot("join", address, &error)),
    }
}
