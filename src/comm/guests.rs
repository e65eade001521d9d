//! Who connects to the first process: strangers, until they have shown that they have the secret.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::frame::{Frames, MOST, MOST_OF_STRANGERS, PeerMessage, is_timeout, send};
use super::seal::{Secret, Sender, nonce};

/// Connections that have not shown yet who they are: how many at a time, how long each may take, and how long
/// before it gives way to the next.
const MOST_STRANGERS: usize = 32;
const STRANGER: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_millis(250);

/// What somebody who has connected has said, or why nobody listens to him any more.
pub(super) type Heard = (SocketAddr, std::result::Result<(PeerMessage, Guest), String>);

/// Somebody who has connected and has not shown yet that he has the secret.
pub(super) struct Stranger {
    from: SocketAddr,
    since: Instant,
    /// What he is to seal his greeting for.
    nonce: String,
    frames: Frames,
}

/// Hears what those say who have connected, without waiting for any.
pub(super) fn hear(
    listener: &TcpListener,
    strangers: &mut VecDeque<Stranger>,
    secret: &Secret,
) -> Vec<Heard> {
    let mut heard: Vec<Heard> = Vec::new();
    for _ in 0..MOST_STRANGERS {
        if strangers.len() == MOST_STRANGERS {
            if strangers[0].since.elapsed() < GRACE {
                break;
            }
            let oldest = strangers.pop_front().expect("there are as many as there may be");
            heard.push((oldest.from, Err("it was silent, and others came".to_owned())));
        }
        let Ok((stream, from)) = listener.accept() else { break };
        match Stranger::ask(stream, from) {
            Ok(stranger) => strangers.push_back(stranger),
            Err(error) => heard.push((from, Err(error.to_string()))),
        }
    }
    for mut stranger in std::mem::take(strangers) {
        let from = stranger.from;
        match stranger.frames.next(MOST_OF_STRANGERS, None) {
            Err(error) if is_timeout(&error) && stranger.since.elapsed() < STRANGER => {
                strangers.push_back(stranger);
            }
            Err(error) if is_timeout(&error) => heard.push((from, Err("it was silent".to_owned()))),
            Err(error) => heard.push((from, Err(format!("it is not a chaski process: {error}")))),
            Ok(None) => heard.push((from, Err("it has left".to_owned()))),
            Ok(Some(message)) => heard.push((from, stranger.heard(secret, message))),
        }
    }
    heard
}

impl Stranger {
    /// Asks somebody for his greeting.
    fn ask(stream: TcpStream, from: SocketAddr) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let nonce = nonce()?;
        send(&stream, &PeerMessage::Challenge(nonce.clone()))?;
        Ok(Self { from, since: Instant::now(), nonce, frames: Frames::new(stream) })
    }

    /// What he says, if he has the secret. Else he is told something that only one who has it can say: so
    /// he knows why nobody answers.
    fn heard(
        self,
        secret: &Secret,
        message: PeerMessage,
    ) -> std::result::Result<(PeerMessage, Guest), String> {
        let PeerMessage::Sealed(sealed) = message else {
            return Err("it does not begin with a greeting".to_owned());
        };
        let opened = secret.open(Sender::Guest, &self.nonce, &sealed);
        let guest = Guest { nonce: sealed.nonce, stream: self.frames.stream };
        match opened {
            Ok(message) => Ok((message, guest)),
            Err(error) => {
                guest.tell(secret, &PeerMessage::End);
                Err(error.to_string())
            }
        }
    }
}

/// The connection to another process, by which both have the secret.
pub(super) struct Guest {
    /// What the first process is to seal its answer for.
    nonce: String,
    pub(super) stream: TcpStream,
}

impl Guest {
    /// Says who this is to the first process.
    pub(super) fn introduce(
        stream: TcpStream,
        secret: &Secret,
        message: &PeerMessage,
        deadline: Instant,
    ) -> io::Result<Self> {
        let mut frames = Frames::new(stream);
        match frames.next(MOST_OF_STRANGERS, Some(deadline))? {
            Some(PeerMessage::Challenge(theirs)) => {
                let nonce = nonce()?;
                let greeting = secret.seal(Sender::Guest, &theirs, nonce.clone(), message)?;
                send(&frames.stream, &greeting)?;
                Ok(Self { nonce, stream: frames.stream })
            }
            Some(_) => Err(io::Error::other("what answers is not this version of chaski")),
            None => Err(has_left()),
        }
    }

    /// What the first process answers.
    pub(super) fn answer(&self, secret: &Secret, deadline: Instant) -> io::Result<PeerMessage> {
        match Frames::new(self.stream.try_clone()?).next(MOST, Some(deadline))? {
            Some(PeerMessage::Sealed(sealed)) => secret.open(Sender::Host, &self.nonce, &sealed),
            Some(_) => Err(io::Error::other("what answers is not this version of chaski")),
            None => Err(has_left()),
        }
    }

    /// Says something to another process, which may not hear it.
    pub(super) fn tell(&self, secret: &Secret, message: &PeerMessage) {
        let told = secret.seal(Sender::Host, &self.nonce, String::new(), message);
        let _ = told.and_then(|message| send(&self.stream, &message));
    }

    /// Takes another process in.
    pub(super) fn welcome(self, secret: &Secret, message: &PeerMessage) -> io::Result<TcpStream> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_write_timeout(Some(STRANGER))?;
        send(&self.stream, &secret.seal(Sender::Host, &self.nonce, String::new(), message)?)?;
        Ok(self.stream)
    }
}

pub(super) fn has_left() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "process 0 has left")
}
