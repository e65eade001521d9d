//! Models and ranks on emulated GPUs of this process, and what splits them.

#[path = "../common/again.rs"]
mod again;
#[path = "../common/cpus.rs"]
mod cpus;
#[path = "../common/emulated.rs"]
mod emulated;
#[path = "../common/golden.rs"]
mod golden;
#[path = "../common/gpus.rs"]
mod gpus;
#[path = "../common/peers.rs"]
mod peers;
#[path = "../common/process.rs"]
mod process;
#[path = "../common/steps.rs"]
mod steps;

mod all_reduce;
mod bench;
mod cuda;
mod cuda_parallel;
mod cuda_worlds;
mod demo;
mod loading;
mod norms;
mod ready;
mod sample_ranks;
mod stages;
mod tuned;
mod tuning;
mod two_engines;
