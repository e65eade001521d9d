#!/usr/bin/env python3
"""What transformers makes of the same checkpoint on the same GPU: logits against ours, and its speed.

Prints JSON: the relative L2 of our logits at the worst position against float32, transformers' own in
the weights' type against float32, tokens per second with a static cache, as is and under
torch.compile, and cuBLAS at the shapes of the model's matrices.
"""

import argparse
import json
import statistics
import sys
import time

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, StaticCache


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def worst(ours, theirs):
    """The largest relative L2 distance at any position, and the position."""
    error = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return {"relative_l2": error.max().item(), "position": error.argmax().item()}


@torch.inference_mode()
def logits(model, ids, device):
    return model(torch.tensor([ids], device=device)).logits[0].float().cpu()


@torch.inference_mode()
def decode_speed(model, device, tokens, compiled, repetitions):
    """Tokens per second one by one from an empty static cache, a synchronise each, after a warm-up."""
    step = model.forward
    if compiled:
        step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    speeds = []
    for repetition in range(repetitions + 1):
        cache = StaticCache(config=model.config, max_cache_len=tokens + 8)
        token = torch.tensor([[1]], device=device)
        start = None
        for position in range(tokens + 3):
            if position == 3:
                synchronize(device)
                start = time.perf_counter()
            place = torch.tensor([position], device=device)
            out = step(input_ids=token, past_key_values=cache, cache_position=place, use_cache=True)
            token = out.logits[:, -1:].argmax(-1).clone()
            synchronize(device)
        speeds.append(tokens / (time.perf_counter() - start))
    return {"mean": statistics.mean(speeds[1:]), "samples": speeds[1:]}


@torch.inference_mode()
def prefill_speed(model, device, tokens, repetitions):
    ids = torch.randint(0, 500, (1, tokens), device=device)
    speeds = []
    for repetition in range(repetitions + 1):
        synchronize(device)
        start = time.perf_counter()
        model(ids, use_cache=True)
        synchronize(device)
        speeds.append(tokens / (time.perf_counter() - start))
    return {"mean": statistics.mean(speeds[1:]), "samples": speeds[1:]}


def cublas(model, device, tokens):
    """Microseconds of the model's largest matrix times one vector and times `tokens`, cold caches."""
    times = {}
    layer = model.model.layers[0]
    shapes = {"o": layer.self_attn.o_proj, "gate": layer.mlp.gate_proj, "down": layer.mlp.down_proj}
    for name, linear in shapes.items():
        n, k = linear.weight.shape
        copies = max(2, (256 << 20) // (n * k * 2) + 1)  # more than the L2 cache holds
        weights = [torch.randn_like(linear.weight) for _ in range(copies)]
        for t in (1, tokens):
            x = torch.randn(t, k, device=device, dtype=linear.weight.dtype)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for weight in weights:
                x @ weight.T
            begin.record()
            for weight in weights:
                x @ weight.T
            end.record()
            torch.cuda.synchronize()
            us = begin.elapsed_time(end) * 1e3 / copies
            rate = {"gb_per_s": n * k * 2 / us / 1e3} if t == 1 else {"tflops": 2e-6 * n * k * t / us}
            times[f"{name} [{n}, {k}] x {t}"] = {"us": us, **rate}
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--ids", required=True, help="by commas: those that our logits are of")
    parser.add_argument("--logits", required=True, help="ours, as `chaski logits` writes them")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="few tokens")
    arguments = parser.parse_args()
    device = arguments.device
    ids = [int(word) for word in arguments.ids.split(",")]
    ours = load_file(arguments.logits)["logits"]
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    result = {"torch": torch.__version__, "device": name}
    exact = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).to(device)
    reference = logits(exact, ids, device)
    result["ours"] = worst(ours, reference)
    del exact
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="auto").to(device).eval()
    result["transformers"] = worst(logits(model, ids, device), reference)
    tokens, repetitions = (4, 1) if arguments.quick else (128, 3)
    result["prefill"] = prefill_speed(model, device, 16 if arguments.quick else 512, repetitions)
    for name, compiled in [("decode", False), ("decode_compiled", True)]:
        if compiled and arguments.quick:
            continue
        try:
            result[name] = decode_speed(model, device, tokens, compiled, repetitions)
        except Exception as error:  # a peer that cannot run is a result too
            result[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
    if device == "cuda":
        result["cublas"] = cublas(model, device, 512)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
