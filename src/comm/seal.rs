//! How processes that meet know each other: by a secret that all of the run have. Whoever waits for a message
//! gives a number that was never used before, and the message comes with a keyed hash over that number and
//! itself: what somebody overhears is of no use to him. After that, nothing is signed.

use std::io;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::hmac::{self, HMAC_SHA256, Key};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::frame::{PeerMessage, invalid};

/// What the processes of a run have in common and nobody else knows.
#[derive(Clone)]
pub struct Secret(Key);

/// Who says something.
#[derive(Clone, Copy, Serialize)]
pub(super) enum Sender {
    /// To the first process, by another one.
    Guest,
    Host,
}

/// A message, and what shows that its sender knows the secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SealedMessage {
    /// What the answer is to be sealed for.
    pub nonce: String,
    /// A message in JSON.
    text: String,
    /// HMAC-SHA-256 (RFC 2104) of sender, the receiver's nonce, this one's and the text; in Base64.
    proof: String,
}

/// A number that nobody can guess, as text.
///
/// # Errors
/// A system that has no random numbers.
pub(super) fn nonce() -> io::Result<String> {
    let mut bytes = [0; 16];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the system has no random numbers"))?;
    Ok(BASE64_STANDARD.encode(bytes))
}

impl Secret {
    /// The key of these bytes; of none, everybody has it.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Key::new(HMAC_SHA256, bytes))
    }

    /// Seals a message for whoever gave the nonce `theirs`.
    pub(super) fn seal(
        &self,
        sender: Sender,
        theirs: &str,
        nonce: String,
        message: &PeerMessage,
    ) -> io::Result<PeerMessage> {
        let text = serde_json::to_string(message)?;
        let proof = hmac::sign(&self.0, &signed(sender, theirs, &nonce, &text)?);
        let proof = BASE64_STANDARD.encode(proof);
        Ok(PeerMessage::Sealed(SealedMessage { nonce, text, proof }))
    }

    /// The message, if it was sealed for `own` by one who has the secret.
    ///
    /// # Errors
    /// Another one's; what is no message.
    pub(super) fn open(
        &self,
        sender: Sender,
        own: &str,
        sealed: &SealedMessage,
    ) -> io::Result<PeerMessage> {
        let SealedMessage { nonce, text, proof } = sealed;
        let proof = BASE64_STANDARD.decode(proof).unwrap_or_default();
        hmac::verify(&self.0, &signed(sender, own, nonce, text)?, &proof)
            .map_err(|_| invalid("it has another `secret`, or is of another run"))?;
        Ok(serde_json::from_str(text)?)
    }
}

fn signed(sender: Sender, theirs: &str, nonce: &str, text: &str) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&("chaski", sender, theirs, nonce, text))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_opened_by_whom_it_is_for_alone() {
        let (own, other) = (Secret::new(b"a"), Secret::new(b"b"));
        let (theirs, nonces) = (nonce().unwrap(), [nonce().unwrap(), nonce().unwrap()]);
        assert!(nonces[0] != nonces[1]);
        let failed = PeerMessage::Failed("why".to_owned());
        let Ok(PeerMessage::Sealed(sealed)) =
            own.seal(Sender::Guest, &theirs, nonces[0].clone(), &failed)
        else {
            panic!()
        };
        let opened = own.open(Sender::Guest, &theirs, &sealed);
        assert!(matches!(opened, Ok(PeerMessage::Failed(why)) if why == "why"));
        let is_refused = |secret: &Secret, sender, nonce: &str, sealed: &SealedMessage| {
            let error = secret.open(sender, nonce, sealed).unwrap_err().to_string();
            assert!(error.contains("another `secret`"), "{error}");
        };
        is_refused(&other, Sender::Guest, &theirs, &sealed);
        is_refused(&own, Sender::Host, &theirs, &sealed); // said back to its sender
        is_refused(&own, Sender::Guest, &nonces[1], &sealed); // said again
        type Change = fn(&mut SealedMessage);
        let changes: [Change; 4] = [
            |sealed| sealed.text = sealed.text.replace("why", "who"),
            |sealed| sealed.nonce = String::new(),
            |sealed| sealed.proof = String::new(),
            |sealed| sealed.proof.insert(0, '!'),
        ];
        for change in changes {
            let mut changed = sealed.clone();
            change(&mut changed);
            is_refused(&own, Sender::Guest, &theirs, &changed);
        }
    }
}
