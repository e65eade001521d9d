//! A model split over several processes, each with emulated GPUs of its own, joined as launchers have it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::child::{End, end, start};
use crate::joined::{Variables, port, torchrun};
use crate::process::chaski;
use chaski::kernel::KERNELS;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gqa8-hd64-f16");

/// Kernels that are new to the emulator are compiled at their first launch.
const PATIENT: [&str; 2] = ["--timeout", "600"];

const SAMPLED: [&str; 12] = [
    "generate",
    "-m",
    MODEL,
    "--ids",
    "1,2,3",
    "-n",
    "6",
    "--print-ids",
    "--seed",
    "3",
    "--temp",
    "2",
];
const SIZES: [&str; 7] =
    ["--context", "64", "--prefill-chunk", "8", "--emulate", "2", "--logit-bias=7=-inf"];

/// Two processes with these variables and arguments.
fn two(args: &[&str], variables: impl Fn(usize) -> Variables) -> [End; 2] {
    let children = [0, 1].map(|process| start(args, &variables(process)));
    children.map(end)
}

fn answer(ends: [End; 2]) -> String {
    let [(first, text, errors), (second, nothing, others)] = ends;
    assert_eq!((first, second), (Some(0), Some(0)), "{errors:?} {others:?}");
    assert_eq!(nothing, "");
    text
}

#[test]
fn every_launcher_gives_the_answer_of_one_process() {
    let split = ["--tensor-parallel", "2"];
    let (status, one, errors) = chaski(&[&SAMPLED[..], &SIZES, &split, &PATIENT].concat(), &[]);
    assert_eq!(status, Some(0), "{errors}");
    let ask = [&SAMPLED[..], &SIZES, &PATIENT, &["--join"]].concat();
    let at = port();
    assert_eq!(answer(two(&ask, |process| torchrun(process, 2, at))), one);

    let address = format!("127.0.0.1:{}", port());
    let ask = [&ask[..], &["slurm", "--rendezvous", &address]].concat();
    let srun = |process: usize| {
        let process = process.to_string();
        let tasks = ("SLURM_NTASKS", "2".to_owned());
        vec![("SLURM_PROCID", process.clone()), tasks, ("SLURM_LOCALID", process)]
    };
    assert_eq!(answer(two(&ask, srun)), one);

    let at = port();
    let ask = [&SAMPLED[..], &SIZES, &PATIENT, &["--join", "mpi"]].concat();
    let mpirun = |process: usize| {
        let [rank, two] = [process.to_string(), "2".to_owned()];
        vec![
            ("OMPI_COMM_WORLD_RANK", rank.clone()),
            ("OMPI_COMM_WORLD_SIZE", two.clone()),
            ("OMPI_COMM_WORLD_LOCAL_RANK", rank),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", two),
            ("MASTER_PORT", (at - 1).to_string()),
        ]
    };
    assert_eq!(answer(two(&ask, mpirun)), one);
}

#[test]
fn a_process_may_have_several_ranks() {
    let ask = ["generate", "-m", "synthetic:tiny", "--ids", "1,2,3", "-n", "4", "--print-ids"];
    let ask = [&ask[..], &["--context", "64", "--temp", "1", "--seed", "5"], &PATIENT].concat();
    let alone = [&ask[..], &["--emulate", "4", "--devices", "0,1,2,3"]].concat();
    let (status, one, errors) = chaski(&alone, &[]);
    assert_eq!(status, Some(0), "{errors}");
    let ask = [&ask[..], &["--emulate", "2", "--devices", "0,1", "--join"]].concat();
    let at = port();
    assert_eq!(answer(two(&ask, |process| torchrun(process, 2, at))), one);
}

#[test]
fn logits_of_two_processes_are_those_of_one_with_two_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let logits = |out: &Path, more: &[&str]| -> Vec<String> {
        let out = out.to_str().unwrap();
        let ask = ["logits", "-m", MODEL, "--ids", "5,6,7,8,9,10,11,12,13,14", "--out", out];
        let ask = [&ask[..], &SIZES[..6], &PATIENT, more].concat();
        ask.into_iter().map(str::to_owned).collect()
    };
    let [one, several] = ["one", "several"].map(|name| folder.path().join(name));
    let ask = logits(&one, &["--devices", "0,1"]);
    let ask: Vec<&str> = ask.iter().map(String::as_str).collect();
    let (status, _, errors) = chaski(&ask, &[]);
    assert_eq!(status, Some(0), "{errors}");
    let ask = logits(&several, &["--join", "torchrun"]);
    let ask: Vec<&str> = ask.iter().map(String::as_str).collect();
    let at = port();
    answer(two(&ask, |process| torchrun(process, 2, at)));
    assert!(fs::read(&one).unwrap() == fs::read(&several).unwrap());
}

/// The built-in `norm_head` but for the sign of its logits.
fn upside_down(folder: &Path) -> String {
    let kernel = KERNELS.iter().find(|kernel| kernel.name == "norm_head").unwrap();
    let source = kernel.source.replace("? a : b) * scale", "? a : b) * -scale");
    assert_ne!(source, kernel.source);
    fs::write(folder.join("upside_down.cu"), source).unwrap();
    format!("norm_head={}", folder.join("upside_down.cu").display())
}

#[test]
fn a_kernel_in_the_place_of_a_built_in_one_runs_on_every_rank() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = upside_down(folder.path());
    let ask = ["generate", "-m", MODEL, "--ids", "1,2,3", "-n", "4", "--print-ids", "--temp", "0"];
    let ask = [&ask[..], &SIZES[..6], &PATIENT].concat();
    let told = |more: &[&str]| {
        let (status, ids, errors) = chaski(&[&ask[..], more].concat(), &[]);
        assert_eq!(status, Some(0), "{more:?}: {errors}");
        ids
    };
    let alone = told(&["--kernel", &kernel]);
    assert_ne!(alone, told(&[]), "the logits' signs matter");
    for split in [["--devices", "0,1"], ["--devices", "1,1"], ["--tensor-parallel", "2"]] {
        assert_eq!(told(&[&split[..], &["--kernel", &kernel]].concat()), alone, "{split:?}");
    }
    let ask = [&ask[..], &["--join", "--kernel", &kernel]].concat();
    let at = port();
    assert_eq!(answer(two(&ask, |process| torchrun(process, 2, at))), alone);
    // All processes are to run the same.
    let [first, second] = trouble(&[], &["--kernel", &kernel], 2);
    assert!(first.2[0].contains("model") && first.2 == second.2, "{first:?} {second:?}");
}

#[test]
fn options_that_would_play_no_part_are_refused() {
    let ids = ["--ids", "1,2"];
    for (command, options, told) in [
        (&["diff"][..], &["--tensor-parallel", "2"][..], "--tensor-parallel"),
        (&["diff"], &["--devices", "0,1"], "--devices"),
        (&["diff"], &["--device", "cuda"], "--device"),
        (&["generate"], &["--device", "cuda:1", "--tensor-parallel", "2"], "--devices"),
        (&["kernels", "bench"], &["--kernel", "norm_head=x.cu"], "--source"),
        (&["kernels", "bench"], &["--pipeline-parallel", "2"], "--pipeline-parallel"),
        (&["kernels", "bench"], &["--join"], "--join"),
    ] {
        let ids = if command[0] == "kernels" { &[][..] } else { &ids };
        let ask = [command, ids, &["-m", MODEL, "--emulate", "2"], options].concat();
        let (status, _, errors) = chaski(&ask, &[]);
        assert!(status == Some(2) && errors.contains(told), "{ask:?}: {status:?} {errors}");
    }
}

/// Long enough for machines that are busy.
const TIMEOUT: [&str; 2] = ["--timeout", "20"];

/// What both say when the second is started with other variables or arguments, within the deadline.
fn trouble(more: &[(&'static str, &str)], args: &[&str], world: usize) -> [End; 2] {
    let (start_time, at) = (Instant::now(), port());
    let ask = [&SAMPLED[..], &SIZES, &TIMEOUT, &["--join"]].concat();
    let mut second = torchrun(1, world, at);
    second.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let children =
        [start(&ask, &torchrun(0, world, at)), start(&[&ask[..], args].concat(), &second)];
    let ends = children.map(end);
    assert!(start_time.elapsed() < Duration::from_secs(100), "{:?}", start_time.elapsed());
    assert_eq!(ends[0].0, Some(1), "{ends:?}");
    assert_ne!(ends[1].0, Some(0), "{ends:?}");
    assert_eq!(ends[0].2.len(), 1, "{ends:?}");
    ends
}

#[test]
fn processes_that_do_not_fit_together_are_told_on_both() {
    for (variables, args, world, told) in [
        (&[("TORCHELASTIC_RUN_ID", "another")][..], &[][..], 2, "or is of another run"),
        // Told why where the first one listens already, else missed.
        (&[("WORLD_SIZE", "3")], &[], 2, "process 1"),
        (&[], &["--rendezvous", "127.0.0.1:1"], 2, "process 1 of 2 did not connect"),
    ] {
        let [first, second] = trouble(variables, args, world);
        assert!(first.2[0].contains(told), "{told}: {first:?}");
        let is_told = second.2[0].contains(told) || told.starts_with("process 1");
        assert!(is_told, "{first:?} {second:?}");
    }
    let [first, second] = trouble(&[("RANK", "0")], &[], 2);
    let told = [&first, &second].map(|end| end.2[0].as_str());
    assert!(told.iter().any(|told| told.contains("cannot wait for the others")), "{told:?}");
}

/// By a file that both have, the name of the run is one of the things that must be the same.
#[test]
fn a_secret_of_a_file_stands_for_the_name_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let [file, empty] = ["secret", "empty"].map(|name| folder.path().join(name));
    fs::write(&file, "known to both\n").unwrap();
    fs::write(&empty, "\n").unwrap();
    let ask = [&SAMPLED[..], &SIZES, &PATIENT, &["--join"]].concat();
    let with = |file: &Path, runs: [&str; 2]| {
        let ask = [&ask[..], &["--secret-file", file.to_str().unwrap()]].concat();
        let at = port();
        two(&ask, |process| {
            let run = ("TORCHELASTIC_RUN_ID", runs[process].to_owned());
            [torchrun(process, 2, at), vec![run]].concat()
        })
    };
    assert!(answer(with(&file, ["a", "a"])).contains(','));
    let [first, second] = with(&file, ["a", "b"]);
    assert!(first.2[0].contains("has run b") && second.2 == first.2, "{first:?} {second:?}");
    let [first, _] = with(&empty, ["a", "a"]);
    assert!(first.0 == Some(2) && first.2[0].contains("no --secret-file in it"), "{first:?}");
}

#[test]
fn ranks_that_fail_or_stall_end_all_processes_in_time() {
    for (variable, value, told) in [
        ("CHASKI_EMULATE_RANK_FAULT", "1:dies:9", "rank 1 on cuda:1"),
        ("CHASKI_EMULATE_RANK_FAULT", "1:stalls:7", "made no progress for 20 s"),
        ("CHASKI_EMULATE_FAULT", "cuMemAlloc_v2:3:2", "rank 1 on cuda:1"),
        ("CHASKI_EMULATE_FAULT", "ncclCommInitRank:1:3", "rank 1 on cuda:1"),
    ] {
        let [first, _] = trouble(&[(variable, value)], &[], 2);
        assert!(first.2[0].contains(told), "{value}: {first:?}");
    }
}

#[test]
fn variables_and_devices_that_make_no_sense_are_refused() {
    let ask = [&SAMPLED[..], &["--join"]].concat();
    for (variables, args, told) in [
        (&[("RANK", "1")][..], &[][..], "WORLD_SIZE is not"),
        (&[("JOB_COMPLETION_INDEX", "1")], &["kubernetes"], "WORLD_SIZE is not"),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "2")],
            &["--rendezvous", "127.0.0.1:1", "--device", "cpu"],
            "--join needs GPUs",
        ),
    ] {
        let (status, _, errors) = chaski(&[&ask[..], args].concat(), variables);
        assert!(status == Some(2) && errors.contains(told), "{status:?} {errors}");
    }
}
