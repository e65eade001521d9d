//! A profile as a trace that Chrome (chrome://tracing) and Perfetto (ui.perfetto.dev) show.

use serde_json::{Value, json};

use super::profile::Profile;
use crate::model::Label;
use crate::rank::OpTime;

/// One track a phase, its ops end to end, each as long as its median: no timeline, and the file says so.
/// Times are in microseconds.
pub fn trace(profiles: &[Profile], model: &str, device: &str) -> Value {
    let name = format!("{model} on {device} ({NO_TIMELINE})");
    let mut events = vec![json!({
        "name": "process_name", "ph": "M", "pid": 0, "tid": 0, "args": { "name": name },
    })];
    for (track, profile) in profiles.iter().enumerate() {
        events.push(json!({
            "name": "thread_name", "ph": "M", "pid": 0, "tid": track,
            "args": { "name": profile.phase },
        }));
        let mut start = 0.0;
        for OpTime { op, label: Label { layer, tensor, shape }, cost, time } in &profile.ops {
            let seconds = time.as_secs_f64();
            let bytes = cost.weight_bytes + cost.cache_bytes;
            events.push(json!({
                "name": format!("{op} {tensor}").trim_end(), "cat": profile.phase, "ph": "X",
                "pid": 0, "tid": track, "ts": 1e6 * start, "dur": 1e6 * seconds,
                "args": {
                    "layer": layer,
                    "tensor": tensor,
                    "shape": shape,
                    "depth": profile.depth,
                    "weight_bytes": cost.weight_bytes,
                    "cache_bytes": cost.cache_bytes,
                    "flops": cost.flops,
                    "link_bytes": cost.link_bytes,
                    "gb_per_s": bytes as f64 / seconds / 1e9,
                    "tflops": cost.flops as f64 / seconds / 1e12,
                },
            }));
            start += seconds;
        }
    }
    let other = json!({ "layout": NO_TIMELINE });
    json!({ "displayTimeUnit": "ns", "otherData": other, "traceEvents": events })
}

const NO_TIMELINE: &str =
    "no timeline: ops in order, each by itself, as long as the median of its times";
