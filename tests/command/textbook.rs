//! Kernels from textbooks as they are printed, by `chaski kernels run`: right under every schedule and
//! checker, and their classic mistakes are caught.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

use crate::process::chaski;

const TEXTBOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/textbook");

/// Exit status, standard output and standard error.
pub type Said = (Option<i32>, String, String);

pub fn run(file: &Path, more: &[&str]) -> Said {
    let file = file.to_str().unwrap();
    chaski(&[&["--emulate", "1", "kernels", "run", file], more].concat(), &[])
}

pub fn textbook(name: &str) -> PathBuf {
    Path::new(TEXTBOOK).join(format!("{name}.cu"))
}

/// A launch of a kernel of the textbook, and one array that it should leave.
pub struct Example {
    name: &'static str,
    pub launch: &'static [&'static str],
    output: &'static str,
    expected: fn() -> (Dtype, Vec<usize>, Vec<u8>),
}

fn floats(shape: &[usize], value: impl Fn(usize) -> f32) -> (Dtype, Vec<usize>, Vec<u8>) {
    let count = shape.iter().product();
    let bytes = (0..count).flat_map(|i| value(i).to_le_bytes()).collect();
    (Dtype::F32, shape.to_vec(), bytes)
}

fn words(count: usize, value: impl Fn(usize) -> u32) -> (Dtype, Vec<usize>, Vec<u8>) {
    (Dtype::U32, vec![count], (0..count).flat_map(|i| value(i).to_le_bytes()).collect())
}

const EXAMPLES: &[Example] = &[
    Example {
        name: "product",
        launch: &[
            "--grid",
            "3,3",
            "--block",
            "16,16",
            "--arg",
            "a=f32[40,40]:iota",
            "--arg",
            "b=f32[40,40]:0.5",
            "--arg",
            "c=f32[40,40]",
            "--arg",
            "n=40",
        ],
        output: "c",
        // Half the sum of a row: 40 numbers from 40 r on.
        expected: || floats(&[40, 40], |i| 0.5 * (40 * (i / 40 * 40) + 780) as f32),
    },
    Example {
        name: "reduction",
        launch: &[
            "--entry",
            "reduction<float,128>",
            "--grid",
            "4",
            "--block",
            "128",
            "--shared",
            "512",
            "--arg",
            "x=f32[1000]:iota",
            "--arg",
            "total=f32[1]:zeros",
            "--arg",
            "n=1000",
        ],
        output: "total",
        expected: || floats(&[1], |_| 499500.0),
    },
    Example {
        name: "scan",
        launch: &[
            "--grid",
            "1",
            "--block",
            "256",
            "--arg",
            "x=i32[250]:iota",
            "--arg",
            "y=i32[250]",
            "--arg",
            "n=250",
        ],
        output: "y",
        expected: || words(250, |i| (i * (i + 1) / 2) as u32),
    },
    Example {
        name: "transpose",
        launch: &[
            "--grid",
            "2,3",
            "--block",
            "32,8",
            "--arg",
            "x=f32[70,50]:iota",
            "--arg",
            "y=f32[50,70]",
            "--arg",
            "width=50",
            "--arg",
            "height=70",
        ],
        output: "y",
        expected: || floats(&[50, 70], |i| (i % 70 * 50 + i / 70) as f32),
    },
    Example {
        name: "histogram",
        launch: &[
            "--grid",
            "3",
            "--block",
            "128",
            "--arg",
            "data=u8[2000]:7",
            "--arg",
            "bins=u32[256]:zeros",
            "--arg",
            "n=2000",
        ],
        output: "bins",
        expected: || words(256, |i| if i == 7 { 2000 } else { 0 }),
    },
    Example {
        name: "softmax",
        launch: &[
            "--grid",
            "5",
            "--block",
            "96",
            "--arg",
            "x=f32[5,200]:ones",
            "--arg",
            "y=f32[5,200]",
            "--arg",
            "columns=200",
        ],
        output: "y",
        expected: || floats(&[5, 200], |_| 1.0 / 200.0),
    },
];

pub fn example(name: &str) -> &'static Example {
    EXAMPLES.iter().find(|example| example.name == name).unwrap()
}

/// A file with one array.
fn file_of(
    folder: &TempDir,
    name: &str,
    (dtype, shape, bytes): (Dtype, Vec<usize>, Vec<u8>),
) -> String {
    let view = TensorView::new(dtype, shape, &bytes).unwrap();
    let path = folder.path().join("reference.safetensors");
    fs::write(&path, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// All kernels as they are printed in textbooks, under all schedules and checkers.
#[test]
fn textbook_kernels_run_unchanged() {
    for Example { name, launch, output, expected } in EXAMPLES {
        let folder = tempfile::tempdir().unwrap();
        let reference = file_of(&folder, output, expected());
        let more = ["--reference", &reference, "--sanitize", "all"];
        let (status, said, errors) = run(&textbook(name), &[launch, &more[..]].concat());
        assert_eq!(status, Some(0), "{name}: {said}{errors}");
        let rows: Vec<&str> = said.lines().filter(|line| line.contains(" s  right")).collect();
        assert_eq!(rows.len(), 3, "{name}: {said}");
        assert!(rows[0].contains("under 3 schedules") && rows[2].contains(" thread "), "{said}");
        assert!(said.contains(&format!("{output} ")), "{said}");
    }
}

/// A textbook kernel with `old` replaced by `new` is wrong under this checker, which says all of `words`.
fn caught(name: &str, (old, new): (&str, &str), sanitizer: &str, words: &[&str]) {
    let text = fs::read_to_string(textbook(name)).unwrap();
    assert!(text.contains(old), "{name} has no {old}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.cu");
    fs::write(&file, text.replace(old, new)).unwrap();
    let Example { launch, output, expected, .. } = example(name);
    let reference = file_of(&folder, output, expected());
    let more = ["--reference", &reference, "--sanitize", sanitizer];
    let (status, said, errors) = run(&file, &[launch, &more[..]].concat());
    assert_eq!(status, Some(1), "{name} without {old}: {said}{errors}");
    assert!(said.contains("WRONG") && errors.contains("1 of 1 check failed"), "{said}{errors}");
    for word in words {
        assert!(said.contains(word), "{name} without {old}, {sanitizer}: no {word:?} in {said}");
    }
}

#[test]
fn classic_mistakes_are_caught() {
    let none = |name, change, words: &[&str]| caught(name, change, "none", words);
    let race = |name, change, words: &[&str]| caught(name, change, "thread", words);
    let first = ("__syncthreads(); // the tiles are there", "");
    none("product", first, &["c[0, 0] is NaN, and the reference has 390"]);
    race("product", first, &["data race", "mine.cu:15", "mine.cu:18"]);
    let second = ("__syncthreads(); // and may be replaced", "");
    none("product", second, &["(schedule descending)"]);
    race("product", second, &["data race", "mine.cu:15", "mine.cu:18"]);
    caught(
        "product",
        ("row < n && a_col < n ?", "true ?"),
        "address",
        &["mine.cu:15: heap-buffer-overflow: read"],
    );
    none("reduction", ("s >= 32", "s > 32"), &["total[0] is", "the reference has 499500"]);
    none("reduction", ("atomicAdd(total, sum)", "*total += sum / 2"), &["total[0] is"]);
    race("reduction", ("atomicAdd(total, sum)", "*total += sum"), &["data race", "*total += sum"]);
    let short =
        ("T* part = reinterpret_cast<T*>(bytes);", "T* part = reinterpret_cast<T*>(bytes) + 1;");
    caught("reduction", short, "address", &["heap-buffer-overflow", "part[tid] = sum"]);
    race(
        "scan",
        (
            "if (lane == 31) sums[warp] = v;\n    __syncthreads();",
            "if (lane == 31) sums[warp] = v;",
        ),
        &["data race", "sums[warp] = v"],
    );
    let lanes = (
        "int32_t below = __shfl_up_sync(0xffffffffu, v, d);\n        if (lane >= d) v += below;",
        "if (lane >= d) v += __shfl_up_sync(0xffffffffu, v, d);",
    );
    none("scan", lanes, &["mine.cu:8", "__shfl_up_sync"]);
    none("transpose", ("    __syncthreads();\n", ""), &["y[", "is NaN"]);
    none(
        "transpose",
        ("tile[threadIdx.x][threadIdx.y + j]", "tile[threadIdx.y + j][threadIdx.x]"),
        &["y[0, 1] is"],
    );
    none("histogram", ("own[i] = 0;", ";"), &["bins[0] is"]);
    race(
        "histogram",
        ("atomicAdd(&own[data[i]], 1u)", "own[data[i]]++"),
        &["data race", "own[data[i]]++"],
    );
    race(
        "histogram",
        ("    __syncthreads();\n    for (size_t i", "    for (size_t i"),
        &["data race", "own[i] = 0"],
    );
    race(
        "softmax",
        ("    block.sync();\n    sum = 0.0f;", "    sum = 0.0f;"),
        &["data race", "sums[w]"],
    );
}
