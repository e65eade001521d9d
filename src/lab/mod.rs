//! Tools for those who write kernels.

mod all_reduce;
mod argument;
mod bench;
mod cut;
mod diff;
mod judge;
mod op_bench;
mod products;
mod sum_rows;
mod tensor;
mod tune;

pub use all_reduce::{AllReduceTimes, SUM_BYTES, shares_gpu, time_sums};
pub use argument::{Argument, Given};
pub use bench::{Candidate, KERNEL_COLUMNS, Times, check_turns, kernel_row, measure};
pub use diff::{Difference, Pair};
pub use op_bench::{BenchStep, Group, OpBench, ROTATION, kernels_of};
pub use products::products;
pub use sum_rows::{SHARED_SUM_COLUMNS, SUM_COLUMNS, size_name, sum_rows};
pub use tensor::{Compared, TensorData, Tensors, compare, file_of_tensors, read_tensors};
pub use tune::{GroupTuning, table};
