//! What runs a program.

mod cpu;

pub use cpu::Cpu;
