//! Ordinary CUDA on the emulated driver: what every construct gives, plain and under both sanitizers,
//! who objects to it with a mistake, and what is refused by its name.

use std::fs;
use std::path::Path;

use chaski::executor::cuda::Sanitizer;
use chaski::executor::cuda::emulator::{self, Emulation};
use chaski::kernel::CudaFile;
use chaski::kernel::nvrtc::{CodeFormat, Nvrtc, Search, target_folder};

use crate::driver::{DESCENDING, FOLDER, Variables, expect_caught, line_of, run};

/// Of processor time, in which every kernel here ends.
const LIMIT: (&str, &str) = ("CHASKI_EMULATE_LIMIT_MS", "20000");
const SHUFFLED: (&str, &str) = ("CHASKI_EMULATE_ORDER", "shuffled:3");

/// A kernel, its launch, and what each word of its output is.
struct Case {
    file: &'static str,
    name: &'static str,
    /// Grid, block, bytes of shared memory, words.
    launch: &'static str,
    words: fn(u32) -> u32,
}

const fn case(name: &'static str, words: fn(u32) -> u32) -> Case {
    Case { file: "dialect.cu", name, launch: "1:64:0:64", words }
}

const fn of_groups(name: &'static str, words: fn(u32) -> u32) -> Case {
    Case { file: "groups.cu", ..case(name, words) }
}

const fn launched(launch: &'static str, case: Case) -> Case {
    Case { launch, ..case }
}

const fn counted(name: &'static str, words: fn(u32) -> u32) -> Case {
    Case { file: "arithmetic.cu", launch: "1:1:0:2", ..case(name, words) }
}

const CASES: &[Case] = &[
    case("shared_array", |i| 63 - i),
    case("shared_in_templates", |i| (i ^ 1) + 1),
    case("shared_in_loop", |i| 3 * ((i + 32) % 64) + 3),
    case("shared_of_file", |i| (i + 32) % 64),
    launched("1:64:256:64", case("shared_dynamic", |i| i ^ 3)),
    case("shared_struct", |i| 2 * (63 - i) + 2),
    case("constants", |i| [2, 3, 5, 7][i as usize % 4] * i),
    case("variables", |i| 2 * i + 1),
    case("counting_barriers", |_| 5100),
    case("lanes_in_step", |i| i ^ 1),
    case("half_in_step", |i| i ^ if i % 32 < 16 { 3 } else { 5 }),
    case("shuffles", |i| if i % 32 < 8 { 10 } else { 9 }),
    case("votes", |_| 9),
    case("active_lanes", |i| u32::from(i % 3 == 0)),
    launched(
        "1:64:0:64",
        case("atomics", |i| {
            let words = [2016, 63, 3, 255, 0, 4, !63, 192, 63, 7, 128, 64, 5, 32, 16, 1];
            words.get(i as usize).copied().unwrap_or(0)
        }),
    ),
    launched("4:64:0:64", case("fences", |_| 10)),
    launched("4:64:0:64", case("locks", |i| if i == 0 { 10 } else { 0 })),
    launched(
        "2:64:0:128",
        case("flags", |i| match i {
            0..64 => i,
            64 => 1,
            _ => 0,
        }),
    ),
    case("cache_hints", |i| i + i % 16 * 4 + 3),
    launched("2x1x2:4x8x2:0:256", case("dimensions", |i| i % 64 + i / 64 * 1000)),
    case("volatiles", |i| 32 * (i / 32 + 1)),
    case("prints", |_| 1),
    case("asserts", |_| 1),
    counted("bits", |_| 40),
    counted("numbers", |_| 52),
    of_groups("halves", |_| 15),
    of_groups("brains", |_| 7),
    of_groups("groups", |_| 14),
];

fn spec(case: &Case, name: &str) -> String {
    format!("{}:{name}:{}", case.file, case.launch)
}

fn expect_results(sanitizer: Sanitizer, cases: &[&Case], variables: Variables) {
    let specs: Vec<_> = cases.iter().map(|case| spec(case, case.name)).collect();
    let specs: Vec<_> = specs.iter().map(String::as_str).collect();
    let variables = [variables, &[LIMIT]].concat();
    let (right, said) = run(sanitizer, &specs, &variables);
    let name = sanitizer.name();
    assert!(right, "{name} {variables:?}: {said}");
    for case in cases {
        let begin = format!("{} left ", case.name);
        let line = said.lines().find_map(|line| line.strip_prefix(&begin));
        let line = line.unwrap_or_else(|| panic!("{name} {}: {said}", case.name));
        let words: Vec<u32> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        let expected: Vec<u32> = (0..words.len() as u32).map(case.words).collect();
        assert_eq!(words, expected, "{name} {} {variables:?}", case.name);
    }
    if cases.iter().any(|case| case.name == "prints") {
        assert!(said.contains("thread 3 of prints: 2.50\n"), "{said}");
    }
}

fn all() -> Vec<&'static Case> {
    CASES.iter().collect()
}

#[test]
fn every_construct_gives_what_it_should_under_every_schedule() {
    for variables in [&[][..], &[DESCENDING], &[SHUFFLED, ("CHASKI_EMULATE_BLOCKS", "3")]] {
        expect_results(Sanitizer::None, &all(), variables);
    }
}

#[test]
fn every_construct_is_right_under_address_sanitizer() {
    expect_results(Sanitizer::Address, &all(), &[]);
}

#[test]
fn every_construct_is_right_under_thread_sanitizer() {
    expect_results(Sanitizer::Thread, &all(), &[DESCENDING]);
}

/// No construct is without a kernel that has a mistake, and none of those is forgotten.
#[test]
fn every_mistake_is_planted_and_looked_for() {
    let this = include_str!("dialect.rs");
    for file in FILES {
        let source = fs::read_to_string(format!("{FOLDER}/kernels/{file}")).unwrap();
        let names = source.split("KERNEL(").skip(2).map(|rest| rest.split(')').next().unwrap());
        let bugs: Vec<_> = names.filter(|name| name.ends_with("_bug")).collect();
        assert!(!bugs.is_empty());
        for bug in bugs {
            assert!(this.contains(&format!("\"{bug}\"")), "{bug} is not looked for");
        }
    }
}

const FILES: [&str; 3] = ["dialect.cu", "groups.cu", "arithmetic.cu"];

fn file_of(bug: &str) -> &'static str {
    let has = |file: &&str| {
        let source = fs::read_to_string(format!("{FOLDER}/kernels/{file}")).unwrap();
        source.contains(&format!("KERNEL({bug})"))
    };
    FILES.into_iter().find(has).unwrap()
}

/// That a mistake is told, with its line where there is one.
fn caught(sanitizer: Sanitizer, launch: &str, bug: &str, variables: Variables, words: &[&str]) {
    let file = file_of(bug);
    let variables = [variables, &[LIMIT, ("CHASKI_EMULATE_PATIENCE_MS", "50")]].concat();
    expect_caught(sanitizer, &format!("{file}:{bug}:{launch}"), &variables, words);
}

/// That it leaves words which the kernel without it does not.
fn wrong_words(launch: &str, bug: &str, variables: Variables, words: fn(u32) -> u32) {
    let (right, said) = run(Sanitizer::None, &[&format!("dialect.cu:{bug}:{launch}")], variables);
    assert!(right, "{bug}: {said}");
    let line = said.lines().find_map(|line| line.strip_prefix(&format!("{bug} left "))).unwrap();
    assert!((0..).zip(line.split(' ')).any(|(i, word)| word != words(i).to_string()), "{line}");
}

const ONE: &str = "1:64:0:64";

#[test]
fn a_plain_run_tells_what_it_must() {
    let plain = |launch, bug, words: &[&str]| caught(Sanitizer::None, launch, bug, &[], words);
    let at = |text| line_of("dialect.cu", text);
    plain(ONE, "counting_barriers_bug", &[&at("if (threadIdx.x < 40)"), "divergent"]);
    plain(
        ONE,
        "half_in_step_bug",
        &[&at("if (LANE < 16) __syncwarp"), "without the calling lane, 0"],
    );
    plain(
        ONE,
        "shuffles_bug",
        &[&at("v += __shfl_down_sync(0xffffffff, v, 8)"), "__shfl_down_sync"],
    );
    plain(ONE, "shuffles_other_bug", &[&at("v = __shfl_sync(0xffff"), "reads lane 20"]);
    plain(ONE, "votes_bug", &[&at("__ballot_sync(0x00000007, 1)"), "without the calling lane"]);
    caught(Sanitizer::None, ONE, "active_lanes_bug", &[], &["reads lane 30 of warp 0"]);
    plain("2:64:0:64", "locks_bug", &[&at("while (atomicCAS"), "block 1: deadlock: thread 0"]);
    plain("2:64:0:128", "flags_bug", &[&at("while (*flag == 0)"), "block 0: deadlock: thread 0"]);
    plain(ONE, "cache_hints_bug", &[&at("(in + 1)"), "misaligned access of 16 bytes"]);
    plain(
        ONE,
        "asserts_bug",
        &[&at("assert(in[threadIdx.x] != 9)"), "thread 9", "in[threadIdx.x] != 9"],
    );
    plain(ONE, "traps_bug", &[&at("__trap()"), "thread 40: __trap"]);
    // Memory of a block is NaN, or all ones, until it is written.
    wrong_words(ONE, "shared_array_bug", &[], |i| 63 - i);
    wrong_words(ONE, "shared_of_file_bug", &[], |i| (i + 32) % 64);
    wrong_words(ONE, "shared_in_loop_bug", &[DESCENDING], |i| 3 * ((i + 32) % 64) + 3);
    wrong_words(ONE, "lanes_in_step_bug", &[], |i| i ^ 1);
    wrong_words(ONE, "volatiles_bug", &[], |i| 32 * (i / 32 + 1));
    wrong_words(ONE, "shared_struct_bug", &[], |i| if i == 0 { 0 } else { i });
}

#[test]
fn address_sanitizer_tells_what_it_must() {
    let caught = |launch, bug, at: &str| {
        let at = line_of(file_of(bug), at);
        caught(Sanitizer::Address, launch, bug, &[], &[&at]);
    };
    caught(ONE, "shared_in_templates_bug", "words[threadIdx.x + 2]");
    caught("1:64:256:64", "shared_dynamic_bug", "dynamic[threadIdx.x + 1] =");
    caught(ONE, "constants_bug", "(threadIdx.x == 63)");
    caught(ONE, "brains_bug", "__low2float(pairs[");
    caught("1:1:0:2", "bits_bug", "1u << (in[0] + 32)");
    caught("1:1:0:2", "numbers_bug", "7 / int(in[0])");
}

#[test]
fn thread_sanitizer_tells_what_it_must() {
    let race = |launch, bug, first, second| {
        let file = file_of(bug);
        let lines = [line_of(file, first), line_of(file, second)];
        caught(Sanitizer::Thread, launch, bug, &[], &["data race", &lines[0], &lines[1]]);
    };
    race(
        ONE,
        "shared_array_bug",
        "part[threadIdx.x] = in[threadIdx.x];",
        "part[N - 1 - threadIdx.x]",
    );
    race(ONE, "shared_in_loop_bug", "in[threadIdx.x] + round", "sum += part");
    race(ONE, "shared_of_file_bug", "of_file[threadIdx.x] = in", "of_file[(threadIdx.x + 32)");
    race("2:64:0:64", "variables_bug", "float(blockIdx.x)", "float(blockIdx.x)");
    race(ONE, "atomics_bug", "sum += in[threadIdx.x];", "sum += in[threadIdx.x];");
    race("4:64:0:64", "fences_bug", "float(in[blockIdx.x] + 1)", "sum += uint32_t(table[block])");
    race(ONE, "halves_bug", "part[threadIdx.x] = __float2half", "__half2int_rn(part[");
    race(
        ONE,
        "groups_bug",
        "part[threadIdx.x] = in[threadIdx.x]; // for the next tile",
        "part[threadIdx.x ^ 8]",
    );
    let line = "in[thread] + threadIdx.z";
    race("1:4x8x2:0:64", "dimensions_bug", line, line);
    let words = ["data race", "lanes_in_step_bug"];
    caught(Sanitizer::Thread, ONE, "lanes_in_step_bug", &[], &words);
}

/// NVIDIA's compiler takes the same files; of its headers those are asked for that are not there.
#[test]
fn the_real_compiler_takes_the_same_files() {
    let out = Path::new(env!("OUT_DIR"));
    let wheels = target_folder(out).unwrap_or(out).join("nvrtc");
    let search = Search::from_variables(&|name| std::env::var_os(name));
    let Some(nvrtc) = Nvrtc::find(&search, Some(&wheels)).unwrap() else { return };
    let has_headers = !nvrtc.header_folders().is_empty();
    let textbook = format!("{FOLDER}/../kernels/textbook");
    for (folder, name, needs_headers) in [
        (FOLDER, "kernels/dialect.cu", false),
        (FOLDER, "kernels/arithmetic.cu", false),
        (FOLDER, "kernels/groups.cu", true),
        (&textbook, "product.cu", false),
        (&textbook, "scan.cu", false),
        (&textbook, "transpose.cu", false),
        (&textbook, "histogram.cu", false),
        (&textbook, "softmax.cu", true),
    ] {
        let file = CudaFile::read(&Path::new(folder).join(name)).unwrap();
        for arch in ["sm_80", "sm_90a"] {
            match file.compile(&nvrtc, arch, (CodeFormat::Cubin, &[]), false) {
                Ok(made) => assert_eq!(made.code[..4], *b"\x7fELF"),
                Err(error) => {
                    let asks = "pip install nvidia-cuda-runtime nvidia-cuda-cccl";
                    let is_known = needs_headers && !has_headers;
                    assert!(is_known && error.to_string().contains(asks), "{name}: {error}");
                }
            }
        }
    }
    let file = CudaFile::read(&Path::new(&textbook).join("reduction.cu")).unwrap();
    let entries = ["reduction<float,128>".to_owned()];
    let made = file.compile(&nvrtc, "sm_90a", (CodeFormat::Cubin, &entries), false).unwrap();
    assert!(made.symbols[0].starts_with("_Z9reduction"), "{:?}", made.symbols);
}

/// What no emulated GPU does is refused by its name, with its line and what to write instead.
#[test]
fn what_is_not_there_is_refused_by_name() {
    let emulation = Emulation::from_variables(1, std::env::vars_os()).unwrap();
    let folder = emulator::build(&emulation, &|_| ()).unwrap();
    let nvrtc = Nvrtc::load(&Path::new(&folder).join("libnvrtc.so.13")).unwrap();
    let log = |line: &str| {
        let source = format!("extern \"C\" __global__ void k(float* x) {{\n{line}\n}}\n");
        let options = ["--gpu-architecture=sm_90a".to_owned()];
        nvrtc.compile("mine.cu", &source, &[], &options, CodeFormat::Cubin).map(drop).unwrap_err()
    };
    for (line, name) in [
        ("asm volatile(\"membar.gl;\");", "asm: PTX"),
        ("k<<<1, 32>>>(x);", "<<<: is the host's"),
        ("cudaDeviceSynchronize();", "cudaDeviceSynchronize: is the host's"),
        ("auto g = cooperative_groups::this_grid();", "this_grid: a grid has no barrier"),
        ("x[0] = tex2D<float>(t, 0, 0);", "tex2D: there are no textures"),
        ("x[0] = __vadd4(1, 2);", "__vadd4: bytes and halves"),
        ("__shared__ float part[2] = {0};", "__shared__: has no initial value"),
        ("__shared__ float (*part)[2];", "this declaration of __shared__ is not understood"),
        ("x[0] = __no_such_function(1);", "__no_such_function"),
        (
            "volatile float* s = x; int i = threadIdx.x; s[i] += s[i + 16]; s[i] += s[i + 8];",
            "s: lanes of a warp run in step no more: write __syncwarp()",
        ),
        (
            "volatile float* s = x; for (int k = 8; k > 0; k /= 2) s[0] += s[k];",
            "s: lanes of a warp run in step no more: write __syncwarp()",
        ),
    ] {
        let log = log(line);
        assert!(log.starts_with("mine.cu:2: error: ") && log.contains(name), "{line}: {log}");
        assert_eq!(log.lines().count(), 1, "{log}");
    }
}
