"""Golden ids of small tokenizers, each with its own idea of BOS: AutoTokenizer is the oracle.

    python scripts/golden_tokenizers.py  # rewrites tests/golden/tokenizers.json

GPT2Tokenizer of transformers 5 puts its own pre-tokenizer in place of the file's, which loses the
step that takes numbers apart in SmolLM2's; version 4 and llama.cpp keep it, and so do we. Where that
makes a difference, the oracle is the file itself, by the class that takes it as it is.

Written with Python 3.11, transformers 5.24.0, tokenizers 0.23.3. The tests only read the file.

tokenizers.json holds
    bases  {name: tokenizer.json}
    cases  [{name, base, tokenizer, files, encoded}]: `tokenizer` replaces top keys of the base,
           `files` are the others of the folder by name, `encoded` maps texts to the ids of
           AutoTokenizer(text)
"""

import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "tokenizers.json"
TEXTS = [
    "hello world", "in  12   123\n  7 (12)", "", " hello", "hello  lower world 1234", "é!", "<s>hello</s> world",
    "<|bos|>hello<|eos|> world", "a <|im_end|>  hello <|im_end|>", "[hero] hello[hero] hello",
]


def token(id, content, special=True, **flags):
    defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": content, **defaults, **flags, "special": special}


def byte_letters():
    """How byte-level encodings write the 256 bytes, in the order of bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, other = {}, 256
    for byte in range(256):
        if byte in printable:
            letters[byte] = chr(byte)
        else:
            letters[byte], other = chr(other), other + 1
    return [letters[byte] for byte in range(256)]


def bpe(tokens, merges, **more):
    vocab = {token: id for id, token in enumerate(tokens + [a + b for a, b in merges])}
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": vocab, "merges": [list(pair) for pair in merges], **more,
    }


def byte_level(use_regex=True, add_prefix_space=False):
    return {
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True,
        "use_regex": use_regex,
    }


def tokenizer(model, added, normalizer, pre_tokenizer, decoder):
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None,
        "decoder": decoder, "model": model,
    }


WORDS = [("h", "e"), ("l", "o"), ("he", "l"), ("hel", "lo"), ("1", "2"), ("12", "3")]
BYTES = tokenizer(
    bpe(["<|bos|>", "<|eos|>", *byte_letters()], [*WORDS, ("Ġ", "hello"), ("Ġ", "w")]),
    [token(0, "<|bos|>"), token(1, "<|eos|>")], None, byte_level(), byte_level(),
)
SPM_WORDS = [*WORDS, ("▁", "hello"), ("▁", "w"), ("▁w", "o"), ("▁", "▁")]
SPM = tokenizer(
    bpe(
        ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁helowrd1234"],
        SPM_WORDS, unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    ),
    [token(0, "<unk>"), token(1, "<s>"), token(2, "</s>")],
    {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]},
    None,
    {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]},
)
METASPACE = {
    **SPM, "normalizer": None,
    "pre_tokenizer": {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False,
    },
}
BASES = {"bytes": BYTES, "spm": SPM, "metaspace": METASPACE}


def template(before=(), after=()):
    """A post-processor that puts tokens, given as (id, content), around a text."""
    special = lambda content: {"SpecialToken": {"id": content, "type_id": 0}}
    sequence = lambda name: {"Sequence": {"id": name, "type_id": 0}}
    around = lambda name: [
        *(special(content) for _, content in before), sequence(name),
        *(special(content) for _, content in after),
    ]
    tokens = {
        content: {"id": content, "ids": [id], "tokens": [content]}
        for id, content in [*before, *after]
    }
    return {
        "type": "TemplateProcessing", "single": around("A"), "pair": around("A") + around("B"),
        "special_tokens": tokens,
    }


def sequence(*processors):
    return {"type": "Sequence", "processors": list(processors)}


BOS, EOS = (0, "<|bos|>"), (1, "<|eos|>")
BY_TEMPLATE = {"post_processor": sequence(byte_level(), template([BOS]))}
LLAMA2 = {"post_processor": template([(1, "<s>")])}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
NAMED = {**FAST, "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
IM_END = token(0, "<|im_end|>", rstrip=True, lstrip=True)
DIGITS = {"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": True}, byte_level(),
]}
ADDED = {"tokenizer_config.json": {**NAMED, "added_tokens_decoder": {
    "0": {key: value for key, value in token(0, "<|bos|>").items() if key != "id"},
    "266": {key: value for key, value in IM_END.items() if key != "id"},
    "267": {key: value for key, value in token(0, "[hero]", special=False).items() if key != "id"},
}}}


def config(*parts, **more):
    merged = {}
    for part in parts:
        merged.update(part)
    return {"tokenizer_config.json": {**merged, **more}}


# Name, base, what replaces top keys of the base, and the other files.
CASES = [
    ("template", "bytes", BY_TEMPLATE, config(NAMED)),
    ("template, add_bos_token false", "bytes", BY_TEMPLATE, config(NAMED, add_bos_token=False)),
    ("no template, add_bos_token true", "bytes", {}, config(NAMED, add_bos_token=True)),
    ("no template, add_bos_token false", "bytes", {}, config(NAMED, add_bos_token=False)),
    ("byte level only", "bytes", {"post_processor": byte_level()}, config(NAMED)),
    ("template, no configuration", "bytes", BY_TEMPLATE, {}),
    ("template, bos null", "bytes", BY_TEMPLATE, config(NAMED, bos_token=None)),
    ("template, bos empty", "bytes", BY_TEMPLATE, config(NAMED, bos_token="")),
    ("no template, bos empty", "bytes", {}, config(NAMED, bos_token="")),
    ("bos in the vocabulary only", "bytes", {**BY_TEMPLATE, "added_tokens": []}, config(NAMED)),
    ("bos not special", "bytes",
     {**BY_TEMPLATE, "added_tokens": [token(0, "<|bos|>", special=False), token(1, "<|eos|>")]},
     config(NAMED)),
    ("bos unknown", "bytes", {}, config(NAMED, bos_token="<s>")),
    ("template and another bos", "bytes", BY_TEMPLATE, config(NAMED, bos_token="<|eos|>")),
    ("bos as an object", "bytes", BY_TEMPLATE,
     config(NAMED, bos_token={"__type": "AddedToken", "content": "<|bos|>", "lstrip": False,
                              "normalized": True, "rstrip": True, "single_word": False})),
    ("bos and eos", "bytes", {"post_processor": template([BOS], [EOS])},
     config(NAMED, add_eos_token=False)),
    ("eos asked for", "bytes", {}, config(NAMED, add_eos_token=True)),
    ("two before", "bytes", {"post_processor": template([BOS, EOS])}, config(NAMED)),
    ("roberta", "bytes", {"post_processor": {
        "type": "RobertaProcessing", "sep": ["<|eos|>", 1], "cls": ["<|bos|>", 0],
        "trim_offsets": True, "add_prefix_space": False}}, config(NAMED)),
    ("bert", "bytes", {"post_processor": {
        "type": "BertProcessing", "sep": ["<|eos|>", 1], "cls": ["<|bos|>", 0]}}, config(NAMED)),
    ("GPT-2 with bos", "bytes", {"pre_tokenizer": DIGITS}, config(GPT2)),
    ("GPT-2, add_bos_token true", "bytes", {}, config(GPT2, add_bos_token=True)),
    ("GPT-2 by a template", "bytes", BY_TEMPLATE, config(GPT2)),
    ("GPT-2 with a prefix space", "bytes", {}, config(GPT2, add_prefix_space=True)),
    ("fast, prefix space ignored", "bytes", {}, config(NAMED, add_prefix_space=True)),
    ("digits", "bytes", {"pre_tokenizer": DIGITS}, config(NAMED)),
    ("truncated and padded", "bytes", {**BY_TEMPLATE,
     "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
     "padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None,
                 "pad_id": 1, "pad_type_id": 0, "pad_token": "<|eos|>"}}, config(NAMED)),
    ("tokens added by the configuration", "bytes", BY_TEMPLATE, ADDED),
    ("additional special tokens", "bytes", BY_TEMPLATE,
     config(NAMED, additional_special_tokens=["<|im_end|>", "[hero]"])),
    ("extra special tokens", "bytes", BY_TEMPLATE,
     config(NAMED, extra_special_tokens={"hero_token": "[hero]"})),
    ("a special token of its own name", "bytes", BY_TEMPLATE, config(NAMED, hero_token="[hero]")),
    ("special_tokens_map.json", "bytes", BY_TEMPLATE, {
        **config(FAST),
        "special_tokens_map.json": {
            "bos_token": {"content": "<|bos|>", "lstrip": False, "normalized": False,
                          "rstrip": False, "single_word": False},
            "eos_token": "<|im_end|>"}}),
    ("special_tokens_map.json beside added tokens", "bytes", BY_TEMPLATE,
     {**ADDED, "special_tokens_map.json": {"eos_token": "<s>"}}),
    ("added_tokens.json", "bytes", BY_TEMPLATE,
     {**config(NAMED), "added_tokens.json": {"<|im_end|>": 266, "[hero]": 267}}),
    ("Llama 2", "spm", LLAMA2, config(LLAMA)),
    ("Llama 2, legacy", "spm", LLAMA2, config(LLAMA, legacy=True)),
    ("Llama 2, not legacy", "spm", LLAMA2, config(LLAMA, legacy=False)),
    ("Llama 2, fast", "spm", LLAMA2,
     config(LLAMA, tokenizer_class="LlamaTokenizerFast", add_bos_token=False)),
    ("Llama 2, no prefix space", "spm", LLAMA2, config(LLAMA, add_prefix_space=False)),
    ("Llama 2, no template", "spm", {}, config(LLAMA, add_bos_token=True)),
    ("Llama 2, no bos", "spm", {}, config(LLAMA, add_bos_token=False)),
    ("Llama 2, any class", "spm", LLAMA2, config(LLAMA, **FAST)),
    ("Llama 2, no configuration", "spm", LLAMA2, {}),
    ("Llama 2, metaspace", "metaspace", LLAMA2, config(LLAMA, legacy=True)),
    ("Llama 2, metaspace, any class", "metaspace", LLAMA2, config(LLAMA, **FAST)),
    ("Llama class of bytes", "bytes", BY_TEMPLATE,
     config(LLAMA, bos_token="<|bos|>", eos_token="<|eos|>")),
]


def main():
    cases = []
    for name, base, changes, files in CASES:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
            (folder / "tokenizer.json").write_text(json.dumps({**BASES[base], **changes}))
            for file, content in files.items():
                if base == "bytes" and content.get("tokenizer_class") == "GPT2Tokenizer":
                    content = {**content, **(FAST if "pre_tokenizer" in changes else {})}
                (folder / file).write_text(json.dumps(content))
            oracle = AutoTokenizer.from_pretrained(folder)
        encoded = {text: oracle(text)["input_ids"] for text in TEXTS}
        print(f"{name:45} {encoded['hello world']} {type(oracle).__name__}")
        cases.append({
            "name": name, "base": base, "tokenizer": changes, "files": files, "encoded": encoded,
        })
    bases = {name: json.dumps(base, ensure_ascii=False) for name, base in BASES.items()}
    bases = ",\n".join(f'"{name}": {base}' for name, base in bases.items())
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    OUT.write_text(f'{{"bases": {{\n{bases}\n}},\n"cases": [\n{lines}\n]}}\n')
    print(f"{len(cases)} tokenizers, {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
