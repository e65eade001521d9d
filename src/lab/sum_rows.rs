//! What was timed of sums as rows, and their columns for people.

use serde_json::{Value, json};

use super::all_reduce::{AllReduceTimes, SumTimes, Transport};
use crate::bench::{Column, Conditions, Row, number, percentile, text};
use crate::executor::cuda::Gpu;
use crate::ops::Mailbox;

/// A row for each size. Bandwidths are as nccl-tests defines them (its doc/PERFORMANCE.md): `algbw` is the
/// size over the time, and `busbw` 2 (n - 1) / n of that for n ranks, which the links at their peak limit
/// whatever n is. `token_bytes`: the size of one token's sum.
pub fn sum_rows(
    sums: &AllReduceTimes,
    gpus: &[Gpu],
    token_bytes: usize,
    conditions: &Conditions,
    subject: &Row,
) -> Vec<Row> {
    let row = |sum: &SumTimes| {
        let names: Vec<String> = gpus.iter().map(|gpu| format!("cuda:{}", gpu.ordinal)).collect();
        let Value::Object(mut row) = json!({
            "ranks": gpus.len(),
            "on": names.join(","),
            "bytes": sum.bytes,
            "is_token": sum.bytes == token_bytes,
            "samples": sum.ways.iter().map(|(_, times)| times.len()).min(),
            "nccl_over_peers": sum.ratio(),
            "nccl_from_bytes": sums.nccl_from(),
            "nccl_assumed_above_bytes": Mailbox::MOST_BYTES,
        }) else {
            unreachable!("json! of braces is an object");
        };
        for way in Transport::ALL {
            row.extend(way_fields(way, sum, gpus.len()));
        }
        let Value::Object(more) = json!({
            "link": sums.link,
            "power_w": conditions.power_w,
            "sm_clock_mhz": conditions.sm_clock_mhz,
            "temperature_c": conditions.temperature_c,
            "throttle_reasons": conditions.throttle_reasons,
        }) else {
            unreachable!("json! of braces is an object");
        };
        row.extend(more);
        row.extend(subject.clone());
        row
    };
    sums.times.iter().map(row).collect()
}

/// What a row says of one way; nothing where it was not taken.
pub(super) fn way_fields(way: Transport, sum: &SumTimes, ranks: usize) -> Row {
    let times = sum.ways.iter().find(|(known, _)| *known == way).map(|(_, times)| times);
    let at = |part| percentile(times?, part);
    let us = |part| at(part).map(|seconds: f64| 1e6 * seconds);
    let rate = at(0.5).map(|seconds| sum.bytes as f64 / seconds / 1e9);
    let bus = 2.0 * (ranks as f64 - 1.0) / ranks as f64;
    [
        ("us", us(0.5)),
        ("p10_us", us(0.1)),
        ("p90_us", us(0.9)),
        ("algbw_gb_per_s", rate),
        ("busbw_gb_per_s", rate.map(|rate| bus * rate)),
    ]
    .into_iter()
    .map(|(field, value)| (format!("{}_{field}", way.name()), json!(value)))
    .collect()
}

/// `4.98/5.12/5.40`, of one way.
fn spread(row: &Row, way: Transport) -> String {
    let fields = ["p10_us", "us", "p90_us"].map(|field| format!("{}_{field}", way.name()));
    match row[&fields[1]].is_number() {
        true => fields.map(|field| number(row, &field, 2)).join("/"),
        false => "-".to_owned(),
    }
}

/// `16 KiB`
pub fn size_name(bytes: usize) -> String {
    match bytes % 1024 {
        0 => format!("{} KiB", bytes / 1024),
        _ => format!("{bytes} B"),
    }
}

const SIZE: Column =
    ("size", |row| size_name(row["bytes"].as_u64().map_or(0, |bytes| bytes as usize)));
const DEVICE: Column = ("device", |row| text(row, "device"));
const FOR: Column = ("for", |row| match row["is_token"] == json!(true) {
    true => format!("a token of {}", text(row, "model")),
    false => String::new(),
});

/// What a person wants to see of a row, where each rank has a GPU to itself.
pub const SUM_COLUMNS: &[Column] = &[
    DEVICE,
    ("ranks", |row| number(row, "ranks", 0)),
    SIZE,
    ("peers us p10/50/90", |row| spread(row, Transport::Peers)),
    ("busbw GB/s", |row| number(row, "peers_busbw_gb_per_s", 2)),
    ("NCCL us p10/50/90", |row| spread(row, Transport::Nccl)),
    ("busbw GB/s", |row| number(row, "nccl_busbw_gb_per_s", 2)),
    ("NCCL/peers", |row| number(row, "nccl_over_peers", 2)),
    FOR,
];

/// Where ranks share a GPU.
pub const SHARED_SUM_COLUMNS: &[Column] = &[
    DEVICE,
    ("ranks", |row| number(row, "ranks", 0)),
    SIZE,
    ("hosts us p10/50/90", |row| spread(row, Transport::Hosts)),
    ("busbw GB/s", |row| number(row, "hosts_busbw_gb_per_s", 2)),
    FOR,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of nccl-tests' page: for two ranks the two are the same, for eight 7/4.
    #[test]
    fn bandwidths_are_those_of_nccl_tests() {
        let ways = vec![(Transport::Peers, vec![1e-3]), (Transport::Nccl, vec![2e-3])];
        let sum = SumTimes { bytes: 1 << 20, ways };
        for (ranks, bus) in [(2, 1.0), (4, 1.5), (8, 1.75)] {
            let fields = way_fields(Transport::Peers, &sum, ranks);
            let rate = (1 << 20) as f64 / 1e-3 / 1e9;
            let field = |name: &str| fields[name].as_f64().expect("a number");
            assert!((field("peers_algbw_gb_per_s") - rate).abs() < 1e-12);
            assert!((field("peers_busbw_gb_per_s") - bus * rate).abs() < 1e-12);
            assert!((field("peers_us") - 1000.0).abs() < 1e-9);
        }
        assert!(way_fields(Transport::Hosts, &sum, 2)["hosts_us"].is_null());
    }
}
