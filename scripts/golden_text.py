"""Golden data for the tokenizer and for chat templates: tiktoken and transformers are the oracles.

    python scripts/golden_text.py  # rewrites tests/golden/tiny.tiktoken and tests/golden/text.json

Written with Python 3.11, tiktoken 0.14.0, regex 2026.11.15, transformers 5.24.0, jinja2 3.1.6. The
tests only read the files; they never run this script. It uses no chance: the files come out equal.

tiny.tiktoken is in the format of Meta's tokenizer.model, a line `base64 rank` for each token: the
256 bytes in GPT-2's order (rank 0 is "!", as in Meta's file), the merges of a byte-level BPE
trained on the text below, and a few tokens that no chain of merges reaches.

text.json holds:
    tiktoken   [{text, ids}]: tiny.tiktoken with Llama 3's pattern, where control tokens written in
               the text are text
    special    {content: id}: control tokens as Meta's code numbers them after the ranks
    templates  [{name, template, cases}], each case with messages, more (tools, documents and other
               names, where there are some), add_generation_prompt, bos_token, eos_token, date (what strftime_now shall return, here in the format %d %b %Y), and
               either `rendered` or, where the template calls raise_exception, `error`: its message.
               They come from golden_templates.py.
"""

import base64
import json
from collections import Counter
from pathlib import Path

import regex
import tiktoken
from golden_templates import template_goldens
from tiktoken.load import load_tiktoken_bpe

ROOT = Path(__file__).resolve().parent.parent / "tests" / "golden"
MERGES = 330
# Whole pieces that the merges cannot build: tiktoken looks a piece up before it merges.
UNREACHABLE = [b"xyzzy", b" plugh", b"747", b"!?!", "Ὀδυσσεύς".encode()]

# The pattern and the control tokens of Llama 3, as in llama-models, models/llama3/tokenizer.py.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED_SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
]

CORPUS = """\
The miller's daughter said that she'd seen the river rise in the night, and they're still waiting.
It isn't the same story: we've heard it, I'm sure you'll hear it, and he'd told it before that.
There were 12 ships in 1847, 305 in 1848 and 1 200 in 1849; the total was 1517, or 100% of them.
What is 17 + 25? The answer is 42. What is 250 - 125? The answer is 125. And 1000000 / 1000 = 1000.
    def total(values):
        result = 0
        for value in values:
            result += value
        return result

    if (x == 0) { return; } else { x -= 1; }   // the loop ends here
{"name": "river", "length": 125, "open": true, "parts": [1, 2, 3, 100, 200, 300]}
<p class="note">The note says: &quot;wait for the ferry&quot;.</p>
Die Müllerin sagte, daß der Fluß über die Brücke gestiegen ist, und die Straße ist größer geworden.
La rivière était déjà haute ; l'été dernier, c'était différent, à la forêt près du château.
El niño pequeño soñó con el río, ¿verdad? ¡Qué mañana! El señor también soñó con España.
Река поднялась ночью, и мельница стояла в воде. Мельник сказал, что вода уйдёт через три дня.
Ο ποταμός ανέβηκε τη νύχτα και ο μύλος στάθηκε μέσα στο νερό για τρεις μέρες.
河水在夜里上涨了。磨坊主说,三天以后水就会退。今天是星期三,明天是星期四。
川の水が夜に上がりました。水車小屋の人は、三日で水が引くと言いました。
강물이 밤에 불었습니다. 방앗간 주인은 사흘이면 물이 빠진다고 말했습니다.
ارتفع النهر في الليل، وقال صاحب الطاحونة إن الماء سيعود بعد ثلاثة أيام.
रात में नदी बढ़ गई। चक्की वाले ने कहा कि पानी तीन दिन में उतर जाएगा।
😀 😀 🎉🎉 the ferry 🚢 is here! 👍🏽 👨‍👩‍👧 ... --- === *** aaaa aaaaaaaa aaaaaaaaaaaaaaaa
The ferry was in the river and the river was in the valley, and the valley was in the morning light.
Said the ferryman to the miller: the other side is the other side, whatever the weather there.
\tone\ttwo\tthree\r\n\tfour\tfive\tsix\r\n\r\n\r\n        eight spaces                sixteen spaces
"""


def texts():
    """Strings for the tokenizer, by what they try."""
    return words() + scripts()


def words():
    """Words, contractions, numbers and spaces."""
    plain = [
        "", "a", " ", "\n", "The", "the ferry", " the ferry", "  the ferry", "The river rises.",
        "This is a test sentence.", "Hello, world!", "HELLO WORLD", "hELLO wORLD", "camelCaseWord",
        "snake_case_word", "kebab-case-word", "a.b.c", "user@example.com",
        "https://example.com/a?b=c&d=1#e",
        "C:\\Windows\\path", "/usr/local/lib", "x=y+z*(w-1)/2", "f(x)[0]{a: 1}",
        "// comment\nint x = 0;\n",
        "    def f(x):\n        return x\n", "{\"a\": [1, 2.5, null]}", "<b>bold</b>",
        "&lt;&amp;&gt;",
        "...", "!!!", "?!?!", "!?!", " !?!", "--", "-->", "—", "“quoted”", "«guillemets»", "it’s",
        "#hashtag @name", "$100.00", "50%", "a\\nb", "`code`", "~/.config", "^_^", "|", "||", "<|",
        "|>",
    ]
    contractions = [
        "it's", "don't", "we're", "I've", "I'm", "they'll", "he'd", "IT'S", "DON'T", "WE'RE",
        "I'VE",
        "I'M", "THEY'LL", "HE'D", "'s", "'S", "''s", "'sx", " 's", "'", "' s", "o'clock",
        "rock'n'roll",
        "y'all'd've", "l'été", "'\u017f", "it'\u017f", "'\u212a",
    ]
    digits = [
        "0", "12", "123", "1234", "12345", "123456", "1234567", "747", "1747", "7474", "3.14159",
        "1,234,567",
        "-1", "1e10", "0x1F", "a1b2c3", "1a", "a1", " 1", "  12", "1 2 3", "²³¹", "½", "Ⅷ", "٣٤٥٦",
        "१२३४",
        "①②③", "1\n2", "2024-07-26T12:00:00Z",
    ]
    spaces = [
        "  ", "   ", " " * 7, " " * 16, " " * 100, "\t", "\t\t", " \t ", "a b", "a  b", "a   b",
        "a    b",
        "a ", "a  ", " a ", "a\tb", "a \tb", "a\n", "a\n\n", "a\nb", "a\n\nb", "a\n \nb", "a \n b",
        "a  \n  b",
        "\n\n", "\n\n\n\n", "\r\n", "\r", "\r\n\r\n", "a\r\nb", "a\rb", " \n", "\n ", "\n  a",
        " \n \n ",
        "!\n", "!\n\n", "! \n", ".\r\n\r\n", "a\u00a0b", "\u00a0", "a\u3000b", "\u2003\u2003x",
        "\u0085",
        "a\u0085b", "\u2028", "a\u2029b", "\x0b\x0c", "a\x0bb", "\u200b", "a\u200bb", "\u180e",
        "\ufeffa",
        "\x1c\x1d", "\x00", "a\x00b", "\x7f", "\x1b[31mred\x1b[0m",
    ]
    return plain + contractions + digits + spaces


def scripts():
    """Languages, emoji, what looks like control tokens, odd characters and long runs."""
    languages = [
        "Die Straße ist größer.", "GRÖẞE", "ß€", "Fußgängerübergänge", "déjà vu",
        "de\u0301ja\u0300 vu",
        "¿Qué mañana?", "naïve café", "Река поднялась", "река", "ποταμός", "Ὀδυσσεύς", "河水在夜里上涨了。",
        "三天以后", "川の水が夜に", "カタカナ ひらがな 漢字", "강물이 밤에", "한국어", "ارتفع النهر", "مَرْحَبًا", "שָׁלוֹם",
        "रात में नदी", "क्षत्रिय", "ไม่มีเว้นวรรค", "ភាសាខ្មែរ", "မြန်မာ", "አማርኛ", "ᚠᚢᚦ", "𐍈",
        "𝒳𝓎𝓏", "ﬁ ligature",
        "İstanbul ıı", "Ǆ ǅ ǆ", "e\u0301", "\u0301", "\u0301a", " \u0301", "a\u0301\u0302\u0303b",
        "Z̵̛̭a̷͇͝l̴̠̆g̶̬̓o̷̗̒",
        "\u0915\u094d\u200d\u0937",
    ]
    emoji = [
        "😀", "😀😀", " 😀", "a😀b", "👍🏽", "👨‍👩‍👧", "🏳️‍🌈", "🇩🇪🇫🇷", "1️⃣", "☺", "☺️", "🎉 party", "🫠",
        "\U0001fae8",
    ]
    controls = [
        "<|eot_id|>", "<|begin_of_text|>", "<|begin_of_text|>Hi", "Hi<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|reserved_special_token_0|>", "<|image|>", "<|EOT_ID|>", "<|eot_id", "eot_id|>",
        "<| eot_id |>",
        "<|<|eot_id|>|>", "<|eot_id|><|eot_id|>", "<s>", "</s>", "[INST] hi [/INST]", "<<SYS>>",
        "<|endoftext|>",
    ]
    odd = [
        "\ufffd", "\ufffd\ufffd", "\uffff", "\ufdd0", "\U0010ffff", "\ue000", "\ud7ff",
        "\U000e0041",
        "\u202eabc\u202c", "\u2066x\u2069", "\xad", "soft\xadhyphen", "Ġ", "Ċ", "ĠĠthe", "Â", "Ã©",
        "▁the", "##ing",
        "xyzzy", " xyzzy", "xyzzyx", "xxyzzy", "plugh", " plugh", "  plugh", "Xyzzy",
    ]
    long = [
        "a" * 31, "a" * 1000, " " * 1000, "\n" * 500, "1" * 500, "!" * 500, "ab" * 400, "aA" * 200,
        "é" * 300, "河" * 300,
        "😀" * 150, "\u0301" * 200, "the " * 200, " the" * 200, "\t " * 200, "'s" * 150,
        "xyzzy" * 60,
    ]
    return languages + emoji + controls + odd + long


def train():
    """Ranks: the bytes in GPT-2's order, then the merges, then the tokens no merge reaches."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    ranked = [bytes([b]) for b in printable]
    ranked += [bytes([b]) for b in range(256) if b not in printable]
    pieces = Counter(regex.findall(PATTERN, CORPUS))
    words = [([bytes([b]) for b in piece.encode()], count) for piece, count in pieces.items()]
    for _ in range(MERGES):
        pairs = Counter()
        for word, count in words:
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        # The most frequent pair that makes a new token; the first in byte order among equals.
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if left + right not in ranked:
            ranked.append(left + right)
        for word, _ in words:
            at = 0
            while at + 1 < len(word):
                if (word[at], word[at + 1]) == (left, right):
                    word[at : at + 2] = [left + right]
                at += 1
    ranked += UNREACHABLE
    assert len(set(ranked)) == len(ranked)
    return ranked


def tokenizer_goldens(path):
    ranked = train()
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranked))
    path.write_text("".join(lines))
    ranks = load_tiktoken_bpe(str(path))
    reserved = [f"<|reserved_special_token_{n}|>" for n in range(2, 246)]
    # Older releases of Meta's code do not name <|image|>: their reserved tokens come one earlier.
    names = [*NAMED_SPECIAL, "<|image|>", *reserved]
    assert len(names) == 256
    special = {name: len(ranks) + number for number, name in enumerate(names)}
    encoding = tiktoken.Encoding(
        "tiny", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special
    )
    goldens = []
    for text in dict.fromkeys(texts()):
        ids = encoding.encode(text, allowed_special=set(), disallowed_special=())
        assert encoding.decode(ids) == text and all(i < len(ranks) for i in ids)
        goldens.append({"text": text, "ids": ids})
    recorded = [*NAMED_SPECIAL, reserved[-1]]
    return goldens, {name: special[name] for name in recorded}


def main():
    goldens, special = tokenizer_goldens(ROOT / "tiny.tiktoken")
    templates = template_goldens()
    for golden in templates:
        outcomes = ["error" if "error" in case else "rendered" for case in golden["cases"]]
        print(f"{golden['name']:20} {' '.join(outcomes)}")
    # One golden a line, so that a change shows as one.
    sections = [
        ("tiktoken", "[\n" + ",\n".join(json.dumps(golden) for golden in goldens) + "\n]"),
        ("special", json.dumps(special, indent=1)),
        ("templates", json.dumps(templates, indent=1, ensure_ascii=False)),
    ]
    text = "{\n" + ",\n".join(f'"{name}": {value}' for name, value in sections) + "\n}\n"
    assert set(json.loads(text)) == {"tiktoken", "special", "templates"}
    (ROOT / "text.json").write_text(text)
    print(f"{len(goldens)} texts, {len(templates)} templates, text.json {len(text) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
