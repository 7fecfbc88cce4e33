"""Ray Serve: two replicas of the OpenAI server, conversations that move between them, and what is killed."""

import json
import unittest
import urllib.error
import urllib.request

from cluster import ClusterTest, kill, processes, wait_until
from openai import OpenAI
from ray import serve
from rwkv_edge.ray_serve import app

ADDRESS = "http://127.0.0.1:8000"
TEXT = "Ownership is the most distinctive feature of Rust, and it has deep implications for the rest of the language. "


def servers() -> dict[int, str]:
    return processes("_command", "serve", "--listen=127.0.0.1:0")


class Served(ClusterTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        states = cls.folder / "states"
        given = {"model": f"demo={cls.model}", "replicas": "2", "parallel": "2"}
        given |= {"state_dir": str(states), "state_memory": "64M"}
        serve.run(app(given), name="llm")
        cls.addClassCleanup(serve.shutdown)
        cls.client = OpenAI(base_url=f"{ADDRESS}/v1", api_key="none", max_retries=8)

    def setUp(self):
        wait_until(lambda: len(servers()) == 2 and self.status() == {"RUNNING": 2})

    @staticmethod
    def status() -> dict[str, int]:
        return dict(serve.status().applications["llm"].deployments["rwkv-edge"].replica_states)

    def ask(self, messages: list[dict], **more):
        """The replica, and its answer."""
        options = {"max_tokens": 8, "temperature": 0, **more}
        raw = self.client.chat.completions.with_raw_response.create(model="demo", messages=messages, **options)
        return raw.headers["x-replica"], raw.parse()

    def elsewhere(self, replica: str, messages: list[dict], **more):
        """The other replica, and its answer: the router prefers that of its own node, until it has enough to do."""
        endless = {"prompt": "Ownership is", "max_tokens": 100_000, "stream": True, "extra_body": {"ignore_eos": True}}
        streams = []
        try:
            for _ in range(5):
                name, answer = self.ask(messages, **more)
                if name != replica:
                    return name, answer
                streams.append(self.client.completions.create(model="demo", **endless))
                next(iter(streams[-1]))
        finally:
            for stream in streams:
                stream.close()
        raise AssertionError("one replica answers everything")

    def talk(self, name: str) -> list[dict]:
        return [{"role": "user", "content": f"{TEXT * 4} What does {name} say of it?"}]

    def test_a_stream_is_the_same_text(self):
        _, whole = self.ask(self.talk("the book"))
        options = {"max_tokens": 8, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        events = list(self.client.chat.completions.create(model="demo", messages=self.talk("the book"), **options))
        pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
        self.assertEqual("".join(pieces), whole.choices[0].message.content)
        self.assertGreater(len(list(filter(None, pieces))), 3)
        self.assertEqual(events[-1].usage.completion_tokens, whole.usage.completion_tokens)

    def test_streams_come_piece_by_piece(self):
        body = {"prompt": "Ownership is", "max_tokens": 100_000, "stream": True, "ignore_eos": True}
        request = urllib.request.Request(
            f"{ADDRESS}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            for _ in range(3):
                self.assertTrue(response.readline().startswith(b"data: {"))
                response.readline()
        # Who goes ends its answer: the next one is not behind 100,000 tokens.
        wait_until(lambda: self.metric("rwkv_edge_sequences_running") == 0)

    def metric(self, name: str) -> float:
        """The largest of both replicas, as far as they happen to be asked."""
        found = []
        for _ in range(12):
            with urllib.request.urlopen(f"{ADDRESS}/metrics", timeout=60) as response:
                lines = response.read().decode().splitlines()
            found += [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{")]
        return max(found)

    def test_a_conversation_goes_on_at_the_other_replica(self):
        for turn in range(4):
            talk = self.talk(f"turn {turn}")
            first, answer = self.ask(talk)
            said = {"role": "assistant", "content": answer.choices[0].message.content}
            longer = [*talk, said, {"role": "user", "content": "Why?"}]
            _, again = self.elsewhere(first, longer)
            usage = again.usage
            n_new = usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens
            self.assertGreater(usage.prompt_tokens, 80)
            self.assertLess(n_new, 24, usage)
            # As if one server had it all.
            _, here = self.ask(longer)
            self.assertEqual(here.choices[0].message.content, again.choices[0].message.content)

    def test_a_session_goes_on_at_the_other_replica(self):
        replica, _ = self.ask(self.talk("a session"), extra_body={"session": "ann"})
        for _ in range(4):
            turn = [{"role": "user", "content": "And then?"}]
            replica, answer = self.elsewhere(replica, turn, extra_body={"session": "ann"})
            self.assertLess(answer.usage.prompt_tokens, 24)

    def test_errors_are_those_of_the_server(self):
        for path, body, status in [("/v1/completions", b"{", 400), ("/v1/nothing", None, 404)]:
            request = urllib.request.Request(ADDRESS + path, body)
            with self.assertRaises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=60)
            self.assertEqual(caught.exception.code, status)
            self.assertIn("message", json.loads(caught.exception.read())["error"])

    def test_what_is_killed_is_replaced(self):
        talk = self.talk("a killed replica")
        _, answer = self.ask(talk)
        longer = [*talk, {"role": "assistant", "content": answer.choices[0].message.content},
                  {"role": "user", "content": "Why?"}]
        expected = self.ask(longer)[1].choices[0].message.content
        for words in [("_command", "serve"), ("ray::", "ServeReplica", "rwkv-edge")]:
            with self.subTest(words):
                before = set(servers())
                of_them = processes(*words)
                self.assertEqual(len(of_them), 2)
                kill(min(of_them))
                # The other one answers meanwhile; the client asks again where it met the one that is gone.
                for _ in range(10):
                    _, again = self.ask(longer)
                    self.assertEqual(again.choices[0].message.content, expected)
                wait_until(lambda: len(servers()) == 2 and set(servers()) != before)
                wait_until(lambda: self.status() == {"RUNNING": 2})


class Arguments(unittest.TestCase):
    def test_what_is_missing_or_wrong(self):
        for given in [{}, {"model": "a", "listen": "0.0.0.0:1"}]:
            with self.assertRaisesRegex(ValueError, "expected model"):
                app(given)
