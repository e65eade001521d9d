//! How the processes of a run find each other: what does not fit together is told to all that have come.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use chaski::comm::{Hello, ProcessLink, Secret, excuse, join};
use chaski::error::{Error, Result};

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

fn secret() -> Secret {
    Secret::new(b"known to all of them")
}

/// An address that nobody has.
fn address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// What comes of it that these want to join, the first of them at once.
fn meet(address: &str, hellos: Vec<Hello>, timeout: Duration) -> Vec<Result<Arc<ProcessLink>>> {
    thread::scope(|scope| {
        let come = |hello| scope.spawn(move || join(hello, address, &secret(), timeout));
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
    let first = first(&at, PATIENCE);
    let silent = connect(&at);
    drop(connect(&at));
    let mut strangers = Vec::new();
    for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[255; 100_000], b"\x02\0\0\0{}", b"\x10\0\0\0{"] {
        let mut stranger = connect(&at);
        let _ = stranger.write_all(said); // it may be turned away before all is said
        strangers.push(stranger);
    }
    join(hello(1, 2), &at, &secret(), PATIENCE).unwrap();
    first.join().unwrap().unwrap();
    drop((silent, strangers));
}

/// Who listens, as soon as somebody does.
fn connect(address: &str) -> TcpStream {
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(_) => thread::yield_now(),
        }
    }
}

fn first(address: &str, timeout: Duration) -> thread::JoinHandle<Result<Arc<ProcessLink>>> {
    let address = address.to_owned();
    thread::spawn(move || join(hello(0, 2), &address, &secret(), timeout))
}

/// More than there may be descriptors for, if each had a thread and two of them.
#[test]
fn hundreds_that_say_nothing_keep_nobody_away() {
    let at = address();
    let first = first(&at, PATIENCE);
    let silent: Vec<TcpStream> = (0..512).map(|_| connect(&at)).collect();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(descriptors() < 512 + 200, "{}", descriptors());
    join(hello(1, 2), &at, &secret(), PATIENCE).unwrap();
    first.join().unwrap().unwrap();
    drop(silent);
}

/// Neither a greeting nor an excuse of somebody who has another secret ends anything.
#[test]
fn who_has_another_secret_does_not_belong_to_the_run() {
    let (at, other) = (address(), Secret::new(b"guessed"));
    let first = first(&at, PATIENCE);
    drop(connect(&at));
    let refused = join(hello(1, 2), &at, &other, PATIENCE).expect_err("it has another secret");
    assert!(refused.to_string().contains("`secret`"), "{refused}");
    excuse(1, &at, &other, &Error::failed("the run is to end"));
    let said = r#"{"Failed":"the run is to end"}"#;
    let mut plain = connect(&at);
    let _ = plain.write_all(&[&(said.len() as u32).to_le_bytes(), said.as_bytes()].concat());
    join(hello(1, 2), &at, &secret(), PATIENCE).unwrap();
    first.join().unwrap().unwrap();
}

#[test]
fn an_excuse_of_one_who_belongs_to_the_run_ends_it() {
    let at = address();
    let first = first(&at, PATIENCE);
    drop(connect(&at));
    excuse(1, &at, &secret(), &Error::failed("no such file"));
    let ended = first.join().unwrap().expect_err("one does not come");
    assert_eq!(ended.to_string(), "process 1 cannot join: no such file");
}

/// Eight megabytes, a piece now and then.
#[test]
fn a_message_that_does_not_end_does_not_outlast_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let challenge = r#"{"Challenge":"x"}"#;
        let head = |length: usize| (length as u32).to_le_bytes();
        let begun = [&head(challenge.len()), challenge.as_bytes(), &head(8 << 20)].concat();
        let mut sent = stream.write_all(&begun);
        while sent.is_ok() {
            thread::sleep(Duration::from_millis(100));
            sent = stream.write_all(&[b' '; 64]);
        }
    });
    let start = Instant::now();
    let refused = join(hello(1, 2), &at, &secret(), SHORT).expect_err("it has no welcome");
    assert!(refused.to_string().ends_with("no answer; is another program there?"), "{refused}");
    assert!(start.elapsed() < 4 * SHORT, "{:?}", start.elapsed());
}
