"""What conversations cost on this machine. Run by hand, on one with nothing else to do; no part of CI.

usage: RWKV_EDGE=target/release/rwkv-edge python3 tests/serve/measure.py [--model MODEL] [--tokenizer FILE] [PART]...

Starts `rwkv-edge serve --quant int8` as it needs it and ends it again; without a model, of the demo model. The parts,
all of them if none is named:

  first     milliseconds from a request to the beginning of reading, and to the first piece of its answer, medians of
            61 (of 15 restarts), behind histories of 10 and 40 kB: by `session`, by messages that are sent again, and
            by `session` to a server that was killed and started again with the same --state-dir, as its first
            request, for which the model is mapped anew, and as its second
  thousand  growth of the resident memory by 1,000 conversations of one turn, with --state-memory of 1.1 states for
            each, apart from pages of the model's file, which are mapped and become resident when they are first read;
            and how many tokens are read when each goes on by messages that are sent again
  schemas   how many answers to 300 schemas, whose strings and lists are bounded, end within 512 tokens at
            temperature 1
"""

import argparse
import http.client
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from server import Server

N_TURNS = 61
N_RESTARTS = 15
HISTORIES = (10_000, 40_000)
N_CONVERSATIONS = int(os.environ.get("RWKV_EDGE_MEASURE_CONVERSATIONS", "1000"))
N_SCHEMAS = int(os.environ.get("RWKV_EDGE_MEASURE_SCHEMAS", "300"))
ANSWER = {"temperature": 0, "max_tokens": 8}


def history(n_bytes):
    """Text of the documentation, so many bytes of ASCII."""
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = "".join(path.read_text() for path in sorted(docs.glob("*.md")))
    return text.encode("ascii", "ignore").decode()[:n_bytes]


def user(text):
    return {"role": "user", "content": text}


def ask(server, messages, **more):
    """The answer's text and usage."""
    status, answer = server.post("/v1/chat/completions", messages=messages, **{**ANSWER, **more})
    if status != 200:
        raise RuntimeError(answer)
    return answer["choices"][0]["message"]["content"], answer["usage"]


def first_piece_ms(server, messages, **more):
    """Milliseconds to the first event, which says that reading begins, and to the first piece of text, or to the end of
    an answer without one."""
    host, port = server.address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=600)
    body = json.dumps({"messages": messages, "stream": True, **ANSWER, **more})
    begin = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(response.read())
    read = found = None
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(event)
        read = read or time.perf_counter()
        delta = event["choices"][0]["delta"]
        if found is None and delta.get("content"):
            found = time.perf_counter()
    end = time.perf_counter()
    connection.close()
    return 1000 * (read - begin), 1000 * ((found or end) - begin)


def show(name, values):
    middles = (f"{statistics.median(of_one):.1f} ms (at least {min(of_one):.1f})" for of_one in zip(*values))
    print(name, *middles, sep="  ", flush=True)


def first(options):
    """All kinds in turns, so that whatever else the machine does comes upon all of them."""
    times = {}

    def measure(n_bytes, kind, server, messages, **more):
        times.setdefault((n_bytes, kind), []).append(first_piece_ms(server, messages, **more))

    with tempfile.TemporaryDirectory() as folder:
        options = [*options, "--state-dir", folder]
        said = {}
        with Server(*options) as server:
            for n_bytes in HISTORIES:
                text = history(n_bytes)
                answer, usage = ask(server, [user(text)], session=str(n_bytes))
                print(f"history of {n_bytes} bytes, {usage['prompt_tokens']} tokens")
                said[n_bytes] = [user(text), {"role": "assistant", "content": answer}]
            for i in range(N_TURNS):
                for n_bytes in HISTORIES:
                    measure(n_bytes, "by session", server, [user(f"And then, {i}?")], session=str(n_bytes))
                    # Not what the session has said, which would be known.
                    measure(n_bytes, "by messages", server, [*said[n_bytes], user(f"So what, {i}?")])
            server.kill()
        for i in range(N_RESTARTS):
            for n_bytes in HISTORIES:
                for kind in ("first request after a restart", "second request after a restart"):
                    with Server(*options) as server:
                        if kind.startswith("second"):
                            ask(server, [user(f"Something else, {i}.")])
                        measure(n_bytes, f"by session, {kind}", server, [user(f"And now, {i}?")], session=str(n_bytes))
                        server.kill()
    for (n_bytes, kind), values in sorted(times.items()):
        show(f"  {n_bytes} bytes {kind}", values)


def thousand(options):
    with Server(*options) as server:
        _, _, models = server.request("GET", "/v1/models")
        state_bytes = models["data"][0]["state_bytes"]
    memory = int(1.1 * N_CONVERSATIONS * state_bytes)
    print(f"state of {state_bytes} bytes, --state-memory {memory}")
    with Server(*options, "--state-memory", str(memory)) as server:
        ask(server, [user("warm")])
        before = server.resident_bytes()
        conversations = []
        for i in range(N_CONVERSATIONS):
            asked = user(f"The number {i} is")
            answer, _ = ask(server, [asked])
            conversations.append([asked, {"role": "assistant", "content": answer}])
        own, of_files = (now - then for now, then in zip(server.resident_bytes(), before))
        print(f"  {N_CONVERSATIONS} conversations: {own / 1e6:.1f} MB more resident, and {of_files / 1e6:.1f} MB of the"
              " model's file")
        kept = server.metric("rwkv_edge_states_memory")
        print(f"  {kept:.0f} states of {server.metric('rwkv_edge_states_memory_bytes'):.0f} bytes are kept")
        order = list(range(N_CONVERSATIONS))
        random.Random(1).shuffle(order)
        n_new, n_read, n_whole = [], [], 0
        for i in order:
            _, usage = ask(server, [*conversations[i], user("More.")], max_tokens=1)
            n_known = usage["prompt_tokens_details"]["cached_tokens"]
            n_read.append(usage["prompt_tokens"] - n_known)
            n_whole += n_known == 0
            n_new.append(usage["prompt_tokens"])
        print(f"  going on: {statistics.mean(n_read):.1f} tokens read of {statistics.mean(n_new):.1f}"
              f" (median {statistics.median(n_read):.0f}, at most {max(n_read)}), of {n_whole} nothing was known")


def schema(rng, depth=2):
    """A schema whose answers are bounded, but for the digits of numbers."""
    kinds = ["string", "integer", "enum", "boolean", "pattern", "null"] + ["array", "object"] * (depth > 0)
    kind = rng.choice(kinds)
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(1, 40)}
    if kind == "integer":
        low = rng.randint(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}
    if kind == "enum":
        return {"enum": rng.sample(["red", "green", "blue", 1, 2, 3, None, True], rng.randint(1, 5))}
    if kind == "pattern":
        return {"type": "string", "pattern": f"^[a-z]{{1,{rng.randint(1, 12)}}}$"}
    if kind == "array":
        n_min = rng.randint(0, 2)
        return {"type": "array", "items": schema(rng, depth - 1), "minItems": n_min,
                "maxItems": n_min + rng.randint(0, 3)}
    if kind == "object":
        return object_schema(rng, depth)
    return {"type": kind}


def object_schema(rng, depth):
    names = rng.sample(["id", "name", "tags", "size", "state", "notes"], rng.randint(1, 4))
    return {"type": "object", "properties": {name: schema(rng, depth - 1) for name in names},
            "required": sorted(rng.sample(names, rng.randint(0, len(names)))), "additionalProperties": False}


def schemas(options):
    rng = random.Random(7)
    n_ended, n_tokens = 0, []
    with Server(*options) as server:
        for seed in range(N_SCHEMAS):
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": object_schema(rng, 2)}}
            status, answer = server.post(
                "/v1/chat/completions", messages=[user("Describe something.")], response_format=form,
                temperature=1, seed=seed, max_tokens=512)
            if status != 200:
                raise RuntimeError(f"{answer}: {form}")
            choice = answer["choices"][0]
            if choice["finish_reason"] == "stop":
                json.loads(choice["message"]["content"])
                n_ended += 1
            n_tokens.append(answer["usage"]["completion_tokens"])
    print(f"{n_ended} of {N_SCHEMAS} answers ended within 512 tokens; median {statistics.median(n_tokens):.0f} tokens,"
          f" at most {max(n_tokens)}")


def main():
    parts = {"first": first, "thousand": thousand, "schemas": schemas}
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model")
    arguments.add_argument("--tokenizer")
    arguments.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    given = arguments.parse_args()
    options = []
    for name in ("model", "tokenizer"):
        if getattr(given, name):
            options += [f"--{name}", getattr(given, name)]
    for name in given.parts or parts:
        if name not in parts:
            arguments.error(f"no part {name!r}, expected {', '.join(parts)}")
        print(f"{name}:", flush=True)
        parts[name](options)


if __name__ == "__main__":
    main()
