#!/usr/bin/env python3
"""Writes the World vocabulary's expected tokenizations, and a small vocabulary for tests without data.

Usage: make_world_cases.py VOCABULARY_TXT OUT_FOLDER

VOCABULARY_TXT is rwkv_vocab_v20230424.txt. Written to OUT_FOLDER (tests/fixtures/tokenizer):
  cases_world.json        expected ids and texts with the whole vocabulary
  world_small.txt         a part of it: all single bytes, all tokens of the sentences and code below,
                          and every 200th line, ids as they were
  cases_world_small.json  the same with that part

The tokenizer is the well-known one of the World models: a tree of bytes, the longest token at each
place. Where BlinkDL's own is installed (`pip install rwkv`, made with 0.8.32), all ids are compared
with it before anything is written. Texts are those of make_tokenizer_cases.py, and bytes that are no
text. Decoding leaves token 0 out, and ids that no line has; bytes that are no character become U+FFFD.
"""

import ast
import json
import random
import sys
import tempfile
from pathlib import Path

import make_tokenizer_cases as texts


class Trie:
    def __init__(self):
        self.children = {}
        self.token = None

    def add(self, key, token):
        node = self
        for byte in key:
            node = node.children.setdefault(byte, Trie())
        assert node.token is None
        node.token = token

    def longest(self, data, start):
        node, at, found = self, start, None
        while at < len(data) and data[at] in node.children:
            node = node.children[data[at]]
            at += 1
            if node.token is not None:
                found = node.token, at
        return found


class WorldTokenizer:
    def __init__(self, lines):
        self.bytes_of = {}
        for line in lines:
            token, rest = line.split(" ", 1)
            literal, size = rest.rsplit(" ", 1)
            value = ast.literal_eval(literal)
            value = value.encode("utf-8") if isinstance(value, str) else value
            assert len(value) == int(size), line
            self.bytes_of[int(token)] = value
        self.trie = Trie()
        for token, value in self.bytes_of.items():
            self.trie.add(value, token)

    def encode(self, data):
        tokens, at = [], 0
        while at < len(data):
            token, at = self.trie.longest(data, at)
            tokens.append(token)
        return tokens

    def decode(self, tokens):
        data = b"".join(self.bytes_of.get(token, b"") for token in tokens)
        return data.decode("utf-8", errors="replace")


def binary():
    """Bytes that are no UTF-8, or only in parts."""
    yield bytes(range(256))
    yield b"\xff\xfe\x00\x80" * 9
    yield "龍鬱 naïve 😀".encode("utf-8")[1:-1]
    yield "текст".encode("utf-16-le") + "текст".encode("cp1251")
    yield b"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x3e\x00"
    yield b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    rng = random.Random(3)
    for size in range(1, 60, 2):
        yield rng.randbytes(size)


def id_sequences(n_tokens, partial):
    yield from texts.id_sequences(n_tokens)
    yield [0, 70_000, 2**32 - 1]
    rng = random.Random(4)
    for _ in range(60):
        yield [rng.choice(partial) for _ in range(rng.randint(1, 12))]


def compare_with_rwkv(lines, cases):
    try:
        from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
    except ImportError:
        print("not compared with BlinkDL's tokenizer: the package rwkv is not installed")
        return
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.writelines(line + "\n" for line in lines)
        file.flush()
        reference = TRIE_TOKENIZER(file.name)
    for data, ids in cases:
        assert reference.encodeBytes(data) == ids, data
    print(f"{len(cases)} texts: the same ids as BlinkDL's tokenizer")


def write_cases(lines, path):
    tokenizer = WorldTokenizer(lines)
    encodes, compared = [], []
    for text in texts.texts():
        ids = tokenizer.encode(text.encode("utf-8"))
        compared.append((text.encode("utf-8"), ids))
        encodes.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids)})
    binaries = []
    for data in binary():
        ids = tokenizer.encode(data)
        compared.append((data, ids))
        binaries.append({"hex": data.hex(), "ids": ids, "decoded": tokenizer.decode(ids)})
    compare_with_rwkv(lines, compared)
    n_tokens = max(tokenizer.bytes_of) + 1
    partial = [
        token for token, value in tokenizer.bytes_of.items()
        if "\ufffd" in value.decode("utf-8", errors="replace")
    ]
    decodes = [
        {"ids": ids, "decoded": tokenizer.decode(ids)} for ids in id_sequences(n_tokens, partial)
    ]
    parts = {"encodes": encodes, "binaries": binaries, "decodes": decodes}
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"made_with": "make_world_cases.py",\n"n_tokens": %d' % n_tokens)
        for name, cases in parts.items():
            # ensure_ascii keeps control characters and decomposed forms safe from editors.
            file.write(',\n"%s": [\n' % name)
            file.write(",\n".join(json.dumps(case) for case in cases))
            file.write("\n]")
        file.write("}\n")


def small_vocabulary(lines):
    whole = WorldTokenizer(lines)
    kept = set(range(1, 257))
    for text in texts.SENTENCES + texts.CODE:
        kept.update(whole.encode(text.encode("utf-8")))
    return [
        line for index, line in enumerate(lines)
        if int(line.split(" ", 1)[0]) in kept or index % 200 == 0
    ]


def main():
    source, out = map(Path, sys.argv[1:])
    # Not splitlines(): U+2028 and its like are no ends of lines here.
    lines = source.read_bytes().decode("utf-8").replace("\r\n", "\n").rstrip("\n").split("\n")
    small = small_vocabulary(lines)
    (out / "world_small.txt").write_bytes("".join(line + "\n" for line in small).encode("utf-8"))
    write_cases(lines, out / "cases_world.json")
    write_cases(small, out / "cases_world_small.json")
    print(f"{len(lines)} lines, {len(small)} of them in world_small.txt")


if __name__ == "__main__":
    main()
