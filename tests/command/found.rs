//! CUDA files as strangers write them: they run as they are, right under every checker, or one clear sentence
//! says why they do not, on an emulated GPU and by the real compiler.

use std::fs;

use crate::process::chaski;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/found");

/// File, entry, grid and block, arguments, and what its outputs are said to be.
type Found = (&'static str, &'static str, [&'static str; 2], &'static [&'static str], &'static str);

const RUN: &[Found] = &[
    (
        "macros",
        "unary_relu_float",
        ["2", "64"],
        &["in=f32[200]:iota", "out=f32[200]", "numel=200"],
        "out f32[200]: 0 to 199, mean 99.5",
    ),
    (
        "macros",
        "binary_mul",
        ["2", "64"],
        &["a=f32[200]:iota", "b=f32[200]:iota", "c=f32[200]", "n=200"],
        "c f32[200]: 0 to 39601, mean 13233.5",
    ),
    (
        "templates",
        "block_reduce<float, ops::Sum, 128>",
        ["2", "128"],
        &["input=f32[1000]:iota", "output=f32[2]", "n=1000"],
        "output f32[2]: 229120 to 270380",
    ),
    (
        "templates",
        "block_reduce<float, ops::Max, 64>",
        ["2", "64"],
        &["input=f32[1000]:iota", "output=f32[2]", "n=1000"],
        "output f32[2]: 959 to 999",
    ),
    (
        "particles",
        "bodyForce",
        ["2", "64"],
        &["p=f32[512]:ones", "v=f32[512]:zeros", "dt=0.1", "n=128"],
        "v f32[512]: 0 to 0, mean 0",
    ),
    (
        "particles",
        "integrate",
        ["2", "64"],
        &["bodies=f32[600]:ones", "dt=0.5", "n=100"],
        "bodies f32[600]: 1 to 1.5, mean 1.25",
    ),
    (
        "compaction",
        "filter_k",
        ["1", "32"],
        &["dst=i32[32]:zeros", "nres=i32[1]:zeros", "src=i32[32]:ones", "n=32"],
        "nres i32[1]: 32 to 32",
    ),
    (
        "compaction",
        "filter_ballot",
        ["2", "64"],
        &["dst=i32[128]:zeros", "nres=i32[1]:zeros", "src=i32[100]:ones", "n=100"],
        "dst i32[128]: 0 to 1, mean 0.78125",
    ),
    (
        "halves",
        "bias_gelu",
        ["2", "64"],
        &["x=f16[8,32]:zeros", "bias=f16[32]:zeros", "m=8", "n=16"],
        "x f16[8, 32]: 0 to 0",
    ),
    (
        "halves",
        "dot_h",
        ["1", "32"],
        &["a=f16[64]:iota", "b=f16[64]:ones", "out=f32[1]", "n=64"],
        "out f32[1]: 2016 to 2016",
    ),
    (
        "lambdas",
        "polynomial",
        ["1", "32"],
        &["x=f32[5]:iota", "y=f32[5]", "n=5", "mode=1"],
        "y f32[5]: 1 to 57, mean 23",
    ),
    (
        "double_atomics",
        "sum_and_max",
        ["2", "64"],
        &["values=f64[100]:iota", "sum=f64[1]:zeros", "largest=f32[1]:zeros", "n=100"],
        "sum f64[1]: 4950 to 4950",
    ),
    (
        "convolution",
        "convolutionRowsKernel",
        ["2,2", "16,4"],
        &[
            "d_Dst=f32[8,64]",
            "d_Src=f32[8,64]:ones",
            "imageW=64",
            "imageH=8",
            "pitch=64",
            "c_Kernel=f32[7]:ones",
        ],
        "d_Dst f32[8, 64]: 4 to 7, mean 6.8125",
    ),
    (
        "tiles",
        "online_softmax",
        ["2", "64"],
        &["x=f32[4,50]:ones", "y=f32[4,50]", "rows=4", "V=50"],
        "mean 0.020000",
    ),
    (
        "tiles",
        "prefix",
        ["1", "64"],
        &["in=i32[64]:ones", "out=i32[65]:zeros"],
        "out i32[65]: 1 to 16, mean 8.430769",
    ),
];

fn run(file: &str, entry: &str, launch: &[&str]) -> (Option<i32>, String, String) {
    let ask = ["--emulate", "1", "kernels", "run", file, "--sanitize", "all"];
    let entry: &[&str] = if entry.is_empty() { &[] } else { &["--entry", entry] };
    chaski(&[&ask[..], entry, launch].concat(), &[])
}

fn path(name: &str) -> String {
    format!("{FOLDER}/{name}.cu")
}

#[test]
fn what_strangers_write_runs_as_it_is() {
    for (name, entry, [grid, block], arguments, told) in RUN {
        let mut launch = vec!["--grid", grid, "--block", block];
        launch.extend(arguments.iter().flat_map(|argument| ["--arg", argument]));
        let (status, said, errors) = run(&path(name), entry, &launch);
        assert!(status == Some(0) && said.contains(told), "{name} {entry}: {said}{errors}");
    }
}

/// One line, with what to do.
#[test]
fn what_does_not_run_is_refused_in_one_sentence() {
    let launch = ["--grid", "1", "--block", "32"];
    let saxpy =
        ["--arg", "n=8", "--arg", "a=2", "--arg", "x=f32[8]:ones", "--arg", "y=f32[8]:ones"];
    let product = ["--arg", "a=f16[256]:ones", "--arg", "b=f16[256]:ones", "--arg", "c=f32[256]"];
    for (name, arguments, told) in [
        (
            "saxpy_main",
            &saxpy[..],
            "saxpy_main.cu:20: error: main: is the host's: keep kernels in a file",
        ),
        (
            "matmul_wmma",
            &product,
            "matmul_wmma.cu:1: error: mma.h: No such file or directory: an emulated",
        ),
        ("macros", &[], "unary_relu_float, unary_relu_double, unary_square_float"),
        ("templates", &[], "with its parameters, --entry 'block_reduce<float, ops::Sum, 128>'"),
    ] {
        let (status, said, errors) = run(&path(name), "", &[&launch[..], arguments].concat());
        assert!(matches!(status, Some(1 | 2)) && said.is_empty(), "{name}: {said}{errors}");
        assert!(errors.contains(told) && errors.lines().count() == 1, "{name}: {errors}");
    }
}

/// NVIDIA's compiler takes all of it; of its headers those are asked for that are not there.
#[test]
fn the_real_compiler_takes_it_or_says_what_is_missing() {
    let mut names: Vec<_> = RUN.iter().map(|(name, ..)| *name).collect();
    names.dedup();
    for name in names {
        let ask = ["kernels", "list", "--arch", "sm_90a", "--source", &path(name)];
        let (status, table, errors) = chaski(&ask, &[]);
        if errors.contains("no NVRTC here") {
            return;
        }
        let is_missing = ["pip install nvidia-cuda", "<cuda/std/...>"];
        let is_missing = is_missing.iter().any(|word| errors.contains(word));
        assert!(status == Some(0) || is_missing && errors.lines().count() == 1, "{name}: {errors}");
        assert_eq!(table.lines().count() > 1, status == Some(0), "{name}: {table}");
    }
    let (status, _, errors) = chaski(&["kernels", "list", "--source", &path("saxpy_main")], &[]);
    assert!(status == Some(1) && errors.contains("that is the host's"), "{errors}");
}

/// The guide's own loop around atomicCAS begins with a plain load; any other plain access beside atomics is a
/// race.
#[test]
fn a_race_beside_an_atomic_loop_is_a_race() {
    let text = fs::read_to_string(path("double_atomics")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.cu");
    let arguments = ["values=f64[100]:iota", "sum=f64[1]:zeros", "largest=f32[1]:zeros", "n=100"];
    let arguments = arguments.iter().flat_map(|argument| ["--arg", argument]);
    let launch: Vec<_> = ["--grid", "2", "--block", "64"].into_iter().chain(arguments).collect();
    let right = "        atomicAddDouble(sum, values[i]);\n";
    let line = 1 + text[..text.find(right).unwrap()].matches('\n').count();
    for wrong in [
        "        *sum += values[i];\n",
        "        atomicAddDouble(sum, values[i]); if (*sum > 1e9) *largest = 0;\n",
        "        if (i == 7) *sum = 0; else atomicAddDouble(sum, values[i]);\n",
    ] {
        fs::write(&file, text.replace(right, wrong)).unwrap();
        let (status, said, errors) = run(file.to_str().unwrap(), "", &launch);
        let at = format!("mine.cu:{line}: data race: ");
        let other = format!("mine.cu:{line}: ");
        let is_told = said.contains(&at) || said.contains("data race") && said.contains(&other);
        assert!(status == Some(1) && is_told, "{wrong}: {said}{errors}");
    }
}
