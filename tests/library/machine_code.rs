//! What the compiler made of the kernels: the machine code has what they are written for. No GPU is
//! needed, NVIDIA's disassembler is: pip fetches it.

mod sass;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::OnceLock;

use chaski::kernel::{KERNELS, Kernel};

use sass::{Function, Instruction, disassemble, disassembler};

/// The disassembler takes half a second to start: not all architectures, but all generations of
/// instruction sets. That nothing else has local memory, the compiler's own numbers tell.
const DISASSEMBLED: [&str; 3] = ["sm_80", "sm_90a", "sm_120a"];

/// The kernels that multiply one token's activations with weights.
const GEMV: [&str; 4] = ["norm_qkv", "norm_gate_up", "norm_head", "project"];

/// A kernel's functions for an architecture, by name.
type Code = (&'static Kernel, &'static str, BTreeMap<String, Function>);

/// Every kernel's functions, disassembled once.
fn code() -> &'static [Code] {
    static CODE: OnceLock<Vec<Code>> = OnceLock::new();
    CODE.get_or_init(|| {
        let Some(nvdisasm) = disassembler() else { return Vec::new() };
        let builds = KERNELS.iter().flat_map(|kernel| {
            let builds = kernel.builds.iter();
            builds
                .filter(|build| DISASSEMBLED.contains(&build.arch.name))
                .map(move |build| (kernel, build))
        });
        let builds: Vec<_> = builds.collect();
        let nvdisasm = &nvdisasm;
        std::thread::scope(|scope| {
            let halves = builds.chunks(builds.len().div_ceil(2).max(1)).map(|half| {
                scope.spawn(move || {
                    let functions = half.iter().map(|(kernel, build)| {
                        (*kernel, build.arch.name, disassemble(nvdisasm, build.cubin))
                    });
                    functions.collect::<Vec<_>>()
                })
            });
            let halves: Vec<_> = halves.collect();
            halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
        })
    })
}

/// Calls `check(message, function)` for every function of these kernels on architectures from
/// `oldest` on.
fn for_each(kernels: &[&str], oldest: u32, check: impl Fn(&str, &Function)) {
    for (kernel, arch, functions) in code() {
        let number: u32 = arch.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        if number < oldest || !kernels.contains(&kernel.name) {
            continue;
        }
        for export in kernel.exports {
            let at = format!("{} on {arch}", export.name);
            check(&at, functions.get(export.name).unwrap_or_else(|| panic!("{at}: no code")));
        }
    }
}

fn position(function: &Function, wanted: &str) -> Option<usize> {
    function.iter().position(|instruction| instruction.is(wanted))
}

/// The instructions before the wait for the kernel before (`griddepcontrol.wait`).
fn before_wait<'f>(at: &str, function: &'f Function) -> &'f [Instruction] {
    &function[..position(function, "ACQBULK").unwrap_or_else(|| panic!("{at}: no wait"))]
}

/// 16-byte loads that pass by the L1 cache and are asked for before the first of them is used.
fn loads_in_flight(function: &Function) -> usize {
    let (mut pending, mut count) = (BTreeSet::new(), 0);
    for instruction in function {
        if instruction.reads().any(|register| pending.contains(&register)) {
            break;
        }
        if instruction.is("LDG.NA.128") {
            count += 1;
            pending.extend(instruction.first_written().into_iter().flat_map(|r| r..r + 4));
        }
    }
    count
}

#[test]
fn nothing_is_in_local_memory() {
    for (_, arch, functions) in code() {
        for (name, function) in functions {
            for local in ["LDL", "STL"] {
                assert_eq!(position(function, local), None, "{name} on {arch}: {local}");
            }
        }
    }
}

#[test]
fn products_of_many_tokens_are_on_the_tensor_cores() {
    for_each(&["matmul", "gate_up_swiglu", "attend_prefill"], 80, |at, function| {
        for wanted in ["HMMA", "LDSM", "LDGSTS.128"] {
            assert!(position(function, wanted).is_some(), "{at}: no {wanted}");
        }
    });
    for_each(&["attend_decode"], 80, |at, function| {
        assert!(position(function, "HMMA").is_some(), "{at}: no HMMA");
    });
}

/// A slice is four products of 64 x 256 x 16 or 64 x 128 x 16 for a box of tokens and, of weights, two
/// or one; four or two where they are of two matrices. Nothing is between the products, and one wait
/// after them; the loop of each shape of tile is there once or more. Registers are the launch's share of
/// 65,536, then go from the warpgroup that asks for boxes to the two with up to 128 sums a thread.
#[test]
fn hopper_has_its_own_products() {
    let kernels = ["matmul_hopper", "gate_up_swiglu_hopper"];
    for_each(&kernels, 90, |at, function| {
        let count = |wanted| function.iter().filter(|each| each.is(wanted)).count();
        assert_eq!(count("HMMA") + count("LDSM") + count("LDGSTS"), 0, "{at}");
        let boxes: &[(&str, usize)] = match at.starts_with("matmul") {
            true => &[("HGMMA.64x256x16.F32", 3), ("HGMMA.64x128x16.F32", 2)],
            false => &[("HGMMA.64x256x16.F32", 5), ("HGMMA.64x128x16.F32", 3)],
        };
        let (shapes, slices) = (boxes.len(), count("HGMMA") / 4);
        for (product, _) in boxes {
            assert!(count(product) >= 4 && count(product) % 4 == 0, "{at}: {product}");
        }
        assert_eq!(
            boxes.iter().map(|(product, _)| count(product)).sum::<usize>(),
            4 * slices,
            "{at}"
        );
        assert_eq!(
            count("UTMALDG.2D"),
            boxes.iter().map(|(_, boxes)| boxes).sum::<usize>(),
            "{at}"
        );
        assert_eq!(count("WARPGROUP.ARRIVE"), slices, "{at}: a fence a slice");
        assert_eq!(count("WARPGROUP.DEPBAR"), slices + shapes, "{at}: one more at the end");
        let registers = [count("USETMAXREG.DEALLOC"), count("USETMAXREG.TRY_ALLOC")];
        assert_eq!(registers, [shapes; 2], "{at}");
    });
    let builds = kernels.iter().flat_map(|name| Kernel::find(name).unwrap().builds);
    for resources in builds.flat_map(|build| build.resources) {
        assert_eq!((resources.registers, resources.spill_bytes), (168, 0), "{}", resources.export);
    }
}

/// What tells how products, barriers and exponentials follow each other: `HGMMA`, `SYNC`, `DEPBAR 0x1`.
fn mark(instruction: &Instruction) -> Option<String> {
    let Instruction { words, operands, .. } = instruction;
    match words[0].as_str() {
        "HGMMA" | "MUFU" => Some(words[0].clone()),
        "BAR" => Some(words[1].clone()),
        "WARPGROUP" => Some(format!("{} {}", words[1], operands.last()?)),
        _ => None,
    }
}

/// A step begins the products with K and with V in one go, in its turn; softmax comes while those with V
/// are under way, and is over before they are waited for.
#[test]
fn attention_on_hopper_hides_softmax_behind_products() {
    for_each(&["attend_prefill_hopper"], 90, |at, function| {
        let count = |wanted: &str| function.iter().filter(|each| each.is(wanted)).count();
        assert_eq!(count("HMMA") + count("LDSM") + count("LDGSTS"), 0, "{at}");
        let (columns, slices) = if at.contains("d128") { (128, 8) } else { (64, 4) };
        // The first scores, the loop's, the last values.
        assert_eq!(count("HGMMA"), 2 * slices + 2 * 8, "{at}");
        assert_eq!(count(&format!("HGMMA.64x{columns}x16.F32")) % 8, 0, "{at}");
        assert_eq!(count("UTMALDG.2D") % (columns / 64), 0, "{at}");
        assert_eq!([count("USETMAXREG.DEALLOC"), count("USETMAXREG.TRY_ALLOC")], [1, 1], "{at}");
        let mut order: Vec<String> = function.iter().filter_map(mark).collect();
        order.dedup();
        let step = ["DEPBAR 0x0", "SYNC", "ARRIVE ", "HGMMA", "ARV", "DEPBAR 0x1", "MUFU"];
        assert!(order.windows(step.len()).any(|window| window == step), "{at}: {order:?}");
    });
    let builds = Kernel::find("attend_prefill_hopper").unwrap().builds;
    for resources in builds.iter().flat_map(|build| build.resources) {
        assert_eq!((resources.registers, resources.spill_bytes), (168, 0), "{}", resources.export);
    }
}

/// The innermost loop with `count` 16-byte loads that pass by the L1 cache.
fn streaming_loop<'f>(at: &str, function: &'f Function, count: usize) -> &'f [Instruction] {
    let loads = |body: &[Instruction]| body.iter().filter(|i| i.is("LDG.NA.128")).count();
    let jumps = function.iter().enumerate().filter(|(_, instruction)| instruction.is("BRA"));
    let loops = jumps.filter_map(|(end, jump)| {
        let target = jump.operands.last()?.trim_start_matches("`(").trim_end_matches(')');
        let begins = |instruction: &Instruction| instruction.labels.iter().any(|l| l == target);
        let begin = function[..=end].iter().position(begins)?;
        Some(&function[begin..=end]).filter(|body| loads(body) == count)
    });
    loops.min_by_key(|body| body.len()).unwrap_or_else(|| panic!("{at}: no loop"))
}

/// How many of a loop's 16-byte loads are still in flight each time that some are waited for. A
/// scoreboard counts loads; who waits for it waits for all that it counts.
fn in_flight_at_waits(body: &[Instruction]) -> Vec<usize> {
    let (mut counts, mut seen) = ([0usize; 6], Vec::new());
    for round in 0..2 {
        for instruction in body {
            let is_waited = |i: usize| instruction.waits >> i & 1 == 1;
            let waited: usize = (0..6).filter(|i| is_waited(*i)).map(|i| counts[i]).sum();
            (0..6).filter(|i| is_waited(*i)).for_each(|i| counts[i] = 0);
            if waited > 0 && round == 1 {
                seen.push(counts.iter().sum());
            }
            if let Some(scoreboard) =
                instruction.counted_by.filter(|_| instruction.is("LDG.NA.128"))
            {
                counts[scoreboard as usize] += 1;
            }
        }
    }
    seen
}

/// Half a step is 8 loads of 16 bytes by 256 threads: 32 KiB an SM. The first half is asked for before
/// the loop; in it, each half is waited for when the other is in flight. (GPUs before Hopper ask for the
/// second half when the first is there: the compiler has nothing there that it moves no loads across.)
#[test]
fn weights_are_on_their_way_in_16_byte_pieces() {
    for_each(&GEMV, 80, |at, function| {
        let is_old = at.ends_with("sm_80");
        assert_eq!(loads_in_flight(function), if is_old { 8 } else { 16 }, "{at}");
        let loads = function.iter().filter(|instruction| instruction.is("LDG.NA.128"));
        assert_eq!(loads.count(), 24, "{at}: half a step before the loop and one in it");
        let body = streaming_loop(at, function, 16);
        let left = in_flight_at_waits(body);
        let most = left.iter().max();
        assert!(left.len() >= 2 && most >= Some(&8), "{at}: {left:?}");
        if !is_old {
            assert_eq!(left.iter().min(), Some(&8), "{at}: {left:?}");
        }
    });
    // Keys and values of a tile, 64 KiB with one block of 128 threads and the prefetched tile.
    for_each(&["attend_decode"], 80, |at, function| {
        let wanted = if at.contains("d128") { 16 } else { 8 };
        assert_eq!(loads_in_flight(function), wanted, "{at}");
    });
}

/// Programmatic launch: weights come before the wait for the kernel before, activations after it.
#[test]
fn before_the_wait_only_weights_are_read() {
    for_each(&GEMV, 90, |at, function| {
        let early = before_wait(at, function);
        let weights = early.iter().filter(|instruction| instruction.is("LDG.NA.128.CONSTANT"));
        assert_eq!(weights.count(), 8, "{at}");
        // Of half a step of both rows: 32 lanes a line of 128 bytes each, or two lanes half a row.
        let lines = early.iter().filter(|instruction| instruction.is("CCTL.PF2")).count();
        let rows = early.iter().filter(|instruction| instruction.is("UBLKPF")).count();
        assert_eq!((lines, rows), (1, 1), "{at}: prefetches");
    });
    for_each(&["attend_decode"], 90, |at, function| {
        let early = before_wait(at, function);
        let lines = early.iter().filter(|instruction| instruction.is("CCTL.PF2")).count();
        assert_eq!(lines, if at.contains("d128") { 4 } else { 2 }, "{at}: two tiles");
        // Sequence and position, by which it guesses what to prefetch.
        assert_eq!(early.iter().filter(|i| i.is("LDG")).count(), 2, "{at}");
    });
    let all: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
    for_each(&all, 90, |at, function| {
        for instruction in before_wait(at, function) {
            // The norm's go to shared memory.
            let norm = at.starts_with("norm") && instruction.is("LDGSTS.BYPASS.128");
            let weights = instruction.is("LDG.NA.CONSTANT") || norm;
            let hint = at.starts_with("attend_decode") && instruction.is("LDG");
            let touches = ["LDG", "STG", "LD", "ST", "ATOM", "ATOMG", "RED", "REDG", "LDGSTS"];
            let touches = touches.iter().any(|word| instruction.words[0] == *word);
            assert!(!touches || weights || hint, "{at}: {}", instruction.words.join("."));
        }
    });
}

/// Kernels with weights of their own let the next begin only when theirs have been asked for, so
/// that its weights do not compete with them; the others let it begin at once, where they may.
#[test]
fn the_next_kernel_begins_when_memory_is_free_for_it() {
    let order = |at: &str, function: &Function| {
        let launch = position(function, "PREEXIT").unwrap_or_else(|| panic!("{at}: no launch"));
        (before_wait(at, function).len(), launch)
    };
    // One before the wait, for `Trigger::First`.
    for_each(&GEMV, 90, |at, function| {
        let launches = |code: &[Instruction]| code.iter().filter(|i| i.is("PREEXIT")).count();
        let (early, body) = (before_wait(at, function), streaming_loop(at, function, 16));
        assert_eq!((launches(early), launches(body), launches(function)), (1, 4, 5), "{at}");
    });
    for_each(&["embed", "sample", "attend_decode"], 90, |at, function| {
        let (wait, launch) = order(at, function);
        assert!(launch < wait, "{at}");
    });
}
