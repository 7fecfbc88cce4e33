"""Conversations that live in the server: by name, after a restart, a thousand of them."""

import os
import random
import tempfile
import threading
import unittest

from server import Server

TEXT = "Ownership is the most distinctive feature of Rust, and it has deep implications."
# kill -9 so many times; the goal's 100 take ten minutes.
N_KILLS = int(os.environ.get("RWKV_EDGE_TEST_KILLS", "5"))
N_SESSIONS = int(os.environ.get("RWKV_EDGE_TEST_SESSIONS", "1000"))


def turn(server, text, session=None, **more):
    more.setdefault("max_tokens", 8)
    more.setdefault("temperature", 0)
    if session is not None:
        more["session"] = session
    messages = [{"role": "user", "content": text}]
    status, answer = server.post("/v1/chat/completions", model="demo", messages=messages, **more)
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"], answer["usage"]


class Sessions(unittest.TestCase):
    def test_only_what_is_new_is_sent(self):
        with Server() as server:
            first, _ = turn(server, TEXT, "a")
            second, usage = turn(server, "And then?", "a")
            self.assertLess(usage["prompt_tokens"], 24)
            messages = [
                {"role": "user", "content": TEXT},
                {"role": "assistant", "content": first},
                {"role": "user", "content": "And then?"},
            ]
            _, resent = server.post(
                "/v1/chat/completions", model="demo", messages=messages, max_tokens=8, temperature=0)
            self.assertEqual(resent["choices"][0]["message"]["content"], second)

    def test_fork_export_import_delete(self):
        with Server() as server, Server() as other:
            turn(server, TEXT, "a")
            status, _, fork = server.request("POST", "/v1/sessions/a/fork", {"to": "b"})
            self.assertEqual(status, 200, fork)
            _, _, listed = server.request("GET", "/v1/sessions")
            self.assertEqual([s["name"] for s in listed["data"]], ["a", "b"])
            status, _, state = server.request("GET", "/v1/sessions/b/state")
            self.assertEqual(status, 200)
            status, _, answer = other.request("PUT", "/v1/sessions/moved/state", state)
            self.assertEqual(status, 200, answer)
            here, _ = turn(server, "Why?", "b")
            there, _ = turn(other, "Why?", "moved")
            self.assertEqual(here, there)
            for damaged in (state[:100], state[:-1], b"\x00" * 64, b""):
                status, _, answer = other.request("PUT", "/v1/sessions/bad/state", damaged)
                self.assertEqual(status, 400, answer)
            self.assertEqual(server.request("DELETE", "/v1/sessions/b")[0], 200)
            self.assertEqual(server.request("DELETE", "/v1/sessions/b")[0], 404)
            self.assertEqual(server.request("GET", "/v1/sessions/b/state")[0], 404)

    def test_names_never_become_paths(self):
        with tempfile.TemporaryDirectory() as folder, Server("--state-dir", folder) as server:
            for name in ("../../etc/passwd", "a/b", "..", "C:\\x", "é " * 60):
                turn(server, TEXT, name)
            for name in ("", "\u0000", "." * 300, "a\n"):
                message = {"role": "user", "content": "x"}
                status, _ = server.post("/v1/chat/completions", model="demo", messages=[message], session=name)
                self.assertEqual(status, 400)
            server.stop()
            for name in os.listdir(folder):
                self.assertRegex(name, r"^[0-9a-f-]+\.(state|session)$")

    def test_a_thousand(self):
        """One turn each; then each goes on without being read again, in the memory that was given."""
        with Server() as server:
            _, _, models = server.request("GET", "/v1/models")
            state_bytes = models["data"][0]["state_bytes"]
        memory = int(1.1 * N_SESSIONS * (state_bytes + 512))
        with Server("--state-memory", str(memory)) as server:
            turn(server, "warm", "warm")
            before = sum(server.resident_bytes())
            for i in range(N_SESSIONS):
                turn(server, f"{i} is a number.", f"s{i}", max_tokens=2)
            self.assertLess(sum(server.resident_bytes()) - before, 1.05 * memory)
            for i in random.Random(1).sample(range(N_SESSIONS), 50):
                _, usage = turn(server, "More.", f"s{i}", max_tokens=2)
                self.assertLessEqual(usage["prompt_tokens"], 64)


class Restart(unittest.TestCase):
    def test_kill_9_under_load(self):
        """Every conversation whose answer was complete goes on with the same text, nothing of it read again."""
        with tempfile.TemporaryDirectory() as folder:
            histories = {}
            for round_ in range(N_KILLS):
                with Server("--state-dir", folder) as server:
                    self.check(server, histories)
                    threads = [
                        threading.Thread(target=self.talk, args=(server, f"{round_}.{i}", histories))
                        for i in range(6)
                    ]
                    for thread in threads:
                        thread.start()
                    server.wait_until(lambda: len(histories) >= 6 * (round_ + 1), 60)
                    server.kill()
                    for thread in threads:
                        thread.join()
            with Server("--state-dir", folder) as server:
                self.check(server, histories)
                self.assertEqual(server.stop(), 0)

    @staticmethod
    def talk(server, name, histories):
        messages = [{"role": "user", "content": f"{name}: {TEXT * 3}"}]
        while True:
            try:
                status, answer = server.post(
                    "/v1/chat/completions", model="demo", messages=messages, max_tokens=20, temperature=1)
            except OSError:
                return
            if status != 200:
                return
            content = answer["choices"][0]["message"]["content"]
            messages = messages + [{"role": "assistant", "content": content}]
            histories[name] = messages
            messages = messages + [{"role": "user", "content": "Go on."}]

    def check(self, server, histories):
        for name, messages in histories.items():
            messages = messages + [{"role": "user", "content": "And?"}]
            _, answer = server.post(
                "/v1/chat/completions", model="demo", messages=messages, max_tokens=1, temperature=0)
            usage = answer["usage"]
            n_read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
            self.assertLessEqual(n_read, 64 + 16, name)


if __name__ == "__main__":
    unittest.main()
