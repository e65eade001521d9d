//! `chaski serve` under many requests, good and bad, some of which break off: it answers the good ones
//! rightly, keeps no place, and takes no more memory; and what OpenAI's own client makes of it.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::tempdir;

use crate::http::{CHAT, COMPLETIONS, Served, joined, question, said};

/// Clients at a time.
const CLIENTS: usize = 8;

/// Choices as a function of a seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }
}

/// Resident memory, in KiB.
fn resident(process: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Writes a request and goes away, at once or after the first bytes of the answer.
fn break_off(served: &Served, body: &str, dice: &mut Dice) {
    let mut stream = TcpStream::connect(&served.address).unwrap();
    let length = body.len();
    let head =
        format!("POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    let head = head.replace("Host: x", &format!("Host: {}", served.address));
    let whole = head + body;
    let cut = if dice.below(2) == 0 { whole.len() } else { dice.below(whole.len()) };
    let _ = stream.write_all(&whole.as_bytes()[..cut]);
    if dice.below(2) == 0 {
        thread::sleep(Duration::from_millis(dice.below(20) as u64));
    }
}

/// One request of any kind.
fn request(served: &Served, dice: &mut Dice) {
    let (a, b) = (1 + dice.below(9), 1 + dice.below(9));
    let text = format!("What is {a} + {b}?");
    let sum = format!("{a} + {b} = {}.", a + b);
    match dice.below(8) {
        0 | 1 => assert_eq!(said(&served.ask(CHAT, &question(&text))), sum),
        2 => assert_eq!(joined(&served.stream(CHAT, &question(&text))), sum),
        3 => {
            let asked = json!({ "prompt": "27 + 58 = ", "max_tokens": 2, "temperature": 0 });
            assert_eq!(said(&served.ask(COMPLETIONS, &asked)), "85");
        }
        4 | 5 => {
            let asked =
                json!({ "prompt": text, "max_tokens": 200, "ignore_eos": true, "stream": a > 4 });
            break_off(served, &asked.to_string(), dice);
        }
        6 => {
            let bodies = ["{", "[]", "\u{0}", "{\"prompt\": {}}", "{\"prompt\": \"a\", \"n\": -1}"];
            let body = bodies[dice.below(bodies.len())];
            assert_eq!(served.send("POST", COMPLETIONS, &[], body).status, 400);
        }
        _ => {
            let long = json!({ "prompt": "word ".repeat(3000) }).to_string();
            assert_eq!(served.send("POST", COMPLETIONS, &[], &long).status, 400);
        }
    }
}

/// So many requests, by several clients, in no more than this time; then nothing runs and nothing waits.
fn soak(served: &Served, requests: usize, most: Duration, seed: u64) {
    let (start, done) = (Instant::now(), AtomicUsize::new(0));
    thread::scope(|scope| {
        for client in 0..CLIENTS as u64 {
            let done = &done;
            scope.spawn(move || {
                let mut round = 0;
                while done.fetch_add(1, Ordering::Relaxed) < requests && start.elapsed() < most {
                    round += 1;
                    request(served, &mut Dice((seed << 40) | (round << 8) | (client + 1)));
                }
            });
        }
    });
    for name in ["chaski_running", "chaski_waiting"] {
        served.wait(name, |count| count == 0.0);
    }
}

fn soaked(requests: usize, most: Duration) {
    let served = Served::new(&["--sequences", "3"]);
    let warm = (requests / 10).max(40);
    soak(&served, warm, most, 1);
    let before = resident(served.child.id());
    soak(&served, requests, most, 2);
    let after = resident(served.child.id());
    println!("{before} KiB, after {requests} requests {after} KiB");
    assert!(after * 20 < before * 21 + 20 * 1024, "{before} KiB grew to {after}");
    assert_eq!(said(&served.ask(CHAT, &question("What is 27 + 58?"))), "27 + 58 = 85.");
}

#[test]
fn a_few_requests_of_every_kind_leave_nothing_behind() {
    soaked(120, Duration::from_secs(60));
}

#[test]
#[ignore = "takes minutes"]
fn ten_thousand_requests_leave_nothing_behind() {
    soaked(10_000, Duration::from_secs(600));
}

#[test]
#[ignore = "part of the sweep: it fetches Python packages"]
fn the_sdk_of_openai_gets_what_it_expects() {
    let (served, folder) = (Served::new(&[]), tempdir().unwrap());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(output.status.success(), "{text:?}");
        text[0].clone()
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(folder.path()));
    let pip = ["-q", "install", "-r"];
    run(Command::new(folder.path().join("bin/pip")).args(pip).arg(root.join("tests/openai.txt")));
    let script = root.join("scripts/openai_client.py");
    let url = format!("http://{}/v1", served.address);
    let printed = run(Command::new(folder.path().join("bin/python")).arg(script).arg(url));
    assert_eq!(printed.lines().last(), Some("all right"), "{printed}");
}
