"""What is done on a GPU, in two plans: the steps' order, commands, expected seconds and proofs.

`first` is evidence, what is wanted most before the rest; `second` measures what `first` has shown to
work. The seconds are those of an H200 whose host has sixteen cores. `tests/sweep/hardware.rs` adds them up.
"""

import dataclasses

from . import parts
from .run import Step
from .stamps import stamps


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    model: str = "synthetic:llama3-8b"
    small: str = "synthetic:llama3.2-1b"
    kernels: tuple = ()  # to check; all if there are none
    limit: str = "10"  # seconds of a kernel over a case
    ask_every: int = 1  # so many of the demo's questions
    layers: str = "2"
    ids: str = "16"
    prompts: str = "512,2048"
    prompt: str = "512"
    long_prompt: str = "2048"
    longest: str = "8192"
    chunks: tuple = ("512", "1024", "2048", "4096")
    many_ids: str = "600"
    few_ids: str = "20"
    tokens: str = "128"
    answer: str = "64"
    depths: str = "8192,32768"
    repetitions: str = "5"
    few: str = "3"
    launches: str = "30"
    worlds: tuple = (2, 4)
    stamped_layers: str = "4"
    stamped_tokens: str = "16"


# To try the script on an emulated GPU.
QUICK = Sizes(
    model="synthetic:tiny", small="synthetic:tiny", kernels=("embed", "rms_norm"), limit="600",
    ask_every=100, layers="1", ids="3", prompts="8", prompt="8", long_prompt="8", longest="8",
    chunks=("4",), many_ids="40", few_ids="20", tokens="2", answer="4", depths="8", repetitions="1",
    few="1", launches="1", worlds=(2,), stamped_layers="2", stamped_tokens="3",
)


def bench(model, prompts="0", tokens="0", *more, repetitions=None):
    """`chaski bench` of the model that the sizes have by this name, and so on."""
    def command(s):
        size = lambda name: getattr(s, name, name)
        times = repetitions or s.few
        return ["bench", "-m", size(model), "-p", size(prompts), "-n", size(tokens), "-r", size(times),
                "-o", "json", *map(size, more)]
    return command


def kernel_bench(*names_and_more):
    """`chaski kernels bench` of these kernels, with arguments that the sizes may have."""
    return lambda s: ["kernels", "bench", *(getattr(s, word, word) for word in names_and_more),
                      "-m", s.model, "-r", s.launches, "-o", "json"]


def speeds(rows):
    return {row["test"]: row["avg_ts"] for row in rows}


def wrong(rows):
    """The kernels that did not pass."""
    names = [row["kernel"] for row in rows if row["wrong"]]
    return {"kernels": len(rows), "wrong": ", ".join(names) or "none"}


def unfit(rows):
    """What did not qualify, of the record that `chaski qualify` prints."""
    [verdicts] = [row["verdicts"] for row in rows]
    wrong = [str(verdict["check"]) for verdict in verdicts if verdict["wrong"]]
    return {"checks": len(verdicts), "not fit to run": ", ".join(wrong) or "none",
            "check seconds": round(sum(verdict["seconds"] for verdict in verdicts), 1)}


def parted(rows):
    """The op after which two executors differ most for its tolerance."""
    worst = max(rows, key=lambda row: row["alone"] / row["tolerance"], default=None)
    if worst is None:
        return {}
    share = worst["alone"] / worst["tolerance"]
    return {"ops": len(rows), "worst": f"{worst['op']}: {share:.2g} of what rounding explains"}


def phases(rows):
    return {row["phase"]: row["ms"] for row in rows}


def times(rows):
    return {f"{row['kernel']} {row['phase']} us": row["time_us"] for row in rows}


def beside(rows):
    return {f"{row['kernel']} {row['shape']}": row["ratio"] for row in rows if row["ratio"]}


def variant(what, proves, **environment):
    """Decode of the 8B with one thing changed."""
    return Step(f"tg128 {what}", 6, proves, bench("model", "0", "tokens", "--no-loop"),
                environment=environment, found=speeds)


def difference(s):
    return ["diff", "-m", s.model, "--layers", s.layers, "--random-ids", s.ids, "--a", "cpu",
            "--b", "cuda", "--json"]


PORTABLE, HOPPER = {"CHASKI_HOPPER": "off"}, {"CHASKI_HOPPER": "on"}

FIRST = [
    Step("devices", 2, "the driver, the GPU and the tools are as expected", does=parts.machine),
    Step("qualify", 14, "what an 8B runs is fit to run here, alone, in graphs and launched early; its tuning",
         lambda s: ["qualify", "-m", s.model, "--json"], found=unfit),
    Step("answer", 5, "the demo answers one question: every decode kernel runs",
         does=parts.one_answer),
    Step("check", 60, "every kernel agrees with its reference on this GPU",
         lambda s: ["kernels", "check", "--cases", "few", "--time-limit", s.limit, "--json", *s.kernels],
         table="verified", found=wrong, again=lambda rows: [row["kernel"] for row in rows if row["wrong"]]),
    Step("questions", 20, "the demo's held-out questions: whole answers are right",
         does=parts.questions),
    Step("diff", 25, "layers of an 8B, op by op, against the CPU", difference, on_gpu=False,
         environment=PORTABLE, found=parted),
    Step("bench 8B", 20, "tokens a second of an 8B", bench("model", "prompts", "tokens",
         repetitions="repetitions"), environment=PORTABLE, table="speed", found=speeds),
    Step("bench 1B", 8, "tokens a second of a 1B", bench("small", "0", "tokens",
         repetitions="repetitions"), environment=PORTABLE, table="speed", found=speeds),
    variant("PDL off", "what programmatic launch brings", CHASKI_PDL="off"),
    variant("graphs off", "what graphs bring", CHASKI_GRAPHS="off"),
    variant("nothing ahead", "what the prefetch before the wait brings", CHASKI_AHEAD="0"),
    variant("1 step ahead", "its depth", CHASKI_AHEAD="1"),
    variant("2 steps ahead", "its depth", CHASKI_AHEAD="2"),
    variant("by lines", "its instruction: a prefetch of every lane", CHASKI_PREFETCH="lines"),
    variant("paced", "its pace: each piece when the one before has come", CHASKI_PREFETCH="paced"),
    variant("in bulk", "its instruction: one of one lane", CHASKI_PREFETCH="bulk"),
    variant("trigger first", "the next kernel may begin at once", CHASKI_TRIGGER="first"),
    variant("trigger last", "the next kernel may begin when all weights are asked for",
            CHASKI_TRIGGER="last"),
    Step("hopper diff", 25, "the same layers by TMA and wgmma", difference, on_gpu=False,
         environment=HOPPER, found=parted),
    Step("hopper pp", 8, "tokens a second of an 8B's prompt by TMA and wgmma", bench("model", "prompts"),
         environment=HOPPER, table="speed", found=speeds),
    Step("stamps", 25, "when parts of decode kernels begin and end, by the multiprocessor's clock",
         does=stamps),
]

SECOND = [
    Step("intrinsics", 20, "PTX is read as the ISA has it", does=parts.intrinsics, real=True),
    Step("identity", 25, "the same bits however work is given to the GPU", does=parts.identity),
    Step("chunks", 15, "Hopper's kernels: the same bits whatever the length of a step",
         does=parts.chunks),
    Step("depths 8B", 20, "tokens a second behind a long context",
         bench("model", "0", "tokens", "-d", "depths", "--depth-fill", "random"),
         environment=PORTABLE, table="speed", found=speeds),
    Step("depths 1B", 12, "the same of a 1B, where attention has heads of 64",
         bench("small", "0", "tokens", "-d", "depths", "--depth-fill", "random"),
         environment=PORTABLE, table="speed", found=speeds),
    Step("prefetch", 5, "how many bytes one prefetch brings", does=parts.prefetch, real=True),
    Step("steps", 30, "a long prompt in steps of several lengths", does=parts.step_lengths),
    Step("carve-outs", 6, "what reading loses to shared memory", does=parts.carveouts),
    Step("tiles", 20, "a prompt by each shape of tile", does=parts.tiles),
    Step("kernels", 35, "each kernel alone at an 8B's shapes, with cold caches",
         kernel_bench(), environment=PORTABLE, table="kernels", found=times),
    Step("kernels 2048", 20, "products of a long prompt, by TMA and wgmma",
         kernel_bench("matmul", "gate_up_swiglu", "attend_prefill", "-p", "long_prompt"),
         environment=HOPPER, table="kernels", found=times),
    Step("cuBLASLt 512", 15, "products beside NVIDIA's own",
         kernel_bench("matmul", "--against", "cublaslt", "-p", "prompt"),
         environment=HOPPER, real=True, table="kernels", found=beside),
    Step("cuBLASLt 2048", 15, "products beside NVIDIA's own",
         kernel_bench("matmul", "--against", "cublaslt", "-p", "long_prompt"),
         environment=HOPPER, real=True, table="kernels", found=beside),
    Step("profile", 12, "where a token's time goes", bench("model", "prompt", "0", "--profile"),
         environment=PORTABLE),
    Step("load", 50, "from files in the page cache to the GPU", does=parts.load),
    Step("ranks", 25, "a model split over ranks that share the GPU", does=parts.ranks),
    Step("peers", 75, "the same weights in transformers: logits, and speed side by side",
         does=parts.peers, real=True),
    Step("ncu", 50, "NVIDIA's counters of decode kernels", does=parts.counters, real=True),
    Step("memcheck", 50, "NVIDIA's compute-sanitizer over a few kernels", does=parts.memcheck, real=True),
]

PLANS = {"first": (FIRST, 280), "second": (SECOND, 500)}
