//! Chaski runs models of Meta's Llama 3 family from their own checkpoints, for one user, as fast as memory
//! allows: on the CPU, or on NVIDIA GPUs by kernels of its own.
//!
//! [`engine`] is the front door: from a model's name and options to a model that is opened and planned, and
//! to one in memory, whose answers a [`session`] makes. `ARCHITECTURE.md` has the map of the rest: a model
//! is a program of ops ([`model`], [`ops`]), and a [`executor`] runs it. [`conformance`] holds kernels to the
//! ops' definitions, [`lab`] and [`bench`] measure.
//!
//! ```
//! use chaski::chat::ChatStyle;
//! use chaski::engine::{Model, Options, silent};
//! use chaski::sampler::SamplingOptions;
//! use chaski::session::{AnswerText, Conversation, StopCriteria};
//!
//! # fn main() -> chaski::Result<()> {
//! let model = Model::open("demo", Options::default())?;
//! let mut session = model.load(&silent())?.session();
//! let (tokenizer, chat) = (model.tokenizer()?, model.chat(ChatStyle::Auto)?);
//! let mut conversation = Conversation::new(tokenizer, &chat);
//! conversation.ask("What is 27 + 58?".to_owned());
//! let prompt = conversation.prompt()?;
//! let stop = StopCriteria { stop_ids: chat.stop_ids(), ..StopCriteria::default() };
//! let (mut text, mut answer) = (AnswerText::new(tokenizer, &[], false), String::new());
//! session.generate(&prompt, &SamplingOptions::default(), stop, |id| {
//!     let (more, next) = text.push(id)?;
//!     answer.push_str(&more);
//!     Ok(next)
//! })?;
//! println!("{answer}");
//! # assert_eq!(answer, "27 + 58 = 85.");
//! # Ok(())
//! # }
//! ```

pub mod bench;
pub mod case;
pub mod chat;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
pub mod comm;
pub mod config;
pub mod conformance;
pub mod encoding;
pub mod engine;
pub mod error;
pub mod executor;
pub mod export;
pub mod gguf;
pub mod hub;
pub mod json;
pub mod kernel;
pub mod lab;
pub mod memory;
pub mod model;
pub mod op;
pub mod ops;
pub mod qualify;
pub mod quantise;
pub mod random;
pub mod rank;
pub mod sampler;
#[cfg(feature = "server")]
pub mod server;
pub mod session;
pub mod source;
pub mod team;
pub mod tokenizer;
pub mod torch;
pub mod vector;

pub use error::{Error, Result};
