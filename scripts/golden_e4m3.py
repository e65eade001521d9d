"""All numbers of torch's float8_e4m3fn as bits of f32.

    python scripts/golden_e4m3.py  # rewrites tests/golden/e4m3.json

Written with Python 3.11 and torch 2.15.0 (CPU). The tests only read the file.
"""

import json
from pathlib import Path

import torch

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "e4m3.json"
numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
bits = [bits & 0xFFFFFFFF for bits in numbers.view(torch.int32).tolist()]
GOLDEN.write_text(json.dumps(bits) + "\n")
