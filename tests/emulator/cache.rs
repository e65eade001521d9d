//! What is kept from run to run and loaded as code: nobody else can have written it, several processes
//! make it at once, and what is gone or broken is made anew.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use chaski::executor::cuda::emulator::{self, Emulation};
use tempfile::{TempDir, tempdir};

/// Somebody else, who has no files here.
const STRANGER: u32 = 65533;

/// As the environment has it, with the usual cache.
fn emulation() -> Emulation {
    Emulation::from_variables(1, std::env::vars_os()).unwrap()
}

/// A cache of its own, and a compiler that takes what has been built before for what it should build, in a
/// second.
struct Fresh {
    folder: TempDir,
}

impl Fresh {
    fn new() -> Self {
        let fresh = Self { folder: tempdir().unwrap() };
        let built = emulator::build(&emulation(), &|_| ()).unwrap();
        let compiler = format!(
            "#!/bin/sh\n\
             case \"$1\" in --version) exec g++ \"$@\";; esac\n\
             while [ $# -gt 0 ]; do [ \"$1\" = -o ] && out=$2; shift; done\n\
             case \"$out\" in *.o) : > \"$out\";; *) sleep 0.3; cp {}/$(basename \"$out\") \"$out\";; esac\n",
            built.display()
        );
        fs::write(fresh.path("compiler"), compiler).unwrap();
        fresh.mode("compiler", 0o755);
        fresh
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    fn command(&self, cache: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
        command.args(["devices", "--emulate", "1"]).env("XDG_CACHE_HOME", self.path(cache));
        command.env("CHASKI_CXX", self.path("compiler"));
        command
    }

    fn run(&self, cache: &str) -> Output {
        self.command(cache).output().unwrap()
    }

    /// The folder of the emulator in the cache `a`.
    fn entry(&self) -> PathBuf {
        let entries = fs::read_dir(self.path("a/chaski/emulator")).unwrap();
        let mut folders = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        let folder = folders.next().unwrap();
        assert!(folders.next().is_none(), "more than one");
        folder
    }
}

fn works(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("cuda:0"));
}

/// That it is refused in a line with these words.
fn is_refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.trim_end().lines().count() == 1, "{said}");
    assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
}

#[test]
fn a_cache_that_others_can_write_is_refused() {
    let fresh = Fresh::new();
    let make = |name: &str| fs::create_dir_all(fresh.path(name)).unwrap();
    // A folder of a predictable name where all may write, as in /tmp.
    for (mode, text) in [(0o777, "mode 777"), (0o1777, "mode 1777"), (0o775, "mode 775")] {
        make("shared");
        fresh.mode("shared", mode);
        is_refused(&fresh.run("shared"), &["shared can be written", text, "XDG_CACHE_HOME"]);
        make("shared/chaski/emulator");
        is_refused(&fresh.run("shared"), &["shared can be written", text]);
        fs::remove_dir_all(fresh.path("shared")).unwrap();
    }
    make("own/chaski");
    fresh.mode("own/chaski", 0o777);
    is_refused(&fresh.run("own"), &["own/chaski can be written"]);
    // Further above, somebody else may write if what is ours stays.
    make("above/own");
    fresh.mode("above", 0o777);
    is_refused(&fresh.run("above/own"), &["above can be written"]);
    fresh.mode("above", 0o1777);
    works(&fresh.run("above/own"));
    assert_eq!(fs::metadata(fresh.path("above/own/chaski")).unwrap().mode() & 0o777, 0o700);
    fs::write(fresh.path("file"), "").unwrap();
    is_refused(&fresh.run("file"), &["file is no folder"]);
}

/// Which only root can try.
#[test]
fn what_belongs_to_somebody_else_is_refused() {
    let fresh = Fresh::new();
    let planted = fresh.path("a/chaski/emulator");
    fs::create_dir_all(&planted).unwrap();
    if chown(&planted, Some(STRANGER), None).is_err() {
        return;
    }
    let words = ["emulator belongs to another user (65533)", "XDG_CACHE_HOME"];
    is_refused(&fresh.run("a"), &words);
    chown(&planted, Some(0), None).unwrap();
    chown(fresh.path("a"), Some(STRANGER), None).unwrap();
    is_refused(&fresh.run("a"), &["a belongs to another user"]);
    chown(fresh.path("a"), Some(0), None).unwrap();
    works(&fresh.run("a"));
    // One library of theirs, in a folder that is ours.
    let library = fresh.entry().join("libcuda.so.1");
    chown(&library, Some(STRANGER), None).unwrap();
    works(&fresh.run("a"));
    assert_eq!(fs::metadata(library).unwrap().uid(), 0);
}

#[test]
fn without_a_place_for_a_cache_there_is_none() {
    let fresh = Fresh::new();
    let mut command = fresh.command("a");
    let output = command.env_remove("XDG_CACHE_HOME").env_remove("HOME").output().unwrap();
    is_refused(&output, &["neither XDG_CACHE_HOME nor HOME is set"]);
    // What is not absolute does not count.
    fs::create_dir(fresh.path("home")).unwrap();
    let output = command.env("XDG_CACHE_HOME", "a").env("HOME", fresh.path("home")).output();
    works(&output.unwrap());
    assert!(fresh.path("home/.cache/chaski/emulator").is_dir());
}

#[test]
fn what_is_broken_is_made_anew() {
    let fresh = Fresh::new();
    works(&fresh.run("a"));
    let entry = fresh.entry();
    let is_new = |output: Output| {
        works(&output);
        assert!(String::from_utf8_lossy(&output.stderr).contains("building the emulated driver"));
        assert_eq!(fresh.entry(), entry);
    };
    for name in ["libcuda.so.1", "libnvrtc.so.13", "include/lib/ptx.cuh"] {
        fs::remove_file(entry.join(name)).unwrap();
        is_new(fresh.run("a"));
    }
    fs::set_permissions(entry.join("libnccl.so.2"), Permissions::from_mode(0o777)).unwrap();
    is_new(fresh.run("a"));
    fs::write(entry.join("include/device.h"), "changed").unwrap();
    is_new(fresh.run("a"));
    let again = fresh.run("a");
    works(&again);
    assert!(again.stderr.is_empty());
}

#[test]
fn four_at_once_build_once() {
    let fresh = Fresh::new();
    let outputs: Vec<Output> = thread::scope(|scope| {
        let started: Vec<_> = (0..4).map(|_| scope.spawn(|| fresh.run("a"))).collect();
        started.into_iter().map(|run| run.join().unwrap()).collect()
    });
    outputs.iter().for_each(works);
    let built =
        |output: &&Output| String::from_utf8_lossy(&output.stderr).contains("(once, then cached)");
    assert_eq!(outputs.iter().filter(built).count(), 1);
    fresh.entry();
}

/// Somebody removes the cache again and again: each run works or says in a line what it lacks.
#[test]
fn a_cache_may_be_removed_in_the_middle() {
    let fresh = Fresh::new();
    thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..3).map(|_| fresh.run("a")).collect::<Vec<_>>()))
            .collect();
        while runs.iter().any(|run| !run.is_finished()) {
            thread::sleep(Duration::from_millis(150));
            let _ = fs::remove_dir_all(fresh.path("a"));
        }
        for output in runs.into_iter().flat_map(|run| run.join().unwrap()) {
            let said = String::from_utf8_lossy(&output.stderr);
            let errors = said.lines().filter(|line| line.starts_with("chaski: ")).count();
            match output.status.code() {
                Some(0) => works(&output),
                status => assert!((status, errors) == (Some(1), 1), "{status:?} {said}"),
            }
        }
    });
    works(&fresh.run("a"));
}

/// A kernel that somebody else could have compiled is not run.
#[test]
fn an_emulated_kernel_that_others_can_write_is_compiled_again() {
    let cache = tempdir().unwrap();
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
        command.args(["kernels", "check", "--emulate", "1", "embed", "--cases", "few"]);
        let output = command.env("XDG_CACHE_HOME", cache.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let emulator = emulator::build(&emulation(), &|_| ()).unwrap();
    let own = cache.path().join("chaski/emulator");
    fs::create_dir_all(&own).unwrap();
    let copied = Command::new("cp").arg("-pr").args([&emulator, &own]).status().unwrap();
    assert!(copied.success());
    check();
    let entries = fs::read_dir(cache.path().join("chaski/emulated")).unwrap();
    let objects = entries.map(|entry| entry.unwrap().path());
    let objects: Vec<PathBuf> = objects.filter(|path| path.is_file()).collect();
    assert_eq!(objects.len(), 1);
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let first = modified(&objects[0]);
    check();
    assert_eq!(modified(&objects[0]), first);
    fs::set_permissions(&objects[0], Permissions::from_mode(0o777)).unwrap();
    check();
    assert!(modified(&objects[0]) > first);
    assert_eq!(fs::metadata(&objects[0]).unwrap().mode() & 0o777, 0o700);
}

/// A mistyped mode must not pass for a clean run.
#[test]
fn a_mode_that_there_is_not_is_refused() {
    for (name, value) in
        [("CHASKI_EMULATE_ORDER", "backwards"), (concat!("CHASKI_EMULATE", "_ODRER"), "ascending")]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaski"));
        let output = command.args(["devices", "--emulate", "1"]).env(name, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("{name}={value}: not understood")), "{said}");
    }
}
