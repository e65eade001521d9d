"""The steps of a plan that are more than one command. Each returns whether all was well."""

import hashlib
import json
import os
import pathlib
import platform
import shutil
import tempfile

from .run import Absent, read_logits, relative_l2, rows

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / "scripts" / "peers.py"
PROBE = ROOT / "scripts" / "gpu" / "probe.py"
QUESTIONS = ROOT / "tests" / "demo" / "questions.jsonl"
INTRINSICS = ROOT / "intrinsics"  # as a pack has it

# None of it changes a bit of the results.
WAYS = {
    "as is": {},
    "without programmatic launch": {"CHASKI_PDL": "off"},
    "without graphs": {"CHASKI_GRAPHS": "off"},
    "one kernel after the other": {"CHASKI_SYNC": "on"},
}
DECODE = "regex:^(norm_qkv|attend_decode|project|norm_gate_up|norm_head|sample)"


def tool(name):
    """The path of one of NVIDIA's, which must be able to look at the GPU."""
    path = shutil.which(name) or f"/usr/local/cuda/bin/{name}"
    if not pathlib.Path(path).exists():
        raise Absent(f"{name} is not installed")
    if platform.release().startswith("4.4.0"):
        raise Absent("gVisor, whose kernel calls itself 4.4.0, lets no such tool look at the GPU")
    return path


def machine(run):
    there = [name for name in ("ncu", "compute-sanitizer", "nvcc") if shutil.which(name)]
    run.found(kernel=platform.release(), tools=there)
    return run.run_chaski("devices", on_gpu=False)["status"] == 0


def ask(run, questions):
    """How many of these the demo answers as expected, and whether it ended well."""
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        said = [pathlib.Path(folder) / f"said{number}.json" for number in range(len(questions))]
        for number, question in enumerate(questions):
            *before, asked = question["messages"]
            told = pathlib.Path(folder) / f"told{number}.json"
            told.write_text(json.dumps(before))
            lines += ["/clear", f"/load {told}"] if before else ["/clear"]
            lines += [asked["content"].replace("\n", "\\\n"), f"/save {said[number]}"]
        given = "\n".join(lines) + "\n"
        ran = run.run_chaski("chat", "-m", "demo", "--temp", "0", "-n", "64", given=given)
        talks = [json.loads(path.read_text()) if path.exists() else [] for path in said]
        answers = [talk[-1]["content"] if talk else None for talk in talks]
    right = sum(answer == question["answer"] for answer, question in zip(answers, questions))
    run.found(questions=len(questions), right=right)
    return right, ran["status"] == 0


def read_questions():
    return [json.loads(line) for line in QUESTIONS.read_text().splitlines()]


def one_answer(run):
    right, well = ask(run, read_questions()[:1])
    return well and right == 1


def questions(run):
    asked = read_questions()[::run.sizes.ask_every]
    right, well = ask(run, asked)
    return well and right >= 0.95 * len(asked)


def intrinsics(run):
    if not os.access(INTRINSICS, os.X_OK):
        raise Absent("a pack made with --tests has the binary of tests/emulator/intrinsics.rs")
    on = {"CHASKI_TEST_GPU": "1"}
    return run.run([str(INTRINSICS), "intrinsics", "--test-threads", "1"], environment=on)["status"] == 0


def logits(run, folder, *arguments, on_gpu=True, **environment):
    """Of the small model; None if there are none."""
    out = pathlib.Path(folder) / "logits.safetensors"
    asked = ["logits", "-m", run.sizes.small, "--out", str(out), *arguments]
    ran = run.run_chaski(*asked, environment=environment, on_gpu=on_gpu)
    return read_logits(out) if ran["status"] == 0 else None


def digest(numbers):
    return numbers and hashlib.sha256(numbers.tobytes()).hexdigest()


def identity(run):
    asked = ["generate", "-m", run.sizes.small, "--random-ids", "6", "--print-ids"]
    asked += ["-n", run.sizes.answer, "--temp", "0.8", "--seed", "7"]
    with tempfile.TemporaryDirectory() as folder:
        ways = WAYS.values()
        found = [digest(logits(run, folder, "--random-ids", "8", **way)) for way in ways]
    answers = [run.run_chaski(*asked, environment=way) for way in ways]
    well = all(found) and all(ran["status"] == 0 for ran in answers)
    said = {ran["output"] for ran in answers}
    run.found(ways=list(WAYS), answers=len(said), logits=len(set(found)))
    return well and len(said) == 1 and len(set(found)) == 1


def chunks(run):
    """A step of 64 tokens and more takes other tiles than one of 20."""
    many, few = run.sizes.many_ids, run.sizes.few_ids
    with tempfile.TemporaryDirectory() as folder:
        portable = logits(run, folder, "--random-ids", many, CHASKI_HOPPER="off")
        whole = logits(run, folder, "--random-ids", many, CHASKI_HOPPER="on")
        parts = logits(run, folder, "--random-ids", many, "--prefill-chunk", few, CHASKI_HOPPER="on")
    if not portable or not whole or not parts:
        return False
    error, same = relative_l2(portable, whole), whole == parts
    run.found(relative_l2_to_portable=error, same_bits_in_chunks=same)
    return error < 1e-2 and same


def prefetch(run):
    """Median cycles of loads from a line that was asked for, by their place in it."""
    ran = run.run([run.python, str(PROBE)])
    run.found(**{way: list(cycles.values()) for row in rows(ran.get("result"))
                 for way, cycles in row["cycles"].items()})
    return ran["status"] == 0


def step_lengths(run):
    """Tokens a second of a long prompt by length of a step, with the kernels that are the default."""
    sizes, well = run.sizes, True
    for length in sizes.chunks:
        asked = ["bench", "-m", sizes.model, "-p", sizes.longest, "-n", "0", "-r", sizes.few, "-o", "json"]
        ran = run.run_chaski(*asked, "--prefill-chunk", length)
        well &= ran["status"] == 0
        run.found(**{length: row["avg_ts"] for row in rows(ran.get("result"))})
    return well


def carveouts(run):
    """The read ceiling by how much shared memory kernels have split off the L1 cache."""
    well = True
    for share in ("most", "default", "least"):
        asked = ["bench", "-m", run.sizes.small, "--layers", "1", "-p", run.sizes.prompt, "-n", "0", "-r", "1"]
        ran = run.run_chaski(*asked, "-o", "json", environment={"CHASKI_CARVEOUT": share})
        well &= ran["status"] == 0
        run.found(**{f"{share} GB/s": row["read_gb_per_s"] for row in rows(ran.get("result"))})
    return well


def tiles(run):
    """Tokens a second of prompts by shape of tile."""
    sizes, well = run.sizes, True
    for tile in ("small", "medium", "large"):
        asked = ["bench", "-m", sizes.model, "-p", sizes.prompts, "-n", "0", "-r", sizes.few, "-o", "json"]
        ran = run.run_chaski(*asked, environment={"CHASKI_TILE": tile, "CHASKI_HOPPER": "on"})
        well &= ran["status"] == 0
        run.found(**{f"{tile} {row['test']}": row["avg_ts"] for row in rows(ran.get("result"))})
    return well


def load(run):
    space = shutil.disk_usage(tempfile.gettempdir()).free
    model = run.sizes.model if space > 24e9 else run.sizes.small
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(pathlib.Path(folder) / "checkpoint")
        made = run.run_chaski("synthesize", "-m", model, "--out", checkpoint, on_gpu=False)
        if made["status"] != 0:
            return False
        rates, beyond = [], []
        for _ in range(2):
            ran = run.run_chaski("bench", "-m", checkpoint, "--startup", "-o", "json")
            if ran["status"] != 0:
                return False
            phases = {row["phase"]: row for row in ran["result"]}
            copy_ms = phases["copy"]["ms"]
            rates.append(phases["copy"]["weight_bytes"] / max(copy_ms, 1e-3) / 1e6)
            beyond.append(phases["total"]["ms"] - copy_ms)
        run.found(model=model, gb_per_s=rates, second_token_ms_beyond_copy=beyond)
    return True


def ranks(run):
    """Against one rank, and run to run; then what a sum costs that the hosts make."""
    sizes, errors = run.sizes, {}
    with tempfile.TemporaryDirectory() as folder:
        asked = ["--random-ids", "8", "--context", "64"]
        one = logits(run, folder, *asked)
        for world in sizes.worlds:
            split = ["--devices", ",".join(["0"] * world), "--timeout", "60"]
            several = [logits(run, folder, *asked, *split, on_gpu=False) for _ in range(2)]
            if not one or not all(several):
                return False
            errors[world] = relative_l2(several[0], one)
            run.found(relative_l2=errors)
            if several[0] != several[1] or errors[world] > 2e-2:
                return False
    asked = ["kernels", "bench", "all_reduce", "-m", sizes.model, "-o", "json", "-r", sizes.launches]
    ran = run.run_chaski(*asked, "--devices", "0,0", on_gpu=False)
    sums = {row["ranks"]: row["hosts_us"] for row in rows(ran.get("result")) if row["is_token"]}
    run.found(sum_of_a_token_us_by_hosts=sums)
    return ran["status"] == 0


def peers(run):
    needed = "import torch, transformers, safetensors"
    if run.run([run.python, "-c", needed], probe=True)["status"] != 0:
        raise Absent(f"{run.python} has no torch, transformers and safetensors: see --python")
    sizes = run.sizes
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(pathlib.Path(folder) / "checkpoint")
        ours = str(pathlib.Path(folder) / "logits.safetensors")
        ids = ",".join(str(11 * i % 500 + 1) for i in range(256))
        made = run.run_chaski("synthesize", "-m", sizes.small, "--out", checkpoint, on_gpu=False)
        read = run.run_chaski("logits", "-m", checkpoint, "--ids", ids, "--out", ours)
        asked = ["-p", sizes.prompt, "-n", sizes.tokens, "-r", sizes.few, "-o", "json"]
        ran = run.run_chaski("bench", "-m", checkpoint, *asked)
        peer = [run.python, str(PEERS), "--model", checkpoint, "--ids", ids, "--logits", ours]
        theirs = run.run(peer)
    if any(done["status"] != 0 for done in (made, read, ran, theirs)):
        return False
    theirs, speed = theirs["result"], {row["test"]: row["avg_ts"] for row in ran["result"]}
    tests = {"prefill": f"pp{sizes.prompt}", "decode": f"tg{sizes.tokens}",
             "decode_compiled": f"tg{sizes.tokens}"}
    for peer, test in tests.items():
        mean = theirs.get(peer, {}).get("mean")
        run.found(**{f"{test} over transformers {peer}": mean and speed[test] / mean})
    run.found(model=sizes.small, ours=theirs["ours"], transformers=theirs["transformers"])
    return theirs["ours"]["relative_l2"] <= 2 * theirs["transformers"]["relative_l2"]


def counters(run):
    """Of decode kernels alone, with the clocks as they are."""
    metrics = ["gpu__time_duration.sum", "dram__bytes_read.sum", "lts__t_bytes.sum",
               "dram__throughput.avg.pct_of_peak_sustained_elapsed", "sm__cycles_active.avg",
               "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"]
    watched = [tool("ncu"), "--csv", "--clock-control", "none", "--graph-profiling", "node"]
    watched += ["-k", DECODE, "--launch-count", "48", "--metrics", ",".join(metrics)]
    watched += [run.chaski, "generate", "-m", run.sizes.model, "--layers", "4", "--ids", "1,2,3"]
    return run.run([*watched, "--print-ids", "-n", "4", "--device", "cuda"])["status"] == 0


def memcheck(run):
    """The kernels with the most arithmetic on addresses."""
    watched = [tool("compute-sanitizer"), "--tool", "memcheck", "--target-processes", "all"]
    watched += ["--error-exitcode", "9", run.chaski, "kernels", "check", "--cases", "few"]
    kernels = ["norm_qkv", "attend_decode", "project", "rope_append"]
    return run.run([*watched, *kernels, "--device", "cuda"])["status"] == 0
