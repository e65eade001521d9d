//! What people, shells and systems do with a command line.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::{TempDir, tempdir};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo");

fn chaski(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    command.args(arguments).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The demo's files, with a config changed so.
fn demo(change: impl Fn(&mut serde_json::Value)) -> TempDir {
    let folder = tempdir().unwrap();
    for file in fs::read_dir(DEMO).unwrap().map(|file| file.unwrap().path()) {
        fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let file = folder.path().join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut config);
    fs::write(file, config.to_string()).unwrap();
    folder
}

/// The most memory that a process has had, in MiB.
#[cfg(target_os = "linux")]
fn peak_mib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// A model's limit is what the KV cache is laid out for: 2 GiB of it here, 1 on the GPU.
#[test]
#[cfg(target_os = "linux")]
fn a_context_that_is_not_used_costs_neither_memory_nor_time() {
    let long = demo(|config| config["max_position_embeddings"] = (512 << 10).into());
    let peak = |model: &Path, device: [&str; 2]| {
        let start = Instant::now();
        let state = tempdir().unwrap();
        let mut command = chaski(&["chat", "-m", model.to_str().unwrap(), device[0], device[1]]);
        let mut child =
            command.env("XDG_STATE_HOME", state.path()).stdin(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let told = lines.find(|line| line.contains("KV cache")).unwrap();
        child.stdin.as_mut().unwrap().write_all(b"What is 27 + 58?\n").unwrap();
        let mut answer = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut answer).unwrap();
        assert_eq!(answer, "27 + 58 = 85.\n");
        let (peak, time) = (peak_mib(child.id()), start.elapsed());
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        (told, peak, time)
    };
    for (device, cache) in [(["--device", "cpu"], "2.00 GiB"), (["--emulate", "1"], "1.00 GiB")] {
        // Compiles what the emulator needs, if nobody has yet.
        let (_, short_mib, short_time) = peak(Path::new(DEMO), device);
        let (told, long_mib, long_time) = peak(long.path(), device);
        assert!(
            told.contains("context 524288 (the model's limit)") && told.contains(cache),
            "{told}"
        );
        println!("{device:?}: {short_mib} MiB in {short_time:?}, {long_mib} MiB in {long_time:?}");
        assert!(long_mib < short_mib + 100, "{device:?}: {long_mib} MiB, {short_mib} without");
        assert!(long_time < short_time + Duration::from_secs(10), "{long_time:?}, {short_time:?}");
    }
}
