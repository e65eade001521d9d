//! Two ranks of a process on emulated GPUs, of which one fails, dies, stalls or is slow, wherever that may
//! be: the run ends in time, with one line that names the rank, or with the right answer.

use std::thread;
use std::time::{Duration, Instant};

use crate::child::{end, start};
use crate::faults;
use crate::faults::{ASK, Fault, FaultKind, TIMEOUT};

/// Not counted: what a busy machine adds to a run.
const SLACK: Duration = Duration::from_secs(90);

/// Exit status, answer, error, and how long it took.
fn ask(variables: &[(&str, &str)], timeout: Duration) -> (Option<i32>, String, String, Duration) {
    let seconds = timeout.as_secs().to_string();
    let split = ["--tensor-parallel", "2", "--timeout", &seconds];
    let began = Instant::now();
    let (status, text, errors) = end(start(&[&ASK[..], &split].concat(), variables));
    assert!(errors.len() <= 1, "{variables:?}: {errors:?}");
    (status, text, errors.concat(), began.elapsed())
}

/// Nothing goes wrong; kernels that are new to the emulator are compiled.
fn answer() -> String {
    let (status, text, error, _) = ask(&[], Duration::from_secs(600));
    assert_eq!(status, Some(0), "{error}");
    text
}

fn check(number: u64, answer: &str) {
    let fault = Fault::new(number);
    let nccls = fault.variable == "CHASKI_EMULATE_RANK_FAULT" || fault.value.starts_with("nccl");
    let peers = if nccls || number % 20 >= 10 { "off" } else { "on" };
    let variables = [(fault.variable, &*fault.value), ("CHASKI_PEERS", peers)];
    let (status, text, error, took) = ask(&variables, TIMEOUT);
    let told = format!("{number}: {fault:?}, peers {peers}: {status:?} {text} {error} in {took:?}");
    println!("{told}");
    assert!(took < TIMEOUT + SLACK, "{told}");
    if fault.kind == FaultKind::Slow {
        return assert!(status == Some(0) && text == answer, "{told}");
    }
    assert!(status == Some(1), "{told}");
    let Fault { rank, kind, .. } = fault;
    // All ranks come out of a collective that is aborted, the one that did not join it, too.
    let nobody = "chaski: all ranks wait for each other: rank ";
    let named = format!("rank {rank} on cuda:{rank} ");
    let is_nobody = kind == FaultKind::StallInNccl && error.starts_with(nobody);
    assert!(error.contains(&named) || is_nobody, "{told}");
    if matches!(kind, FaultKind::Stall | FaultKind::StallInNccl) {
        assert!(error.ends_with("made no progress for 10 s; --timeout allows more"), "{told}");
    }
}

fn check_all(numbers: impl Iterator<Item = u64> + Send) {
    let answer = answer();
    faults::for_each(numbers, |number| check(number, &answer));
}

#[test]
fn a_rank_that_fails_ends_the_run_wherever_it_fails() {
    check_all(0..10);
}

#[test]
#[ignore = "takes minutes"]
fn a_hundred_faults_on_two_gpus() {
    check_all(10..110);
}

/// In a sum, and before it, in a prompt and in a graph: the rank that is late is named, not the one that
/// waits for it, and the op that it is in, not the last one that its host has queued.
#[test]
fn a_stall_is_told_of_the_rank_that_stalls_and_its_op() {
    answer();
    // Over peer memory, the first launch of all tries that.
    let stalls = [
        ("on", 0, 3, "all_reduce (op 2 of 24)"),
        ("on", 1, 6, "rope_append (op 5 of 24)"),
        ("on", 1, 84, "attend_decode (op 5 of 18)"),
        ("on", 0, 86, "all_reduce (op 7 of 18)"),
        ("off", 1, 6, "attend_prefill (op 6 of 24)"),
        ("off", 0, 45, "attend_decode (op 4 of 17)"),
    ];
    thread::scope(|scope| {
        for (peers, rank, launch, op) in stalls {
            scope.spawn(move || {
                let value = format!("kernel@{rank}:{launch}:stalls");
                let fault = [("CHASKI_EMULATE_FAULT", &*value), ("CHASKI_PEERS", peers)];
                let (status, _, error, _) = ask(&fault, TIMEOUT);
                let said = format!(
                    "chaski: rank {rank} on cuda:{rank} failed in {op}: made no progress for 10 s; \
                     --timeout allows more"
                );
                assert!(status == Some(1) && error == said, "peers {peers}, {value}: {error}");
            });
        }
    });
}

/// Ranks that hang before any other one waits for them.
#[test]
fn a_rank_that_hangs_while_it_is_loaded_ends_the_run() {
    answer();
    thread::scope(|scope| {
        scope.spawn(|| {
            let absent = [("CHASKI_EMULATE_RANK_FAULT", "1:absent"), ("CHASKI_PEERS", "off")];
            let (status, _, error, _) = ask(&absent, TIMEOUT);
            let named = "rank 1 on cuda:1 failed in loading: made no progress for 10 s";
            assert!(status == Some(1) && error.contains(named), "{error}");
        });
        for peers in ["on", "off"] {
            scope.spawn(move || {
                let ask = ["generate", "-m", "synthetic:tiny", "--ids", "1,2,3", "--print-ids"];
                let split = ["--emulate", "2", "--tensor-parallel", "2", "--timeout", "10"];
                let stalls = ("CHASKI_EMULATE_FAULT", "kernel@1:2:stalls");
                let variables = [stalls, ("CHASKI_PEERS", peers)];
                let (status, _, errors) = end(start(&[&ask[..], &split].concat(), &variables));
                let told = format!("peers {peers}: {errors:?}");
                assert!(status == Some(1) && errors.len() == 1, "{told}");
                assert!(errors[0].contains("rank 1 on cuda:1 failed in loading"), "{told}");
            });
        }
    });
}
