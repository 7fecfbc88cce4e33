"""Writes manifest.json and SHA256SUMS of a folder of released files: for which machine each is, and which glibc and which
libraries the programs in it need. That is read from the files themselves.

usage: manifest.py FOLDER VERSION COMMIT RUSTC
       manifest.py --glibc PROGRAM      prints the version of glibc that a program or library needs
"""

import hashlib
import io
import json
import lzma
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile

AR, ELF = b"!<arch>\n", b"\x7fELF"
OWN = ("SHA256SUMS", "manifest.json")
MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64", "EM_ARM": "armv7"}


def of_tar(tar: tarfile.TarFile) -> Iterator[bytes]:
    for member in tar:
        if (file := member.isfile() and tar.extractfile(member)) is not False and file is not None:
            yield file.read()


def of_ar(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and bytes of an archive of `ar`, which Debian packages and static libraries are."""
    at = len(AR)
    while at < len(data):
        name, size = data[at : at + 16].strip(b" /"), int(data[at + 48 : at + 58])
        yield name, data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def members(path: Path) -> Iterator[bytes]:
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as tar:
            yield from of_tar(tar)
    elif path.suffix == ".deb":
        for name, content in of_ar(path.read_bytes()):
            if name == b"data.tar.xz":
                yield from of_tar(tarfile.open(fileobj=io.BytesIO(lzma.decompress(content))))
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield archive.read(name)


def facts_of_programs(files: Iterable[bytes]) -> dict:
    machines, versions, needed, dynamic = set(), set(), set(), False
    for data in files:
        if data.startswith(AR):
            # A static library: its objects say what machine they are for, and need nothing by themselves.
            objects = (content for _, content in of_ar(data) if content.startswith(ELF))
            machines.add(MACHINES[ELFFile(io.BytesIO(next(objects)))["e_machine"]])
        if not data.startswith(ELF):
            continue
        elf = ELFFile(io.BytesIO(data))
        machines.add(MACHINES[elf["e_machine"]])
        if (section := elf.get_section_by_name(".dynamic")) is not None:
            libraries = [tag.needed for tag in section.iter_tags("DT_NEEDED")]
            needed.update(libraries)
            dynamic = dynamic or bool(libraries)
        if (section := elf.get_section_by_name(".gnu.version_r")) is not None:
            for _, auxiliaries in section.iter_versions():
                for auxiliary in auxiliaries:
                    if found := re.fullmatch(r"GLIBC_([0-9.]+)", auxiliary.name):
                        versions.add(tuple(int(part) for part in found[1].split(".")))
    if not machines:
        return {"machine": "any", "glibc": None, "libraries": []}
    (machine,) = machines
    newest = ".".join(map(str, max(versions))) if versions else None
    return {"machine": machine, "glibc": newest if dynamic else None, "libraries": sorted(needed)}


def main() -> None:
    if sys.argv[1] == "--glibc":
        print(facts_of_programs([Path(sys.argv[2]).read_bytes()])["glibc"])
        return
    folder, version, commit, rustc = Path(sys.argv[1]), *sys.argv[2:]
    files, sums = [], []
    for path in sorted(folder.iterdir()):
        if path.name in OWN:
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        facts = facts_of_programs(members(path))
        files.append({"file": path.name, "bytes": path.stat().st_size, **facts, "sha256": digest})
        sums.append(f"{digest}  {path.name}\n")
    manifest = {"version": version, "commit": commit, "rustc": rustc, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text("".join([*sums, f"{digest}  manifest.json\n"]), encoding="utf-8")


main()
