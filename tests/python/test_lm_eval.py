"""lm-evaluation-harness as it is released: what its class for transformers answers on the same checkpoint, and what
several requests share is read once."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import ROOT, TestCase

# Before the harness looks: nothing is fetched, and nothing stays.
CACHE = tempfile.TemporaryDirectory()
OFFLINE = {"HF_HOME": CACHE.name, "HF_HUB_OFFLINE": "1"}
os.environ.update(OFFLINE)

import lm_eval  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from rwkv_edge.lm_eval import RwkvEdge  # noqa: E402
from rwkv_edge.lm_eval.prefixes import log_likelihoods, states_behind  # noqa: E402

TASKS = ROOT / "tests/python/lm_eval"
DEMO4 = ROOT / "tests/fixtures/demo4"
EXPECTED = json.loads((TASKS / "expected.json").read_text())


def instances(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


class Harness(TestCase):
    @classmethod
    def setUpClass(cls):
        before = os.getcwd()
        os.chdir(TASKS)
        try:
            cls.found = lm_eval.simple_evaluate(
                model="rwkv-edge",
                model_args={"pretrained": str(DEMO4), "quant": "f32", "threads": 2},
                tasks=sorted(name for name in EXPECTED if name != "source"),
                task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
                log_samples=True,
                bootstrap_iters=0,
            )
        finally:
            os.chdir(before)

    def answers(self, task: str) -> list:
        samples = sorted(self.found["samples"][task], key=lambda sample: sample["doc_id"])
        return [[answer[0] for answer in sample["resps"]] for sample in samples]

    def test_likelihoods_are_those_of_transformers(self):
        for task, n_documents in [("edge_last_word", 24), ("edge_choice", 20)]:
            found, expected = self.answers(task), EXPECTED[task]["answers"]
            self.assertEqual(len(found), n_documents)
            for one, other in zip(found, expected, strict=True):
                for (sum_found, is_greedy), (sum_expected, was_greedy) in zip(one, other, strict=True):
                    self.assertAlmostEqual(sum_found, sum_expected, delta=2e-3)
                    self.assertEqual(is_greedy, was_greedy)
        # Not all the same.
        all_greedy = {is_greedy for document in self.answers("edge_last_word") for _, is_greedy in document}
        self.assertEqual(all_greedy, {True, False})

    def test_likelihoods_of_whole_passages(self):
        found, expected = self.answers("edge_perplexity"), EXPECTED["edge_perplexity"]["answers"]
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-5)

    def test_texts_are_those_of_transformers(self):
        found = self.answers("edge_continue")
        self.assertEqual(found, EXPECTED["edge_continue"]["answers"])
        self.assertGreater(len({text for (text,) in found}), 12)

    def test_results_are_those_of_transformers(self):
        for task, facts in EXPECTED.items():
            for name, value in facts["results"].items() if task != "source" else ():
                found = self.found["results"][task][name]
                np.testing.assert_allclose(found, value, rtol=1e-4, err_msg=f"{task} {name}")

    def test_its_command(self):
        command = [sys.executable, "-m", "rwkv_edge.lm_eval", "run", "--model", "rwkv-edge"]
        command += ["--model_args", f"pretrained={DEMO4},quant=f32,threads=1", "--tasks", "edge_last_word"]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [*command, "--include_path", str(TASKS), "--output_path", folder],
                cwd=TASKS, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **OFFLINE},
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            (written,) = Path(folder).rglob("results*.json")
            results = json.loads(written.read_text())["results"]
        expected = EXPECTED["edge_last_word"]["results"]["acc,none"]
        self.assertAlmostEqual(results["edge_last_word"]["acc,none"], expected)


class Requests(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lm = RwkvEdge(str(ROOT / "cli/demo"), quant="int8", threads=2)
        cls.model = cls.lm.model

    def by_hand(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        rows = self.model.forward(context + continuation[:-1], all=True)[0][len(context) - 1 :].astype(np.float64)
        terms = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        total = sum(terms[row, token] for row, token in enumerate(continuation))
        return total, bool((rows.argmax(axis=1) == continuation).all())

    def test_what_requests_share_is_read_once(self):
        text = self.model.tokenizer.encode("Ownership is a set of rules that govern how a Rust program manages memory.")
        long = list(range(2, 400))
        pairs = [(text, [5]), (text, [5, 6, 7]), (text, [5, 6, 8]), (text[:4], text[4:]), (text, [5]), (text, [])]
        pairs += [(text + [9], [1]), (long, long * 20), ([7], [8])]
        n_read = []
        found = log_likelihoods(self.model, pairs, n_read.append)
        for (context, continuation), (total, is_greedy) in zip(pairs, found):
            expected = self.by_hand(context, continuation) if continuation else (0.0, True)
            self.assertAlmostEqual(total, expected[0], delta=1e-6 * (1 + abs(expected[0])))
            self.assertEqual(is_greedy, expected[1])
        # The text, 5 and 6 behind it, 9 behind it; the long ones; and 7. What comes last is asked for, and not read.
        self.assertEqual(sum(n_read), len(text) + 2 + 1 + 21 * len(long) - 1 + 1)

    def test_states_behind_texts(self):
        texts = [[], [1, 2, 3], [1, 2], [1, 2, 3], [4]]
        for tokens, state in zip(texts, states_behind(self.model, texts, lambda _n: None), strict=True):
            alone = self.model.forward(tokens)[1] if tokens else self.model.new_state()
            np.testing.assert_array_equal(state.to_numpy(), alone.to_numpy())
            # Each is one of its own.
            self.model.forward([5], state)

    def test_contexts_that_are_empty_or_spaces(self):
        encode, end = self.model.tokenizer.encode, self.model.end_of_text
        cases = [("", " Rust", [end], encode(" Rust")), ("  ", "x", [end], encode("  x"))]
        cases += [("A trait ", "is", encode("A trait"), encode("A trait is")[len(encode("A trait")) :])]
        found = self.lm.loglikelihood(instances("loglikelihood", *[case[:2] for case in cases]), disable_tqdm=True)
        for (_, _, context, continuation), (total, _) in zip(cases, found, strict=True):
            self.assertAlmostEqual(total, self.by_hand(context, continuation)[0], places=4)

    def test_a_length_that_other_models_have(self):
        short = RwkvEdge(str(ROOT / "cli/demo"), quant="int8", threads=2, max_length=8)
        context, words = "The borrow checker is a part of the compiler that checks", " references"
        ((total, _),) = short.loglikelihood(instances("loglikelihood", (context, words)), disable_tqdm=True)
        tokens, asked = self.model.tokenizer.encode(context), self.model.tokenizer.encode(words)
        self.assertAlmostEqual(total, self.by_hand(tokens[-(9 - len(asked)) :], asked)[0], places=4)
        (rolled,) = short.loglikelihood_rolling(instances("loglikelihood_rolling", (context,)), disable_tqdm=True)
        (whole,) = self.lm.loglikelihood_rolling(instances("loglikelihood_rolling", (context,)), disable_tqdm=True)
        self.assertNotAlmostEqual(rolled, whole, places=2)
        self.assertAlmostEqual(whole, self.model.score(context, bos=True), places=3)

    def test_texts(self):
        prompts = ["Ownership is", "Ownership is a", "", "The borrow checker"]
        given = [(prompt, {"until": ["."], "max_gen_toks": 8}) for prompt in prompts]
        given += [(prompts[0], {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0})] * 2
        given += [(prompts[0], {"until": "\n\n", "max_new_tokens": 3, "top_p": 0.5})]
        found = self.lm.generate_until(instances("generate_until", *given), disable_tqdm=True)
        for prompt, text in zip(prompts, found):
            tokens = self.model.tokenizer.encode(prompt) or [self.model.end_of_text]
            self.assertEqual(text, self.model.generate(tokens, stop=".", max_new_tokens=8).text)
        for number in (4, 5):
            alone = self.model.generate(prompts[0], temperature=1.0, max_new_tokens=8, seed=number)
            self.assertEqual(found[number], alone.text)
        self.assertNotEqual(found[4], found[5])
        self.assertEqual(found[6], self.model.generate(prompts[0], max_new_tokens=3).text)
        with self.assertRaisesRegex(ValueError, "num_beams"):
            self.lm.generate_until(instances("generate_until", ("A", {"num_beams": 4})), disable_tqdm=True)

    def test_the_cache_is_told(self):
        told = []
        hook = type("Hook", (), {"add_partial": lambda _self, *given: told.append(given)})()
        lm = RwkvEdge(str(ROOT / "cli/demo"), quant="int8", threads=2)
        lm.set_cache_hook(hook)
        lm.loglikelihood(instances("loglikelihood", ("A", " B")), disable_tqdm=True)
        lm.generate_until(instances("generate_until", ("A", {"max_gen_toks": 1})), disable_tqdm=True)
        lm.loglikelihood_rolling(instances("loglikelihood_rolling", ("A B",)), disable_tqdm=True)
        self.assertEqual([(kind, given) for kind, given, _ in told], [
            ("loglikelihood", ("A", " B")),
            ("generate_until", ("A", {"max_gen_toks": 1})),
            ("loglikelihood_rolling", ("A B",)),
        ])
