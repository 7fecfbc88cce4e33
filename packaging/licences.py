"""Writes the licences of all crates that a package of this workspace is linked with on a target, each text once.

usage: licences.py MANIFEST PACKAGE TARGET FILE
"""

import json
import subprocess
import sys
from pathlib import Path

NAMES = ("LICEN", "COPYING", "NOTICE", "UNLICENSE")


def linked(metadata: dict, name: str) -> list[dict]:
    """The packages of other people that end up in a program, without what only builds or tests it."""
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    (first,) = [key for key, package in packages.items() if package["name"] == name]
    found, open_ends = set(), [first]
    while open_ends:
        key = open_ends.pop()
        if key in found:
            continue
        found.add(key)
        for dependency in nodes[key]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                open_ends.append(dependency["pkg"])
    chosen = [packages[key] for key in found if packages[key]["source"] is not None]
    return sorted(chosen, key=lambda package: (package["name"], package["version"]))


def main() -> None:
    manifest, name, target, output = sys.argv[1:]
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    done = subprocess.run([*command, "--manifest-path", manifest], check=True, stdout=subprocess.PIPE)
    metadata = json.loads(done.stdout)
    users: dict[str, list[str]] = {}
    lines = []
    for package in linked(metadata, name):
        title = f"{package['name']} {package['version']}"
        lines.append(f"{title}: {package['license'] or 'see its text below'}")
        if not package["license"] and not package["license_file"]:
            sys.exit(f"licences.py: {title} states no licence")
        folder = Path(package["manifest_path"]).parent
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.name.upper().startswith(NAMES):
                text = file.read_text(encoding="utf-8", errors="replace").strip()
                users.setdefault(text, []).append(title)
    with open(output, "w", encoding="utf-8") as file:
        file.write("Crates of other people that are part of this program, and their licences.\n\n")
        file.write("\n".join(lines) + "\n")
        for text, titles in users.items():
            file.write(f"\n{'-' * 80}\n{', '.join(titles)}:\n\n{text}\n")


main()
