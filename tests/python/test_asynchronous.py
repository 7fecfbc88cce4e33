"""Streams in event loops, which go on meanwhile."""

import asyncio

from common import DEMO, TestCase, demo, run_python

PROMPT = "Ownership is"
FOREVER = {"max_new_tokens": 10**9, "ignore_eos": True}


class Asynchronous(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = demo()

    def test_pieces_are_those_of_a_stream(self):
        messages = [{"role": "user", "content": "What is a trait?"}]

        async def collect(pieces):
            return [piece async for piece in pieces]

        async def both():
            options = {"max_new_tokens": 20}
            return await asyncio.gather(
                collect(self.model.astream(PROMPT, **options)), collect(self.model.chat_astream(messages, **options))
            )

        text, answer = asyncio.run(both())
        self.assertEqual(text, list(self.model.stream(PROMPT, max_new_tokens=20)))
        self.assertEqual(answer, list(self.model.chat_stream(messages, max_new_tokens=20)))

    def test_the_loop_goes_on_meanwhile(self):
        async def program():
            turns = 0
            done = asyncio.Event()

            async def count():
                nonlocal turns
                while not done.is_set():
                    turns += 1
                    await asyncio.sleep(0)

            counting = asyncio.create_task(count())
            # One pass over it is long beside a turn of the loop.
            async for _ in self.model.astream([1, 2, 3] * 400, max_new_tokens=1):
                done.set()
            done.set()
            await counting
            return turns

        self.assertGreater(asyncio.run(program()), 100)

    def test_a_task_that_is_cancelled_ends_its_thread(self):
        # A prompt that takes minutes, and a text without an end.
        for prompt in [[1] * 10**6, PROMPT]:
            state = self.model.new_state()

            async def program(prompt=prompt, state=state):
                pieces = self.model.astream(prompt, state=state, **FOREVER)
                task = asyncio.create_task(anext(pieces))
                await asyncio.sleep(0.3)
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
                    async for _ in pieces:
                        raise asyncio.CancelledError
                await pieces.aclose()

            # It waits for the threads of the loop.
            asyncio.run(program())
            n_read = state.n_tokens
            self.assertGreater(n_read, 0)
            self.assertLess(n_read, 10**6)

    def test_leaving_a_loop_ends_it(self):
        async def program():
            async for piece in self.model.astream(PROMPT, **FOREVER):
                return piece

        self.assertEqual(asyncio.run(program()), next(self.model.stream(PROMPT)))

    def test_wrong_arguments_are_told(self):
        async def program(**options):
            async for _ in self.model.astream(PROMPT, **options):
                pass

        self.assert_error("argument", "top_p", asyncio.run, program(top_p=2))
        with self.assertRaises(TypeError):
            asyncio.run(program(topp=2))

    def test_control_c(self):
        program = """
import asyncio, os, signal, sys, threading
import rwkv_edge
model = rwkv_edge.Model(sys.argv[1], "int8", threads=1)

async def talk():
    n = 0
    async for piece in model.astream("A", max_new_tokens=10**9, ignore_eos=True):
        n += 1
        if n == 3:
            os.kill(os.getpid(), signal.SIGINT)

try:
    asyncio.run(talk())
except KeyboardInterrupt:
    print("interrupted", len(model.generate("A", max_new_tokens=2).tokens))
"""
        done = run_python(program, DEMO)
        self.assertEqual((done.stdout, done.stderr), ("interrupted 2\n", ""))
