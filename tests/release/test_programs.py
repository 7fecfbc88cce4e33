"""The command and the C library: archives and Debian packages, run on every machine that they are for."""

import hashlib
import json
import re
import subprocess
import tempfile
from pathlib import Path

from common import GLIBC, HERE, MACHINES, RELEASE, ROOT, TOOLS, Machine, TestCase, for_each, greedy_text, output, run

PROMPT = "Ownership is"


def text_of(machine: Machine, command: Path, *arguments, cpu: str | None = None) -> str:
    return output(machine.command(command, "--threads", "2", *arguments, PROMPT, cpu=cpu))


class Programs(TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def assert_text_is_right(self, machine: Machine, command: Path) -> None:
        """f32 agrees with what another program computed, int8 with what it is on every CPU."""
        for cpu in machine.cpus:
            text = text_of(machine, command, "--quant", "f32", "-n", "24", cpu=cpu)
            self.assertTrue(text.startswith(PROMPT + greedy_text(80)), text)
            int8 = text_of(machine, command, "--quant", "int8", "-n", "48", cpu=cpu)
            self.assertEqual(int8, self.int8_text(), cpu)

    def int8_text(self) -> str:
        """What this machine's command says, whose first words are those of f32."""
        text = text_of(HERE, self.command_here("gnu"), "--quant", "int8", "-n", "48")
        self.assertTrue(text.startswith(PROMPT + greedy_text(40)), text)
        return text

    def command_here(self, kind: str) -> Path:
        archive = self.released(f"rwkv-edge-[0-9]*-{HERE.name}-linux-{kind}.tar.gz")
        return self.unpacked(archive, Path(self.scratch())) / "bin/rwkv-edge"

    def scratch(self) -> str:
        return self.enterContext(tempfile.TemporaryDirectory())

    @for_each(*MACHINES)
    def test_archives_of_the_command(self, machine: Machine):
        archive = self.released(f"rwkv-edge-[0-9]*-{machine.name}-linux-gnu.tar.gz")
        tree = self.unpacked(archive, Path(self.scratch()))
        self.assert_needs_little(tree / "bin/rwkv-edge", machine)
        self.assert_text_is_right(machine, tree / "bin/rwkv-edge")
        for file in [
            "man/man1/rwkv-edge.1.gz",
            "man/man1/rwkv-edge-generate.1.gz",
            "bash-completion/completions/rwkv-edge",
            "zsh/site-functions/_rwkv-edge",
            "fish/vendor_completions.d/rwkv-edge.fish",
            "doc/rwkv-edge/README.md",
            "doc/rwkv-edge/LICENSE-MIT",
            "doc/rwkv-edge/LICENSE-APACHE",
        ]:
            self.assertTrue((tree / "share" / file).is_file(), file)
        licences = (tree / "share/doc/rwkv-edge/LICENSE-THIRD-PARTY").read_text()
        for crate in ["clap ", "rustls ", "tokenizers "]:
            self.assertIn(f"\n{crate}", licences)
        self.assertNotIn("\ncriterion ", licences)

    @for_each(*MACHINES[:2])
    def test_static_commands(self, machine: Machine):
        archive = self.released(f"rwkv-edge-[0-9]*-{machine.name}-linux-static.tar.gz")
        command = self.unpacked(archive, Path(self.scratch())) / "bin/rwkv-edge"
        headers = output(["readelf", "-W", "-l", "-d", command])
        self.assertNotRegex(headers, r"\(NEEDED\)|INTERP")
        self.assert_says_nothing_of_here(command)
        self.assert_text_is_right(machine, command)

    def test_how_the_command_ends(self):
        self.assert_ends_well(self.command_here("gnu"))

    def test_how_the_static_command_ends(self):
        self.assert_ends_well(self.command_here("static"))

    def assert_ends_well(self, command: Path) -> None:
        """Exit codes, a reader that goes away, and Ctrl-C, of the program as it is released."""
        self.assertEqual(run([command, "--no-such-option"]).returncode, 2)
        self.assertEqual(run([command, "--model", "/no/such/model", "x"]).returncode, 1)
        endless = f"'{command}' -n 100000 --ignore-eos 'Ownership is'"
        done = run(["sh", "-c", f"{{ {endless}; echo $? >&2; }} | head -c 20"])
        self.assertEqual((done.stdout, done.stderr), ("Ownership is a bit m", "0\n"))
        interrupted = f"timeout --preserve-status -s INT 3 {endless} >/dev/null; echo $?"
        self.assertEqual(output(["sh", "-c", interrupted]), "130\n")

    @for_each(*MACHINES)
    def test_debian_packages(self, machine: Machine):
        packages = {
            name: self.released(f"{name}_*_{machine.debian}.deb")
            for name in ["rwkv-edge", "librwkv-edge1", "librwkv-edge-dev"]
        }
        root = Path(self.scratch())
        for name, package in packages.items():
            fields = dict(
                line.split(": ", 1)
                for line in output(["dpkg-deb", "-f", package]).splitlines()
                if not line.startswith(" ")
            )
            self.assertEqual((fields["Package"], fields["Architecture"]), (name, machine.debian))
            if found := re.search(r"libc6 \(>= (.*?)\)", fields["Depends"]):
                # Debian 11 has 2.31.
                self.assertLessEqual(tuple(map(int, found[1].split("."))), GLIBC)
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
            self.assertTrue((root / "usr/share/doc" / name / "copyright").is_file())
        self.assert_text_is_right(machine, root / "usr/bin/rwkv-edge")
        libraries = root / "usr/lib" / machine.multiarch
        self.assert_needs_little(libraries / "librwkv_edge.so.1", machine)
        self.assert_c_programs_run(machine, root / "usr/include", libraries)
        archive = self.released(f"rwkv-edge-[0-9]*-{machine.name}-linux-gnu.tar.gz")
        tree = self.unpacked(archive, Path(self.scratch()))
        self.assertEqual(
            (root / "usr/bin/rwkv-edge").read_bytes(), (tree / "bin/rwkv-edge").read_bytes(), "another program"
        )

    @for_each(*MACHINES)
    def test_archives_of_the_library(self, machine: Machine):
        archive = self.released(f"librwkv_edge-*-{machine.name}-linux-gnu.tar.gz")
        tree = self.unpacked(archive, Path(self.scratch()))
        self.assert_needs_little(tree / "lib/librwkv_edge.so.1.0.0", machine)
        dynamic = output(["readelf", "-W", "-d", tree / "lib/librwkv_edge.so"])
        self.assertIn("soname: [librwkv_edge.so.1]", dynamic)
        symbols = output(["readelf", "-W", "--dyn-syms", tree / "lib/librwkv_edge.so"])
        exported = re.findall(r"GLOBAL\s+DEFAULT\s+\d+ (\S+)", symbols)
        self.assertGreater(len(exported), 10)
        self.assertFalse([name for name in exported if not name.startswith("rwkv_edge_")])
        self.assert_c_programs_run(machine, tree / "include", tree / "lib")

    def assert_c_programs_run(self, machine: Machine, include: Path, libraries: Path) -> None:
        """A program linked with the shared and with the static library, by a compiler that knows only this folder."""
        folder = Path(self.scratch())
        model = folder / "demo.rwkv"
        command = self.command_here("gnu")
        output([command, "quantize", "--model", ROOT / "cli/demo", "--quant", "int8", "-o", model])
        expected = output([command, "--model", model, "-n", "64", PROMPT])
        compiler = [TOOLS / "python", "-m", "ziglang", "cc", "-target", machine.zig, "-std=c11", f"-I{include}"]
        source = ROOT / "engine/capi/examples/hello.c"
        pkg_config = {"PKG_CONFIG_PATH": str(libraries / "pkgconfig")}
        if libraries.name == "lib":
            flags = output(["pkg-config", "--cflags", "--libs", "rwkv_edge"], env=pkg_config).split()
        else:
            flags = [f"-L{libraries}", "-lrwkv_edge"]
        output([*compiler, source, *flags, f"-Wl,-rpath,{libraries}", "-o", folder / "shared"])
        system = ["-lpthread", "-ldl", "-lm", "-lunwind"]
        output([*compiler, source, libraries / "librwkv_edge.a", *system, "-o", folder / "static"])
        for program in ["shared", "static"]:
            text = output(machine.command(folder / program, model, PROMPT))
            self.assertEqual(text.rstrip("\n"), expected.rstrip("\n"), program)


class Lists(TestCase):
    def test_sums_and_manifest(self):
        sums = dict(reversed(line.split("  ")) for line in (RELEASE / "SHA256SUMS").read_text().splitlines())
        manifest = json.loads((RELEASE / "manifest.json").read_text())
        files = {file["file"]: file for file in manifest["files"]}
        self.assertEqual({path.name for path in RELEASE.iterdir()} - {"SHA256SUMS"}, set(sums))
        self.assertEqual({*files, "manifest.json"}, set(sums))
        for name, digest in sums.items():
            self.assertEqual(hashlib.sha256((RELEASE / name).read_bytes()).hexdigest(), digest, name)
        self.assertRegex(manifest["commit"], "^[0-9a-f]{40}")
        self.assertRegex(manifest["rustc"], r"^rustc 1\.")
        for name, file in files.items():
            self.assertEqual(file["bytes"], (RELEASE / name).stat().st_size)
            if "static" in name or "-dev_" in name or file["machine"] == "any":
                self.assertEqual((file["glibc"], file["libraries"]), (None, []), name)
            elif "musllinux" in name:
                self.assertEqual((file["glibc"], file["libraries"]), (None, ["libc.so"]), name)
            else:
                self.assertLessEqual(tuple(map(int, file["glibc"].split("."))), GLIBC)
