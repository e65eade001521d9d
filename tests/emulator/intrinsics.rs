//! What every lane gets from every function of `kernels/lib/ptx*.cuh`, against tables made from the
//! formulas of the PTX ISA: on an emulated GPU, and with `CHASKI_TEST_GPU=1` on the first real one.

use std::collections::BTreeSet;

use chaski::executor::cuda::Gpu;
use chaski::kernel::ARCHS;
use chaski::kernel::nvrtc::{Nvrtc, Search, target_folder};
use cudarc::driver::{DevicePtr, sys};
use half::{bf16, f16};

use gpu::{SOURCE, compile, function, headers, run, run_on};

#[path = "../intrinsics/floats.rs"]
mod floats;
#[path = "../intrinsics/gpu.rs"]
mod gpu;
#[path = "../intrinsics/hopper.rs"]
mod hopper;

fn search() -> Search {
    Search::from_variables(&|name| std::env::var_os(name))
}

fn lanes(value: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(value).collect()
}

/// Values that differ in every byte from lane to lane.
fn distinct(lane: u32) -> u32 {
    (lane + 1).wrapping_mul(0x0305_0709)
}

/// Every function has a kernel here: whoever adds one adds its table.
#[test]
fn no_function_is_left_out() {
    let headers = headers();
    let ours = headers.iter().filter(|(name, _)| name.starts_with("lib/ptx"));
    let functions =
        ours.flat_map(|(_, text)| text.lines()).filter(|line| line.contains("__device__"));
    let name = |line: &str| line.split('(').next()?.rsplit([' ', '*']).next().map(str::to_owned);
    let names: BTreeSet<String> =
        functions.filter_map(name).map(|name| name.split('<').next().unwrap().to_owned()).collect();
    assert!(names.len() > 50, "{names:?}");
    for name in names {
        let used =
            [format!("{name}("), format!("{name}<")].iter().any(|call| SOURCE.contains(call));
        assert!(used, "lib/ptx*.cuh has {name}, and intrinsics.cu does not use it");
    }
}

#[test]
fn the_real_compiler_takes_them_for_every_architecture() {
    let folder = std::path::Path::new(env!("OUT_DIR"));
    let wheels = target_folder(folder).unwrap_or(folder).join("nvrtc");
    if let Some(nvrtc) = Nvrtc::find(&search(), Some(&wheels)).unwrap() {
        for arch in ARCHS.iter().filter(|arch| nvrtc.archs.contains(&arch.number())) {
            assert_eq!(compile(&nvrtc, arch.name)[..4], *b"\x7fELF");
        }
    }
}

#[test]
fn lanes_and_warps() {
    let expected: Vec<u32> = (0..96).flat_map(|thread| [thread % 32, thread / 32]).collect();
    assert_eq!(run_on("lanes_and_warps", 1, 96, &[0], 192), expected);
}

#[test]
fn shuffles() {
    let from = |lane| (lane * 7 + 3) % 32;
    let input = [lanes(distinct), lanes(from)].concat();
    let expected = lanes(|lane| distinct(from(lane)));
    assert_eq!(run("shfl_of_words", &input, 32), expected);
    assert_eq!(run("shfl_of_floats", &input, 32), expected);
    for mask in [1, 2, 4, 8, 16, 31] {
        let input = [lanes(distinct), vec![mask]].concat();
        let expected = lanes(|lane| distinct(lane ^ mask));
        assert_eq!(run("shfl_xor_of_words", &input, 32), expected, "{mask}");
        assert_eq!(run("shfl_xor_of_floats", &input, 32), expected, "{mask}");
    }
    for delta in [0, 1, 2, 5, 16, 31] {
        let input = [lanes(distinct), vec![delta]].concat();
        let expected = lanes(|lane| distinct(if lane < delta { lane } else { lane - delta }));
        assert_eq!(run("shfl_up_of_words", &input, 32), expected, "{delta}");
    }
}

#[test]
fn votes() {
    for (mask, any, all) in
        [(0, 0, 0), (u32::MAX, 1, 1), (1 << 31, 1, 0), (!1, 1, 0), (0xa5a5_0f3c, 1, 0)]
    {
        let expected = [[mask; 32], [any; 32], [all; 32]].concat();
        assert_eq!(run("votes", &lanes(|lane| mask >> lane & 1), 96), expected, "{mask:x}");
    }
}

/// By hand: the bytes of (low, high) are 0-3 and 4-7; a nibble with its highest bit set takes a byte's
/// sign.
#[test]
fn permuted_bytes() {
    let (low, high) = (0x83_42_c1_00, 0x07_f6_25_e4);
    for (selector, expected) in [
        (0x3210, 0x8342_c100),
        (0x7654, 0x07f6_25e4),
        (0x0123, 0x00c1_4283),
        (0x5410, 0x25e4_c100),
        (0x7632, 0x07f6_8342),
        (0x4444, 0xe4e4_e4e4),
        (0xba98, 0xff00_ff00),
        (0xfedc, 0x00ff_00ff),
        (0x8b3c, 0x00ff_83ff),
    ] {
        assert_eq!(run_on("permuted_bytes", 1, 1, &[low, high, selector], 1), [expected]);
    }
}

/// Lanes 2, 5, 8, ... do not read: zeros.
fn read_or_zero(word: usize) -> u32 {
    if word / 4 % 32 % 3 == 2 { 0 } else { distinct(word as u32) }
}

#[test]
fn loads_and_stores() {
    let input: Vec<u32> = (0..128).map(distinct).collect();
    let some: Vec<u32> = (0..128).map(read_or_zero).collect();
    assert_eq!(run("loads", &input, 128), input);
    assert_eq!(run("stream_loads", &input, 128), some);
    assert_eq!(run("loads_of_what_is_read_once", &input, 128), some);
    assert_eq!(run("prefetches", &input, 32), input[..32]);
}

#[test]
fn asynchronous_copies() {
    let input: Vec<u32> = (0..3 * 128).map(distinct).collect();
    let mut expected = input.clone();
    for (word, value) in expected.iter_mut().enumerate().skip(128).take(128) {
        *value = read_or_zero(word);
    }
    assert_eq!(run("asynchronous_copies", &input, 3 * 128), expected);
}

/// PTX ISA, ldmatrix: a matrix is eight rows of eight; lane l receives elements 2 (l % 4) and
/// 2 (l % 4) + 1 of row l / 4, or with .trans of column l / 4.
#[test]
fn matrices() {
    let element = |matrix: u32, row: u32, column: u32| 1000 * matrix + 10 * row + column;
    let pair = |low: u32, high: u32| low | high << 16;
    let rows: Vec<u32> = (0..32)
        .flat_map(|row| {
            let at = move |column| element(row / 8, row % 8, column);
            (0..4).map(move |word| pair(at(2 * word), at(2 * word + 1)))
        })
        .collect();
    for (name, count, transposed) in [
        ("four_matrices", 4, false),
        ("four_matrices_transposed", 4, true),
        ("two_matrices", 2, false),
        ("two_matrices_transposed", 2, true),
    ] {
        let register = |matrix| {
            lanes(|lane| {
                let (major, minor) = (lane / 4, 2 * (lane % 4));
                let at = |i| {
                    let (row, column) =
                        if transposed { (minor + i, major) } else { (major, minor + i) };
                    element(matrix, row, column)
                };
                pair(at(0), at(1))
            })
        };
        let expected: Vec<u32> = (0..count).flat_map(register).collect();
        assert_eq!(run(name, &rows, 32 * count as usize), expected, "{name}");
    }
}

/// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", by element i of a lane's
/// fragment; groupID is `lane / 4`, threadID_in_group `lane % 4`.
mod fragment {
    pub fn a(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane / 4, lane % 4);
        let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
        (row, thread * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
    }

    pub fn b(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane / 4, lane % 4);
        (thread * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, group)
    }

    pub fn d(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane / 4, lane % 4);
        (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
    }
}

fn products(name: &str, half: fn(f32) -> u16) {
    // Small integers: sums are exact, and no two elements of the result are alike by chance alone.
    let a = |(row, k): (usize, usize)| ((row * 31 + k * 17) % 13) as f32 - 6.0;
    let b = |(k, column): (usize, usize)| ((k * 11 + column * 29) % 17) as f32 - 8.0;
    let d = |(row, column): (usize, usize)| (100 * row + column) as f32;
    let pair = |low: f32, high: f32| u32::from(half(low)) | u32::from(half(high)) << 16;
    let mut input = Vec::new();
    for register in 0..4 {
        let of = |lane, i: usize| a(fragment::a(lane, 2 * register + i));
        input.extend((0..32).map(|lane| pair(of(lane, 0), of(lane, 1))));
    }
    for register in 0..2 {
        let of = |lane, i: usize| b(fragment::b(lane, 2 * register + i));
        input.extend((0..32).map(|lane| pair(of(lane, 0), of(lane, 1))));
    }
    for register in 0..4 {
        input.extend((0..32).map(|lane| d(fragment::d(lane, register)).to_bits()));
    }
    let result = run(name, &input, 128);
    for (at, got) in result.iter().enumerate() {
        let (row, column) = fragment::d(at % 32, at / 32);
        let dot: f32 = (0..16).map(|k| a((row, k)) * b((k, column))).sum();
        let expected = d((row, column)) + dot;
        assert_eq!(f32::from_bits(*got), expected, "{name}: row {row}, column {column}");
    }
}

#[test]
fn products_of_matrices() {
    products("products_of_f16", |v| f16::from_f32(v).to_bits());
    products("products_of_bf16", |v| bf16::from_f32(v).to_bits());
}

/// Three kernels that may overlap: each waits for the one before.
#[test]
fn programmatic_launch() {
    let (stream, before) = function("before");
    let (_, after) = function("after");
    let memory: Vec<_> = (0..4).map(|_| stream.clone_htod(&lanes(distinct)).unwrap()).collect();
    let address = |i: usize| memory[i].device_ptr(&stream).0;
    for (i, kernel) in [&before, &after, &after].into_iter().enumerate() {
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: 1,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: 32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: stream.cu_stream(),
            attrs: &mut attribute,
            // Older GPUs know no such launch.
            numAttrs: (Gpu::open(0).unwrap().capability.0 >= 9).into(),
        };
        let (mut from, mut to) = (address(i), address(i + 1));
        let mut arguments = [(&raw mut from).cast(), (&raw mut to).cast()];
        // SAFETY: the kernel takes two pointers to 32 words each, which live until the stream is done.
        let result = unsafe {
            sys::cuLaunchKernelEx(
                &config,
                kernel.cu_function(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        assert_eq!(result, sys::CUresult::CUDA_SUCCESS);
    }
    for (added, memory) in (0..4).zip(&memory) {
        assert_eq!(
            stream.clone_dtoh(memory).unwrap(),
            lanes(|lane| distinct(lane).wrapping_add(added))
        );
    }
}

/// Whatever the order, each finds what nobody else does.
#[test]
fn tickets() {
    for name in ["tickets_acq_rel", "tickets_release", "tickets_relaxed"] {
        let mut found = run_on(name, 8, 128, &[5], 1 + 1024);
        assert_eq!(found.remove(0), 5 * 1024, "{name}");
        found.sort_unstable();
        assert_eq!(found, (0..1024).map(|n| 5 * n).collect::<Vec<_>>(), "{name}");
    }
    // In 64 bits, by 5 * 2^30.
    let words = run_on("tickets_of_64_bits", 8, 128, &[5], 2 * (1 + 1024));
    let mut found: Vec<u64> = bytemuck::pod_collect_to_vec(&words);
    found.sort_unstable();
    assert_eq!(found, (0..=1024).map(|n| (5 * n) << 30).collect::<Vec<_>>());
    // Rounded to nearest, ties to even.
    let numbers = |lane: u32| [1.0 + lane as f32, 2f32.powi(lane as i32 - 26) * 1.5];
    let input: Vec<u32> = [0, 1].iter().flat_map(|i| lanes(|l| numbers(l)[*i].to_bits())).collect();
    let sums = lanes(|lane| (numbers(lane)[0] + numbers(lane)[1]).to_bits());
    assert_eq!(run("reductions", &input, 32), sums);
    let mut found = run_on("tickets_in_shared_memory", 1, 128, &[0, 1000, 2000, 3000], 4 + 128);
    let tickets = found.split_off(4);
    assert_eq!(found, [96, 1096, 2096, 3096]);
    for counter in 0..4 {
        let mut own: Vec<u32> = tickets.iter().skip(counter).step_by(4).copied().collect();
        own.sort_unstable();
        let first = 1000 * counter as u32;
        assert_eq!(own, (0..32).map(|n| first + 3 * n).collect::<Vec<_>>());
    }
}

#[test]
fn what_a_block_is_told() {
    for name in ["told_by_a_store", "told_by_an_addition", "told_across_a_fence"] {
        let heard = run_on(name, 2, 32, &[77], 34);
        assert_eq!(heard, [[1].as_slice(), &[77; 33]].concat(), "{name}");
    }
    let heard = run_on("told_across_a_system", 2, 32, &[77], 8 + 32);
    assert_eq!(heard[..8], [0, 77, 0, 0, 77, 78, 79, 80]);
    assert_eq!(heard[8..], [77 + (77 + 78 + 79 + 80) + 78; 32]);
    let expected: Vec<u32> = (0..32).flat_map(|lane| [!lane, distinct(lane)]).collect();
    let heard = run_on("told_in_wide_words", 2, 32, &lanes(distinct), 128);
    assert_eq!(heard, [&expected[..], &expected].concat());
    assert_eq!(run("when_and_where", &[0], 64), [1; 64]);
    let expected: Vec<u32> = (0..32).flat_map(|lane| [lane, distinct(lane)]).collect();
    assert_eq!(run("told_to_the_host", &lanes(distinct), 64), expected);
}
