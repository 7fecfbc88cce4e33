"""Random GGUF quantisation blocks with the values that the `gguf` package (llama.cpp's gguf-py 0.19.0) reads from them.
The values are checked here against decoders of its own.
usage: make_gguf_blocks.py tests/fixtures/gguf/blocks.json"""
import sys, json
import numpy as np
import gguf
rng = np.random.default_rng(20261129)
f16 = lambda lo, hi: np.frombuffer(np.float16(rng.uniform(lo, hi) * rng.choice([-1, 1])).tobytes(), np.uint8)
by = lambda n: rng.integers(0, 256, n, dtype=np.uint8)
D = lambda: f16(0.001, 0.05)
MK = {"Q4_0": lambda: [D(), by(16)], "Q4_1": lambda: [D(), f16(.01, 1), by(16)], "Q5_0": lambda: [D(), by(4), by(16)],
      "Q5_1": lambda: [D(), f16(.01, 1), by(4), by(16)], "Q8_0": lambda: [D(), by(32)], "IQ4_NL": lambda: [D(), by(16)],
      "Q4_K": lambda: [D(), D(), by(12), by(128)], "Q5_K": lambda: [D(), D(), by(12), by(32), by(128)],
      "Q6_K": lambda: [by(128), by(64), by(16), D()]}
T = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
h = lambda b, o: float(np.frombuffer(bytes(b[o:o + 2]), np.float16)[0])
def nib(qs, j): return qs[j] & 15 if j < 16 else qs[j - 16] >> 4
def scales(sc, g): return (sc[g] & 63, sc[4 + g] & 63) if g < 4 else ((sc[4 + g] & 15) | (sc[g - 4] >> 6) << 4, (sc[4 + g] >> 4) | (sc[g] >> 6) << 4)
def decode(t, b):
    b = [int(x) for x in b]; i8 = lambda x: x - 256 if x > 127 else x
    if t == "Q4_0": return [h(b, 0) * (nib(b[2:], j) - 8) for j in range(32)]
    if t == "Q4_1": return [h(b, 0) * nib(b[4:], j) + h(b, 2) for j in range(32)]
    if t in ("Q5_0", "Q5_1"):
        o = 2 if t == "Q5_0" else 4; qh = int.from_bytes(bytes(b[o:o + 4]), "little")
        q = [nib(b[o + 4:], j) | (qh >> j & 1) << 4 for j in range(32)]
        return [h(b, 0) * (x - 16) for x in q] if t == "Q5_0" else [h(b, 0) * x + h(b, 2) for x in q]
    if t == "Q8_0": return [h(b, 0) * i8(x) for x in b[2:]]
    if t == "IQ4_NL": return [h(b, 0) * T[nib(b[2:], j)] for j in range(32)]
    if t in ("Q4_K", "Q5_K"):
        sc, qs, qh, out = b[4:16], b[-128:], b[16:48], []
        for g in range(8):
            s, m = scales(sc, g)
            for e in range(32):
                x = qs[32 * (g // 2) + e]; x = x & 15 if g % 2 == 0 else x >> 4
                if t == "Q5_K": x |= (qh[e] >> g & 1) << 4
                out.append(h(b, 0) * s * x - h(b, 2) * m)
        return out
    ql, qh, sc, d = b[:128], b[128:192], b[192:208], h(b, 208); out = [0.0] * 256
    for hf in range(2):
        for e in range(32):
            lo, hi = ql[64 * hf + e], ql[64 * hf + 32 + e]; two = qh[32 * hf + e]
            for k, x in enumerate((lo & 15, hi & 15, lo >> 4, hi >> 4)):
                i = 128 * hf + 32 * k + e; out[i] = d * i8(sc[i // 16]) * ((x | (two >> 2 * k & 3) << 4) - 32)
    return out
res = {}
for t, mk in MK.items():
    blocks = [np.concatenate(mk()) for _ in range(4)]; raw = np.concatenate(blocks); qt = gguf.GGMLQuantizationType[t]
    n, size = gguf.GGML_QUANT_SIZES[qt]; assert all(len(b) == size for b in blocks)
    val = gguf.quants.dequantize(raw.reshape(1, -1), qt).reshape(-1); mine = np.array([x for b in blocks for x in decode(t, b)])
    assert np.abs(val - mine).max() <= 2e-6 * np.abs(mine).max(), t
    res[t] = dict(type_id=int(qt), block_values=n, block_bytes=size, hex=raw.tobytes().hex(), values=[float("%.9g" % x) for x in val])
json.dump(res, open(sys.argv[1], "w")); print({k: (v["block_values"], v["block_bytes"]) for k, v in res.items()})
