"""Models as the command opens them: names on the hub, devices, adapters, tuned states, and files that are cut."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rwkv_edge
from common import DEMO, GOLDEN, ROOT, TestCase, command_json, demo, golden, run_python
from hub import Hub

TOKENS = [5, 6, 7, 8, 9]
# Opens a model of the hub, and prints what it computes.
PROGRAM = """
import sys
import rwkv_edge
try:
    model = rwkv_edge.Model(*sys.argv[1:2], "int8", threads=1, **eval(sys.argv[2]))
    print(float(model.forward([5, 6, 7])[0].sum()))
except rwkv_edge.Error as error:
    print(error.kind, "|", error)
"""


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, data = {}, b""
    for name, tensor in tensors.items():
        numbers = tensor.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


class OfTheHub(TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        other = self.folder / "other"
        shutil.copytree(GOLDEN / "small-safetensors", other)
        self.hub = Hub({"owner/name": {"main": DEMO, "v2": other}})
        self.addCleanup(self.hub.close)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.folder / "cache"),
            "XDG_CACHE_HOME": str(self.folder / "caches"),
        }

    def open(self, name="owner/name", options="{}", **environment):
        done = run_python(PROGRAM, name, options, env={**self.environment, **environment})
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_names_are_downloaded_once(self):
        logits = str(float(demo().forward([5, 6, 7])[0].sum()))
        self.assertIn(logits, self.open())
        self.assertTrue(any(path.endswith("model.safetensors") for _, path in self.hub.log))
        self.hub.log.clear()
        self.assertIn(logits, self.open())
        self.assertFalse([path for _, path in self.hub.log if path.endswith("model.safetensors")])
        self.hub.log.clear()
        self.assertIn(logits, self.open(HF_HUB_OFFLINE="1"))
        self.assertEqual(self.hub.log, [])

    def test_revisions(self):
        logits = str(float(golden("small-safetensors", "int8").forward([5, 6, 7])[0].sum()))
        self.assertIn(logits, self.open(options="{'revision': 'v2'}"))
        self.assertIn(logits, self.open("owner/name@v2"))
        self.assertIn("no branch, tag or commit v3", self.open(options="{'revision': 'v3'}"))
        self.assert_error("argument", "is a path", rwkv_edge.Model, DEMO, revision="v2")

    def test_what_cannot_be_had(self):
        self.assertRegex(self.open("owner/none"), r"^io \| owner/none: ")
        self.assertRegex(self.open(HF_HUB_OFFLINE="1"), r"^io \| .*HF_HUB_OFFLINE")
        self.hub.token = "hf_right"
        for token in ["", "hf_wrong"]:
            refused = self.open(HF_TOKEN=token)
            self.assertRegex(refused, r"^io \| ")
            self.assertNotIn("hf_wrong", refused)
        self.assertRegex(self.open(HF_TOKEN="hf_right"), r"^-?[0-9.]+\n$")

    def test_control_c_ends_a_download(self):
        self.hub.wait = 0.02
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "owner/name", "{}"], env=self.environment, stderr=subprocess.PIPE
        )
        self.addCleanup(program.stderr.close)
        has_begun = lambda: any(kind == "GET" and path.endswith("model.safetensors") for kind, path in self.hub.log)
        while not has_begun():
            time.sleep(0.01)
        program.send_signal(signal.SIGINT)
        # The whole file takes a minute and a half.
        _, errors = program.communicate(timeout=30)
        self.assertIn(b"KeyboardInterrupt", errors)
        self.assertEqual(program.returncode, -signal.SIGINT)

    def test_notes_and_bars_are_for_terminals(self):
        program = "import sys, rwkv_edge\nrwkv_edge.Model('owner/name', progress=eval(sys.argv[1]))"
        self.open()
        # The hub is gone, which is worth a note.
        environment = {**self.environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
        for progress, shown in [("None", False), ("False", False), ("True", True)]:
            done = run_python(program, progress, env=environment)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual("as it is in the cache" in done.stderr, shown, done.stderr)


class OfFiles(TestCase):
    def test_devices(self):
        wanted, _ = demo().forward(TOKENS)
        for device in ["cpu", "auto", None]:
            np.testing.assert_array_equal(demo(device=device).forward(TOKENS)[0], wanted)
        for device, kind, words in [("cuda", "backend", "cuda"), ("CUDA", "argument", "expected cpu")]:
            with self.assertRaises(rwkv_edge.Error) as caught:
                demo(device=device)
            self.assertEqual(len(str(caught.exception).splitlines()), 1)
            self.assertIn(words, str(caught.exception))
            self.assertIn(caught.exception.kind, {kind, "unsupported"})

    def test_tuned_states(self):
        path, tuned = GOLDEN / "v7-pth/model.pth", ROOT / "tests/fixtures/tuned/time_state.pth"
        model = rwkv_edge.Model(path, state=tuned, threads=1)
        self.assertTrue(np.any(model.new_state().to_numpy()))
        by_command = command_json("logits", "-m", path, "--load-state", tuned, "--tokens", "5,6,7", "--json")
        np.testing.assert_allclose(model.forward([5, 6, 7])[0], by_command["logits"][0], rtol=0, atol=1e-5)
        self.assert_error("state", "/no/such", rwkv_edge.Model, path, state="/no/such")

    def test_adapters(self):
        path = GOLDEN / "v7-pth/model.pth"
        width = rwkv_edge.Model(path).info["n_embd"]
        random = np.random.default_rng(1)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "adapter.safetensors"
            write_safetensors(
                file,
                {
                    "blocks.0.att.key.lora_A": random.normal(size=(2, width)),
                    "blocks.0.att.key.lora_B": random.normal(size=(width, 2)),
                },
            )
            by_command = command_json("logits", "-m", path, "--lora", f"{file}:4", "--tokens", "5,6,7", "--json")
            self.assertFalse(np.allclose(rwkv_edge.Model(path).forward([5, 6, 7])[0], by_command["logits"][0], atol=1e-3))
            for lora in [f"{file}:4", (file, 4), [(str(file), 4.0)]]:
                logits, _ = rwkv_edge.Model(path, lora=lora).forward([5, 6, 7])
                np.testing.assert_allclose(logits, by_command["logits"][0], rtol=0, atol=1e-5)
        for wrong in [5, [5], ("x",), ("x", "y")]:
            with self.assertRaises((TypeError, ValueError)):
                demo(lora=wrong)
        for lora in ["/no/such.pth:32", ("/no/such.pth", 32), [Path("/no/such.pth")]]:
            self.assert_error("io", "/no/such.pth", demo, "int8", lora=lora)

    def test_arguments_that_are_unknown(self):
        with self.assertRaisesRegex(TypeError, "Model.* 'thread'"):
            demo(thread=1)
        with self.assertRaisesRegex(TypeError, "max_memory"):
            demo(max_memory="much")
        self.assert_error("argument", "threads", demo, threads=-1)

    def test_a_file_that_is_cut_while_it_is_used_is_an_error(self):
        program = """
import os, shutil, sys
import rwkv_edge
model = rwkv_edge.Model(sys.argv[1], threads=2)
model.forward([1])
os.truncate(sys.argv[1], 4096)
for call in [lambda: model.forward(list(range(1, 200))), lambda: model.generate("A"), lambda: model.score("A trait")]:
    try:
        call()
        print("worked")
    except rwkv_edge.Error as error:
        print(error.kind)
"""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "demo.rwkv"
            rwkv_edge.quantize(DEMO, path, "int8")
            done = run_python(program, path)
        self.assertEqual((done.stdout.split(), done.returncode), (["io"] * 3, 0), done.stderr)
