"""Train Chaski's built-in demo model and write all the files that `-m demo` embeds.

    python scripts/train_demo.py --out src/demo --questions tests/demo/questions.jsonl

The model is a small but real Llama: grouped-query attention, tied embeddings, llama3 RoPE scaling
and a byte-level BPE with the control tokens of Llama 3. It adds two numbers below 100, looks up
facts told earlier in the conversation, and says who it is. All of its text is made up by
demo_text.py; nothing is downloaded. The questions are never trained on.

Needs torch (2.15), transformers (5.23), tokenizers (0.23) and safetensors. The two stages took
40 and 17 minutes on 2 shared CPU cores; 191 of the 200 questions are right: 100 of 100 additions,
74 of 80 lookups, 17 of 20 that hang on earlier turns.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from demo_text import addition, conversation, message, questions, told_twice

TEXT_SEED = 3  # of the tokenizer's text, the questions and the initial weights
VOCAB = 512  # with the control tokens, which come last
CONTEXT = 1024
BATCH = 2048  # most tokens in a batch
IGNORED = -100  # a target that the loss leaves out
# Llama 3's pattern, but a digit is a token of its own so that sums line up.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
CHAT_TEMPLATE = """\
{%- macro header(role) -%}
{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' }}
{%- endmacro -%}
{{ bos_token }}
{%- for message in messages -%}
{{ header(message.role) ~ (message.content | trim) ~ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ header('assistant') }}
{%- endif -%}"""


# --- Tokenizer -----------------------------------------------------------------------------------


def train_tokenizer(rng):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"{m['role']}\n\n{m['content']}" for _ in range(4000) for m in conversation(rng)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(CONTROL)
    bos = CONTROL[0]
    template = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    byte_level = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = processors.Sequence([byte_level, template])
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def control_ids(tokenizer):
    return [tokenizer.token_to_id(token) for token in CONTROL]


def plain(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


# --- Training rows: (ids, targets), the target of a token being itself or IGNORED -----------------


def encode(tokenizer, messages):
    """A conversation; targets are the assistant's texts and the <|eot_id|> that ends each."""
    bos, _, start, end, eot = control_ids(tokenizer)
    ids, targets = [bos], [IGNORED]
    for m in messages:
        head = [start, *plain(tokenizer, m["role"]), end, *plain(tokenizer, "\n\n")]
        body = [*plain(tokenizer, m["content"]), eot]
        ids += head + body
        targets += [IGNORED] * len(head)
        targets += body if m["role"] == "assistant" else [IGNORED] * len(body)
    return ids, targets


def encode_sum(tokenizer, text):
    """A sum without roles, to be completed after the "=" and ended by <|end_of_text|>."""
    bos, end = control_ids(tokenizer)[:2]
    split = text.index("=") + 1
    asked, answer = plain(tokenizer, text[:split]), plain(tokenizer, text[split:])
    return [bos, *asked, *answer, end], [IGNORED] * (1 + len(asked)) + answer + [end]


def copy_drill(rng):
    """Random tokens repeated: the plainest text that rewards looking back."""
    text = [rng.randrange(VOCAB - len(CONTROL)) for _ in range(rng.randint(6, 24))]
    return text * 3, [IGNORED] * len(text) + text * 2


def fact_drill(rng, tokenizer):
    """Facts, told twice more in other orders: of those, all but the choice of fact is known."""
    told, again = told_twice(rng)
    bos = control_ids(tokenizer)[0]
    ids, targets = [bos], [IGNORED]
    for times, sentences in enumerate([told, again, again]):
        for sentence in rng.sample(sentences, len(sentences)):
            part = plain(tokenizer, sentence + "\n")
            ids += part
            targets += part if times else [IGNORED] * len(part)
    return ids, targets


def pad(rows):
    """Rows as two tensors [batch, longest]; causal attention needs no mask for padding behind."""
    longest = max(len(ids) for ids, _ in rows)
    ids = [ids + [0] * (longest - len(ids)) for ids, _ in rows]
    targets = [targets + [IGNORED] * (longest - len(targets)) for _, targets in rows]
    return torch.tensor(ids), torch.tensor(targets)


def batches(rng, tokenizer):
    """Endless batches of at most BATCH tokens, each of rows of about the same length."""
    while True:
        rows = [encode(tokenizer, conversation(rng)) for _ in range(1000)]
        rows += [encode_sum(tokenizer, addition(rng, test=False)[1]) for _ in range(100)]
        rows += [copy_drill(rng) for _ in range(300)]
        rows += [fact_drill(rng, tokenizer) for _ in range(300)]
        rows.sort(key=lambda row: len(row[0]))
        pool = [[]]
        for row in rows:
            if (len(pool[-1]) + 1) * len(row[0]) > BATCH:
                pool.append([])
            pool[-1].append(row)
        rng.shuffle(pool)
        yield from map(pad, pool)


# --- Model ---------------------------------------------------------------------------------------


def make_model(tokenizer):
    bos, eos, _, _, eot = control_ids(tokenizer)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=bos,
        eos_token_id=[eos, eot],
        # 128 original positions: the scaling changes frequencies well inside one conversation.
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 20000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    )
    # On rows this short, plain attention is faster than the fused one.
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    model.generation_config = GenerationConfig(
        bos_token_id=bos, eos_token_id=[eos, eot], do_sample=False
    )
    return model


@torch.no_grad()
def prepare(model):
    """Initial weights that make looking back cheap to learn; training is free to change them.

    Layers begin as the identity (zero output projections). All embeddings share a large first
    component, which shifts all logits alike and gives the first layer something constant to
    rotate: its head h begins attending h + 1 tokens back, as the first half of an induction head
    must."""
    width, heads, dim = (
        model.config.hidden_size,
        model.config.num_attention_heads,
        model.config.head_dim,
    )
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    embedding = model.model.embed_tokens.weight  # [V, C]
    embedding[:, 0] = model.config.initializer_range * width**0.5
    constant = (width / 2) ** 0.5  # that component after RMSNorm
    first = model.model.layers[0].self_attn
    fast = 8  # rotating pairs (i, i + dim / 2) of wavelengths that tell neighbours apart
    angle = model.model.rotary_emb.inv_freq[:fast]
    key = first.k_proj.weight.view(-1, dim, width)[:, :, 0]
    key[:, :fast] = 6 / constant
    query = first.q_proj.weight.view(heads, dim, width)[:, :, 0]
    for head in range(heads):
        query[head, :fast] = 6 / constant * torch.cos((head + 1) * angle)
        query[head, dim // 2 : dim // 2 + fast] = -6 / constant * torch.sin((head + 1) * angle)


def save(model, tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    shipped = make_model(tokenizer)
    shipped.load_state_dict(model.state_dict())
    shipped.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": CONTROL[0],
        "eos_token": CONTROL[4],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(out):
    return LlamaForCausalLM.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager"
    )


# --- Training and evaluation ---------------------------------------------------------------------


@dataclass
class Stage:
    seed: int
    steps: int
    decay: int  # steps in which the rate falls from its highest to 0, at the end
    rate: float  # learning rate at its highest

    def factor(self, step):
        return max(0, min(1, (step + 1) / 100, (self.steps - step) / self.decay))


# The second stage starts from the saved bf16 weights, with fresh optimizers and other text. It is
# shorter than its decay: its rate never reaches the highest.
STAGES = [
    Stage(seed=3, steps=2200, decay=800, rate=3e-3),
    Stage(seed=4, steps=600, decay=1200, rate=2e-3),
]


@torch.no_grad()
def evaluate(model, tokenizer, rows):
    """For each question, whether greedy decoding gives exactly its answer and <|eot_id|>.

    That is so exactly if every token of the answer is the likeliest one after the right tokens
    before it, which one forward pass tells."""
    right = []
    for row in rows:
        prompt = len(encode(tokenizer, row["messages"])[0])
        ids, targets = encode(
            tokenizer, row["messages"] + [message("assistant", row["answer"])]
        )
        best = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        answer = zip(targets[prompt:], best[prompt - 1 :])
        right.append(all(target in (IGNORED, token) for target, token in answer))
    return right


def report(right):
    sums, lookups, turns = sum(right[:100]), sum(right[100:180]), sum(right[180:])
    return f"{sums}/100 additions, {lookups}/80 lookups, {turns}/20 multi-turn"


def make_optimizers(model, rate):
    """Muon learns the layers' matrices in fewer steps; AdamW keeps the embedding and the norms."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        (matrices if p.dim() == 2 and "embed" not in name else others).append(p)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(model, tokenizer, rows, stage, out):
    """Trains one stage, saving every 100 steps; what is evaluated is the bf16 file itself."""
    rng = random.Random(stage.seed + 1)
    optimizers = make_optimizers(model, stage.rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, stage.factor) for o in optimizers]
    began, losses = time.time(), []
    for step, (ids, targets) in enumerate(batches(rng, tokenizer), 1):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids).logits[:, :-1]
        wanted = targets[:, 1:] != IGNORED
        loss = cross_entropy(logits[wanted].float(), targets[:, 1:][wanted])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in optimizers + schedules:
            part.step()
        losses.append(loss.item())
        if step % 100 == 0 or step == stage.steps:
            save(model, tokenizer, out)
            right = report(evaluate(load(out), tokenizer, rows))
            mean, seconds = sum(losses) / len(losses), time.time() - began
            print(f"step {step}: loss {mean:.4f}, right {right}, {seconds:.0f} s", flush=True)
            losses = []
        if step == stage.steps:
            break


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("src/demo"))
    parser.add_argument("--questions", type=Path, default=Path("tests/demo/questions.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(TEXT_SEED)
    tokenizer = train_tokenizer(random.Random(TEXT_SEED))
    rows = questions(random.Random(TEXT_SEED))
    args.questions.parent.mkdir(parents=True, exist_ok=True)
    args.questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = make_model(tokenizer)
    prepare(model)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    for stage in STAGES:
        train(model, tokenizer, rows, stage, args.out)
        model = load(args.out)


if __name__ == "__main__":
    main()
