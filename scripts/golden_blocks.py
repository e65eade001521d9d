#!/usr/bin/env python3
"""What ggml's blocks stand for, by the numpy of the package gguf: tests/golden/blocks.json.

    pip install gguf==0.19.0
    scripts/golden_blocks.py

For each type some blocks of random bytes, whose scales are made to be ordinary, zero, subnormal, large and
negative in turn, and the bits of the numbers.
"""

import json
import pathlib

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "blocks.json"
# Where a block's f16 numbers are.
HALVES = {
    Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}
SCALES = [0.0123, 0.0, 6e-8, 3.1e-5, 700.0, -0.25]


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
    OUT.write_text(json.dumps(golden, indent=0) + "\n")


main()
