"""Types of the parts of the module for packages that are all installed here."""

import os
import subprocess
import sys
import tempfile
import unittest

from cluster import ROOT


class Types(unittest.TestCase):
    def test_the_module_passes_strict_checks(self):
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "tests/python/mypy.ini"]
        command += ["--cache-dir", os.devnull]
        for part in ["batch", "ray_serve", "lm_eval", "lm_eval.prefixes"]:
            command += ["-m", f"rwkv_edge.{part}"]
        done = subprocess.run(
            command, cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
