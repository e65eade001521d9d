//! A server before its model is there: it says how far that is, and answers nothing else

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use chaski::engine::{Event, silent};
use chaski::server::{ServeOptions, Server};
use serde_json::{Value, json};

fn get(address: SocketAddr, path: &str) -> (String, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().to_owned();
    (status, serde_json::from_str(body).unwrap())
}

#[test]
fn it_says_how_far_the_model_is() {
    let options =
        ServeOptions { host: "127.0.0.1".to_owned(), port: 0, key: None, cors: None, queue: 1 };
    let server = Server::start(&options, Arc::new(|_: &str| ())).unwrap();
    let health = |progress: f64| {
        let expected = json!({ "status": "loading", "progress": progress });
        assert_eq!(get(server.address(), "/health"), ("503".to_owned(), expected));
    };
    health(0.0);
    let observer = server.observer(silent());
    observer(Event::WeightsBegin(400)).unwrap();
    observer(Event::Weights(100)).unwrap();
    health(0.25);
    let (status, refused) = get(server.address(), "/v1/models");
    assert_eq!(
        (&*status, &refused["error"]["message"]),
        ("503", &json!("the model is being loaded"))
    );
    let taken = ServeOptions { port: server.address().port(), ..options };
    let error = Server::start(&taken, Arc::new(|_: &str| ())).err().unwrap().to_string();
    assert!(error.starts_with("cannot listen on 127.0.0.1:"), "{error}");
}
