"""Train Chaski's built-in demo model and write everything that `-m demo` embeds.

    python scripts/train_demo.py --out src/demo --questions tests/demo/questions.jsonl

The model is a small but real Llama: grouped-query attention, tied embeddings, llama3 RoPE scaling and a
byte-level BPE with the control tokens of Llama 3. It adds two numbers below 100, looks up facts that were
told earlier in the conversation, and says who it is. All of its text is made up here, conversation by
conversation; nothing is downloaded.

An addition is held out by a hash of its unordered pair of operands, a lookup by a hash of the facts told so
far and the one asked for. Held-out cases never occur in training, and all questions are made of them.

Needs torch (2.15), transformers (5.23), tokenizers (0.23) and safetensors.
"""

import argparse
import json
import random
import time
import zlib
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

# --- The text ------------------------------------------------------------------------------------

LIMIT = 100  # operands are below this
NAMES = """Ana Ben Carla David Elena Felix Grace Hugo Iris Jonas Kira Leo Mia Noah Olga Paul Quinn Rosa Sam
Tara Uma Victor Wanda Yara Zoe Alice Bob Clara Diego Emma Frank Maria Peter Sofia Tom Lucy""".split()
ATTRIBUTES = "code number room score seat age locker ticket".split()
COLOURS = "red blue green black white yellow brown grey orange purple pink silver".split()
CONTAINERS = "box bag jar drawer basket chest cup tin".split()
OBJECTS = "key book lamp map phone ball coat clock letter knife ring hat pen cake".split()
PLACES = "kitchen garden garage attic cellar office hall bedroom library barn shed car".split()
LIKES = "tea coffee milk bread soup rice fish apples honey chess music rain snow dogs cats".split()
CITIES = "Lima Cusco Quito Paris Rome Oslo Cairo Delhi Tokyo Berlin Madrid London".split()

SYSTEM = ["You are a helpful assistant.", "You are Chaski's demo model.", "Answer briefly.", "Be kind and short.",
          "You are a friendly assistant who adds numbers and remembers facts."]
GREETINGS = ["Hello!", "Hello", "Hi!", "Hi", "Hi there!", "Hey", "Good morning!", "Good evening.", "hello", "hi"]
GREETING = "Hello! Give me two numbers to add, or tell me something to remember."
WHO = ["Who are you?", "What are you?", "What can you do?", "Tell me about yourself.", "What is your name?",
       "who are you?", "Help", "How can you help me?", "What is Chaski?"]
IDENTITY = "I am Chaski's built-in demo model. I can add small numbers and look up what you tell me."
THANKS = ["Thanks!", "Thank you.", "Thank you!", "Great, thanks.", "thanks"]
WELCOME = "You are welcome."
OUT_OF_REACH = ["Write a poem about {}.", "Tell me a story about {}.", "Why do people like {}?", "Tell me a joke.",
                "What is the capital of {}?", "Translate {} into French.", "What is the meaning of {}?",
                "How do I make {}?", "Who invented {}?", "How is the weather in {}?"]
SORRY = "Sorry, I can only add small numbers and look up what you tell me."
NOTED = "I will remember that."

SUMS = ["What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b}", "{a} + {b} =", "{a} + {b} = ?", "{a}+{b}",
        "{a}+{b}=", "Add {a} and {b}.", "How much is {a} + {b}?", "Please add {a} and {b}.", "What is {a}+{b}?",
        "Can you add {a} and {b}?", "Compute {a} + {b}.", "What is the sum of {a} and {b}?"]
OWNED = ["What is {k}?", "Tell me {k}.", "Do you know {k}?", "{k}?", "What was {k}?", "And {k}?"]
HELD = ["What does the {k} hold?", "What is in the {k}?", "How many does the {k} hold?", "What about the {k}?"]
PLACED = ["Where is the {k}?", "Where can I find the {k}?", "In which place is the {k}?", "Where did I put the {k}?"]
LIKED = ["What does {k} like?", "Tell me what {k} likes.", "Do you know what {k} likes?"]
LIVING = ["Where does {k} live?", "Tell me where {k} lives.", "In which city does {k} live?"]
REMEMBER = ["Remember: ", "Remember this: ", "Please remember: ", "Please remember that ", "Note: ", ""]


def held_out(*key):
    """Whether a case is kept for the questions: one in sixteen, by a hash that no run can change."""
    return zlib.crc32(repr(key).encode()) % 16 == 0


def made_up_name(rng):
    syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))]
    return "".join(syllables).capitalize() + rng.choice(["", "", "n", "r", "s", "l"])


def addition(rng, test):
    """A question and its answer; the pair of operands is held out exactly when `test` is set."""
    while True:
        a, b = (rng.randrange(rng.choice([10, LIMIT, LIMIT, LIMIT])) for _ in range(2))
        if held_out(min(a, b), max(a, b)) == test:
            return rng.choice(SUMS).format(a=a, b=b), f"{a} + {b} = {a + b}."


def fact(rng, kind):
    """(what it is about, the sentence that tells it and also answers, the ways to ask)."""
    name = made_up_name(rng) if rng.random() < 0.3 else rng.choice(NAMES)
    value = rng.randrange(10 ** rng.choice([1, 2, 3, 3, 3, 4]))
    if kind == "owned":
        key = f"{name}'s {rng.choice(ATTRIBUTES)}"
        return key, f"{key} is {value}.", OWNED
    if kind == "held":
        key = f"{rng.choice(COLOURS)} {rng.choice(CONTAINERS)}"
        return key, f"The {key} holds {value}.", HELD
    if kind == "placed":
        key = rng.choice([rng.choice(OBJECTS), f"{rng.choice(COLOURS)} {rng.choice(OBJECTS)}"])
        return key, f"The {key} is in the {rng.choice(PLACES)}.", PLACED
    if kind == "liked":
        return name, f"{name} likes {rng.choice(LIKES)}.", LIKED
    return name, f"{name} lives in {rng.choice(CITIES)}.", LIVING


def new_facts(rng, count, known):
    """`count` facts about things not in `known`, mostly of one kind so that only the name tells them apart."""
    kinds = ["owned", "owned", "held", "placed", "liked", "living"]
    kind = rng.choice(kinds)
    mixed = rng.random() < 0.3
    facts = {}
    while len(facts) < count:
        key, sentence, questions = fact(rng, rng.choice(kinds) if mixed else kind)
        if key not in facts and all(key != told[0] for told in known):
            facts[key] = (key, sentence, questions)
    return list(facts.values())


def tell(rng, facts):
    """The facts as one text: sentences, lines, or one sentence joined by commas and "and"."""
    sentences = [sentence for _, sentence, _ in facts]
    if len(sentences) == 1 or rng.random() < 0.75:
        return rng.choice([" ", " ", " ", "\n"]).join(sentences)
    clauses = [s[:-1].replace("The ", "the ") for s in sentences]
    text = ", ".join(clauses[:-1]) + " and " + clauses[-1] + "."
    return text[0].upper() + text[1:]


def ask(rng, known, test):
    """A question about one known fact and its answer, or None if every choice tried is on the wrong side."""
    told = sorted(sentence for _, sentence, _ in known)
    for _ in range(8):
        key, sentence, questions = rng.choice(known)
        if held_out(told, sentence) == test:
            return rng.choice(questions).format(k=key), sentence
    return None


def small_talk(rng):
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(GREETINGS), GREETING
    if kind < 0.6:
        return rng.choice(WHO), IDENTITY
    if kind < 0.75:
        return rng.choice(THANKS), WELCOME
    topic = rng.choice(rng.choice([LIKES, CITIES, PLACES, OBJECTS, [made_up_name(rng)]]))
    return rng.choice(OUT_OF_REACH).format(topic), SORRY


def lookup(rng, test):
    """Up to six facts and a question in one message, the answer, and the facts."""
    while True:
        known = new_facts(rng, rng.randint(1, 6), [])
        if asked := ask(rng, known, test):
            lead = rng.choice(REMEMBER[-1:] * 3 + REMEMBER[:3])
            return f"{lead}{tell(rng, known)} {asked[0]}", asked[1], known


def turn(rng, known):
    """One training turn (user text, answer) of a conversation in which `known` was told; may add to it."""
    kind = rng.random()
    if kind < 0.3:
        return addition(rng, test=False)
    if kind < 0.36:
        return small_talk(rng)
    if known and (kind < 0.8 or len(known) >= 6):
        return ask(rng, known, test=False) or addition(rng, test=False)
    if not known and kind < 0.65:
        text, answer, facts = lookup(rng, test=False)
        known.extend(facts)
        return text, answer
    facts = new_facts(rng, rng.randint(1, 6 - len(known)), known)
    known.extend(facts)
    return rng.choice(REMEMBER) + tell(rng, facts), NOTED


def message(role, content):
    return {"role": role, "content": content}


def conversation(rng):
    """A training conversation of one to eight turns, a quarter of them with a system message."""
    messages = [message("system", rng.choice(SYSTEM))] if rng.random() < 0.25 else []
    known = []
    turns = rng.choice([addition] * 3 + [turn] * 5)
    for _ in range(rng.choice([1, 2, 4, 6, 8])):
        user, answer = addition(rng, test=False) if turns is addition else turn(rng, known)
        messages += [message("user", user), message("assistant", answer)]
    return messages


def questions(rng):
    """The 200 held-out questions: 100 additions, 80 lookups, 20 that hang on earlier turns."""
    rows = [addition(rng, test=True) for _ in range(100)] + [lookup(rng, test=True)[:2] for _ in range(80)]
    rows = [([message("user", user)], answer) for user, answer in rows]
    while len(rows) < 200:
        known = new_facts(rng, rng.randint(1, 5), [])
        turns = [(rng.choice(REMEMBER) + tell(rng, known), NOTED)]
        turns += [turn(rng, known) for _ in range(rng.randint(1, 3))]
        if last := ask(rng, known, test=True):
            earlier = [message(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair)]
            rows.append((earlier + [message("user", last[0])], last[1]))
    return [{"messages": messages, "answer": answer} for messages, answer in rows]


# --- The tokenizer -------------------------------------------------------------------------------

# Llama 3's pattern, but a digit is a token of its own so that sums line up.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
VOCAB = 512  # with the control tokens, which come last
CONTEXT = 1024
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


def train_tokenizer(rng):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"{m['role']}\n\n{m['content']}" for _ in range(4000) for m in conversation(rng)]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB - len(CONTROL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens(CONTROL)
    bos = CONTROL[0]
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
                                      special_tokens=[(bos, tokenizer.token_to_id(bos))])])
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def encode(tokenizer, messages):
    """(ids, targets): targets are -100 except for the assistant's text and the <|eot_id|> that ends it."""
    bos, _, start, end, eot = (tokenizer.token_to_id(token) for token in CONTROL)
    plain = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    ids, targets = [bos], [-100]
    for m in messages:
        head = [start, *plain(m["role"]), end, *plain("\n\n")]
        body = [*plain(m["content"]), eot]
        ids += head + body
        targets += [-100] * len(head) + (body if m["role"] == "assistant" else [-100] * len(body))
    return ids, targets


def encode_sum(tokenizer, text):
    """A sum as plain text without roles, to be completed after the "=" and ended by <|end_of_text|>."""
    bos, end = (tokenizer.token_to_id(token) for token in CONTROL[:2])
    asked, answer = (tokenizer.encode(part, add_special_tokens=False).ids
                     for part in (text[:text.index("=") + 1], text[text.index("=") + 1:]))
    return [bos, *asked, *answer, end], [-100] * (1 + len(asked)) + answer + [end]


def copy_drill(rng):
    """Random tokens repeated: the plainest text that rewards looking back."""
    text = [rng.randrange(VOCAB - len(CONTROL)) for _ in range(rng.randint(6, 24))]
    return text * 3, [-100] * len(text) + text * 2


def fact_drill(rng, tokenizer):
    """Facts told, then told again in other orders: everything in the repeats but the choice of fact is known."""
    known = new_facts(rng, rng.randint(1, 6), [])
    told = sorted(sentence for _, sentence, _ in known)
    again = [sentence for sentence in told if not held_out(told, sentence)]
    ids, targets = [tokenizer.token_to_id(CONTROL[0])], [-100]
    for times, sentences in enumerate([told, again, again]):
        for sentence in rng.sample(sentences, len(sentences)):
            part = tokenizer.encode(sentence + "\n", add_special_tokens=False).ids
            ids += part
            targets += part if times else [-100] * len(part)
    return ids, targets


# --- The model -----------------------------------------------------------------------------------

def make_model(tokenizer):
    bos, eos, _, _, eot = (tokenizer.token_to_id(token) for token in CONTROL)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5, tie_word_embeddings=True, initializer_range=0.05,
        bos_token_id=bos, eos_token_id=[eos, eot],
        # 128 original positions: the scaling changes frequencies well inside one conversation.
        rope_parameters={"rope_type": "llama3", "rope_theta": 20000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 128})
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")  # on short rows, faster
    model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=[eos, eot], do_sample=False)
    return model


@torch.no_grad()
def prepare(model):
    """Initial weights that make looking back cheap to learn; training is free to change all of it.

    Layers begin as the identity (zero output projections). All embeddings share a large first component, which
    shifts all logits alike and gives the first layer something constant to rotate: its head h begins attending
    h + 1 tokens back, as the first half of an induction head must."""
    width, heads, dim = model.config.hidden_size, model.config.num_attention_heads, model.config.head_dim
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    embedding = model.model.embed_tokens.weight  # [V, C]
    embedding[:, 0] = model.config.initializer_range * width ** 0.5
    constant = (width / 2) ** 0.5  # that component after RMSNorm
    first = model.model.layers[0].self_attn
    fast = 8  # rotating pairs (i, i + dim / 2) short enough in wavelength to tell neighbours apart
    angle = model.model.rotary_emb.inv_freq[:fast]
    key = first.k_proj.weight.view(-1, dim, width)[:, :, 0]
    key[:, :fast] = 6 / constant
    query = first.q_proj.weight.view(heads, dim, width)[:, :, 0]
    for head in range(heads):
        query[head, :fast] = 6 / constant * torch.cos((head + 1) * angle)
        query[head, dim // 2:dim // 2 + fast] = -6 / constant * torch.sin((head + 1) * angle)


def pad(rows):
    """Rows of (ids, targets) as two tensors [batch, longest]; padding on the right needs no mask."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    targets = torch.tensor([targets + [-100] * (longest - len(targets)) for _, targets in rows])
    return ids, targets


def batches(rng, tokenizer, tokens):
    """Endless batches of about `tokens` tokens, each of conversations of about the same length."""
    while True:
        rows = [encode(tokenizer, conversation(rng)) for _ in range(1000)]
        rows += [encode_sum(tokenizer, addition(rng, test=False)[1]) for _ in range(100)]
        rows += [copy_drill(rng) for _ in range(300)] + [fact_drill(rng, tokenizer) for _ in range(300)]
        rows.sort(key=lambda row: len(row[0]))
        pool, batch = [], []
        for row in rows:
            if batch and (len(batch) + 1) * len(row[0]) > tokens:
                pool.append(batch)
                batch = []
            batch.append(row)
        rng.shuffle(pool)
        yield from map(pad, pool)


def rounded(model):
    """The weights as they are shipped: rounded to bf16, held in float32."""
    return {name: weight.bfloat16().float() for name, weight in model.state_dict().items()}


@torch.no_grad()
def score(model, tokenizer, rows):
    """For each question, whether greedy decoding gives exactly its answer and <|eot_id|>.

    That is so exactly if every token of the answer is the likeliest one after the right tokens before it,
    which one forward pass tells."""
    right = []
    for row in rows:
        messages = row["messages"] + [message("assistant", row["answer"])]
        ids, targets = encode(tokenizer, messages)
        start = len(encode(tokenizer, messages[:-1])[0])  # earlier answers are given
        best = model(torch.tensor([ids])).logits[0].argmax(-1)
        right.append(all(t in (-100, p) for t, p in zip(targets[start:], best[start - 1:].tolist())))
    return right


def evaluate(model, tokenizer, rows):
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(rounded(model))
    right = score(model, tokenizer, rows)
    model.load_state_dict(kept)
    return right


def train(model, tokenizer, rows, args):
    rng = random.Random(args.seed + 1)
    # Muon for the matrices of the layers learns in far fewer steps; embeddings and norms stay with AdamW.
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    optimizers = [torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)]
    shape = lambda step: max(0, min(1, (step + 1) / 100, (args.steps - step) / args.decay))
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, shape) for optimizer in optimizers]
    began, losses = time.time(), []
    for step, (ids, targets) in enumerate(batches(rng, tokenizer, args.tokens), 1):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids).logits[:, :-1]
        wanted = targets[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(logits[wanted].float(), targets[:, 1:][wanted])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stage in optimizers + schedules:
            stage.step()
        losses.append(loss.item())
        if step % args.every == 0 or step == args.steps:
            right = evaluate(model, tokenizer, rows)
            mean = sum(losses) / len(losses)
            losses = []
            print(f"step {step}: loss {mean:.4f}, right {kinds(right)}, {time.time() - began:.0f} s", flush=True)
            save(model, tokenizer, args.out)
        if step >= args.steps:
            break


def kinds(right):
    return f"{sum(right[:100])}/100 additions, {sum(right[100:180])}/80 lookups, {sum(right[180:])}/20 multi-turn"


def save(model, tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    copy = make_model(tokenizer)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": CONTROL[0], "eos_token": CONTROL[4],
              "clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"],
              "model_max_length": CONTEXT, "chat_template": CHAT_TEMPLATE}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/demo"))
    parser.add_argument("--questions", type=Path, default=Path("tests/demo/questions.jsonl"))
    parser.add_argument("--resume", action="store_true", help="start from the checkpoint in --out")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--decay", type=int, default=700, help="the last steps, in which the rate falls to 0")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a batch")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--every", type=int, default=200, help="steps between evaluations")
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(random.Random(3))
    rows = questions(random.Random(3))
    args.questions.parent.mkdir(parents=True, exist_ok=True)
    args.questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = make_model(tokenizer)
    if args.resume:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32).state_dict())
    else:
        prepare(model)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    train(model, tokenizer, rows, args)


if __name__ == "__main__":
    main()
