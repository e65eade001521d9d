#!/usr/bin/env python3
"""Rewrites the tables between marks in PERFORMANCE.md from benches/record.

    scripts/records.py --chaski target/release/chaski       # any build of the same sources

A table is made of records from real GPUs alone, none of them --quick; of several that measured the
same thing on the same GPU the newest counts. A kernel is verified on a GPU when all its cases have
passed there at the source hash that it has now: once the source changes it is unverified again.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Tokens per second that PERFORMANCE.md aims at: (must, good), by GPU, model and test.
TARGETS = {
    ("H100", "synthetic:llama3-8b", "tg128"): (179, 190),
    ("H100", "synthetic:llama3-8b", "tg128@d8192"): (166, 175),
    ("H100", "synthetic:llama3-8b", "tg128@d32768"): (138, 145),
    ("H100", "synthetic:llama3-8b", "pp2048"): (37900, 44500),
    ("H200", "synthetic:llama3-8b", "tg128"): (256, 272),
    ("H200", "synthetic:llama3-8b", "tg128@d8192"): (238, 250),
    ("H200", "synthetic:llama3-8b", "tg128@d32768"): (199, 209),
}


def real_records(folder):
    """Oldest first."""
    records = []
    for path in sorted(folder.glob("*/*.json")):
        record = json.loads(path.read_text())
        if not record["emulated"] and not record["quick"]:
            records.append(record)
    return sorted(records, key=lambda record: record["date"])


def steps(record, *parts):
    for name in parts or record["parts"]:
        yield from record["parts"].get(name, {}).get("steps", [])


def table(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def day(record):
    return record["date"].split()[0]


def number(value, form="{:.1f}", scale=1):
    return "-" if value is None else form.format(scale * value)


def verified(records, kernels):
    """Every kernel, and the GPUs on which it has passed as it is now."""
    passed = {}
    for record in records:
        for step in steps(record, "check"):
            results = step.get("result")
            for result in results if isinstance(results, list) else []:
                key = (result["kernel"], result["source_hash"])
                gpus = passed.setdefault(key, {})
                if result["wrong"]:
                    gpus.pop(record["gpu"], None)
                else:
                    cases = max(result["cases"], gpus.get(record["gpu"], (0, ""))[0])
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
    for record in records:
        for step in steps(record, "bench"):
            rows = step.get("result")
            for row in rows if isinstance(rows, list) else []:
                newest[record["gpu"], row["model"], row["test"]] = (row, record)
    rows = []
    for (gpu, model, test), (row, record) in newest.items():
        targets = [goal for (card, *what), goal in TARGETS.items() if card in gpu and what == [model, test]]
        must, good = targets[0] if targets else ("", "")
        rows.append([
            gpu, model, test, f"{row['avg_ts']:.1f} ± {row['stddev_ts']:.1f}",
            number(row["bandwidth_fraction"], "{:.0f}%", 100), number(row["tflops"]),
            number(row.get("joules_per_token"), "{:.3f}"), number(row.get("sm_clock_mhz"), "{:.0f}"),
            ", ".join(row.get("throttle_reasons") or []) or "-", must, good, day(record),
        ])
    titles = "GPU, model, test, tokens/s, of read, TFLOP/s, J/token, MHz, throttled, must, good, date"
    return table(titles.split(", "), rows) if rows else ""


def alone(records):
    """Kernels on their own."""
    newest = {}
    for record in records:
        for step in steps(record, "kernels"):
            rows = step.get("result")
            for row in rows if isinstance(rows, list) else []:
                what = (row["kernel"], row["phase"], row["shape"], row["against"])
                newest[record["gpu"], *what] = (row, record)
    rows = [
        [gpu, kernel, f"{phase} {shape}", number(row["time_us"], "{:.2f}"), number(row["gb_per_s"]),
         number(row["tflops"]), number(row["ceiling_fraction"], "{:.0f}%", 100),
         f"{row['ratio']:.2f} x {against}" if row["ratio"] else "", day(record)]
        for (gpu, kernel, phase, shape, against), (row, record) in newest.items()
    ]
    titles = "GPU, kernel, sizes, us, GB/s, TFLOP/s, of ceiling, beside, date"
    return table(titles.split(", "), rows) if rows else ""


def parts(records):
    """What each part has come to, the last time it was done."""
    newest = {}
    for record in records:
        for name, part in record["parts"].items():
            newest[record["gpu"], name] = (part, record)
    rows = []
    for (gpu, name), (part, record) in newest.items():
        facts = [f"{fact.replace('_', ' ')} {compact(value)}" for fact, value in part["found"].items()]
        said = "; ".join(facts + [part[key] for key in ["reason"] if key in part])
        rows.append([gpu, name, part["status"], said.replace("|", "/"), day(record)])
    return table(["GPU", "part", "came out", "found", "date"], rows) if rows else ""


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
            "parts": parts(records),
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
