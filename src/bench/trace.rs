//! A profile as a trace that Chrome (chrome://tracing) and Perfetto (ui.perfetto.dev) show.

use serde_json::{Value, json};

use super::profile::Profile;

/// One track a phase, its ops end to end. Times are in microseconds.
pub fn trace(profiles: &[Profile], model: &str, device: &str) -> Value {
    let mut events = vec![json!({
        "name": "process_name", "ph": "M", "pid": 0, "tid": 0,
        "args": { "name": format!("{model} on {device}") },
    })];
    for (track, profile) in profiles.iter().enumerate() {
        events.push(json!({
            "name": "thread_name", "ph": "M", "pid": 0, "tid": track,
            "args": { "name": profile.phase },
        }));
        let mut start = 0.0;
        for op in &profile.ops {
            let seconds = op.time.as_secs_f64();
            let bytes = op.cost.weight_bytes + op.cost.cache_bytes;
            events.push(json!({
                "name": op.op, "cat": profile.phase, "ph": "X", "pid": 0, "tid": track,
                "ts": 1e6 * start, "dur": 1e6 * seconds,
                "args": {
                    "weight_bytes": op.cost.weight_bytes,
                    "cache_bytes": op.cost.cache_bytes,
                    "flops": op.cost.flops,
                    "link_bytes": op.cost.link_bytes,
                    "gb_per_s": bytes as f64 / seconds / 1e9,
                    "tflops": op.cost.flops as f64 / seconds / 1e12,
                },
            }));
            start += seconds;
        }
    }
    json!({ "displayTimeUnit": "ns", "traceEvents": events })
}
