//! What `chaski bench` measures: llama-bench's protocol, so that numbers compare, every rate beside
//! this machine's measured peak.

mod ceiling;
mod conditions;
mod forecast;
mod format;
mod llama_bench;
mod measure;
mod profile;
mod roofline;
mod row;
mod test;
mod trace;

pub use ceiling::{BUSY, Ceilings};
pub use conditions::{Conditions, watched};
pub use forecast::{DEPTH, Forecast, H100, Machine};
pub use format::{Column, Format, Row, Table};
pub use llama_bench::{Run, weights_type};
pub use measure::{Bench, Fill, Repetition};
pub use profile::{OpGroup, PROFILE_COLUMNS, PROFILE_LINK_COLUMNS, Profile};
pub use roofline::roofline;
pub use row::{COLUMNS, LINK_COLUMNS, STARTUP_COLUMNS, number, percent, percentile, row, text};
pub use test::{Grid, Test, TestKind};
pub use trace::trace;
