#!/usr/bin/env python3
"""Rewrites the tables between marks in PERFORMANCE.md from benches/record.

    scripts/records.py --chaski target/release/chaski       # any build of the same sources

A table is made of records from real GPUs alone, whatever their names; of several that measured the
same thing on the same GPU the newest counts. A record with rows of another device than the one that
it is filed under is refused. A kernel is verified on a GPU when all its cases have passed there at
the source hash that it has now: once the source changes it is unverified again.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"
# Tokens per second that PERFORMANCE.md aims at: (must, good), by GPU, model and test.
TARGETS = {
    (H100, "synthetic:llama3-8b", "tg128"): (179, 190),
    (H100, "synthetic:llama3-8b", "tg128@d8192"): (166, 175),
    (H100, "synthetic:llama3-8b", "tg128@d32768"): (138, 145),
    (H100, "synthetic:llama3-8b", "pp2048"): (37900, 44500),
    (H200, "synthetic:llama3-8b", "tg128"): (256, 272),
    (H200, "synthetic:llama3-8b", "tg128@d8192"): (238, 250),
    (H200, "synthetic:llama3-8b", "tg128@d32768"): (199, 209),
}


def real_records(folder):
    """Oldest first."""
    records = []
    for path in sorted(folder.glob("*/*.json")):
        record = json.loads(path.read_text())
        if record["emulated"]:
            continue
        for step in record["steps"]:
            others = {row["device"] for row in rows_of(step) if "device" in row} - {record["gpu"]}
            if others:
                raise ValueError(f"{path} is of {record['gpu']}, and its step {step['name']} of {others.pop()}")
        records.append(record)
    return sorted(records, key=lambda record: record["date"])


def rows_of(step):
    """All that the step's commands have printed, each with the environment that was chosen for it."""
    for run in step["runs"]:
        result = run.get("result")
        for row in result if isinstance(result, list) else [result]:
            if isinstance(row, dict):
                chosen = " ".join(f"{name}={value}" for name, value in run["environment"].items())
                yield row | {"environment": chosen}


def rows_for(records, table):
    """The rows that are for a table, each with its record, oldest first."""
    for record in records:
        for step in record["steps"]:
            if step["table"] == table:
                yield from ((row, record) for row in rows_of(step))


def table(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    cells = ([str(cell).replace("|", "/") for cell in line] for line in lines)
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)


def day(record):
    return record["date"].split()[0]


def number(value, form="{:.1f}", scale=1):
    return "-" if value is None else form.format(scale * value)


def verified(records, kernels):
    """Every kernel, and the GPUs on which it has passed as it is now."""
    passed = {}
    for row, record in rows_for(records, "verified"):
        gpus = passed.setdefault((row["kernel"], row["source_hash"]), {})
        if row["wrong"]:
            gpus.pop(record["gpu"], None)
        elif row["cases"] > 0:
            cases = max(row["cases"], gpus.get(record["gpu"], (0, ""))[0])
            gpus[record["gpu"]] = (cases, day(record))
    rows = []
    for kernel in kernels:
        gpus = passed.get((kernel["name"], kernel["source_hash"]), {})
        if not gpus:
            rows.append([kernel["name"], "unverified", "", "", ""])
        for gpu, (cases, date) in sorted(gpus.items()):
            rows.append([kernel["name"], gpu, cases, date, f"`{kernel['source_hash']}`"])
    return table(["kernel", "verified on", "cases", "date", "source hash"], rows)


def speed(records):
    """The newest row of each test, beside its target."""
    newest = {}
    for row, record in rows_for(records, "speed"):
        newest[record["gpu"], row["model"], row["test"], row["environment"]] = (row, record)
    rows = []
    for (gpu, model, test, chosen), (row, record) in newest.items():
        must, good = TARGETS.get((gpu, model, test), ("", ""))
        rows.append([
            gpu, model, test, chosen, f"{row['avg_ts']:.1f} ± {row['stddev_ts']:.1f}",
            number(row["bandwidth_fraction"], "{:.0f}%", 100), number(row["tflops"]),
            number(row.get("joules_per_token"), "{:.3f}"), number(row.get("sm_clock_mhz"), "{:.0f}"),
            ", ".join(row.get("throttle_reasons") or []) or "-", must, good, day(record),
        ])
    titles = "GPU, model, test, with, tokens/s, of read, TFLOP/s, J/token, MHz, throttled, must, good, date"
    return table(titles.split(", "), rows) if rows else ""


def alone(records):
    """Kernels on their own."""
    newest = {}
    for row, record in rows_for(records, "kernels"):
        what = (row["kernel"], row["phase"], row["shape"], row["against"], row["environment"])
        newest[record["gpu"], *what] = (row, record)
    rows = [
        [gpu, kernel, f"{phase} {shape}", chosen, number(row["time_us"], "{:.2f}"), number(row["gb_per_s"]),
         number(row["tflops"]), number(row["ceiling_fraction"], "{:.0f}%", 100),
         f"{row['ratio']:.2f} x {against}" if row["ratio"] else "", day(record)]
        for (gpu, kernel, phase, shape, against, chosen), (row, record) in newest.items()
    ]
    titles = "GPU, kernel, sizes, with, us, GB/s, TFLOP/s, of ceiling, beside, date"
    return table(titles.split(", "), rows) if rows else ""


def steps(records):
    """What each step has come to, the last time it was done."""
    newest = {}
    for record in records:
        for step in record["steps"]:
            newest[record["gpu"], step["name"]] = (step, record)
    rows = []
    for (gpu, name), (step, record) in newest.items():
        facts = [f"{fact.replace('_', ' ')} {compact(value)}" for fact, value in step["found"].items()]
        said = "; ".join(facts + [step[key] for key in ["reason"] if key in step])
        again = f", {step['again']['status']} under CHASKI_SYNC=on" if "again" in step else ""
        came_out = step["status"] + again
        rows.append([gpu, name, step["proves"], came_out, said, day(record)])
    titles = ["GPU", "step", "proves", "came out", "found", "date"]
    return table(titles, rows) if rows else ""


def compact(value):
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return ", ".join(map(compact, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}: {compact(each)}" for name, each in value.items())
    return str(value)


def rewrite(text, tables):
    """`text` with what stands between the marks of each table replaced."""
    for name, body in tables.items():
        begin, end = f"<!-- records: {name} -->\n", f"<!-- records: end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the marks of the table {name} do not stand there once")
        inside = body or "No record from a real GPU yet.\n"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        text = pattern.sub(lambda _: begin + "\n" + inside + "\n" + end, text)
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chaski", required=True, help="a binary of these sources")
    parser.add_argument("--records", type=pathlib.Path, default=ROOT / "benches" / "record")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "PERFORMANCE.md")
    arguments = parser.parse_args()
    try:
        listed = subprocess.run(
            [arguments.chaski, "kernels", "list", "--json"], capture_output=True, text=True, check=True
        )
        records = real_records(arguments.records)
        tables = {
            "verified": verified(records, json.loads(listed.stdout)),
            "speed": speed(records),
            "kernels": alone(records),
            "steps": steps(records),
        }
        text = arguments.page.read_text()
        partial = arguments.page.with_suffix(".partial")
        partial.write_text(rewrite(text, tables))
        os.replace(partial, arguments.page)
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError) as error:
        print(f"cannot rewrite {arguments.page}: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.page}: tables of {len(records)} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
