"""Opening models and forward passes: against references, against the engine by its command, and against themselves."""

import threading
import time

import numpy as np
import rwkv_edge
from common import DEMO, GOLDEN, ROOT, TestCase, command_json, demo, expected, golden, run_python

NAMES = sorted(folder.name for folder in GOLDEN.iterdir())
TOKENS = list(range(1, 300, 7))


class References(TestCase):
    def test_logits(self):
        for name in NAMES:
            with self.subTest(name):
                reference = expected(name)
                logits, _ = golden(name).forward(reference["input_ids"], all=True)
                last = np.array(reference["logits_last"])
                np.testing.assert_allclose(logits[-1], last, rtol=0, atol=1e-4 * last.std())
                self.assertEqual(logits.argmax(axis=1).tolist(), reference["logits_argmax"])

    def test_states(self):
        for name in NAMES:
            with self.subTest(name):
                reference = expected(name)
                model = golden(name)
                _, state = model.forward(reference["input_ids"])
                numbers = state.to_numpy()
                side = model.info["head_size"]
                at = 0
                for part, length in model.info["state_parts"]:
                    of_reference = {"ffn_previous": "ffn_x", "att_previous": "att_x"}.get(part, part)
                    wanted = np.array(reference["state"][of_reference])
                    if part == "wkv" and "[value index][key index]" in reference["state_layout"]:
                        # States here have (key, value).
                        wanted = wanted.reshape(-1, side, side).transpose(0, 2, 1)
                    wanted = wanted.reshape(model.info["n_layer"], length)
                    found = numbers[:, at : at + length]
                    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * max(wanted.std(), 1e-3))
                    at += length
                self.assertEqual(at, numbers.shape[1])

    def test_the_engine_gives_the_same_logits(self):
        ids = ",".join(map(str, TOKENS))
        cases = [(DEMO, "int8"), (DEMO, "f16"), (DEMO, "q4"), (GOLDEN / "small-safetensors", "f32")]
        for path, quant in cases:
            with self.subTest(path.name, quant=quant):
                found, _ = rwkv_edge.Model(path, quant).forward(TOKENS, all=True)
                by_command = command_json("logits", "-m", path, "--quant", quant, "--tokens", ids, "--all", "--json")
                np.testing.assert_allclose(found, by_command["logits"], rtol=0, atol=1e-5)


class Forward(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = demo()

    def test_shapes_and_kinds(self):
        n_vocab = self.model.n_vocab
        one, state = self.model.forward([1])
        rows, _ = self.model.forward([1, 2, 3], all=True)
        none, _ = self.model.forward([], all=True)
        self.assertEqual((one.shape, rows.shape, none.shape), ((n_vocab,), (3, n_vocab), (0, n_vocab)))
        for array in (one, rows, none):
            self.assertEqual(array.dtype, np.float32)
            self.assertTrue(array.flags.writeable and array.flags.c_contiguous and array.flags.aligned)
        one[:] = 0
        self.assertEqual(state.n_tokens, 1)

    def test_the_state_is_moved_in_place(self):
        state = self.model.new_state()
        _, same = self.model.forward(TOKENS[:5], state)
        self.assertIs(same, state)
        self.assertEqual(state.n_tokens, 5)
        before = state.copy()
        self.model.forward(TOKENS[5:], state)
        self.assertEqual((before.n_tokens, state.n_tokens), (5, len(TOKENS)))
        again, _ = self.model.forward(TOKENS[5:], before)
        whole, _ = self.model.forward(TOKENS)
        np.testing.assert_array_equal(again, whole)
        np.testing.assert_array_equal(before.to_numpy(), state.to_numpy())

    def test_batches_give_what_single_sequences_do(self):
        sequences = [TOKENS[:1], TOKENS, TOKENS[3:9]]
        states = [None, self.model.new_state(), None]
        rows, given = self.model.forward_batch(sequences, states)
        each, _ = self.model.forward_batch(sequences, all=True)
        self.assertIs(given[1], states[1])
        self.assertEqual(rows.shape, (3, self.model.n_vocab))
        for sequence, row, all_rows, state in zip(sequences, rows, each, given, strict=True):
            alone, of_alone = self.model.forward(sequence, all=True)
            np.testing.assert_array_equal(row, alone[-1])
            np.testing.assert_array_equal(all_rows, alone)
            np.testing.assert_array_equal(state.to_numpy(), of_alone.to_numpy())
        empty, none = self.model.forward_batch([])
        self.assertEqual((empty.shape, none), ((0, self.model.n_vocab), []))

    def test_tokens_are_any_integers(self):
        wanted, _ = self.model.forward([5, 6])
        for tokens in [(5, 6), range(5, 7), np.array([5, 6]), np.array([5, 6], dtype=np.uint16)]:
            np.testing.assert_array_equal(self.model.forward(tokens)[0], wanted)
        for wrong in ["56", [5.0], np.array([5.0]), None, 5, [[5]]]:
            with self.assertRaises(TypeError):
                self.model.forward(wrong)

    def test_what_is_wrong_changes_nothing(self):
        state = self.model.forward([1, 2])[1]
        before = state.to_bytes()
        n_vocab = self.model.n_vocab
        self.assert_error("argument", f"id {n_vocab}", self.model.forward, [1, n_vocab], state)
        self.assert_error("argument", "token id", self.model.forward, [-1], state)
        self.assert_error("argument", "token id", self.model.forward, [2**40], state)
        self.assert_error("argument", "no tokens", self.model.forward, [], state)
        self.assert_error("argument", "in use", self.model.forward_batch, [[1], [2]], [state, state])
        self.assert_error("argument", "1 states for 2", self.model.forward_batch, [[1], [2]], [state])
        self.assert_error("state", "another model", golden("v7-pth").forward, [1], state)
        self.assertEqual(state.to_bytes(), before)

    def test_threads_share_a_model(self):
        wanted, _ = self.model.forward(TOKENS)
        found = []
        threads = [threading.Thread(target=lambda: found.append(self.model.forward(TOKENS)[0])) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.assertEqual(len(found), 8)
        for logits in found:
            np.testing.assert_array_equal(logits, wanted)

    def test_other_threads_run_meanwhile(self):
        # Longer than any sleep here. A thread that keeps the GIL lets no sleeper return before it is done.
        tokens = TOKENS * 60
        begun, done = threading.Event(), threading.Event()

        def read():
            begun.set()
            self.model.forward(tokens)
            done.set()

        thread = threading.Thread(target=read)
        thread.start()
        begun.wait()
        n_slept = 0
        while not done.is_set():
            time.sleep(0.001)
            n_slept += 1
        thread.join()
        self.assertGreater(n_slept, 5)


class Opening(TestCase):
    def test_facts(self):
        model = demo()
        info = model.info
        self.assertEqual((info["architecture"], info["quant"], info["threads"]), ("rwkv-7", "int8", 2))
        self.assertEqual(model.n_vocab, info["n_vocab"])
        self.assertEqual(model.new_state().size_bytes, info["state_bytes"])
        self.assertIn(model.end_of_text, info["ends_of_text"])
        self.assertIn("int8", repr(model))

    def test_what_cannot_be_opened(self):
        self.assert_error("io", "/no/such", rwkv_edge.Model, "/no/such/model")
        self.assert_error("format", "README", rwkv_edge.Model, ROOT / "README.md")
        self.assert_error("argument", "int8", rwkv_edge.Model, DEMO, quant="int9")
        self.assert_error("argument", "threads", rwkv_edge.Model, DEMO, threads=5000)
        self.assert_error("memory", "memory limit", rwkv_edge.Model, DEMO, max_memory=1 << 20)
        self.assert_error("io", "/no/such", rwkv_edge.Model, DEMO, tokenizer="/no/such/tokenizer.json")
        self.assert_error("tokenizer", "no tokenizer", lambda: golden("v7-pth").tokenizer)

    def test_a_model_within_a_limit(self):
        limited = demo(max_memory=40 << 20)
        np.testing.assert_array_equal(limited.forward(TOKENS)[0], demo().forward(TOKENS)[0])

    def test_texts_and_tokens(self):
        tokenizer = demo().tokenizer
        for text in ["Ownership is", "", "Größe, 世界\n", " \t x"]:
            self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)
        self.assertEqual(tokenizer.n_tokens, 4096)
        with self.assertRaises(TypeError):
            tokenizer.encode(5)

    def test_numpy_is_for_arrays_only(self):
        program = """
import sys
sys.modules["numpy"] = None
import rwkv_edge
model = rwkv_edge.Model(sys.argv[1], "int8")
assert len(model.generate("Ownership is", max_new_tokens=3).tokens) == 3
state = model.new_state()
try:
    model.forward([1], state)
except ImportError:
    print("no array,", state.n_tokens, "tokens")
"""
        done = run_python(program, DEMO)
        self.assertEqual(done.stdout, "no array, 0 tokens\n", done.stderr)
        program = "import rwkv_edge, sys; print('numpy' in sys.modules)"
        self.assertEqual(run_python(program).stdout, "False\n")
