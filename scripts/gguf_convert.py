#!/usr/bin/env python3
"""A Llama between GGUF and a folder in Hugging Face's form, as far as benchmarks need it.

    gguf_convert.py to-folder MODEL.gguf FOLDER    # f16 or f32 weights and the tokenizer, not the chat's rules
    gguf_convert.py to-gguf FOLDER MODEL.gguf      # weights of any type; no tokenizer

Needs gguf and numpy. GGUF interleaves the halves of each head of q and k, which Hugging Face's form has
one after the other.
"""

import json
import pathlib
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# How safetensors calls a type, its size as numpy has it, and how GGUF calls it.
TYPES = {
    "F32": (np.float32, GGMLQuantizationType.F32),
    "F16": (np.float16, GGMLQuantizationType.F16),
    "BF16": (np.uint16, GGMLQuantizationType.BF16),
}


def rotated(rows, heads, halves_first):
    """The rows of q or k with the halves of each head one after the other, or interleaved."""
    size = len(rows) // heads // 2
    shape = (heads, size, 2) if halves_first else (heads, 2, size)
    return rows.reshape(*shape, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def to_folder(source, folder):
    reader = GGUFReader(source)
    field = lambda name: reader.fields[name].contents()
    llama = lambda name: field(f"llama.{name}")
    heads = {"attn_q": llama("attention.head_count"), "attn_k": llama("attention.head_count_kv")}
    tensors = {}
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float16)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in heads:
                values = rotated(values, heads[parts[2]], halves_first=True)
            tensors[f"model.layers.{parts[1]}.{LAYER[parts[2]]}.weight"] = ("F16", values)
        else:
            tensors[f"{OUTER[parts[0]]}.weight"] = ("F16", values)
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": llama("embedding_length"),
        "intermediate_size": llama("feed_forward_length"),
        "max_position_embeddings": llama("context_length"),
        "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"],
        "num_hidden_layers": llama("block_count"),
        "rms_norm_eps": round(llama("attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": float(llama("rope.freq_base")),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "vocab_size": len(tokens),
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    control = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **control}
            for i, (token, kind) in enumerate(zip(tokens, kinds))
            if kind == 3
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": field("tokenizer.ggml.merges"),
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, (dtype, values) in tensors.items():
        span = [offset, offset + values.nbytes]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in tensors.values():
            file.write(np.ascontiguousarray(values).tobytes())


def read_safetensors(folder):
    """Name, type and values of every tensor of the folder."""
    for path in sorted(folder.glob("*.safetensors")):
        stored = np.memmap(path, np.uint8, "r")
        [size] = struct.unpack("<Q", stored[:8].tobytes())
        header = json.loads(stored[8 : 8 + size].tobytes())
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            begin, end = (8 + size + offset for offset in tensor["data_offsets"])
            values = stored[begin:end].view(TYPES[tensor["dtype"]][0]).reshape(tensor["shape"])
            yield name, tensor["dtype"], values


def to_gguf(folder, path):
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    inner = {name: short for short, name in LAYER.items()}
    outer = {name: short for short, name in OUTER.items()}
    halves = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}
    for name, dtype, values in read_safetensors(folder):
        name = name.removesuffix(".weight")
        if name.startswith("model.layers."):
            _, _, layer, part = name.split(".", 3)
            if part in halves:
                values = rotated(values, halves[part], halves_first=False)
            name = f"blk.{layer}.{inner[part]}"
        else:
            name = outer[name]
        kind = TYPES[dtype][1]
        if values.ndim == 1:  # norms, which llama.cpp wants in f32
            wide = values.astype(np.uint32) << 16 if dtype == "BF16" else values.astype(np.float32)
            values, kind = wide.view(np.float32), GGMLQuantizationType.F32
        values = np.ascontiguousarray(values)
        writer.add_tensor(f"{name}.weight", values.view(np.uint8) if dtype == "BF16" and values.ndim > 1 else values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    convert = {"to-folder": to_folder, "to-gguf": to_gguf}[sys.argv[1]]
    convert(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
