"""The workflows of hosted runners: that they are YAML, and run nothing but scripts of the repository."""

import os
import unittest

import yaml
from common import ROOT


class Workflows(unittest.TestCase):
    def test_they_run_our_scripts_alone(self):
        paths = sorted((ROOT / ".github/workflows").iterdir())
        self.assertGreaterEqual(len(paths), 2)
        for path in paths:
            workflow = yaml.safe_load(path.read_text())
            # YAML takes `on` for a truth value.
            self.assertTrue({"name", "permissions", "jobs", True} <= set(workflow), path)
            runs = []
            for job in workflow["jobs"].values():
                self.assertIn("runs-on", job)
                self.assertIn("timeout-minutes", job)
                self.assertLessEqual({*job.get("needs", "").split()}, set(workflow["jobs"]))
                for step in job["steps"]:
                    self.assertEqual(len({"run", "uses"} & set(step)), 1, step)
                    if "uses" in step:
                        self.assertRegex(step["uses"], r"^actions/[a-z-]+@v\d+$")
                    else:
                        runs.append(step["run"])
            self.assertTrue(runs, path)
            for line in runs:
                self.assertNotIn("\n", line)
                words = line.removeprefix("sudo --preserve-env=PATH ").split()
                if words[0].startswith("installed/"):
                    # What a script of ours has put there.
                    continue
                self.assertTrue(os.access(ROOT / words[0], os.X_OK), line)
