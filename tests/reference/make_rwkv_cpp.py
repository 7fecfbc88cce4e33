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

from ggml_blocks import BLOCK, QUANTISED, dequantise, pack, quantise

N_VOCAB, N_EMBD, N_LAYER, N_HIDDEN = 40, 32, 2, 64
F32, F16 = 0, 1
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
