//! The emulated driver, the kernels' build, and what both leave on the disk.

#[path = "../common/tiny.rs"]
mod tiny;

mod cache;
mod dialect;
mod driver;
mod intrinsics;
mod kernel_build;
mod kernels;
