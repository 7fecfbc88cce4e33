"""States as values: copies, files, pickles, and what is refused of them."""

import copy
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rwkv_edge
from common import DEMO, ROOT, TestCase, demo, golden, run_command

TOKENS = [5, 6, 7, 8, 9, 500]


class State(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = demo()

    def setUp(self):
        self.logits, self.state = self.model.forward(TOKENS)
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def next_logits(self, state):
        return self.model.forward([10, 11], state.copy())[0]

    def test_copies_move_by_themselves(self):
        wanted = self.next_logits(self.state)
        for other in [self.state.copy(), copy.copy(self.state), copy.deepcopy(self.state)]:
            np.testing.assert_array_equal(self.next_logits(other), wanted)
            self.model.forward([1], other)
        np.testing.assert_array_equal(self.next_logits(self.state), wanted)

    def test_numbers(self):
        numbers = self.state.to_numpy()
        info = self.model.info
        per_layer = sum(length for _, length in info["state_parts"])
        self.assertEqual((numbers.shape, numbers.dtype), ((info["n_layer"], per_layer), np.float32))
        self.assertEqual(numbers.nbytes, self.state.size_bytes)
        # They are a copy.
        wanted = self.next_logits(self.state)
        numbers[:] = 0
        np.testing.assert_array_equal(self.next_logits(self.state), wanted)

    def test_reset_is_the_empty_state(self):
        self.state.reset()
        self.assertEqual(self.state.n_tokens, 0)
        np.testing.assert_array_equal(self.state.to_numpy(), rwkv_edge.State(self.model).to_numpy())

    def test_bytes(self):
        data = self.state.to_bytes()
        other = rwkv_edge.State(self.model, data)
        self.assertEqual((other.n_tokens, other.to_bytes()), (len(TOKENS), data))
        np.testing.assert_array_equal(self.next_logits(other), self.next_logits(self.state))
        # Another quantisation of the same checkpoint reads it, too.
        self.assertEqual(rwkv_edge.State(demo("f16"), data).n_tokens, len(TOKENS))

    def test_bytes_that_are_no_state_of_the_model(self):
        data = self.state.to_bytes()
        damaged = data[:100] + bytes([data[100] ^ 1]) + data[101:]
        for wrong, words in [
            (damaged, "checksum"),
            (data[:-1], "cut"),
            (data + b"x", "padded"),
            (b"", "not a saved state"),
            (b"x" * 100, "not a saved state"),
        ]:
            self.assert_error("state", words, rwkv_edge.State, self.model, wrong)
        self.assert_error("state", "expected", rwkv_edge.State, golden("v7-pth"), data)

    def test_files(self):
        path = self.folder / "a.state"
        self.state.save(path)
        other = self.model.new_state()
        self.assertIsNone(other.load(path))
        self.assertEqual(other.to_bytes(), self.state.to_bytes())
        self.state.save(str(path), self.logits)
        np.testing.assert_array_equal(other.load(str(path)), self.logits)
        self.assert_error("argument", "3 logits", self.state.save, path, [1.0, 2.0, 3.0])
        self.assert_error("state", "finite", self.state.save, path, np.full(self.model.n_vocab, np.nan))
        self.assert_error("io", "/no/such", self.state.save, "/no/such/folder/a.state")
        self.assert_error("io", "/no/such", other.load, "/no/such/a.state")
        self.assert_error("state", "not a saved state", other.load, ROOT / "README.md")
        self.assertEqual(other.to_bytes(), self.state.to_bytes())

    def test_the_command_and_the_module_read_each_others_files(self):
        path = self.folder / "a.state"
        logits, state = self.model.forward(self.model.tokenizer.encode("Ownership is"))
        state.save(path, logits)
        arguments = ["-m", DEMO, "--quant", "int8", "-n", "8", "--no-echo"]
        done = run_command("generate", *arguments, "--load-state", path, stdin=subprocess.DEVNULL)
        wanted = self.model.generate("Ownership is", max_new_tokens=8).text
        self.assertEqual((done.stdout, done.returncode), (wanted, 0), done.stderr)
        done = run_command("generate", *arguments, "--save-state", path, "Ownership is")
        self.assertEqual(done.returncode, 0, done.stderr)
        state = self.model.new_state()
        behind = self.model.new_state()
        self.model.generate("Ownership is", max_new_tokens=8, state=behind)
        self.assertEqual(state.load(path).shape, (self.model.n_vocab,))
        np.testing.assert_array_equal(state.to_numpy(), behind.to_numpy())

    def test_pickles(self):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            other = pickle.loads(pickle.dumps(self.state, protocol))
            again = pickle.loads(pickle.dumps(other, protocol)).copy()
            for state in (other, again):
                np.testing.assert_array_equal(self.next_logits(state), self.next_logits(self.state))

    def test_a_pickle_says_nothing_before_its_model_has_read_it(self):
        other = pickle.loads(pickle.dumps(self.state))
        for ask in [lambda: other.n_tokens, other.to_numpy, other.reset, lambda: other.save(self.folder / "x")]:
            self.assert_error("state", "no model has read it", ask)
        self.assertEqual(other.to_bytes(), self.state.to_bytes())
        self.model.forward([1], other)
        self.assertEqual(other.n_tokens, len(TOKENS) + 1)

    def test_damaged_and_foreign_pickles_are_refused_by_the_model(self):
        whole = pickle.dumps(self.state)
        at = whole.index(self.state.to_bytes()) + 200
        damaged = pickle.loads(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        self.assert_error("state", "checksum", self.model.forward, [1], damaged)
        self.assert_error("state", "checksum", self.model.generate, [1], state=damaged)
        foreign = pickle.loads(pickle.dumps(golden("v7-pth").new_state()))
        self.assert_error("state", "expected", self.model.forward, [1], foreign)

    def test_pickles_go_to_other_processes(self):
        path = self.folder / "a.pickle"
        path.write_bytes(pickle.dumps(self.state))
        program = """
import pickle, sys
state = pickle.load(open(sys.argv[1], "rb"))
import rwkv_edge
model = rwkv_edge.Model(sys.argv[2], "int8", threads=1)
print(model.generate([10], max_new_tokens=8, state=state).tokens, state.n_tokens)
"""
        done = subprocess.run(
            [sys.executable, "-c", program, path, DEMO], capture_output=True, text=True, timeout=60, check=False
        )
        tokens = self.model.generate([10], max_new_tokens=8, state=self.state).tokens
        self.assertEqual(done.stdout, f"{tokens} {self.state.n_tokens}\n", done.stderr)
