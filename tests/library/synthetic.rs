//! Synthetic models: the shapes they claim, and the same weights wherever they are made.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use chaski::config::Config;
use chaski::source::Source;
use tempfile::tempdir;

fn chaski(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    command.args(arguments).env("CHASKI_TRUST_KERNELS", "on").output().unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn succeed(arguments: &[&str]) -> String {
    let output = chaski(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The error of a command that must fail with `status`.
fn failure(arguments: &[&str], status: i32) -> String {
    let output = chaski(arguments);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", stderr(&output));
    stderr(&output).to_owned()
}

/// Against the counts that the models' makers publish, in whole millions.
#[test]
fn shapes_have_as_many_parameters_as_the_real_models() {
    for (name, tied, millions) in [
        ("llama3-8b", false, 8030),
        ("llama3-70b", false, 70554),
        ("llama3.1-8b", false, 8030),
        ("llama3.1-70b", false, 70554),
        ("llama3.1-405b", false, 405_853),
        ("llama3.2-1b", true, 1236),
        ("llama3.2-3b", true, 3213),
        ("llama3.3-70b", false, 70554),
    ] {
        let source = Source::find(&format!("synthetic:{name}")).unwrap();
        let config = Config::load(&source).unwrap();
        assert_eq!((config.parameters(tied) + 500_000) / 1_000_000, millions, "{name}");
        assert_eq!((config.bos_id, &config.stop_ids[..]), (Some(128_000), &[128_001][..]));
    }
}

#[test]
fn a_70b_is_described_without_its_weights() {
    let arguments = ["inspect", "-m", "synthetic:llama3-70b", "--device", "cpu", "--json"];
    let report: serde_json::Value = serde_json::from_str(&succeed(&arguments)).unwrap();
    assert_eq!(report["parameters"], 70_553_706_496u64);
    assert_eq!(report["config"]["layers"], 80);
    assert_eq!(report["dtype"], "BF16");
}

/// Bytes of the logits of a few ids.
fn logits(model: &[&str], folder: &Path) -> Vec<u8> {
    let out = folder.join("logits.safetensors");
    let arguments = ["logits", "--random-ids", "9", "--out", out.to_str().unwrap()];
    succeed(&[&arguments, model].concat());
    fs::read(&out).unwrap()
}

/// Made in memory, by a GPU's kernel, and read from the files of `chaski synthesize`, in one and in
/// several: the same weights to the bit.
#[test]
fn a_synthesized_checkpoint_has_the_same_logits_on_every_executor() {
    let folder = tempdir().unwrap();
    for (dtype, shard_mb, files) in [("bf16", "1", 3), ("f16", "5000", 1)] {
        let out = folder.path().join(dtype);
        let out = out.to_str().unwrap();
        let model = ["-m", "synthetic:tiny", "--dtype", dtype, "--weight-seed", "3"];
        succeed(&[&["synthesize", "--out", out, "--shard-mb", shard_mb], &model[..]].concat());
        let names = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().file_name());
        let count = names.filter(|name| name.to_str().unwrap().ends_with(".safetensors")).count();
        assert_eq!(count, files, "{dtype}");
        // A rank of several makes its rows and columns alone.
        let split = ["--emulate", "2", "--tensor-parallel", "2", "--timeout", "600"];
        for device in [&["--device", "cpu"][..], &["--emulate", "1"], &split] {
            let made = logits(&[&model[..], device].concat(), folder.path());
            let read = logits(&[&["-m", out][..], device].concat(), folder.path());
            assert!(made == read, "{dtype} {device:?}");
        }
        let other = ["-m", "synthetic:tiny", "--dtype", dtype, "--device", "cpu"];
        let same = ["-m", out, "--device", "cpu"];
        assert!(logits(&other, folder.path()) != logits(&same, folder.path()), "seeds");
    }
}

/// Activations that stay about 1: logits neither vanish nor grow.
#[test]
fn activations_stay_sane() {
    let folder = tempdir().unwrap();
    let file = logits(&["-m", "synthetic:tiny", "--device", "cpu"], folder.path());
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let logits = tensors.tensor("logits").unwrap();
    let values = logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let squares: Vec<f64> = values.map(|value| f64::from(value).powi(2)).collect();
    let deviation = (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
    assert!((0.5..2.0).contains(&deviation), "{deviation}");
}

#[test]
fn ids_go_in_and_out_and_text_is_refused() {
    let ids = ["-m", "synthetic:tiny", "--layers", "1", "--device", "cpu", "-n", "4"];
    let generate = [&["generate", "--ids", "1,2,3", "--print-ids"], &ids[..]].concat();
    let answer = succeed(&generate);
    assert_eq!(answer.trim().split(',').count(), 4, "{answer}");
    assert_eq!(answer, succeed(&generate));
    let refused = [
        (vec!["chat", "-p", "Hello", "-m", "synthetic:tiny"], 1, "token ids go in"),
        (vec!["tokenize", "Hello", "-m", "synthetic:tiny"], 1, "token ids go in"),
        (vec!["generate", "-p", "Hello", "-m", "synthetic:tiny"], 1, "token ids go in"),
        (vec!["inspect", "-m", "synthetic:llama4"], 1, "the known shapes are llama3-8b"),
        (vec!["inspect", "-m", "synthetic:tiny", "--layers", "3"], 2, "and it has 2"),
        (vec!["inspect", "-m", "demo", "--layers", "1"], 2, "demo is none"),
        (vec!["inspect", "-m", "synthetic:tiny", "--layers", "0"], 2, "at least 1"),
        (vec!["synthesize", "-m", "demo", "--out", "x"], 2, "a synthetic:SHAPE is needed"),
        (vec!["synthesize", "-m", "synthetic:tiny", "--out", "src"], 1, "it already exists"),
        (vec!["synthesize", "-m", "synthetic:tiny", "--out", "none/x"], 1, "cannot write none/x"),
        (
            vec!["generate", "--ids", "1", "-m", "synthetic:llama3.1-405b", "--device", "cpu"],
            1,
            "cut the model with --layers",
        ),
    ];
    for (arguments, status, message) in refused {
        let error = failure(&arguments, status);
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
    assert!(!Path::new("none").exists());
}
