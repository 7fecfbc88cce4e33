#!/usr/bin/env python3
"""Measures how well the vectors of `rwkv-edge embed` tell what means the same: docs/EMBEDDINGS.md.

Usage: measure_embeddings.py RWKV_EDGE [OPTIONS OF embed, such as --model FILE --quant int8]

Takes tests/fixtures/embed/pairs.tsv: a sentence, another that says the same, and a third that shares
words with the first but says something else. Nearness is the cosine. Printed for every --from:
  any      of a random pair that says the same and a random one from two different lines, how often
           the first is nearer (area under the ROC curve)
  words    how often the second sentence is nearer to the first than the third is
  first    how often the second sentence is the nearest of all second sentences
and the same with the mean of all sentences' vectors subtracted. The last row is no network: it
compares sets of words (Jaccard).

Needs numpy.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

PAIRS = Path(__file__).resolve().parent.parent / "fixtures/embed/pairs.tsv"


def read_pairs():
    lines = PAIRS.read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


def embed(command, source, sentences):
    text = "".join(sentence + "\n" for sentence in sentences)
    output = subprocess.run(
        [*command, "--from", source, "--format", "csv"],
        input=text.encode(), stdout=subprocess.PIPE, check=True,
    ).stdout.decode()
    vectors = np.array([[float(x) for x in line.split(",")] for line in output.splitlines()])
    assert len(vectors) == len(sentences)
    return vectors


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def scores(near, near_third):
    """`near` (lines, lines): first sentences to second ones; `near_third` (lines): to their third."""
    n = len(near)
    same = np.diag(near)
    other = near[~np.eye(n, dtype=bool)]
    pairs = (same[:, None] > other[None, :]).mean() + 0.5 * (same[:, None] == other[None, :]).mean()
    words = (same > near_third).mean() + 0.5 * (same == near_third).mean()
    # Ties count as lost.
    first = np.mean([(near[i] >= same[i]).sum() == 1 for i in range(n)])
    return pairs, words, first


def of_vectors(vectors):
    a, b, c = np.split(unit(vectors), 3)
    return scores(a @ b.T, (a * c).sum(axis=1))


def of_words(pairs):
    words = [[set(re.findall(r"\w+", sentence.lower())) for sentence in line] for line in pairs]
    near = lambda x, y: len(x & y) / len(x | y)
    return scores(
        np.array([[near(line[0], other[1]) for other in words] for line in words]),
        np.array([near(line[0], line[2]) for line in words]),
    )


def main():
    command = [sys.argv[1], "embed", *sys.argv[2:]]
    pairs = read_pairs()
    sentences = [line[i] for i in range(3) for line in pairs]
    n_layer = 0
    sources = ["hidden-last", "hidden-mean"]
    while True:
        probe = [*command, "--from", f"state:{n_layer}"]
        if subprocess.run(probe, input=b"", capture_output=True).returncode != 0:
            break
        sources.append(f"state:{n_layer}")
        n_layer += 1
    print(f"{len(pairs)} lines")
    print("| --from | any | words | first | centred: any | words | first |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    row = lambda name, values: print("|", name, "|", " | ".join(f"{v:.3f}" for v in values), "|")
    for source in sources:
        vectors = embed(command, source, sentences)
        row(source, of_vectors(vectors) + of_vectors(vectors - vectors.mean(axis=0)))
    row("words in common", of_words(pairs))


if __name__ == "__main__":
    main()
