#!/usr/bin/env python3
"""Writes a small model in every form of rwkv.cpp's files, and beside each the numbers that it stands for.

Usage: make_rwkv_cpp.py GOLDEN_DIR OUT_DIR

GOLDEN_DIR is tests/fixtures/golden/small-safetensors: the model is cut from it, so that it has outlier rows
and columns as trained models do. Needs torch (made with 2.15.0), numpy and safetensors.

NAME.bin is the file; NAME.safetensors holds the same tensors as a raw checkpoint in f32, dequantised here
by the formula alone: scale * (integer - bias) + offset. time_decay, which the files store as -exp(time_decay),
is there as log(-x), computed in f64. original.safetensors is the model that all files were made from.
"""

import os
import struct
import sys

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

N_VOCAB, N_EMBD, N_LAYER, N_HIDDEN, BLOCK = 40, 32, 2, 64, 32
F32, F16 = 0, 1
# name: number in the file, bits, bias (None: an offset is stored)
QUANTISED = {"Q4_0": (2, 4, 8), "Q4_1": (3, 4, None), "Q5_0": (7, 5, 16), "Q5_1": (8, 5, None), "Q8_0": (9, 8, 128)}
# The file that rwkv.cpp's `quantize` starts from, which the embedding and the head stay like.
PARENT = {"Q4_0": "FP32", "Q4_1": "FP16", "Q5_0": "FP16", "Q5_1": "FP32", "Q8_0": "FP16"}

RAW_NAMES = [
    ("rwkv.", ""), ("embeddings.", "emb."), (".pre_ln.", ".ln0."), (".attention.", ".att."), (".feed_forward.", ".ffn."),
    ("time_mix_key", "time_mix_k"), ("time_mix_value", "time_mix_v"), ("time_mix_receptance", "time_mix_r"),
]


def small_model(golden):
    """The first channels, hidden units, tokens and layers of the golden model, under BlinkDL's names."""
    model = {}
    for name, tensor in load_file(os.path.join(golden, "model.safetensors")).items():
        for theirs, ours in RAW_NAMES:
            name = name.replace(theirs, ours)
        if name.startswith("blocks.") and int(name.split(".")[1]) >= N_LAYER:
            continue
        if name in ["emb.weight", "head.weight"]:
            tensor = tensor[:N_VOCAB, :N_EMBD]
        elif name.endswith("ffn.key.weight"):
            tensor = tensor[:N_HIDDEN, :N_EMBD]
        elif name.endswith("ffn.value.weight"):
            tensor = tensor[:N_EMBD, :N_HIDDEN]
        elif tensor.dim() == 2:
            tensor = tensor[:N_EMBD, :N_EMBD]
        else:
            tensor = tensor[..., :N_EMBD]
        model[name] = tensor.contiguous()
    return model


def quantise(kind, values):
    """(blocks, 32) of f32 to scale, offset (f16) and unsigned integers. The largest magnitude is met exactly
    where there is no offset; minimum and maximum where there is one."""
    _, bits, bias = QUANTISED[kind]
    top = (1 << bits) - 1
    rows = np.arange(len(values))
    if bias is None:
        low, high = values.min(1), values.max(1)
        scale, offset, shift = (high - low) / np.float32(top), low, -low
    elif kind == "Q8_0":
        scale, offset, shift = np.abs(values).max(1) / np.float32(127), None, np.zeros(len(values), np.float32)
    else:
        extreme = values[rows, np.abs(values).argmax(1)]
        scale, offset, shift = extreme / np.float32(-bias), None, np.zeros(len(values), np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    numbers = (values + shift[:, None]) * inverse[:, None] + np.float32(bias or 0)
    integers = np.clip(np.floor(numbers + np.float32(0.5)), 0, top).astype(np.uint8)
    return scale.astype(np.float16), None if offset is None else offset.astype(np.float16), integers


def pack(kind, scale, offset, integers):
    """The bytes of the blocks."""
    _, bits, bias = QUANTISED[kind]
    out = bytearray()
    for i in range(len(scale)):
        q = integers[i].astype(np.uint32)
        out += scale[i].tobytes()
        if offset is not None:
            out += offset[i].tobytes()
        if bits == 8:
            out += (integers[i].astype(np.int16) - bias).astype(np.int8).tobytes()
            continue
        if bits == 5:
            out += struct.pack("<I", sum(int(n >> 4) << at for at, n in enumerate(q)))
        out += bytes(int(a & 15) | int(b & 15) << 4 for a, b in zip(q[:16], q[16:]))
    return bytes(out)


def dequantise(kind, scale, offset, integers):
    bias = QUANTISED[kind][2] or 0
    numbers = scale.astype(np.float32)[:, None] * (integers.astype(np.float32) - np.float32(bias))
    return numbers if offset is None else numbers + offset.astype(np.float32)[:, None]


def write(out, name, model):
    kind = name if name in QUANTISED else None
    base = PARENT.get(name, name)
    expected = {}
    with open(os.path.join(out, name + ".bin"), "wb") as file:
        number = QUANTISED[kind][0] if kind else {"FP32": F32, "FP16": F16}[name]
        file.write(struct.pack("<4sIIIII", b"fmgg", 101, N_VOCAB, N_EMBD, N_LAYER, number))
        for key, tensor in model.items():
            tensor = tensor.squeeze() if ".time_" in key else tensor
            tensor = -torch.exp(tensor) if ".time_decay" in key else tensor
            is_matrix = tensor.dim() == 2
            values = tensor.numpy()
            values = values.astype(np.float16) if base == "FP16" and is_matrix else values
            dtype, data = F16 if values.dtype == np.float16 else F32, values.tobytes()
            values = values.astype(np.float32)
            if kind and is_matrix and key not in ["emb.weight", "head.weight"]:
                parts = quantise(kind, values.reshape(-1, BLOCK))
                dtype, data = QUANTISED[kind][0], pack(kind, *parts)
                values = dequantise(kind, *parts).reshape(values.shape)
            encoded = key.encode()
            file.write(struct.pack("<III", values.ndim, len(encoded), dtype))
            file.write(struct.pack(f"<{values.ndim}I", *reversed(values.shape)) + encoded + data)
            expected[key] = np.log(-values.astype(np.float64)).astype(np.float32) if ".time_decay" in key else values
    save_file(expected, os.path.join(out, name + ".safetensors"))


def main():
    golden, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    model = small_model(golden)
    save_file({k: v.numpy() for k, v in model.items()}, os.path.join(out, "original.safetensors"))
    for name in ["FP32", "FP16", *QUANTISED]:
        write(out, name, model)


main()
