"""When blocks of decode kernels do what, by their multiprocessors' clocks: made by kernels that have
stamps compiled in (kernels/lib/stamps.cuh), read as medians."""

import collections
import json
import pathlib
import shutil
import statistics
import tempfile

KERNELS = pathlib.Path(__file__).resolve().parent.parent.parent / "kernels"
# All of a decode step.
STAMPED = ["sample", "embed", "norm_qkv", "attend_decode", "project", "norm_gate_up", "norm_head"]
MOMENTS = ["begins", "waited", "staged", "lets", "ends"]


def stamps(run):
    """Medians in cycles, from moment to moment of a kernel's blocks, and from the end of a block to where
    the next kernel's block on the same multiprocessor may read."""
    with tempfile.TemporaryDirectory() as folder:
        copy, file = pathlib.Path(folder) / "kernels", pathlib.Path(folder) / "stamps.jsonl"
        shutil.copytree(KERNELS, copy)
        header = copy / "lib" / "stamps.cuh"
        header.write_text("#define STAMPS\n" + header.read_text())
        stamped = [f"--kernel={name}={copy / name}.cu" for name in STAMPED]
        asked = ["generate", "-m", run.sizes.model, "--layers", run.sizes.stamped_layers, "--ids", "1,2,3"]
        asked += ["--print-ids", "-n", run.sizes.stamped_tokens]
        ran = run.run_chaski(*asked, *stamped, environment={"CHASKI_STAMPS": str(file)})
        records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    run.found(blocks=len(records), **within(records), **between(records))
    return ran["status"] == 0 and {record["op"] for record in records} >= set(STAMPED)


def within(records):
    """By kernel and moment: cycles since the moment before. One that never came is left out."""
    cycles = collections.defaultdict(list)
    for record in records:
        before = record["clocks"][0]
        for moment, clock in list(zip(MOMENTS, record["clocks"]))[1:]:
            if clock:
                cycles[f"{record['op']} {moment}"].append(clock - before)
                before = clock
    return {what: statistics.median(took) for what, took in sorted(cycles.items())}


def between(records):
    """By pair of kernels that follow each other: what a multiprocessor waits from one to the other."""
    blocks = collections.defaultdict(list)
    for record in records:
        blocks[record["multiprocessor"]].append(record)
    gaps = collections.defaultdict(list)
    for here in blocks.values():
        here.sort(key=lambda record: record["clocks"][0])
        for before, after in zip(here, here[1:]):
            if after["number"] == before["number"] + 1:
                gap = after["clocks"][MOMENTS.index("waited")] - before["clocks"][MOMENTS.index("ends")]
                gaps[f"{before['op']} to {after['op']}"].append(gap)
    return {what: statistics.median(gap) for what, gap in sorted(gaps.items())}
