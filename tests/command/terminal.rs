//! Conversations: what the commands say and do; and, at a terminal, what is typed and what is shown.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::tempdir;

/// What a conversation from a pipe comes to: its answers, and what is said beside them.
fn said(arguments: &[&str], lines: &[&str]) -> (String, String) {
    let state = tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
    command.arg("chat").args(arguments).env("XDG_STATE_HOME", state.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (answers, errors) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{errors}");
    (answers, errors)
}

const SUM: &str = "What is 27 + 58?";
const GREEDY: [&str; 2] = ["--temp", "0"];

#[test]
fn every_command_says_what_it_did() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("talk.json").display().to_string();
    let (save, force) = (format!("/save {file}"), format!("/save! {file}"));
    let (answers, told) = said(
        &GREEDY,
        &[
            "/clear",
            SUM,
            &save,
            &save,
            &force,
            "/system Be brief.",
            "/system Be kind.",
            "/system",
            "/system",
            "/clear",
            &format!("/load {file}"),
            "/nonsense",
            "/drop x",
            "/stats",
        ],
    );
    assert_eq!(answers, "27 + 58 = 85.\n");
    let mut at = 0;
    for words in [
        "0 messages forgotten\n",
        &format!("{file}: 2 messages written\n"),
        &format!("chaski: {file} is there already: /save! {file} overwrites it\n"),
        &format!("{file}: 2 messages written\n"),
        "system prompt set, ",
        "system prompt replaced, ",
        "system prompt removed\n",
        "there is no system prompt\n",
        "2 messages forgotten\n",
        &format!("{file}: 2 messages\n"),
        "chaski: there is no command /nonsense: /help lists them, and //nonsense says it\n",
        "chaski: /drop x: a number of turns is needed, or nothing\n",
        "context      1 turn, ",
        " of 1024 tokens\n",
        "sampling     the most probable token\n",
        "the last answer\nprefill      ",
        "1 answer: ",
    ] {
        let found = told[at..].find(words);
        at +=
            found.unwrap_or_else(|| panic!("{words} after {}: {told}", &told[..at])) + words.len();
    }
    let saved: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(saved[0], json!({"role": "user", "content": SUM}));
}

#[test]
fn two_slashes_say_one() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("talk.json").display().to_string();
    said(&["-n", "1"], &["//etc/hosts is a file", &format!("/save {file}")]);
    let saved: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(saved[0]["content"], "/etc/hosts is a file");
}

#[test]
fn a_question_is_asked_again() {
    let (answers, told) = said(&GREEDY, &["/retry", SUM, "/retry", "/regen"]);
    assert_eq!(answers, "27 + 58 = 85.\n".repeat(3));
    assert!(told.contains("chaski: there is no question yet"), "{told}");
    let drawn = ["--temp", "2", "-s", "3", "--ignore-eos", "-n", "20"];
    let (answers, told) = said(&drawn, &["Hello", "/retry", "/stats"]);
    let lines: Vec<&str> = answers.lines().collect();
    assert!(lines.len() >= 2 && lines.first() != lines.last(), "{answers}");
    assert!(
        told.contains("sampling     temperature 2, top-k ") && told.contains(", seed 4\n"),
        "{told}"
    );
    assert!(told.contains("2 answers: "), "{told}");
}

#[test]
fn a_full_context_offers_to_forget_the_oldest_turns() {
    let remember = "Remember: the red box holds 17.";
    let ask = ["-c", "80", "--temp", "0"];
    let (answers, told) = said(&ask, &[remember, SUM, SUM, SUM, "/drop", "/retry", "/stats"]);
    let full = "chaski: with this question the conversation has ";
    assert!(told.contains(full), "{told}");
    assert!(told.contains("the context holds 80: /drop forgets the oldest turns, and /retry asks"));
    assert!(answers.ends_with("27 + 58 = 85.\n"), "{answers}");
    let after = &told[told.find(full).unwrap()..];
    assert!(after.contains(" forgotten; ") && after.contains(" of 80 tokens\n"), "{after}");
    // One turn is dropped if one is to be, and the last one stays.
    let (_, told) = said(&GREEDY, &[SUM, SUM, SUM, "/drop 1", "/drop 9", "/drop"]);
    let left =
        ["1 turn forgotten; 2 turns left", "1 turn forgotten; 1 turn left", "0 turns forgotten; 1"];
    assert!(left.iter().all(|line| told.contains(line)), "{told}");
    // An answer that fills it.
    let endless = ["-c", "64", "--ignore-eos", "--temp", "1", "-s", "1"];
    let (_, told) = said(&endless, &["Hello"]);
    assert!(told.contains("the context of 64 tokens is full: /clear all of them\n"), "{told}");
}

/// At a terminal of so many columns waits for texts, or for so many bytes more, and types keys after each.
const TERMINAL: &str = r#"
import fcntl, json, os, pty, select, struct, subprocess, sys, termios, time
columns, steps = int(sys.argv[1]), json.loads(sys.argv[2])
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 20, columns, 0, 0))
def own_terminal():
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
child = subprocess.Popen(sys.argv[3:], stdin=slave, stdout=slave, stderr=slave,
                         preexec_fn=own_terminal)
shown, at, deadline = b'', 0, time.time() + 100
def read():
    global shown
    if select.select([master], [], [], 0.05)[0]:
        shown += os.read(master, 4096)
for wait, keys in steps:
    while time.time() < deadline and child.poll() is None:
        there = len(shown) - at >= wait if isinstance(wait, int) else wait.encode() in shown[at:]
        if there:
            break
        read()
    at = at if isinstance(wait, int) else shown.find(wait.encode(), at) + len(wait)
    os.write(master, keys.encode())
while time.time() < deadline and child.poll() is None:
    read()
while select.select([master], [], [], 0.1)[0]:
    read()
echoes = bool(termios.tcgetattr(slave)[3] & termios.ECHO)
child.kill()
print(json.dumps([child.wait(), echoes, shown.decode('utf-8', 'replace')]))
"#;

/// What a terminal shows, without what moves the cursor and chooses colours; and whether it echoes afterwards
/// what is typed.
fn typed(
    columns: usize,
    steps: Value,
    arguments: &[&str],
    environment: &[(&str, &str)],
    state: &Path,
) -> (i64, bool, String) {
    let mut command = Command::new("python3");
    command.args(["-c", TERMINAL]).arg(columns.to_string()).arg(steps.to_string());
    command.args([env!("CARGO_BIN_EXE_chaski"), "chat"]).args(arguments);
    command.env("XDG_STATE_HOME", state).env("TERM", "xterm").envs(environment.iter().copied());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let found: Value = serde_json::from_slice(&output.stdout).expect(&errors);
    let mut shown = String::new();
    let mut rest = found[2].as_str().unwrap();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        shown += before;
        rest = after.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
        rest = rest.get(1..).unwrap_or_default();
    }
    shown += rest;
    (found[0].as_i64().unwrap(), found[1].as_bool().unwrap(), shown.replace('\r', ""))
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_typed_during_an_answer_is_the_next_message() {
    let folder = tempdir().unwrap();
    let endless = ["--ignore-eos", "--temp", "1", "-s", "1", "-c", "1000"];
    // Keys that no answer of the demo's has come to.
    let steps = json!([
        ["> ", "Hello\r"],
        [60, "@{#}@"],
        ["is full", ""],
        ["@{#}@", "\u{3}"],
        ["> ", "\u{4}"]
    ]);
    let (status, echoes, shown) = typed(200, steps, &endless, &[], folder.path());
    assert_eq!((status, echoes), (0, true), "{shown}");
    let (answer, after) = shown.split_once("is full").unwrap();
    assert!(!answer.contains("@{#}@"), "it is shown in the answer: {answer}");
    assert!(after.contains("> @{#}@"), "it is lost: {after}");
}

#[test]
#[cfg(target_os = "linux")]
fn the_terminal_echoes_again_however_an_answer_ends() {
    let folder = tempdir().unwrap();
    let slow = ["--ignore-eos", "--temp", "1", "-s", "1", "-t", "1"];
    let steps = json!([["> ", "Hello\r"], [40, "\u{3}\u{3}"], ["> ", "\u{4}"]]);
    let (status, echoes, shown) = typed(80, steps, &slow, &[], folder.path());
    assert!(echoes, "{status}: {shown}");
}

#[test]
#[cfg(target_os = "linux")]
fn words_wrap_at_the_width_of_the_terminal() {
    let folder = tempdir().unwrap();
    let steps = || json!([["> ", format!("{SUM}\r")], ["85.", "\u{4}"]]);
    for (columns, answer) in [
        (80, "\n27 + 58 = 85.\n"),
        (13, "\n27 + 58 = 85.\n"),
        (12, "\n27 + 58 =\n85.\n"),
        (5, "\n27 +\n58 =\n85.\n"),
    ] {
        let (status, _, shown) = typed(columns, steps(), &GREEDY, &[], folder.path());
        assert_eq!(status, 0, "{columns}: {shown}");
        assert!(shown.contains(answer), "{columns}: {shown:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_history_is_kept_unless_it_is_switched_off() {
    let steps = || json!([["> ", format!("{SUM}\r")], ["85.", "\u{4}"]]);
    for (arguments, environment, is_kept) in [
        (&[][..], &[][..], true),
        (&["--no-history"], &[], false),
        (&[], &[("CHASKI_HISTORY", "off")], false),
        (&[], &[("CHASKI_HISTORY", "on")], true),
    ] {
        let folder = tempdir().unwrap();
        let arguments = [&GREEDY[..], arguments].concat();
        let (status, _, shown) = typed(80, steps(), &arguments, environment, folder.path());
        assert_eq!(status, 0, "{shown}");
        let history = fs::read_to_string(folder.path().join("chaski/history"));
        assert_eq!(
            history.is_ok_and(|text| text.contains(SUM)),
            is_kept,
            "{arguments:?} {environment:?}"
        );
    }
    let folder = tempdir().unwrap();
    let wrong = [("CHASKI_HISTORY", "maybe")];
    let (status, _, shown) = typed(80, json!([]), &[], &wrong, folder.path());
    assert!(status == 2 && shown.contains("CHASKI_HISTORY=maybe: it is on or off"), "{shown}");
}
