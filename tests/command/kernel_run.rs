//! `chaski kernels run`: what it shows and keeps, where a kernel hangs, and what a user may get wrong.

use std::collections::BTreeMap;
use std::fs;

use safetensors::tensor::{Dtype, SafeTensors};

use crate::process::chaski;
use crate::textbook::{Said, example, run, textbook};

const HANGS: &str = "__global__ void spin(volatile int* flag) {
    while (*flag == 0) {
    }
    flag[1] = 1;
}
__global__ void long_way(volatile int* x) {
    for (unsigned v = 1;; v = v * 5 + 1) x[0] = v;
}
";

const SCALE: &str = "#include <cstdio>
__constant__ float factor[1];
__global__ void scale(const float* x, float* y, double offset) {
    y[threadIdx.x] = factor[0] * x[threadIdx.x] + offset;
    if (threadIdx.x == 1) printf(\"thread %d has %g\\n\", threadIdx.x, y[1]);
}
";

/// Early, with the block, the thread and the line that it stands at.
#[test]
fn a_kernel_that_hangs_is_told_where() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hangs.cu");
    fs::write(&file, HANGS).unwrap();
    let launch = ["--grid", "2", "--block", "32", "--arg"];
    let of = |entry, argument, more: &[&str]| {
        let all = [&["--entry", entry][..], &launch, &[argument], more].concat();
        run(&file, &all)
    };
    let (status, said, _) = of("spin", "flag=i32[2]:zeros", &[]);
    assert_eq!(status, Some(1));
    let words = ["hangs.cu:2: kernel spin, block 0: deadlock: thread 0 waits in a loop at"];
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    let (status, said, _) = of("long_way", "x=i32[1]", &["--time-limit", "1"]);
    assert_eq!(status, Some(1));
    let words = ["hangs.cu:7: kernel long_way, block 0, thread ", ": still runs after 1 s"];
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

#[test]
fn what_a_kernel_writes_is_kept_and_what_it_prints_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("scale.cu"), folder.path().join("y.safetensors"));
    fs::write(&file, SCALE).unwrap();
    let out_name = out.to_str().unwrap();
    let more = [
        "--grid",
        "1",
        "--block",
        "4",
        "--arg",
        "x=f32[4]:iota",
        "--arg",
        "y=f32[4]",
        "--arg",
        "offset=0.5",
        "--arg",
        "factor=f32[1]:3",
        "--out",
        out_name,
    ];
    let (status, said, errors) = run(&file, &more);
    assert_eq!(status, Some(0), "{said}{errors}");
    assert_eq!(said.matches("thread 1 has 3.5\n").count(), 1, "{said}");
    let bytes = fs::read(&out).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let y = tensors.tensor("y").unwrap();
    let expected: Vec<u8> = [0.5f32, 3.5, 6.5, 9.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!((y.dtype(), y.shape(), y.data()), (Dtype::F32, &[4][..], &expected[..]));
    // What was written is an argument, and a reference, too.
    let argument = format!("x={out_name}:y");
    let again =
        [&more[..4], &["--arg", &argument], &more[6..10], &["--arg", "factor=f32[1]:1"]].concat();
    let (status, said, _) = run(&file, &[&again[..], &["--reference", out_name]].concat());
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("y[0] is 1, and the reference has 0.5"), "{said}");
}

/// Resources, PTX and machine code of any file, with its lines; without NVIDIA's tools a line says which.
#[test]
fn what_the_compiler_makes_is_shown() {
    let file = textbook("product");
    let file = file.to_str().unwrap();
    let of = |command: &str, more: &[&str]| {
        chaski(&[&["kernels", command, "--source", file], more].concat(), &[])
    };
    let (status, table, errors) = of("list", &["--arch", "sm_90a"]);
    if errors.contains("no NVRTC here") {
        return assert_eq!(status, Some(1), "{errors}");
    }
    let row: Vec<&str> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert!(status == Some(0) && table.lines().count() == 2, "{table}{errors}");
    assert_eq!((row[0], row[1], row[3], row[5], row[6]), ("product", "sm_90a", "2048", "0", "256"));
    assert!((16..=64).contains(&row[2].parse::<u32>().unwrap()), "{table}");
    let (_, json, _) = of("list", &["--json"]);
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(rows.as_array().unwrap().len() >= 4 && rows[0]["arch"] == "sm_80", "{json}");
    let (status, ptx, _) = of("ptx", &["--arch", "sm_80"]);
    let parts = [".target sm_80", ".loc\t1 12", "_Z7productPKfS0_Pfi"];
    assert!(status == Some(0) && parts.iter().all(|part| ptx.contains(part)), "{ptx}");
    let (status, sass, errors) = of("sass", &[]);
    match status {
        Some(0) => {
            assert!(sass.contains("product.cu\", line 12") && sass.contains("BAR.SYNC"), "{sass}")
        }
        _ => assert!(errors.contains("pip install nvidia-cuda-nvdisasm"), "{errors}"),
    }
    let (status, list, _) = chaski(&["kernels", "list", "rms_norm", "--arch", "sm_80"], &[]);
    assert!(
        status == Some(0) && list.starts_with("rms_norm: ") && !list.contains("sm_90a"),
        "{list}"
    );
    let (status, ptx, _) = chaski(&["kernels", "ptx", "rms_norm"], &[]);
    assert!(status == Some(0) && ptx.contains(".entry rms_norm_bf16"));
    let (status, _, errors) = chaski(&["kernels", "ptx", "rms_norm", "--source", file], &[]);
    assert!(status == Some(2) && errors.contains("leave it or --source out"), "{errors}");
}

/// One line that says what to do, at once, and exit status 2.
#[test]
fn what_does_not_fit_is_refused_before_anything_runs() {
    let product = |changes: &[(&str, Option<&str>)]| -> Said {
        let mut arguments: BTreeMap<&str, &str> = BTreeMap::from([
            ("a", "a=f32[40,40]:iota"),
            ("b", "b=f32[40,40]:iota"),
            ("c", "c=f32[40,40]"),
            ("n", "n=40"),
        ]);
        for (name, argument) in changes {
            match argument {
                Some(argument) => arguments.insert(name, argument),
                None => arguments.remove(name),
            };
        }
        let given = arguments.values().flat_map(|argument| ["--arg", argument]);
        let launch = ["--grid", "3,3", "--block", "16,16"].into_iter().chain(given);
        run(&textbook("product"), &launch.collect::<Vec<_>>())
    };
    for (change, words) in [
        (("n", None), "kernel product takes int n: give it as in --arg n=4096"),
        (("a", None), "takes float* a: give it as in --arg a=f32[4096]:normal"),
        (("a", Some("a=3")), "--arg a: the parameter is a float*: give an array"),
        (("a", Some("a=f32[40,40]")), "--arg a: the kernel only reads it: say what is in it"),
        (("n", Some("n=f32[4]:ones")), "--arg n: the parameter is one int, no array"),
        (("n", Some("n=4.5")), "--arg n=4.5: no int"),
        (("n", Some("n=many")), "an array is NAME=f32[64,64]:normal"),
        (("a", Some("a=float[4]:ones")), "no type float: there are f64, f32"),
        (("a", Some("a=f32[4]:some")), "no contents some"),
        (("x", Some("x=f32[1]:ones")), "x: neither a parameter nor a variable"),
    ] {
        let (status, said, errors) = product(&[change]);
        assert_eq!(errors.lines().count(), 1, "{change:?}: {errors}");
        assert!(
            matches!(status, Some(1 | 2)) && errors.contains(words),
            "{change:?}: {said}{errors}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("host.cu");
    let source = fs::read_to_string(textbook("histogram")).unwrap();
    fs::write(&file, source + "int main() {\n    histogram<<<1, 32>>>(nullptr, nullptr, 0);\n}\n")
        .unwrap();
    let launch = example("histogram").launch;
    let (status, _, errors) = run(&file, launch);
    let words = "host.cu:14: error: main: is the host's: keep kernels in a file of their own";
    assert!(status == Some(1) && errors.contains(words) && errors.lines().count() == 1, "{errors}");
    let (status, _, errors) = run(&textbook("reduction"), &["--grid", "1", "--block", "32"]);
    assert!(status == Some(2) && errors.contains("--entry 'reduction<float>'"), "{errors}");
    let (status, _, errors) =
        run(&textbook("scan"), &["--grid", "1", "--block", "32", "--entry", "sum"]);
    assert!(status == Some(2) && errors.contains("has no kernel sum: it has scan"), "{errors}");
    let wide =
        ["--block", "2000", "--arg", "x=i32[250]:iota", "--arg", "y=i32[250]", "--arg", "n=250"];
    let (status, said, _) = run(&textbook("scan"), &[&["--grid", "1"], &wide[..]].concat());
    assert!(status == Some(1) && said.contains("at most 256 threads"), "{said}");
}
