#!/usr/bin/env python3
"""Everything that needs an NVIDIA GPU, in one go, from a prebuilt binary; no Rust is needed.

    scripts/hardware.py --chaski target/release/chaski               # all parts, nine minutes at most
    scripts/hardware.py --chaski ... --only check,bench              # some, each under three minutes
    scripts/hardware.py --list
    scripts/records.py --chaski ...                                  # then: the tables in PERFORMANCE.md

One file a run, benches/record/<gpu>/<date>.json, is written anew after every step, whole or not at
all: what ran and printed, what came of it, and the GPU's clocks, power and temperature around each
part. Whatever ends the script, what was done stands there. A part that fails is recorded and the
others go on; exit status 1 if any failed or had no time left.

What to carry to such a machine: this folder, the binary (`cargo build --release`), tests/demo for the
part demo, and for more of the part check the binary that `cargo test --no-run --test intrinsics`
names, in a folder that --tests names. `--emulate N` and `--quick` try the script without a GPU; such
records go to target/record, and no table is made of them.
"""

import argparse
import array
import datetime
import hashlib
import json
import math
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ROOT / "scripts" / "peers.py"
QUESTIONS = ROOT / "tests" / "demo" / "questions.jsonl"
PART_SECONDS = 170
ALL_SECONDS = 535
TAIL = 4000  # characters of text that a record keeps


class Absent(Exception):
    """What a part needs is not on this machine: no failure."""


class NoTime(Exception):
    """The part's time is over."""


class Run:
    """One run of the script: its record, and what all parts share."""

    def __init__(self, arguments):
        self.chaski = str(pathlib.Path(arguments.chaski).resolve())
        self.quick = arguments.quick
        self.emulate = ["--emulate", str(arguments.emulate)] if arguments.emulate else []
        self.tests = arguments.tests and pathlib.Path(arguments.tests)
        self.python = arguments.python
        self.libraries = {} if arguments.emulate else {"LD_LIBRARY_PATH": libraries(self.python)}
        self.end = time.monotonic() + arguments.seconds
        self.deadline = self.end
        self.part = None
        now = datetime.datetime.now()
        state = conditions()
        gpu = state.get("name") or "unknown"
        version = subprocess.run([self.chaski, "--version"], capture_output=True, text=True)
        self.record = {
            "gpu": "emulated" if arguments.emulate else gpu,
            "emulated": bool(arguments.emulate),
            "quick": self.quick,
            "date": now.strftime("%Y-%m-%d %H:%M:%S"),
            "version": version.stdout.strip(),
            "driver": state.get("driver_version"),
            "host": f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}",
            "parts": {},
        }
        default = ROOT / "target" / "record" if arguments.emulate else ROOT / "benches" / "record"
        folder = re.sub(r"[^a-z0-9]+", "-", self.record["gpu"].lower()).strip("-")
        records = pathlib.Path(arguments.records) if arguments.records else default
        self.path = records / folder / f"{now:%Y-%m-%d-%H%M%S}.json"

    def write(self):
        """The whole record or the one before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.record, indent=1) + "\n")
        partial.replace(self.path)

    def run(self, command, timeout=None, environment=None, name=None, keep=True, probe=False, given=""):
        """Runs a command and returns its standard output, or None if it failed. `keep`: also record
        that it went well; `probe`: no record at all."""
        left = min(self.deadline - time.monotonic(), timeout or math.inf)
        if left < 2:
            raise NoTime
        if keep and not probe:
            print("    " + (name or " ".join(command)), flush=True)
        step = {"command": command, "environment": environment or {}}
        start = time.monotonic()
        set_too = {**self.libraries, **(environment or {})}
        step["status"], output, errors = finish(command, left, set_too, given)
        step["seconds"] = round(time.monotonic() - start, 2)
        try:
            step["result"] = json.loads(output)
        except ValueError:
            step["output"] = output[-TAIL:]
        step["errors"] = errors[-TAIL:]
        well = step["status"] == 0
        if not probe and (keep or not well):
            self.part["steps"].append(step)
            self.write()
        if not probe and not well:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            print(f"      status {step['status']}: {last}", flush=True)
        return output if well else None

    def run_chaski(self, *arguments, **options):
        return self.run([self.chaski, *self.emulate, *arguments], **options)

    def found(self, **facts):
        """What the part has come to so far."""
        self.part["found"].update(facts)

    def do(self, name, part):
        """Does one part, whatever comes of it, and returns whether all was well."""
        self.part = {"status": "unfinished", "before": conditions(), "found": {}, "steps": []}
        self.record["parts"][name] = self.part
        start = time.monotonic()
        self.deadline = min(start + PART_SECONDS, self.end)
        try:
            self.part["status"] = "well" if part(self) else "failed"
        except Absent as reason:
            self.part |= {"status": "absent", "reason": str(reason)}
        except NoTime:
            self.part |= {"status": "no time left"}
        except Exception as error:  # of the script itself: the other parts go on
            self.part |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        self.part |= {"seconds": round(time.monotonic() - start, 1), "after": conditions()}
        self.write()
        reason = f": {self.part['reason']}" if "reason" in self.part else ""
        print(f"  {self.part['status']}, {self.part['seconds']} s{reason}", flush=True)
        return self.part["status"] in ("well", "absent")


def finish(command, seconds, environment, given):
    """(status, standard output, standard error). What it has started ends with it."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", env={**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        return str(error), "", str(error)
    try:
        output, errors = process.communicate(given, timeout=seconds)
        return process.returncode, output, errors
    except BaseException as reason:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        if isinstance(reason, subprocess.TimeoutExpired):
            return f"no end after {seconds:.0f} s", output, errors
        raise


def conditions():
    """The GPU's name, driver, clocks, power and temperature now."""
    fields = ["name", "driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"]
    # As newer drivers call it, and older ones. A field that nvidia-smi does not know spoils all others.
    for more in (["clocks_event_reasons.active"], ["clocks_throttle_reasons.active"], []):
        query = ["nvidia-smi", f"--query-gpu={','.join(fields + more)}", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return {}
        if done.returncode == 0 and done.stdout.strip():
            values = [value.strip() for value in done.stdout.strip().splitlines()[0].split(",")]
            return dict(zip(fields + more, values))
    return {}


def libraries(python):
    """LD_LIBRARY_PATH with where NVIDIA's libraries may be that the system's loader does not find by
    itself: the toolkit's and those that PyTorch brings."""
    ask = "import sys; print('\\n'.join(path for path in sys.path if path))"
    try:
        found = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    folders = [folder for path in found.splitlines() for folder in pathlib.Path(path).glob("nvidia/*/lib")]
    known = os.environ.get("LD_LIBRARY_PATH", "").split(":") + ["/usr/local/cuda/lib64"]
    return ":".join([*filter(None, known), *map(str, sorted(folders))])


def models(run):
    """The models to measure, the last one the smallest; a tiny one to try the script."""
    return ["synthetic:tiny"] if run.quick else ["synthetic:llama3-8b", "synthetic:llama3.2-1b"]


def read_logits(path):
    """The numbers of the tensor `logits` of a safetensors file."""
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    start, end = json.loads(data[8:header])["logits"]["data_offsets"]
    return array.array("f", data[header + start:header + end])


def relative_l2(ours, theirs):
    return math.dist(ours, theirs) / math.hypot(*theirs)


# The parts. Each returns whether all was well.


def check(run):
    """Conformance: every kernel's cases on this GPU; binaries of tests where there are any."""
    listed = json.loads(run.run_chaski("kernels", "list", "--json", probe=True))
    kernels = [kernel["name"] for kernel in listed]
    kernels = kernels[::6] if run.quick else kernels

    def all_right(cases):
        ask = ["kernels", "check", "--cases", cases, "--json"]
        wrong = [kernel for kernel in kernels if run.run_chaski(*ask, kernel) is None]
        run.found(**{cases: "all" if not wrong else f"wrong: {', '.join(wrong)}"})
        return not wrong

    well = all_right("few" if run.quick else "usual")
    for binary in sorted(run.tests.glob("*")) if run.tests else []:
        if os.access(binary, os.X_OK) and binary.is_file():
            on = {} if run.emulate else {"CHASKI_TEST_GPU": "1"}
            well &= run.run([str(binary), "--test-threads", "1"], environment=on) is not None
    try:  # as much more as there is time for
        return well and (run.quick or all_right("thorough"))
    except NoTime:
        run.found(thorough="no time left")
        return True


def bench(run):
    """Tokens per second on synthetic models, by llama-bench's protocol and in the real loop."""
    well = True
    for model in models(run):
        sizes = ["-p", "8", "-n", "2", "-r", "1"] if run.quick else ["-p", "512,2048", "-n", "128"]
        well &= run.run_chaski("bench", "-m", model, *sizes, "-o", "json") is not None
        if not run.quick:
            deep = ["-p", "0", "-n", "128", "-d", "8192,32768", "--depth-fill", "random", "-r", "3"]
            well &= run.run_chaski("bench", "-m", model, *deep, "-o", "json") is not None
    return well


def kernels(run):
    """Each kernel alone at a model's shapes with cold caches; products against cuBLASLt."""
    help_text = run.run_chaski("kernels", "bench", "--help", probe=True)
    if help_text is None:
        raise Absent("this chaski has no kernels bench")
    model = ["-m", models(run)[0], "-o", "json"]
    model += ["-p", "8", "-d", "8", "-r", "1"] if run.quick else []
    well = run.run_chaski("kernels", "bench", *model) is not None
    if "cublaslt" in help_text and not run.emulate:
        for kernel in ["matmul", "project"]:
            run.run_chaski("kernels", "bench", kernel, "--against", "cublaslt", *model)
    return well


def identity(run):
    """The same bits in a hundred runs, and however work is given to the GPU."""
    ways = {
        "as is": {},
        "without programmatic launch": {"CHASKI_PDL": "off"},
        "without graphs": {"CHASKI_GRAPHS": "off"},
        "one kernel after the other": {"CHASKI_SYNC": "on"},
    }
    model = models(run)[-1]
    ask = ["generate", "-m", model, "--random-ids", "6" if run.quick else "100", "--print-ids"]
    ask += ["-n", "4" if run.quick else "64", "--temp", "0.8", "--seed", "7"]
    answers, logits, runs = set(), set(), 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "logits.safetensors"
            for environment in ways.values():
                arguments = ["logits", "-m", model, "--random-ids", "8", "--out", str(out)]
                if run.run_chaski(*arguments, environment=environment) is None:
                    return False
                logits.add(hashlib.sha256(out.read_bytes()).hexdigest())
        for repetition in range(1 if run.quick else 25):
            if repetition > 0 and run.deadline - time.monotonic() < PART_SECONDS / 10:
                break  # what there was time for
            for way, environment in ways.items():
                output = run.run_chaski(*ask, environment=environment, keep=repetition == 0)
                if output is None:
                    return False
                answers.add(output)
                runs += 1
    finally:
        run.found(runs=runs, ways=list(ways), answers=len(answers), logits=len(logits))
    return len(answers) == 1 and len(logits) == 1


def demo(run):
    """The demo model's held-out questions."""
    if not QUESTIONS.exists():
        raise Absent(f"{QUESTIONS} is not there")
    questions = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    questions = questions[::100] if run.quick else questions
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for number, question in enumerate(questions):
            *before, asked = question["messages"]
            told, said = (pathlib.Path(folder) / f"{name}{number}.json" for name in ("told", "said"))
            told.write_text(json.dumps(before))
            lines += ["/clear", f"/load {told}"] if before else ["/clear"]
            lines += [asked["content"].replace("\n", "\\\n"), f"/save {said}"]
        asked = ["chat", "-m", "demo", "--temp", "0", "-n", "64"]
        well = run.run_chaski(*asked, given="\n".join(lines) + "\n") is not None
        said = [pathlib.Path(folder) / f"said{number}.json" for number in range(len(questions))]
        answers = [json.loads(path.read_text())[-1]["content"] if path.exists() else "" for path in said]
    right = sum(answer == question["answer"] for answer, question in zip(answers, questions))
    run.found(questions=len(questions), right=right)
    return well and right >= 0.95 * len(questions)


def ranks(run):
    """A model split over several ranks on one GPU: against one rank, and run to run; sums over ranks."""
    model = models(run)[-1]
    errors = {}
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "logits.safetensors"
        ask = ["logits", "-m", model, "--random-ids", "8", "--context", "64", "--out", str(out)]
        if run.run_chaski(*ask) is None:
            return False
        one = read_logits(out)
        for world in [2] if run.quick else [2, 4, 8]:
            split = ["--devices", ",".join(["0"] * world), "--timeout", "120"]
            digests = set()
            for _ in range(2):
                if run.run_chaski(*ask, *split) is None:
                    return False
                digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
            errors[world] = relative_l2(read_logits(out), one)
            run.found(relative_l2=errors)
            if len(digests) > 1 or errors[world] > 2e-2:
                return False
    well, split = True, ["--devices", "0,0", "--timeout", "120", "-o", "json"]
    sizes = ["-p", "8", "-n", "2", "-r", "1"] if run.quick else ["-p", "128", "-n", "32", "-r", "3"]
    for more in ([], ["--profile"]):
        well &= run.run_chaski("bench", "-m", model, *sizes, *split, *more) is not None
    return well and sums(run)


def sums(run):
    """Sums over all ranks by size: peer memory beside NCCL where there are several GPUs, else the hosts."""
    several = "cuda:1 " in (run.run_chaski("devices", probe=True) or "")
    ask = ["kernels", "bench", "all_reduce", "-m", models(run)[0], "-o", "json"]
    ask += [] if several else ["--devices", "0,0"]
    output = run.run_chaski(*ask, *(["-r", "1"] if run.quick else []))
    if output is None:
        return False
    rows = json.loads(output)
    if several:
        run.found(nccl_faster_from_bytes={row["ranks"]: row["nccl_from_bytes"] for row in rows})
    way = "peers" if several else "hosts"
    token = {row["ranks"]: row[f"{way}_us"] for row in rows if row["is_token"]}
    run.found(**{f"sum_of_a_token_us_by_{way}": token})
    return True


def hopper(run):
    """Prefill by the kernels that only Hopper runs: against the portable ones, in chunks, and how fast."""
    on = {"CHASKI_HOPPER": "on"}
    model = models(run)[-1]
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "logits.safetensors"
        ask = ["logits", "-m", model, "--random-ids", "40" if run.quick else "600", "--out", str(out)]
        logits = []
        for environment, more in (({}, []), (on, []), (on, ["--prefill-chunk", "20"])):
            if run.run_chaski(*ask, *more, environment=environment) is None:
                return False
            logits.append(read_logits(out))
    portable, whole, chunks = logits
    error, same = relative_l2(portable, whole), whole == chunks
    run.found(relative_l2_to_portable=error, same_bits_in_chunks=same)
    well = error < 1e-2 and same
    sizes = ["-p", "8", "-n", "0", "-r", "1"] if run.quick else ["-p", "512,2048,8192", "-n", "0", "-r", "3"]
    alone = ["-p", "8", "-d", "8", "-r", "1"] if run.quick else []
    for model in models(run):
        for command in (["bench", *sizes], ["kernels", "bench", "matmul", "gate_up_swiglu", "attend_prefill", *alone]):
            ask = [*command, "-m", model, "-o", "json"]
            well &= run.run_chaski(*ask, environment=on) is not None
    return well


def load(run):
    """From files in the page cache to the GPU."""
    space = shutil.disk_usage(tempfile.gettempdir()).free
    model = models(run)[0 if space > 24e9 else -1]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(pathlib.Path(folder) / "checkpoint")
        if run.run_chaski("synthesize", "-m", model, "--out", checkpoint) is None:
            return False
        rates, beyond = [], []
        for _ in range(2):
            output = run.run_chaski("bench", "-m", checkpoint, "--startup", "-o", "json")
            if output is None:
                return False
            phases = {row["phase"]: row for row in json.loads(output)}
            copy_ms = phases["copy"]["ms"]
            rates.append(phases["copy"]["weight_bytes"] / max(copy_ms, 1e-3) / 1e6)
            beyond.append(phases["in use"]["ms"] - copy_ms)
        run.found(model=model, gb_per_s=rates, second_token_ms_beyond_copy=beyond)
    return True


def peers(run):
    """The same weights in transformers: logits compared, speed side by side."""
    needed = "import torch, transformers, safetensors"
    if run.run([run.python, "-c", needed], probe=True) is None:
        raise Absent(f"{run.python} has no torch, transformers and safetensors: see --python")
    model = models(run)[-1]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(pathlib.Path(folder) / "checkpoint")
        ours = str(pathlib.Path(folder) / "logits.safetensors")
        ids = ",".join(str(11 * i % 500 + 1) for i in range(16 if run.quick else 256))
        if run.run_chaski("synthesize", "-m", model, "--out", checkpoint) is None:
            return False
        if run.run_chaski("logits", "-m", checkpoint, "--ids", ids, "--out", ours) is None:
            return False
        sizes = ["-p", "16", "-n", "4", "-r", "1"] if run.quick else ["-p", "512", "-n", "128"]
        output = run.run_chaski("bench", "-m", checkpoint, *sizes, "-o", "json")
        quick = ["--quick"] if run.quick else []
        peer = [run.python, str(PEERS), "--model", checkpoint, "--ids", ids, "--logits", ours]
        theirs = run.run(peer + quick)
        if output is None or theirs is None:
            return False
        theirs = json.loads(theirs)
        speed = {row["test"]: row["avg_ts"] for row in json.loads(output)}
        pairs = [(sizes[1], "pp", "prefill"), (sizes[3], "tg", "decode"), (sizes[3], "tg", "decode_compiled")]
        for size, test, peer in pairs:
            mean = theirs.get(peer, {}).get("mean")
            run.found(**{f"{test}{size} over transformers {peer}": mean and speed[test + size] / mean})
        run.found(model=model, ours=theirs["ours"], transformers=theirs["transformers"])
        return theirs["ours"]["relative_l2"] <= 2 * theirs["transformers"]["relative_l2"]


def profile(run):
    """Time of every op, and NVIDIA's own counters where ncu may read them."""
    well = True
    sizes = ["-p", "8", "-r", "1"] if run.quick else ["-p", "2048"]
    for model in models(run):
        well &= run.run_chaski("bench", "-m", model, "--profile", *sizes, "-o", "json") is not None
    program = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if pathlib.Path(program).exists() and not run.quick:
        metrics = ["gpu__time_duration.sum", "dram__bytes_read.sum"]
        metrics += ["dram__throughput.avg.pct_of_peak_sustained_elapsed"]
        watched = [program, "--csv", "--launch-count", "60", "--graph-profiling", "node"]
        watched += ["--metrics", ",".join(metrics), run.chaski, "generate", "-m", models(run)[0]]
        watched += ["--layers", "4", "--ids", "1,2,3", "--print-ids", "-n", "4"]
        run.run(watched, timeout=90, name="ncu")  # which may be forbidden
    return well


def sanitize(run):
    """NVIDIA's compute-sanitizer over a few cases of every kernel."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not pathlib.Path(program).exists():
        raise Absent("compute-sanitizer is not installed")
    well = True
    for tool in ["memcheck", "racecheck", "synccheck", "initcheck"]:
        watched = [program, "--tool", tool, "--target-processes", "all", "--error-exitcode", "9"]
        checked = [run.chaski, *run.emulate, "kernels", "check", "--cases", "few"]
        well &= run.run(watched + checked, timeout=PART_SECONDS / 4, name=tool) is not None
    return well


# In the order of what is wanted most: the time may not suffice for all.
ORDER = [check, bench, kernels, identity, hopper, ranks, demo, load, peers, profile, sanitize]
PARTS = {part.__name__: part for part in ORDER}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chaski", help="the prebuilt binary")
    parser.add_argument("--tests", help="a folder of prebuilt binaries of tests, run as part of check")
    parser.add_argument("--only", help="parts, by commas [default: all]")
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="for all parts [default: %(default)s]")
    parser.add_argument("--records", help="where records go [default: benches/record]")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch and transformers")
    parser.add_argument("--emulate", type=int, metavar="N", help="emulated GPUs, to try the script")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--list", action="store_true", help="print the parts")
    arguments = parser.parse_args()
    if arguments.list:
        for name, part in PARTS.items():
            print(f"{name:10} {part.__doc__.splitlines()[0]}")
        return 0
    wanted = arguments.only.split(",") if arguments.only else list(PARTS)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    if not arguments.chaski or not os.access(arguments.chaski, os.X_OK):
        parser.error("--chaski: a prebuilt binary is needed")
    run = Run(arguments)
    if run.record["gpu"] == "unknown":
        parser.error("nvidia-smi knows no GPU here; --emulate 1 tries the script without one")
    try:
        run.write()
    except OSError as error:
        parser.exit(1, f"cannot write {run.path}: {error}\n")
    failed = []
    try:
        for name in wanted:
            print(f"{name}: {PARTS[name].__doc__.splitlines()[0]}", flush=True)
            failed += [] if run.do(name, PARTS[name]) else [name]
    except KeyboardInterrupt:
        run.write()
        print(f"stopped; what was done is in {run.path}", file=sys.stderr)
        return 130
    print(run.path)
    if failed:
        print(f"not well: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
