//! Ranks on emulated GPUs that work together over each other's memory, without a model.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use chaski::comm::LocalGroup;
use chaski::config::Shard;
use chaski::error::Result;
use chaski::executor::cuda::{Emulation, Gpu};
use chaski::kernel::{Kernel, Replacement};
use chaski::random::random;

use crate::emulated;

/// Kernels that are new to the emulator are compiled at their first launch.
const PATIENCE: Duration = Duration::from_secs(600);

/// The environment's name for a file that takes a kernel's place.
pub const KERNEL: &str = "CHASKI_TEST_KERNEL";

pub fn gpus(world: usize) -> Vec<Gpu> {
    emulated::start();
    let open = |ordinal| {
        let gpu = Gpu::open(ordinal).unwrap();
        if let Some(file) = std::env::var_os(KERNEL) {
            gpu.replace_kernel(Replacement::read(Path::new(&file)).unwrap());
        }
        gpu
    };
    (0..world as u32).map(open).collect()
}

pub fn room(world: usize) -> Arc<LocalGroup> {
    LocalGroup::new((0..world).map(|n| format!("cuda:{n}")).collect(), PATIENCE, None)
}

/// What `work` returns on each of `world` ranks. What it keeps, the rank's memory above all, goes when
/// the last one has ended.
pub fn each<T: Send, Kept: Send>(
    world: usize,
    work: impl Fn(Gpu, &Arc<LocalGroup>, Shard) -> (T, Kept) + Sync,
) -> Vec<T> {
    let room = room(world);
    // Nobody waits for one that has panicked.
    let work = |part: usize, gpu: Gpu| {
        let share = Shard { part, parts: world };
        let result = catch_unwind(AssertUnwindSafe(|| work(gpu, &room, share)));
        result.map_err(|_| room.fail(part, "it panicked"))
    };
    thread::scope(|scope| {
        let work = &work;
        let ranks = gpus(world).into_iter().enumerate();
        let ranks: Vec<_> = ranks.map(|(part, gpu)| scope.spawn(move || work(part, gpu))).collect();
        let ended: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        ended.into_iter().map(|rank| rank.expect("no rank panics").0).collect()
    })
}

/// Now this rank is late, now that one: it does not matter when, so there is no more to it.
pub fn tarry(rank: usize, round: usize) {
    let late = random(rank as u64, round as u64);
    if late.is_multiple_of(16) {
        thread::sleep(Duration::from_micros(late >> 52));
    }
}

/// Runs a test of this file in a process of its own; says what is wrong, if anything.
pub fn fails(test: &str, variables: &[(&str, &str)]) -> Option<String> {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture"]).envs(variables.iter().copied());
    let own = variables.iter().map(|(name, value)| (name.into(), value.into()));
    let emulation = Emulation::from_variables(8, std::env::vars_os().chain(own)).unwrap();
    again.envs(emulation.environment().unwrap());
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_wrong = !output.status.success() || said.contains("WARNING: ThreadSanitizer");
    is_wrong.then_some(said)
}

/// Stores that nothing orders are seen as late as they may be.
pub const LATE_STORES: (&str, &str) = ("CHASKI_EMULATE_STORES", "late");
pub const THREAD_SANITIZER: (&str, &str) = ("CHASKI_EMULATE_SANITIZE", "thread");

/// That each mistake - where it shows, what is right and what is wrong, in the kernel or a header of its
/// own - makes a test of this file fail.
pub fn catches(test: &str, kernel: &str, mistakes: &[((&str, &str), &str, &str)]) {
    let kernel = Kernel::find(kernel).unwrap();
    let name = format!("{}.cu", kernel.name);
    let headers = kernel.headers.iter().map(|header| (header.name, header.text));
    let files: Vec<_> = [(&*name, kernel.source)].into_iter().chain(headers).collect();
    let fails_with = |mode: (&str, &str), right: &str, wrong: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("lib")).unwrap();
        for (name, text) in &files {
            std::fs::write(folder.path().join(name), text.replace(right, wrong)).unwrap();
        }
        let file = folder.path().join(&name);
        fails(test, &[mode, (KERNEL, file.to_str().unwrap())])
    };
    for (mode, right, wrong) in mistakes {
        let count: usize = files.iter().map(|(_, text)| text.matches(right).count()).sum();
        assert_eq!(count, 1, "{right}");
        let said = fails_with(*mode, right, wrong);
        assert!(said.is_some(), "not noticed with {mode:?}: {wrong:?} for {right:?}");
    }
    // It was none of what else is new: another file, this mode.
    let said = fails_with(mistakes[0].0, "", "");
    assert!(said.is_none(), "without a mistake: {}", said.unwrap_or_default());
}

/// That a test of this file passes whatever the emulator does that is no fault.
pub fn passes_under_every_schedule_and_checker(test: &str) {
    for (variable, value) in [
        ("CHASKI_EMULATE_ORDER", "descending"),
        ("CHASKI_EMULATE_ORDER", "shuffled:7"),
        ("CHASKI_EMULATE_BLOCKS", "3"),
        ("CHASKI_EMULATE_STREAMS", "lazy"),
        ("CHASKI_EMULATE_PDL", "late"),
        ("CHASKI_EMULATE_HOLD", "on"),
        LATE_STORES,
        ("CHASKI_EMULATE_SANITIZE", "address"),
        THREAD_SANITIZER,
    ] {
        let said = fails(test, &[(variable, value)]);
        assert!(said.is_none(), "{variable}={value}: {}", said.unwrap_or_default());
    }
}

/// What ends a rank's wait for another one that has gone: the two are made ready by `ready`, and one of
/// them starts.
pub fn left_alone<R: Send>(
    ready: impl Fn(Gpu, &Arc<LocalGroup>, Shard) -> R + Sync,
    start: impl Fn(&mut R) -> Result<()> + Sync,
) -> String {
    let (room, both_are_there) = (room(2), Barrier::new(2));
    let work = |(part, gpu): (usize, Gpu)| {
        let mut rank = ready(gpu, &room, Shard { part, parts: 2 });
        both_are_there.wait();
        match part {
            0 => (start(&mut rank).unwrap_err().to_string(), rank),
            _ => {
                room.fail(1, "it is gone");
                (String::new(), rank)
            }
        }
    };
    thread::scope(|scope| {
        let work = &work;
        let ranks = gpus(2).into_iter().enumerate();
        let ranks: Vec<_> = ranks.map(|rank| scope.spawn(move || work(rank))).collect();
        let ended: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        ended[0].0.clone()
    })
}
