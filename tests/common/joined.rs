//! Processes that are joined as torchrun has it.

use std::net::TcpListener;
use std::sync::Mutex;

pub type Variables = Vec<(&'static str, String)>;

/// A port that nobody has, and that no other test of this process has been given.
pub fn port() -> u16 {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut given = GIVEN.lock().unwrap();
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if !given.contains(&port) {
            given.push(port);
            return port;
        }
    }
}

/// As torchrun sets them, for a rendezvous at `port`.
pub fn torchrun(process: usize, processes: usize, port: u16) -> Variables {
    vec![
        ("RANK", process.to_string()),
        ("WORLD_SIZE", processes.to_string()),
        ("LOCAL_RANK", process.to_string()),
        ("LOCAL_WORLD_SIZE", processes.to_string()),
        ("MASTER_ADDR", "127.0.0.1".to_owned()),
        ("MASTER_PORT", (port - 1).to_string()),
    ]
}
