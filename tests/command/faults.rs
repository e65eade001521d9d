//! A GPU that fails, wherever it fails: one line on standard error, exit status 1, no panic, no hang.

use crate::process::chaski;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gqa4-hd64-bf16-tied");

/// Prefill, a decode step, and the same as a graph.
const ASK: [&str; 10] =
    ["generate", "-m", MODEL, "--ids", "1,2,3", "--print-ids", "-n", "4", "--temp", "0"];

/// Runs the program on an emulated GPU of which it is known how it will fail, and returns the one line
/// that it says of that.
fn failure(variable: &str, value: &str) -> String {
    failure_under(&[(variable, value)])
}

fn failure_under(variables: &[(&str, &str)]) -> String {
    let environment = [&[("CHASKI_EMULATE", "1")], variables].concat();
    let (status, _, errors) = chaski(&[&ASK[..], &["--device", "cuda"]].concat(), &environment);
    assert_eq!(status, Some(1), "{variables:?}: {errors}");
    let ours: Vec<_> = errors.lines().filter(|line| line.starts_with("chaski: ")).collect();
    assert!(ours.len() == 1 && !errors.contains("panicked"), "{variables:?}: {errors}");
    ours[0].to_owned()
}

fn fault(function: &str, call: usize, result: &str) -> String {
    failure("CHASKI_EMULATE_FAULT", &format!("{function}:{call}:{result}"))
}

/// Every function of the driver that the program calls in such a run.
const FUNCTIONS: [&str; 28] = [
    "cuInit",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncLoad",
    "cuFuncSetAttribute",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemHostGetDevicePointer_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
];

#[test]
fn an_ecc_error_in_any_call_is_told() {
    for function in FUNCTIONS {
        let told = fault(function, 1, "214");
        assert!(told.contains("uncorrectable ECC error"), "{function}: {told}");
    }
}

#[test]
fn a_device_that_disappears_in_any_call_is_told() {
    for function in FUNCTIONS {
        let told = fault(function, 1, "lost");
        assert!(told.contains("CUDA_ERROR_DEVICE_UNAVAILABLE"), "{function}: {told}");
    }
}

#[test]
fn memory_that_runs_out_at_any_allocation_is_told_with_its_size() {
    for (function, calls, what) in
        [("cuMemAlloc_v2", 2, "of GPU memory"), ("cuMemHostAlloc", 14, "of pinned memory")]
    {
        for call in 1..=calls {
            let told = fault(function, call, "2");
            assert!(told.contains("bytes") && told.contains(what), "{function} {call}: {told}");
        }
    }
    assert!(failure("CHASKI_EMULATE_MEMORY", "500K").contains("the weights take"));
    assert!(failure("CHASKI_EMULATE_MEMORY", "725K").contains("not even one token fits"));
    let environment = [("CHASKI_EMULATE", "1"), ("CHASKI_EMULATE_MEMORY", "1M")];
    let (status, _, errors) = chaski(&[&ASK[..], &["--context", "200"]].concat(), &environment);
    assert!(status == Some(1) && errors.contains("--context 37 would fit"), "{errors}");
}

/// The first kernel, one of prefill, one of the first step, and one within the graph.
#[test]
fn a_kernel_that_fails_is_named() {
    for call in [1, 5, 40, 85] {
        let told = fault("kernel", call, "700");
        assert!(told.contains("kernel ") && told.contains("illegal memory access"), "{told}");
    }
}

/// The host looks for tokens in its own memory, and work that is lazy goes on only as it asks for errors.
#[test]
fn what_fails_while_a_token_is_waited_for_is_told() {
    let lazy = ("CHASKI_EMULATE_STREAMS", "lazy");
    for (fault, told) in [
        ("cuStreamQuery:1:214", "uncorrectable ECC error"),
        ("cuStreamQuery:9:lost", "CUDA_ERROR_DEVICE_UNAVAILABLE"),
        ("kernel:66:700", "illegal memory access"),
    ] {
        let said = failure_under(&[lazy, ("CHASKI_EMULATE_FAULT", fault)]);
        assert!(said.contains("kernel") && said.contains(told), "{fault}: {said}");
    }
}

/// In a prompt, in the first step, and in a graph.
#[test]
fn a_kernel_that_does_not_end_is_named_and_ends_the_run() {
    for (launch, op) in
        [(3, "matmul (op 3 of 27)"), (40, "norm_qkv (op 12 of 17)"), (70, "project (op 7 of 18)")]
    {
        let value = format!("kernel:{launch}:stalls");
        let environment = [("CHASKI_EMULATE", "1"), ("CHASKI_EMULATE_FAULT", &*value)];
        let ask = [&ASK[..], &["--device", "cuda", "--timeout", "3"]].concat();
        let (status, _, errors) = chaski(&ask, &environment);
        let told = format!(
            "chaski: the GPU failed in {op}: made no progress for 3 s; --timeout allows more"
        );
        assert!(status == Some(1) && errors.lines().any(|line| line == told), "{value}: {errors}");
    }
}

#[test]
fn gpus_that_are_not_there_or_too_old_are_told() {
    let emulated = [("CHASKI_EMULATE", "1")];
    let (status, _, errors) = chaski(&[&ASK[..], &["--device", "cuda:7"]].concat(), &emulated);
    assert_eq!(status, Some(1));
    assert!(errors.contains("there is no GPU cuda:7: there is one, cuda:0"), "{errors}");
    let told = failure("CHASKI_EMULATE_CAPABILITY", "7.5");
    assert!(told.contains("compute capability 7.5 is too old: 8.0 is needed"), "{told}");
    let told = failure("CHASKI_EMULATE_DRIVER", "12040");
    assert!(told.contains("of CUDA 12.4, and 12.8 is needed"), "{told}");
    let old = [("CHASKI_EMULATE", "1"), ("CHASKI_EMULATE_DRIVER", "12040")];
    let (status, _, errors) = chaski(&ASK, &old);
    assert!(
        status == Some(0) && errors.contains("on the CPU: the GPU's driver is too old"),
        "{errors}"
    );
}

#[test]
fn rows_that_no_block_has_room_for_are_told_before_anything_is_loaded() {
    let small = [("CHASKI_EMULATE", "1"), ("CHASKI_EMULATE_CAPABILITY", "8.6")];
    let model = ["generate", "-m", "synthetic:llama3-70b", "--layers", "1", "--ids", "1"];
    let (status, _, errors) = chaski(&[&model[..], &["--device", "cuda"]].concat(), &small);
    assert_eq!(status, Some(1), "{errors}");
    let told =
        "an FFN of 28672 on this GPU: a block would take 113 KiB of shared memory and can have 99";
    assert!(errors.contains(told), "{errors}");
}

/// On machines that have none.
#[test]
fn a_missing_driver_is_told() {
    let (status, _, errors) = chaski(&[&ASK[..], &["--device", "cuda"]].concat(), &[]);
    if status != Some(0) {
        assert_eq!(status, Some(1));
        let told = errors.contains("there is no CUDA driver") || errors.contains("no GPU cuda:0");
        assert!(told && !errors.contains("panicked"), "{errors}");
    }
}

/// What is about kernels ends where there is no GPU: no kernel is called wrong, nothing is timed on the CPU.
#[test]
fn without_a_gpu_kernels_are_neither_wrong_nor_timed() {
    for ask in [
        &["kernels", "check"][..],
        &["kernels", "check", "rms_norm", "--json"],
        &["kernels", "bench"],
        &["kernels", "bench", "-m", "synthetic:tiny", "rms_norm", "-o", "json"],
        &["kernels", "bench", "all_reduce"],
        &["kernels", "bench", "--tune", "/dev/null"],
        &["qualify"],
        &["diff", "--ids", "1,2"],
    ] {
        let (status, printed, errors) = chaski(ask, &[("CUDA_VISIBLE_DEVICES", "")]);
        assert_eq!((status, &*printed, errors.lines().count()), (Some(1), "", 1), "{errors}");
        assert!(errors.starts_with("chaski: kernels run on a GPU, and "), "{errors}");
        assert!(errors.ends_with(": --emulate 1 emulates one\n"), "{errors}");
    }
}
