#!/usr/bin/env python3
"""What a GPU that is new to Chaski has to be asked, from a prebuilt binary: no Rust is needed.

    scripts/hardware.py --chaski target/release/chaski --pack carry   # what to take to the machine
    carry/scripts/hardware.py --plan first                            # five minutes: is it right?
    carry/scripts/hardware.py --plan second                           # nine more: how fast is it?
    scripts/records.py --chaski ...                                   # then: the tables in PERFORMANCE.md

One file a run, RECORDS/<gpu>/<date>.json, is written anew after every step, whole or not at all: what
ran and printed, what came of it, and the GPU's clocks, power and temperature. Whatever ends the
script, what was done stands there. A step that fails is done again with every kernel waited for, and
the others go on; exit status 1 if any failed or had no time left.

Every command is told to take the GPU, and rows that name another device fail their step: nothing that
the CPU did is filed as a GPU's. `--emulate N` tries a plan without a GPU, at small sizes; such records
go to target/record, and no table is made of them. docs/first-gpu.md says how to read what comes back.
"""

import argparse
import os
import pathlib
import sys

from gpu.pack import pack
from gpu.plans import PLANS, QUICK, Sizes
from gpu.run import Run

ROOT = pathlib.Path(__file__).resolve().parent.parent


def show(plan):
    """The steps, with their commands at full size."""
    steps, most = PLANS[plan]
    for step in steps:
        variables = [f"{name}={value}" for name, value in step.environment.items()]
        words = ["chaski", *step.command(Sizes())] if step.command else [step.does.__name__]
        print(f"{step.seconds:4} s  {step.name:16} {step.proves}\n{'':8}{' '.join(variables + words)}")
    print(f"{sum(step.seconds for step in steps):4} s  of {most}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chaski", type=pathlib.Path, default=ROOT / "chaski",
                        help="the prebuilt binary [default: a pack's]")
    parser.add_argument("--plan", choices=PLANS, help="what to do")
    parser.add_argument("--only", help="steps of it, by commas [default: all]")
    parser.add_argument("--seconds", type=float, help="for all steps [default: a tenth more than they take]")
    parser.add_argument("--records", type=pathlib.Path, help="where records go [default: benches/record]")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch and transformers")
    parser.add_argument("--emulate", type=int, metavar="N", help="emulated GPUs, to try a plan")
    parser.add_argument("--list", action="store_true", help="print the plan's steps")
    parser.add_argument("--pack", type=pathlib.Path, metavar="DIR", help="make the folder to carry to a GPU")
    parser.add_argument("--tests", type=pathlib.Path, metavar="FILE",
                        help="for the pack: the binary of tests/emulator/intrinsics.rs")
    arguments = parser.parse_args()
    if arguments.list and arguments.plan:
        show(arguments.plan)
        return 0
    if not os.access(arguments.chaski, os.X_OK):
        parser.error("--chaski: a prebuilt binary is needed")
    try:
        if arguments.pack:
            print(pack(arguments.pack, ROOT, {"chaski": arguments.chaski, "intrinsics": arguments.tests}))
            return 0
        if not arguments.plan:
            parser.error("--plan first or --plan second is needed")
        return follow(arguments, parser)
    except (OSError, ValueError) as error:
        print(f"hardware.py: {error}", file=sys.stderr)
        return 1


def follow(arguments, parser):
    """Does the steps of a plan. Returns the exit status."""
    steps, most = PLANS[arguments.plan]
    wanted = arguments.only.split(",") if arguments.only else [step.name for step in steps]
    unknown = set(wanted) - {step.name for step in steps}
    if unknown:
        parser.error(f"no step {min(unknown)!r}: there are {', '.join(step.name for step in steps)}")
    default = ROOT / "target" / "record" if arguments.emulate else ROOT / "benches" / "record"
    run = Run(
        arguments.chaski.resolve(),
        [step for step in steps if step.name in wanted],
        QUICK if arguments.emulate else Sizes(),
        emulate=arguments.emulate,
        records=arguments.records or default,
        python=arguments.python,
        seconds=arguments.seconds or (3600 if arguments.emulate else 1.1 * most),
    )
    try:
        failed = run.all()
    except KeyboardInterrupt:
        run.write()
        print(f"stopped; what was done is in {run.path}", file=sys.stderr)
        return 130
    print(run.path)
    if failed:
        print(f"not well: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
