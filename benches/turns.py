#!/usr/bin/env python3
"""Speed of two builds of the command, in turns: is the new one as fast as the old one?

usage: benches/turns.py OLD NEW [--turns 15] [--threads N] [--case NAME]...

Each turn runs OLD and NEW one after the other, every other turn the other way round, so that a machine that gets faster or
slower does so for both. What is printed is the median of the turns' ratios NEW / OLD of tokens a second, with an interval
that holds the true median with 95 % (bootstrap over the turns): above 1 the new build is faster. Nothing else should run.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys

CASES = {
    "169m int8": ["--synthetic", "169m", "-q", "int8"],
    "169m f16": ["--synthetic", "169m", "-q", "f16"],
    "demo int8": ["-m", "tests/fixtures/demo4", "-q", "int8"],
    "demo f16": ["-m", "tests/fixtures/demo4", "-q", "f16"],
}
MEASURED = {"decode": "decode_tokens_per_s", "prefill": "prefill_tokens_per_s"}


def measure(program, arguments, threads):
    command = [program, "bench", "--json", *arguments]
    if threads:
        command += ["-t", str(threads)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return json.loads(out)


def interval(ratios):
    generator = random.Random(1)
    medians = sorted(
        statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(4000)
    )
    return medians[100], medians[-101]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--case", action="append", choices=CASES)
    options = parser.parse_args()
    print("| case | | old tok/s | new tok/s | new / old | 95 % |")
    print("| --- | --- | ---: | ---: | ---: | --- |")
    for case in options.case or CASES:
        rows = []
        for turn in range(options.turns):
            order = [options.old, options.new]
            if turn % 2:
                order.reverse()
            found = {program: measure(program, CASES[case], options.threads) for program in order}
            rows.append((found[options.old], found[options.new]))
        for name, key in MEASURED.items():
            old, new = ([row[which][key] for row in rows] for which in (0, 1))
            ratios = [b / a for a, b in zip(old, new)]
            low, high = interval(ratios)
            print(
                f"| {case} | {name} | {statistics.median(old):,.0f} | {statistics.median(new):,.0f} "
                f"| {statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
