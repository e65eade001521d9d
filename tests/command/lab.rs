//! `chaski diff` on an emulated GPU.

use crate::process::chaski;
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gqa4-hd64-bf16-tied");

fn diff(more: &[&str]) -> (Option<i32>, String, String) {
    let args = ["diff", "--emulate", "1", "-m", MODEL, "--ids", "1,2,3,4,5,6,7,8,9"];
    chaski(&[&args[..], more].concat(), &[])
}

/// Every op of both programs, each of which rounding explains alone.
#[test]
fn the_executors_are_alike_in_every_op() {
    let (status, lines, errors) = diff(&["--json", "--prefill-chunk", "3"]);
    assert_eq!(status, Some(0), "{errors}");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |op: &str| lines.iter().filter(|line| line["op"] == op).count();
    // 3 layers; prefill in 3, 3 and 2 tokens, and one decoded.
    assert_eq!((of("embed"), of("attend_prefill"), of("attend_decode")), (4, 9, 3));
    assert_eq!((of("norm_qkv"), of("norm_head")), (9, 1));
    let head = lines.last().unwrap();
    assert_eq!((&head["slot"], &head["layer"]), (&"logits".into(), &Value::Null));
    for line in lines {
        let [alone, tolerance] = ["alone", "tolerance"].map(|name| line[name].as_f64().unwrap());
        assert!(alone <= tolerance && line["so_far"].as_f64().unwrap() < 2e-2, "{line}");
    }
}

/// The GPU and itself: nothing to see.
#[test]
fn a_gpu_agrees_with_itself_to_the_bit() {
    let (status, table, errors) = diff(&["--a", "cuda", "--b", "cuda:0"]);
    assert_eq!(status, Some(0), "{errors}");
    let rows = table.lines().skip(1);
    assert!(rows.clone().count() > 50 && rows.clone().all(|row| row.ends_with("0.0e0     0.0e0")));
}
