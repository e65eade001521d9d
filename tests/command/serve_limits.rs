//! `chaski serve`: what is refused and how, who may ask, what becomes of those that leave, and of the server

use std::io::Write;
use std::net::TcpStream;
use std::thread;

use serde_json::json;

use crate::child::signal;
use crate::http::{CHAT, COMPLETIONS, Incoming, Served, endless, question, said};
use crate::process::chaski;

#[test]
fn what_is_wrong_is_refused_by_name() {
    let served = Served::new(&["-c", "64"]);
    let long = "word ".repeat(200);
    let message = json!([{ "role": "user", "content": "Hi" }]);
    for (path, body, status, field, told) in [
        (COMPLETIONS, json!([]), 400, json!(null), "a list in place of a JSON object"),
        (COMPLETIONS, json!({}), 400, json!("prompt"), "prompt is missing"),
        (COMPLETIONS, json!({ "prompt": 5 }), 400, json!("prompt"), "neither a text"),
        (COMPLETIONS, json!({ "prompt": [] }), 400, json!("prompt"), "has 0 texts"),
        (COMPLETIONS, json!({ "prompt": [1, 99999] }), 400, json!(null), "token id 99999"),
        (
            COMPLETIONS,
            json!({ "prompt": "a", "temperature": "hot" }),
            400,
            json!("temperature"),
            "hot",
        ),
        (
            COMPLETIONS,
            json!({ "prompt": "a", "temperature": -1 }),
            400,
            json!("temperature"),
            "0 or above",
        ),
        (COMPLETIONS, json!({ "prompt": "a", "n": 99 }), 400, json!("n"), "from 1 to 16"),
        (
            COMPLETIONS,
            json!({ "prompt": "a", "logprobs": 99 }),
            400,
            json!("logprobs"),
            "at most 20",
        ),
        (COMPLETIONS, json!({ "prompt": "a", "stop": 5 }), 400, json!("stop"), "a list of texts"),
        (
            COMPLETIONS,
            json!({ "prompt": "a", "logit_bias": { "x": 1 } }),
            400,
            json!("logit_bias"),
            "ids",
        ),
        (
            COMPLETIONS,
            json!({ "prompt": "a", "model": "gpt-5" }),
            404,
            json!(null),
            "no model \"gpt-5\"",
        ),
        (
            COMPLETIONS,
            json!({ "prompt": long }),
            400,
            json!(null),
            "holds 64 tokens, and the prompt has",
        ),
        (CHAT, json!({}), 400, json!("messages"), "messages is missing"),
        (CHAT, json!({ "messages": [] }), 400, json!("messages"), "at least one"),
        (CHAT, json!({ "messages": [{}] }), 400, json!("messages"), "message 1: has no role"),
        (CHAT, json!({ "messages": message, "stream": 1 }), 400, json!("stream"), "a truth value"),
        ("/v1/nothing", json!({}), 404, json!(null), "no such path"),
        ("/health", json!({}), 405, json!(null), "another method"),
    ] {
        let reply = served.post(path, &body);
        assert_eq!(reply.status, status, "{body}: {}", reply.body);
        let error = &reply.json()["error"];
        assert_eq!(error["param"], field, "{body}: {error}");
        assert!(error["message"].as_str().unwrap().contains(told), "{body}: {error}");
    }
    let too_long = served.post(COMPLETIONS, &json!({ "prompt": long })).json();
    assert_eq!(too_long["error"]["code"], "context_length_exceeded");
}

#[test]
fn what_is_broken_or_too_large_is_refused_and_others_are_answered() {
    let served = Served::new(&[]);
    for body in ["{", "{\"prompt\": \"a\", \"prompt\": \"b\"}", "\u{0}"] {
        assert_eq!(served.send("POST", COMPLETIONS, &[], body).status, 400, "{body:?}");
    }
    let big = format!("{{\"prompt\": \"{}\"}}", "a".repeat(6 << 20));
    assert_eq!(served.send("POST", COMPLETIONS, &[], &big).status, 413);
    let header = format!("X-Long: {}", "a".repeat(64 << 10));
    assert_eq!(served.send("GET", "/health", &[&header], "").status, 431);
    // After all of that it answers.
    assert_eq!(said(&served.ask(CHAT, &question("What is 1 + 1?"))), "1 + 1 = 2.");
}

#[test]
fn a_key_and_pages_of_others_are_checked() {
    let served = Served::new(&["--api-key", "sesame", "--cors", "http://page.example"]);
    let status = |headers: &[&str]| served.send("GET", "/v1/models", headers, "").status;
    assert_eq!(status(&[]), 401);
    assert_eq!(status(&["Authorization: Bearer wrong"]), 401);
    let key = "Authorization: Bearer sesame";
    assert_eq!(status(&[key]), 200);
    assert_eq!(served.send("GET", "/health", &[], "").status, 200);
    assert_eq!(status(&[key, "Host: evil.example"]), 403);
    assert_eq!(status(&[key, "Origin: http://evil.example"]), 403);
    let allowed = served.send("GET", "/v1/models", &[key, "Origin: http://page.example"], "");
    assert_eq!(allowed.status, 200);
    assert!(allowed.head.contains("access-control-allow-origin: http://page.example"));
    let ask = served.send("OPTIONS", CHAT, &["Origin: http://page.example"], "");
    assert_eq!(ask.status, 204);
    assert!(ask.head.contains("access-control-allow-headers: authorization, content-type"));
}

#[test]
fn who_leaves_frees_the_place_and_who_comes_too_many_is_told() {
    let served = Served::new(&["--sequences", "1", "--queue", "1"]);
    let mut running = served.send("POST", COMPLETIONS, &[], &endless(true).to_string());
    assert!(running.chunk().starts_with("data: {"));
    let waiting = TcpStream::connect(&served.address).unwrap();
    let body = question("What is 2 + 2?").to_string();
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", served.address);
    write!(&waiting, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    served.wait("chaski_waiting", |count| count == 1.0);
    let refused = served.post(CHAT, &question("What is 3 + 3?"));
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    drop(running);
    // Whose turn it is then.
    let answer = Incoming::new(waiting).whole();
    assert_eq!(said(&answer.json()), "2 + 2 = 4.");
    assert!(served.metric("chaski_generated_tokens_total") < 1000.0);
    // The same, of one who does not stream.
    let stream = TcpStream::connect(&served.address).unwrap();
    let body = endless(false).to_string();
    let head = format!("POST {COMPLETIONS} HTTP/1.1\r\nHost: {}\r\n", served.address);
    write!(&stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    served.wait("chaski_running", |count| count == 1.0);
    drop(stream);
    served.wait("chaski_running", |count| count == 0.0);
    let lines = served.lines();
    let left = lines.iter().filter(|line| line.contains("the client has left"));
    assert_eq!(left.count(), 2, "{lines:?}");
}

#[test]
#[cfg(unix)]
fn signals_end_it_with_the_last_chunk() {
    for name in ["TERM", "INT"] {
        let mut served = Served::new(&[]);
        let mut running = served.send("POST", COMPLETIONS, &[], &endless(true).to_string());
        running.chunk();
        signal(served.child.id(), name);
        let rest = running.whole().body;
        let events: Vec<_> = rest.split("\n\n").filter(|event| !event.is_empty()).collect();
        let [.., last, done] = &events[..] else { panic!("{rest}") };
        assert!(last.contains("\"finish_reason\":\"length\""), "{last}");
        assert_eq!(*done, "data: [DONE]");
        assert_eq!(served.end().code(), Some(0), "{name}");
    }
}

/// All that run and wait are told, and the process says why it ends.
#[test]
fn a_gpu_that_fails_ends_the_server() {
    let fault = ("CHASKI_EMULATE_FAULT", "cuGraphLaunch:9:999");
    let options = ["--emulate", "1", "--sequences", "2"];
    let mut served = Served::with(&options, &[fault]);
    let asked = json!({ "prompt": "The", "max_tokens": 200, "ignore_eos": true });
    thread::scope(|scope| {
        let threads = [(); 3].map(|()| scope.spawn(|| served.post(COMPLETIONS, &asked)));
        for reply in threads.map(|thread| thread.join().unwrap()) {
            assert_eq!(reply.status, 500, "{}", reply.body);
            assert_eq!(reply.json()["error"]["type"], "server_error");
        }
    });
    assert_eq!(served.get("/health").status, 503);
    assert_eq!(served.end().code(), Some(1));
    let lines = served.lines();
    let errors = lines.iter().filter(|line| line.starts_with("chaski: "));
    assert_eq!(errors.count(), 1, "{lines:?}");
}

#[test]
fn what_was_sent_is_counted() {
    let served = Served::new(&[]);
    for _ in 0..3 {
        served.ask(CHAT, &question("What is 27 + 58?"));
    }
    served.post(CHAT, &json!({}));
    let requests = |status: u16| {
        served.metric(&format!("chaski_requests_total{{endpoint=\"{CHAT}\",status=\"{status}\"}}"))
    };
    assert_eq!((requests(200), requests(400)), (3.0, 1.0));
    assert_eq!(served.metric("chaski_generated_tokens_total"), 36.0);
    assert_eq!(served.metric("chaski_first_token_seconds_count"), 3.0);
    let mut lines = served.lines();
    lines.retain(|line| line.contains(CHAT));
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[2].contains("12 out") && lines[2].ends_with("; stop"), "{lines:?}");
    assert!(lines[3].contains("400, messages is missing"), "{lines:?}");
}

#[test]
fn what_cannot_be_served_is_told_in_a_line() {
    let taken = Served::new(&[]);
    let port = taken.address.rsplit(':').next().unwrap();
    for (arguments, status, told) in [
        (&["--port", port][..], 1, "cannot listen on 127.0.0.1:"),
        (&["--api-key-file", "/no/such/file"], 1, "cannot read /no/such/file"),
        (&["--api-key", ""], 2, "the key is empty"),
        (&["--port", "0", "-m", "synthetic:llama3.2-1b"], 1, "tokenizer"),
        (&["--port", "0", "--sequences", "0"], 2, "from 1 to 256"),
    ] {
        let (found, printed, errors) = chaski(&[&["serve"], arguments].concat(), &[]);
        assert_eq!((found, &*printed), (Some(status), ""), "{arguments:?}: {errors}");
        assert!(errors.contains(told), "{arguments:?}: {errors}");
    }
}
