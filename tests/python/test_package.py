"""What the wheel has beside models: the command, type stubs, help, and its guide."""

import doctest
import os
import pickle
import subprocess
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path

import rwkv_edge
from common import DEMO, GOLDEN, ROOT, TestCase, golden, run_command, run_python


class Command(TestCase):
    def test_exit_codes(self):
        self.assertEqual(run_command("--version").stdout, f"rwkv-edge {rwkv_edge.__version__}\n")
        for arguments, code, words in [
            (["--help"], 0, ""),
            (["-m", DEMO, "-n", "2", "Ownership is"], 0, ""),
            (["-m", "/no/such/model", "x"], 1, "/no/such/model"),
            (["x"], 1, '--model is needed: no demo model is installed, pip install "rwkv-edge[demo]" brings one'),
            (["--no-such-option"], 2, "--no-such-option"),
        ]:
            done = run_command(*arguments)
            self.assertEqual(done.returncode, code, done)
            self.assertIn(words, done.stderr)
            self.assertNotIn("Traceback", done.stderr)

    def test_a_closed_pipe_is_success(self):
        command = f"'{Path(sys.executable).with_name('rwkv-edge')}' --help; echo $? >&2"
        done = subprocess.run(
            ["sh", "-c", f"( {command} ) | true"], capture_output=True, text=True, timeout=60, check=False
        )
        self.assertEqual(done.stderr, "0\n")

    def test_names_that_are_no_utf_8(self):
        path = os.fsencode(tempfile.gettempdir()) + b"/no-\xff-such"
        done = subprocess.run(
            [Path(sys.executable).with_name("rwkv-edge"), "-m", path, "x"], capture_output=True, timeout=60, check=False
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"cannot open", done.stderr)

    def test_control_c_ends_it(self):
        program = """
import signal, subprocess, sys, time
command = [sys.argv[1], "-m", sys.argv[2], "-n", "1000000000", "--ignore-eos", "Ownership is"]
running = subprocess.Popen(command, stdout=subprocess.PIPE)
running.stdout.read(20)
running.send_signal(signal.SIGINT)
print(running.wait(timeout=20) == -signal.SIGINT)
"""
        done = run_python(program, Path(sys.executable).with_name("rwkv-edge"), DEMO)
        self.assertEqual(done.stdout, "True\n", done.stderr)


class Package(TestCase):
    def test_size_and_content(self):
        distribution = metadata.distribution("rwkv-edge")
        self.assertEqual(distribution.version, rwkv_edge.__version__)
        names = {file.name for file in distribution.files}
        self.assertLessEqual({"__init__.py", "__init__.pyi", "py.typed", "LICENSE-MIT", "LICENSE-APACHE"}, names)
        self.assertFalse([name for name in names if name.endswith(".safetensors")])
        wheels = os.environ.get("RWKV_EDGE_WHEELS")
        if wheels is None:
            self.skipTest("the wheel itself is not at hand")
        (wheel,) = Path(wheels).glob("*.whl")
        self.assertIn("-cp311-abi3-", wheel.name)
        self.assertLess(wheel.stat().st_size, 12e6)

    def test_stubs_are_what_is_there(self):
        done = subprocess.run(
            [
                *[sys.executable, "-m", "mypy.stubtest", "rwkv_edge"],
                *["--mypy-config-file", ROOT / "tests/python/mypy.ini"],
                *["--allowlist", ROOT / "tests/python/stubtest-allowlist"],
            ],
            cwd=tempfile.gettempdir(),
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("no issues found", done.stdout)

    def test_stubs_tell_types(self):
        program = """
import rwkv_edge
model = rwkv_edge.Model("x", quant="int8")
text: str | None = model.generate("a").text
texts = [one.tokens for one in model.generate(["a", "b"])]
logits, state = model.forward([1, 2])
rows: int = logits.shape[0]
score: float = model.score("a")
scores: float = model.score(["a"]).sum()
for piece in model.stream("a"):
    print(piece + "x")
for one in model.generate("a", logprobs=2, preset="pip").logprobs or []:
    number: float = one.logprob + one.top[0]
loss: float = rwkv_edge.perplexity(model, "a")["loss"]
size: int = rwkv_edge.quantize("x", "y", "q4", calibrate="text", lora=("z", 32))["bytes"]
async def pieces() -> str:
    return "".join([piece async for piece in model.astream("a")])
messages = [{"role": "user", "content": "a"}]
answer: str | None = model.chat(messages, think="off").text
answers = [one.finish_reason for one in model.chat([messages, messages])]
for piece in model.chat_stream(messages):
    print(piece + "x")
"""
        wrong = "import rwkv_edge\nrwkv_edge.Model('x', quant='int9')\nrwkv_edge.Model('x').stream('a', top_q=1)\n"
        for text, errors in [(program, 0), (wrong, 2)]:
            done = subprocess.run(
                [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "-c", text],
                cwd=tempfile.gettempdir(),
                capture_output=True,
                text=True,
                check=False,
            )
            self.assertEqual(done.stdout.count("error:"), errors, done.stdout)

    def test_everything_has_help(self):
        for name in rwkv_edge.__all__:
            thing = getattr(rwkv_edge, name)
            if isinstance(thing, type):
                members = [getattr(thing, member) for member in vars(thing) if not member.startswith("_")]
            else:
                members = []
            for each in [thing, *members]:
                self.assertTrue(each.__doc__, f"{name}: {each}")
                for line in each.__doc__.splitlines():
                    self.assertLessEqual(len(line), 120, line)

    def test_errors_are_values(self):
        with self.assertRaises(rwkv_edge.Error) as caught:
            golden("v7-pth").forward([10**6])
        again = pickle.loads(pickle.dumps(caught.exception))
        self.assertEqual((again.kind, str(again)), ("argument", str(caught.exception)))

    def test_the_guide(self):
        # Its examples name models of the repository, and write files.
        with tempfile.TemporaryDirectory() as folder:
            os.symlink(DEMO, Path(folder) / "demo")
            os.symlink(GOLDEN / "v7-pth/model.pth", Path(folder) / "without-tokenizer.pth")
            before = os.getcwd()
            os.chdir(folder)
            try:
                failed, tried = doctest.testfile(
                    str(ROOT / "docs/PYTHON.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
                )
            finally:
                os.chdir(before)
        self.assertEqual(failed, 0)
        self.assertGreater(tried, 20)
