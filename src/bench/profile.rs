//! Where a step's time goes: op by op, beside the same step left alone.

use std::ops::Add;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ceiling::Ceilings;
use super::format::{Column, Row};
use super::measure::Bench;
use super::row::{number, percent, percentile, text};
use super::test::wanted;
use crate::error::Result;
use crate::model::{Label, Logits};
use crate::op::Cost;
use crate::random::random_ids;
use crate::rank::OpTime;

/// One step, or the steps of one prompt, taken apart. Times are in seconds, medians over repetitions.
#[derive(Debug, Clone)]
pub struct Profile {
    /// `decode@d64`, `prefill512`
    pub phase: String,
    /// Tokens in the cache before.
    pub depth: usize,
    /// In order. Of each the time is its median.
    pub ops: Vec<OpTime>,
    /// The sum of the ops' times in one repetition.
    pub sum: f64,
    /// The time of the same without a look inside.
    pub step: f64,
}

/// Ops that do the same in every layer. Of several ranks the bytes and operations are those of all, times
/// the mean, and shapes the first one's.
#[derive(Debug, Clone, PartialEq)]
pub struct OpGroup {
    pub op: &'static str,
    /// As [`Label::tensor`] and [`Label::shape`].
    pub tensor: String,
    pub shape: String,
    pub count: usize,
    /// Of all together.
    pub time: f64,
    pub bytes: u64,
    pub flops: u64,
    /// Sent from rank to rank: the op is communication.
    pub link_bytes: u64,
}

impl Profile {
    /// A decode step at `depth`, or the prefill of `prompt` tokens there, `repetitions` times each way.
    ///
    /// # Errors
    /// A device that fails; the interrupt.
    pub fn measure(
        bench: &mut Bench<'_>,
        prompt: Option<usize>,
        depth: usize,
        repetitions: usize,
    ) -> Result<Self> {
        let mut sums = Vec::new();
        let mut steps = Vec::new();
        let mut times: Vec<Vec<f64>> = Vec::new();
        let mut ops = Vec::new();
        // The first time each way is a warm-up; a step's graph needs two.
        for repetition in 0..repetitions + 2 {
            bench.fill_to(depth)?;
            let start = Instant::now();
            match prompt {
                Some(tokens) => bench.take_prompt(tokens)?,
                None => drop(bench.take_tokens(1)?),
            }
            let step = start.elapsed().as_secs_f64();
            bench.fill_to(depth)?;
            ops = take_apart(bench, prompt.unwrap_or(1))?;
            if repetition >= 2 {
                steps.push(step);
                sums.push(ops.iter().map(|op| op.time.as_secs_f64()).sum());
                times.resize(ops.len(), Vec::new());
                let pairs = times.iter_mut().zip(&ops);
                pairs.for_each(|(times, op)| times.push(op.time.as_secs_f64()));
            }
        }
        let median = |values: &[f64]| percentile(values, 0.5).unwrap_or(0.0);
        for (op, times) in ops.iter_mut().zip(&times) {
            op.time = Duration::from_secs_f64(median(times));
        }
        let name = prompt.map_or("decode".to_owned(), |tokens| format!("prefill{tokens}"));
        let phase = if depth == 0 { name } else { format!("{name}@d{depth}") };
        Ok(Self { phase, depth, ops, sum: median(&sums), step: median(&steps) })
    }

    /// The ops by name and size, those that take longest first.
    pub fn groups(&self) -> Vec<OpGroup> {
        let mut groups: Vec<OpGroup> = Vec::new();
        for OpTime { op, label: Label { tensor, shape, .. }, cost, time } in &self.ops {
            let (bytes, flops) = (cost.weight_bytes + cost.cache_bytes, cost.flops);
            let link_bytes = cost.link_bytes;
            let same = |group: &&mut OpGroup| {
                let count = group.count as u64;
                (group.op, &group.tensor, &group.shape) == (*op, tensor, shape)
                    && (group.bytes, group.flops) == (count * bytes, count * flops)
            };
            let time = time.as_secs_f64();
            match groups.iter_mut().find(same) {
                Some(group) => {
                    group.count += 1;
                    group.time += time;
                    group.bytes += bytes;
                    group.flops += flops;
                    group.link_bytes += link_bytes;
                }
                None => groups.push(OpGroup {
                    op,
                    tensor: tensor.clone(),
                    shape: shape.clone(),
                    count: 1,
                    time,
                    bytes,
                    flops,
                    link_bytes,
                }),
            }
        }
        groups.sort_by(|a, b| b.time.total_cmp(&a.time));
        groups
    }

    /// Seconds in ops that wait for other ranks.
    pub fn communication(&self) -> f64 {
        let links = self.ops.iter().filter(|op| op.cost.link_bytes > 0);
        links.map(|op| op.time.as_secs_f64()).sum()
    }

    /// A row for each group, then one for the sum.
    pub fn rows(&self, ceilings: &Ceilings, subject: &Row) -> Vec<Row> {
        let groups = self.groups();
        let sum = |number: fn(&OpGroup) -> u64| groups.iter().map(number).sum();
        let all = OpGroup {
            op: "all ops",
            tensor: String::new(),
            shape: String::new(),
            count: self.ops.len(),
            time: self.sum,
            bytes: sum(|group| group.bytes),
            flops: sum(|group| group.flops),
            link_bytes: sum(|group| group.link_bytes),
        };
        groups.iter().chain([&all]).map(|group| self.row(group, ceilings, subject)).collect()
    }

    fn row(&self, group: &OpGroup, ceilings: &Ceilings, subject: &Row) -> Row {
        let &OpGroup { op, ref tensor, ref shape, count, time, bytes, flops, link_bytes } = group;
        let text = |text: &String| (!text.is_empty()).then(|| text.clone());
        let floor = group.floor(ceilings);
        let is_sum = count == self.ops.len();
        let only_sum = |seconds: f64| is_sum.then_some(1e6 * seconds);
        let Value::Object(mut row) = json!({
            "phase": self.phase,
            "depth": self.depth,
            "op": op,
            "tensor": text(tensor),
            "shape": text(shape),
            "count": count,
            "time_us": 1e6 * time,
            "share": time / self.sum,
            "bytes": bytes,
            "flops": flops,
            "gb_per_s": bytes as f64 / time / 1e9,
            "bandwidth_fraction": bytes as f64 / time / ceilings.read_bytes_per_s,
            "tflops": flops as f64 / time / 1e12,
            "flops_fraction": flops as f64 / time / ceilings.flops_per_s,
            "link_bytes": link_bytes,
            "link_gb_per_s": link_bytes as f64 / time / 1e9,
            "floor_us": 1e6 * floor,
            "ceiling_fraction": floor / time,
            "uninstrumented_us": only_sum(self.step),
            "difference_us": only_sum(self.sum - self.step),
            "read_gb_per_s": ceilings.read_bytes_per_s / 1e9,
            "peak_tflops": ceilings.flops_per_s / 1e12,
        }) else {
            unreachable!("json! of braces is an object");
        };
        row.extend(subject.clone());
        row
    }
}

impl OpGroup {
    /// `matmul down_proj [64, 1536] x [576, 1536]`
    pub fn name(&self) -> String {
        let parts = [self.op, &self.tensor, &self.shape];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// The least time that these ceilings allow, in seconds.
    pub fn floor(&self, ceilings: &Ceilings) -> f64 {
        let read = self.bytes as f64 / ceilings.read_bytes_per_s;
        read.max(self.flops as f64 / ceilings.flops_per_s)
    }
}

/// Every op of a decode step, or of a prompt's steps.
fn take_apart(bench: &mut Bench<'_>, tokens: usize) -> Result<Vec<OpTime>> {
    let ids = random_ids(1, tokens, bench.team.vocab());
    let (mut ops, mut left) = (Vec::new(), tokens);
    for chunk in ids.chunks(bench.team.chunk()) {
        left -= chunk.len();
        let logits: Logits = wanted(left == 0);
        let ranks = bench.team.forward_timed(chunk, logits)?;
        let parts = ranks.len() / bench.team.stages();
        // To receive is to wait for the stage before, whose ops are there, too.
        let of_stages = ranks.chunks(parts).flat_map(together);
        ops.extend(of_stages.filter(|op| op.op != "receive"));
    }
    Ok(ops)
}

/// The ops of a stage's ranks, which do the same at the same time, as one's.
fn together(ranks: &[Vec<OpTime>]) -> Vec<OpTime> {
    let all = |place: usize| {
        let of_each = || ranks.iter().map(|ops| &ops[place]);
        OpTime {
            op: ranks[0][place].op,
            label: ranks[0][place].label.clone(),
            cost: of_each().map(|op| op.cost).fold(Cost::default(), Cost::add),
            time: of_each().map(|op| op.time).sum::<Duration>() / ranks.len() as u32,
        }
    };
    (0..ranks[0].len()).map(all).collect()
}

/// What a person wants to see of a group.
pub const PROFILE_COLUMNS: &[Column] = &[
    ("phase", |row| text(row, "phase")),
    ("op", |row| text(row, "op")),
    ("tensor and shape", |row| {
        let parts = ["tensor", "shape"].into_iter().filter_map(|field| row[field].as_str());
        format!("{:<46}", parts.collect::<Vec<_>>().join(" "))
    }),
    ("count", |row| number(row, "count", 0)),
    ("time us", |row| number(row, "time_us", 1)),
    ("share", |row| percent(row, "share")),
    ("MB", |row| row["bytes"].as_f64().map_or(String::new(), |b| format!("{:.2}", b / 1e6))),
    ("GFLOP", |row| row["flops"].as_f64().map_or(String::new(), |f| format!("{:.3}", f / 1e9))),
    ("GB/s", |row| number(row, "gb_per_s", 1)),
    ("TFLOP/s", |row| number(row, "tflops", 3)),
    ("of ceiling", |row| percent(row, "ceiling_fraction")),
];

/// Beside those, where there are several ranks.
pub const PROFILE_LINK_COLUMNS: &[Column] = &[
    ("links MB", |row| {
        row["link_bytes"].as_f64().map_or(String::new(), |b| format!("{:.3}", b / 1e6))
    }),
    ("links GB/s", |row| number(row, "link_gb_per_s", 3)),
];
