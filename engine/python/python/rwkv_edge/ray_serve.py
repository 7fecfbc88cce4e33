"""The OpenAI server under Ray Serve: replicas behind its router.

    serve run rwkv_edge.ray_serve:app model=demo=model.rwkv replicas=4 cpus=2 state_dir=/shared/states

Each replica starts the command `rwkv-edge serve` on a port of its own machine and passes requests on to it, so that
what clients meet is that server. With a `state_dir` that all replicas see, a conversation goes on at any of them. A
replica whose server ends, ends too, and Ray Serve starts another one; a server whose replica ends, ends with it.
"""

import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp
    from ray.serve import Application
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["app"]

logger = logging.getLogger("ray.serve")

# Runs the command, and ends it as SIGTERM does when standard input does: with the replica, however that ends.
_COMMAND = """
import os, signal, sys, threading
from rwkv_edge._native import _command
def end_with_replica():
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_replica, daemon=True).start()
sys.exit(_command())
"""
# Of one connection, which a proxy has on each side its own of, and of the client's name for the server.
_HOP_BY_HOP = {"connection", "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
# Loading a model that is to be quantised takes as long as reading it.
_START_SECONDS = 600.0


def app(args: Mapping[str, Any]) -> "Application":
    """An application for `serve run` and for config files.

    model: as the command's --model, [NAME=]MODEL
    replicas: how many (1), or 'auto'
    cpus: of each replica, for Ray's placing and as its threads (1)
    parallel: answers of a replica at once (16); what is more waits at the router
    state_dir: a folder that all replicas see, for conversations
    all others are options of the command `rwkv-edge serve`, such as quant=int8, state_memory=1G or api_key_file=FILE
    """
    from ray import serve

    options = {"parallel": 16, **args}
    replicas, cpus = options.pop("replicas", 1), int(options.pop("cpus", 1))
    if "model" not in options or "listen" in options:
        raise ValueError("expected model=[NAME=]MODEL, and no listen: Ray Serve has the address")
    command = [f"--{name.replace('_', '-')}={value}" for name, value in {"threads": cpus, **options}.items()]
    deployment = serve.deployment(
        name="rwkv-edge",
        num_replicas=replicas if replicas == "auto" else int(replicas),
        max_ongoing_requests=int(options["parallel"]),
        ray_actor_options={"num_cpus": cpus},
        health_check_period_s=2,
    )
    return deployment(Replica).bind(command)


class Replica:
    """A server of its own, and the way to it."""

    def __init__(self, options: list[str]) -> None:
        program = [sys.executable, "-c", _COMMAND, "serve", "--listen=127.0.0.1:0", *options]
        self._server = subprocess.Popen(program, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # In a header of each answer, and in the log.
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._address, self._ends = "", False
        listening = threading.Event()
        threading.Thread(target=self._watch, args=[listening], daemon=True).start()
        if not listening.wait(_START_SECONDS) or not self._address:
            self._server.kill()
            raise RuntimeError(f"rwkv-edge serve {' '.join(options)}: does not listen, see the log of the replica")
        self._client: aiohttp.ClientSession | None = None

    def _watch(self, listening: threading.Event) -> None:
        """Passes the server's lines on, and ends the replica with it."""
        for line in self._server.stderr or ():
            logger.info(line.rstrip())
            found = re.search(r"listening on (http://\S+)", line)
            if found and not self._address:
                self._address = found[1]
                listening.set()
        code = self._server.wait()
        if self._ends:
            return
        logger.error("rwkv-edge serve has ended with exit code %s", code)
        if not listening.is_set():
            listening.set()
        else:
            # At once: until it is gone, requests come here.
            os._exit(1)

    def __del__(self) -> None:
        """Ray Serve calls it when the last request is answered."""
        self._ends = True
        self._server.terminate()

    def check_health(self) -> None:
        if self._server.poll() is not None:
            raise RuntimeError("rwkv-edge serve has ended")

    async def __call__(self, request: "Request") -> "Response":
        import aiohttp
        from starlette.responses import StreamingResponse

        if self._client is None:
            # Only where an event loop runs. As many connections as requests, each for as long as its answer takes.
            self._client = aiohttp.ClientSession(
                auto_decompress=False,
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP_BY_HOP]
        answer = await self._client.request(
            request.method,
            f"{self._address}{path}",
            params=request.query_params,
            headers=headers,
            data=await request.body(),
            allow_redirects=False,
        )

        async def pieces() -> AsyncIterator[bytes]:
            # A client that goes ends this, and the server sees that it went.
            async with answer:
                async for piece in answer.content.iter_any():
                    yield piece

        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
        kept["x-replica"] = self._name
        return StreamingResponse(pieces(), status_code=answer.status, headers=kept)
