#!/usr/bin/env python3
"""Checks with transformers and torch that what `rwkv-edge convert` writes is what they read.

Usage: check_convert.py PROGRAM REPOSITORY

Needs torch and transformers (used with 2.15.0 and 4.57.6), safetensors and numpy. Not part of the tests that
always run, since those do without Python. Every check compares bits: transformers' logits of the directory
against those of the state dict that torch loaded from the raw file itself.
"""

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, RwkvConfig, RwkvForCausalLM

PROGRAM, REPOSITORY = sys.argv[1:3]
N_CHECKS = 0


def check(what, holds):
    global N_CHECKS
    N_CHECKS += 1
    if not holds:
        sys.exit(f"FAILED: {what}")


def convert(source, target, *flags):
    subprocess.run([PROGRAM, "convert", "--checkpoint_file", source, "--output_dir", target, *flags], check=True,
                   stderr=subprocess.PIPE)


def raw_name(name):
    name = re.sub(r"^rwkv\.", "", name).replace("embeddings.", "emb.").replace(".pre_ln.", ".ln0.")
    name = name.replace(".attention.", ".att.").replace(".feed_forward.", ".ffn.")
    for theirs, ours in [("key", "k"), ("value", "v"), ("receptance", "r")]:
        name = re.sub(f"time_mix_{theirs}$", f"time_mix_{ours}", name)
    return name


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8),
                                                                    b.contiguous().view(torch.uint8))


def load(folder, **arguments):
    """The model of a directory; nothing may be missing, left over, or of another shape."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
    check(f"{folder}: loads", not any(info.values()) and isinstance(model, RwkvForCausalLM))
    return model.eval()


def run(model, ids):
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
        text = model.generate(ids[None, :8], max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    return logits, text


def of_state_dict(raw, config):
    """The model that transformers makes of raw tensors in f32, by names alone."""
    model = RwkvForCausalLM(config)
    names = {raw_name(name): name for name in model.state_dict()}
    model.load_state_dict({names[name]: tensor.float() for name, tensor in raw.items()}, strict=True)
    return model.eval()


def check_model(work, name, state, config, ids):
    """Raw files as torch.save writes them, in three types, to directories and back."""
    for dtype in [torch.float32, torch.bfloat16, torch.float16]:
        label = f"{name}, {str(dtype)[6:]}"
        raw = collections.OrderedDict((raw_name(k), v.to(dtype)) for k, v in state.items())
        path = os.path.join(work, f"{name}-{str(dtype)[6:]}.pth")
        torch.save(raw, path)
        reference = run(of_state_dict(raw, config), ids)
        for flags in [(), ("--max-shard-size", "100KB")]:
            folder = path.replace(".pth", f"-{len(flags)}")
            convert(path, folder, *flags)
            for found, expected in zip(run(load(folder, dtype=torch.float32), ids), reference):
                check(f"{label} {flags}: logits and text", torch.equal(found, expected))
            auto = load(folder, dtype="auto")
            check(f"{label}: type of its own", auto.dtype == dtype)
            written = json.load(open(os.path.join(folder, "config.json")))
            ours = RwkvConfig(**{k: v for k, v in written.items() if k not in ["architectures", "dtype"]})
            ours.save_pretrained(os.path.join(work, "config"))
            theirs = json.load(open(os.path.join(work, "config", "config.json")))
            rest = {k: v for k, v in written.items() if k not in theirs}
            check(f"{label}: fields", theirs.items() <= written.items() and sorted(rest) == ["architectures", "dtype"])
            check_raw(folder, os.path.join(work, "back.pth"), raw)
        # What transformers itself writes of the directory is the same, byte for byte.
        model = load(folder, dtype=dtype)
        if not any(p.dtype != dtype for p in model.parameters()):
            model.save_pretrained(os.path.join(work, "theirs"), max_shard_size="100KB")
            for file in os.listdir(folder):
                if file != "config.json":
                    a, b = (open(os.path.join(f, file), "rb").read() for f in [folder, os.path.join(work, "theirs")])
                    check(f"{label}: {file} as transformers writes it", a == b)


def check_raw(source, path, expected):
    """A raw file of a directory is what torch.load gives, mapped or not, with a storage for each tensor."""
    convert(source, path, "--to", "raw", "--force")
    check(f"{path}: checksums", zipfile.ZipFile(path).testzip() is None)
    for mmap in [False, True]:
        found = torch.load(path, weights_only=True, mmap=mmap)
        check(f"{path}: a dictionary", isinstance(found, collections.OrderedDict) and found.keys() == expected.keys())
        for key, tensor in found.items():
            check(f"{path}: {key}", same_bits(tensor, expected[key]) and tensor.is_contiguous())
            check(f"{path}: {key}: storage", tensor.untyped_storage().nbytes() == tensor.nbytes)
        pointers = {tensor.untyped_storage().data_ptr() for tensor in found.values()}
        check(f"{path}: shared storages", len(pointers) == len(found))
        check(f"{path}: alignment", not mmap or all(pointer % 64 == 0 for pointer in pointers))


def check_golden(work):
    for name in ["small-safetensors", "odd-bin", "deep-sharded"]:
        folder = os.path.join(REPOSITORY, "tests/fixtures/golden", name)
        expected = json.load(open(os.path.join(folder, "expected.json")))
        ids = torch.tensor(expected["input_ids"])
        original = load(folder)
        state = {k: v.clone() for k, v in original.state_dict().items()}
        # Odd sizes are in the configuration of the golden model alone: nulls there mean the defaults.
        check_model(work, name, state, original.config, ids)
        logits = run(load(os.path.join(work, f"{name}-float32-0")), ids)[0]
        close = (logits[-1].double() - torch.tensor(expected["logits_last"], dtype=torch.float64)).abs().max().item()
        check(f"{name}: the logits of the fixture ({close})", close < 1e-5)
        print(f"{name}: directories and raw files in f32, bf16 and f16: logits and greedy text to the bit")


def check_views(work):
    """Transposed and shared storages."""
    fixtures = os.path.join(REPOSITORY, "tests/fixtures/checkpoints")
    for name in ["raw-strided.pth", "raw-strided-bf16.pth", "raw-protocol-4.pth", "raw-metadata.pth", "raw-no-crc.pth"]:
        # torch's own restricted unpickler knows only protocol 2; these files are ours.
        raw = torch.load(os.path.join(fixtures, name), weights_only="protocol-4" not in name)
        folder = os.path.join(work, name)
        convert(os.path.join(fixtures, name), folder)
        config = RwkvConfig.from_pretrained(folder)
        raw = {k: v.reshape(1, 1, -1) if "time_mix" in k else v for k, v in raw.items()}
        ids = torch.tensor([[1, 2, 3, 4, 5, 6, 0, 1, 2]])
        with torch.no_grad():
            # transformers' states do not know attention_hidden_size, so it runs this model without one.
            found, expected = (model(ids, use_cache=False).logits
                               for model in [load(folder, dtype=torch.float32), of_state_dict(raw, config)])
        check(f"{name}: logits", torch.equal(found, expected))
        print(f"{name}: logits to the bit")


def check_rwkv_cpp(work):
    fixtures = os.path.join(REPOSITORY, "tests/fixtures/rwkv-cpp")
    ids = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 30, 31])
    for kind in ["FP32", "FP16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]:
        folder = os.path.join(work, kind)
        convert(os.path.join(fixtures, kind + ".bin"), folder)
        raw = load_file(os.path.join(fixtures, kind + ".safetensors"))
        raw = {k: v.reshape(1, 1, -1) if "time_mix" in k else v for k, v in raw.items()}
        model = load(folder, dtype=torch.float32)
        state = {raw_name(k): v for k, v in model.state_dict().items()}
        for key, tensor in raw.items():
            check(f"{kind}: {key}", "time_decay" in key or torch.equal(state[key], tensor))
        found, expected = (run(m, ids)[0] for m in [model, of_state_dict(raw, model.config)])
        print(f"{kind}.bin: all tensors equal; logits differ by {(found - expected).abs().max().item():.1e} at most")
        check(f"{kind}: logits", torch.allclose(found, expected, atol=1e-5, rtol=0))


def check_tokenizer(work):
    demo = os.path.join(REPOSITORY, "tests/fixtures/demo4")
    files = [os.path.join(demo, "tokenizer.json")]
    if "RWKV_EDGE_TEST_DATA" in os.environ:
        files.append(os.path.join(os.environ["RWKV_EDGE_TEST_DATA"], "20B_tokenizer.json"))
    for file in files:
        source = demo
        if file != files[0]:
            # A model of the 20B tokenizer's size.
            model = RwkvForCausalLM(RwkvConfig(hidden_size=8, num_hidden_layers=2))
            source = os.path.join(work, "20B.pth")
            torch.save({raw_name(k): v for k, v in model.state_dict().items()}, source)
        folder = os.path.join(work, "tokenizer")
        convert(source, folder, "--tokenizer_file", file, "--force")
        found, expected = AutoTokenizer.from_pretrained(folder), PreTrainedTokenizerFast(tokenizer_file=file)
        for text in ["Ownership is  a set of\n\n rules", "<|endoftext|>x", "    \t\u00fcn\u00ef \U0001f980"]:
            check(f"{file}: ids", found(text)["input_ids"] == expected(text)["input_ids"])
            check(f"{file}: text", found.decode(found(text)["input_ids"]) == expected.decode(expected(text)["input_ids"]))
        check(f"{file}: length", len(found) == len(expected))
        check(f"{file}: eos", found.eos_token_id == 0 and found.bos_token_id == 0)
        check(f"{file}: added tokens", found.added_tokens_decoder == expected.added_tokens_decoder)
        load(folder)
        print(f"{os.path.basename(file)}: AutoTokenizer gives the ids and texts of the file")


def main():
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as work:
        check_golden(work)
        check_views(work)
        check_rwkv_cpp(work)
        check_tokenizer(work)
    print(f"{N_CHECKS} checks hold")


main()
