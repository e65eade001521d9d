#!/usr/bin/env python3
"""The weights of a Hugging Face folder of a Llama as GGUF, without a tokenizer: what benchmarks need.

    write_gguf.py FOLDER MODEL.gguf

Needs gguf and numpy. GGUF has those rows of q and k side by side that RoPE turns together.
"""

import json
import pathlib
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

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


def side_by_side(rows, heads):
    """The rows of q or k with the halves of each head interleaved."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


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
                values = side_by_side(values, halves[part])
            name = f"blk.{layer}.{inner[part]}"
        else:
            name = outer[name]
        kind = TYPES[dtype][1]
        if values.ndim == 1:  # norms, which llama.cpp wants in f32
            wide = values.astype(np.uint32) << 16 if dtype == "BF16" else values.astype(np.float32)
            values, kind = wide.view(np.float32), GGMLQuantizationType.F32
        values = np.ascontiguousarray(values)
        if kind == GGMLQuantizationType.BF16:
            values = values.view(np.uint8)  # numpy has no such type
        writer.add_tensor(f"{name}.weight", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    to_gguf(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
