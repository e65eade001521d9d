//! The CUDA executor on the emulated driver: the golden checkpoints with 16-bit weights against what
//! `transformers` computed from them in float32.
//!
//! Bounds are the relative L2 of the logits of all positions, and at any one of them three times that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::golden::{Expected, argmax, cases, expected, relative_error, source, worst};
use crate::process::chaski;
use crate::{again, emulated};
use chaski::case::Case;
use chaski::checkpoint::Checkpoint;
use chaski::config::{Config, Dims};
use chaski::conformance::{self, Effort};
use chaski::encoding::Float;
use chaski::engine;
use chaski::error::Result;
use chaski::executor::cuda::{self, Gpu, LaunchOptions, Peers, Product};
use chaski::executor::{Blueprint, Captured, Cuda, Executor};
use chaski::kernel::KernelSet;
use chaski::lab::products;
use chaski::memory::{Layout, Slot};
use chaski::model::{Logits, decode};
use chaski::op::{Prefetch, Program, Target, Tile, Trigger, Tuning};
use chaski::ops::{Matmul, MmaPeak};
use chaski::sampler::SamplingOptions;
use chaski::team::Team;

/// Prefill takes activations in the weights' type, decoding keeps them in f32; the cache is f16 in
/// both. That rounding is all there is to see: the CPU reference with the same types is as far off.
const PREFILL_BF16: f64 = 8e-3;
const PREFILL_F16: f64 = 2e-3;
const DECODE: f64 = 1e-3;

const DEFAULT: LaunchOptions = LaunchOptions {
    graphs: true,
    programmatic: true,
    synchronous: false,
    kernels: KernelSet::PORTABLE,
    tuning: Tuning::DEFAULT,
    peers: Peers::Untried,
    asks: false,
};

fn team(case: &Path, chunk: usize, options: LaunchOptions) -> Result<Team> {
    let context = Some(expected(case).ids.len() + 64);
    let request = engine::Options {
        context,
        prefill_chunk: Some(chunk),
        scored: usize::MAX,
        ..engine::Options::default()
    };
    let mut rank = emulated::rank(&source(case), request)?;
    if let Executor::Cuda(cuda) = rank.device_mut() {
        cuda.set_options(options);
    }
    Ok(rank.into())
}

/// What keeps a GPU from a case; the type of its weights.
fn judged(case: &Path) -> (Result<()>, Float) {
    emulated::start();
    let checkpoint = Checkpoint::open(&source(case)).unwrap();
    let dims = Dims::new(&Config::load(&source(case)).unwrap(), 1).unwrap();
    (Gpu::open(0).unwrap().suits(&dims, &checkpoint), checkpoint.encoding().activation())
}

/// The cases that there are kernels for, and the type of their weights.
fn half_cases() -> Vec<(PathBuf, Float)> {
    let judged = cases().into_iter().map(|case| (judged(&case), case));
    let suiting = |((suits, dtype), case): (_, PathBuf)| {
        let _: () = Result::ok(suits)?;
        Some((case, dtype))
    };
    let cases: Vec<_> = judged.filter_map(suiting).collect();
    assert!(cases.len() >= 5);
    cases
}

fn case(name: &str) -> PathBuf {
    cases().into_iter().find(|case| case.ends_with(name)).unwrap()
}

/// Whatever there are no kernels for is named.
#[test]
fn what_no_kernel_is_made_for_is_refused_by_name() {
    for (name, trouble) in [
        ("mha7-hd32-bf16", "heads of 32 dimensions"),
        ("gqa3-hd48-f16", "heads of 48 dimensions"),
        ("gqa2-hd256-f16", "heads of 256 dimensions"),
        ("mha-hd64-f32", "F32 weights"),
        (
            "gqa5-hd80-bf16-f32-norms-head",
            "matrices of several types: \"lm_head.weight\" is F32 where most are BF16",
        ),
        ("gqa2-hd96-bf16-f16", "is F16 where most are BF16"),
    ] {
        let refused = judged(&case(name)).0.unwrap_err().to_string();
        assert!(refused.contains(trouble), "{name}: {refused}");
        assert!(refused.ends_with("use `device` cpu"), "{refused}");
    }
}

fn bound(dtype: Float) -> f64 {
    if dtype == Float::Bf16 { PREFILL_BF16 } else { PREFILL_F16 }
}

fn assert_close(case: &Path, what: &str, ours: &[f32], bound: f64) {
    let Expected { ids, logits, .. } = expected(case);
    let error = relative_error(ours, &logits);
    let (worst, position) = worst(ours, &logits, ids.len());
    let told = format!("{}: {what}: {error:.2e}, {worst:.2e} at {position}", case.display());
    println!("{told}");
    assert!(error <= bound && worst <= 3.0 * bound, "{told}");
}

/// And bit for bit the same in chunks, for as long as no chunk is a single token.
#[test]
fn prefill_matches_transformers_in_chunks_too() {
    for (case, dtype) in half_cases() {
        let ids = expected(&case).ids;
        let whole = prefilled(&case, ids.len(), DEFAULT);
        assert_close(&case, "prefill", &whole, bound(dtype));
        for chunk in [2, 7, 16] {
            assert_ne!(ids.len() % chunk, 1);
            let chunked = prefilled(&case, chunk, DEFAULT);
            assert!(chunked == whole, "{}: chunks of {chunk}", case.display());
        }
    }
}

/// And bit for bit the same in chunks.
#[test]
fn prefill_with_hoppers_own_kernels_matches() {
    let hopper = LaunchOptions { kernels: KernelSet::ALL, ..DEFAULT };
    for (case, dtype) in half_cases() {
        let whole = prefilled(&case, expected(&case).ids.len(), hopper);
        assert_close(&case, "prefill on Hopper", &whole, bound(dtype));
        assert!(prefilled(&case, 16, hopper) == whole, "{}: chunks of 16", case.display());
    }
}

fn prefilled(case: &Path, chunk: usize, options: LaunchOptions) -> Vec<f32> {
    let mut team = team(case, chunk, options).unwrap();
    let ids = expected(case).ids;
    team.expect(ids.len()).unwrap();
    ids.chunks(chunk).flat_map(|ids| team.prefill(ids, Logits::All).unwrap().to_vec()).collect()
}

fn decoded(case: &Path, options: LaunchOptions) -> Vec<f32> {
    let mut team = team(case, 1, options).unwrap();
    let ids = expected(case).ids;
    team.expect(ids.len()).unwrap();
    ids.iter().flat_map(|id| team.decode(*id).unwrap().to_vec()).collect()
}

/// And bit for bit the same with and without graphs.
#[test]
fn decoding_token_by_token_matches_with_graphs_and_without() {
    for (case, _) in half_cases() {
        let with = decoded(&case, DEFAULT);
        assert_close(&case, "decoding", &with, DECODE);
        let without = decoded(&case, LaunchOptions { graphs: false, ..DEFAULT });
        assert!(with == without, "{}: graphs change the result", case.display());
    }
}

/// Emulated tensor cores that cut off where hardware's do stay within the same bounds.
#[test]
fn what_tensor_cores_cut_off_is_little() {
    let tests = [
        "cuda::prefill_matches_transformers_in_chunks_too",
        "cuda::prefill_with_hoppers_own_kernels_matches",
        "cuda::decoding_token_by_token_matches_with_graphs_and_without",
    ];
    for test in tests {
        again::end(again::start(test, &[("CHASKI_EMULATE_PRODUCTS", "truncated")]));
    }
}

/// The device's own choices, each taken before the host knows of the one before.
#[test]
fn greedy_choices_on_the_device_are_the_highest_logits() {
    let case = &case("gqa4-hd64-bf16-tied");
    let Expected { ids, greedy: theirs, .. } = expected(case);
    let mut team = team(case, ids.len(), DEFAULT).unwrap();
    let greedy = SamplingOptions { temperature: 0.0, ..Default::default() };
    team.begin(&greedy, &ids).unwrap();
    team.forward(&ids, Logits::Last).unwrap();
    let mut chosen = vec![team.sample().unwrap()];
    for _ in 1..16 {
        chosen.push(team.decode_step().unwrap());
    }
    assert_eq!(chosen[0], theirs[0]);
    team.rewind(0).unwrap();
    let mut last = argmax(team.prefill(&ids, Logits::Last).unwrap());
    for token in &chosen {
        assert_eq!(last, *token);
        last = argmax(team.decode(last).unwrap());
    }
}

/// A token costs the host the launch of a graph; each call makes sure of its context first. Queries are for
/// tokens that are late, as they are here.
#[test]
fn a_token_costs_the_host_one_launch() {
    let case = &case("gqa4-hd64-bf16-tied");
    let ids = expected(case).ids;
    let mut team = team(case, ids.len(), DEFAULT).unwrap();
    team.begin(&SamplingOptions::default(), &ids).unwrap();
    team.forward(&ids, Logits::Last).unwrap();
    team.sample().unwrap();
    team.decode_step().unwrap(); // the graph is made
    let before = cuda::calls().unwrap();
    (0..8).for_each(|_| _ = team.decode_step().unwrap());
    let after = cuda::calls().unwrap();
    let (calls, queries) = (after.0 - before.0, after.1 - before.1);
    assert_eq!(calls - 2 * queries, 2 * 8, "{calls} calls, {queries} queries");
}

/// Windows' driver may keep a graph until somebody asks about it.
#[test]
fn a_graph_is_asked_about_where_the_driver_may_keep_it() {
    let mut team = team(&case("gqa4-hd64-bf16-tied"), 8, DEFAULT).unwrap();
    team.forward(&[1, 2, 3], Logits::Last).unwrap();
    let rank = team.single_mut().unwrap();
    for (asks, queries) in [(false, 0), (true, 1)] {
        let mut step = Captured::new(decode(rank.model(), 1));
        let device = rank.device_mut();
        let Executor::Cuda(cuda) = device else { panic!("on a GPU") };
        cuda.set_options(LaunchOptions { asks, ..DEFAULT });
        device.step(&mut step).unwrap(); // the graph is made
        device.finish().unwrap();
        let before = cuda::calls().unwrap();
        device.step(&mut step).unwrap();
        assert_eq!(cuda::calls().unwrap().1 - before.1, queries);
    }
}

/// Graphs, programmatic launch, streams that run as late as they may, and the order of blocks and warps.
#[test]
fn bits_do_not_depend_on_how_work_is_given_or_run() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<String> = (0..20).map(|i| (i * 7 % 131 + 1).to_string()).collect();
    let logits = |case: &Path, chunk: &str, environment: &[(&str, &str)]| {
        let file = folder.path().join("logits.safetensors");
        let (case, out, ids) = (case.to_str().unwrap(), file.to_str().unwrap(), ids.join(","));
        let args =
            ["logits", "--emulate", "1", "-m", case, "--ids", &ids, "--prefill-chunk", chunk];
        let (status, _, errors) = chaski(&[&args[..], &["--out", out]].concat(), environment);
        assert_eq!(status, Some(0), "{environment:?}: {errors}");
        std::fs::read(file).unwrap()
    };
    let ways = [
        "CHASKI_PDL=off",
        "CHASKI_GRAPHS=off",
        "CHASKI_SYNC=on",
        "CHASKI_EMULATE_PDL=late",
        "CHASKI_EMULATE_STREAMS=lazy",
        "CHASKI_EMULATE_ORDER=descending",
        "CHASKI_EMULATE_ORDER=shuffled:1",
        "CHASKI_EMULATE_BLOCKS=3",
    ];
    let newest = ("CHASKI_EMULATE_CAPABILITY", "9.0");
    // One with heads of 64 in bf16, one with 128 in f16.
    for case in [case("gqa4-hd64-bf16-tied"), case("gqa8-hd128-f16-tied-long")] {
        for chunk in ["1", "512"] {
            let plain = logits(&case, chunk, &[newest]);
            for way in ways {
                let logits = logits(&case, chunk, &[newest, way.split_once('=').unwrap()]);
                assert!(logits == plain, "{}: {way} changes the result", case.display());
            }
        }
    }
}

/// q, k and v have the bits that a launch each would give them, whatever the shape of tile.
#[test]
fn products_in_one_launch_are_those_of_several() {
    emulated::start();
    let cases = conformance::cases("matmul", Effort::Usual).into_iter();
    let cases: Vec<_> = cases.filter(|case| products(case.op()).len() > 1).collect();
    assert!(cases.len() >= 16);
    for case in cases {
        let mut several = Program::default();
        for Product { x, weight, y, residual } in products(case.op()) {
            several.push(Matmul { x: x.unwrap(), products: [(weight, y)], residual });
        }
        for kernels in [KernelSet::PORTABLE, KernelSet::ALL] {
            let left =
                |program: &Program| left(&case, program, LaunchOptions { kernels, ..DEFAULT });
            assert!(left(&case.program) == left(&several), "{}, {kernels:?}", case.name);
        }
    }
}

/// What `program` leaves of a case's state.
fn left(case: &Case, program: &Program, options: LaunchOptions) -> Vec<u8> {
    let weights = Checkpoint::in_memory(case.encoding(), case.weight_region());
    let (gpu, layout) = (Gpu::open(0).unwrap(), &case.layout);
    let mut gpu = Cuda::new(&gpu, Blueprint::new(weights, &case.weights, layout)).unwrap();
    gpu.set_options(options);
    let state = case.state();
    gpu.write(layout.whole(), &bytemuck::cast_slice(&state)[..layout.bytes()]).unwrap();
    gpu.run(program).unwrap();
    gpu.read(layout.whole()).unwrap().to_vec()
}

#[test]
fn tuning_changes_no_bit() {
    emulated::start();
    let first = (Trigger::First, Prefetch::Lines, 0);
    let flows = [first, (Trigger::Last, Prefetch::Paced, 4), (Trigger::Last, Prefetch::Bulk, 15)];
    let flows = flows.map(|(trigger, prefetch, ahead)| Tuning {
        trigger,
        ahead,
        prefetch,
        ..Tuning::DEFAULT
    });
    let shapes = [Tile::Small, Tile::Medium, Tile::Large];
    let shapes = shapes.map(|tile| Tuning { tile: Some(tile), ..Tuning::DEFAULT });
    let decoding = ["norm_qkv", "norm_gate_up", "norm_head", "project", "attend_decode"];
    let products = ["matmul", "gate_up_swiglu", "matmul_hopper", "gate_up_swiglu_hopper"];
    let of = |ops: &[&'static str], tunings: &[Tuning]| {
        for op in ops {
            for case in conformance::cases(op, Effort::Few) {
                let with = |tuning| left(&case, &case.program, LaunchOptions { tuning, ..DEFAULT });
                let usual = with(Tuning::DEFAULT);
                for tuning in tunings {
                    assert!(with(*tuning) == usual, "{op}: {}: {tuning:?}", case.name);
                }
            }
        }
    };
    of(&decoding, &flows);
    of(&products, &shapes);
}

/// Slots of another layout reach nothing that is not of this rank, by their start or by their length.
#[test]
fn what_is_not_in_a_ranks_memory_is_not_touched() {
    emulated::start();
    let gpu = Gpu::open(0).unwrap();
    let mut layout = Layout::default();
    let own = layout.slot::<u64>(&[32]);
    layout.begin_shared();
    let shared = layout.slot::<u64>(&[1]);
    let mut larger = Layout::default();
    let (longer, past) = (larger.slot::<u64>(&[1 << 10]), larger.slot::<u64>(&[1]));
    let peak = |y| {
        let mut program = Program::default();
        program.push(MmaPeak { rounds: 1, y });
        program
    };
    type Act<'a> = &'a dyn Fn(&mut Cuda) -> Result<()>;
    let is_refused = |act: Act<'_>| {
        let mut cuda = Cuda::new(&gpu, Blueprint::of_state(&layout)).unwrap();
        catch_unwind(AssertUnwindSafe(|| act(&mut cuda).unwrap())).is_err()
    };
    let clear = |slot| {
        is_refused(&|cuda| {
            cuda.clear(slot);
            Ok(())
        })
    };
    let watch = |slot| is_refused(&|cuda| cuda.watch(slot, Some).map(drop));
    let write = |slot| is_refused(&|cuda| cuda.write(slot, &[1]));
    let read = |slot| is_refused(&|cuda| cuda.read(slot).map(drop));
    let launch = |slot: Slot<u64>| is_refused(&|cuda| cuda.run(&peak(slot.cast())));
    assert!(!clear(shared) && clear(own) && clear(past), "clear");
    assert!(!watch(shared) && watch(own) && watch(past), "watch");
    assert!(!write(own) && !write(shared) && write(past), "write");
    assert!(!read(own) && read(longer) && read(past), "read");
    assert!(launch(longer) && launch(past), "launch");
    assert!(!is_refused(&|cuda| cuda.run(&Program::default())), "launch of nothing");
}

/// Blocks that wait for each other, and would have to wait for those that find no room: as where others have
/// a part of the GPU.
#[test]
fn blocks_that_wait_for_each_other_and_do_not_all_fit_are_refused() {
    emulated::start();
    let case = conformance::cases("sample", Effort::Few).remove(0);
    let mut launch = case.op().launch(&Target::portable(4));
    let gpu = Gpu::open(0).unwrap();
    gpu.load(&launch).unwrap();
    launch.grid = [1000, 1, 1];
    let error = gpu.load(&launch).unwrap_err().to_string();
    assert!(error.contains("its 1000 blocks wait for each other, and 16 run at once"), "{error}");
}

#[test]
fn two_emulated_gpus_are_listed() {
    let (status, list, errors) = chaski(&["devices", "--emulate", "2"], &[]);
    assert_eq!(status, Some(0), "{errors}");
    assert!(list.contains("cuda:0  ") && list.contains("cuda:1  "), "{list}");
    assert!(!list.contains("cuda:2"), "{list}");
}
