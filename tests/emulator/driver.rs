//! The emulated driver's own tests, through a small client of the driver API (`tests/emulator`): kernels
//! without a mistake are right under every schedule and checker, and every planted bug is found by the
//! checkers that must find it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use chaski::executor::cuda::emulator::{self, Emulation, Sanitizer};

pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/emulator");
const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");

pub type Variables<'a> = &'a [(&'a str, &'a str)];

pub const DESCENDING: (&str, &str) = ("CHASKI_EMULATE_ORDER", "descending");
const LAZY: (&str, &str) = ("CHASKI_EMULATE_STREAMS", "lazy");

/// The client, compiled once.
fn client() -> &'static Path {
    static CLIENT: OnceLock<PathBuf> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator-client");
        let entries = fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path());
        let sources = entries.filter(|path| path.extension().is_some_and(|is| is == "cpp"));
        let compiler = std::env::var("CHASKI_CXX").unwrap_or("g++".to_owned());
        let mut command = Command::new(compiler);
        command.args(["-std=c++17", "-g", "-Wall", "-Wextra"]).args(sources).arg("-o");
        let output = command.arg(&program).args(["-ldl", "-lpthread"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        program
    })
}

/// Runs `cases` in one process on four emulated devices; what it says, and whether all were right.
pub fn run(sanitizer: Sanitizer, cases: &[&str], variables: Variables) -> (bool, String) {
    let emulation = Emulation::from_variables(4, std::env::vars_os()).unwrap();
    let emulation = Emulation { sanitizer, ..emulation };
    let mut command = Command::new("timeout");
    command.arg("120").arg(client()).arg(emulator::build(&emulation, &|_| ()).unwrap());
    command.arg(format!("{FOLDER}/kernels")).arg(KERNELS).args(cases);
    command.envs([("CHASKI_EMULATE", "4"), ("CHASKI_EMULATE_PATIENCE_MS", "2000")]);
    command.envs(emulation.environment().unwrap()).envs(variables.iter().copied());
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

pub fn expect_right(sanitizer: Sanitizer, cases: &[&str], variables: Variables) {
    let (right, said) = run(sanitizer, cases, variables);
    assert!(right, "{} {cases:?} {variables:?}: {said}", sanitizer.name());
}

/// That `case` goes wrong and all of `words` are said of it.
pub fn expect_caught(sanitizer: Sanitizer, case: &str, variables: Variables, words: &[&str]) {
    let (right, said) = run(sanitizer, &[case], variables);
    let name = sanitizer.name();
    assert!(!right, "{name} {case} {variables:?}: not caught: {said}");
    for word in words {
        assert!(said.contains(word), "{name} {case} {variables:?}: no {word:?} in: {said}");
    }
}

/// `bugs.cu:N`, N being the number of the first line with `text`.
fn line(text: &str) -> String {
    line_of("bugs.cu", text)
}

/// The same of another file.
pub fn line_of(file: &str, text: &str) -> String {
    let source = fs::read_to_string(format!("{FOLDER}/kernels/{file}")).unwrap();
    let at = source.lines().position(|line| line.contains(text));
    format!("{file}:{}", at.unwrap_or_else(|| panic!("no line with {text}")) + 1)
}

/// Every case without a bug, but for one that leaves a device broken.
fn good() -> Vec<String> {
    let cases = "add reduce product_f16 product_bf16 pipeline last_block grid_barrier flag programmatic \
                 graph events two_ranks missing_wait_fixed";
    let source = fs::read_to_string(format!("{FOLDER}/kernels/bugs.cu")).unwrap();
    let exports = source.lines().filter_map(|line| line.strip_prefix("extern \"C\" __global__ "));
    let names = exports.filter_map(|line| line.split([' ', '(']).find(|w| w.ends_with("_fixed")));
    cases.split(' ').chain(names).map(str::to_owned).collect()
}

fn good_are_right(sanitizer: Sanitizer, variables: Variables) {
    let cases = good();
    assert!(cases.len() > 20);
    expect_right(sanitizer, &cases.iter().map(String::as_str).collect::<Vec<_>>(), variables);
    expect_right(sanitizer, &["two_devices"], variables);
}

#[test]
fn kernels_without_bugs_are_right_under_every_schedule() {
    let order = |order| ("CHASKI_EMULATE_ORDER", order);
    let late = ("CHASKI_EMULATE_PDL", "late");
    let resident = ("CHASKI_EMULATE_BLOCKS", "3");
    for variables in [
        &[][..],
        &[DESCENDING, LAZY],
        &[order("shuffled:1")],
        &[order("shuffled:2"), resident, late],
        &[("CHASKI_EMULATE_FILL", "off"), late],
    ] {
        good_are_right(Sanitizer::None, variables);
    }
}

#[test]
fn kernels_without_bugs_are_right_under_address_sanitizer() {
    good_are_right(Sanitizer::Address, &[]);
    good_are_right(Sanitizer::Address, &[DESCENDING, LAZY]);
}

#[test]
fn kernels_without_bugs_are_right_under_thread_sanitizer() {
    good_are_right(Sanitizer::Thread, &[]);
    good_are_right(Sanitizer::Thread, &[DESCENDING, LAZY]);
}

#[test]
fn a_plain_run_finds_what_it_must() {
    let caught = |case, variables: Variables, words: &[&str]| {
        expect_caught(Sanitizer::None, case, variables, words);
    };
    caught("missing_barrier", &[], &["nan, not"]);
    caught("missing_barrier", &[DESCENDING], &["nan, not"]);
    caught("weak_wait", &[], &["nan, not"]);
    for variables in [&[][..], &[DESCENDING]] {
        let at = line("FIXED || threadIdx.x < N / 2");
        caught("divergent_barrier", variables, &[&at, "kernel divergent_barrier, block 0"]);
        let at = line("FIXED || lane_id() < 16");
        caught("divergent_shuffle", variables, &[&at, "kernel divergent_shuffle, block 0"]);
    }
    let at = line("FIXED ? 0 : 1)]");
    caught("global_bounds", &[], &[&at, " 0 bytes past the end of device memory"]);
    caught("early_read", &[], &[", not"]);
    let impatient = ("CHASKI_EMULATE_PATIENCE_MS", "100");
    caught("deadlock", &[impatient], &[&line("nanosleep(10)"), "deadlock"]);
}

/// What Hopper does on the side: asked for and not waited for, or in the way of what still runs.
#[test]
fn what_is_done_on_the_side_is_waited_for() {
    let caught = |case, words: &[&str]| expect_caught(Sanitizer::None, case, &[], words);
    caught("no_full_barrier", &["nan, not"]);
    let full = line("mbarrier_wait(full");
    caught("no_empty_barrier", &["deadlock", "mbarrier_wait at", &full]);
    caught("no_wait_for_products", &["nan, not"]);
    caught("no_fence_before_products", &[&line("wgmma_m64n256k16<f16>"), "wgmma_fence"]);
    let race = |case| {
        let lines = [line("copy_box(x"), line("wgmma_m64n256k16<f16>")];
        expect_caught(Sanitizer::Thread, case, &[], &["data race", &lines[0], &lines[1]]);
    };
    let at = line("copy_box(x");
    caught("no_fence_after_init", &["an mbarrier without fence_mbarrier_init", &at]);
    let at = line("FIXED ? 232");
    caught("too_many_registers", &["240 registers, which others have not given up", &at]);
    let (written, read) = (line("*= gridDim.x"), line("wgmma_m64n256k16<f16>"));
    let words = &["data race", &written, &read];
    expect_caught(Sanitizer::Thread, "no_fence_between_proxies", &[], words);
    race("no_full_barrier");
    race("early_empty_barrier");
    let older = ("CHASKI_EMULATE_CAPABILITY", "8.0");
    let words = ["only compute capability 9.0"];
    expect_caught(Sanitizer::None, "products_fixed", &[older], &words);
}

/// Not by the order that most would try, which shows why there are several.
#[test]
fn another_schedule_finds_what_a_plain_run_misses() {
    expect_right(Sanitizer::None, &["reused_buffer"], &[]);
    expect_caught(Sanitizer::None, "reused_buffer", &[DESCENDING], &[", not"]);
    expect_right(Sanitizer::None, &["early_read"], &[("CHASKI_EMULATE_PDL", "late")]);
    expect_caught(Sanitizer::None, "missing_wait", &[LAZY], &["nan, not"]);
}

#[test]
fn address_sanitizer_finds_what_it_must() {
    let caught = |case, words: &[&str]| expect_caught(Sanitizer::Address, case, &[], words);
    caught("shared_bounds", &[&line("part[args.count]")]);
    caught("global_bounds", &["heap-buffer-overflow", &line("FIXED ? 0 : 1)]")]);
    caught("misaligned", &[&line("FIXED ? 4 : 1"), "misaligned address"]);
}

#[test]
fn thread_sanitizer_finds_what_it_must_and_names_both_lines() {
    let race = |case, first, second| {
        let lines = [line(first), line(second)];
        expect_caught(Sanitizer::Thread, case, &[], &["data race", &lines[0], &lines[1]]);
    };
    race("missing_barrier", "] = args.x[threadIdx", "part[N - 1");
    race("reused_buffer", "] = args.x[tile", "part[threadIdx.x + 32");
    race("cross_block", "[threadIdx.x] += 1", "[threadIdx.x] += 1");
    race("missing_syncwarp", "uint16_t(args.x", "ldmatrix_x4");
    race("weak_wait", "cp_async16", "stage[4 * N - 1");
    let words = ["data race", "good.cu", "bugs.cu"];
    expect_caught(Sanitizer::Thread, "early_read", &[], &words);
    expect_caught(Sanitizer::Thread, "early_read", &[("CHASKI_EMULATE_PDL", "late")], &words);
}

#[test]
fn the_driver_refuses_what_a_driver_refuses() {
    for case in ["capture_refuses", "memory", "launches", "freed_argument", "compile_error"] {
        expect_right(Sanitizer::None, &[case], &[]);
    }
}

/// What could be done and a real driver does not do.
#[test]
fn the_driver_is_as_strict_as_a_real_one() {
    let plain: Variables = &[];
    let variable = |name, value| [(name, value)];
    for (case, variables) in [
        ("owner", plain),
        ("capture_thread", plain),
        ("memory_is_charged", &variable("CHASKI_EMULATE_MEMORY", "1G,512M")),
        ("released_context", plain),
        ("untimed_events", plain),
        ("shared_limits", plain),
        ("shared_limits_at_first", plain),
        ("programmatic_is_refused", &variable("CHASKI_EMULATE_CAPABILITY", "8.0")),
        ("pinned_flags", plain),
        ("peers", &variable("CHASKI_EMULATE_PEERS", "0-1,2-3:broken")),
        ("images", &variable("CHASKI_EMULATE_FAULT", "cuModuleLoadData:2:222")),
        ("pageable_waits", &variable("CHASKI_EMULATE_HOLD", "on")),
        ("last_reclaims", plain),
        ("in_background", plain),
    ] {
        expect_right(Sanitizer::None, &[case], variables);
    }
}

#[test]
fn tensor_cores_cut_off_where_hardwares_do() {
    expect_right(Sanitizer::None, &["cut_off"], &[("CHASKI_EMULATE_PRODUCTS", "truncated")]);
    expect_right(Sanitizer::None, &["not_cut_off"], &[]);
}

/// Such a call, while a kernel waits for one that another thread is to launch, may be a deadlock.
#[test]
fn calls_that_wait_for_devices_fail_while_a_kernel_waits_for_a_peer() {
    let hold = ("CHASKI_EMULATE_HOLD", "on");
    let (right, said) = run(Sanitizer::None, &["peer_waits"], &[hold]);
    let told = "cuMemAlloc while kernel wait_far on device 0 waits for a peer";
    assert!(right && said.contains(told), "{said}");
}

/// As the original's: for ever.
#[test]
fn a_communicator_is_not_left_before_the_graphs_that_have_calls_of_it() {
    expect_right(Sanitizer::None, &["graph_goes_first"], &[]);
    let words = ["ncclCommDestroy: a graph still has calls of it"];
    expect_caught(Sanitizer::None, "communicator_goes_first", &[], &words);
}

const COLLECTIVES: [&str; 5] =
    ["all_reduce", "sixteen_bits", "all_reduce_in_a_graph", "all_collectives", "one_thread"];

#[test]
fn collectives_join_threads_and_processes() {
    expect_right(Sanitizer::None, &COLLECTIVES, &[]);
    expect_right(Sanitizer::None, &COLLECTIVES, &[DESCENDING, LAZY]);
    expect_right(Sanitizer::Thread, &COLLECTIVES, &[]);
    expect_right(Sanitizer::None, &["refusals", "mismatch", "absent", "duplicate"], &[]);
    for case in ["all_reduce_of_processes", "all_collectives_of_processes"] {
        expect_right(Sanitizer::None, &[case], &[]);
        expect_right(Sanitizer::None, &[case], &[LAZY]);
    }
}

/// Whatever a rank does to the others, they learn of it or can give up.
#[test]
fn a_faulty_rank_lets_the_others_end() {
    let told = |case, variable, value, words: &[&str]| {
        let (right, said) = run(Sanitizer::None, &[case], &[(variable, value)]);
        assert!(right && words.iter().all(|word| said.contains(word)), "{case} {value}: {said}");
    };
    for case in ["faulty_threads", "faulty_processes"] {
        let fault = "CHASKI_EMULATE_RANK_FAULT";
        told(case, fault, "1:dies:2", &["rank 0: round 2 fails, error 6"]);
        told(case, fault, "1:stalls:2", &["rank 0: round 2 fails", "rank 1: round 2 fails"]);
        told(case, fault, "0:slow:200", &["rank 0: all rounds", "rank 1: all rounds"]);
    }
    let words = ["refused", "round 1 fails"];
    told("faulty_threads", "CHASKI_EMULATE_FAULT", "ncclAllReduce:2:2", &words);
}

#[test]
fn peer_access_can_be_refused() {
    let off = ("CHASKI_EMULATE_PEERS", "off");
    expect_caught(Sanitizer::None, "two_devices", &[off], &["peer access is possible"]);
}

#[test]
fn faults_come_when_they_are_planned() {
    for (case, fault) in [
        ("fault_memory", "cuMemAlloc_v2:2:2"),
        ("fault_kernel", "kernel:2:700"),
        ("fault_stalls", "kernel@1:1:stalls"),
        ("fault_lost", "cuMemcpyHtoD_v2:1:lost"),
    ] {
        expect_right(Sanitizer::None, &[case], &[("CHASKI_EMULATE_FAULT", fault)]);
    }
}

/// A mistyped mode must not pass for a clean run.
#[test]
fn a_mode_that_does_not_exist_is_refused() {
    let wrong = ("CHASKI_EMULATE_ORDER", "backwards");
    expect_caught(Sanitizer::None, "add", &[wrong], &["CHASKI_EMULATE_ORDER=backwards"]);
    let wrong = ("CHASKI_EMULATE_FAULT", "cuMemAlloc_v2:1:stalls"); // only kernels do
    expect_caught(Sanitizer::None, "add", &[wrong], &["cuMemAlloc_v2:1:stalls"]);
}
