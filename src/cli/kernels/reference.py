"""python3 reference.py SCRIPT IN.safetensors NUMBERS OUT.safetensors: gives the arrays of IN and the numbers, which
are JSON, to the script's function `reference`, those by whose names it has parameters, and writes the arrays that it
returns in a dict."""

import importlib.util
import inspect
import json
import sys

try:
    import numpy
except ModuleNotFoundError:
    sys.exit("python3 has no numpy: pip install numpy")

TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?",
}  # fmt: skip


def read(path):
    """Name to array. bf16 becomes float32, which has all of its numbers."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            words = numpy.frombuffer(data[begin:end], "<u2").astype("<u4") << 16
            array = words.view("<f4")
        else:
            array = numpy.frombuffer(data[begin:end], TYPES[entry["dtype"]])
        arrays[name] = array.reshape(entry["shape"]).copy()
    return arrays


def write(path, arrays):
    header, data = {}, b""
    for name, array in arrays.items():
        array = numpy.asarray(array)
        known = [key for key, kind in TYPES.items() if numpy.dtype(kind) == array.dtype]
        if not known:
            array, known = array.astype("<f8"), ["F64"]
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": known[0], "shape": list(array.shape), "data_offsets": offsets}
        data += numpy.ascontiguousarray(array).tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)


def main(script, inputs, numbers, outputs):
    given = {**read(inputs), **json.loads(numbers)}
    spec = importlib.util.spec_from_file_location("reference", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "reference"):
        sys.exit("it has no function `reference`")
    wanted = inspect.signature(module.reference).parameters
    unknown = [name for name, p in wanted.items() if name not in given and p.default is p.empty]
    if unknown:
        sys.exit(f"reference wants {', '.join(unknown)}: there are {', '.join(sorted(given))}")
    result = module.reference(**{name: given[name] for name in wanted if name in given})
    if not isinstance(result, dict):
        sys.exit("reference is to return a dict of arrays by the names of arguments")
    write(outputs, result)


main(*sys.argv[1:])
