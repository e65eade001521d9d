"""Runs a plan's steps, each under a limit of its own, and keeps the record of what came of them."""

import array
import dataclasses
import datetime
import json
import math
import os
import pathlib
import platform
import re
import signal
import subprocess
import time
from typing import Callable

TAIL = 4000  # characters of text that a record keeps


class Absent(Exception):
    """What a step needs is not on this machine: no failure."""


class NoTime(Exception):
    """There is no time left for it."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A `command` of Chaski's, made of the sizes, or what `does` it: a function of the run that returns
    whether all was well."""

    name: str
    seconds: float  # that it takes on an H200
    proves: str
    command: Callable | None = None
    does: Callable | None = None
    environment: dict = dataclasses.field(default_factory=dict)
    on_gpu: bool = True  # `command` takes --device
    real: bool = False  # an emulated GPU has nothing of it
    table: str = ""  # the table of PERFORMANCE.md that its rows are for
    found: Callable = lambda rows: {}  # what the rows of `command` come to
    again: Callable = lambda rows: []  # what a failed command is given besides when it runs again


class Run:
    """One run of a plan: its record, and what all steps share."""

    def __init__(self, chaski, plan, sizes, *, emulate, records, python, seconds):
        self.chaski, self.plan, self.sizes, self.python = str(chaski), plan, sizes, python
        self.emulate = ["--emulate", str(emulate)] if emulate else []
        self.libraries = {} if emulate else {"LD_LIBRARY_PATH": libraries(python)}
        self.end = time.monotonic() + seconds
        self.limit, self.step, self.more = self.end, None, {}
        now = datetime.datetime.now()
        state = conditions()
        self.record = {
            "gpu": self.gpu(),
            "emulated": bool(emulate),
            "date": now.strftime("%Y-%m-%d %H:%M:%S"),
            "version": said([self.chaski, "--version"]).strip(),
            "driver": state.get("driver_version"),
            "host": f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}",
            "steps": [],
        }
        folder = re.sub(r"[^a-z0-9]+", "-", self.record["gpu"].lower()).strip("-")
        self.path = records / folder / f"{now:%Y-%m-%d-%H%M%S}.json"

    def gpu(self):
        """The GPU that Chaski itself takes: a driver that does not start, or none, ends the script."""
        variables = {**os.environ, **self.libraries}
        listed = said([self.chaski, *self.emulate, "devices"], variables, seconds=300)
        names = re.findall(r"^cuda:0\s+(.*), compute capability", listed, re.MULTILINE)
        if not names:
            raise OSError(f"chaski devices lists no GPU here: {listed.strip() or 'it fails'}")
        return names[0]

    def write(self):
        """The whole record or the one before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.record, indent=1) + "\n")
        partial.replace(self.path)

    def all(self):
        """Does every step, whatever comes of those before. Returns the names of those that failed."""
        self.write()
        failed = []
        for at, step in enumerate(self.plan):
            print(f"{step.name}: {step.proves}", flush=True)
            rest = sum(later.seconds for later in self.plan[at + 1:])
            failed += [] if self.do(step, rest) else [step.name]
        return failed

    def do(self, step, rest):
        """Does one step and, if it fails, does it again with every kernel waited for, so that an error
        names the right one. What the `rest` of the plan needs is left to it."""
        entry = {"name": step.name, "proves": step.proves, "expected_seconds": step.seconds,
                 "table": step.table, "status": "unfinished", "found": {}, "runs": []}
        self.record["steps"].append(entry)
        self.step = entry
        self.attempt(step, rest, entry)
        if entry["status"] == "failed" and "CHASKI_SYNC" not in step.environment:
            self.step = entry["again"] = {"status": "unfinished", "found": {}, "runs": []}
            self.more = {"CHASKI_SYNC": "on"}
            self.attempt(step, rest, self.step)
            self.more = {}
            print(f"  again under CHASKI_SYNC=on: {self.step['status']}", flush=True)
        entry["conditions"] = conditions()
        self.write()
        reason = f": {entry['reason']}" if "reason" in entry else ""
        print(f"  {entry['status']}, {entry['seconds']} s{reason}", flush=True)
        return entry["status"] in ("well", "absent")

    def attempt(self, step, rest, entry):
        self.write()
        start = time.monotonic()
        left = self.end - start
        # An emulated GPU keeps to no time but that of all.
        own = math.inf if self.emulate else min(3 * step.seconds + 10, max(step.seconds, left - rest))
        self.limit = start + min(own, left)
        try:
            if self.more and not self.emulate and left - rest < step.seconds:
                raise NoTime
            entry["status"] = "well" if self.perform(step) else "failed"
        except Absent as reason:
            entry |= {"status": "absent", "reason": str(reason)}
        except NoTime:
            entry["status"] = "no time left"
        except Exception as error:  # of the script itself: the other steps go on
            entry |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        entry["seconds"] = round(time.monotonic() - start, 1)

    def perform(self, step):
        if step.real and self.emulate:
            raise Absent("the GPU is emulated")
        if step.does:
            return step.does(self)
        command = step.command(self.sizes)
        if self.more:
            command += step.again(rows(self.record["steps"][-1]["runs"][0].get("result")))
        ran = self.run_chaski(*command, environment=step.environment, on_gpu=step.on_gpu)
        self.found(**step.found(rows(ran.get("result"))))
        return ran["status"] == 0

    def run(self, command, environment=None, given="", probe=False):
        """What came of a command: its status, output, errors, and the `result` if the output is JSON. A
        `probe` may fail, and is not recorded."""
        left = self.limit - time.monotonic()
        if left < 1:
            raise NoTime
        environment = {**(environment or {}), **self.more}
        ran = {"command": command, "environment": environment}
        start = time.monotonic()
        variables = {**os.environ, **self.libraries, **environment}
        ran["status"], output, errors = finish(command, left, variables, given)
        ran["seconds"] = round(time.monotonic() - start, 2)
        result = parse(output)
        ran |= {"output": output[-TAIL:]} if result is None else {"result": result}
        ran["errors"] = errors[-TAIL:]
        others = {row["device"] for row in rows(result) if "device" in row} - {self.record["gpu"]}
        if others:
            ran["status"] = f"rows are of another device: {', '.join(sorted(others))}"
        if probe:
            return ran
        self.step["runs"].append(ran)
        self.write()
        if ran["status"] != 0:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            print(f"    {' '.join(command)}\n    status {ran['status']}: {last}", flush=True)
        return ran | {"output": output}

    def run_chaski(self, *arguments, on_gpu=True, **options):
        """`on_gpu`: it takes --device, which is the GPU: the CPU never takes its place unasked."""
        device = ["--device", "cuda"] if on_gpu else []
        return self.run([self.chaski, *self.emulate, *arguments, *device], **options)

    def found(self, **facts):
        """What the step has come to so far."""
        self.step["found"].update(facts)


def finish(command, seconds, environment, given):
    """(status, standard output, standard error). What it has started ends with it."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", env=environment, start_new_session=True,
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
            return f"did not finish in {seconds:.0f} s", output, errors
        raise


def said(command, environment=None, seconds=10):
    """Its standard output; nothing if it cannot be run."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def parse(output):
    """A JSON value, or a list of those that stand on a line each; of a list that was broken off, what
    there is of it. None of text."""
    whole = output.strip()
    lists = [whole, whole.rstrip(",") + "]", "[" + ",".join(whole.splitlines()) + "]"]
    for text in lists if whole[:1] in ("{", "[") else []:
        try:
            return json.loads(text)
        except ValueError:
            pass
    return None


def rows(result):
    """Those of a result that is a list of them, or one."""
    return [row for row in (result if isinstance(result, list) else [result]) if isinstance(row, dict)]


def conditions():
    """The GPU's driver, clocks, power and temperature now."""
    fields = ["driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"]
    # As newer drivers call it, and older ones. A field that nvidia-smi does not know spoils all others.
    for more in (["clocks_event_reasons.active"], ["clocks_throttle_reasons.active"], []):
        listed = said(["nvidia-smi", f"--query-gpu={','.join(fields + more)}", "--format=csv,noheader"])
        if "," in listed:
            values = [value.strip() for value in listed.strip().splitlines()[0].split(",")]
            return dict(zip(fields + more, values))
    return {}


def libraries(python):
    """LD_LIBRARY_PATH with where NVIDIA's libraries may be that the system's loader does not find by
    itself: the toolkit's and those that PyTorch brings."""
    paths = said([python, "-c", "import sys; print('\\n'.join(path for path in sys.path if path))"])
    folders = [folder for path in paths.splitlines() for folder in pathlib.Path(path).glob("nvidia/*/lib")]
    known = os.environ.get("LD_LIBRARY_PATH", "").split(":") + ["/usr/local/cuda/lib64"]
    return ":".join([*filter(None, known), *map(str, sorted(folders))])


def read_logits(path):
    """The numbers of the tensor `logits` of a safetensors file."""
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    start, end = json.loads(data[8:header])["logits"]["data_offsets"]
    return array.array("f", data[header + start:header + end])


def relative_l2(ours, theirs):
    return math.dist(ours, theirs) / math.hypot(*theirs)
