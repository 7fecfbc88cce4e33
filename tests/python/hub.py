"""A hub on loopback: as much of the Hugging Face hub's protocol as a download needs."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = (".safetensors", ".pth", ".bin")


class Hub:
    """Repositories by name, each with folders by revision. `log` has the requests, `token` the one that is needed."""

    def __init__(self, repositories: dict[str, dict[str, Path]]):
        self.repositories = repositories
        self.token = None
        self.log = []
        # Seconds between two pieces of a large file.
        self.wait = 0.0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(with_body=False)

            def do_GET(self):
                self.answer(with_body=True)

            def answer(self, with_body):
                path = self.path.split("?")[0]
                hub.log.append((self.command, path))
                status, headers, body = hub.answer(path.strip("/").split("/"), self.headers.get("Authorization"))
                self.send_response(status)
                for name, value in {"Content-Length": len(body), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                if not with_body:
                    return
                pieces = [body]
                if hub.wait and len(body) > 1 << 20:
                    pieces = [body[at : at + 4096] for at in range(0, len(body), 4096)]
                try:
                    for piece in pieces:
                        self.wfile.write(piece)
                        time.sleep(hub.wait)
                except OSError:
                    pass  # Whoever asked is gone.

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, parts, authorization):
        if self.token and authorization != f"Bearer {self.token}":
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        match parts:
            case ["api", "models", owner, name, *rest] if f"{owner}/{name}" in self.repositories:
                revision = rest[1] if rest[:1] == ["revision"] else "main"
                folder, commit = self.of(f"{owner}/{name}", revision)
                if folder is None:
                    return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
                siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir()) if file.is_file()]
                info = {"id": f"{owner}/{name}", "sha": commit, "private": False, "tags": [], "siblings": siblings}
                return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
            case [owner, name, "resolve", revision, file] if f"{owner}/{name}" in self.repositories:
                folder, commit = self.of(f"{owner}/{name}", revision)
                if folder is None or not (folder / file).is_file():
                    return 404, {"X-Error-Code": "EntryNotFound"}, b""
                body = (folder / file).read_bytes()
                blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
                headers = {"X-Repo-Commit": commit, "ETag": f'"{blob}"'}
                if file.endswith(LARGE):
                    headers["X-Linked-Etag"] = f'"{hashlib.sha256(body).hexdigest()}"'
                    headers["X-Linked-Size"] = len(body)
                return 200, headers, body
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def of(self, repository, revision):
        """The folder of a branch or commit, and its commit."""
        for branch, folder in self.repositories[repository].items():
            commit = hashlib.sha1(f"{repository} {branch}".encode()).hexdigest()
            if revision in (branch, commit):
                return folder, commit
        return None, None
