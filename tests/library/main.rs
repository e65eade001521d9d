//! What the library's modules do, by themselves and together, without a GPU and without the program.

#[path = "../common/bad_models/mod.rs"]
mod bad_models;
#[path = "../common/cpus.rs"]
mod cpus;
#[path = "../common/gguf.rs"]
mod gguf_file;
#[path = "../common/golden.rs"]
mod golden;
#[path = "../common/hub_user.rs"]
mod hub_user;
#[path = "../common/process.rs"]
mod process;
#[path = "../common/pth.rs"]
mod pth;
#[path = "../common/stand_in.rs"]
mod stand_in;
#[path = "../common/steps.rs"]
mod steps;

mod bad_input;
mod chat;
mod checkpoint;
mod config;
mod corpus;
mod downloads;
mod fp8;
mod fused;
mod gguf;
mod gguf_tokens;
mod goldens;
mod hub;
mod launches;
mod machine_code;
mod meta;
mod parallel;
mod quantise;
mod rendezvous;
mod rows;
mod server;
mod synthetic;
mod tidy;
mod tokenizer;
mod torch;
