//! One measurement as a row of fields.

use serde_json::{Value, json};

use super::ceiling::Ceilings;
use super::conditions::Conditions;
use super::format::{Column, Row};
use super::llama_bench::measured;
use super::measure::Repetition;
use super::test::{Test, TestKind};
use crate::op::Cost;

/// The row of a test that was measured at least once. `cost` is of the tokens that count; `subject` is
/// what all rows of a model have in common.
pub fn row(
    test: &Test,
    samples: &[Repetition],
    cost: Cost,
    ceilings: &Ceilings,
    conditions: &Conditions,
    subject: &Row,
) -> Row {
    let tokens = test.tokens() as f64;
    let rates: Vec<f64> = samples.iter().map(|sample| tokens / sample.time).collect();
    let (rate, deviation) = (mean(&rates), deviation(&rates));
    let bytes_per_token = (cost.weight_bytes + cost.cache_bytes) as f64 / tokens;
    let flops_per_token = cost.flops as f64 / tokens;
    let bytes_per_s = bytes_per_token * rate;
    let flops_per_s = flops_per_token * rate;
    let each: Vec<f64> = samples.iter().flat_map(|sample| sample.tokens.clone()).collect();
    let first: Vec<f64> = samples.iter().filter_map(|sample| sample.first_token).collect();
    let counted = tokens * samples.len() as f64;
    // A loop's energy is that of its prompt, too.
    let energy = conditions.energy_j.filter(|_| test.kind != TestKind::Loop);
    let ms = |seconds: Option<f64>| seconds.map(|seconds| 1e3 * seconds);
    let Value::Object(mut row) = json!({
        "test": test.name(),
        "avg_ts": rate,
        "stddev_ts": deviation,
        "samples_ts": rates,
        "depth": test.depth,
        "bytes_per_token": bytes_per_token,
        "gb_per_s": bytes_per_s / 1e9,
        "bandwidth_fraction": bytes_per_s / ceilings.read_bytes_per_s,
        "flops_per_token": flops_per_token,
        "tflops": flops_per_s / 1e12,
        "flops_fraction": flops_per_s / ceilings.flops_per_s,
        "p50_ms": ms(percentile(&each, 0.5)),
        "p90_ms": ms(percentile(&each, 0.9)),
        "p99_ms": ms(percentile(&each, 0.99)),
        "first_token_ms": ms((!first.is_empty()).then(|| mean(&first))),
        "link_bytes_per_token": cost.link_bytes as f64 / tokens,
        "link_gb_per_s": cost.link_bytes as f64 / tokens * rate / 1e9,
        "joules_per_token": energy.map(|energy| energy / counted),
        "power_w": conditions.power_w,
        "sm_clock_mhz": conditions.sm_clock_mhz,
        "memory_clock_mhz": conditions.memory_clock_mhz,
        "temperature_c": conditions.temperature_c,
        "throttle_reasons": conditions.throttle_reasons,
        "read_gb_per_s": ceilings.read_bytes_per_s / 1e9,
        "peak_tflops": ceilings.flops_per_s / 1e12,
    }) else {
        unreachable!("json! of braces is an object");
    };
    row.extend(subject.clone());
    row.extend(measured(test, samples));
    row
}

/// What a person wants to see of a test's row.
pub const COLUMNS: &[Column] = &[
    // A GGUF is called what llama-bench calls it.
    ("model", |row| match text(row, "model") {
        file if file.ends_with(".gguf") => text(row, "model_type"),
        model => model,
    }),
    ("device", |row| text(row, "device")),
    ("test", |row| text(row, "test")),
    ("t/s", |row| format!("{:>9} ± {:>7}", number(row, "avg_ts", 2), number(row, "stddev_ts", 2))),
    ("GB/s", |row| number(row, "gb_per_s", 1)),
    ("of read", |row| percent(row, "bandwidth_fraction")),
    ("TFLOP/s", |row| number(row, "tflops", 3)),
    ("of peak", |row| percent(row, "flops_fraction")),
    ("ms p50/90/99", |row| match row["p50_ms"].is_number() {
        true => ["p50_ms", "p90_ms", "p99_ms"].map(|field| number(row, field, 2)).join("/"),
        false => format!("{:>18}", "-"),
    }),
    ("first ms", |row| number(row, "first_token_ms", 1)),
    ("J/token", |row| number(row, "joules_per_token", 3)),
];

/// Beside those, where there are several ranks.
pub const LINK_COLUMNS: &[Column] = &[
    ("ranks", |row| match row["pipeline_parallel"].as_u64() {
        None | Some(1) => number(row, "tensor_parallel", 0),
        Some(stages) => format!("{stages} x {}", number(row, "tensor_parallel", 0)),
    }),
    ("links GB/s", |row| number(row, "link_gb_per_s", 3)),
];

/// Of a part of the start-up.
pub const STARTUP_COLUMNS: &[Column] = &[
    ("model", |row| text(row, "model")),
    ("device", |row| text(row, "device")),
    ("phase", |row| text(row, "phase")),
    ("from ms", |row| number(row, "from_ms", 3)),
    ("ms", |row| number(row, "ms", 3)),
];

/// A field of a row, or `-`.
pub fn text(row: &Row, field: &str) -> String {
    row[field].as_str().unwrap_or("-").to_owned()
}

/// As [`text`], of a number.
pub fn number(row: &Row, field: &str, digits: usize) -> String {
    row[field].as_f64().map_or("-".to_owned(), |number| format!("{number:.digits$}"))
}

/// As [`number`], in hundredths.
pub fn percent(row: &Row, field: &str) -> String {
    row[field].as_f64().map_or("-".to_owned(), |part| format!("{:.1}%", 100.0 * part))
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Of a sample, as llama-bench has it: 0 for a single value.
pub(super) fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt()
}

/// The least value that at least this part of all do not exceed.
pub fn percentile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_a_sample() {
        assert_eq!((mean(&[1.0, 2.0, 6.0]), deviation(&[1.0, 2.0, 6.0])), (3.0, 7f64.sqrt()));
        assert_eq!(deviation(&[5.0]), 0.0);
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let percentiles = [0.5, 0.9, 0.99].map(|part| percentile(&hundred, part));
        assert_eq!(percentiles, [Some(50.0), Some(90.0), Some(99.0)]);
        assert_eq!((percentile(&[7.0], 0.5), percentile(&[], 0.5)), (Some(7.0), None));
    }
}
