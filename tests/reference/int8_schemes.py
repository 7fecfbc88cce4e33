"""Compare int8 quantisation schemes for RWKV-4 models (fake quantisation: quantise, dequantise, run in f32).

usage: int8_schemes.py [--golden DIR]... [--trained DIR] [--demo DIR] [--schemes A,Bl4,...] [--acts none,i16,...]
                       [--tokens 8192 | 0 for the whole file] [--each] [--f32-check]

A golden DIR holds a Hugging Face RWKV-4 model and expected.json (input_ids); a demo DIR, such as
tests/fixtures/demo4, also holds tokenizer.json; its text is cli/demo/validation.txt. For golden models the figure is
the relative L2 error of the logits over all positions against the same model in f32, on the ids of expected.json and
on 256 random ids. For the demo it is the rise of the perplexity in percent and the mean KL divergence from f32. A
trained DIR holds a model of bytes, such as rwkv.cpp's tiny one after `rwkv-edge convert`; its figure is the relative
error of the centred logits over the first 300 bytes of validation.txt, so it needs --demo as well. Needs numpy and
safetensors, tokenizers for --demo, torch only for pytorch_model.bin.

Orientation. Every matrix is quantised as it is stored in the int8 file: [out, in], but ffn.value is stored transposed,
[hidden, out], one row for each hidden unit. So a "row scale" of ffn.value belongs to an input and multiplies the
activation; its "column exponent" belongs to an output. The embedding is stored raw, one row for each token.
"""
import argparse, glob, json, os, sys, time
import numpy as np

F = np.float32
VALIDATION = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../cli/demo/validation.txt")


# ---- loading -------------------------------------------------------------------------------------------------------

def load_model(d):
    """All tensors of a Hugging Face directory as f32, by their Hugging Face names."""
    t = {}
    for f in sorted(glob.glob(os.path.join(d, "*.safetensors"))):
        from safetensors.numpy import load_file
        t.update(load_file(f))
    if not t:
        import torch
        sd = torch.load(os.path.join(d, "pytorch_model.bin"), map_location="cpu", weights_only=True)
        t = {k: v.float().numpy() for k, v in sd.items()}
    return {k: np.ascontiguousarray(v.astype(F)) for k, v in t.items()}


def matrices(t):
    """The quantised matrices in stored orientation: name -> array. ffn.value is transposed."""
    out = {}
    for k, v in t.items():
        if v.ndim == 2 and "time_" not in k:
            out[k] = np.ascontiguousarray(v.T) if k.endswith("feed_forward.value.weight") else v
    return out


# ---- weight quantisation -------------------------------------------------------------------------------------------

def f16(x):
    return x.astype(np.float16).astype(F)


def norm(a, kind, axis):
    if kind == "max": return a.max(axis)
    p = {"rms": 2, "l4": 4, "l8": 8, "l16": 16}[kind]
    m = a.max(axis, keepdims=True); m[m == 0] = 1            # factor the maximum out, so that p = 16 does not underflow
    return np.squeeze(m, axis) * ((a / m) ** p).mean(axis) ** F(1 / p)


def column_scales(w, kind="rms", rounds=3, steps=1, row_kind="max"):
    """Alternating equalisation. Row scale from the column-scaled matrix, column scale from the row-scaled one.
    Columns of zeros get the smallest scale; the geometric mean is 1. Powers of 2^(1/steps), or f16 if steps is 0."""
    a = np.abs(w)
    c = np.ones(w.shape[1], F)
    for _ in range(rounds):
        s = norm(a / c, row_kind, 1); s[s == 0] = 1
        c = norm(a / s[:, None], kind, 0)
        c[c == 0] = c[c > 0].min() if (c > 0).any() else 1
        c /= np.exp2(np.log2(c).mean())
    if steps: return np.exp2(np.round(np.log2(c) * steps) / steps).astype(F)
    return f16(c)


def descend(w, c, steps=2):
    """Coordinate descent on the exponents from c. The proxy is sum_r s_r^2 * sum_c c_c^2 with s_r the row maximum of
    w/c: the expected squared rounding error. Each column tries one exponent up and down."""
    a = np.abs(w); c = c.copy()
    for _ in range(steps):
        changed = False
        for j in range(len(c)):
            b = a / c
            others = np.delete(b, j, 1).max(1) if w.shape[1] > 1 else np.zeros(len(a), F)
            rest = (c ** 2).sum() - c[j] ** 2
            cost = lambda x: (np.maximum(others, a[:, j] / x) ** 2).sum() * (rest + x * x)
            best = min((c[j], c[j] * 2, c[j] / 2), key=cost)
            if best != c[j]: c[j] = best; changed = True
        if not changed: break
    return c


def known(t, k):
    """What is known without any text of what a matrix meets: E[x^2] of its columns (None: nothing), E[x], and whether its
    rows are normalised. A layer norm gives gain^2 + bias^2; the token shift mixes two such, taken to be independent."""
    v = lambda name: t[name].reshape(-1).astype(np.float64)
    if k == "head.weight": return v("rwkv.ln_out.weight") ** 2 + v("rwkv.ln_out.bias") ** 2, v("rwkv.ln_out.bias"), False
    if k == "rwkv.embeddings.weight": return v("rwkv.blocks.0.pre_ln.weight") ** 2, None, True
    block, leaf = k.rsplit(".", 3)[0], k.split(".")[-3:-1]
    if leaf[1] == "output" or leaf == ["feed_forward", "value"]: return None, None, False
    norm = block + (".ln1." if leaf[0] == "attention" else ".ln2.")
    mix = v("%s.%s.time_mix_%s" % (block, *leaf))
    return v(norm + "weight") ** 2 * (mix ** 2 + (1 - mix) ** 2) + v(norm + "bias") ** 2, v(norm + "bias"), False


def expected_error(w, c, squares):
    """Of all outputs, but for a constant."""
    return float(((np.abs(w) / c).max(1) ** 2).sum() * (squares * c * c).sum())


def by_error(w, squares, is_by_row, rounds, p, candidates):
    """Column scales of least expected error. Where its slope is zero, with the largest of a row as a p-norm,
    g = sqrt(E[x^2]) * c has g^(p + 2) ~ sum over rows of (g * |w| / c)^p * s^(2 - p); 2^(e/4), geometric mean 1."""
    w = w.astype(np.float64); m = np.ones(w.shape[1]) if squares is None else np.sqrt(squares)
    if is_by_row: w = w / np.sqrt((w ** 2).mean(1, keepdims=True))
    c = np.ones(w.shape[1]); a = np.abs(w)
    for _ in range(rounds):
        s = (a / c).max(1); s[s == 0] = np.inf
        g = (((a * m) ** p) * s[:, None] ** (2 - p)).sum(0) ** (1 / (p + 2))
        g[g == 0] = g[g > 0].min() if (g > 0).any() else 1
        c = g / m
    c = np.exp2(np.round((np.log2(c) - np.log2(c).mean()) * 4) / 4)
    found = [c] + [x.astype(np.float64) for x in candidates]
    return min(found, key=lambda c: expected_error(w, c, m * m)).astype(F)


CLIPS = np.linspace(0.7, 1.0, 21).astype(F)


def row_quant(w, c, clips=None, scale8=False):
    """q, s for w ~ q * s_r * c_c. With clips: for each row the clip factor of least squared error in the weights."""
    b = w / c
    m = np.abs(b).max(1); m[m == 0] = 1e-8
    best = None
    for f in (clips if clips is not None else [F(1)]):
        s = m * f / F(127)
        s = np.exp2(np.round(np.log2(s) * 8) / 8).astype(F) if scale8 else f16(np.maximum(s, F(6e-8)))
        q = np.clip(np.rint(b / s[:, None]), -127, 127)
        e = (((b - q * s[:, None]) * c) ** 2).sum(1)
        if best is None: best = [e, s, q]
        else:
            k = e < best[0]
            best[0][k], best[1][k], best[2][k] = e[k], s[k], q[k]
    return best[2], best[1], float(best[0].sum())


class Mat:
    """One matrix after quantisation. pure: q, s, c; else dense w. bits counts the scales."""
    def __init__(self, q=None, s=None, c=None, w=None, bits=0):
        self.q, self.s, self.c, self.bits = q, s, c, bits
        self.w = w if w is not None else q * s[:, None] * c


def pure(w, columns="none", kind="rms", rounds=3, clips=None, rule=0.5, scale8=False, colbits=None, row_kind="max",
         steps=1):
    """columns: none | pow2 (of 2^(1/steps)) | f16 | descend (pow2 refined by coordinate descent) | best (of several, by squared error).
    rule: use columns only if the scales of the matrix then cost at most so many bits a weight."""
    n, m = w.shape
    rbits = 8 / m if scale8 else 16 / m
    cbits = (colbits or (16 if columns == "f16" else 8)) / n
    one = np.ones(m, F)
    if columns == "none" or rbits + cbits > rule + 1e-9:
        q, s, _ = row_quant(w, one, clips, scale8)
        return Mat(q, s, one, bits=n * m * (8 + rbits))
    if columns == "best":
        cands = [one] + [column_scales(w, k, rounds) for k in ("rms", "l4", "l8", "max")]
        c = min(cands, key=lambda c: row_quant(w, c, clips, scale8)[2])
    elif columns == "descend":
        c = descend(w, column_scales(w, kind, rounds))
    else:
        c = column_scales(w, kind, rounds, 0 if columns == "f16" else steps, row_kind)
    q, s, _ = row_quant(w, c, clips, scale8)
    return Mat(q, s, c, bits=n * m * (8 + rbits + cbits))


def blocks(w, size, columns=False, kind="rms"):
    """f16 scale for each block along the stored row (the last block of a row may be short)."""
    n, m = w.shape
    c = column_scales(w, kind, 3) if columns else np.ones(m, F)
    b = w / c; out = np.empty_like(b)
    for i in range(0, m, size):
        x = b[:, i:i + size]
        s = np.abs(x).max(1, keepdims=True) / F(127); s[s == 0] = 1e-8
        s = f16(np.maximum(s, F(6e-8)))
        out[:, i:i + size] = np.clip(np.rint(x / s), -127, 127) * s
    nb = -(-m // size)
    return Mat(w=out * c, bits=n * m * 8 + n * nb * 16 + (8 * m if columns else 0))


NO_EMB = ("embeddings",)
NO_EMB_HEAD = ("embeddings", "head")
def level(w, q, s, c, squares, means):
    """Moves weights to their other neighbour, column by column, where that makes the expected error
    sum of variance * error^2 + (sum of mean * error)^2 of a row smaller."""
    variances = (squares - means ** 2) * c.astype(np.float64) ** 2; means = means * c
    e = w.astype(np.float64) / c / np.where(s > 0, s, np.inf)[:, None] - q; drift = e @ means; q = q.copy()
    for j in range(w.shape[1]):
        d = np.where(e[:, j] >= 0, 1.0, -1.0)
        saved = 2 * drift * d * means[j] - variances[j] * (1 - 2 * np.abs(e[:, j])) - means[j] ** 2
        move = (saved > 0) & (np.abs(q[:, j] + d) <= 127)
        q[:, j] += np.where(move, d, 0); drift -= np.where(move, d * means[j], 0)
    return q


def judged(rounds=2, p=8, none=True, rest=True, levelled=False):
    """Exponents by the error that they will make. none: no exponents are a candidate; rest: what is known is used."""
    def scheme(w, squares, means, is_by_row):
        n, m = w.shape
        if 16 / m + 8 / n > 0.5: return pure(w)
        if not rest: squares, is_by_row = None, False
        c = by_error(w, squares, is_by_row, rounds, p, [np.ones(m)] if none else [])
        q, s, _ = row_quant(w, c)
        if levelled and means is not None: q = level(w, q, s, c, squares, means)
        return Mat(q, s, c, bits=n * m * (8 + 16 / m + 8 / n))
    return scheme


SCHEMES = {   # name: (description, function, matrices that get plain row scales instead of columns)
    "A":    ("row scale", lambda w: pure(w), ()),
    "A'":   ("row scale, searched", lambda w: pure(w, clips=CLIPS), ()),
    "Brms": ("row + 2^e column, RMS", lambda w: pure(w, "pow2", "rms"), ()),
    "Bl4":  ("row + 2^e column, L4", lambda w: pure(w, "pow2", "l4"), ()),
    "Bl8":  ("row + 2^e column, L8", lambda w: pure(w, "pow2", "l8"), ()),
    "Bl16": ("row + 2^e column, L16", lambda w: pure(w, "pow2", "l16"), ()),
    "Bl4-1": ("Bl4, 1 round", lambda w: pure(w, "pow2", "l4", 1), ()),
    "Bl4-2": ("Bl4, 2 rounds", lambda w: pure(w, "pow2", "l4", 2), ()),
    "Bl4-9": ("Bl4, 9 rounds", lambda w: pure(w, "pow2", "l4", 9), ()),
    "Bl4R": ("Bl4, rows by RMS while balancing", lambda w: pure(w, "pow2", "l4", row_kind="rms"), ()),
    "Bl4/2": ("row + 2^(e/2) column, L4", lambda w: pure(w, "pow2", "l4", steps=2), ()),
    "Bl4/4": ("row + 2^(e/4) column, L4", lambda w: pure(w, "pow2", "l4", steps=4), ()),
    "Bl4/8": ("row + 2^(e/8) column, L4", lambda w: pure(w, "pow2", "l4", steps=8), ()),
    "Bl8/4": ("row + 2^(e/4) column, L8", lambda w: pure(w, "pow2", "l8", steps=4), ()),
    "Bl4/4'": ("Bl4/4, searched", lambda w: pure(w, "pow2", "l4", steps=4, clips=CLIPS), ()),
    "Bl4-e": ("Bl4, none on emb", lambda w: pure(w, "pow2", "l4"), NO_EMB),
    "Bl4-eh": ("Bl4, none on emb and head", lambda w: pure(w, "pow2", "l4"), NO_EMB_HEAD),
    "Bmax": ("row + 2^e column, max", lambda w: pure(w, "pow2", "max"), ()),
    "Bdes": ("row + 2^e column, coordinate descent", lambda w: pure(w, "descend", "l4"), ()),
    "Brms'": ("Brms, searched", lambda w: pure(w, "pow2", "rms", clips=CLIPS), ()),
    "Bl4'": ("Bl4, searched", lambda w: pure(w, "pow2", "l4", clips=CLIPS), ()),
    "Bmax'": ("Bmax, searched", lambda w: pure(w, "pow2", "max", clips=CLIPS), ()),
    "Bdes'": ("Bdes, searched", lambda w: pure(w, "descend", "l4", clips=CLIPS), ()),
    "Bbest'": ("best of none, RMS, L4, L8, max by error, searched", lambda w: pure(w, "best", clips=CLIPS), ()),
    "Bl4'-e": ("Bl4', none on emb", lambda w: pure(w, "pow2", "l4", clips=CLIPS), NO_EMB),
    "Bl4'-eh": ("Bl4', none on emb and head", lambda w: pure(w, "pow2", "l4", clips=CLIPS), NO_EMB_HEAD),
    "Bl4'all": ("Bl4', no bits rule", lambda w: pure(w, "pow2", "l4", clips=CLIPS, rule=9), ()),
    "Bl4'n4": ("Bl4', 4-bit exponents", lambda w: pure(w, "pow2", "l4", clips=CLIPS, colbits=4), ()),
    "Bl4'r8": ("Bl4', row scale one byte 2^(k/8)", lambda w: pure(w, "pow2", "l4", clips=CLIPS, scale8=True), ()),
    "C":    ("row x f16 column, L4", lambda w: pure(w, "f16", "l4"), ()),
    "C'":   ("C, searched", lambda w: pure(w, "f16", "l4", clips=CLIPS), ()),
    "C'all": ("C', no bits rule", lambda w: pure(w, "f16", "l4", clips=CLIPS, rule=9), ()),
    "E":    ("row + 2^(e/4) column by the expected error", judged(), ()),
    "EL":   ("E, errors levelled along the means", judged(levelled=True), ()),
    "E3":   ("E, 3 rounds", judged(3), ()),
    "E9":   ("E, 9 rounds", judged(9), ()),
    "E4":   ("E, 4-norm", judged(p=4), ()),
    "E16":  ("E, 16-norm", judged(p=16), ()),
    "Ew":   ("E, of the weights alone", judged(rest=False), ()),
    "D32":  ("blocks of 32", lambda w: blocks(w, 32), ()),
    "D64":  ("blocks of 64", lambda w: blocks(w, 64), ()),
    "D128": ("blocks of 128", lambda w: blocks(w, 128), ()),
    "D32'": ("blocks of 32 + 2^e column", lambda w: blocks(w, 32, True, "l4"), ()),
    "D64'": ("blocks of 64 + 2^e column", lambda w: blocks(w, 64, True, "l4"), ()),
}


def quantise(mats, scheme, t):
    """Quantise every matrix of model t. Returns name -> Mat and bits a weight over all of them."""
    _, fn, plain = SCHEMES[scheme]
    searched = "'" in scheme
    out = {}
    for k, w in mats.items():
        if any(p in k for p in plain): out[k] = pure(w, clips=CLIPS if searched else None)
        elif fn.__name__ == "scheme": out[k] = fn(w, *known(t, k))
        else: out[k] = fn(w)
    return out, sum(m.bits for m in out.values()) / sum(w.size for w in mats.values())


def unquantised(mats):
    return {k: Mat(w=w) for k, w in mats.items()}


# ---- activation quantisation ---------------------------------------------------------------------------------------

def act_quant(x, mode):
    """Fake-quantise activations, one row a token. i16, i12, i8: one scale a vector; i8b32, i8b64: one a block.
    i16's scale is also large enough that 128 * sum(|integers|) < 2^31: no dot product with int8 leaves an i32."""
    if mode == "none": return x
    bits, _, block = mode[1:].partition("b")
    top = F(2 ** (int(bits) - 1) - 1)
    n = x.shape[1]; size = int(block) if block else n
    out = np.empty_like(x)
    for i in range(0, n, size):
        y = x[:, i:i + size]
        s = np.abs(y).max(1, keepdims=True) / top
        if bits == "16": s = np.maximum(s, np.abs(y).sum(1, keepdims=True) / F(2 ** 24 - n))
        s[s == 0] = 1
        out[:, i:i + size] = np.rint(y / s) * s
    return out


def product(m, x, act, transposed=False):
    """x times a stored matrix; the scales that belong to the input go into x before x is quantised."""
    if act == "none": return x @ (m.w if transposed else m.w.T)
    if m.q is None: return act_quant(x, act) @ (m.w if transposed else m.w.T)
    if transposed: return (act_quant(x * m.s, act) @ m.q) * m.c
    return (act_quant(x * m.c, act) @ m.q.T) * m.s


# ---- forward -------------------------------------------------------------------------------------------------------

def layer_norm(x, w, b):
    d = x - x.mean(1, keepdims=True)
    return d / np.sqrt((d * d).mean(1, keepdims=True) + F(1e-5)) * w + b


def shift(y):
    out = np.zeros_like(y); out[1:] = y[:-1]
    return out


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def wkv(w, u, k, v):
    """The recurrence, serial over tokens; the running sums are scaled by the running maximum pp."""
    out = np.empty_like(k); uk = k + u
    aa = np.zeros_like(w); bb = np.zeros_like(w); pp = np.full_like(w, -1e30)
    for t in range(len(k)):
        q = np.maximum(pp, uk[t]); e1 = np.exp(pp - q); e2 = np.exp(uk[t] - q)
        out[t] = (e1 * aa + e2 * v[t]) / (e1 * bb + e2)
        pw = pp + w
        q = np.maximum(pw, k[t]); e1 = np.exp(pw - q); e2 = np.exp(k[t] - q)
        aa = e1 * aa + e2 * v[t]; bb = e1 * bb + e2; pp = q
    return out


def hidden(t, m, ids, act="none", act_sparse=None):
    """The final hidden vectors (after ln_out) of a sequence from the empty state. act_sparse: for ffn.value's input."""
    act_sparse = act if act_sparse is None else act_sparse
    p = "rwkv.blocks.%d."
    x = m["rwkv.embeddings.weight"].w[ids]
    x = layer_norm(x, t["rwkv.blocks.0.pre_ln.weight"], t["rwkv.blocks.0.pre_ln.bias"])
    n = 0
    while p % n + "ln1.weight" in t:
        b = p % n; a = b + "attention."; f = b + "feed_forward."
        y = layer_norm(x, t[b + "ln1.weight"], t[b + "ln1.bias"]); z = shift(y)
        mix = lambda name: (lambda g: y * g + z * (1 - g))(t[name].reshape(-1))
        r = sigmoid(product(m[a + "receptance.weight"], mix(a + "time_mix_receptance"), act))
        k = product(m[a + "key.weight"], mix(a + "time_mix_key"), act)
        v = product(m[a + "value.weight"], mix(a + "time_mix_value"), act)
        o = wkv(-np.exp(t[a + "time_decay"]), t[a + "time_first"], k, v)
        x = x + product(m[a + "output.weight"], r * o, act)
        y = layer_norm(x, t[b + "ln2.weight"], t[b + "ln2.bias"]); z = shift(y)
        k = product(m[f + "key.weight"], mix(f + "time_mix_key"), act)
        r = sigmoid(product(m[f + "receptance.weight"], mix(f + "time_mix_receptance"), act))
        x = x + r * product(m[f + "value.weight"], np.square(np.maximum(k, 0)), act_sparse, True)
        n += 1
    return layer_norm(x, t["rwkv.ln_out.weight"], t["rwkv.ln_out.bias"])


def logits(t, m, ids, act="none", act_sparse=None):
    return product(m["head.weight"], hidden(t, m, ids, act, act_sparse), act)


def log_softmax(z):
    z = z.astype(np.float64); z -= z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def perplexity(t, m, ids, act="none", act_sparse=None, ref=None):
    """exp of the mean loss of every token after the first; the head runs in pieces to bound memory. ref: the hidden
    vectors of f32 and its head; then also the mean KL divergence from f32."""
    h = hidden(t, m, ids, act, act_sparse); loss = kl = 0.0
    for i in range(0, len(ids) - 1, 1024):
        j = min(i + 1024, len(ids) - 1)
        z = log_softmax(product(m["head.weight"], h[i:j], act))
        loss -= z[np.arange(j - i), ids[i + 1:j + 1]].sum()
        if ref is not None:
            y = log_softmax(product(ref[1], ref[0][i:j], "none")); kl += (np.exp(y) * (y - z)).sum()
    return float(np.exp(loss / (len(ids) - 1))), kl / (len(ids) - 1)


# ---- main ----------------------------------------------------------------------------------------------------------

def centred(z):
    return z - z.mean(1, keepdims=True)


def rel(a, b):
    return 100 * float(np.linalg.norm(a - b) / np.linalg.norm(b))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--golden", action="append", default=[])
    ap.add_argument("--trained", help="needs --demo for its text")
    ap.add_argument("--demo")
    ap.add_argument("--schemes", default=",".join(SCHEMES))
    ap.add_argument("--acts", default="none", help="ACT or ACT/ACT for ffn.value's input, comma separated")
    ap.add_argument("--tokens", type=int, default=8192, help="tokens of validation.txt; 0: all")
    ap.add_argument("--each", action="store_true", help="a column for each golden model: own ids / random ids")
    ap.add_argument("--f32-check", action="store_true", help="only check the f32 forward against expected.json")
    args = ap.parse_args()

    golden = []
    for d in args.golden:
        t = load_model(d); mats = matrices(t); e = json.load(open(os.path.join(d, "expected.json")))
        vocab = len(t["head.weight"])
        seqs = [np.array(e["input_ids"]), np.random.default_rng(1).integers(0, vocab, 256)]
        ref = [logits(t, unquantised(mats), s) for s in seqs]
        if args.f32_check:
            print(os.path.basename(d.rstrip("/")), "max difference of the last logits",
                  np.abs(ref[0][-1] - np.array(e["logits_last"])).max())
        golden.append((os.path.basename(d.rstrip("/")), t, mats, seqs, ref))
    demo = None
    if args.demo:
        from tokenizers import Tokenizer
        t = load_model(args.demo); mats = matrices(t)
        tok = Tokenizer.from_file(os.path.join(args.demo, "tokenizer.json"))
        ids = np.array(tok.encode(open(VALIDATION, encoding="utf-8", newline="").read()).ids)
        if args.tokens: ids = ids[:args.tokens]
        plain = unquantised(mats)
        base, ref = perplexity(t, plain, ids)[0], (hidden(t, plain, ids), plain["head.weight"])
        print("demo: %d tokens, f32 perplexity %.5f" % (len(ids), base), flush=True)
        demo = (t, mats, ids, base, ref)
    trained = None
    if args.trained:
        t = load_model(args.trained); mats = matrices(t)
        ids = np.frombuffer(open(VALIDATION, "rb").read(300), np.uint8).astype(int)
        trained = (t, mats, ids, centred(logits(t, unquantised(mats), ids)))
    if args.f32_check: return

    head = ["scheme", "activations"] + ([g[0] for g in golden] if args.each else [])
    head += [h + i for i in ("", ", random ids") for h in ("worst", "geometric mean", "over 6 %")] if golden else []
    head += ["most bits"] if golden else []
    head += ["trained"] if trained else []
    head += ["demo bits", "demo perplexity", "demo KL * 1e4"] if demo else []
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head), flush=True)
    for s in args.schemes.split(","):
        qs = [quantise(g[2], s, g[1]) for g in golden]
        dq = quantise(demo[1], s, demo[0]) if demo else None
        tq = quantise(trained[1], s, trained[0])[0] if trained else None
        for act in args.acts.split(","):
            a, _, b = act.partition("/"); b = b or a
            row = [s + ": " + SCHEMES[s][0], act]; errs = []
            for (name, t, mats, seqs, ref), (m, bits) in zip(golden, qs):
                e = [rel(logits(t, m, i, a, b), r) for i, r in zip(seqs, ref)]
                errs.append(e)
                if args.each: row.append("%.2f / %.2f" % tuple(e))
            for e in zip(*errs): row += ["%.2f" % max(e), "%.2f" % np.exp(np.log(e).mean()), str(sum(x > 6 for x in e))]
            if golden: row.append("%.3f" % max(b_ for _, b_ in qs))
            if trained:
                z = centred(logits(trained[0], tq, trained[2], a, b))
                row.append("%.2f %%" % rel(z, trained[3]))
            if demo:
                ppl, kl = perplexity(demo[0], dq[0], demo[2], a, b, demo[4])
                row += ["%.3f" % dq[1], "%+.3f %%" % (100 * (ppl / demo[3] - 1)), "%.2f" % (kl * 1e4)]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    np.seterr(over="ignore")
    main()
