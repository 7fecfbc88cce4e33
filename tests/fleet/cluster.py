"""A cluster of three nodes on one machine, for the length of the tests of a file, and processes in it."""

import logging
import os
import signal
import tempfile
import time
import unittest
from pathlib import Path

import ray
import rwkv_edge
from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[2]
# Of a node. Results are small.
OBJECT_STORE = {"object_store_memory": 100 * 2**20}


class ClusterTest(unittest.TestCase):
    """Nodes of one CPU each, in Ray's counting, and a model file that their workers map."""

    cpus = 1

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.model = cls.folder / "demo.rwkv"
        rwkv_edge.quantize(ROOT / "cli/demo", cls.model, "int8")
        node = {"num_cpus": cls.cpus, **OBJECT_STORE}
        cls.cluster = Cluster(initialize_head=True, head_node_args=node)
        cls.addClassCleanup(cls.cluster.shutdown)
        for _ in range(2):
            cls.cluster.add_node(**node)
        cls.cluster.wait_for_nodes()
        ray.init(address=cls.cluster.address, logging_level="warning", log_to_driver=False)
        cls.addClassCleanup(ray.shutdown)
        logging.getLogger("ray").setLevel(logging.WARNING)
        logging.getLogger("ray.data").setLevel(logging.WARNING)


def processes(*words: str) -> dict[int, str]:
    """Ids of processes of ours whose command lines have all words, and the lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words):
            found[int(path.parent.name)] = line
    return found


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def wait_until(holds, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise AssertionError("it did not come true in time")
        time.sleep(0.05)
