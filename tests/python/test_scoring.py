"""Vectors and likelihoods of texts, against the command and against forward passes."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import rwkv_edge
from common import DEMO, TestCase, command_json, demo, golden, run_command

TEXTS = ["Ownership is what makes a program safe.", "", "A trait", "fn main() { let x = 1; }" * 30]


class Embed(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = demo()

    def test_the_command_gives_the_same(self):
        for pooling, options in [("hidden-mean", []), ("hidden-last", ["--no-normalize"]), ("state:2", [])]:
            done = run_command(
                "embed", "-m", DEMO, "--quant", "int8", "--from", pooling, *options, input="\n".join(TEXTS) + "\n"
            )
            wanted = [json.loads(line) for line in done.stdout.splitlines()]
            found = self.model.embed(TEXTS, pooling, normalize=not options)
            self.assertEqual(found.dtype, np.float32)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)

    def test_one_many_and_none(self):
        many = self.model.embed(TEXTS * 50)
        self.assertEqual(many.shape, (len(TEXTS) * 50, self.model.info["n_embd"]))
        one = self.model.embed(TEXTS[0])
        np.testing.assert_allclose(many[:: len(TEXTS)], np.tile(one, (50, 1)), rtol=0, atol=1e-5)
        np.testing.assert_array_equal(many[1], 0)
        self.assertAlmostEqual(float(np.linalg.norm(one)), 1, places=5)
        np.testing.assert_array_equal(self.model.embed(self.model.tokenizer.encode(TEXTS[0])), one)
        self.assertEqual(self.model.embed([]).shape, (0, self.model.info["n_embd"]))

    def test_what_makes_no_sense(self):
        self.assert_error("argument", "hidden-last", self.model.embed, "A", "mean")
        self.assert_error("argument", "no such layer", self.model.embed, "A", "state:99")
        self.assert_error("tokenizer", "no tokenizer", golden("v7-pth").embed, "A")
        self.assert_error("argument", "vocabulary", self.model.embed, [[10**6]])


class Score(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = demo()

    def by_hand(self, tokens) -> np.ndarray:
        rows = self.model.forward(tokens[:-1], all=True)[0].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        return logs[np.arange(len(rows)), tokens[1:]]

    def test_forward_passes_say_the_same(self):
        encode = self.model.tokenizer.encode
        sums = self.model.score(TEXTS)
        terms = self.model.score(TEXTS, per_token=True)
        with_first = self.model.score(TEXTS, bos=True, per_token=True)
        self.assertEqual((sums.dtype, sums.shape), (np.float64, (len(TEXTS),)))
        for text, total, each, behind_0 in zip(TEXTS, sums, terms, with_first, strict=True):
            tokens = encode(text)
            wanted = self.by_hand(tokens) if len(tokens) > 1 else np.zeros(0)
            np.testing.assert_allclose(each, wanted, rtol=0, atol=1e-5)
            self.assertAlmostEqual(total, each.sum(), places=6)
            wanted = self.by_hand([0, *tokens]) if tokens else np.zeros(0)
            np.testing.assert_allclose(behind_0, wanted, rtol=0, atol=1e-5)
        self.assertEqual(math.copysign(1, sums[1]), 1)

    def test_the_command_gives_the_same(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text"
            path.write_text(TEXTS[3])
            measured = command_json("perplexity", "-m", DEMO, "--quant", "int8", "--json", path)
        self.assertAlmostEqual(-self.model.score(TEXTS[3]) / measured["predicted"], measured["loss"], places=6)

    def test_one_many_and_none(self):
        one = self.model.score(TEXTS[0])
        self.assertIsInstance(one, float)
        self.assertEqual(self.model.score(self.model.tokenizer.encode(TEXTS[0])), one)
        self.assertEqual(self.model.score([]).shape, (0,))
        self.assertEqual(self.model.score("", per_token=True).shape, (0,))
        many = self.model.score(TEXTS * 50)
        np.testing.assert_allclose(many, np.tile(self.model.score(TEXTS), 50), rtol=0, atol=1e-5)
        self.assert_error("argument", "vocabulary", self.model.score, [[1, 10**6]])
        for call in [self.model.score, self.model.embed]:
            self.assert_error("argument", "text 1, token 2: id 1000000", call, [[1], [1, 2, 10**6]])
        self.assert_error("argument", "text, token 1: id 1000000", rwkv_edge.perplexity, self.model, [1, 10**6])


class Perplexity(TestCase):
    def test_the_command_gives_the_same(self):
        text = TEXTS[3] + TEXTS[0]
        model = demo()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text"
            path.write_text(text)
            for options in [{}, {"bos": True}, {"window": 64}, {"window": 50, "stride": 50, "limit": 300}]:
                with self.subTest(options):
                    arguments = []
                    for name, value in options.items():
                        arguments += [f"--{name}"] if value is True else [f"--{name}", value]
                    wanted = command_json("perplexity", "-m", DEMO, "--quant", "int8", "--json", *arguments, path)
                    found = rwkv_edge.perplexity(model, text, **options)
                    self.assertEqual({name: wanted[name] for name in found}, found)
        by_path = rwkv_edge.perplexity(DEMO, text, "int8", threads=2, bos=True)
        self.assertEqual(by_path, rwkv_edge.perplexity(model, model.tokenizer.encode(text), bos=True))

    def test_what_makes_no_sense(self):
        model = demo()
        perplexity = rwkv_edge.perplexity
        self.assert_error("argument", "1 tokens", perplexity, model, [1])
        self.assert_error("argument", "window 1", perplexity, model, "A trait", window=1)
        self.assert_error("argument", "stride", perplexity, model, "A trait", window=4, stride=5)
        self.assert_error("argument", "stride", perplexity, model, "A trait", stride=5)
        self.assert_error("argument", "quant", perplexity, model, "A trait", "q4")
        self.assert_error("io", "/no/such", perplexity, "/no/such", "A trait")
        for wrong in [{"threads": 1}, {"windows": 4}]:
            with self.assertRaisesRegex(TypeError, next(iter(wrong))):
                perplexity(model, "A trait", **wrong)
        with self.assertRaises(TypeError):
            perplexity(5, "A trait")
