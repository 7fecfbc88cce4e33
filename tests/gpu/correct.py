"""Text, states, perplexity and memory from the command line: a device beside the CPU, on a trained RWKV-4.

usage: correct.py RWKV_EDGE DEVICE RESULTS.json
"""

import json
import os
import subprocess
import sys
import tempfile

edge, device, results = sys.argv[1:]
# Tokens of the text; shorter where the device is slow.
LIMIT = os.environ.get("PERPLEXITY_TOKENS", "20000")
PROMPTS = ["Ownership is", "A trait is", "fn main() {", "The state between two tokens"]
MODEL = "tests/fixtures/demo4"
failures = []
facts = {}


def run(*arguments):
    output = subprocess.run([edge, *arguments, "--model", MODEL], capture_output=True, text=True)
    if output.returncode != 0:
        failures.append(f"{arguments}: {output.stderr.strip()}")
    return output.stdout


def check(what, holds):
    print(f"{what}: {'yes' if holds else 'NO'}")
    if not holds:
        failures.append(what)


def same_start(a, b):
    """How many tokens are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


for quant in ["f16", "int8"]:
    lengths = []
    for prompt in PROMPTS:
        text = lambda place: json.loads(
            run("generate", "--json", "-n", "200", "--ignore-eos", "-q", quant, "--device", place, prompt)
        )["tokens"]
        lengths.append(same_start(text("cpu"), text(device)))
    print(f"{quant}: greedy tokens that are the CPU's, of 200: {lengths}")
    facts[f"greedy_{quant}"] = lengths
    perplexity = {
        place: json.loads(run("perplexity", "cli/demo/validation.txt", "--json", "--limit", LIMIT, "-q", quant, "--device", place))["perplexity"]
        for place in ["cpu", device]
    }
    print(f"{quant}: perplexity {perplexity['cpu']:.4f} on the CPU, {perplexity[device]:.4f} on {device}")
    facts[f"perplexity_{quant}"] = perplexity
    check(f"{quant}: perplexities within 0.1 %", abs(perplexity[device] / perplexity["cpu"] - 1) < 1e-3)

with tempfile.TemporaryDirectory() as folder:
    state = os.path.join(folder, "state")
    whole = run("-n", "40", "--no-echo", PROMPTS[0])
    for first, second in [("cpu", device), (device, "cpu"), (device, device)]:
        begin = run("-n", "20", "--no-echo", "--device", first, "--save-state", state, PROMPTS[0])
        rest = run("-n", "20", "--device", second, "--load-state", state)
        check(f"a state from {first} to {second}", begin + rest == whole)
    for split in [f"{device} *4 -> cpu", f"cpu *4 -> {device}", f"{device} *4 -> {device}"]:
        text = run("-n", "40", "--no-echo", "--device-map", split, PROMPTS[0])
        check(f"text of {split}", text == whole)

info = json.loads(run("info", "--json", "--device", device))
facts["stages"] = info.get("stages")
print("estimated", info["stages"][0]["estimated_bytes"], "allocated", info["stages"][0]["allocated_bytes"])
facts["failures"] = failures
with open(results, "w") as out:
    json.dump(facts, out, indent=1)
if failures:
    sys.exit("\n".join(map(str, failures)))
