//! Tools for those who write kernels.

mod all_reduce;
mod bed;
mod bench;
mod cut;
mod diff;
mod judge;
mod tune;

pub use all_reduce::{
    SHARED_SUM_COLUMNS, SUM_BYTES, SUM_COLUMNS, Sums, shares_gpu, size_name, sum_rows, time_sums,
};
pub use bed::{Bed, Group, Phase, ROTATION};
pub use bench::{Contestant, KERNEL_COLUMNS, Times, check_turns, kernel_row, measure};
pub use diff::{Difference, Pair};
pub use tune::{Tuning, table};
