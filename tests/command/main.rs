//! The program as a user has it: spawned, with nothing of the library imported.

#[path = "../common/bad_models/mod.rs"]
mod bad_models;
#[path = "../common/child.rs"]
mod child;
#[path = "../common/http.rs"]
mod http;
#[path = "../common/joined.rs"]
mod joined;
#[path = "../common/process.rs"]
mod process;

mod answers;
mod cli;
mod examples;
mod faults;
mod found;
mod habits;
mod hostile;
mod images;
mod kernel_bench;
mod kernel_run;
mod lab;
mod options;
mod order;
mod outputs;
mod processes;
mod qualify;
mod replaced;
mod serve;
mod serve_forms;
mod serve_limits;
mod serve_soak;
mod terminal;
mod textbook;
mod tutorial;
