#!/usr/bin/env python3
"""Everything that needs an NVIDIA GPU, in one go, from a prebuilt binary; no Rust is needed.

    scripts/hardware.py --chaski target/release/chaski            # all parts, under ten minutes each
    scripts/hardware.py --chaski ... --only check,bench           # some of them
    scripts/hardware.py --list

Each part writes records/<gpu>/<date>-<part>.json as soon as it is done, whole or not at all: what ran,
what it printed, and the GPU's clocks, power and temperature before and after. A part that fails is
recorded too, and the others go on. Exit status 1 if any failed.

`--emulate N` and `--quick` try the script itself on a machine without a GPU.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ROOT / "scripts" / "peers.py"
PART_SECONDS = 560
TAIL = 4000  # characters of text that a record keeps


class Session:
    """What all parts share."""

    def __init__(self, arguments):
        self.chaski = str(pathlib.Path(arguments.chaski).resolve())
        self.quick = arguments.quick
        self.emulate = ["--emulate", str(arguments.emulate)] if arguments.emulate else []
        self.tests = arguments.tests and pathlib.Path(arguments.tests)
        self.python = arguments.python
        self.deadline = 0.0
        self.steps = []

    def run(self, command, timeout=None, environment=None, name=None):
        """Runs a command, records it, and returns its standard output; None if it failed."""
        left = self.deadline - time.monotonic()
        if left < 5:
            self.steps.append({"command": command, "status": "no time left"})
            return None
        start = time.monotonic()
        step = {"command": command, "environment": environment or {}}
        print("    " + (name or " ".join(command)), flush=True)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace",
                timeout=min(left, timeout or left), env={**os.environ, **(environment or {})},
            )
            step["status"] = done.returncode
            output, errors = done.stdout, done.stderr
        except subprocess.TimeoutExpired as expired:
            step["status"] = "timeout"
            output, errors = text(expired.stdout), text(expired.stderr)
        except OSError as error:
            step["status"], output, errors = str(error), "", ""
        step["seconds"] = round(time.monotonic() - start, 2)
        try:
            step["result"] = json.loads(output)
        except ValueError:
            step["output"] = output[-TAIL:]
        step["errors"] = errors[-TAIL:]
        self.steps.append(step)
        if step["status"] != 0:
            print(f"      status {step['status']}: {errors.strip().splitlines()[-1:]}", flush=True)
            return None
        return output

    def run_chaski(self, *arguments, **options):
        return self.run([self.chaski, *self.emulate, *arguments], **options)

    def note(self, **facts):
        self.steps.append(facts)


def text(output):
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def models(session):
    """The models to measure, small ones to try the script."""
    return ["synthetic:tiny"] if session.quick else ["synthetic:llama3-8b", "synthetic:llama3.2-1b"]


# The parts. Each returns whether all was well.


def check(session):
    """Conformance: every op and case on this GPU; the tests' binaries where there are any."""
    cases = ["--cases", "quick"] if session.quick else []
    well = session.run_chaski("kernels", "check", "--json", *cases) is not None
    for binary in sorted(session.tests.glob("*")) if session.tests else []:
        if os.access(binary, os.X_OK) and binary.is_file():
            well &= session.run([str(binary), "--test-threads", "1"]) is not None
    return well


def sanitize(session):
    """NVIDIA's compute-sanitizer over the quick cases."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    well = True
    for tool in ["memcheck", "racecheck", "synccheck", "initcheck"]:
        watched = [program, "--tool", tool, "--target-processes", "all", "--error-exitcode", "9"]
        checked = [session.chaski, *session.emulate, "kernels", "check", "--cases", "quick"]
        well &= session.run(watched + checked, timeout=135, name=tool) is not None
    return well


def identity(session):
    """The same bits from run to run, and however work is given to the GPU."""
    ways = {
        "as is": {},
        "without programmatic launch": {"CHASKI_PDL": "off"},
        "without graphs": {"CHASKI_GRAPHS": "off"},
        "one kernel after the other": {"CHASKI_SYNC": "on"},
    }
    runs = 2 if session.quick else 25
    model = models(session)[-1]
    tokens = "4" if session.quick else "64"
    seen = {}
    for way, environment in ways.items():
        for repetition in range(runs):
            for sampling in (["--temp", "0"], ["--temp", "0.8", "--seed", "7"]):
                output = session.run_chaski(
                    "generate", "-m", model, "--ids", "1,2,3,4,5", "--print-ids", "-n", tokens,
                    *sampling, environment=environment, name=f"{way}, {sampling[1]}, run {repetition}",
                )
                if output is None:
                    return False
                digest = hashlib.sha256(output.encode()).hexdigest()
                seen.setdefault(sampling[1], {}).setdefault(digest, []).append(way)
    with tempfile.TemporaryDirectory() as folder:
        digests = set()
        for way, environment in ways.items():
            out = pathlib.Path(folder) / "logits.safetensors"
            ids = ",".join(str(7 * i % 500 + 1) for i in range(8 if session.quick else 200))
            arguments = ["logits", "-m", model, "--ids", ids, "--out", str(out)]
            if session.run_chaski(*arguments, environment=environment) is None:
                return False
            digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    different = {sampling: len(found) for sampling, found in seen.items()}
    session.note(runs=runs, ways=list(ways), different_answers=different, different_logits=len(digests))
    return len(digests) == 1 and all(count == 1 for count in different.values())


def bench(session):
    """Tokens per second on synthetic models, by llama-bench's protocol and in the real loop."""
    sizes = ["-p", "8", "-n", "2", "-r", "1"] if session.quick else ["-p", "512,2048", "-n", "128"]
    well = True
    for model in models(session):
        well &= session.run_chaski("bench", "-m", model, *sizes, "-o", "json") is not None
        if not session.quick:
            deep = ["-p", "0", "-n", "128", "-d", "8192,32768", "--depth-fill", "random", "-r", "3"]
            well &= session.run_chaski("bench", "-m", model, *deep, "-o", "json") is not None
            late = {"CHASKI_PDL": "off"}
            plain = ["-p", "0", "-n", "128", "-r", "3", "-o", "json"]
            well &= session.run_chaski("bench", "-m", model, *plain, environment=late) is not None
        well &= session.run_chaski("bench", "-m", model, "--startup", "-o", "json") is not None
    return well


def profile(session):
    """Time of every op, and NVIDIA's own counters where ncu may read them."""
    well = True
    for model in models(session):
        well &= session.run_chaski("bench", "-m", model, "--profile", "-o", "json") is not None
    program = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if pathlib.Path(program).exists() and not session.quick:
        metrics = ["gpu__time_duration.sum", "dram__bytes_read.sum"]
        metrics += ["dram__throughput.avg.pct_of_peak_sustained_elapsed"]
        watched = [program, "--csv", "--launch-count", "60", "--graph-profiling", "node"]
        watched += ["--metrics", ",".join(metrics)]
        asked = ["generate", "-m", "synthetic:llama3-8b", "--layers", "4", "--ids", "1,2,3", "--print-ids"]
        asked += ["-n", "4"]
        session.run(watched + [session.chaski, *asked], timeout=200, name="ncu")  # may be forbidden
    return well


def peers(session):
    """The same weights in transformers: logits compared, speed side by side."""
    model = models(session)[-1]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(pathlib.Path(folder) / "checkpoint")
        ours = str(pathlib.Path(folder) / "logits.safetensors")
        ids = ",".join(str(11 * i % 500 + 1) for i in range(16 if session.quick else 256))
        if session.run_chaski("synthesize", "-m", model, "--out", checkpoint) is None:
            return False
        if session.run_chaski("logits", "-m", checkpoint, "--ids", ids, "--out", ours) is None:
            return False
        quick = ["--quick"] if session.quick else []
        peer = [session.python, str(PEERS), "--model", checkpoint, "--ids", ids, "--logits", ours]
        well = session.run(peer + quick) is not None
        sizes = ["-p", "512", "-n", "128", "-o", "json"]
        sizes = ["-p", "8", "-n", "2", "-r", "1", "-o", "json"] if session.quick else sizes
        return session.run_chaski("bench", "-m", checkpoint, *sizes) is not None and well


PARTS = {part.__name__: part for part in [check, sanitize, identity, bench, profile, peers]}


def conditions():
    """The GPU's name, driver, clocks, power and temperature now."""
    fields = ["name", "driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"]
    fields += ["clocks_throttle_reasons.active"]
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    line = done.stdout.strip().splitlines()[:1] if done.returncode == 0 else []
    values = [value.strip() for value in line[0].split(",")] if line else []
    return dict(zip(fields, values))


def write(path, record):
    """Writes a record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chaski", help="the prebuilt binary")
    parser.add_argument("--tests", help="a folder of prebuilt test binaries, run as part of check")
    parser.add_argument("--only", help="parts, by commas [default: all]")
    parser.add_argument("--records", default=str(ROOT / "records"), help="where records go")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch and transformers")
    parser.add_argument("--emulate", type=int, help="emulated GPUs, to try the script")
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
    session = Session(arguments)
    version = subprocess.run([session.chaski, "--version"], capture_output=True, text=True).stdout.strip()
    gpu = conditions().get("name") or ("emulated" if arguments.emulate else "unknown")
    folder = pathlib.Path(arguments.records) / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    date = datetime.datetime.now().strftime("%Y-%m-%d-%H%M")
    failed = []
    for name in wanted:
        print(f"{name}: {PARTS[name].__doc__.splitlines()[0]}", flush=True)
        session.steps, session.deadline = [], time.monotonic() + PART_SECONDS
        record = {"part": name, "version": version, "gpu": gpu, "date": date, "before": conditions()}
        start = time.monotonic()
        well = PARTS[name](session)
        record |= {"well": bool(well), "seconds": round(time.monotonic() - start, 1)}
        record |= {"after": conditions(), "steps": session.steps}
        path = folder / f"{date}-{name}.json"
        write(path, record)
        print(f"  {'well' if well else 'FAILED'}, {record['seconds']} s: {path}", flush=True)
        failed += [] if well else [name]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
