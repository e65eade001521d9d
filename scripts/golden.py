"""Golden data for the forward pass and for RoPE, with transformers as the oracle.

    python scripts/golden.py [CASE ...]  # rewrites tests/golden/<case>/ and tests/golden/rope.json

Written with Python 3.11, torch 2.15.0 (CPU), transformers 5.23.0 (cases
that were added later: 5.24.0) and safetensors 0.8.0. The tests
only read the files; they never run this script. It is seeded: on the same versions and the same
kind of CPU it writes the same bytes.

Each case is a small LlamaForCausalLM with random weights, wide enough that attention is not flat:
q/k std 1.6/sqrt(fan-in), all others 1/sqrt(fan-in), norms 1 +- 0.2. It is saved in its dtype and
RELOADED in float32 through the config.json written here by hand. Casting a module to 16 bits and
back would also round its `inv_freq` buffer, which costs 3% in the logits.

A folder holds config.json, generation_config.json, the weights as safetensors (one file, or shards
with an index), and expected.safetensors:
    ids     I32 [T]      the prompt
    logits  F32 [T, V]   float32, eager attention, at every position of the prompt
    greedy  I32 [64]     the greedy continuation of ids, eos ignored
    margin  F32 [64]     best minus second best logit at each greedy step

rope.json is a list of tables of inverse frequencies in radians per position:
    head_dim, config   the parameters, as config.json has them
    length             tokens of the text, where the table depends on it
    frequencies        all head_dim/2 values, formed by transformers in float32 throughout:
                       a float64 computation rounded once may differ by up to 5e-7 relative
    magnitude          what the cosines and sines are multiplied with
    golden             single values {index: value} known independently of transformers
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent / "tests" / "golden"
STEPS = 64
MIN_MARGIN = 0.01  # a relative L2 error of 1e-4 moves a difference of logits by 0.003 at most
MIN_DISTINCT = 16  # greedy text that only repeats itself would test little
MAX_BYTES = 10_000_000


@dataclass
class Case:
    name: str
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    dtype: str
    layers: int = 2
    tied: bool = False
    prompt: int = 40
    theta: float = 500000.0
    factor: float | None = None  # llama3 scaling, none when absent
    original: int = 32  # original_max_position_embeddings: short, so that scaling bites at once
    spelling: str = "rope_type"  # "rope_type" or "type" (transformers 4), "rope_parameters" (5)
    explicit_head_dim: bool = True
    eos: int | list[int] = 2
    generation_eos: int | list[int] = 2
    shard_bytes: int | None = None
    rope: dict | None = None  # scaling of another type than llama3, all of its keys
    longest: int = 256  # max_position_embeddings
    other_dtypes: dict | None = None  # of weights by a part of their names

    def scaling(self, type_key):
        if self.rope is not None:
            return self.rope
        if self.factor is None:
            return None
        return {
            "factor": self.factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": self.original,
            type_key: "llama3",
        }

    def config(self):
        """config.json as transformers 4 or 5 would spell it."""
        v5 = self.spelling == "rope_parameters"
        config = {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "dtype" if v5 else "torch_dtype": self.dtype,
            "eos_token_id": self.eos,
            "hidden_act": "silu",
            "hidden_size": self.width,
            "initializer_range": 0.02,
            "intermediate_size": self.ffn,
            "max_position_embeddings": self.longest,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": self.tied,
            "transformers_version": "5.23.0" if v5 else "4.43.0",
            "use_cache": True,
            "vocab_size": self.vocab,
        }
        if self.explicit_head_dim:
            config["head_dim"] = self.head_dim
        if v5:
            scaling = self.scaling("rope_type") or {"rope_type": "default"}
            config["rope_parameters"] = {"rope_theta": self.theta} | scaling
        else:
            config["rope_theta"] = self.theta
            config["rope_scaling"] = self.scaling(self.spelling)
        return config

    def generation_config(self):
        return {
            "bos_token_id": 1,
            "do_sample": True,
            "eos_token_id": self.generation_eos,
            "temperature": 0.6,
            "top_p": 0.9,
            "transformers_version": self.config()["transformers_version"],
        }


CASES = [
    # Llama 2: no grouping, no scaling, head_dim derived, ffn not a multiple of 16.
    Case("mha-hd64-f32", 128, 2, 2, 64, 168, 33, "float32", theta=10000.0, explicit_head_dim=False),
    # Llama 3.1 8B: untied, factor 8, sharded.
    Case("gqa4-hd128-bf16-sharded", 64, 8, 2, 128, 168, 257, "bfloat16", factor=8.0,
         eos=[2, 3, 5], generation_eos=[2, 3, 5], shard_bytes=300_000),
    # Llama 3.2 1B: tied, factor 32, the spelling of transformers 5.
    Case("gqa4-hd64-bf16-tied", 64, 8, 2, 64, 184, 131, "bfloat16", layers=3, tied=True,
         factor=32.0, original=16, spelling="rope_parameters", generation_eos=[2, 7]),
    # The older key `type` instead of `rope_type`.
    Case("gqa8-hd64-f16", 64, 16, 2, 64, 176, 131, "float16", factor=8.0, spelling="type"),
    # A prompt well past the original context, one KV head.
    Case("gqa8-hd128-f16-tied-long", 64, 8, 1, 128, 168, 193, "float16", tied=True, prompt=90,
         factor=32.0, original=24, spelling="rope_parameters", eos=[2, 3], generation_eos=4),
    # Llama 3.2 3B's ratio 3, in float32, sharded; no scaling in the spelling of transformers 5.
    Case("gqa3-hd64-f32-tied-sharded", 96, 3, 1, 64, 104, 67, "float32", tied=True,
         spelling="rope_parameters", shard_bytes=200_000),
    # What can be split over 2, 4 and 8 ranks on GPUs, the KV heads over 4 at most.
    Case("split-gqa2-hd64-bf16", 64, 8, 4, 64, 192, 131, "bfloat16", factor=8.0),
    # Other widths of heads, odd numbers of them, and weights of several types.
    Case("mha7-hd32-bf16", 56, 7, 7, 32, 72, 67, "bfloat16", theta=10000.0),
    Case("gqa3-hd48-f16", 72, 9, 3, 48, 88, 67, "float16", factor=8.0),
    Case("gqa5-hd80-bf16-f32-norms-head", 80, 5, 1, 80, 104, 67, "bfloat16", theta=10000.0,
         other_dtypes={"norm": "float32", "lm_head": "float32"}),
    Case("gqa2-hd96-bf16-f16", 64, 4, 2, 96, 88, 67, "bfloat16", theta=10000.0,
         other_dtypes={"embed": "float16", "q_proj": "float16", "up_proj": "float16",
                       "1.input_layernorm": "float16"}),
    Case("gqa3-hd100-f32-linear", 48, 3, 1, 100, 72, 67, "float32", theta=10000.0,
         spelling="type", rope={"type": "linear", "factor": 4.0}),
    Case("gqa2-hd112-bf16-yarn", 48, 2, 1, 112, 72, 67, "bfloat16", theta=10000.0,
         rope={"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16,
               "finetuned": True}, spelling="type"),
    Case("gqa2-hd256-f16", 32, 2, 1, 256, 72, 67, "float16"),
    # What there are kernels for: SmolLM2's heads, and scalings that turn and stretch.
    Case("gqa3-hd64-bf16-heads9-yarn", 72, 9, 3, 64, 72, 67, "bfloat16", theta=10000.0,
         rope={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32,
               "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 24, "attention_factor": None},
         spelling="rope_parameters"),
    Case("gqa3-hd64-f16-linear", 48, 3, 1, 64, 72, 67, "float16", theta=10000.0,
         rope={"rope_type": "linear", "factor": 2.5}, spelling="rope_parameters"),
    # A text past the length that the model was made for.
    Case("gqa2-hd64-bf16-dynamic", 64, 4, 2, 64, 72, 67, "bfloat16", theta=10000.0, longest=24,
         rope={"type": "dynamic", "factor": 8.0}, spelling="type"),
]

YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}

# (head_dim, theta, max_position_embeddings, scaling, length) of tables, beside those below.
ROPE_TABLES = [
    (128, 10000.0, 32768, {"type": "linear", "factor": 8.0}, None),
    (96, 500000.0, 4096, {"rope_type": "linear", "factor": 1.5}, None),
    (128, 10000.0, 4096, {"type": "dynamic", "factor": 2.0}, None),
    (128, 10000.0, 4096, {"type": "dynamic", "factor": 2.0}, 4096),
    (128, 10000.0, 4096, {"type": "dynamic", "factor": 2.0}, 4097),
    (100, 10000.0, 4096, {"type": "dynamic", "factor": 4.0}, 16384),
    (64, 500000.0, 2048, {"rope_type": "dynamic", "factor": 8.0}, 12345),
    (128, 10000.0, 65536, {"type": "yarn", "factor": 16.0,
                           "original_max_position_embeddings": 4096, "finetuned": True}, None),
    (128, 10000.0, 65536, YARN | {"attention_factor": 1.25}, None),
    (64, 10000.0, 65536, YARN | {"mscale": 0.707, "mscale_all_dim": 1.0}, None),
    (64, 10000.0, 65536, YARN | {"mscale": 0.707}, None),
    (80, 500000.0, 65536, YARN | {"beta_fast": 20, "beta_slow": 2.5}, None),
    (112, 500000.0, 65536, YARN | {"truncate": False}, None),
    (128, 10000.0, 65536, YARN | {"factor": None}, None),
    (128, 10000.0, 4096, {"rope_type": "yarn", "factor": 2.0}, None),
    (32, 10000.0, 1024, YARN | {"factor": 1.0, "original_max_position_embeddings": 8}, None),
]

# (head_dim, factor) -> single inverse frequencies for theta 500000, low 1, high 4, old 8192, worked
# out from Meta's formula in float64.
ROPE_GOLDEN = {
    (128, 8.0): {
        28: 3.211445995e-3, 29: 2.166570764e-3, 30: 1.371893568e-3, 31: 8.567514129e-4,
        32: 5.248461610e-4, 33: 3.126937504e-4, 34: 1.785078128e-4, 35: 9.556212354e-5,
        63: 3.068925989e-7,
    },
    (128, 32.0): {
        29: 2.118406997e-3, 30: 1.290547928e-3, 31: 7.625412034e-4, 32: 4.295567966e-4,
        33: 2.227635015e-4, 34: 9.708287803e-5, 35: 2.389053088e-5, 63: 7.672314972e-8,
    },
    (64, 32.0): {
        15: 1.290547928e-3, 16: 4.295567966e-4, 17: 9.708287803e-5, 18: 1.946163818e-5,
        31: 9.418306725e-8,
    },
    (128, None): {},
}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def random_model(config, seed):
    """A float32 model whose attention is peaked and whose greedy text moves about."""
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(1 + 0.2 * noise)
            else:
                # An embedding row is as long as an lm_head row (1 on average), so that tied logits
                # have the same spread of about 1; the blocks then outweigh the token itself.
                gain = 1.6 if "q_proj" in name or "k_proj" in name else 1.0
                weight.copy_(gain * noise / weight.shape[1] ** 0.5)
    return model


def load(folder, dtype=torch.float32, config=None):
    return LlamaForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def logits(model, ids):
    return model(torch.tensor([ids])).logits[0].float()


@torch.no_grad()
def greedy(model, ids):
    """64 tokens, each step from the KV cache of those before, as users generate."""
    text, margins, new, cache = list(ids), [], list(ids), None
    for _ in range(STEPS):
        out = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
        cache, best = out.past_key_values, out.logits[0, -1].float().topk(2)
        new = [best.indices[0].item()]
        text += new
        margins.append((best.values[0] - best.values[1]).item())
    return text[len(ids):], margins


def relative_l2(got, want):
    """The worst position's |got - want| / |want|."""
    return ((got - want).norm(dim=-1) / want.norm(dim=-1)).max().item()


def save(case, seed, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", case.config())
    model = random_model(LlamaConfig.from_pretrained(folder), seed)
    size = {"max_shard_size": case.shard_bytes} if case.shard_bytes else {}
    model.to(getattr(torch, case.dtype))
    for part, dtype in (case.other_dtypes or {}).items():
        for name, weight in model.named_parameters():
            if part in name:
                weight.data = weight.data.to(getattr(torch, dtype))
    model.save_pretrained(folder, **size)
    write_json(folder / "config.json", case.config())
    write_json(folder / "generation_config.json", case.generation_config())


def unscaled(case, folder):
    """The same weights without the rope scaling."""
    config = LlamaConfig.from_pretrained(folder)
    config.rope_parameters = {"rope_type": "default", "rope_theta": case.theta}
    return load(folder, config=config)


def make(case, number):
    """Tries seeds until the greedy choices are clear and varied; returns a row of the table."""
    folder = ROOT / case.name
    for seed in range(1000 * number, 1000 * number + 1000):
        save(case, seed, folder)
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(case.vocab, (case.prompt,), generator=generator).tolist()
        prompt[0] = 1
        text, margins = greedy(load(folder), prompt)
        if min(margins) >= MIN_MARGIN and len(set(text)) >= min(MIN_DISTINCT, case.vocab // 3):
            break
    else:
        raise SystemExit(f"{case.name}: no seed gives clear greedy choices")
    model = load(folder)
    rope = (case.scaling("rope_type") or {"rope_type": "default"}) | {"rope_theta": case.theta}
    rope["rope_type"] = rope.pop("type", rope.get("rope_type"))
    read = {key: value for key, value in model.config.rope_parameters.items() if key != "type"}
    assert read == rope, f"{case.name}: transformers reads {read} from config.json"
    want = logits(model, prompt)
    expected = {
        "ids": torch.tensor(prompt, dtype=torch.int32),
        "logits": want.contiguous(),
        "greedy": torch.tensor(text, dtype=torch.int32),
        "margin": torch.tensor(margins, dtype=torch.float32),
    }
    save_file(expected, folder / "expected.safetensors")

    shards = len(list(folder.glob("model*.safetensors")))
    assert case.shard_bytes is None or shards >= 3, f"{case.name}: only {shards} shards"
    bite = 0.0
    if case.scaling("rope_type") is not None:
        bite = relative_l2(logits(unscaled(case, folder), prompt), want)
        assert bite > 0.01, f"{case.name}: the rope scaling changes the logits by {bite:.1e} only"
    bf16 = relative_l2(logits(load(folder, torch.bfloat16), prompt), want)
    size = sum(file.stat().st_size for file in folder.iterdir())
    return (
        f"{case.name:28} {seed:5} {case.prompt:3} {case.vocab:4} {shards:6} {want.std():6.2f} "
        f"{min(margins):7.4f} {len(set(text)):8} {bite:8.3f} {bf16:8.4f} {size / 1000:8.0f}"
    )


def rope_table(head_dim, theta, longest, scaling, length=None, golden={}):
    """The inverse frequencies as LlamaForCausalLM would use them."""
    parameters = (scaling or {"rope_type": "default"}) | {"rope_theta": theta}
    written = {"max_position_embeddings": longest, "rope_parameters": dict(parameters)}
    config = LlamaConfig(
        head_dim=head_dim, max_position_embeddings=longest, rope_parameters=parameters
    )
    rotary = LlamaRotaryEmbedding(config)
    if length is not None:
        rotary(torch.zeros(1), torch.arange(length)[None])
    frequencies = rotary.inv_freq.tolist()
    for index, value in golden.items():
        error = abs(frequencies[index] / value - 1)
        assert error < 1e-6, f"head_dim {head_dim}, {scaling}, pair {index}: {error:.1e}"
    return {
        "head_dim": head_dim,
        "config": written,
        "length": length,
        "golden": golden,
        "frequencies": frequencies,
        "magnitude": rotary.attention_scaling,
    }


def llama3(factor):
    return factor and {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def main():
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(
        f"{'case':28} {'seed':>5} {'T':>3} {'V':>4} {'shards':>6} {'std':>6} {'margin':>7} "
        f"{'distinct':>8} {'unscaled':>8} {'HF bf16':>8} {'kB':>8}"
    )
    for number, case in enumerate(CASES):
        if not sys.argv[1:] or case.name in sys.argv[1:]:
            print(make(case, number), flush=True)
    tables = [
        rope_table(head_dim, 500000.0, 131072, llama3(factor), golden=golden)
        for (head_dim, factor), golden in ROPE_GOLDEN.items()
    ] + [rope_table(*table) for table in ROPE_TABLES]
    write_json(ROOT / "rope.json", tables)
    size = sum(file.stat().st_size for file in ROOT.rglob("*") if file.is_file())
    print(f"tests/golden: {size / 1e6:.2f} MB in all")
    assert size < MAX_BYTES


if __name__ == "__main__":
    main()
