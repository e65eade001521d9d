//! Tools for those who write kernels.

mod diff;

pub use diff::{Difference, Pair};
