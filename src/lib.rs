//! Chaski: a runtime for the Llama 3 family.

pub mod bench;
pub mod case;
pub mod chat;
pub mod checkpoint;
pub mod cli;
pub mod comm;
pub mod config;
pub mod conformance;
pub mod device;
pub mod engine;
pub mod error;
pub mod hub;
pub mod json;
pub mod kernel;
pub mod lab;
pub mod memory;
pub mod model;
pub mod op;
pub mod ops;
pub mod qualify;
pub mod random;
pub mod rank;
pub mod sampler;
pub mod session;
pub mod source;
pub mod team;
pub mod tokenizer;
pub mod vector;

pub use error::{Error, Result};
