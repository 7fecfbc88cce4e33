"""Golden RWKV-5.2 / 6.0 / 7.0 fixtures: small random models in the published file formats, with the logits, states
and greedy continuations that a published implementation computes for them in float32 on the CPU, cross-checked against
an independent float64 implementation (class Np64 below).

usage: make_golden_v567.py OUT_DIR NAME VERSION key=value ...
VERSION: 5 | 6 | 7.  Keys (defaults):
  d=128 l=3 f=auto v=300 seed=1     width (a multiple of 64), layers, ffn size, vocabulary
  fmt=pth | hf | gguf               file format (hf: v5/v6 remote-code names, v7 flash-linear-attention names)
  dtype=f32 | bf16 | f16            storage of the tensors (gguf: f16 or q8_0, as llama.cpp's converter places them)
  mix=8 dec=16                      v6 LoRA ranks (token shift, decay)
  rw=16 ra=16 rv=8 rg=24            v7 LoRA ranks
  v0=1                              v7 pth: write the unused layer-0 v0/v1/v2 too (some published files carry them)
  shards=1  bin=0                   hf: several .safetensors shards; bin=1: pytorch_model.bin
  ts=0                              v7 pth: also write time_state.pth and expected_time_state.json
  resc=6                            gguf of v6: rescale_every_n_layers (the file is written rescaled, as the converter does)
  vocab_txt=PATH                    gguf: a rwkv_vocab file; its first v-1 tokens become the vocabulary
  ref=auto                          auto | pip | hf : which published implementation gives the expected values
Needs: torch, numpy, safetensors, `rwkv` 0.8.32; for hf of v7 `rwkv7-hf` 0.9.0; for gguf `gguf`.
The published implementation always gets float32 upcasts of the stored weights, so storage rounding is part of the model.
"""
import sys, os, json, tempfile
import numpy as np

def parse():
    out, name, ver = sys.argv[1:4]
    p = dict(d=128, l=3, f=0, v=300, seed=1, fmt="pth", dtype="f32", mix=8, dec=16, rw=16, ra=16, rv=8, rg=24, v0=1,
             shards=1, bin=0, ts=0, vocab_txt="", ref="auto", t=150, resc=6)
    for a in sys.argv[4:]:
        k, v = a.split("=", 1); assert k in p, k
        p[k] = int(v) if isinstance(p[k], int) else v
    p["ver"] = int(ver); p["f"] = p["f"] or (4 * p["d"] if p["ver"] == 7 else int(p["d"] * 3.5) // 32 * 32)
    return out, name, p

OUT, NAME, P = parse()
os.environ["RWKV_V7_ON"] = "1" if P["ver"] == 7 else "0"
os.environ["RWKV_JIT_ON"] = "1"; os.environ["RWKV_CUDA_ON"] = "0"
import torch
torch.set_num_threads(1); torch.set_grad_enabled(False)
N = 64

# ------------------------------------------------------------------------------------------------ weights
def weights(P):
    """Raw checkpoint names and shapes, float32, with statistics like those of trained models."""
    g = torch.Generator().manual_seed(P["seed"])
    D, L, F, V, ver = P["d"], P["l"], P["f"], P["v"], P["ver"]; H = D // N
    n = lambda *s, std=1.0: torch.randn(*s, generator=g) * std
    u = lambda *s, lo=0.0, hi=1.0: torch.rand(*s, generator=g) * (hi - lo) + lo
    def mat(o, i, std=1.2, row=6.0):
        m = n(o, i, std=std / i ** 0.5)
        m[torch.randint(0, o, (max(1, o // 50),), generator=g)] *= row          # outlier rows
        m[:, torch.randint(0, i, (max(1, i // 100),), generator=g)] *= 4.0     # and columns
        return m
    ln = lambda: (1 + n(D, std=0.3), n(D, std=0.2))
    w = {"emb.weight": n(V, D, std=0.5)}
    for l in range(L):
        b = f"blocks.{l}."
        for k in (["ln1", "ln2"] + (["ln0"] if l == 0 else [])): w[b + k + ".weight"], w[b + k + ".bias"] = ln()
        a, c = b + "att.", b + "ffn."
        row = torch.arange(D) / (D - 1)
        if ver == 5:
            for m in "kvrg": w[a + "time_mix_" + m] = u(1, 1, D)
            w[a + "time_decay"] = u(H, N, lo=-6, hi=3)                           # w = exp(-exp(.))
            w[a + "time_faaaa"] = n(H, N, std=0.7)
        elif ver == 6:
            R, Q = P["mix"], P["dec"]
            for m in "xwkvrg": w[a + "time_maa_" + m] = u(1, 1, D)
            w[a + "time_maa_w1"] = n(D, 5 * R, std=0.8 / D ** 0.5); w[a + "time_maa_w2"] = n(5, R, D, std=0.4 / R ** 0.5)
            w[a + "time_decay"] = u(1, 1, D, lo=-6, hi=2.5)
            w[a + "time_decay_w1"] = n(D, Q, std=1.0 / D ** 0.5); w[a + "time_decay_w2"] = n(Q, D, std=1.2 / Q ** 0.5)
            w[a + "time_faaaa"] = n(H, N, std=0.7)
        else:
            for m in "rwkvag": w[a + "x_" + m] = u(1, 1, D)
            def lora(x, r, s1, s2): w[a + x + "1"] = n(D, r, std=s1 / D ** 0.5); w[a + x + "2"] = n(r, D, std=s2 / r ** 0.5)
            w[a + "w0"] = (-7 + 9 * row + n(D, std=1.0)).view(1, 1, D); w[a + "r_k"] = n(H, N, std=0.15) - 0.04
            lora("w", P["rw"], 1.0, 1.5); lora("a", P["ra"], 1.0, 1.0)
            w[a + "a0"] = (n(D, std=0.6) - 0.19).view(1, 1, D)
            lora("g", P["rg"], 1.0, 2.0)
            if l > 0 or P["v0"]:
                lora("v", P["rv"], 1.0, 1.0); w[a + "v0"] = (n(D, std=0.5) + 0.5).view(1, 1, D)
            w[a + "k_k"] = (0.71 + n(D, std=0.2)).view(1, 1, D); w[a + "k_a"] = (1.0 + n(D, std=0.25)).view(1, 1, D)
            w[a + "k_k"][0, 0, ::37] *= 3.0
        for m in ["receptance", "key", "value"] + (["gate"] if ver < 7 else []) + ["output"]: w[a + m + ".weight"] = mat(D, D)
        # two quiet heads, so that the group norm's epsilon (64e-5) is visible in the logits
        if l == 0: w[a + "value.weight"][:N] *= 0.012
        if l == L - 1: w[a + "value.weight"][-N:] *= 0.006
        w[a + "ln_x.weight"] = ((l + 1) / L) ** 0.7 * (1 + n(D, std=0.2)); w[a + "ln_x.bias"] = n(D, std=0.1)
        if ver == 5: w[c + "time_mix_k"], w[c + "time_mix_r"] = u(1, 1, D), u(1, 1, D)
        if ver == 6: w[c + "time_maa_k"], w[c + "time_maa_r"] = u(1, 1, D), u(1, 1, D)
        if ver == 7: w[c + "x_k"] = u(1, 1, D)
        w[c + "key.weight"] = mat(F, D)
        if ver < 7: w[c + "receptance.weight"] = mat(D, D)
        w[c + "value.weight"] = mat(D, F, std=0.8)
    w["ln_out.weight"], w["ln_out.bias"] = ln()
    w["head.weight"] = mat(V, D, std=1.5, row=1.7)                              # (milder: greedy text should not repeat one token)
    ids = torch.randint(0, V, (P["t"],), generator=g).tolist()
    ts = {f"blocks.{l}.att.time_state": n(H, N, N, std=0.3) for l in range(L)}
    return w, ids, ts

# ------------------------------------------------------------------------------------------------ independent check
class Np64:
    """float64, one token at a time, written from the formulas (not from any implementation's code)."""
    def __init__(s, w, ver, wkv0=None):
        s.w = {k: t.double().numpy() for k, t in w.items()}; s.ver = ver
        s.V, s.D = s.w["emb.weight"].shape; s.H = s.D // N
        s.L = 1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks."))
        s.att, s.ffn = np.zeros((s.L, s.D)), np.zeros((s.L, s.D))
        s.S = np.zeros((s.L, s.H, N, N)) if wkv0 is None else np.array(wkv0, dtype=np.float64)
    def ln(s, x, p): return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * s.w[p + ".weight"] + s.w[p + ".bias"]
    def gn(s, o, p):
        o = (o - o.mean(1, keepdims=True)) / np.sqrt(o.var(1, keepdims=True) + 64e-5)
        return o.reshape(-1) * s.w[p + ".weight"] + s.w[p + ".bias"]
    def step(s, tok):
        w, H, D = s.w, s.H, s.D; sig = lambda z: 1 / (1 + np.exp(-z)); hd = lambda z: z.reshape(H, N)
        x = s.ln(w["emb.weight"][tok], "blocks.0.ln0"); vf = None
        for l in range(s.L):
            b = f"blocks.{l}."; A = lambda k: w[b + "att." + k]; C = lambda k: w[b + "ffn." + k]
            fl = lambda k: A(k).reshape(-1)
            y = s.ln(x, b + "ln1"); d = s.att[l] - y; s.att[l] = y; S = s.S[l]
            if s.ver == 7:
                r = A("receptance.weight") @ (y + d * fl("x_r")); k = A("key.weight") @ (y + d * fl("x_k"))
                xv = y + d * fl("x_v"); v = A("value.weight") @ xv
                lw = -np.exp(-0.5) * sig(fl("w0") + np.tanh((y + d * fl("x_w")) @ A("w1")) @ A("w2"))
                a = sig(fl("a0") + (y + d * fl("x_a")) @ A("a1") @ A("a2")); g = sig((y + d * fl("x_g")) @ A("g1")) @ A("g2")
                kk = hd(k * fl("k_k")); kk = kk / np.maximum(np.sqrt((kk ** 2).sum(1, keepdims=True)), 1e-12)
                k = k * (1 + (a - 1) * fl("k_a"))
                if l == 0: vf = v
                else: v = v + (vf - v) * sig(fl("v0") + xv @ A("v1") @ A("v2"))
                r, k, v, a, dec = hd(r), hd(k), hd(v), hd(a), np.exp(hd(lw))
                for h in range(H):                                               # S[value][key]
                    S[h] = S[h] * dec[h][None] - np.outer(S[h] @ kk[h], kk[h] * a[h]) + np.outer(v[h], k[h])
                o = np.einsum("hij,hj->hi", S, r)
                o = s.gn(o, b + "att.ln_x") + ((r * k * A("r_k")).sum(1, keepdims=True) * v).reshape(-1)
                x = x + A("output.weight") @ (o * g)
            else:
                if s.ver == 5:
                    m = {c: y + d * (1 - fl("time_mix_" + c)) for c in "kvrg"}
                    dec = np.exp(-np.exp(A("time_decay")))
                else:
                    t = np.tanh((y + d * fl("time_maa_x")) @ A("time_maa_w1")).reshape(5, -1)
                    m = {c: y + d * (fl("time_maa_" + c) + t[i] @ A("time_maa_w2")[i]) for i, c in enumerate("wkvrg")}
                    dec = hd(np.exp(-np.exp(fl("time_decay") + np.tanh(m["w"] @ A("time_decay_w1")) @ A("time_decay_w2"))))
                r, k, v = (hd(A(q + ".weight") @ m[q[0]]) for q in ("receptance", "key", "value"))
                z = A("gate.weight") @ m["g"]; g = z * sig(z); bonus = A("time_faaaa")
                o = np.zeros((H, N))
                for h in range(H):                                               # S[key][value]
                    kv = np.outer(k[h], v[h])
                    o[h] = r[h] @ (bonus[h][:, None] * kv + S[h]); S[h] = dec[h][:, None] * S[h] + kv
                x = x + A("output.weight") @ (s.gn(o, b + "att.ln_x") * g)
            y = s.ln(x, b + "ln2"); d = s.ffn[l] - y; s.ffn[l] = y
            if s.ver == 7: x = x + C("value.weight") @ np.maximum(C("key.weight") @ (y + d * C("x_k").reshape(-1)), 0) ** 2
            else:
                mk, mr = (1 - C("time_mix_k"), 1 - C("time_mix_r")) if s.ver == 5 else (C("time_maa_k"), C("time_maa_r"))
                kx = np.maximum(C("key.weight") @ (y + d * mk.reshape(-1)), 0) ** 2
                x = x + sig(C("receptance.weight") @ (y + d * mr.reshape(-1))) * (C("value.weight") @ kx)
        return w["head.weight"] @ s.ln(x, "ln_out")

# ------------------------------------------------------------------------------------------------ published references
class Pip:
    def __init__(s, w):
        t = tempfile.NamedTemporaryFile(suffix=".pth", delete=False).name
        torch.save({k: v.float().clone() for k, v in w.items()}, t)
        from rwkv.model import RWKV
        so = os.dup(1); nul = os.open(os.devnull, os.O_WRONLY); os.dup2(nul, 1)
        s.m = RWKV(model=t[:-4] if P["ver"] == 7 else t, strategy="cpu fp32"); os.dup2(so, 1); os.unlink(t)
        s.name = "rwkv 0.8.32 pip package, plain torch path, strategy 'cpu fp32'"
    def run(s, ids, state=None, full=True):
        o, st = s.m.forward(list(ids), state, full_output=full) if len(ids) > 1 else s.m.forward(list(ids), state)
        return (o if o.dim() == 2 else o[None]).double().numpy(), st
    def zero(s, ts):
        st = s.m.generate_zero_state()
        for l in range(P["l"]): st[3 * l + 1] = ts[f"blocks.{l}.att.time_state"].float().clone()
        return st
    def state(s, st):
        L = P["l"]; return [np.stack([st[3 * l + i].double().numpy() for l in range(L)]) for i in (0, 2, 1)]

class Hf7:
    def __init__(s, d):
        from rwkv7_hf.modeling_rwkv7 import RWKV7ForCausalLM
        s.m = RWKV7ForCausalLM.from_pretrained(d, dtype=torch.float32).eval(); s.name = "rwkv7-hf 0.9.0, float32 on CPU"
    def run(s, ids):
        return s.m(torch.tensor([list(ids)]), use_cache=True).logits[0].double().numpy()

# ------------------------------------------------------------------------------------------------ writers
DT = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

def hf_name5_6(k, ver):
    if k == "head.weight": return k
    k = k.replace("emb.", "embeddings.", 1) if k.startswith("emb.") else k
    k = k.replace("blocks.0.ln0", "blocks.0.pre_ln").replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
    if ver == 5:
        for s, t in (("k", "key"), ("v", "value"), ("r", "receptance"), ("g", "gate")):
            if k.endswith(".time_mix_" + s): k = k[:-1] + t
    return "rwkv." + k

def hf_name7(k):
    """-> (flash-linear-attention name, transpose) or None for the unused layer-0 v0/v1/v2"""
    fixed = {"emb.weight": "model.embeddings.weight", "ln_out.weight": "model.norm.weight", "ln_out.bias": "model.norm.bias",
             "head.weight": "lm_head.weight"}
    if k in fixed: return fixed[k], False
    _, l, part, rest = k.split(".", 3); p = f"model.layers.{l}."
    if part in ("ln0", "ln1", "ln2"): return p + {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}[part] + "." + rest, False
    if part == "ffn": return p + "ffn." + rest, False
    if rest[0] in "wavg" and rest[1:] in ("0", "1", "2"):
        if l == "0" and rest[0] == "v": return None
        return p + f"attn.{rest[0]}_lora.lora." + {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[rest[1]], rest[1] != "0"
    for s, t in (("receptance", "r_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj"), ("ln_x", "g_norm")):
        if rest.startswith(s + "."): return p + "attn." + t + rest[len(s):], False
    return p + "attn." + rest, False

def write_hf(d, w, P):
    ver, D, L, F, V = P["ver"], P["d"], P["l"], P["f"], P["v"]; dt = DT[P["dtype"]]; out = {}
    for k, t in w.items():
        if ver < 7: out[hf_name5_6(k, ver)] = t.to(dt).contiguous(); continue
        nt = hf_name7(k)
        if nt is None: continue
        name, tr = nt; t = t.t() if tr else t
        if list(t.shape) == [1, 1, D] and ".attn.x_" not in name: t = t.reshape(D)
        out[name] = t.to(dt).contiguous()
    tdt = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[P["dtype"]]
    if ver < 7:
        assert ver == 5 or (P["mix"], P["dec"]) == (32, 64), "the v6 remote code fixes the ranks at 32 and 64 (64/128 at 4096)"
        assert F == int(D * 3.5) // 32 * 32, "the remote config class ignores intermediate_size"
        cfg = dict(architectures=[f"Rwkv{ver}ForCausalLM"],
                   auto_map=dict(AutoConfig=f"configuration_rwkv{ver}.Rwkv{ver}Config",
                                 AutoModelForCausalLM=f"modeling_rwkv{ver}.Rwkv{ver}ForCausalLM"),
                   attention_hidden_size=D, bos_token_id=0, context_length=4096, eos_token_id=0, head_size=64,
                   head_size_divisor=8, hidden_size=D, intermediate_size=None, layer_norm_epsilon=1e-05,
                   model_type=f"rwkv{ver}", num_hidden_layers=L, rescale_every=6, tie_word_embeddings=False,
                   torch_dtype=tdt, transformers_version="4.34.0", use_cache=True, vocab_size=V)
    else:
        cfg = dict(a_low_rank_dim=P["ra"], architectures=["RWKV7ForCausalLM"], attn=None, attn_mode="chunk",
                   auto_map=dict(AutoConfig="modeling_rwkv7.RWKV7Config", AutoModel="modeling_rwkv7.RWKV7Model",
                                 AutoModelForCausalLM="modeling_rwkv7.RWKV7ForCausalLM"),
                   bos_token_id=0, decay_low_rank_dim=P["rw"], eos_token_id=0, fuse_cross_entropy=True, fuse_norm=False,
                   gate_low_rank_dim=P["rg"], head_dim=64, hidden_act="sqrelu", hidden_ratio=F / D, hidden_size=D,
                   initializer_range=0.006, intermediate_size=F, max_position_embeddings=2048, model_type="rwkv7",
                   norm_bias=True, norm_eps=1e-05, norm_first=True, num_heads=D // 64, num_hidden_layers=L, pad_token_id=0,
                   tie_word_embeddings=False, torch_dtype=tdt, transformers_version="4.48.0", use_cache=True,
                   v_low_rank_dim=P["rv"], value_dim=[D] * L, vocab_size=V)
    json.dump(cfg, open(d + "/config.json", "w"), indent=2)
    if P["bin"]: torch.save(out, d + "/pytorch_model.bin"); return
    from safetensors.torch import save_file
    if P["shards"] == 1: save_file(out, d + "/model.safetensors", metadata={"format": "pt"}); return
    n, total = P["shards"], sum(t.numel() * t.element_size() for t in out.values()); parts, acc = [{} for _ in range(n)], 0
    for k, t in out.items():
        parts[min(n - 1, acc * n // total)][k] = t; acc += t.numel() * t.element_size()
    wm = {}
    for i, p in enumerate(parts):
        fn = f"model-{i + 1:05d}-of-{n:05d}.safetensors"; save_file(p, d + "/" + fn, metadata={"format": "pt"}); wm.update({k: fn for k in p})
    json.dump(dict(metadata=dict(total_size=total), weight_map=wm), open(d + "/model.safetensors.index.json", "w"), indent=2)

TOP = {"emb.weight": "token_embd.weight", "blocks.0.ln0.weight": "token_embd_norm.weight", "blocks.0.ln0.bias": "token_embd_norm.bias",
       "ln_out.weight": "output_norm.weight", "ln_out.bias": "output_norm.bias", "head.weight": "output.weight"}

def gguf_tensors(w, P):
    """llama.cpp converter's names and shapes: yields (name, tensor, {raw name: function from the read tensor back to it})."""
    ver, mixes = P["ver"], "rwkvag" if P["ver"] == 7 else "wkvrg"; same = lambda t: (lambda s: s.reshape(t.shape))
    for k, t in w.items():
        if k in TOP: yield TOP[k], t, {k: same(t)}; continue
        _, l, part, rest = k.split(".", 3); b = f"blk.{l}."; pre = f"blocks.{l}.att."
        sc = 2.0 ** (int(l) // P["resc"]) if ver == 6 and P["resc"] > 0 else 1.0
        if part in ("ln1", "ln2"): yield b + {"ln1": "attn_norm.", "ln2": "attn_norm_2."}[part] + rest, t, {k: same(t)}
        elif part == "ffn":
            n = rest.replace("x_k", "lerp_k.weight").replace("time_maa_k", "lerp_k.weight").replace("time_maa_r", "lerp_r.weight")
            f = sc if rest == "value.weight" else 1.0
            yield b + "channel_mix_" + n, t.squeeze() / f, {k: lambda s, t=t, f=f: s.reshape(t.shape) * f}
        elif ver == 7 and rest.startswith("x_") or ver == 6 and rest[:-1] == "time_maa_" and rest[-1] in mixes:
            if rest[-1] != "g": continue                                         # all of them at once, with the last
            ks = [pre + ("x_" if ver == 7 else "time_maa_") + c for c in mixes]
            yield b + "time_mix_lerp_fused.weight", torch.stack([w[x].reshape(1, 1, -1) for x in ks]), \
                {x: (lambda s, i=i, t=t: s[i].reshape(t.shape)) for i, x in enumerate(ks)}
        elif ver == 7 and rest[0] in "wavg" and rest[1:] in ("0", "1", "2"):
            if l == "0" and rest[0] == "v": continue
            u = t.squeeze() if rest[1] == "0" else t.t().contiguous()
            if l == "0" and rest[0] == "a": yield b + "time_mix_v" + rest[1] + ".weight", u, {}   # dummy, never used
            yield b + "time_mix_" + rest + ".weight", u, {k: same(t) if rest[1] == "0" else (lambda s: s.t().contiguous())}
        elif rest in ("k_k", "k_a", "r_k"): yield b + "time_mix_" + rest + ".weight", t.flatten(), {k: same(t)}
        elif rest in ("time_maa_w1", "time_decay_w1", "time_decay_w2"):
            yield b + "time_mix_" + rest.replace("time_maa_", "").replace("time_", "") + ".weight", t.t().contiguous(), {k: lambda s: s.t().contiguous()}
        elif rest == "time_maa_w2": yield b + "time_mix_w2.weight", t.permute(0, 2, 1).contiguous(), {k: lambda s: s.permute(0, 2, 1).contiguous()}
        elif rest.startswith("time_"):
            n = {"time_maa_x": "lerp_x", "time_decay": "decay", "time_faaaa": "first"}[rest]
            yield b + "time_mix_" + n + ".weight", t if n == "first" else t.squeeze(), {k: same(t)}
        elif rest.startswith("ln_x"): yield b + "time_mix_ln" + rest[4:], t, {k: same(t)}
        else:
            f = sc if rest == "output.weight" else 1.0
            yield b + "time_mix_" + rest, t / f, {k: lambda s, f=f: s * f}

def write_gguf(d, w, P):
    """returns the weights as a reader of the file sees them, under raw names (v6: with the rescaling undone)"""
    import gguf, ast
    ft = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[P["dtype"]]
    qt = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}[P["dtype"]]
    f32 = gguf.GGMLQuantizationType.F32
    wr = gguf.GGUFWriter(f"{d}/model-{P['dtype'].upper()}.gguf", f"rwkv{P['ver']}")
    wr.add_type("model"); wr.add_name("golden " + NAME)
    wr.add_context_length(1048576); wr.add_embedding_length(P["d"]); wr.add_block_count(P["l"]); wr.add_layer_norm_eps(1e-5)
    wr.add_wkv_head_size(64)
    if P["ver"] == 7:
        wr.add_decay_lora_rank(P["rw"]); wr.add_iclr_lora_rank(P["ra"])
        wr.add_value_residual_mix_lora_rank(P["rv"]); wr.add_gate_lora_rank(P["rg"])
    else:
        wr.add_rescale_every_n_layers(P["resc"]); wr.add_time_mix_extra_dim(P["mix"]); wr.add_time_decay_extra_dim(P["dec"])
    wr.add_feed_forward_length(P["f"])
    wr.add_file_type(ft); wr.add_head_count(0); wr.add_quantization_version(gguf.GGML_QUANT_VERSION)
    toks, types = [b"<s>"], [gguf.TokenType.CONTROL]
    for line in open(P["vocab_txt"], encoding="utf-8"):
        if len(toks) == P["v"] - 5: break                                        # leave five [PADi] at the end
        t = ast.literal_eval(line[line.index(" "):line.rindex(" ")].strip()); t = t.encode() if isinstance(t, str) else t
        toks.append(repr(t)[2:-1].encode()); types.append(gguf.TokenType.NORMAL)
    while len(toks) < P["v"]: toks.append(f"[PAD{len(toks)}]".encode()); types.append(gguf.TokenType.UNUSED)
    wr.add_tokenizer_model("rwkv"); wr.add_token_list(toks); wr.add_token_types(types)
    wr.add_chat_template("rwkv-world"); wr.add_eot_token_id(261); wr.add_bos_token_id(0); wr.add_eos_token_id(0)
    back = {}
    for name, t, inv in gguf_tensors(w, P):
        a = t.float().numpy()
        always32 = a.ndim <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight") or any(s in name for s in
            ("time_mix_w1.", "time_mix_w2.", "time_mix_lerp_fused.", "time_mix_first.", "time_mix_decay_w1.", "time_mix_decay_w2."))
        q = f32 if always32 else qt
        try: data = gguf.quants.quantize(a, q)
        except gguf.QuantError: q = gguf.GGMLQuantizationType.F16; data = gguf.quants.quantize(a, q)
        wr.add_tensor(name, data, raw_dtype=q)
        seen = torch.from_numpy(np.array(gguf.quants.dequantize(data, q), dtype=np.float32).reshape(a.shape))
        for raw, f in inv.items(): back[raw] = f(seen)
    wr.write_header_to_file(); wr.write_kv_data_to_file(); wr.write_tensors_to_file(); wr.close()
    return {k: back[k] for k in w if k in back}

# ------------------------------------------------------------------------------------------------ main
def r9(a): return json.loads(json.dumps(a.tolist(), default=float)) if a.ndim == 0 else [r9(x) for x in a] if a.ndim > 1 else [float("%.9g" % x) for x in a]

def check_and_pack(ids, ref_logits, ref_state, np64_rows, np64, greedy, gaps, src, extra):
    ref = ref_logits; chk = np.stack(np64_rows); sd = float(ref.std())
    top = np.sort(chk, -1); margin = float(((top[:, -1] - top[:, -2])).min() / sd)
    ag = dict(second="independent numpy float64, one token at a time",
              logits_max_abs_over_std=float(np.abs(ref - chk).max() / sd),
              logits_rel_l2=float(np.linalg.norm(ref - chk) / np.linalg.norm(chk)),
              state_rel_l2={k: float(np.linalg.norm(r - c) / np.linalg.norm(c)) for k, r, c in
                            zip(("att_x", "ffn_x", "wkv"), ref_state, (np64.att, np64.ffn, np64.S))},
              argmax_equal=bool((ref.argmax(-1) == chk.argmax(-1)).all()))
    out = dict(source=src, version=P["ver"], input_ids=ids, logits_last=r9(ref[-1]), logits_argmax=ref.argmax(-1).tolist(),
               logits_sum_abs=r9(np.abs(ref).sum(-1)), logits_std=sd, **extra, greedy_prompt_len=8, greedy_ids=greedy,
               greedy_min_top2_gap_over_std=float(min(gaps) / sd), argmax_min_top2_gap_over_std=margin, agreement=ag,
               state_layout="att_x, ffn_x: [layer][D], the LN output last seen by time mix / channel mix; wkv: [layer][head]" +
               ("[value index][key index]" if P["ver"] == 7 else "[key index][value index]"),
               state=dict(att_x=r9(ref_state[0]), ffn_x=r9(ref_state[1]), wkv=r9(ref_state[2])))
    return out, ag, margin

def main():
    d = os.path.join(OUT, NAME); os.makedirs(d, exist_ok=True)
    w, ids, ts = weights(P); ver = P["ver"]
    if P["fmt"] == "gguf": w = write_gguf(d, w, P)
    else:
        dt = DT[P["dtype"]]; w = {k: t.to(dt).float() for k, t in w.items()}
        if P["fmt"] == "pth": torch.save({k: t.to(dt).clone() for k, t in w.items()}, f"{d}/model.pth")
        else: write_hf(d, w, P)
    pip = Pip(w); logits, st = pip.run(ids); state = pip.state(st); extra = {}
    h, st2 = pip.run(ids[:20]); rest, st2 = pip.run(ids[20:], st2)
    extra["split_max_abs_diff"] = float(np.abs(rest - logits[20:]).max())
    one = []; st3 = None
    for t in ids:
        o, st3 = pip.run([t], st3); one.append(o[0])
    extra["one_by_one_max_abs_diff"] = float(np.abs(np.stack(one) - logits).max())
    src = pip.name
    if ver == 7 and P["fmt"] == "hf":
        hf = Hf7(d); lh = hf.run(ids); extra["third_rwkv7_hf_max_abs_over_std"] = float(np.abs(lh - logits).max() / logits.std())
        if P["ref"] in ("auto", "hf"): logits, src = lh, hf.name + " (state from " + pip.name + ")"
    m = Np64(w, ver); rows = [m.step(t) for t in ids]
    g = ids[:8]; o, gs = pip.run(g); gm = Np64(w, ver); c = [gm.step(t) for t in g][-1]; gaps = []; greedy = list(g)
    for _ in range(40):
        s = np.sort(c); gaps.append(s[-1] - s[-2]); t = int(o[-1].argmax()); assert t == int(c.argmax()), "references disagree"
        greedy.append(t); o, gs = pip.run([t], gs); c = gm.step(t)
    src += "; weights as stored (" + P["dtype"] + ") and upcast to float32; args: " + " ".join(sys.argv[2:3] + [a for a in sys.argv[3:] if "vocab_txt" not in a])
    out, ag, margin = check_and_pack(ids, logits, state, rows, m, greedy, gaps, src, extra)
    json.dump(out, open(d + "/expected.json", "w"))
    ok = ag["logits_max_abs_over_std"] < 1e-3 and ag["logits_rel_l2"] < 2e-5 and out["greedy_min_top2_gap_over_std"] > 1e-3 and margin > 1e-3
    print(NAME, "OK" if ok else "REJECT", "params", sum(t.numel() for t in w.values()), "bytes", sum(os.path.getsize(f"{d}/{f}") for f in os.listdir(d)),
          "std %.3g" % out["logits_std"], "rel_l2 %.2g" % ag["logits_rel_l2"], "max/std %.2g" % ag["logits_max_abs_over_std"],
          "state", {k: "%.1g" % v for k, v in ag["state_rel_l2"].items()}, "split %.1g" % extra["split_max_abs_diff"],
          "greedy gap %.3g" % out["greedy_min_top2_gap_over_std"], "argmax gap %.3g" % margin, "uniq greedy", len(set(greedy[8:])), extra.get("third_rwkv7_hf_max_abs_over_std"))
    if P["ts"]:
        tsb = {k: t.to(torch.bfloat16) for k, t in ts.items()}; torch.save({k: t.clone() for k, t in tsb.items()}, d + "/time_state.pth")
        up = {k: t.float() for k, t in tsb.items()}
        logits, st = pip.run(ids, pip.zero(up)); m = Np64(w, ver, np.stack([up[f"blocks.{l}.att.time_state"].numpy() for l in range(P["l"])]))
        rows = [m.step(t) for t in ids]; o, gs = pip.run(g, pip.zero(up)); gm = Np64(w, ver, np.stack([up[f"blocks.{l}.att.time_state"].numpy() for l in range(P["l"])]))
        c = [gm.step(t) for t in g][-1]; gaps, greedy = [], list(g)
        for _ in range(40):
            s = np.sort(c); gaps.append(s[-1] - s[-2]); t = int(o[-1].argmax()); assert t == int(c.argmax())
            greedy.append(t); o, gs = pip.run([t], gs); c = gm.step(t)
        out, ag, margin = check_and_pack(ids, logits, pip.state(st), rows, m, greedy, gaps, src + "; initial wkv = time_state.pth copied as stored ([head][value][key], no transpose)", {})
        del out["state"]; json.dump(out, open(d + "/expected_time_state.json", "w"))
        print("   time_state", "rel_l2 %.2g" % ag["logits_rel_l2"], "greedy gap %.3g" % out["greedy_min_top2_gap_over_std"], "argmax gap %.3g" % margin)

main()
