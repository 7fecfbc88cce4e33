"""The released files, the machines that they are for, and how a program of each is run here."""

import json
import os
import platform
import re
import subprocess
import tarfile
import unittest
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RELEASE = Path(os.environ["RWKV_EDGE_RELEASE"])
TOOLS = Path(os.environ["RWKV_EDGE_TOOLS"])
SYSROOTS = Path(os.environ["RWKV_EDGE_SYSROOTS"])
# The tag of the wheels, and the least that the rest may need.
GLIBC = (2, 17)
# All of glibc: no libstdc++, no libgcc_s, nothing that a small system may lack.
SYSTEM_LIBRARIES = re.compile(r"(libc|libm|libdl|librt|libutil|libpthread|ld-linux[-_a-z0-9]*)\.so\.\d")


@dataclass(frozen=True)
class Machine:
    name: str
    debian: str
    multiarch: str
    wheel: str
    zig: str
    qemu: str
    # CPUs with and without instructions that kernels are chosen by, as qemu calls them.
    cpus: tuple[str, ...]

    @property
    def sysroot(self) -> Path:
        return SYSROOTS / self.debian

    @property
    def is_here(self) -> bool:
        return platform.machine() == self.name

    def command(self, program: Path | str, *arguments, cpu: str | None = None) -> list[str]:
        """What runs a program of this machine here; on the files of its system where it is another machine."""
        emulator = [] if self.is_here else [self.qemu, "-cpu", cpu or self.cpus[0], "-L", str(self.sysroot)]
        return [*emulator, str(program), *map(str, arguments)]


MACHINES = [
    Machine("x86_64", "amd64", "x86_64-linux-gnu", "x86_64", "x86_64-linux-gnu.2.17", "qemu-x86_64-static", ("max",)),
    Machine(
        "aarch64",
        "arm64",
        "aarch64-linux-gnu",
        "aarch64",
        "aarch64-linux-gnu.2.17",
        "qemu-aarch64-static",
        ("cortex-a72", "cortex-a76"),
    ),
    Machine(
        "armv7",
        "armhf",
        "arm-linux-gnueabihf",
        "armv7l",
        "arm-linux-gnueabihf.2.17",
        "qemu-arm-static",
        ("cortex-a7", "cortex-a9"),
    ),
]


HERE = next(machine for machine in MACHINES if machine.is_here)


def run(command: list, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "RWKV_EDGE_MODEL": "", "RWKV_EDGE_THREADS": "", **options.pop("env", {})}
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=600, check=False, env=environment, **options
    )


def output(command: list, **options) -> str:
    done = run(command, **options)
    if done.returncode != 0:
        raise AssertionError(f"{command}: exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def greedy_text(n_characters: int) -> str:
    """How the demo goes on from "Ownership is", as another program computed it in f32, which is stored."""
    reference = json.loads((ROOT / "cli/demo/reference.json").read_text())["greedy"][0]
    assert reference["prompt"] == "Ownership is"
    return reference["text"][:n_characters]


def for_each(*machines: Machine):
    """A test with the argument `machine` becomes one for each of these."""

    def mark(test):
        test.machines = machines
        return test

    return mark


class TestCase(unittest.TestCase):
    def __init_subclass__(cls):
        super().__init_subclass__()
        for name, test in list(vars(cls).items()):
            for machine in getattr(test, "machines", ()):

                def of_machine(self, test=test, machine=machine):
                    test(self, machine)

                of_machine.__doc__ = test.__doc__
                setattr(cls, f"{name}_{machine.name}", of_machine)
            if hasattr(test, "machines"):
                delattr(cls, name)

    def released(self, pattern: str) -> Path:
        """The one file of the release with such a name; the test is skipped where it is not made."""
        found = sorted(RELEASE.glob(pattern))
        if not found:
            self.skipTest(f"no {pattern} in {RELEASE}")
        self.assertEqual(len(found), 1, found)
        return found[0]

    def unpacked(self, archive: Path, folder: Path) -> Path:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        (tree,) = folder.iterdir()
        self.assertEqual(f"{tree.name}.tar.gz", archive.name)
        return tree

    def assert_needs_little(self, program: Path, machine: Machine) -> None:
        """Only glibc, of no version newer than the tag, and no trace of where it was built."""
        text = output(["readelf", "-W", "-h", "-d", "-V", program])
        self.assertRegex(text, {"x86_64": "X86-64", "aarch64": "AArch64", "armv7": r"\bARM\b"}[machine.name])
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
        self.assertTrue(needed)
        for library in needed:
            self.assertRegex(library, f"^{SYSTEM_LIBRARIES.pattern}$")
        versions = {tuple(map(int, found.split("."))) for found in re.findall(r"\bGLIBC_([0-9.]+)", text)}
        self.assertLessEqual(max(versions), GLIBC)
        others = set(re.findall(r"Name: ([A-Z]+)_[0-9]", text)) - {"GLIBC"}
        self.assertFalse(others)
        self.assert_says_nothing_of_here(program)

    def assert_says_nothing_of_here(self, program: Path) -> None:
        data = program.read_bytes()
        for place in [ROOT, Path.home()]:
            self.assertNotIn(f"{place}/".encode(), data, program)
