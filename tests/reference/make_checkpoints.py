#!/usr/bin/env python3
"""Writes tiny RWKV-4 checkpoints in every form that the engine reads, all with the same numbers.

Usage: make_checkpoints.py OUT_DIR

Needs torch (made with 2.15.0) and safetensors. All numbers are multiples of 1/32 between -4 and 4,
which f32, f16 and bf16 hold exactly: one expected.json serves every file.
"""

import collections
import json
import os
import sys

import torch
from safetensors.torch import save_file

N_VOCAB, N_EMBD, N_LAYER, N_ATTENTION, N_HIDDEN = 7, 4, 2, 6, 5

HF_NAMES = [
    ("emb.", "embeddings."), (".ln0.", ".pre_ln."), (".att.", ".attention."), (".ffn.", ".feed_forward."),
    ("time_mix_k", "time_mix_key"), ("time_mix_v", "time_mix_value"), ("time_mix_r", "time_mix_receptance"),
]

CONFIG = {
    "architectures": ["RwkvForCausalLM"], "model_type": "rwkv", "vocab_size": N_VOCAB, "hidden_size": N_EMBD,
    "num_hidden_layers": N_LAYER, "attention_hidden_size": N_ATTENTION, "intermediate_size": N_HIDDEN,
    "layer_norm_epsilon": 1e-5, "context_length": None, "bos_token_id": None, "eos_token_id": None,
    "rescale_every": 6, "tie_word_embeddings": None, "use_cache": True, "torch_dtype": None,
}


def shapes():
    d, a, f = N_EMBD, N_ATTENTION, N_HIDDEN
    yield "emb.weight", (N_VOCAB, d)
    for layer in range(N_LAYER):
        for norm in ["ln0", "ln1", "ln2"][layer > 0:]:
            for part in ["weight", "bias"]:
                yield f"blocks.{layer}.{norm}.{part}", (d,)
        att, ffn = f"blocks.{layer}.att.", f"blocks.{layer}.ffn."
        yield att + "time_decay", (a,)
        yield att + "time_first", (a,)
        for mix in "kvr":
            yield att + "time_mix_" + mix, (1, 1, d)
        for matrix in ["key", "value", "receptance"]:
            yield att + matrix + ".weight", (a, d)
        yield att + "output.weight", (d, a)
        yield ffn + "time_mix_k", (1, 1, d)
        yield ffn + "time_mix_r", (1, 1, d)
        yield ffn + "key.weight", (f, d)
        yield ffn + "receptance.weight", (d, d)
        yield ffn + "value.weight", (d, f)
    yield "ln_out.weight", (d,)
    yield "ln_out.bias", (d,)
    yield "head.weight", (N_VOCAB, d)


def hf_name(name):
    if name == "head.weight":
        return name
    for ours, theirs in HF_NAMES:
        name = name.replace(ours, theirs)
    return "rwkv." + name


def flat_mixes(model):
    return {k: v.reshape(-1) if "time_mix" in k else v for k, v in model.items()}


def strided(model):
    """Every way in which torch can keep a tensor that is not simply its own row-major storage."""
    out = flat_mixes(model)
    # Transposed: a matrix that was trained the other way round.
    for key in ["blocks.0.att.key.weight", "blocks.1.ffn.value.weight"]:
        out[key] = out[key].t().contiguous().t()
    # Columns of a wider matrix.
    wide = torch.full((N_ATTENTION, 3 * N_EMBD), 99.0)
    for i, part in enumerate(["key", "value", "receptance"]):
        wide[:, i * N_EMBD:(i + 1) * N_EMBD] = out[f"blocks.1.att.{part}.weight"]
        out[f"blocks.1.att.{part}.weight"] = wide[:, i * N_EMBD:(i + 1) * N_EMBD]
    # Every other element in both directions.
    sparse = torch.full((2 * N_EMBD, 2 * N_EMBD), 99.0)
    sparse[::2, ::2] = out["blocks.0.ffn.receptance.weight"]
    out["blocks.0.ffn.receptance.weight"] = sparse[::2, ::2]
    # Vectors cut from one storage, one of them a column.
    names = ["ln_out.weight", "ln_out.bias", "blocks.0.ln1.weight"]
    together = torch.cat([out[name] for name in names])
    for i, name in enumerate(names):
        out[name] = together[i * N_EMBD:(i + 1) * N_EMBD]
    column = torch.full((N_EMBD, 3), 99.0)
    column[:, 1] = out["blocks.0.ln1.bias"]
    out["blocks.0.ln1.bias"] = column[:, 1]
    # As a module's own parameter.
    out["head.weight"] = torch.nn.Parameter(out["head.weight"])
    return out


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    path = lambda *parts: os.path.join(out, *parts)
    generator = torch.Generator().manual_seed(20)
    model = {k: torch.randint(-128, 128, s, generator=generator) / 32 for k, s in shapes()}
    hf = {hf_name(k): v for k, v in model.items()}

    torch.save(model, path("raw-f32.pth"))
    torch.save({k: v.half() for k, v in model.items()}, path("raw-f16.pth"))
    torch.save({k: v.bfloat16() for k, v in model.items()}, path("raw-bf16.pth"))
    torch.save(strided(model), path("raw-strided.pth"))
    torch.save({k: v.bfloat16() for k, v in strided(model).items()}, path("raw-strided-bf16.pth"))
    torch.save(model, path("raw-protocol-4.pth"), pickle_protocol=4)
    torch.save(model, path("refused-before-1.6.pth"), _use_new_zipfile_serialization=False)
    torch.save({"model": model, "epoch": 3}, path("raw-nested.pth"))
    module_like = collections.OrderedDict(model)
    module_like._metadata = collections.OrderedDict({"": {"version": 1}})
    torch.save(module_like, path("raw-metadata.pth"))
    torch.serialization.set_crc32_options(False)
    torch.save(model, path("raw-no-crc.pth"))
    torch.serialization.set_crc32_options(True)

    save_file(flat_mixes(model), path("raw.safetensors"))
    save_file({k: v.bfloat16() for k, v in hf.items()}, path("hf-bf16.safetensors"), {"format": "pt"})

    for folder in ["hf-sharded-bin", "hf-tied"]:
        os.makedirs(path(folder), exist_ok=True)
    names = list(hf)
    shards = {"pytorch_model-00001-of-00002.bin": names[:20], "pytorch_model-00002-of-00002.bin": names[20:]}
    for shard, members in shards.items():
        torch.save({k: hf[k] for k in members}, path("hf-sharded-bin", shard))
    weight_map = {k: shard for shard, members in shards.items() for k in members}
    with open(path("hf-sharded-bin", "pytorch_model.bin.index.json"), "w") as file:
        json.dump({"metadata": {"total_size": 4 * sum(v.numel() for v in hf.values())}, "weight_map": weight_map},
                  file, indent=1)
    with open(path("hf-sharded-bin", "config.json"), "w") as file:
        json.dump(CONFIG, file, indent=1)
    save_file({k: v.half() for k, v in hf.items() if k != "head.weight"}, path("hf-tied", "model.safetensors"))
    with open(path("hf-tied", "config.json"), "w") as file:
        json.dump({**CONFIG, "tie_word_embeddings": True, "eos_token_id": 2}, file, indent=1)

    with open(path("expected.json"), "w") as file:
        json.dump({k: {"shape": list(v.shape), "values": v.flatten().tolist()} for k, v in model.items()}, file)


main()
