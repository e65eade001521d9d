//! Processes of a run of which one is stopped, killed, interrupted or fails, in the middle of an answer: the
//! others end in time, with one line that says why, and none stays behind.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Child;
use std::thread;

use crate::child::{End, end, signal, start};
use crate::faults;
use crate::faults::{ASK, Fault, FaultKind, TIMEOUT};
use crate::joined::{port, torchrun};

/// Kernels that are new to the emulator are compiled at their first launch.
const PATIENT: [&str; 2] = ["--timeout", "600"];

/// An answer that takes minutes.
const LONG: [&str; 15] = [
    "generate",
    "-m",
    "synthetic:tiny",
    "--ids",
    "1,2,3",
    "--print-ids",
    "-n",
    "4000",
    "--seed",
    "3",
    "--temp",
    "1",
    "--ignore-eos",
    "--emulate",
    "2",
];

/// Two processes, once the first one has begun to answer.
fn answering(timeout: &[&str]) -> [Child; 2] {
    let (ask, at) = ([&LONG[..], timeout, &["--join"]].concat(), port());
    let mut children = [0, 1].map(|process| start(&ask, &torchrun(process, 2, at)));
    read(&mut children[0], 1);
    children
}

fn read(child: &mut Child, bytes: usize) {
    child.stdout.as_mut().unwrap().read_exact(&mut vec![0; bytes]).unwrap();
}

#[test]
fn a_process_that_is_killed_is_missed_at_once() {
    for (killed, how) in [(0, "KILL"), (1, "KILL"), (0, "TERM"), (1, "TERM")] {
        let children = answering(&PATIENT);
        signal(children[killed].id(), how);
        let ends = children.map(end);
        let (told, other) = (format!("{how} {killed}: {ends:?}"), &ends[1 - killed]);
        assert!(ends[killed].0.is_none() && other.0 == Some(1) && other.2.len() == 1, "{told}");
        let who = format!("rank {killed} on cuda:{killed} of ");
        assert!(other.2[0].contains(&who) && other.2[0].contains(" is gone"), "{told}");
    }
}

/// Nothing tells the other but that it hears nothing. The one that is stopped learns of it when it goes on.
#[test]
fn a_process_that_is_stopped_is_missed_in_time() {
    let stop = |stopped: usize| {
        let children = answering(&["--timeout", "20"]);
        let process = children[stopped].id();
        signal(process, "STOP");
        let [first, second] = children;
        let (other, it) = if stopped == 0 { (second, first) } else { (first, second) };
        let other = end(other);
        signal(process, "CONT");
        let it = end(it);
        let told = format!("{stopped}: {other:?} {it:?}");
        assert!(other.0 == Some(1) && other.2.len() == 1, "{told}");
        assert!(it.0 == Some(1) && it.2.len() == 1, "{told}");
        let who = format!("rank {stopped} on cuda:{stopped} of ");
        assert!(other.2[0].contains(&who), "{told}");
        assert!(other.2[0].contains("has not been heard from for 10 s"), "{told}");
    };
    thread::scope(|scope| {
        scope.spawn(|| stop(0));
        scope.spawn(|| stop(1));
    });
}

/// Where all have a terminal, all get it: the first one says what comes of it.
#[test]
fn ctrl_c_is_for_the_first_process() {
    let mut children = answering(&PATIENT);
    signal(children[1].id(), "INT");
    read(&mut children[0], 100); // it goes on
    signal(children[0].id(), "INT");
    let [(status, text, errors), second] = children.map(end);
    assert!(status == Some(130) && errors == ["chaski: interrupted"], "{status:?} {errors:?}");
    assert!(text.contains(','));
    assert_eq!(second, (Some(0), String::new(), Vec::new()));
}

#[test]
fn a_reader_that_leaves_ends_all_quietly() {
    let mut children = answering(&PATIENT);
    drop(children[0].stdout.take());
    assert_eq!(children.map(end), [0, 1].map(|_| (Some(0), String::new(), Vec::new())));
}

/// One says what makes no sense, one nothing at all.
#[test]
fn strangers_at_the_rendezvous_are_turned_away() {
    let (ask, at) = ([&ASK[..], &PATIENT, &["--join"]].concat(), port());
    let first = start(&ask, &torchrun(0, 2, at));
    let mut stranger = loop {
        match TcpStream::connect(("127.0.0.1", at)) {
            Ok(stranger) => break stranger,
            Err(_) => thread::yield_now(),
        }
    };
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _silent = TcpStream::connect(("127.0.0.1", at)).unwrap();
    let second = start(&ask, &torchrun(1, 2, at));
    let ends = [end(first), end(second)];
    assert!(ends[0].0 == Some(0) && ends[0].1.contains(',') && ends[1].0 == Some(0), "{ends:?}");
}

fn both(timeout: &str, variables: &[(&'static str, &str)]) -> [End; 2] {
    let (ask, at) = ([&ASK[..], &["--timeout", timeout, "--join"]].concat(), port());
    let children = [0, 1].map(|process| {
        let mut all = torchrun(process, 2, at);
        all.extend(variables.iter().map(|(name, value)| (*name, (*value).to_owned())));
        start(&ask, &all)
    });
    children.map(end)
}

/// What is said where no rank is later than the others.
const NOBODY: &str = "chaski: all ranks wait for each other: rank ";

fn check(number: u64, answer: &str) {
    let fault = Fault::new(number);
    let seconds = TIMEOUT.as_secs().to_string();
    let ends = both(&seconds, &[(fault.variable, &fault.value)]);
    let told = format!("{number}: {fault:?}: {ends:?}");
    println!("{told}");
    let Fault { rank, kind, .. } = fault;
    if kind == FaultKind::Slow {
        assert!(ends[0].0 == Some(0) && ends[0].1 == answer && ends[1].0 == Some(0), "{told}");
        return;
    }
    for (process, (status, _, errors)) in ends.iter().enumerate() {
        if kind == FaultKind::Death && process == rank {
            assert!(*status == Some(137), "{told}");
            continue;
        }
        assert!(*status == Some(1) && errors.len() == 1, "{told}");
        // All ranks come out of a collective that is aborted, the one that did not join it, too.
        let nobody = kind == FaultKind::StallInNccl && errors[0].contains(NOBODY);
        let named = format!("chaski: rank {rank} on cuda:{rank} ");
        assert!(errors[0].contains(&named) || nobody, "{told}");
    }
    if matches!(kind, FaultKind::Stall | FaultKind::StallInNccl) {
        assert!(ends[0].2 == ends[1].2, "{told}");
    }
}

fn check_all(numbers: impl Iterator<Item = u64> + Send) {
    let [(status, answer, errors), _] = both("600", &[]);
    assert_eq!(status, Some(0), "{errors:?}");
    faults::for_each(numbers, |number| check(number, &answer));
}

#[test]
fn a_rank_that_fails_ends_all_processes_wherever_it_fails() {
    check_all([0, 2, 3, 5, 8].into_iter());
}

#[test]
#[ignore = "takes minutes"]
fn a_hundred_faults_in_two_processes() {
    check_all(10..110);
}

/// Both clocks run out at once. In a prompt, and in a graph; the other one waits for a sum of NCCL's.
#[test]
fn a_stall_is_told_of_the_rank_that_stalls_and_its_op_by_both_processes() {
    let seconds = TIMEOUT.as_secs().to_string();
    assert_eq!(both("600", &[])[0].0, Some(0));
    for (rank, launch, op) in [
        (0, 4, "matmul (op 4 of 24)"),
        (1, 6, "attend_prefill (op 6 of 24)"),
        (0, 45, "attend_decode (op 4 of 17)"),
        (1, 46, "project (op 5 of 17)"),
    ] {
        let value = format!("kernel@{rank}:{launch}:stalls");
        let ends = both(&seconds, &[("CHASKI_EMULATE_FAULT", &value)]);
        let told = format!("{value}: {ends:?}");
        let who = format!("chaski: rank {rank} on cuda:{rank} of ");
        let why = format!(" failed in {op}: made no progress for 10 s; --timeout allows more");
        for (status, _, errors) in &ends {
            assert!(*status == Some(1) && errors.len() == 1, "{told}");
            assert!(errors[0].starts_with(&who) && errors[0].ends_with(&why), "{told}");
        }
    }
}
