//! `kernels run --reference FILE.py`: what a script makes of the arguments is what should come out.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process::chaski;

const KERNEL: &str = "#include <cuda_bf16.h>
__global__ void scale(const __nv_bfloat16* x, const int* rows, float* y, int width, float by) {
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        y[blockIdx.x * width + i] = by * __bfloat162float(x[rows[blockIdx.x] * width + i]);
}
";

/// Numpy arrays by the parameters' names, bf16 as float32; numbers as they are.
const RIGHT: &str = "import numpy
def reference(x, rows, by, width):
    assert x.dtype == numpy.float32 and rows.dtype == numpy.int32 and width == 50
    return {'y': (by * x[rows]).astype(numpy.float32)}
";

/// What is said with a script, where `python3` is the first on this path.
fn run(script: &str, python: &Path) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let (file, reference) = (folder.path().join("scale.cu"), folder.path().join("reference.py"));
    fs::write(&file, KERNEL).unwrap();
    fs::write(&reference, script).unwrap();
    let ask = ["--emulate", "1", "kernels", "run", file.to_str().unwrap()];
    let launch = [
        "--grid",
        "3",
        "--block",
        "32",
        "--arg",
        "x=bf16[4,50]:normal",
        "--arg",
        "rows=i32[3]:iota",
    ];
    let more = ["--arg", "y=f32[3,50]", "--arg", "width=50", "--arg", "by=0.5"];
    let path = format!("{}:{}", python.display(), std::env::var("PATH").unwrap());
    let reference = ["--reference", reference.to_str().unwrap()];
    chaski(&[&ask[..], &launch, &more, &reference].concat(), &[("PATH", &path)])
}

#[test]
fn without_numpy_one_line_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("python3");
    let python = Command::new("sh").args(["-c", "command -v python3"]).output().unwrap().stdout;
    let python = String::from_utf8(python).unwrap();
    // -S: no packages but Python's own.
    fs::write(&own, format!("#!/bin/sh\nexec {} -S \"$@\"\n", python.trim())).unwrap();
    assert!(Command::new("chmod").arg("700").arg(&own).status().unwrap().success());
    let (status, said, errors) = run(RIGHT, folder.path());
    assert!(status == Some(1) && said.is_empty(), "{said}");
    assert!(errors.contains("reference.py: python3 has no numpy: pip install numpy"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
#[ignore = "installs numpy"]
fn with_numpy_a_script_judges_a_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let (venv, bin) = (folder.path().join("venv"), folder.path().join("venv/bin"));
    for (program, arguments) in [
        (Path::new("python3").to_owned(), vec!["-m", "venv", venv.to_str().unwrap()]),
        (bin.join("pip"), vec!["install", "--quiet", "numpy"]),
    ] {
        assert!(Command::new(&program).args(&arguments).status().unwrap().success(), "{program:?}");
    }
    let (status, said, errors) = run(RIGHT, &bin);
    assert!(status == Some(0) && said.contains("right under 3 schedules"), "{said}{errors}");
    for (right, wrong, told) in [
        ("by * x", "2 * x", "and the reference has"),
        ("x[rows]", "x[rows][:2]", "[2, 50]"),
        ("'y'", "'z'", "has z, which the kernel does not write: it writes y"),
        ("def reference", "def other", "it has no function `reference`"),
        ("(x, rows", "(xs, rows", "reference wants xs: there are by, rows, width, x, y"),
        (
            "return {'y': (by * x[rows]).astype(numpy.float32)}",
            "return x",
            "reference is to return a dict",
        ),
        ("width == 50", "width == 51", "AssertionError"),
        ("import numpy", "import no_such", "No module named 'no_such'"),
    ] {
        let (status, said, errors) = run(&RIGHT.replace(right, wrong), &bin);
        assert!(matches!(status, Some(1 | 2)), "{wrong}: {said}{errors}");
        assert!((said + &errors).contains(told), "{wrong}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{wrong}: {errors}");
    }
}
