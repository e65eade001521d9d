//! Tools for those who write kernels.

mod bed;
mod bench;
mod diff;
mod tune;

pub use bed::{Bed, Group, Phase, ROTATION};
pub use bench::{Contestant, KERNEL_COLUMNS, Times, check_turns, kernel_row, measure};
pub use diff::{Difference, Pair};
pub use tune::{Tuning, table};
