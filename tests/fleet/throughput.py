"""What Ray costs: rows a second of two plain processes of one thread each that are started together, and of two
workers of one thread of Ray Data, in turns. Rows are counted from the first batch's begin to the last one's end.

usage: tests/fleet/run throughput.py [ROUNDS] [ROWS]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
import rwkv_edge
from rwkv_edge.batch import Batch

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"max_new_tokens": 16, "threads": 1}
SIZE = 64


class Timed(Batch):
    def __call__(self, columns):
        begin = time.time()
        answer = super().__call__(columns)
        return {"n_tokens": answer["n_tokens"], "begin": [begin] * SIZE, "end": [time.time()] * SIZE}


def prompts(n: int) -> list[str]:
    return [f"A trait {row}" for row in range(n)]


def rate(begins: list[float], ends: list[float], n: int) -> float:
    return n / (max(ends) - min(begins))


def plain(model: Path, n: int) -> float:
    """Two processes, each with half of the rows, which begin when both have opened the model."""
    command = [sys.executable, __file__, "--half", str(model), str(n // 2)]
    halves = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for half in halves:
        assert half.stdout.readline() == "ready\n"
    for half in halves:
        half.stdin.write("go\n")
        half.stdin.flush()
    times = [json.loads(half.communicate()[0]) for half in halves]
    return rate(*zip(*times), n)


def half(model: str, n: int) -> None:
    batch = Batch(model, **OPTIONS)
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.time()
    rows = prompts(n)
    for first in range(0, n, SIZE):
        batch({"prompt": rows[first : first + SIZE]})
    print(json.dumps([begin, time.time()]))


def under_ray(model: Path, n: int) -> tuple[float, float]:
    """The rate, and that of the job from its start to its end."""
    begin = time.time()
    data = ray.data.from_items([{"prompt": prompt} for prompt in prompts(n)], override_num_blocks=n // SIZE)
    data = data.map_batches(
        Timed, fn_constructor_kwargs={"model": str(model), **OPTIONS}, batch_size=SIZE, num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    rows = data.take_all()
    assert len(rows) == n
    return rate([row["begin"] for row in rows], [row["end"] for row in rows], n), n / (time.time() - begin)


def main() -> None:
    given = [int(argument) for argument in sys.argv[1:]]
    rounds, n = given + [3, 16384][len(given) :]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "demo.rwkv"
        rwkv_edge.quantize(ROOT / "cli/demo", model, "int8")
        ray.init(num_cpus=2, object_store_memory=200 * 2**20, logging_level="warning", log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        shares = []
        for _ in range(rounds):
            alone, (workers, whole) = plain(model, n), under_ray(model, n)
            shares.append(workers / alone)
            print(f"{n} rows: two processes {alone:.1f} rows/s, two workers {workers:.1f} rows/s ({shares[-1]:.3f}), "
                  f"with the job's start {whole:.1f} rows/s ({whole / alone:.3f})", flush=True)
        print(f"median {statistics.median(shares):.3f}")


if __name__ == "__main__":
    half(*sys.argv[2:3], int(sys.argv[3])) if sys.argv[1:2] == ["--half"] else main()
