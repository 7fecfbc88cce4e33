"""Texts: against the command, against each other, whole and piece by piece, and what ends them."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import DEMO, TestCase, command_json, demo, expected, golden

PROMPTS = ["Ownership is", "A trait is", "fn main() {", "The borrow checker"]


def by_command(prompt: str, *arguments) -> dict:
    return command_json("generate", "-m", DEMO, "--quant", "int8", "--json", *arguments, prompt)


class Generate(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = demo()

    def test_the_command_gives_the_same(self):
        penalties = {"presence_penalty": 0.2, "frequency_penalty": 0.3, "penalty_decay": 0.99, "repetition_penalty": 1.1}
        cases = [
            {},
            {"max_new_tokens": 0},
            {"stop": "rules"},
            {"stop": ["\n\n", "owner"]},
            {"bos": True, "max_new_tokens": 9},
            {"temperature": 1.0, "top_p": 0.8, "seed": 7},
            {"temperature": 1.3, "top_k": 30, "min_p": 0.02, "typical_p": 0.9, "seed": 2**63},
            {"temperature": 1.0, "mirostat_tau": 4.0, "mirostat_eta": 0.2, "seed": 0},
            {"temperature": 0.7, "temperature_last": True, "top_p": 0.5, "seed": 3, **penalties},
            {"ban_token": [200, 201], **penalties},
            {"preset": "precise", "seed": 2},
            {"preset": "pip", "seed": 3, "max_new_tokens": 40},
            {"preset": "creative", "temperature": 0.7, "presence_penalty": 0, "seed": 4},
        ]
        for options in cases:
            with self.subTest(options):
                arguments = []
                for name, value in options.items():
                    option = "--" + name.replace("_", "-")
                    if isinstance(value, bool):
                        arguments.append(option)
                    elif isinstance(value, list):
                        arguments += [item for one in value for item in (option, str(one))]
                    else:
                        arguments += [option, str(value)]
                wanted = by_command(PROMPTS[0], *arguments)
                if "ban_token" in options:
                    options = {**options, "banned_tokens": options["ban_token"]}
                    del options["ban_token"]
                found = self.model.generate(PROMPTS[0], **options)
                self.assertEqual((found.text, found.tokens), (wanted["text"], wanted["tokens"]))
                self.assertEqual(found.finish_reason, wanted["ending"])

    def test_references_go_on_in_the_same_way(self):
        for name in ["small-safetensors", "v5-pth", "v6-pth", "v7-pth"]:
            reference = expected(name)
            ids, n = reference["greedy_ids"], reference["greedy_prompt_len"]
            found = golden(name).generate(ids[:n], max_new_tokens=len(ids) - n, ignore_eos=True)
            self.assertEqual((found.tokens, found.text), (ids[n:], None), name)

    def test_a_list_gives_what_single_prompts_do(self):
        # More than go through one pass, of many lengths.
        prompts = [prompt * (1 + n % 3) for n, prompt in enumerate(PROMPTS * 40)]
        found = self.model.generate(prompts, max_new_tokens=6)
        single = {prompt: self.model.generate(prompt, max_new_tokens=6).text for prompt in set(prompts)}
        self.assertEqual([one.text for one in found], [single[prompt] for prompt in prompts])
        self.assertEqual(self.model.generate([]), [])
        ids = [self.model.tokenizer.encode(prompt) for prompt in PROMPTS]
        by_ids = self.model.generate([np.array(ids[0]), *ids[1:]], max_new_tokens=6)
        self.assertEqual([one.text for one in by_ids], [one.text for one in found[:1]] + [single[p] for p in PROMPTS[1:]])

    def test_wrong_ids_are_told_before_anything_moves(self):
        state, wrong = self.model.new_state(), self.model.n_vocab
        generate = self.model.generate
        self.assert_error("argument", "prompt, token 2000: id", generate, [1] * 2000 + [wrong], state=state)
        self.assertEqual(state.n_tokens, 0)
        states = [self.model.new_state(), state]
        self.assert_error("argument", "prompt 1, token 1: id", generate, [[1], [1, wrong]], state=states)
        self.assert_error("argument", "prompt 1 is empty", generate, ["A", ""], state=states)
        self.assertEqual([one.n_tokens for one in states], [0, 0])

    def test_bytes_and_what_has_no_order_are_no_prompts(self):
        for wrong in [b"A", bytearray(b"A"), {1: 2}, {1}, frozenset([1])]:
            for call in [self.model.generate, self.model.stream, self.model.forward, self.model.score]:
                with self.assertRaisesRegex(TypeError, f"{type(wrong).__name__}, expected .*token ids"):
                    call(wrong)

    def test_logprobs_by_bool(self):
        self.assertIsNone(self.model.generate("A", max_new_tokens=1, logprobs=False).logprobs)
        for n, asked in enumerate([0, True]):
            (one,) = self.model.generate("A", max_new_tokens=1, logprobs=asked).logprobs
            self.assertEqual(len(one.top), n)

    def test_draws_of_a_list_have_seeds_of_their_own(self):
        options = {"temperature": 1.0, "max_new_tokens": 8}
        found = self.model.generate([PROMPTS[0]] * 3, seed=5, **options)
        single = [self.model.generate(PROMPTS[0], seed=5 + n, **options) for n in range(3)]
        self.assertEqual([one.tokens for one in found], [one.tokens for one in single])
        self.assertEqual(len({tuple(one.tokens) for one in found}), 3)
        # Whatever stands beside it.
        mixed = self.model.generate([PROMPTS[1], PROMPTS[0], PROMPTS[2]], seed=[2**64 - 1, 6, 0], **options)
        self.assertEqual(mixed[1].tokens, found[1].tokens)
        without = {tuple(self.model.generate(PROMPTS[0], **options).tokens) for _ in range(4)}
        self.assertGreater(len(without), 1)

    def test_the_end_of_text(self):
        end = self.model.end_of_text
        everything_else = [token for token in range(self.model.n_vocab) if token != end]
        found = self.model.generate("A", banned_tokens=everything_else)
        self.assertEqual((found.text, found.tokens, found.finish_reason), ("", [], "end_of_text"))
        found = self.model.generate("A", banned_tokens=everything_else, ignore_eos=True, max_new_tokens=3)
        self.assertEqual((found.text, found.tokens, found.finish_reason), ("", [end] * 3, "length"))

    def test_a_state_goes_on_behind_all_that_was_generated(self):
        for stop in [None, "rules"]:
            state = self.model.new_state()
            first = self.model.generate(PROMPTS[0], max_new_tokens=12, state=state, stop=stop)
            prompt = self.model.tokenizer.encode(PROMPTS[0])
            self.assertEqual(state.n_tokens, len(prompt) + len(first.tokens))
            _, by_hand = self.model.forward(prompt + first.tokens)
            np.testing.assert_array_equal(state.to_numpy(), by_hand.to_numpy())
            more = self.model.generate(" and", max_new_tokens=5, state=state)
            and_more = self.model.generate(" and", max_new_tokens=5, state=by_hand)
            self.assertEqual(more.tokens, and_more.tokens)
        only_read = self.model.new_state()
        self.assertEqual(self.model.generate([1, 2, 3], max_new_tokens=0, state=only_read).tokens, [])
        self.assertEqual(only_read.n_tokens, 3)

    def test_states_of_a_list_are_moved_as_those_of_single_prompts(self):
        # More than move together, and of different lengths.
        prompts = [PROMPTS[n % 3] * (1 + n % 2) for n in range(150)]
        states = [self.model.forward([5 + n])[1] for n in range(150)]
        singly = [state.copy() for state in states]
        found = self.model.generate(prompts, state=states, max_new_tokens=5)
        for prompt, state, moved, one in list(zip(prompts, singly, states, found))[::7]:
            self.assertEqual(one.tokens, self.model.generate(prompt, state=state, max_new_tokens=5).tokens)
            np.testing.assert_array_equal(moved.to_numpy(), state.to_numpy())
        self.assert_error("argument", "twice", self.model.generate, ["A", "B"], state=[states[0]] * 2)

    def test_logprobs_are_those_of_the_logits(self):
        options = {"max_new_tokens": 12, "temperature": 1.5, "top_p": 0.9, "presence_penalty": 1.0, "seed": 3}
        plain = self.model.generate(PROMPTS[0], **options)
        self.assertIsNone(plain.logprobs)
        found = self.model.generate(PROMPTS[0], logprobs=3, **options)
        self.assertEqual(found.tokens, plain.tokens)
        prompt = self.model.tokenizer.encode(PROMPTS[0])
        rows = self.model.forward(prompt + found.tokens, all=True)[0][len(prompt) - 1 : -1].astype(np.float64)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        self.assertEqual([one.token for one in found.logprobs], found.tokens)
        for row, one in zip(rows, found.logprobs, strict=True):
            self.assertAlmostEqual(one.logprob, row[one.token], places=5)
            self.assertEqual(list(one.top), np.argsort(-row, kind="stable")[:3].tolist())
            np.testing.assert_allclose(list(one.top.values()), np.sort(row)[::-1][:3], rtol=0, atol=1e-5)
        several = self.model.generate(PROMPTS, logprobs=0, max_new_tokens=5)
        # Without them the passes name the likeliest tokens themselves.
        self.assertEqual(
            [one.tokens for one in several], [one.tokens for one in self.model.generate(PROMPTS, max_new_tokens=5)]
        )
        self.assertEqual([len(one.logprobs) for one in several], [5] * len(PROMPTS))
        self.assertEqual({len(one.top) for result in several for one in result.logprobs}, {0})
        stream = self.model.stream(PROMPTS[0], logprobs=3, **options)
        list(stream)
        same = [one.logprob for one in stream.logprobs]
        self.assertEqual(same, [one.logprob for one in found.logprobs])
        self.assertIsNone(self.model.stream("A").logprobs)
        answer = self.model.chat([{"role": "user", "content": "Hi"}], logprobs=1, max_new_tokens=5)
        self.assertEqual([list(one.top)[0] for one in answer.logprobs][1:], answer.tokens[1:])

    def test_what_makes_no_sense(self):
        generate = self.model.generate
        self.assert_error("argument", "empty", generate, "")
        self.assert_error("argument", "empty", generate, ["A", ""])
        self.assert_error("argument", "top_p", generate, "A", top_p=1.5)
        self.assert_error("argument", "top_k", generate, "A", top_k=-1)
        self.assert_error("argument", "max_new_tokens", generate, "A", max_new_tokens=-1)
        self.assert_error("argument", "stop text", generate, "A", stop="")
        self.assert_error("argument", "banned_tokens", generate, "A", banned_tokens=[10**6])
        self.assert_error("argument", "state: found 1", generate, ["A", "B"], state=self.model.new_state())
        self.assert_error("argument", "seed: found 2", generate, ["A"], seed=[1, 2])
        self.assert_error("argument", "seed: found 0", generate, "A", seed=[])
        self.assert_error("argument", "expected one", self.model.stream, ["A", "B"])
        self.assert_error("argument", "top_p", self.model.stream, "A", top_p=1.5)
        self.assert_error("argument", "expected one of pip, chat", generate, "A", preset="x")
        self.assert_error("argument", "logprobs", generate, "A", logprobs=-1)
        self.assert_error("tokenizer", "no tokenizer", golden("v7-pth").generate, "A")
        self.assert_error("tokenizer", "no tokenizer", golden("v7-pth").generate, [1], stop="x")
        for name, value in [("temprature", 1), ("temperature", "hot"), ("stop", 5), ("state", 5), ("bos", "yes")]:
            with self.assertRaisesRegex(TypeError, name):
                generate("A", **{name: value})
        for prompt in [5, None, [None], [1.5]]:
            with self.assertRaises(TypeError):
                generate(prompt)

    def test_results_show_themselves(self):
        found = self.model.generate(PROMPTS[0], max_new_tokens=4)
        self.assertEqual(str(found), found.text)
        self.assertIn("4 tokens", repr(found))


class Stream(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = demo()

    def test_pieces_are_the_whole(self):
        for options in [{}, {"stop": "rules"}, {"temperature": 1.5, "seed": 4}, {"max_new_tokens": 0}]:
            with self.subTest(options):
                options = {"max_new_tokens": 40, **options}
                whole = self.model.generate(PROMPTS[0], **options)
                stream = self.model.stream(PROMPTS[0], **options)
                self.assertIsNone(stream.finish_reason if options["max_new_tokens"] else None)
                pieces = list(stream)
                self.assertEqual("".join(pieces), whole.text)
                self.assertNotIn("", pieces)
                self.assertEqual((stream.tokens, stream.finish_reason), (whole.tokens, whole.finish_reason))
                self.assertEqual(list(stream), [])

    def test_nothing_is_computed_in_advance(self):
        state = self.model.new_state()
        stream = self.model.stream(PROMPTS[0], state=state)
        self.assertEqual(state.n_tokens, 0)
        next(stream)
        self.assertEqual((len(stream.tokens), state.n_tokens), (1, len(self.model.tokenizer.encode(PROMPTS[0]))))

    def test_a_stream_outlives_its_model(self):
        wanted = self.model.generate(PROMPTS[0], max_new_tokens=5).text
        stream = demo().stream(PROMPTS[0], max_new_tokens=5)
        self.assertEqual("".join(stream), wanted)

    def test_ids_alone_have_no_pieces(self):
        self.assert_error("tokenizer", "no tokenizer", golden("v7-pth").stream, [1])


    def test_closed_streams_end(self):
        stream = self.model.stream(PROMPTS[0], max_new_tokens=100)
        begin = [next(stream), next(stream)]
        stream.close()
        self.assertEqual(list(stream), [])
        self.assertEqual((len(stream.tokens), len(begin), stream.finish_reason), (2, 2, None))


class Interrupted(TestCase):
    # More tokens than there is time for.
    PROGRAM = """
import sys
import rwkv_edge
model = rwkv_edge.Model(sys.argv[1], "int8", threads=1)
messages = [{"role": "user", "content": "What is a trait?"}]
try:
    print("begun", flush=True)
    if sys.argv[2] == "generate":
        model.generate("A", max_new_tokens=10**9, ignore_eos=True)
    elif sys.argv[2] == "stream":
        list(model.stream("A", max_new_tokens=10**9, ignore_eos=True))
    elif sys.argv[2] == "prompt":
        model.generate([1] * 10**7, max_new_tokens=1)
    elif sys.argv[2] == "embed":
        model.embed([[1] * 10**5] * 1000)
    elif sys.argv[2] == "chat":
        model.chat(messages, max_new_tokens=10**9, ignore_eos=True, template="world", think="on")
    elif sys.argv[2] == "chat_stream":
        list(model.chat_stream(messages, max_new_tokens=10**9, ignore_eos=True, template="world", think="on"))
    elif sys.argv[2] == "perplexity":
        rwkv_edge.perplexity(model, [1] * 10**7)
    elif sys.argv[2] == "quantize":
        rwkv_edge.quantize(sys.argv[1], sys.argv[3], "q4", calibrate=[1] * 10**5, calibrate_tokens=10**5)
    elif sys.argv[2] == "long score":
        model.score([1] * 10**7)
    else:
        model.score([[1] * 50] * 10**6)
except KeyboardInterrupt:
    print("interrupted", len(model.generate("A", max_new_tokens=2).tokens))
"""

    def test_control_c(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        functions = ["generate", "stream", "prompt", "chat", "chat_stream", "embed", "score", "long score"]
        for what in [*functions, "perplexity", "quantize"]:
            with self.subTest(what):
                program = subprocess.Popen(
                    [sys.executable, "-c", self.PROGRAM, DEMO, what, Path(folder) / "x"],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                self.assertEqual(program.stdout.readline(), "begun\n")
                # Wherever it is by now: there are signals in front of the first pass, too.
                program.send_signal(signal.SIGINT)
                self.assertEqual(program.communicate(timeout=60)[0], "interrupted 2\n")
        self.assertEqual(os.listdir(folder), [])
