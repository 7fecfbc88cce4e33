"""Compares the logits of RWKV-5.0, 5.1 and 5.2 with numpy's, in float64.

usage: check_rwkv5.py RWKV-EDGE-BINARY

Makes small random checkpoints as raw .safetensors files: 5.0 (no gate, one decay and one bonus a head), 5.1 (gate, one a
head), and 5.2 (gate, one a channel); the bonus as `time_first`, of which the exponential counts, and as `time_faaaa`, the
number itself. Needs numpy only. The formulas are those of the plain path of the pip package rwkv (att_one_v5, att_one_v5_1).
"""

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

LAYERS, VOCABULARY = 2, 40


def checkpoint(rng, heads, size, gate, bonus, per_channel):
    d = heads * size
    f = d + 64
    t = {"emb.weight": rng.normal(size=(VOCABULARY, d)), "head.weight": rng.normal(size=(VOCABULARY, d)) / d**0.5}
    norms = ["ln_out", "blocks.0.ln0"]
    for i in range(LAYERS):
        b = f"blocks.{i}."
        norms += [b + "ln1", b + "ln2", b + "att.ln_x"]
        for m in "kvr" + ("g" if gate else ""):
            t[b + "att.time_mix_" + m] = rng.uniform(size=(1, 1, d))
        for m in "kr":
            t[b + "ffn.time_mix_" + m] = rng.uniform(size=(1, 1, d))
        shape = (heads, size) if per_channel else (heads,)
        t[b + "att.time_decay"] = rng.uniform(-4, 1, size=shape)
        t[b + "att." + bonus] = rng.uniform(-1.5, 1, size=shape)
        for m in ["receptance", "key", "value", "output"] + (["gate"] if gate else []):
            t[b + f"att.{m}.weight"] = rng.normal(size=(d, d)) / d**0.5
        t[b + "ffn.key.weight"] = rng.normal(size=(f, d)) / d**0.5
        t[b + "ffn.value.weight"] = rng.normal(size=(d, f)) / f**0.5
        t[b + "ffn.receptance.weight"] = rng.normal(size=(d, d)) / d**0.5
    for n in norms:
        t[n + ".weight"] = rng.uniform(0.7, 1.3, size=d)
        t[n + ".bias"] = rng.uniform(-0.2, 0.2, size=d)
    return {k: v.astype(np.float32) for k, v in t.items()}


def write(path, tensors):
    header, data = {}, b""
    for k, v in tensors.items():
        raw = v.tobytes()
        header[k] = {"dtype": "F32", "shape": list(v.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def run(tensors, tokens, heads, bonus):
    t = {k: v.astype(np.float64).squeeze() for k, v in tensors.items()}
    d = t["emb.weight"].shape[1]
    size = d // heads

    def ln(x, name):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * t[name + ".weight"] + t[name + ".bias"]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    att, ffn = np.zeros((LAYERS, d)), np.zeros((LAYERS, d))
    state = np.zeros((LAYERS, heads, size, size))
    for token in tokens:
        x = ln(t["emb.weight"][token], "blocks.0.ln0")
        for i in range(LAYERS):
            b = f"blocks.{i}."
            xx = ln(x, b + "ln1")
            mixed = {
                m: xx * t[b + "att.time_mix_" + m] + att[i] * (1 - t[b + "att.time_mix_" + m])
                for m in "kvrg"
                if b + "att.time_mix_" + m in t
            }
            att[i] = xx
            r = (t[b + "att.receptance.weight"] @ mixed["r"]).reshape(heads, 1, size)
            k = (t[b + "att.key.weight"] @ mixed["k"]).reshape(heads, size, 1)
            v = (t[b + "att.value.weight"] @ mixed["v"]).reshape(heads, 1, size)
            w = np.exp(-np.exp(t[b + "att.time_decay"])).reshape(heads, -1, 1)
            u = t[b + "att." + bonus].reshape(heads, -1, 1)
            u = np.exp(u) if bonus == "time_first" else u
            a = k @ v
            out = (r @ (u * a + state[i])).reshape(heads, size)
            state[i] = a + w * state[i]
            out = (out - out.mean(1, keepdims=True)) / np.sqrt(out.var(1, keepdims=True) + 64e-5)
            out = out.reshape(d) * t[b + "att.ln_x.weight"] + t[b + "att.ln_x.bias"]
            if "g" in mixed:
                g = t[b + "att.gate.weight"] @ mixed["g"]
                out = out * g * sigmoid(g)
            x = x + t[b + "att.output.weight"] @ out
            xx = ln(x, b + "ln2")
            kx = xx * t[b + "ffn.time_mix_k"] + ffn[i] * (1 - t[b + "ffn.time_mix_k"])
            rx = xx * t[b + "ffn.time_mix_r"] + ffn[i] * (1 - t[b + "ffn.time_mix_r"])
            ffn[i] = xx
            k = np.maximum(t[b + "ffn.key.weight"] @ kx, 0) ** 2
            x = x + sigmoid(t[b + "ffn.receptance.weight"] @ rx) * (t[b + "ffn.value.weight"] @ k)
        logits = t["head.weight"] @ ln(x, "ln_out")
    return logits


def main():
    binary = sys.argv[1]
    rng = np.random.default_rng(5)
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        for heads, size in [(2, 64), (3, 32)]:
            for gate, bonus, per_channel in [
                (False, "time_first", False),
                (False, "time_faaaa", False),
                (False, "time_faaaa", True),
                (True, "time_first", False),
                (True, "time_faaaa", False),
                (True, "time_faaaa", True),
            ]:
                tensors = checkpoint(rng, heads, size, gate, bonus, per_channel)
                path = Path(folder) / "model.safetensors"
                write(path, tensors)
                tokens = rng.integers(0, VOCABULARY, size=48).tolist()
                expected = run(tensors, tokens, heads, bonus)
                errors = []
                for quant in ["f32", "int8"]:
                    command = [binary, "logits", "-m", path, "--quant", quant, "--json"]
                    command += ["--tokens", ",".join(map(str, tokens))]
                    made = subprocess.run(command, capture_output=True, check=True)
                    found = np.array(json.loads(made.stdout)["logits"][0])
                    errors.append(
                        np.abs(found - expected).max() / expected.std()
                        if quant == "f32"
                        else np.linalg.norm(found - expected) / np.linalg.norm(expected)
                    )
                print(f"heads {heads} of {size}, gate {gate}, {bonus}, per channel {per_channel}:", end=" ")
                print(f"f32 {errors[0]:.1e} of the deviation, int8 {100 * errors[1]:.2f} %")
                worst = max(worst, errors[0] / 1e-4, errors[1] / 0.075)
    sys.exit(int(worst > 1))


if __name__ == "__main__":
    main()
