#!/usr/bin/env python3
"""What ggml's blocks stand for, and what numbers become in them, by the numpy of the package gguf:
tests/golden/blocks.json and tests/golden/quantised.json.

    pip install gguf==0.19.0
    scripts/golden_blocks.py

For each type some blocks of random bytes, whose scales are made to be ordinary, zero, subnormal, large and
negative in turn, and the bits of the numbers. Numbers of every magnitude, of which some blocks have the same
twice, all alike, zeros, or halves of a scale, as each type has them.
"""

import json
import pathlib

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
# Where a block's f16 numbers are.
HALVES = {
    Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}
SCALES = [0.0123, 0.0, 6e-8, 3.1e-5, 700.0, -0.25]


def plain(random):
    """[N, 32]"""
    rows = random.standard_normal((80, 32)) * 10.0 ** random.integers(-9, 5, (80, 1))
    rows[0] = 0
    rows[1] = 0.7
    rows[2] = -0.7
    rows[3, ::2] = -rows[3, 1::2]
    # Halfway between two whole numbers of scales.
    rows[4] = numpy.arange(32) / 2 - 8
    rows[5] = (numpy.arange(32) - 16) * 4 + 0.5
    rows[5, 0] = 127
    rows[6] = rows[5] * -0.25
    rows[7] = 2.0 ** -numpy.arange(32)
    rows[8] = -(2.0 ** -numpy.arange(32))
    rows[10:30] = random.integers(-16, 17, (20, 32)) / 2
    rows[10:30, 7] = 8
    rows[20:30, 7] = -8
    # As 16-bit weights are.
    rows[30:50] = rows[30:50].astype(numpy.float16)
    bits = rows[50:70].astype(numpy.float32).view(numpy.uint32)
    rows[50:70] = (bits & 0xffff0000).view(numpy.float32)
    # Not -0: of a block of such zeros the package's scale has another sign than ggml's.
    return rows.astype(numpy.float32) + numpy.float32(0)


def write(name, golden):
    (FOLDER / name).write_text(json.dumps(golden, indent=0) + "\n")


def main():
    random = numpy.random.default_rng(17)
    golden = {}
    for kind, halves in HALVES.items():
        _, size = GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (len(SCALES), size), dtype=numpy.uint8)
        for i, block in enumerate(blocks):
            for j, at in enumerate(halves):
                scale = numpy.array([SCALES[(i + 2 * j) % len(SCALES)]], dtype=numpy.float16)
                block[at : at + 2] = scale.view(numpy.uint8)
        numbers = dequantize(blocks, kind).astype(numpy.float32)
        golden[kind.name] = {"blocks": blocks.tobytes().hex(), "numbers": numbers.tobytes().hex()}
    write("blocks.json", golden)
    x = plain(random)
    golden = {kind.name: quantize(x, kind).tobytes().hex() for kind in (Type.Q8_0, Type.Q4_0)}
    write("quantised.json", {"numbers": x.tobytes().hex(), **golden})


main()
