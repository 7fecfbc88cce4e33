"""Whether a model spread over devices with little memory each answers as on the CPU.

usage: answers.py RWKV_EDGE MODEL LIMITS       LIMITS as of --max-device-memory
"""

import json
import math
import subprocess
import sys

edge, model, limits = sys.argv[1:]
TOKENS = ",".join(str(17 * i % 50000) for i in range(1, 33))


def run(*arguments):
    command = [edge, *arguments, "--model", model]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def logits(*arguments):
    return run("logits", "--tokens", TOKENS, "--json", *arguments)["logits"][0]


spread = ["--device-map", "auto", "--max-device-memory", limits]
stages = run("info", "--json", *spread)["stages"]
for stage in stages:
    print(stage["device"], stage["n_layer"], "layers, takes", stage["allocated_bytes"], "bytes")
expected, found = logits(), logits(*spread)
mean = sum(expected) / len(expected)
deviation = math.sqrt(sum((x - mean) ** 2 for x in expected) / len(expected))
difference = max(abs(a - b) for a, b in zip(expected, found)) / deviation
print(f"largest difference of the logits: {difference:.2e} standard deviations")
if len(stages) < 2 or any(stage["device"] == "cpu" for stage in stages):
    sys.exit("expected several devices and no CPU")
if difference > 2e-2:
    sys.exit("expected at most 2e-2")
