"""What several tests need: models of the repository, what references compute, and the command."""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

import rwkv_edge

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "cli/demo"
GOLDEN = ROOT / "tests/fixtures/golden"
# Beside the interpreter, where pip puts it.
COMMAND = Path(sys.executable).with_name("rwkv-edge")


def demo(quant: str = "int8", **options) -> rwkv_edge.Model:
    """An RWKV-7 with a tokenizer. With int8 its results are the same bits on every machine."""
    return rwkv_edge.Model(DEMO, quant=quant, **{"threads": 2, **options})


def golden(name: str, quant: str = "f32") -> rwkv_edge.Model:
    return rwkv_edge.Model(GOLDEN / name, quant=quant, threads=2)


def expected(name: str) -> dict:
    return json.loads((GOLDEN / name / "expected.json").read_text())


def run_command(*arguments, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "RWKV_EDGE_MODEL": "", "RWKV_EDGE_THREADS": ""}
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, env=environment, **options
    )


def command_json(*arguments, **options) -> dict:
    done = run_command(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_python(code: str, *arguments, **options) -> subprocess.CompletedProcess:
    """A program in a new process, which has a minute."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options
    )


class TestCase(unittest.TestCase):
    def assert_error(self, kind: str, words: str, call, *arguments, **options) -> None:
        with self.assertRaises(rwkv_edge.Error) as caught:
            call(*arguments, **options)
        self.assertEqual(caught.exception.kind, kind, caught.exception)
        self.assertIn(words, str(caught.exception))
