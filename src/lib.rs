//! Chaski: a runtime for the Llama 3 family.

pub mod error;
pub mod json;
pub mod source;

pub mod config;

pub mod checkpoint;

pub use error::{Error, Result};
