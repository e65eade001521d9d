"""The folder that is carried to a machine with a GPU."""

import pathlib
import re
import shutil
import subprocess

MOST_BYTES = 64 << 20
CARRIED = ["scripts/hardware.py", "scripts/peers.py", "scripts/gpu", "tests/demo/questions.jsonl",
           "docs/first-gpu.md", "kernels"]


def pack(folder, root, binaries):
    """Fills a new folder with the scripts, what they read and `binaries` by name, stripped. Returns what
    is to be known of it, in a line.

    Raises ValueError where it is too large, a binary cannot be stripped or the folder is there."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    for name in CARRIED:
        source, copy = root / name, folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy)
    needed = [strip(binary, folder / name) for name, binary in binaries.items() if binary]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        sizes = ", ".join(f"{name} {(folder / name).stat().st_size >> 20} MiB" for name in binaries
                          if (folder / name).exists())
        raise ValueError(f"{folder} has {size >> 20} MiB, more than {MOST_BYTES >> 20}: {sizes}")
    return f"{folder}: {size / (1 << 20):.1f} MiB, for Linux with glibc {max(needed, key=numbers)} or newer"


def strip(binary, copy):
    """Copies a binary without its symbols. Returns the version of glibc that it needs."""
    done = subprocess.run(["strip", "-o", copy, binary], capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"cannot strip {binary}: {done.stderr.strip()}")
    versions = re.findall(rb"GLIBC_([0-9]+(?:\.[0-9]+)+)", pathlib.Path(copy).read_bytes())
    return max((version.decode() for version in versions), key=numbers, default="0")


def numbers(version):
    return [int(number) for number in version.split(".")]
