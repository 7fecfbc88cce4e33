"""ggml's blocks of 32 numbers, for the scripts that write files of rwkv.cpp: needs numpy only."""

import struct

import numpy as np

BLOCK = 32
# name: number in the file, bits, bias (None: an offset is stored)
QUANTISED = {"Q4_0": (2, 4, 8), "Q4_1": (3, 4, None), "Q5_0": (7, 5, 16), "Q5_1": (8, 5, None), "Q8_0": (9, 8, 128)}


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
