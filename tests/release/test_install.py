"""packaging/install.sh: what it finds out, what it leaves behind when something fails, and that it removes itself."""

import functools
import hashlib
import http.server
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
from pathlib import Path

from common import HERE, MACHINES, RELEASE, ROOT, TestCase, output, run

INSTALL = ROOT / "packaging/install.sh"


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_arguments):
        pass


class Elsewhere(Quiet):
    """Sends whoever asks to the server's `place`."""

    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", self.server.place + self.path)
        self.end_headers()


class Install(TestCase):
    def setUp(self):
        self.kind = f"{HERE.name}-linux-gnu"
        self.archive = self.released(f"rwkv-edge-[0-9]*-{self.kind}.tar.gz")
        # With a space: a user's folder may have one.
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory(prefix="with space ")))
        self.prefix = self.folder / "prefix"
        self.place = self.folder / "place"
        self.place.mkdir()
        for name in ["SHA256SUMS", self.archive.name]:
            shutil.copy(RELEASE / name, self.place / name)

    def install(self, *arguments, **options) -> subprocess.CompletedProcess:
        return run(["sh", INSTALL, *self.where(), *arguments], **options)

    def where(self) -> list:
        return ["--prefix", self.prefix, "--from", self.place]

    def assert_fails(self, words: str, *arguments, **options) -> None:
        done = self.install(*arguments, **options)
        self.assertEqual(done.returncode, 1, done)
        self.assertIn(words, done.stderr)

    def fake(self, **programs: str) -> dict:
        """Environment in which these programs are shell scripts."""
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        for name, text in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return {"PATH": f"{folder}:{os.environ['PATH']}"}

    def test_it_is_sound_shell(self):
        output(["shellcheck", INSTALL, ROOT / "packaging/release", ROOT / "packaging/deb", ROOT / "tests/release/run"])
        output(["sh", "-n", INSTALL])

    def test_installs_runs_and_is_gone_again(self):
        done = self.install()
        self.assertEqual(done.returncode, 0, done)
        command = self.prefix / "bin/rwkv-edge"
        self.assertIn("rwkv-edge 0", output([command, "--version"]))
        text = output([command, "--quant", "int8", "-n", "4", "Ownership is"])
        self.assertTrue(text.startswith("Ownership is a bit"), text)
        self.assertTrue((self.prefix / "share/man/man1/rwkv-edge.1.gz").is_file())
        first = files_below(self.prefix)
        self.assertFalse([name for name in first if name.startswith(".")])
        # Once more over itself: the same, and files of an earlier version that this one has not are gone.
        (self.prefix / "share/doc/rwkv-edge/OLD").write_text("old")
        with (self.prefix / "share/rwkv-edge/installed").open("a") as file:
            file.write("share/doc/rwkv-edge/OLD\n")
        self.assertEqual(self.install().returncode, 0)
        self.assertEqual(files_below(self.prefix), first)
        # A user's own file stays, with the folders that it needs.
        mine = self.prefix / "share/man/man1/mine.1"
        mine.write_text("mine")
        self.assertEqual(self.install("--uninstall").returncode, 0)
        self.assertEqual(files_below(self.prefix), ["share", "share/man", "share/man/man1", "share/man/man1/mine.1"])
        self.assert_fails("nothing that was installed", "--uninstall")

    def test_uninstalling_leaves_what_was_there(self):
        (self.prefix / "bin").mkdir(parents=True)
        self.assertEqual(self.install().returncode, 0)
        self.assertEqual(self.install("--uninstall").returncode, 0)
        self.assertEqual(files_below(self.prefix), ["bin"])
        self.prefix.joinpath("bin").rmdir()
        self.prefix.rmdir()
        self.assertEqual(self.install().returncode, 0)
        self.assertEqual(self.install("--uninstall").returncode, 0)
        self.assertFalse(self.prefix.exists())

    def test_failures_leave_nothing(self):
        archive = self.place / self.archive.name
        whole = archive.read_bytes()
        archive.write_bytes(whole[: len(whole) // 2])
        self.assert_fails("its SHA-256 is")
        archive.write_bytes(whole[:-1] + b"\0")
        self.assert_fails("its SHA-256 is")
        archive.unlink()
        self.assert_fails("not there")
        archive.write_bytes(whole)
        # The right sum of what is no archive.
        archive.write_bytes(b"not an archive")
        sums = self.place / "SHA256SUMS"
        kept = sums.read_text()
        sums.write_text(f"{hashlib.sha256(b'not an archive').hexdigest()}  {archive.name}\n")
        self.assert_fails("cannot be unpacked")
        sums.write_text("")
        self.assert_fails("names no file for")
        sums.unlink()
        self.assert_fails("not there")
        self.assertFalse(self.prefix.exists())
        sums.write_text(kept)
        archive.write_bytes(whole)
        # A disk that has room for the archive and not for what is in it: no file may be larger than that.
        blocks = len(whole) // 512 + 8
        limited = f"trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""
        done = run(["sh", "-c", limited, "sh", "sh", INSTALL, "--prefix", self.prefix, "--from", self.place])
        self.assertEqual(done.returncode, 1, done)
        self.assertFalse(self.prefix.exists())

    def test_a_failure_in_the_middle_of_an_update_is_taken_back(self):
        self.assertEqual(self.install().returncode, 0)
        (self.prefix / "bin/rwkv-edge").write_text("the old one")
        before = files_below(self.prefix)
        # The 20th time that a file is moved, it is not.
        moves = self.folder / "moves"
        moves.write_text("")
        environment = self.fake(
            mv=f"echo >> '{moves}'; [ $(wc -l < '{moves}') -ne 20 ] || exit 1; exec /bin/mv \"$@\""
        )
        self.assert_fails("cannot be written to", env=environment)
        self.assertEqual(files_below(self.prefix), before)
        self.assertEqual((self.prefix / "bin/rwkv-edge").read_text(), "the old one")

    def interrupting(self, program: str, pattern: str, how: str = 'exec /bin/PROGRAM "$@"') -> dict:
        """Environment in which the program, called with such arguments, ends what called it, and then does this."""
        how = how.replace("PROGRAM", program)
        text = f"case \"$*\" in {pattern}) kill -TERM $PPID; {how} ;; esac\nexec /bin/{program} \"$@\""
        return self.fake(**{program: text})

    def test_an_update_that_is_interrupted_is_taken_back(self):
        self.assertEqual(self.install().returncode, 0)
        (self.prefix / "bin/rwkv-edge").write_text("the old one")
        before = self.contents()
        for pattern in ["*/old/bin/rwkv-edge", "*/new/*/bin/rwkv-edge*", "*/old/share/rwkv-edge/installed"]:
            # What moves the file does so all the same, or has not begun.
            for how in ['exec /bin/PROGRAM "$@"', "exit 1"]:
                done = self.install(env=self.interrupting("mv", pattern, how))
                self.assertEqual(done.returncode, 143, done)
                self.assertEqual(self.contents(), before, (pattern, how))
        self.assertEqual(self.install("--uninstall").returncode, 0)
        done = self.install(env=self.interrupting("mv", "*/new/*/bin/rwkv-edge*"))
        self.assertEqual(done.returncode, 143, done)
        self.assertFalse(self.prefix.exists())

    def contents(self) -> dict[str, bytes]:
        return {name: (self.prefix / name).read_bytes() for name in files_below(self.prefix) if self.is_file(name)}

    def is_file(self, name: str) -> bool:
        return (self.prefix / name).is_file()

    def test_a_note_that_cannot_be_written_is_noticed(self):
        self.assertEqual(self.install().returncode, 0)
        before = self.contents()
        # As on a full disk: from the first file that is moved on, nothing can be written to this one.
        placed = f"'{self.prefix}'/.rwkv-edge-*/placed"
        move = f'for it in {placed}; do [ -d "$it" ] || {{ rm "$it"; mkdir "$it"; }}; done; exec /bin/mv "$@"'
        self.assert_fails("cannot be written to", env=self.fake(mv=move))
        self.assertEqual(self.contents(), before)

    def test_what_cannot_be_put_back_is_kept(self):
        self.assertEqual(self.install().returncode, 0)
        (self.prefix / "bin/rwkv-edge").write_text("the old one")
        move = 'case "$*" in */old/bin/rwkv-edge) ;; *bin/rwkv-edge*) exit 1 ;; esac; exec /bin/mv "$@"'
        self.assert_fails("not all could be put back", env=self.fake(mv=move))
        (kept,) = self.prefix.glob(".rwkv-edge-*/old/bin/rwkv-edge")
        self.assertEqual(kept.read_text(), "the old one")

    def test_uninstalling_that_is_interrupted_is_done_by_another(self):
        self.assertEqual(self.install().returncode, 0)
        lines = (self.prefix / "share/rwkv-edge/installed").read_text().splitlines()
        last = [line for line in lines if not line.endswith("/")][-1]
        for pattern in ["*/bin/rwkv-edge", f"*/{last}"]:
            done = self.install("--uninstall", env=self.interrupting("rm", pattern))
            self.assertEqual(done.returncode, -15, done)
            self.assertTrue(self.is_file("share/rwkv-edge/installed"))
        self.assertEqual(self.install("--uninstall").returncode, 0)
        self.assertFalse(self.prefix.exists())

    def test_uninstalling_goes_on_after_what_it_cannot_remove(self):
        self.assertEqual(self.install().returncode, 0)
        command = self.prefix / "bin/rwkv-edge"
        command.unlink()
        command.mkdir()
        (command / "mine").write_text("mine")
        self.assert_fails("still in share/rwkv-edge/installed:\nbin/rwkv-edge\n", "--uninstall")
        rest = ["bin", "bin/rwkv-edge", "bin/rwkv-edge/mine", "share", "share/rwkv-edge", "share/rwkv-edge/installed"]
        self.assertEqual(files_below(self.prefix), rest)
        left = (self.prefix / "share/rwkv-edge/installed").read_text().splitlines()
        self.assertEqual(sorted(left), ["/", "bin/", "bin/rwkv-edge", "share/", "share/rwkv-edge/", rest[-1]])
        # Nor does installing put a folder aside, and with it what is not its own.
        self.assert_fails("is a folder")
        self.assertEqual(files_below(self.prefix), rest)
        shutil.rmtree(command)
        self.assertEqual(self.install("--uninstall").returncode, 0)
        self.assertFalse(self.prefix.exists())

    def test_a_list_with_files_elsewhere_is_refused(self):
        self.assertEqual(self.install().returncode, 0)
        mine = self.folder / "mine"
        mine.write_text("mine")
        (self.folder / "empty").mkdir()
        installed = self.prefix / "share/rwkv-edge/installed"
        kept = installed.read_text()
        before = files_below(self.folder)
        for line in ["../mine", "bin/../../mine", "..", "share/..", "../empty/", str(mine), "/empty/", "", ".\0./mine"]:
            for text in [kept + line + "\n", kept + line, line + "\n" + kept]:
                if text == kept:
                    continue
                installed.write_text(text)
                for arguments in [["--uninstall"], []]:
                    self.assert_fails("is not of a file below", *arguments)
                    self.assertEqual(files_below(self.folder), before)
        installed.write_text(kept)
        self.assertEqual(self.install("--uninstall").returncode, 0)

    def test_does_not_replace_a_link_that_leads_nowhere(self):
        (self.prefix / "bin").mkdir(parents=True)
        link = self.prefix / "bin/rwkv-edge"
        link.symlink_to("nowhere")
        self.assert_fails("is there already")
        self.assertEqual(files_below(self.prefix), ["bin", "bin/rwkv-edge"])
        # One in the place of what was installed comes back where an update fails.
        link.unlink()
        self.assertEqual(self.install().returncode, 0)
        link.unlink()
        link.symlink_to("nowhere")
        self.assertEqual(self.install(env=self.interrupting("mv", "*/new/*/bin/rwkv-edge*")).returncode, 143)
        self.assertEqual(os.readlink(link), "nowhere")

    def test_all_folders_that_were_made_are_gone_again(self):
        self.prefix = self.folder / "n1/n2/n3"
        for failing in [{"gzip": "exit 1"}, {"mv": "exit 1"}, {"mktemp": "exit 1"}]:
            self.assertEqual(self.install(env=self.fake(**failing)).returncode, 1)
            self.assertFalse((self.folder / "n1").exists(), failing)
        # An update keeps in mind what was made before, and the prefix may be called otherwise.
        (self.folder / "link").symlink_to("n1")
        for _ in range(2):
            self.assertEqual(self.install().returncode, 0)
        self.prefix = self.folder / "link/n2/../n2/n3/"
        self.assertEqual(self.install("--uninstall").returncode, 0)
        self.assertFalse((self.folder / "n1").exists())
        # What else has come there stays.
        self.prefix = self.folder / "n1/n2/n3"
        self.assertEqual(self.install().returncode, 0)
        (self.folder / "n1/mine").write_text("mine")
        self.assertEqual(self.install("--uninstall").returncode, 0)
        self.assertEqual(files_below(self.folder / "n1"), ["mine"])
        self.prefix = self.folder / "n4/../n5"
        self.assert_fails("goes back from a folder that is not there")

    def test_others_may_read_what_is_installed(self):
        self.prefix = self.folder / "n1/n2"
        done = run(["sh", "-c", 'umask 077; exec "$@"', "sh", "sh", INSTALL, *self.where()])
        self.assertEqual(done.returncode, 0, done)
        for path in [self.folder / "n1", *(self.folder / "n1").rglob("*")]:
            expected = 0o755 if path.is_dir() or path.parent.name == "bin" else 0o644
            self.assertEqual(path.stat().st_mode & 0o777, expected, path)

    def test_does_not_overwrite_what_is_not_its_own(self):
        (self.prefix / "bin").mkdir(parents=True)
        (self.prefix / "bin/rwkv-edge").write_text("of pip")
        self.assert_fails("is there already")
        self.assertEqual(files_below(self.prefix), ["bin", "bin/rwkv-edge"])

    def test_finds_out_what_machine_it_is(self):
        glibc = "if [ $1 = LONG_BIT ]; then echo {bits}; else echo 'glibc {version}'; fi"
        none = "if [ $1 = LONG_BIT ]; then echo 64; else exit 1; fi"
        musl = "echo 'musl libc (x86_64)' >&2; exit 1"
        for machine, programs, kind in [
            ("x86_64", {"getconf": glibc.format(bits=64, version="2.36")}, "x86_64-linux-gnu"),
            ("x86_64", {"getconf": glibc.format(bits=64, version="2.17")}, "x86_64-linux-gnu"),
            ("x86_64", {"getconf": glibc.format(bits=64, version="2.12")}, "x86_64-linux-static"),
            ("x86_64", {"getconf": none, "ldd": musl}, "x86_64-linux-static"),
            ("x86_64", {"getconf": none, "ldd": "echo 'ldd (Debian GLIBC 2.31-13) 2.31'"}, "x86_64-linux-gnu"),
            ("aarch64", {"getconf": glibc.format(bits=64, version="2.31")}, "aarch64-linux-gnu"),
            ("aarch64", {"getconf": glibc.format(bits=32, version="2.31")}, "aarch64-linux-static"),
            ("arm64", {"getconf": none, "ldd": musl}, "aarch64-linux-static"),
            ("armv7l", {"getconf": glibc.format(bits=32, version="2.36")}, "armv7-linux-gnu"),
            ("armv8l", {"getconf": glibc.format(bits=32, version="2.36")}, "armv7-linux-gnu"),
        ]:
            uname = f"case $1 in -s) echo Linux ;; *) echo {machine} ;; esac"
            done = self.install("--dry-run", env=self.fake(uname=uname, **programs))
            self.assertEqual(done.returncode, 0, done)
            self.assertIn(f"for {kind},", done.stdout, (machine, programs))
        for text, words, programs in [
            ("echo Darwin", "only Linux", {}),
            ("case $1 in -s) echo Linux ;; *) echo riscv64 ;; esac", "riscv64", {}),
            ("case $1 in -s) echo Linux ;; *) echo armv6l ;; esac", "armv6l", {}),
            ("case $1 in -s) echo Linux ;; *) echo armv7l ;; esac", "needs glibc", {"getconf": none, "ldd": musl}),
        ]:
            self.assert_fails(words, env=self.fake(uname=text, **programs))
        self.assertFalse(self.prefix.exists())

    def test_does_not_install_what_does_not_run(self):
        other = MACHINES[2] if self.kind.startswith("x86_64") else MACHINES[0]
        archive = self.released(f"rwkv-edge-[0-9]*-{other.name}-linux-gnu.tar.gz")
        shutil.copy(archive, self.place)
        # For a folder with another machine's files, it is not tried.
        done = self.install("--machine", f"{other.name}-linux-gnu")
        self.assertEqual(done.returncode, 0, done)
        self.assertEqual(self.install("--uninstall").returncode, 0)
        # Whoever says that this is that machine: where the kernel cannot run it, nothing is left.
        name = "armv7l" if other.name == "armv7" else other.name
        uname = f"case $1 in -s) echo Linux ;; *) echo {name} ;; esac"
        if not self.runs(archive):
            self.assert_fails("does not run on this machine", env=self.fake(uname=uname))
            self.assertFalse(self.prefix.exists())

    def runs(self, archive: Path) -> bool:
        """Whether this machine's kernel hands such programs to an emulator."""
        tree = self.unpacked(archive, Path(self.enterContext(tempfile.TemporaryDirectory())))
        try:
            return run([tree / "bin/rwkv-edge", "--version"]).returncode == 0
        except OSError:
            return False

    def test_from_an_address(self):
        handler = functools.partial(Quiet, directory=str(self.place))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            nothing = self.fake(curl="exit 22")
            for environment, code in [({}, 0), (nothing, 1)]:
                done = run(["sh", INSTALL, "--prefix", self.prefix, "--from", address], env=environment)
                self.assertEqual(done.returncode, code, done)
                self.assertIn("over http", done.stderr)
                if code == 0:
                    self.assertEqual(self.install("--uninstall").returncode, 0)
                self.assertFalse(self.prefix.exists())
            # Without curl, by wget: a PATH that has all but curl.
            tools = Path(self.enterContext(tempfile.TemporaryDirectory()))
            for folder in ["/bin", "/usr/bin"]:
                for program in Path(folder).iterdir():
                    if program.name != "curl" and not (tools / program.name).exists():
                        (tools / program.name).symlink_to(program)
            environment = {"PATH": str(tools)}
            done = run(["/bin/sh", INSTALL, "--prefix", self.prefix, "--from", address], env=environment)
            self.assertEqual(done.returncode, 0, done)
            server.shutdown()
        # Nobody is there any more.
        done = run(["sh", INSTALL, "--prefix", self.folder / "other", "--from", address])
        self.assertEqual(done.returncode, 1)
        self.assertFalse((self.folder / "other").exists())

    def test_https_stays_https(self):
        certificate = self.folder / "certificate.pem"
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", certificate, "-out", certificate]
        output(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        handler = functools.partial(Quiet, directory=str(self.place))
        with (
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as plain,
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as direct,
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as sends_on,
        ):
            for server in [direct, sends_on]:
                server.socket = context.wrap_socket(server.socket, server_side=True)
            for server in [plain, direct, sends_on]:
                threading.Thread(target=server.serve_forever, daemon=True).start()
            environment = {"CURL_CA_BUNDLE": str(certificate)}
            https, http_only = f"https://localhost:{direct.server_port}", f"http://127.0.0.1:{plain.server_port}"
            for sends_on.place, code in [(https, 0), (http_only, 1)]:
                address = f"https://localhost:{sends_on.server_port}"
                done = run(["sh", INSTALL, "--prefix", self.prefix, "--from", address], env=environment)
                self.assertEqual(done.returncode, code, done)
                self.assertNotIn("over http", done.stderr)
                if code == 0:
                    self.assertEqual(self.install("--uninstall").returncode, 0)
                self.assertFalse(self.prefix.exists())
            for server in [plain, direct, sends_on]:
                server.shutdown()

    def test_half_a_script_does_nothing(self):
        half = self.folder / "half.sh"
        text = INSTALL.read_text()
        half.write_text(text[: text.rindex("main ")])
        done = run(["sh", half, "--prefix", self.prefix, "--from", self.place])
        self.assertEqual((done.returncode, done.stdout), (0, ""))
        self.assertFalse(self.prefix.exists())

    def test_help(self):
        for option in ["--help", "-h"]:
            done = run(["sh", INSTALL, option])
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            for word in ["--prefix", "--from", "--machine", "--dry-run", "--uninstall", "-h, --help"]:
                self.assertRegex(done.stdout, rf"(?m)^    {word}\b.* [a-z]")

    def test_values_after_an_equals_sign(self):
        values = [f"--prefix={self.prefix}", f"--from={self.place}", "--machine=armv7-linux-gnu"]
        done = run(["sh", INSTALL, *values, "--dry-run"])
        self.assertEqual(done.returncode, 0, done)
        self.assertIn(f"for armv7-linux-gnu, from {self.place}, into {self.prefix}\n", done.stdout)

    def test_wrong_usage(self):
        for arguments in [["--no-such"], ["--prefix"], ["--prefix="], ["more"], ["--uninstall", "--dry-run"]]:
            done = run(["sh", INSTALL, *arguments])
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertIn(f"install.sh: {arguments[-1].removesuffix('=')}", done.stderr)
            self.assertIn("usage:", done.stderr)
        self.assert_fails("no such kind", "--machine", "pdp11")
