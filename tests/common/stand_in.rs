//! A hub of our own on loopback: it lists and gives files, and misbehaves as it is told.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use serde_json::{Value, json};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What somebody asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET` or `HEAD`.
    pub method: String,
    pub path: String,
    /// By names in lower case.
    pub headers: HashMap<String, String>,
}

impl Request {
    /// From which byte on.
    pub fn from(&self) -> usize {
        let range = self.headers.get("range").map_or("bytes=0-", String::as_str);
        range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
    }
}

/// An answer, whose length is told as it is unless a header says otherwise.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// The connection is closed after this many bytes of the body.
    pub cut: Option<usize>,
    /// The length is not told: the body ends with the connection.
    pub silent: bool,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, header: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((header, value.into()));
        self
    }

    /// A file from the byte on that was asked for.
    pub fn file(bytes: &[u8], from: usize) -> Self {
        let body = bytes[from..].to_vec();
        match from {
            0 => Self { status: 200, body, ..Self::default() },
            _ => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Self { status: 206, body, ..Self::default() }.with("content-range", range)
            }
        }
    }
}

/// A server at `endpoint`; it ends with the test's process.
pub struct Server {
    pub endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (requests.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (seen.clone(), answer.clone());
                thread::spawn(move || serve(stream, &seen, &*answer));
            }
        });
        Self { endpoint, requests }
    }

    /// Gives the files of `org/name`, but for what `otherwise` answers itself.
    pub fn of_files(
        files: Vec<File>,
        otherwise: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |request| match otherwise(request) {
            Some(reply) => reply,
            None => given(&files, request),
        })
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The paths of all requests so far.
    pub fn paths(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.path).collect()
    }
}

/// One request a connection.
fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &(dyn Fn(&Request) -> Reply + Send + Sync),
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let header = |line: String| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    };
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(header).collect();
    let request = Request { method, path, headers };
    let reply = answer(&request);
    let is_head = request.method == "HEAD";
    seen.lock().unwrap().push(request);
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    let is_told = reply.headers.iter().any(|(name, _)| *name == "content-length");
    if !is_told && !reply.silent {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    // Whoever has heard enough closes the connection.
    let _ = stream.write_all((head + "\r\n").as_bytes());
    if !is_head {
        let body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
        let _ = stream.write_all(body);
    }
}

/// A file of the repository.
#[derive(Debug, Clone)]
pub struct File {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Kept apart, by its SHA-256.
    pub large: bool,
}

impl File {
    pub fn new(name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let large = name.ends_with(".safetensors");
        Self { name: name.to_owned(), bytes: bytes.into(), large }
    }

    /// The name of its blob.
    pub fn hash(&self) -> String {
        let hash = match self.large {
            true => digest(&SHA256, &self.bytes),
            false => {
                let head = format!("blob {}\0", self.bytes.len());
                let text = [head.as_bytes(), &self.bytes].concat();
                digest(&SHA1_FOR_LEGACY_USE_ONLY, &text)
            }
        };
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The pointer to it that git has, if it is kept apart.
    fn listed(&self) -> Value {
        let (hash, size) = (self.hash(), self.bytes.len());
        match self.large {
            true => json!({
                "rfilename": self.name, "size": size, "blobId": "0".repeat(40),
                "lfs": { "sha256": hash, "size": size, "pointerSize": 134 },
            }),
            false => json!({ "rfilename": self.name, "size": size, "blobId": hash }),
        }
    }
}

/// The answer of a good hub.
pub fn given(files: &[File], request: &Request) -> Reply {
    if request.path == "/api/models/org/name/revision/main?blobs=true" {
        let files: Vec<Value> = files.iter().map(File::listed).collect();
        let list = json!({ "id": "org/name", "sha": COMMIT, "gated": false, "siblings": files });
        return Reply { status: 200, body: list.to_string().into_bytes(), ..Reply::default() };
    }
    let name = request.path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
    let name = name.map(unescaped);
    match files.iter().find(|file| Some(&file.name) == name.as_ref()) {
        Some(file) => Reply::file(&file.bytes, request.from()),
        None => Reply::status(404).with("x-error-code", "EntryNotFound"),
    }
}

fn unescaped(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).unwrap()
}
