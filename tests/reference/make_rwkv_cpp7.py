#!/usr/bin/env python3
"""Writes a small RWKV-7 model as a raw checkpoint and in forms of rwkv.cpp's files, and what each stands for.

Usage: make_rwkv_cpp7.py OUT_DIR

Needs numpy only (made with 2.4.6). The weights are random, of a fixed seed, and rounded to bf16, as published
checkpoints are.

original.safetensors is the checkpoint. NAME.bin is what rwkv.cpp's converter, and its `quantize`, make of it: six
vectors of the token shift in one tensor, low-rank matrices transposed, what is small in f32. Layer 0 of the
checkpoint and of FP32.bin has v0, v1 and v2, which nothing uses; rwkv.cpp's converter leaves them out today.

expected.json holds for each file the CRC-32 of every tensor, dequantised, as f32 in the shape of raw checkpoints;
and the logits of the last of some tokens, computed here in f64 by the formulas of the RWKV-7 paper.
"""

import json
import os
import struct
import sys
import zlib

import numpy as np

from ggml_blocks import BLOCK, QUANTISED, dequantise, pack, quantise

N_VOCAB, N_EMBD, N_LAYER, N_HIDDEN, HEAD_SIZE = 24, 32, 2, 64, 16
# Of w, a, v and g, all different from each other and from N_EMBD.
RANKS = {"w": 6, "a": 5, "v": 3, "g": 10}
SHIFTS = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"]
F32, F16 = 0, 1
PARENT = {"Q4_0": "FP32", "Q5_1": "FP16", "Q8_0": "FP16"}
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
SMALL = [".time_", ".k_k", ".k_a", ".r_k", ".x_rwkvag", ".x_k", ".w0", ".a0", ".v0"]


def bf16(values):
    """Rounded to the nearest bf16, as f32."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def checkpoint():
    random = np.random.default_rng(7)
    model = {}

    def put(name, shape, scale=1.0, mean=0.0):
        model[name] = bf16(mean + scale * random.standard_normal(shape))

    def norm(name, width):
        put(f"{name}.weight", width, 0.2, 1.0)
        put(f"{name}.bias", width, 0.1)

    def matrix(name, n_out, n_in):
        put(f"{name}.weight", (n_out, n_in), n_in**-0.5)

    put("emb.weight", (N_VOCAB, N_EMBD))
    norm("blocks.0.ln0", N_EMBD)
    for layer in range(N_LAYER):
        block = f"blocks.{layer}"
        norm(f"{block}.ln1", N_EMBD)
        norm(f"{block}.ln2", N_EMBD)
        for shift in SHIFTS:
            put(f"{block}.att.{shift}", (1, 1, N_EMBD), 0.2, 0.5)
        for pair, rank in RANKS.items():
            if pair != "g":
                put(f"{block}.att.{pair}0", (1, 1, N_EMBD), 1.0, -2.0 if pair == "w" else 0.0)
            put(f"{block}.att.{pair}1", (N_EMBD, rank), N_EMBD**-0.5)
            put(f"{block}.att.{pair}2", (rank, N_EMBD), rank**-0.5)
        put(f"{block}.att.k_k", (1, 1, N_EMBD), 0.2, 0.85)
        put(f"{block}.att.k_a", (1, 1, N_EMBD), 0.2, 1.0)
        put(f"{block}.att.r_k", (N_EMBD // HEAD_SIZE, HEAD_SIZE), 0.2)
        for name in ["receptance", "key", "value", "output"]:
            matrix(f"{block}.att.{name}", N_EMBD, N_EMBD)
        norm(f"{block}.att.ln_x", N_EMBD)
        put(f"{block}.ffn.x_k", (1, 1, N_EMBD), 0.2, 0.5)
        matrix(f"{block}.ffn.key", N_HIDDEN, N_EMBD)
        matrix(f"{block}.ffn.value", N_EMBD, N_HIDDEN)
    norm("ln_out", N_EMBD)
    matrix("head", N_VOCAB, N_EMBD)
    return model


def write_safetensors(path, model):
    """Numbers that bf16 holds, as bf16."""
    header, data = {}, b""
    for name, values in model.items():
        stored = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        offsets = [len(data), len(data) + len(stored)]
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": offsets}
        data += stored
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def is_transposed(name):
    return name[-3:] in [f".{pair}{half}" for pair in RANKS for half in "12"]


def converted(model, has_unused):
    """As rwkv.cpp's converter puts tensors together."""
    out = {}
    for name, values in model.items():
        layer, _, leaf = name.rpartition(".")
        if leaf in SHIFTS and layer.endswith(".att"):
            parts = [out[f"{layer}.x_rwkvag"]] if f"{layer}.x_rwkvag" in out else []
            out[f"{layer}.x_rwkvag"] = np.concatenate([*parts, values])
        elif has_unused or name not in [f"blocks.0.att.v{part}" for part in "012"]:
            out[name] = np.ascontiguousarray(values.T) if is_transposed(name) else values
    return out


def write_bin(path, name, model):
    """Writes the file; returns the numbers that it stands for, as a raw checkpoint."""
    kind = name if name in QUANTISED else None
    base = PARENT.get(name, name)
    stands_for = {}
    with open(path, "wb") as file:
        number = QUANTISED[kind][0] if kind else {"FP32": F32, "FP16": F16}[name]
        file.write(struct.pack("<4sIIIII", b"fmgg", 101, N_VOCAB, N_EMBD, N_LAYER, number))
        for key, values in converted(model, name == "FP32").items():
            is_small = values.ndim == 1 or any(part in key for part in SMALL)
            values = values.astype(np.float16) if base == "FP16" and not is_small else values
            dtype, data = F16 if values.dtype == np.float16 else F32, values.tobytes()
            values = values.astype(np.float32)
            stays = is_small or is_transposed(key) or key in ["emb.weight", "head.weight"]
            if kind and not stays:
                parts = quantise(kind, values.reshape(-1, BLOCK))
                dtype, data = QUANTISED[kind][0], pack(kind, *parts)
                values = dequantise(kind, *parts).reshape(values.shape)
            encoded = key.encode()
            file.write(struct.pack("<III", values.ndim, len(encoded), dtype))
            file.write(struct.pack(f"<{values.ndim}I", *reversed(values.shape)) + encoded + data)
            if key.endswith(".x_rwkvag"):
                for shift, row in zip(SHIFTS, values):
                    stands_for[key.replace("x_rwkvag", shift)] = row.reshape(1, 1, -1)
            else:
                stands_for[key] = np.ascontiguousarray(values.T) if is_transposed(key) else values
    return stands_for


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def logits(model, tokens):
    """Of the last token, in f64."""
    model = {name: values.astype(np.float64) for name, values in model.items()}
    vector = lambda name: model[name].reshape(-1)

    def norm(x, name, epsilon=1e-5):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x.reshape(-1) * vector(f"{name}.weight") + vector(f"{name}.bias")

    n_heads = N_EMBD // HEAD_SIZE
    heads = lambda x: x.reshape(n_heads, HEAD_SIZE)
    state = np.zeros((N_LAYER, n_heads, HEAD_SIZE, HEAD_SIZE))  # (.., value, key)
    previous = np.zeros((N_LAYER, 2, N_EMBD))
    for token in tokens:
        x = norm(model["emb.weight"][token], "blocks.0.ln0")
        for layer in range(N_LAYER):
            att, ffn = f"blocks.{layer}.att", f"blocks.{layer}.ffn"
            y = norm(x, f"blocks.{layer}.ln1")
            mixed = {name: y + (previous[layer, 0] - y) * vector(f"{att}.x_{name}") for name in "rwkvag"}
            previous[layer, 0] = y
            half = lambda pair, f: f(mixed[pair] @ model[f"{att}.{pair}1"]) @ model[f"{att}.{pair}2"]
            r = heads(model[f"{att}.receptance.weight"] @ mixed["r"])
            k = model[f"{att}.key.weight"] @ mixed["k"]
            v = model[f"{att}.value.weight"] @ mixed["v"]
            w = np.exp(-np.exp(-0.5) * sigmoid(vector(f"{att}.w0") + half("w", np.tanh)))
            a = sigmoid(vector(f"{att}.a0") + half("a", lambda x: x))
            g = half("g", sigmoid)
            kk = heads(k * vector(f"{att}.k_k"))
            kk = kk / np.maximum(np.linalg.norm(kk, axis=1, keepdims=True), 1e-12)
            k = heads(k * (1 + (a - 1) * vector(f"{att}.k_a")))
            if layer == 0:
                v_first = v
            else:
                v = v + (v_first - v) * sigmoid(vector(f"{att}.v0") + half("v", lambda x: x))
            v, w, a = heads(v), heads(w), heads(a)
            removed = np.einsum("hvk,hk->hv", state[layer], kk)
            state[layer] = (
                state[layer] * w[:, None, :]
                - removed[:, :, None] * (kk * a)[:, None, :]
                + v[:, :, None] * k[:, None, :]
            )
            out = norm(np.einsum("hvk,hk->hv", state[layer], r), f"{att}.ln_x", 64e-5)
            bonus = (r * k * model[f"{att}.r_k"]).sum(1, keepdims=True) * v
            x = x + model[f"{att}.output.weight"] @ ((out + bonus.reshape(-1)) * g)
            y = norm(x, f"blocks.{layer}.ln2")
            mix = y + (previous[layer, 1] - y) * vector(f"{ffn}.x_k")
            previous[layer, 1] = y
            x = x + model[f"{ffn}.value.weight"] @ np.maximum(model[f"{ffn}.key.weight"] @ mix, 0) ** 2
    return model["head.weight"] @ norm(x, "ln_out")


def main():
    (out,) = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    model = checkpoint()
    write_safetensors(os.path.join(out, "original.safetensors"), model)
    expected = {"tokens": TOKENS, "files": {}}
    for name in ["FP32", "FP16", *PARENT]:
        stands_for = write_bin(os.path.join(out, f"{name}.bin"), name, model)
        used = {key: values for key, values in stands_for.items() if not key.startswith("blocks.0.att.v")
                or key == "blocks.0.att.value.weight"}
        expected["files"][name] = {
            # A zero has no sign here: which one comes of a block is a matter of how its formula is written.
            "crc32": {key: zlib.crc32((values + np.float32(0)).astype("<f4").tobytes())
                      for key, values in sorted(used.items())},
            "logits": [float(x) for x in logits(used, TOKENS)],
        }
    with open(os.path.join(out, "expected.json"), "w") as file:
        json.dump(expected, file, indent=0)
        file.write("\n")


main()
