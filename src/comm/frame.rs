//! Messages between the processes of a run: the number of their bytes (u32, little-endian), then JSON.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::seal::SealedMessage;

/// Bytes of a message: a prompt of a million tokens has room.
pub(super) const MOST: usize = 16 << 20;

/// Bytes of a message from one who has not shown yet who he is.
pub const MOST_OF_STRANGERS: usize = 16 << 10;

/// Bytes that are read at once.
const PIECE: usize = 16 << 10;

/// What processes tell each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum PeerMessage {
    /// The first word of the first process: what a greeting is to be sealed for.
    Challenge(String),
    /// A message while processes meet.
    Sealed(SealedMessage),
    /// The first of a process that comes.
    Hello(super::Hello),
    /// All have come: what each of them is.
    Welcome(Vec<super::Hello>),
    /// What ranks give to each other until NCCL carries that.
    Words(Vec<u64>),
    /// The sender's ranks have been loaded.
    Ready,
    /// What the receiver's ranks are to do.
    Work(Value),
    /// The sender is there.
    Beat,
    /// A rank gets no further, for all that the sender knows this one: see `in_process::stall`.
    Stalled(String),
    /// Which of the sender's ranks does not come out of what it is at, after a stall.
    Late(Option<String>),
    /// What has ended the run.
    Failed(String),
    /// All is done.
    End,
}

/// Sends one message.
///
/// # Errors
/// A message that is too long; what the system says.
pub(super) fn send(mut stream: &TcpStream, message: &PeerMessage) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MOST {
        return Err(invalid(format!("a message of {length} bytes is too long")));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    stream.write_all(&bytes)
}

/// What has come of a message.
pub enum Decoded {
    /// At least so many bytes are missing.
    Lacks(usize),
    /// All of it.
    Message(PeerMessage),
}

/// Reads the bytes of one message of up to `most` bytes, as far as they have come.
///
/// # Errors
/// A message that is too long, or none.
pub fn decode(bytes: &[u8], most: usize) -> io::Result<Decoded> {
    let Some((head, rest)) = bytes.split_first_chunk() else {
        return Ok(Decoded::Lacks(size_of::<u32>() - bytes.len()));
    };
    let length = u32::from_le_bytes(*head) as usize;
    if length > most {
        return Err(invalid(format!("it announces {length} bytes")));
    }
    match length.checked_sub(rest.len()) {
        Some(missing @ 1..) => Ok(Decoded::Lacks(missing)),
        Some(0) => Ok(Decoded::Message(serde_json::from_slice(rest)?)),
        None => Err(invalid("more has come than the message is long")),
    }
}

/// The messages that come in by a connection.
pub(super) struct Frames {
    pub(super) stream: TcpStream,
    /// What has come of a message that is not complete.
    bytes: Vec<u8>,
}

impl Frames {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, bytes: Vec::new() }
    }

    /// The next message, of up to `most` bytes; none at the end of the connection. What has come by then is
    /// kept where the stream's read timeout is over, or the whole message has not come by `deadline`:
    /// [`is_timeout`].
    ///
    /// # Errors
    /// What is no message; what the system says.
    pub(super) fn next(
        &mut self,
        most: usize,
        deadline: Option<Instant>,
    ) -> io::Result<Option<PeerMessage>> {
        let mut piece = [0; PIECE];
        loop {
            let missing = match decode(&self.bytes, most)? {
                Decoded::Message(message) => {
                    self.bytes.clear();
                    return Ok(Some(message));
                }
                // No more is read than the message has: what follows is for whoever reads next.
                Decoded::Lacks(missing) => missing,
            };
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ErrorKind::TimedOut.into());
                }
                self.stream.set_read_timeout(Some(left))?;
            }
            match self.stream.read(&mut piece[..missing.min(PIECE)]) {
                Ok(0) => return Ok(None),
                Ok(count) => self.bytes.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether it says that nothing has come in time.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

pub(super) fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, Frames) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, Frames::new(listener.accept().unwrap().0))
    }

    #[test]
    fn messages_come_as_they_were_sent_and_end() {
        let (one, mut other) = pair();
        send(&one, &PeerMessage::Words(vec![1, u64::MAX])).unwrap();
        send(&one, &PeerMessage::Work(serde_json::json!({"Take": [1, 2]}))).unwrap();
        drop(one);
        let Ok(Some(PeerMessage::Words(words))) = other.next(MOST, None) else { panic!() };
        assert_eq!(words, [1, u64::MAX]);
        assert!(
            matches!(other.next(MOST, None), Ok(Some(PeerMessage::Work(work))) if work["Take"][1] == 2)
        );
        assert!(matches!(other.next(MOST, None), Ok(None)));
    }

    #[test]
    fn garbage_and_lengths_past_all_bounds_are_refused() {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[255; 8], &[2, 0, 0, 0, b'{', b'}']] {
            let (mut one, mut other) = pair();
            one.write_all(garbage).unwrap();
            let refused = other.next(MOST_OF_STRANGERS, None).unwrap_err();
            assert!(!is_timeout(&refused), "{refused}");
        }
        let (one, _other) = pair();
        let long = PeerMessage::Failed("x".repeat(MOST));
        assert!(send(&one, &long).unwrap_err().to_string().contains("too long"));
    }
}
