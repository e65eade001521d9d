//! Layers in stages that follow each other, each on ranks of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::cpus::failure;
use crate::golden::{Expected, argmax, cases, expected, source, worst};
use crate::process::chaski;
use crate::steps::prefill;
use crate::{cpus, gpus};
use chaski::checkpoint::Checkpoint;
use chaski::comm::{Fault, FaultKind};
use chaski::config::{Config, Dims};
use chaski::encoding::Float;
use chaski::engine;
use chaski::memory::Weight;
use chaski::model::{Logits, Weights, cache_bytes_per_token};
use chaski::sampler::SamplingOptions;
use chaski::team::{Team, TeamOptions};

fn case(name: &str) -> PathBuf {
    cases().into_iter().find(|case| case.ends_with(name)).unwrap()
}

/// Ranks in `stages` on the CPU.
fn on_cpu(case: &Path, stages: usize, parts: usize, options: TeamOptions) -> Team {
    cpus::team(case, [stages, parts], options).unwrap()
}

/// Ranks in `stages` on emulated GPUs of these numbers.
fn on_gpus(case: &Path, stages: usize, ordinals: &[u32]) -> Team {
    let request = engine::Options {
        context: Some(128),
        prefill_chunk: Some(64),
        scored: usize::MAX,
        ..engine::Options::default()
    };
    gpus::team(&source(case), request, stages, ordinals).unwrap()
}

/// What is drawn after `ids`.
fn drawn(team: &mut Team, options: &SamplingOptions, ids: &[u32], tokens: usize) -> Vec<u32> {
    team.rewind(0).unwrap();
    team.begin(options, ids).unwrap();
    team.forward(ids, Logits::Last).unwrap();
    let mut chosen = vec![team.sample().unwrap()];
    while chosen.len() < tokens {
        chosen.push(team.decode_step().unwrap());
    }
    chosen
}

fn greedy() -> SamplingOptions {
    SamplingOptions { temperature: 0.0, ..Default::default() }
}

/// Every model at two stages, one of them at three, and with its matrices split besides, the layers of one
/// being an uneven number.
#[test]
fn stages_change_no_bit_of_the_logits_and_no_token() {
    let mut seen = Vec::new();
    for case in cases() {
        let Expected { ids, logits, greedy: theirs } = expected(&case);
        for parts in [1, 2] {
            let config = Config::load(&source(&case)).unwrap();
            if Dims::new(&config, parts).is_err() {
                continue;
            }
            let mut one = on_cpu(&case, 1, parts, TeamOptions::default());
            let plain = prefill(&mut one, &ids, ids.len());
            for stages in 2..=config.layers {
                let told = format!("{}: {stages} x {parts}", case.display());
                let mut team = on_cpu(&case, stages, parts, TeamOptions::default());
                assert_eq!((team.world(), team.stages()), (stages * parts, stages));
                for chunk in [ids.len(), 7, 1] {
                    assert!(plain == prefill(&mut team, &ids, chunk), "{told}, by {chunk}");
                }
                assert_eq!(drawn(&mut team, &greedy(), &ids, theirs.len()), theirs, "{told}");
                seen.push((config.layers, stages, parts));
            }
            assert!(worst(&plain, &logits, ids.len()).0 <= 1e-4);
            assert_eq!(argmax(&plain[plain.len() - config.vocab..]), theirs[0]);
        }
    }
    assert!(seen.contains(&(3, 2, 2)) && seen.contains(&(3, 3, 1)), "{seen:?}");
}

/// Each stage has its own layers, once, and nobody keeps keys of others'.
#[test]
fn the_parts_of_all_stages_are_the_whole() {
    for case in cases() {
        let source = source(&case);
        let (config, checkpoint) =
            (Config::load(&source).unwrap(), Checkpoint::open(&source).unwrap());
        let of = |dims: Dims| -> Vec<Weight> {
            Weights::locate(&checkpoint, &dims).unwrap().matrices().collect()
        };
        let whole = Dims::new(&config, 1).unwrap();
        let tied = Weights::locate(&checkpoint, &whole).unwrap().tied();
        let dims = Dims::in_stages(&config, 2, 2).unwrap();
        let [first, last] = [dims.of_rank(0), dims.of_rank(1)];
        let mut together = [of(first), of(last)].concat();
        if tied {
            // Both ends need it.
            assert_eq!(together.pop(), Some(together[0]));
        }
        assert_eq!(together, of(whole), "{}", case.display());
        assert_eq!(first.layers + last.layers, config.layers);
        let [a, b, all] = [first, last, whole].map(|d| cache_bytes_per_token(&d, Float::F16));
        assert!(a + b == all && a <= b, "{a}, {b}, {all}");
        assert_eq!((first.vocab, last.vocab), (0, config.vocab));
    }
}

/// Sampling, penalties and all commands, as a user runs them.
#[test]
fn every_command_takes_stages() {
    let model = case("gqa4-hd64-bf16-tied");
    let model = model.to_str().unwrap();
    let run = |ask: &[&str], split: &[&str]| {
        let (status, text, errors) = chaski(&[ask, &["--device", "cpu"], split].concat(), &[]);
        assert_eq!(status, Some(0), "{errors}");
        (text, errors)
    };
    let split = ["--pipeline-parallel", "2", "--tensor-parallel", "2"];
    let ask = ["generate", "-m", model, "--ids", "1,2,3,4,5", "--print-ids", "-n", "40"];
    let how = ["--temp", "2", "--top-p", "0.95", "--top-k", "100", "--seed", "3", "--ignore-eos"];
    let more = ["--repeat-penalty", "1.3", "--presence-penalty", "0.5", "--logit-bias", "70=3"];
    let ask = [&ask[..], &how, &more].concat();
    let (one, _) = run(&ask, &[]);
    for split in [&split[..], &["--pipeline-parallel", "3"]] {
        let (text, errors) = run(&ask, split);
        assert_eq!(text, one);
        assert!(errors.contains(" stages, "), "{errors}");
    }
    let folder = tempfile::tempdir().unwrap();
    let logits = |name: &str, split: &[&str]| {
        let out = folder.path().join(name);
        run(&["logits", "-m", model, "--ids", "9,8,7", "-o", out.to_str().unwrap()], split);
        std::fs::read(out).unwrap()
    };
    assert!(logits("one", &split[2..]) == logits("two", &split));
    let profile =
        ["bench", "-m", model, "-p", "5", "-n", "2", "-r", "1", "--profile", "-o", "jsonl"];
    let (rows, _) = run(&profile, &split);
    let rows: Vec<serde_json::Value> =
        rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    let counted = |op: &str| {
        let row = rows.iter().find(|row| row["phase"] == "decode" && row["op"] == op);
        row.map(|row| (row["count"].as_u64().unwrap(), row["link_bytes"].as_u64().unwrap()))
    };
    // Three layers of 64 numbers; two ranks of the first stage pass on 256 bytes each.
    assert_eq!(counted("norm_qkv"), Some((3, 0)));
    assert_eq!(counted("send"), Some((1, 2 * 256)));
    assert_eq!(counted("all_reduce"), Some((7, 7 * 2 * 256)));
    assert_eq!(counted("receive"), None);
}

#[test]
fn stages_that_cannot_be_are_refused_in_a_line() {
    for (split, status, reason) in [
        (&["--pipeline-parallel", "5"][..], 1, "layers: it cannot be in 5 stages"),
        (&["--pipeline-parallel", "0"], 2, "at least 1 is needed"),
        (&["--pipeline-parallel", "2", "--tensor-parallel", "3"], 1, "over 3 ranks"),
        (
            &["--pipeline-parallel", "2", "--emulate", "3", "--devices", "0,1,2"],
            1,
            "3 ranks cannot",
        ),
        (
            &["--pipeline-parallel", "2", "--tensor-parallel", "2", "--devices", "0,1"],
            2,
            "4 ranks need",
        ),
    ] {
        let ask = ["generate", "-m", "synthetic:tiny", "--ids", "1,2"];
        let device = if split.contains(&"--devices") { &[][..] } else { &["--device", "cpu"] };
        let (ended, _, errors) = chaski(&[&ask[..], split, device].concat(), &[]);
        assert_eq!(ended, Some(status), "{errors}");
        assert!(errors.contains(reason) && errors.lines().count() <= 4, "{errors}");
    }
}

/// In prefill, in decoding and in the choice of tokens; in each stage.
#[test]
fn a_rank_of_any_stage_that_fails_or_stalls_ends_all() {
    let case = case("gqa8-hd64-f16");
    for number in 0..24 {
        let rank = number % 4;
        let kind = [FaultKind::Error, FaultKind::Delay(Duration::MAX)][number / 4 % 2];
        let fault = Fault { rank, op: number * 2, kind };
        let timeout = match kind {
            FaultKind::Delay(_) => Duration::from_millis(500),
            _ => Duration::from_secs(30),
        };
        let options = TeamOptions { timeout, fault: Some(fault), ..TeamOptions::default() };
        let (error, took) = failure(on_cpu(&case, 2, 2, options));
        let named = format!("rank {rank} on cpu failed in ");
        assert!(error.starts_with(&named) && !error.contains("in no op"), "{fault:?}: {error}");
        assert!(took < Duration::from_secs(20), "{fault:?}: {took:?}");
    }
}

/// A stage that is slow is waited for by the others, whatever they wait in.
#[test]
fn a_slow_stage_changes_nothing() {
    let case = case("gqa8-hd64-f16");
    let ids = expected(&case).ids;
    let plain = prefill(&mut on_cpu(&case, 2, 2, TeamOptions::default()), &ids, 5);
    for rank in [1, 2] {
        let kind = FaultKind::Delay(Duration::from_millis(300));
        let fault = Some(Fault { rank, op: 20, kind });
        let options = TeamOptions { fault, ..TeamOptions::default() };
        assert!(plain == prefill(&mut on_cpu(&case, 2, 2, options), &ids, 5));
    }
}

/// Four GPUs in two stages, and two stages whose ranks share GPUs, against two GPUs; and stages of one.
#[test]
fn stages_of_gpus_change_no_bit_either() {
    let case = case("gqa8-hd64-f16");
    let ids = expected(&case).ids;
    let ids = &ids[..ids.len().min(16)];
    let drawing = SamplingOptions { temperature: 2.0, top_k: 50, seed: 3, ..Default::default() };
    let of = |team: &mut Team| {
        let logits = [prefill(team, ids, ids.len()), prefill(team, ids, 1)];
        (logits, drawn(team, &drawing, ids, 6))
    };
    for (plain, staged) in
        [(&[0, 1][..], &[&[0, 1, 2, 3][..], &[1, 0, 1, 0]][..]), (&[0], &[&[0, 1], &[0, 0]])]
    {
        let expected = of(&mut on_gpus(&case, 1, plain));
        for ordinals in staged {
            let ours = of(&mut on_gpus(&case, 2, ordinals));
            assert!(ours.0 == expected.0, "{ordinals:?}: other logits");
            assert_eq!(ours.1, expected.1, "{ordinals:?}");
        }
    }
}

const ASK: [&str; 16] = [
    "generate",
    "-m",
    "synthetic:tiny",
    "--ids",
    "1,2,3",
    "-n",
    "5",
    "--print-ids",
    "--seed",
    "3",
    "--temp",
    "1",
    "--context",
    "64",
    "--prefill-chunk",
    "8",
];

fn ends_well(args: &[&str], environment: &[(&str, &str)], told: &str) -> String {
    let patient = ["--timeout", "600"];
    let (status, text, errors) = chaski(&[&ASK[..], args, &patient].concat(), environment);
    assert_eq!(status, Some(0), "{errors}");
    assert!(errors.contains(told), "{errors}");
    text
}

/// Whatever carries the sums and what is passed on.
#[test]
fn the_command_line_puts_gpus_in_stages() {
    let one = ends_well(&["--emulate", "1"], &[], "");
    let four = ["--emulate", "4", "--pipeline-parallel", "2", "--tensor-parallel", "2"];
    let by = |sums: &str, passing: &str| {
        format!("sums over the ranks of a stage {sums}; from stage to stage {passing}")
    };
    let peers = by("over peer memory, large ones through NCCL", "through NCCL");
    assert_eq!(ends_well(&four, &[], &peers), one);
    let off = [("CHASKI_PEERS", "off")];
    let nccl = by("through NCCL: CHASKI_PEERS=off", "through NCCL");
    assert_eq!(ends_well(&four, &off, &nccl), one);
    let shared = ["--emulate", "1", "--pipeline-parallel", "2", "--devices", "0,0"];
    assert_eq!(ends_well(&shared, &[], "from stage to stage by the host"), one);
}

/// Two processes as torchrun starts them, each on a machine of its own, as far as they know; how both end.
fn joined(args: &[&str], second: &[(&str, &str)]) -> [Output; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let children = [0, 1].map(|process: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
        command.env("CHASKI_TRUST_KERNELS", "on");
        command.args(ASK).args(args).arg("--join").stdin(Stdio::null());
        command.env("RANK", process.to_string()).env("WORLD_SIZE", "2");
        command.env("LOCAL_RANK", "0").env("LOCAL_WORLD_SIZE", "1");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", (port - 1).to_string());
        command.envs(second.iter().copied().filter(|_| process == 1));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    children.map(|child| child.wait_with_output().unwrap())
}

#[test]
fn each_of_two_processes_is_a_stage() {
    let patient = ["--timeout", "600"];
    let one = ends_well(&["--emulate", "1"], &[], "");
    for (args, told) in [
        (
            &["--emulate", "1", "--pipeline-parallel", "2"][..],
            "2 stages, 1 rank and up to 1 layer in each\n",
        ),
        // More ranks than the 2 KV heads, on two machines.
        (
            &["--emulate", "2", "--devices", "0,1"],
            "2 stages, 2 ranks and up to 1 layer in each, one for each machine, since 4 ranks are more",
        ),
    ] {
        let [first, second] = joined(&[args, &patient].concat(), &[]);
        let errors = String::from_utf8_lossy(&first.stderr);
        assert!(first.status.success() && second.status.success(), "{errors} {second:?}");
        assert_eq!(String::from_utf8_lossy(&first.stdout), one, "{args:?}");
        assert!(errors.contains(told), "{errors}");
        assert!(second.stdout.is_empty());
        // Each stage is in one process: its sums go over peer memory.
        assert!(!args.contains(&"--devices") || errors.contains("over peer memory"), "{errors}");
    }
}

#[test]
fn a_stage_that_fails_or_stalls_ends_the_other_process_in_time() {
    for (variable, value) in [
        ("CHASKI_EMULATE_RANK_FAULT", "1:dies:9"),
        ("CHASKI_EMULATE_RANK_FAULT", "1:stalls:7"),
        ("CHASKI_EMULATE_FAULT", "kernel:9:700"),
        ("CHASKI_EMULATE_FAULT", "ncclRecv:3:3"),
    ] {
        let args = ["--emulate", "1", "--pipeline-parallel", "2", "--timeout", "20"];
        let start = Instant::now();
        let [first, second] = joined(&args, &[(variable, value)]);
        assert!(start.elapsed() < Duration::from_secs(100), "{value}: {:?}", start.elapsed());
        let errors = String::from_utf8_lossy(&first.stderr);
        assert_eq!(first.status.code(), Some(1), "{value}: {errors}");
        assert!(!second.status.success(), "{value}: {second:?}");
        let ours: Vec<_> = errors.lines().filter(|line| line.starts_with("chaski: ")).collect();
        assert!(ours.len() == 1 && ours[0].contains("rank "), "{value}: {errors}");
    }
}

/// Two machines of 8 GPUs for a model that one does not hold.
#[test]
fn stages_are_planned_without_gpus() {
    let split = ["--pipeline-parallel", "2", "--tensor-parallel", "8", "--memory", "80G", "--json"];
    let ask = ["inspect", "-m", "synthetic:llama3.1-405b", "--device", "cpu"];
    let (status, text, errors) = chaski(&[&ask[..], &split].concat(), &[]);
    assert_eq!(status, Some(0), "{errors}");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let splits = report["prediction"]["splits"].as_array().unwrap();
    let [.., eight, staged] = &splits[..] else { panic!("{splits:?}") };
    assert_eq!((&staged["ranks"], &staged["pipeline_stages"]), (&16.into(), &2.into()));
    assert!(eight["does_not_fit"].is_string() && staged["does_not_fit"].is_null(), "{staged}");
    let number = |split: &serde_json::Value, name: &str| split[name].as_f64().unwrap();
    let cached = "kv_bytes_per_token_per_rank";
    assert_eq!(number(eight, cached), 2.0 * number(staged, cached));
    // Half of the layers, and the head; the other half has the embedding, which is as large.
    let weights = [eight, staged].map(|split| number(split, "weight_bytes_per_rank"));
    assert_eq!(weights[0], 2.0 * weights[1]);
    // As many sums as before, half of them and one more in the first stage, which passes on 64 KiB.
    assert_eq!(
        (&eight["all_reduces_per_token"], &staged["all_reduces_per_token"]),
        (&253.into(), &253.into())
    );
    let sum = 16384.0 * 4.0;
    assert_eq!(number(staged, "link_bytes_per_token_per_rank"), (127.0 * 7.0 + 1.0) * sum);
    // One stage works at a time: no faster than half as many GPUs, and two passes slower.
    let seconds = [eight, staged].map(|split| number(split, "predicted_seconds_per_token"));
    let more = seconds[1] - seconds[0];
    assert!(more > 60e-6 && more < 70e-6, "{more}");
}
