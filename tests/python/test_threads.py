"""Whatever computes lets other threads of Python run."""

import tempfile
import threading
import time
from pathlib import Path

import rwkv_edge
from common import DEMO, TestCase, demo

# Long beside a sleep.
TOKENS = [1, 2, 3] * 1000


class Threads(TestCase):
    def test_other_threads_run_in_every_pass(self):
        model = demo(threads=1)
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        messages = [{"role": "user", "content": "A trait is shared behaviour. " * 300}]
        long = {"max_new_tokens": 100, "ignore_eos": True}
        calls = {
            "forward": lambda: model.forward(TOKENS),
            "forward_batch": lambda: model.forward_batch([TOKENS, TOKENS[1:]]),
            "a prompt": lambda: model.generate(TOKENS, max_new_tokens=1),
            "generate": lambda: model.generate("A", **long),
            "stream": lambda: list(model.stream("A", **long)),
            "chat": lambda: model.chat(messages, max_new_tokens=1),
            "chat_stream": lambda: next(model.chat_stream(messages)),
            "embed": lambda: model.embed(TOKENS),
            "score": lambda: model.score(TOKENS),
            "perplexity": lambda: rwkv_edge.perplexity(model, TOKENS),
            "opening": lambda: demo("q4", threads=1),
            "quantize": lambda: rwkv_edge.quantize(DEMO, folder / "x", "q4", threads=1),
            "convert": lambda: rwkv_edge.convert(DEMO, folder, to="raw", dtype="f32"),
        }
        for name, call in calls.items():
            with self.subTest(name):
                # A thread that keeps the GIL lets no sleeper return before it is done.
                thread = threading.Thread(target=call)
                thread.start()
                n_slept = 0
                while thread.is_alive():
                    time.sleep(0.001)
                    n_slept += 1
                self.assertGreater(n_slept, 5)
