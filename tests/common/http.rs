//! A server of this program, and a client that speaks raw HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub const CHAT: &str = "/v1/chat/completions";
pub const COMPLETIONS: &str = "/v1/completions";
const LONGEST: Duration = Duration::from_secs(120);

/// A server of the demo model, which ends with the test.
pub struct Served {
    pub child: Child,
    pub address: String,
    /// Of standard error.
    lines: Mutex<Receiver<String>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    pub fn new(options: &[&str]) -> Self {
        Self::with(options, &[])
    }

    /// With variables of the environment.
    pub fn with(options: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
        command.env("CHASKI_TRUST_KERNELS", "on"); // tests/command/qualify.rs does not
        command.args(["serve", "--port", "0"]).args(options).envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let address = ready.trim().strip_prefix("listening on http://").expect(&ready).to_owned();
        let (told, lines) = channel();
        let errors = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                let _ = told.send(line);
            }
        });
        Self { child, address, lines: Mutex::new(lines) }
    }

    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Incoming {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONGEST)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        let has_host = headers.iter().any(|header| header.starts_with("Host:"));
        if !has_host {
            head += &format!("Host: {}\r\n", self.address);
        }
        headers.iter().for_each(|header| head += &format!("{header}\r\n"));
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        // A server that has seen enough may close before all is written.
        let _ = (&stream).write_all((head + body).as_bytes());
        Incoming::new(stream)
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], "").whole()
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[], &body.to_string()).whole()
    }

    /// Status 200: the answer.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.body);
        reply.json()
    }

    /// The events of a stream, the last of which says that it is.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let reply = self.post(path, &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let mut events: Vec<_> =
            reply.body.split("\n\n").filter(|event| !event.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{}", reply.body);
        let event =
            |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        events.into_iter().map(event).collect()
    }

    /// What it has said on standard error since it was last asked; all, once it has ended.
    pub fn lines(&self) -> Vec<String> {
        thread::sleep(Duration::from_millis(100)); // another thread reads them
        self.lines.lock().unwrap().try_iter().collect()
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").body;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {page}")).parse().unwrap()
    }

    /// Waits until a metric is as `is` wants it.
    pub fn wait(&self, name: &str, is: impl Fn(f64) -> bool) {
        let start = Instant::now();
        while !is(self.metric(name)) {
            assert!(start.elapsed() < LONGEST, "{name} stays {}", self.metric(name));
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < LONGEST, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A reply that comes.
pub struct Incoming {
    pub status: u16,
    pub head: String,
    stream: BufReader<TcpStream>,
}

pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect(&self.body)
    }
}

impl Incoming {
    pub fn new(stream: TcpStream) -> Self {
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).unwrap() > 0, "it ends: {head}");
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_lowercase(), stream }
    }

    /// The next chunk of a body in chunks.
    pub fn chunk(&mut self) -> String {
        let mut size = String::new();
        self.stream.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).expect(&size);
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).unwrap();
        chunk.truncate(size);
        String::from_utf8(chunk).unwrap()
    }

    pub fn whole(mut self) -> Reply {
        let mut body = String::new();
        if self.head.contains("transfer-encoding: chunked") {
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                body += &chunk;
            }
        } else {
            self.stream.read_to_string(&mut body).unwrap();
        }
        Reply { status: self.status, head: self.head, body }
    }
}

pub fn question(text: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }], "temperature": 0 })
}

/// More than there is time for.
pub fn endless(stream: bool) -> Value {
    json!({
        "prompt": "The", "max_tokens": 1000, "ignore_eos": true, "temperature": 0, "stream": stream,
    })
}

pub fn said(answer: &Value) -> &str {
    let choice = &answer["choices"][0];
    choice["message"]["content"].as_str().or(choice["text"].as_str()).expect("a text")
}

/// What a stream's deltas come to.
pub fn joined(events: &[Value]) -> String {
    let text = |event: &Value| {
        let choice = &event["choices"][0];
        choice["delta"]["content"].as_str().or(choice["text"].as_str()).map(str::to_owned)
    };
    events.iter().filter_map(text).collect()
}
