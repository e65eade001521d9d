"""The text that the demo model learns from: conversations made up from a random generator.

An addition is held out by a hash of its unordered pair of operands, a lookup by a hash of the
facts told so far and the one asked for. Held-out cases never occur in training; all questions that
test the model are made of them.
"""

import zlib

LIMIT = 100  # operands are below this
NAMES = """Ana Ben Carla David Elena Felix Grace Hugo Iris Jonas Kira Leo Mia Noah Olga Paul Quinn
Rosa Sam Tara Uma Victor Wanda Yara Zoe Alice Bob Clara Diego Emma Frank Maria Peter Sofia Tom
Lucy""".split()
ATTRIBUTES = "code number room score seat age locker ticket".split()
COLOURS = "red blue green black white yellow brown grey orange purple pink silver".split()
CONTAINERS = "box bag jar drawer basket chest cup tin".split()
OBJECTS = "key book lamp map phone ball coat clock letter knife ring hat pen cake".split()
PLACES = "kitchen garden garage attic cellar office hall bedroom library barn shed car".split()
LIKES = "tea coffee milk bread soup rice fish apples honey chess music rain snow dogs cats".split()
CITIES = "Lima Cusco Quito Paris Rome Oslo Cairo Delhi Tokyo Berlin Madrid London".split()

SYSTEM = [
    "You are a helpful assistant.", "You are Chaski's demo model.", "Answer briefly.",
    "Be kind and short.", "You are a friendly assistant who adds numbers and remembers facts.",
]
GREETINGS = [
    "Hello!", "Hello", "Hi!", "Hi", "Hi there!", "Hey", "Good morning!", "Good evening.", "hello",
    "hi",
]
GREETING = "Hello! Give me two numbers to add, or tell me something to remember."
WHO = [
    "Who are you?", "What are you?", "What can you do?", "Tell me about yourself.",
    "What is your name?", "who are you?", "Help", "How can you help me?", "What is Chaski?",
]
IDENTITY = (
    "I am Chaski's built-in demo model. I can add small numbers and look up what you tell me."
)
THANKS = ["Thanks!", "Thank you.", "Thank you!", "Great, thanks.", "thanks"]
WELCOME = "You are welcome."
OUT_OF_REACH = [
    "Write a poem about {}.", "Tell me a story about {}.", "Why do people like {}?",
    "Tell me a joke.", "What is the capital of {}?", "Translate {} into French.",
    "What is the meaning of {}?", "How do I make {}?", "Who invented {}?",
    "How is the weather in {}?",
]
SORRY = "Sorry, I can only add small numbers and look up what you tell me."
NOTED = "I will remember that."

SUMS = [
    "What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b}", "{a} + {b} =", "{a} + {b} = ?",
    "{a}+{b}", "{a}+{b}=", "Add {a} and {b}.", "How much is {a} + {b}?", "Please add {a} and {b}.",
    "What is {a}+{b}?", "Can you add {a} and {b}?", "Compute {a} + {b}.",
    "What is the sum of {a} and {b}?",
]
OWNED = [
    "What is {k}?", "Tell me {k}.", "Do you know {k}?", "{k}?", "What was {k}?", "And {k}?",
]
HELD = [
    "What does the {k} hold?", "What is in the {k}?", "How many does the {k} hold?",
    "What about the {k}?",
]
PLACED = [
    "Where is the {k}?", "Where can I find the {k}?", "In which place is the {k}?",
    "Where did I put the {k}?",
]
LIKED = ["What does {k} like?", "Tell me what {k} likes.", "Do you know what {k} likes?"]
LIVING = ["Where does {k} live?", "Tell me where {k} lives.", "In which city does {k} live?"]
REMEMBER = [
    "Remember: ", "Remember this: ", "Please remember: ", "Please remember that ", "Note: ", "",
]


def held_out(*key):
    """Whether a case is kept for the questions: one in sixteen, by a hash that never changes."""
    return zlib.crc32(repr(key).encode()) % 16 == 0


def message(role, content):
    return {"role": role, "content": content}


def made_up_name(rng):
    syllables = [
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))
    ]
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
    """`count` facts about things not in `known`, mostly of one kind: only the name tells them
    apart."""
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
    clauses = [sentence[:-1].replace("The ", "the ") for sentence in sentences]
    text = ", ".join(clauses[:-1]) + " and " + clauses[-1] + "."
    return text[0].upper() + text[1:]


def ask(rng, known, test):
    """A question about one known fact and its answer; None if all the choices tried are on the
    wrong side of the hash."""
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
    """One training turn (user text, answer) of a conversation that told `known`; may add to it."""
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


def conversation(rng):
    """A training conversation of one to eight turns, a quarter of them with a system message."""
    messages = [message("system", rng.choice(SYSTEM))] if rng.random() < 0.25 else []
    known = []
    turns = rng.choice([addition] * 3 + [turn] * 5)
    for _ in range(rng.choice([1, 2, 4, 6, 8])):
        user, answer = addition(rng, test=False) if turns is addition else turn(rng, known)
        messages += [message("user", user), message("assistant", answer)]
    return messages


def told_twice(rng):
    """Facts as sentences, and those of them that may be told again in training."""
    told = sorted(sentence for _, sentence, _ in new_facts(rng, rng.randint(1, 6), []))
    return told, [sentence for sentence in told if not held_out(told, sentence)]


def questions(rng):
    """The 200 held-out questions: 100 additions, 80 lookups, 20 that hang on earlier turns."""
    pairs = [addition(rng, test=True) for _ in range(100)]
    pairs += [lookup(rng, test=True)[:2] for _ in range(80)]
    rows = [([message("user", user)], answer) for user, answer in pairs]
    while len(rows) < 200:
        known = new_facts(rng, rng.randint(1, 5), [])
        turns = [(rng.choice(REMEMBER) + tell(rng, known), NOTED)]
        turns += [turn(rng, known) for _ in range(rng.randint(1, 3))]
        if last := ask(rng, known, test=True):
            earlier = [
                message(role, text)
                for pair in turns
                for role, text in zip(("user", "assistant"), pair)
            ]
            rows.append((earlier + [message("user", last[0])], last[1]))
    return [{"messages": messages, "answer": answer} for messages, answer in rows]
