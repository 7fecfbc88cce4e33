"""A server of the program under test, for the length of a test."""

import http.client
import json
import os
import queue
import re
import signal
import subprocess
import threading
import time

PROGRAM = os.environ["RWKV_EDGE"]


class Server:
    """`rwkv-edge serve` with a port of its own."""

    def __init__(self, *options, listen="127.0.0.1:0", **environment):
        command = [PROGRAM, "serve", "--quant", "int8", "--listen", listen, *options]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.lines = queue.Queue()
        self.log = []
        threading.Thread(target=self._read, daemon=True).start()
        self.address = self._address()

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            self.lines.put(line)
        self.lines.put(None)

    def _address(self):
        while True:
            line = self.lines.get(timeout=60)
            if line is None:
                raise RuntimeError(f"the server ended: {''.join(self.log)}")
            found = re.search(r"listening on http://(\S+)", line)
            if found:
                return found[1]

    @property
    def url(self):
        return f"http://{self.address}"

    def connect(self, timeout=60):
        host, port = self.address.rsplit(":", 1)
        return http.client.HTTPConnection(host, int(port), timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=60):
        """Status, headers and body; JSON is parsed."""
        connection = self.connect(timeout)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        kind = response.getheader("Content-Type") or ""
        return response.status, response, json.loads(data) if "json" in kind else data

    def post(self, path, **body):
        status, _, answer = self.request("POST", path, body)
        return status, answer

    def metric(self, name):
        """The sum of a metric over its labels."""
        _, _, text = self.request("GET", "/metrics")
        lines = text.decode().splitlines()
        values = [line.rsplit(" ", 1)[1] for line in lines if re.match(rf"{name}(\{{| )", line)]
        return sum(map(float, values))

    def wait_until(self, holds, seconds=10):
        end = time.time() + seconds
        while not holds():
            if time.time() > end:
                raise AssertionError("it did not come true in time")
            time.sleep(0.01)

    def resident_bytes(self):
        """Of its own memory, and of pages of files, which are those of the model and the program."""
        with open(f"/proc/{self.process.pid}/status") as status:
            text = status.read()
        return tuple(int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024 for name in ("RssAnon", "RssFile"))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """Asks it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
        self.process.stderr.close()
