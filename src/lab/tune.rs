//! Choices that launches have, by measurement: the table `src/ops/tuned.rs`.

use std::fmt::Write;

use super::bench::{Candidate, Times};
use super::op_bench::{Group, OpBench};
use crate::bench::percentile;
use crate::ops::{MeasuredParts, PARTS, TUNED};

/// By how much another choice must be faster than the one that is made by itself.
const WORTH: f64 = 0.01;

/// What can be chosen about a group.
#[derive(Debug, Clone, Copy)]
pub struct GroupTuning {
    multiprocessors: u32,
    pairs: usize,
    width: usize,
    /// What is chosen now.
    parts: u32,
}

impl GroupTuning {
    /// None, where nothing can be chosen.
    pub fn of(bed: &OpBench, group: &Group) -> Option<Self> {
        let target = bed.target()?;
        let program = bed.program(group, 1);
        let launch = program.ops.first()?.launch(&target);
        let number = |wanted| launch.numbers().find(|(name, _)| *name == wanted).map(|(_, n)| n);
        let (parts, width) = (number("parts")?, number("width")? as usize);
        // A multiply-add for each number of two rows.
        let pairs = (group.cost.flops as usize).div_ceil(4 * width);
        Some(Self { multiprocessors: target.multiprocessors, pairs, width, parts })
    }

    /// All choices, the one that is made now first.
    pub fn candidates(&self) -> Vec<Candidate> {
        let others = PARTS.into_iter().filter(|parts| *parts != self.parts);
        [self.parts].into_iter().chain(others).map(Candidate::Parts).collect()
    }

    /// The best choice for `group`, by the times of the candidates.
    pub fn best(&self, group: &Group, candidates: &[Candidate], times: &[Times]) -> MeasuredParts {
        let median = |times: &Times| percentile(times, 0.5).unwrap_or(f64::INFINITY);
        let now = times.first().map_or(f64::INFINITY, median);
        let candidates = candidates.iter().zip(times).filter_map(|(candidate, times)| {
            let Candidate::Parts(parts) = candidate else { return None };
            Some((*parts, median(times)))
        });
        let fastest = candidates.min_by(|a, b| a.1.total_cmp(&b.1));
        let Self { multiprocessors, pairs, width, parts } = *self;
        let parts = fastest.filter(|(_, time)| *time < now * (1.0 - WORTH)).map_or(parts, |f| f.0);
        MeasuredParts { op: group.kernel, multiprocessors, pairs, width, parts }
    }
}

/// `src/ops/tuned.rs` as it is to be: what it has, but for what is `found` anew.
pub fn table(found: &[MeasuredParts]) -> String {
    let place = |row: &MeasuredParts| (row.op, row.multiprocessors, row.pairs, row.width);
    let is_old = |row: &&MeasuredParts| !found.iter().any(|new| place(new) == place(row));
    let mut rows: Vec<MeasuredParts> = TUNED.iter().filter(is_old).chain(found).copied().collect();
    rows.sort_unstable();
    let mut text = String::from(
        "//! Launches that were chosen by measurement. `chaski kernels bench --tune src/ops/tuned.rs` \
         writes this\n//! file; it keeps what other GPUs and models have here.\n\n\
         use super::MeasuredParts;\n\npub const TUNED: &[MeasuredParts] = &[",
    );
    for MeasuredParts { op, multiprocessors, pairs, width, parts } in &rows {
        let row = format!(
            "MeasuredParts {{ op: {op:?}, multiprocessors: {multiprocessors}, pairs: {pairs}, \
             width: {width}, parts: {parts} }}"
        );
        write!(text, "\n    {row},").expect("a String takes any text");
    }
    text + if rows.is_empty() { "];\n" } else { "\n];\n" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_as_it_would_be_written() {
        assert_eq!(table(&[]), include_str!("../ops/tuned.rs"));
        assert_eq!(table(TUNED), include_str!("../ops/tuned.rs"));
    }

    #[test]
    fn what_is_found_is_added_in_order() {
        let row = |op, parts| MeasuredParts { op, multiprocessors: 1, pairs: 2, width: 8, parts };
        let text = table(&[row("project", 4), row("norm_qkv", 2)]);
        let place = |text: &str, part: &str| text.find(part).unwrap();
        let first = "    MeasuredParts { op: \"norm_qkv\", multiprocessors: 1, pairs: 2, width: 8, \
                     parts: 2 },\n";
        assert!(place(&text, first) < place(&text, "op: \"project\""), "{text}");
        assert!(text.ends_with("parts: 4 },\n];\n"), "{text}");
    }
}
