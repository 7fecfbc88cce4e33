"""The Python wheels: installed by pip as a new user does, and by the Python of each machine they are for."""

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from common import GLIBC, HERE, MACHINES, RELEASE, ROOT, TOOLS, Machine, TestCase, for_each, greedy_text, output, run

PROMPT = "Ownership is"
# What the module says, and one of numpy's arrays where that is installed.
PROGRAM = """
import importlib.util, json, platform, sys
import rwkv_edge
assert "numpy" not in sys.modules
model = rwkv_edge.Model(sys.argv[1], quant=sys.argv[2], threads=2)
text = model.generate("Ownership is", max_new_tokens=int(sys.argv[3])).text
facts = {"text": text, "machine": platform.machine(), "version": rwkv_edge.__version__}
if importlib.util.find_spec("numpy"):
    logits, state = model.forward(model.tokenizer.encode("Ownership is"))
    facts["next"] = model.tokenizer.decode([int(logits.argmax())])
    facts["shape"] = list(logits.shape)
print(json.dumps(facts))
"""


class Wheels(TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def wheel(self, machine: Machine) -> Path:
        return self.released(f"rwkv_edge-*manylinux_2_17_{machine.wheel}.whl")

    @for_each(*MACHINES)
    def test_tags_and_content(self, machine: Machine):
        wheel = self.wheel(machine)
        self.assertRegex(wheel.name, f"-cp311-abi3-.*manylinux_2_17_{machine.wheel}.whl$")
        self.assertLess(wheel.stat().st_size, 12e6)
        folder = self.folder / machine.name
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
            times = {info.date_time for info in archive.infolist()}
            self.assertEqual(len(times), 1)
            names = archive.namelist()
        self.assertFalse([name for name in names if name.endswith((".rwkv", ".safetensors"))])
        self.assertTrue([name for name in names if name.endswith("LICENSE-THIRD-PARTY")])
        for file in folder.rglob("*"):
            if file.is_file():
                self.assert_says_nothing_of_here(file)
        (module,) = folder.glob("rwkv_edge/*.so")
        self.assert_needs_little(module, machine)
        # libgcc_s and libstdc++ would be named among what it needs, which assert_needs_little has seen.
        metadata = next(folder.glob("*.dist-info/METADATA")).read_text()
        self.assertIn("Provides-Extra: demo", metadata)

    @for_each(*MACHINES)
    def test_verdict_of_auditwheel(self, machine: Machine):
        wheel = self.wheel(machine)
        verdict = output([TOOLS / "auditwheel", "show", wheel])
        found = re.search(r'platform tag:\s+"manylinux_(\d+)_(\d+)_' + machine.wheel, verdict)
        self.assertTrue(found, verdict)
        self.assertLessEqual((int(found[1]), int(found[2])), GLIBC, verdict)

    @for_each(*MACHINES[1:])
    def test_pythons_of_all_machines(self, machine: Machine):
        """pip takes the wheel for this machine and no other, and what it installs gives the text that it should."""
        self.wheel(machine)
        python = machine.sysroot / "usr/bin/python3.11"
        site = self.folder / machine.name
        pip = ["-m", "pip", "install", "-q", "--no-index", "--find-links", RELEASE, "--target", site]
        environment = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(site)}
        # numpy's own libraries are found by Debian's links, which installing it would make.
        algebra = [str(machine.sysroot / "usr/lib" / machine.multiarch / name) for name in ["blas", "lapack"]]
        environment["QEMU_SET_ENV"] = f"LD_LIBRARY_PATH={':'.join(algebra)}"
        pip_environment = {**environment, "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
        command = machine.command(python, *pip, "--break-system-packages", "rwkv-edge[demo]")
        output(command, env=pip_environment)
        installed = [path.name for path in site.iterdir()]
        self.assertIn("rwkv_edge", installed)
        self.assertIn("rwkv_edge_demo", installed)
        for cpu in machine.cpus:
            arguments = ["-c", PROGRAM, ROOT / "cli/demo", "f32", 24]
            facts = json.loads(output(machine.command(python, *arguments, cpu=cpu), env=environment))
            self.assertTrue(facts["text"].startswith(greedy_text(80)), facts)
            self.assertEqual((facts["next"], facts["shape"]), (" a", [4096]))
            self.assertEqual(facts["machine"], machine.wheel)
        demo = site / "rwkv_edge_demo/demo.rwkv"
        facts = json.loads(output(machine.command(python, "-c", PROGRAM, demo, "int8", 24), env=environment))
        self.assertTrue(facts["text"].startswith(greedy_text(40)), facts)
        script = site / "bin/rwkv-edge"
        text = output(machine.command(python, script, "-n", "8", PROMPT), env=environment)
        self.assertTrue(text.startswith(PROMPT + greedy_text(20)), text)


class NewUser(TestCase):
    """The wheel of this machine in a clean environment, of which nothing is known but pip."""

    def setUp(self):
        self.released(f"rwkv_edge-*manylinux_2_17_{HERE.wheel}.whl")
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        subprocess.run([sys.executable, "-m", "venv", self.folder / "clean"], check=True)
        self.bin = self.folder / "clean/bin"
        self.command = self.bin / "rwkv-edge"

    def pip_install(self, what: str) -> None:
        options = ["--no-index", "--find-links", RELEASE, "--disable-pip-version-check"]
        output([self.bin / "pip", "install", "-q", *options, what], env={"PIP_FIND_LINKS": ""})

    def test_without_and_with_the_demo(self):
        self.pip_install("rwkv-edge")
        done = run([self.command, PROMPT])
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        for words in ["--model", 'pip install "rwkv-edge[demo]"']:
            self.assertIn(words, done.stderr)
        program = ["-c", PROGRAM, ROOT / "cli/demo", "f32", "24"]
        facts = json.loads(output([self.bin / "python", *program], cwd=self.folder))
        self.assertTrue(facts["text"].startswith(greedy_text(80)), facts)
        self.assertNotIn("next", facts, "numpy is not installed here")

        self.pip_install("rwkv-edge[demo]")
        text = output([self.command, "-n", "24", PROMPT])
        self.assertTrue(text.startswith(PROMPT + greedy_text(40)), text)
        # As README calls it.
        self.assertEqual(output([self.command, "--quant", "int8", "-n", "24", PROMPT]), text)
        self.assertIn("4096", output([self.command, "info", "--json"]))
        # What is named goes first.
        for named in [{"env": {"RWKV_EDGE_MODEL": "/no/such/model"}}, {}]:
            arguments = [] if named else ["--model", "/no/such/model"]
            done = run([self.command, *arguments, PROMPT], **named)
            self.assertEqual(done.returncode, 1)
            self.assertIn("/no/such/model", done.stderr)

    def test_how_the_command_ends(self):
        self.pip_install("rwkv-edge[demo]")
        self.assertEqual(run([self.command, "--no-such-option"]).returncode, 2)
        self.assertEqual(run([self.command, "--version"]).returncode, 0)
        endless = f"'{self.command}' -n 100000 --ignore-eos 'Ownership is'"
        done = run(["sh", "-c", f"{{ {endless}; echo $? >&2; }} | head -c 20"])
        self.assertEqual((done.stdout, done.stderr), ("Ownership is a bit m", "0\n"))
        interrupted = f"timeout --preserve-status -s INT 3 {endless} >/dev/null; echo $?"
        done = run(["sh", "-c", interrupted])
        self.assertEqual((done.stdout, done.stderr), ("130\n", ""))
        text = output(["sh", "-c", f"echo 'Ownership is' | '{self.command}' tokenize --json"])
        self.assertIn("3851", text)
