//! Chaski: a runtime for the Llama 3 family.

pub mod error;

pub use error::{Error, Result};
