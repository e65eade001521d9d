//! What people, shells and systems do with a command line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::{TempDir, tempdir};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo");

fn chaski(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    command.env("CHASKI_TRUST_KERNELS", "on");
    command.args(arguments).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Exit status, standard output, and standard error's lines that are errors.
fn end(output: Output) -> (Option<i32>, String, Vec<String>) {
    let errors = text(&output.stderr);
    assert!(!errors.contains("panicked"), "{errors}");
    let errors = errors.lines().filter(|line| line.starts_with("chaski: "));
    (output.status.code(), text(&output.stdout), errors.map(str::to_owned).collect())
}

/// A command line of the shell, in which `chaski` is this one.
fn shell(line: &str, folder: &Path) -> (Option<i32>, String, Vec<String>) {
    let program = Path::new(env!("CARGO_BIN_EXE_chaski")).parent().unwrap().display();
    let path = format!("{program}:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", line]).env("PATH", path).current_dir(folder).stdin(Stdio::null());
    end(command.output().unwrap())
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

/// What a conversation from a pipe of these bytes comes to.
fn said(bytes: &[u8], environment: &[(&str, &str)]) -> (Option<i32>, String, Vec<String>) {
    let state = tempdir().unwrap();
    let mut command = chaski(&["chat"]);
    command.env("XDG_STATE_HOME", state.path()).envs(environment.iter().copied());
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    end(child.wait_with_output().unwrap())
}

#[test]
fn a_conversation_from_a_pipe_loses_nothing_and_prints_answers_alone() {
    let (sum, box_) = ("27 + 58 = 85.\n", "The red box holds 17.\n");
    for (bytes, answers) in [
        (&b"What is 27 + 58?\n"[..], sum.to_owned()),
        (b"What is 27 + 58?", sum.to_owned()),
        (b"What is 27 + 58?\r\n\r\n", sum.to_owned()),
        (b"What is 27 + 58?\\", sum.to_owned()),
        (b"What is 27 + 58?\\\r\n", sum.to_owned()),
        (b"Remember: the red box holds 17.\\\nWhat does the red box hold?", box_.to_owned()),
        (b"What is 27 + 58?\n/help\nWhat is 27 + 58?\n/exit\nWhat is 1 + 1?\n", sum.repeat(2)),
        (b"\xff\xfe\n/clear\nWhat is 27 + 58?\n", format!("*{sum}")),
        (b"\n\n  \n", String::new()),
        (b"", String::new()),
    ] {
        for term in ["dumb", "xterm", ""] {
            let (status, given, errors) = said(bytes, &[("TERM", term)]);
            let what = text(bytes);
            assert_eq!((status, errors), (Some(0), vec![]), "{what:?}");
            match answers.strip_prefix('*') {
                None => assert_eq!(given, answers, "{what:?}"),
                Some(last) => {
                    let first =
                        given.strip_suffix(last).unwrap_or_else(|| panic!("{what:?}: {given}"));
                    assert_eq!(first.lines().count(), 1, "the first one is answered, too: {given}");
                }
            }
        }
    }
    let folder = tempdir().unwrap();
    let (status, given, errors) = shell("chaski chat < .", folder.path());
    assert_eq!((status, &*given, errors.len()), (Some(1), "", 1), "{errors:?}");
    assert!(errors[0].contains("cannot read standard input"), "{errors:?}");
}

/// Types these keys at a terminal of 40 columns and gives what it showed; standard output is a file.
const TERMINAL: &str = "
import fcntl, os, pty, struct, subprocess, sys, termios, threading, time
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 20, 40, 0, 0))
def own_terminal():
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
child = subprocess.Popen(sys.argv[2:], stdin=slave, stdout=open(sys.argv[1], 'wb'), stderr=slave,
                         preexec_fn=own_terminal)
os.close(slave)
shown = b''
def read():
    global shown
    try:
        while True:
            shown += os.read(master, 4096)
    except OSError:
        pass
reader = threading.Thread(target=read)
reader.start()
for keys in [b'What is 27 + 58?\\r', b'\\x04']:
    prompts = shown.count(b'> ')
    deadline = time.time() + 60
    def waits():
        answered = os.stat(sys.argv[1]).st_size > 0
        return shown.count(b'> ') == 0 or keys == b'\\x04' and not answered
    while waits() and time.time() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.write(master, keys)
status = child.wait(60)
reader.join(5)
sys.stdout.buffer.write(shown)
sys.exit(status)
";

#[test]
#[cfg(target_os = "linux")]
fn at_a_terminal_answers_alone_go_to_standard_output() {
    for term in ["xterm", "dumb"] {
        let folder = tempdir().unwrap();
        let answers = folder.path().join("answers");
        let mut command = Command::new("python3");
        command.args(["-c", TERMINAL]).arg(&answers).args([env!("CARGO_BIN_EXE_chaski"), "chat"]);
        command.env("TERM", term).env("XDG_STATE_HOME", folder.path());
        let output = command.output().unwrap();
        let shown = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{term}: {shown} {}", text(&output.stderr));
        assert_eq!(fs::read_to_string(&answers).unwrap(), "27 + 58 = 85.\n", "{term}: {shown:?}");
        assert!(shown.contains("> ") && shown.contains("/help lists"), "{term}: {shown:?}");
        let history = folder.path().join("chaski/history");
        assert_eq!(history.exists(), term == "xterm");
    }
}

#[test]
fn others_minus_one_is_understood() {
    let ask = |more: &[&str]| {
        let ask = [&["generate", "-p", "Hello", "-n", "5", "--ignore-eos"][..], more].concat();
        end(chaski(&ask).output().unwrap())
    };
    let greedy = ask(&["--temp", "0"]);
    assert_eq!(greedy.0, Some(0));
    let random = ["--temp", "1.5", "-s", "7"];
    let sampled = ask(&random);
    assert_eq!(sampled.0, Some(0));
    for (off, of) in [
        (&["--temperature", "0"][..], &greedy),
        (&["--top-k", "-1", "--temp=1.5", "-s", "7"], &sampled),
        (&["--top-k=-1", "--temp=1.5", "-s", "7"], &sampled),
    ] {
        assert_eq!(ask(off), *of, "{off:?}");
    }
    assert_eq!(ask(&["--temp", "1", "-s", "-1"]).0, Some(0));
    let (status, answer, _) =
        end(chaski(&["chat", "--prompt", "What is 27 + 58?", "-n", "-1"]).output().unwrap());
    assert_eq!((status, &*answer), (Some(0), "27 + 58 = 85.\n"));
    for (arguments, hint) in [
        (&["--temp", "-1"][..], "0 always takes the most probable token"),
        (&["-t", "-1"], "leave the option out"),
        (&["-c", "0"], "leave the option out"),
        (&["-s", "-2"], "-1 for a random one"),
        (&["-ngl", "99"], "-ngl: a model runs on the GPU as a whole"),
        (&["--n-gpu-layers", "99"], "--device"),
        (&["--cache-type-k=q8_0"], "--kv-type"),
    ] {
        let output = chaski(&[&["generate", "-p", "a"][..], arguments].concat()).output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(hint) && !errors.contains("unexpected argument '-1'"), "{errors}");
    }
}

/// Whether there is anybody to hear of it or not.
#[test]
#[cfg(target_os = "linux")]
fn the_status_is_what_it_would_have_been() {
    let folder = tempdir().unwrap();
    for (command, status) in [
        ("chat -p 'What is 27 + 58?'", 0),
        ("generate -p Hello -n 3", 0),
        ("generate -m /no/such/model -p a", 1),
        ("bench -m synthetic:tiny --device cpu -p 3 -n 2 -r 1", 0),
        ("bench -m synthetic:tiny --device cpu -p 3 -r 1 --profile", 0),
        ("logits --ids 1,2 --out l.safetensors", 0),
        ("synthesize -m synthetic:tiny --out $$", 0),
        ("perplexity -f /no/such/file", 1),
        ("--no-such-option", 2),
        ("generate --temp", 2),
        ("--help", 0),
    ] {
        for to in ["2>/dev/full", "2>&-", "2>/dev/null"] {
            let (found, _, _) = shell(&format!("chaski {command} {to}"), folder.path());
            assert_eq!(found, Some(status), "{command} {to}");
        }
    }
    for command in
        ["--help", "help chat", "--version", "generate -p Hello -n 3", "completions bash"]
    {
        let (status, _, errors) = shell(&format!("chaski {command} >/dev/full"), folder.path());
        assert_eq!((status, errors.len()), (Some(1), 1), "{command}: {errors:?}");
        let (status, _, errors) = shell(&format!("chaski {command} | true"), folder.path());
        assert_eq!((status, errors.len()), (Some(0), 0), "{command}: {errors:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_home_that_cannot_be_written_costs_what_is_kept_there_alone() {
    let folder = tempdir().unwrap();
    let nowhere = "HOME=/dev/null XDG_CACHE_HOME= XDG_STATE_HOME=";
    let ask = "chat -p 'What is 27 + 58?'";
    let (status, answer, _) = shell(&format!("{nowhere} chaski {ask}"), folder.path());
    assert_eq!((status, &*answer), (Some(0), "27 + 58 = 85.\n"));
    let emulated = format!("{nowhere} chaski {ask} --emulate 1");
    let (status, _, errors) = shell(&emulated, folder.path());
    assert_eq!((status, errors.len()), (Some(1), 1), "{errors:?}");
    assert!(errors[0].contains("XDG_CACHE_HOME"), "{errors:?}");
}

fn wait_for_an_answer(child: &mut Child) -> String {
    let stdout = child.stdout.as_mut().unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.last() != Some(&b'\n') && stdout.read(&mut byte).unwrap() == 1 {
        answer.push(byte[0]);
    }
    text(&answer)
}

#[test]
#[cfg(target_os = "linux")]
fn a_mapped_file_that_becomes_shorter_is_told_of() {
    let model = demo(|_| ());
    let mut command = chaski(&["chat", "--device", "cpu", "-m", model.path().to_str().unwrap()]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"What is 27 + 58?\n").unwrap();
    assert_eq!(wait_for_an_answer(&mut child), "27 + 58 = 85.\n");
    let weights = File::options().write(true).open(model.path().join("model.safetensors")).unwrap();
    weights.set_len(8192).unwrap();
    child.stdin.as_mut().unwrap().write_all(b"What is 1 + 1?\n").unwrap();
    let (status, _, errors) = end(child.wait_with_output().unwrap());
    assert_eq!((status, errors.len()), (Some(1), 1), "{errors:?}");
    assert!(
        errors[0].ends_with("model.safetensors became shorter while it was read"),
        "{errors:?}"
    );
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_a_conversation_from_a_pipe() {
    let mut child = chaski(&["chat", "--ignore-eos", "--temp", "1", "-s", "1"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // Its answer fills the context.
    child.stdin.as_mut().unwrap().write_all(b"Hello\nHello\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut child = chaski(&["chat"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"What is 27 + 58?\n").unwrap();
    wait_for_an_answer(&mut child);
    std::thread::sleep(Duration::from_millis(300)); // for it to wait for more
    let _open = child.stdin.take(); // waiting would end it
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130), "while it waits");
}
