"""Batches of columns: rows that depend on nothing but themselves."""

import json
import pickle
import random

import numpy as np
import rwkv_edge
from common import DEMO, TestCase, demo, run_python
from rwkv_edge.batch import Batch

WORDS = ["Ownership is", "A trait", "The `Vec` type", "fn main() {", "é", "The borrow checker is part of it"]
PROMPTS = [" ".join(WORDS[: 1 + n % 4]) + f" {n}" for n in range(60)]
DRAWS = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 6}


def batch(task: str = "generate", **options) -> Batch:
    return Batch(DEMO, task, **{"quant": "int8", "threads": 2, **options})


class Rows(TestCase):
    def cut(self, call, columns: dict, seed: int) -> dict[str, list]:
        """The results of rows in another order, and in batches of many sizes."""
        choice = random.Random(seed)
        n_rows = len(next(iter(columns.values())))
        order = choice.sample(range(n_rows), n_rows)
        found: dict[str, list] = {}
        while order:
            some, order = order[: (size := choice.choice([1, 2, 7, 20]))], order[size:]
            for name, values in call({name: [column[n] for n in some] for name, column in columns.items()}).items():
                found.setdefault(name, [None] * n_rows)
                for n, value in zip(some, values, strict=True):
                    found[name][n] = value
        return found

    def test_texts_are_those_of_single_calls(self):
        model = demo()
        for options in [{"max_new_tokens": 6}, DRAWS]:
            call = batch(key="id", seed=3, **options)
            whole = call({"id": np.arange(60), "prompt": np.array(PROMPTS, object)})
            self.assertEqual(list(whole["id"]), list(range(60)))
            for seed in range(2):
                cut = self.cut(call, {"id": list(range(60)), "prompt": PROMPTS}, seed)
                self.assertEqual(cut["generated"], whole["generated"])
            if options is not DRAWS:
                single = [model.generate(prompt, **options) for prompt in PROMPTS]
                self.assertEqual(whole["generated"], [one.text for one in single])
                self.assertEqual(whole["n_tokens"], [len(one.tokens) for one in single])
                self.assertEqual(whole["finish_reason"], [one.finish_reason for one in single])

    def test_draws_depend_on_key_and_seed(self):
        same = {"id": [1, 2, 1, "1", b"1"], "prompt": ["A trait"] * 5}
        texts = batch(key="id", **DRAWS)(same)["generated"]
        self.assertEqual(texts[0], texts[2])
        self.assertEqual(len(set(texts)), 4)
        self.assertNotEqual(batch(key="id", seed=1, **DRAWS)(same)["generated"], texts)
        # Without a key the text is the key.
        texts = batch(**DRAWS)({"prompt": ["A trait", "A trait ", "A trait"]})["generated"]
        self.assertEqual(texts[0], texts[2])

    def test_other_quantisations_too(self):
        for quant in ["f32", "f16", "q4"]:
            call = batch(quant=quant, max_new_tokens=6)
            cut = self.cut(call, {"prompt": PROMPTS}, 5)
            self.assertEqual(cut["generated"], call({"prompt": PROMPTS})["generated"], quant)

    def test_answers(self):
        talks = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:12]]
        call = batch("chat", column="talk", max_new_tokens=6)
        cells = np.empty(12, object)
        for n, talk in enumerate(talks):
            # As tables have them: arrays of dicts, or text.
            cells[n] = np.array(talk, object) if n % 2 else json.dumps(talk)
        found = call({"talk": cells})
        single = [demo().chat(talk, max_new_tokens=6) for talk in talks]
        self.assertEqual(found["generated"], [one.text for one in single])
        self.assertEqual(found["thought"], [one.thought or "" for one in single])

    def test_vectors_and_scores(self):
        model = demo()
        for task, single in [("embed", model.embed), ("score", model.score)]:
            name = {"embed": "embedding", "score": "score"}[task]
            call = batch(task)
            found = self.cut(call, {"text": PROMPTS}, 1)[name]
            np.testing.assert_array_equal(np.array(found), np.array([single(prompt) for prompt in PROMPTS]))
            self.assertEqual(call({"text": []})[name].shape, np.array(found)[:0].shape)
        vectors = batch("embed", pooling="hidden-last", normalize=False)({"text": PROMPTS[:3]})["embedding"]
        np.testing.assert_array_equal(vectors, model.embed(PROMPTS[:3], "hidden-last", normalize=False))

    def test_rows_that_cannot_be_worked_on(self):
        prompts = ["A trait", "", None, 5, "A type", float("nan"), [10**6], [1, 2]]
        bad = [1, 2, 3, 5, 6]
        found = batch(errors="column", max_new_tokens=3)({"prompt": prompts, "id": list(range(8))})
        self.assertEqual([n for n, error in enumerate(found["error"]) if error], bad)
        for n, prompt in enumerate(prompts):
            if n in bad:
                self.assertEqual((found["generated"][n], found["n_tokens"][n]), ("", 0))
            else:
                self.assertEqual(found["generated"][n], demo().generate(prompt, max_new_tokens=3).text)
        self.assertIn("empty", found["error"][1])
        self.assertIn("expected a str", found["error"][2])
        for name, task in [("embedding", "embed"), ("score", "score")]:
            found = batch(task, errors="column")({"text": ["A trait", None, "A type"]})
            self.assertEqual(np.isnan(found[name]).reshape(3, -1).any(axis=1).tolist(), [False, True, False])
        talks = batch("chat", errors="column", max_new_tokens=2)({"messages": ["{", "[]", "[1]", [{"role": "user"}]]})
        self.assertTrue(all(talks["error"]))
        keys = batch(errors="column", key="id", max_new_tokens=2)({"prompt": ["A", "B"], "id": [1.5, 1]})
        self.assertIn("float", keys["error"][0])
        self.assertEqual(keys["error"][1], "")
        # Otherwise the batch fails, as the engine says it.
        for prompts, kind in [(["A", ""], rwkv_edge.Error), (["A", None], TypeError)]:
            with self.assertRaises(kind):
                batch()({"prompt": prompts})

    def test_empty_batches(self):
        found = batch(errors="column")({"prompt": []})
        self.assertEqual(found, {name: [] for name in ["prompt", "generated", "finish_reason", "n_tokens", "error"]})

    def test_arguments(self):
        for error, words, options in [
            (ValueError, "task", {"task": "write"}),
            (ValueError, "errors", {"errors": "ignore"}),
            (TypeError, "state", {"state": None}),
            (TypeError, "temprature", {"temprature": 1}),
            (rwkv_edge.Error, "top_p", {"top_p": 2.0}),
            (rwkv_edge.Error, "pooling|hidden", {"task": "embed", "pooling": "x"}),
        ]:
            with self.assertRaisesRegex(error, words):
                batch(**options)
        for columns in [{"text": ["A"]}, {"prompt": ["A"]}]:
            with self.assertRaisesRegex(KeyError, "no column"):
                batch(key="id")(columns)

    def test_it_pickles_as_its_arguments(self):
        call = batch(key="id", seed=9, **DRAWS)
        data = pickle.dumps(call)
        self.assertLess(len(data), 1000)
        columns = {"id": [1, 2], "prompt": PROMPTS[:2]}
        self.assertEqual(pickle.loads(data)(columns)["generated"], call(columns)["generated"])

    def test_threads_are_those_of_the_environment(self):
        program = f"""
import os
os.environ["OMP_NUM_THREADS"] = "1"
from rwkv_edge.batch import Batch
print(Batch({str(DEMO)!r}, quant="int8")._model.info["threads"])
import sys
Batch({str(DEMO)!r}, quant="int8", max_new_tokens=2)({{"prompt": ["A"]}})
print("numpy" in sys.modules)
"""
        done = run_python(program)
        # Texts need no numpy.
        self.assertEqual(done.stdout, "1\nFalse\n", done.stderr)
