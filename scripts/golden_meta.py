"""Golden models as Meta publishes them, by torch.save, and the same weights as transformers has them.

    python scripts/golden_meta.py  # rewrites tests/golden/meta/

Written with Python 3.11, torch 2.15.0 (CPU) and safetensors 0.8.0. The tests only read the files; they never
run this script. Seeded: the same version writes the same bytes, but for torch.save's serialization_id.

Each folder holds params.json and consolidated.NN.pth in `meta/`, and config.json and model.safetensors in
`transformers/`. The order of rows of queries and keys is that of transformers'
convert_llama_weights_to_hf.py (`permute`), written out here by index.

    one    Llama 3.2's form: one file, bf16, the LM head is the embedding, rotary frequencies scaled. Its
           vocabulary is tests/golden/tiny.tiktoken with 256 control tokens.
    split  Llama 3's 70B: two files, f16, split as fairscale's layers are: wo and w2 by columns, the norms in
           both, all else by rows. The dictionary is an OrderedDict with _metadata, as of a module.
"""

import json
import shutil
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent / "tests" / "golden"
COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")
NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def ffn(params):
    """models/llama3/model.py, FeedForward."""
    hidden = int(2 * 4 * params["dim"] / 3)
    if "ffn_dim_multiplier" in params:
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    multiple = params["multiple_of"]
    return multiple * ((hidden + multiple - 1) // multiple)


def weights(params, dtype, tied):
    generator = torch.Generator().manual_seed(7)
    width, hidden, vocab = params["dim"], ffn(params), params["vocab_size"]
    head = width // params["n_heads"]

    def matrix(rows, columns, gain=1.0):
        matrix = torch.randn(rows, columns, generator=generator) * gain / columns**0.5
        return matrix.to(dtype)

    def norm():
        return (1 + 0.2 * torch.randn(width, generator=generator)).to(dtype)

    all = OrderedDict()
    all["tok_embeddings.weight"] = matrix(vocab, width)
    for layer in range(params["n_layers"]):
        part = f"layers.{layer}."
        all[part + "attention.wq.weight"] = matrix(params["n_heads"] * head, width, 1.6)
        all[part + "attention.wk.weight"] = matrix(params["n_kv_heads"] * head, width, 1.6)
        all[part + "attention.wv.weight"] = matrix(params["n_kv_heads"] * head, width)
        all[part + "attention.wo.weight"] = matrix(width, params["n_heads"] * head)
        all[part + "feed_forward.w1.weight"] = matrix(hidden, width)
        all[part + "feed_forward.w3.weight"] = matrix(hidden, width)
        all[part + "feed_forward.w2.weight"] = matrix(width, hidden)
        all[part + "attention_norm.weight"] = norm()
        all[part + "ffn_norm.weight"] = norm()
    all["norm.weight"] = norm()
    all["output.weight"] = all["tok_embeddings.weight"] if tied else matrix(vocab, width)
    return all


def shards(all, count):
    """What each of `count` ranks has."""
    ranks = [OrderedDict() for _ in range(count)]
    for name, tensor in all.items():
        if tensor.dim() == 1:
            pieces = [tensor] * count
        else:
            pieces = tensor.chunk(count, dim=1 if name.endswith(COLUMNS) else 0)
        for rank, piece in zip(ranks, pieces):
            rank[name] = piece.clone() if count > 1 else piece
    return ranks


def of_transformers(all, params, tied):
    head = params["dim"] // params["n_heads"]
    converted = {}
    for name, tensor in all.items():
        module = name.removesuffix(".weight")
        if module == "output" and tied:
            continue
        if module.endswith((".wq", ".wk")):
            # Row i of a head is the even one of Meta's pair i, row i + head / 2 the odd one.
            order = [2 * i + half for half in range(2) for i in range(head // 2)]
            rows = [first + row for first in range(0, len(tensor), head) for row in order]
            tensor = tensor[rows]
        if module.startswith("layers."):
            _, layer, part = module.split(".", 2)
            name = f"model.layers.{layer}.{NAMES[part]}.weight"
        else:
            name = f"{NAMES[module]}.weight"
        converted[name] = tensor.contiguous().clone()
    return converted


def config(params, tied):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": params["dim"],
        "intermediate_size": ffn(params),
        "max_position_embeddings": 131072 if params.get("use_scaled_rope") else 8192,
        "model_type": "llama",
        "num_attention_heads": params["n_heads"],
        "num_hidden_layers": params["n_layers"],
        "num_key_value_heads": params["n_kv_heads"],
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": params["rope_theta"],
        "tie_word_embeddings": tied,
        "vocab_size": params["vocab_size"],
    }
    if params.get("use_scaled_rope"):
        config["rope_scaling"] = {
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        }
    return config


def write(name, params, dtype, tied, count):
    folder = ROOT / "meta" / name
    shutil.rmtree(folder, ignore_errors=True)
    for form in ("meta", "transformers"):
        (folder / form).mkdir(parents=True)
    all = weights(params, dtype, tied)
    for rank, shard in enumerate(shards(all, count)):
        if count > 1:
            shard._metadata = OrderedDict({"": {"version": 1}})
        torch.save(shard if count > 1 else dict(shard), folder / "meta" / f"consolidated.{rank:02}.pth")
    (folder / "meta" / "params.json").write_text(json.dumps(params) + "\n")
    (folder / "transformers" / "config.json").write_text(json.dumps(config(params, tied)) + "\n")
    save_file(of_transformers(all, params, tied), folder / "transformers" / "model.safetensors")


def main():
    ranks = len((ROOT / "tiny.tiktoken").read_text().splitlines())
    common = {"n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "norm_eps": 1e-05, "rope_theta": 500000.0}
    one = {"dim": 32, "ffn_dim_multiplier": 1.3, "multiple_of": 16, "use_scaled_rope": True}
    write("one", one | common | {"vocab_size": ranks + 256}, torch.bfloat16, True, 1)
    write("split", {"dim": 32, "multiple_of": 32} | common | {"vocab_size": 96}, torch.float16, False, 2)


if __name__ == "__main__":
    main()
