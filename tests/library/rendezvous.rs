//! How the processes of a run find each other: what does not fit together is told to all that have come.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use chaski::comm::{Hello, Link, join};
use chaski::error::Result;

/// For those that come.
const PATIENCE: Duration = Duration::from_secs(60);

/// For those that do not.
const SHORT: Duration = Duration::from_secs(3);

fn hello(process: usize, processes: usize) -> Hello {
    Hello {
        version: "1".to_owned(),
        run: "a".to_owned(),
        process,
        processes,
        devices: vec![format!("cuda:{process} of here")],
        model: "2 layers BF16 #0".to_owned(),
        context: 100 - process,
    }
}

/// An address that nobody has.
fn address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// What comes of it that these want to join, the first of them at once.
fn meet(address: &str, hellos: Vec<Hello>, timeout: Duration) -> Vec<Result<Arc<Link>>> {
    thread::scope(|scope| {
        let come = |hello| scope.spawn(move || join(hello, address, timeout));
        let threads: Vec<_> = hellos.into_iter().map(come).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// What all of these are told who have come in time; those who have not can only say so.
fn told(hellos: Vec<Hello>, timeout: Duration) -> String {
    let results = meet(&address(), hellos, timeout);
    let errors: Vec<_> = results
        .into_iter()
        .map(|joined| joined.expect_err("they do not fit").to_string())
        .collect();
    assert!(errors.iter().all(|error| !error.contains('\n')), "{errors:?}");
    let others = errors[1..].iter().filter(|error| !error.contains("cannot reach process 0"));
    assert!(others.into_iter().all(|error| *error == errors[0]), "{errors:?}");
    errors[0].clone()
}

#[test]
fn all_come_and_know_of_each_other() {
    let links = meet(&address(), (0..4).map(|process| hello(process, 4)).collect(), PATIENCE);
    for (process, link) in links.into_iter().enumerate() {
        let link = link.unwrap();
        assert!(link.is_first() == (process == 0) && link.first_rank() == process);
        assert!(link.world() == 4 && link.context() == 97);
        assert_eq!(link.own_devices(), [format!("cuda:{process} of here")]);
        assert!(link.devices().starts_with("cuda:0 of here, cuda:1 of here"));
    }
}

#[test]
fn what_differs_is_named_with_both_values() {
    let differ = |change: &dyn Fn(&mut Hello)| {
        let mut second = hello(1, 2);
        change(&mut second);
        told(vec![hello(0, 2), second], SHORT)
    };
    let said = differ(&|other| other.version = "2".to_owned());
    assert_eq!(
        said,
        "process 1 on cuda:1 of here has version of chaski 2, process 0 on cuda:0 of here has 1"
    );
    assert!(differ(&|other| other.run = "b".to_owned()).contains("has run b"));
    assert!(differ(&|other| other.processes = 3).contains("has number of processes 3"));
    let said = differ(&|other| other.devices.push("cuda:2 of here".to_owned()));
    assert!(said.contains("has number of ranks a process 2"), "{said}");
    let said = differ(&|other| other.model = "2 layers BF16 #1".to_owned());
    assert!(said.contains("has model 2 layers BF16 #1,"), "{said}");
}

#[test]
fn numbers_that_come_twice_or_not_at_all_are_named() {
    let twice = told(vec![hello(0, 3), hello(1, 3), hello(1, 3)], SHORT);
    assert!(twice.starts_with("two processes have number 1: "), "{twice}");
    let past = told(vec![hello(0, 2), hello(2, 2)], SHORT);
    assert_eq!(past, "process 2 on cuda:2 of here is not one of 2");
    let missing = told(vec![hello(0, 4), hello(2, 4)], SHORT);
    assert!(missing.starts_with("process 1, 3 of 4 did not connect to 127.0.0.1:"), "{missing}");
    let alone = meet(&address(), vec![hello(1, 2)], SHORT).remove(0).expect_err("nobody is there");
    assert!(alone.to_string().starts_with("process 1 of 2 cannot reach process 0"), "{alone}");
}

#[test]
fn two_first_processes_are_one_too_many() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = meet(&address, vec![hello(0, 2)], SHORT).remove(0).expect_err("it is taken");
    let said = refused.to_string();
    assert!(said.starts_with("process 0 cannot wait for the others at 127.0.0.1:"), "{said}");
    // Another program may be there, which says nothing.
    let silent = meet(&address, vec![hello(1, 2)], SHORT).remove(0).expect_err("nobody answers");
    assert!(silent.to_string().ends_with("no answer; is another program there?"), "{silent}");
}

/// Neither silence nor garbage, of any length, keeps the others from each other.
#[test]
fn strangers_keep_nobody_away() {
    let at = address();
    let first = thread::spawn({
        let at = at.clone();
        move || join(hello(0, 2), &at, PATIENCE)
    });
    let connect = || loop {
        match TcpStream::connect(&at) {
            Ok(stream) => return stream,
            Err(_) => thread::yield_now(),
        }
    };
    let silent = connect();
    drop(connect());
    let mut strangers = Vec::new();
    for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[255; 100_000], b"\x02\0\0\0{}", b"\x10\0\0\0{"] {
        let mut stranger = connect();
        let _ = stranger.write_all(said); // it may be turned away before all is said
        strangers.push(stranger);
    }
    join(hello(1, 2), &at, PATIENCE).unwrap();
    first.join().unwrap().unwrap();
    drop((silent, strangers));
}
