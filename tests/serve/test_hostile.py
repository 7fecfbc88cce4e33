"""Clients that are slow, wrong or malicious, and who may ask at all."""

import os
import resource
import socket
import tempfile
import threading
import time
import unittest

from server import Server

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


class Hostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def raw(self, data, timeout=30):
        """What comes back until the server closes."""
        host, port = self.server.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=timeout) as connection:
            try:
                connection.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # The server has answered and closed before it was given everything.
            received = b""
            while True:
                try:
                    more = connection.recv(65536)
                except (ConnectionResetError, TimeoutError):
                    return received
                if not more:
                    return received
                received += more

    def works(self):
        self.assertEqual(self.server.post("/v1/chat/completions", **CHAT)[0], 200)

    def tearDown(self):
        self.works()

    def test_half_a_header(self):
        begin = time.time()
        self.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc", timeout=90)
        self.assertLess(time.time() - begin, 60)

    def test_large_bodies_and_heads(self):
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        answer = self.raw(head + b"Content-Length: 104857600\r\n\r\n" + b"x" * 1000)
        self.assertIn(b" 413 ", answer[:40])
        answer = self.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000)
        self.assertIn(answer[9:12], (b"431", b"400", b""))

    def test_what_is_no_json(self):
        for body in (b"", b"{", b"\xff\xfe", b'{"model": "\xff"}', b"[" * 100_000, b"null", b"[]",
                     b'{"messages": ' + b'[' * 5000 + b']' * 5000 + b'}', b'{"a": 1e999}', b'"x"'):
            status, _, answer = self.server.request(
                "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            self.assertEqual(status, 400, body[:30])
            self.assertTrue(answer["error"]["message"])

    def test_many_connections(self):
        n = min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200)
        resource.setrlimit(resource.RLIMIT_NOFILE, (n + 200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        host, port = self.server.address.rsplit(":", 1)
        held = []
        try:
            for _ in range(n):
                connection = socket.socket()
                connection.setblocking(False)
                connection.connect_ex((host, int(port)))
                held.append(connection)
        finally:
            for connection in held:
                connection.close()

    def test_other_sites(self):
        """A page of another site, and a name that was bound to this address."""
        status, _, _ = self.server.request("POST", "/v1/chat/completions", CHAT, {"Origin": "http://evil.example"})
        self.assertEqual(status, 403)
        status, _, _ = self.server.request("GET", "/v1/models", None, {"Host": "evil.example"})
        self.assertEqual(status, 403)
        status, _, _ = self.server.request("POST", "/v1/chat/completions", CHAT, {"Origin": self.server.url})
        self.assertEqual(status, 200)

    def test_who_hangs_up_in_the_prompt(self):
        long = {"model": "demo", "prompt": "Ownership is. " * 20_000, "max_tokens": 1}
        connection = self.server.connect()
        import json
        connection.request("POST", "/v1/completions", json.dumps(long), {"Content-Type": "application/json"})
        self.server.wait_until(lambda: self.server.metric("rwkv_edge_sequences_running") > 0, 30)
        connection.close()
        connection.sock and connection.sock.close()
        self.server.wait_until(lambda: self.server.metric("rwkv_edge_sequences_running") == 0, 30)


class Keys(unittest.TestCase):
    def test_keys(self):
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
            keys.write("# of the house\nann sk-ann\nbob sk-bob\n")
            keys.flush()
            with Server("--api-key-file", keys.name, listen="0.0.0.0:0") as server:
                server.address = "127.0.0.1:" + server.address.rsplit(":", 1)[1]
                as_ = lambda key: {"Authorization": f"Bearer {key}"}
                self.assertEqual(server.request("GET", "/health")[0], 200)
                for path in ("/v1/models", "/metrics", "/v1/sessions"):
                    self.assertEqual(server.request("GET", path)[0], 401, path)
                    self.assertEqual(server.request("GET", path, None, as_("wrong"))[0], 401, path)
                    self.assertEqual(server.request("GET", path, None, as_("sk-ann"))[0], 200, path)
                # What one asked the other does not learn.
                for key in ("sk-ann", "sk-bob"):
                    body = {**CHAT, "messages": [{"role": "user", "content": "the same " * 40}]}
                    _, _, answer = server.request("POST", "/v1/chat/completions", body, as_(key))
                    self.assertEqual(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0)

    def test_an_open_address_needs_a_decision(self):
        with self.assertRaises(RuntimeError):
            Server(listen="0.0.0.0:0")
        with Server("--no-key", listen="0.0.0.0:0"):
            pass


class Ending(unittest.TestCase):
    def test_answers_end_before_the_server(self):
        with Server() as server:
            answers = []
            ask = lambda: answers.append(server.post("/v1/completions", model="demo", prompt="x", max_tokens=300))
            thread = threading.Thread(target=ask)
            thread.start()
            server.wait_until(lambda: server.metric("rwkv_edge_sequences_running") > 0)
            self.assertEqual(server.stop(), 0)
            thread.join()
            self.assertEqual(answers[0][0], 200)

    def test_a_model_that_is_cut_off(self):
        """Under the server's feet: errors for that model, no crash."""
        with tempfile.TemporaryDirectory() as folder:
            import subprocess
            path = os.path.join(folder, "model")
            program = os.environ["RWKV_EDGE"]
            subprocess.run([program, "quantize", "--quant", "int8", "-o", path], check=True, capture_output=True)
            with Server("--model", f"cut={path}", "--model", "demo") as server:
                ask = lambda model: server.post("/v1/completions", model=model, prompt="Rust", max_tokens=4)[0]
                self.assertEqual((ask("cut"), ask("demo")), (200, 200))
                os.truncate(path, 4096)
                self.assertEqual((ask("cut"), ask("demo")), (500, 200))


if __name__ == "__main__":
    unittest.main()
