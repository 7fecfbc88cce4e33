"""Ray Data: ten thousand prompts over workers of three nodes, and one of them that is killed."""

import os

import ray
import rwkv_edge
from cluster import ClusterTest, kill, processes
from rwkv_edge.batch import Batch

N_ROWS = 10_000
TOPICS = ["Ownership is", "A trait", "The borrow checker", "An iterator", "A lifetime", "The server", "A crate"]


class Signed(Batch):
    """Tells which process had a row."""

    def __call__(self, columns):
        return {**super().__call__(columns), "process": [os.getpid()] * len(columns["id"])}


class Killed(ClusterTest):
    def rows(self, after_rows=None) -> dict[int, tuple]:
        """What comes of all prompts; when so many have come, a worker is killed."""
        prompts = [{"id": n, "prompt": f"{TOPICS[n % len(TOPICS)]} {n}"} for n in range(N_ROWS)]
        data = ray.data.from_items(prompts, override_num_blocks=80).map_batches(
            Signed,
            fn_constructor_kwargs={
                "model": str(self.model), "key": "id", "seed": 7, "temperature": 1.0, "top_p": 0.9, "max_new_tokens": 4,
            },
            batch_size=64,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=3),
        )
        found: dict[int, tuple] = {}
        killed, workers = None, set()
        for row in data.iter_rows():
            self.assertNotIn(row["id"], found)
            found[row["id"]] = (row["prompt"], row["generated"], row["finish_reason"], row["n_tokens"])
            workers.add(row["process"])
            if len(found) == after_rows:
                killed = row["process"]
                self.assertIn(killed, processes("ray::", "MapWorker"))
                kill(killed)
        # One more of them has taken the killed one's place, and has had rows.
        self.assertEqual(len(workers), 3 if after_rows is None else 4)
        return found

    def test_every_row_is_there_once_and_as_without_it(self):
        whole = self.rows()
        self.assertEqual(sorted(whole), list(range(N_ROWS)))
        # They were drawn: rows of one beginning differ.
        self.assertGreater(len({text for _, text, _, _ in whole.values()}), N_ROWS // 20)
        self.assertEqual(self.rows(after_rows=2_000), whole)
        # And as one process alone has it, whichever rows are beside it.
        alone = Batch(self.model, key="id", seed=7, temperature=1.0, top_p=0.9, max_new_tokens=4, threads=1)
        some = list(range(0, N_ROWS, 97))
        batch = alone({"id": some, "prompt": [whole[n][0] for n in some]})
        self.assertEqual(batch["generated"], [whole[n][1] for n in some])


class Tasks(ClusterTest):
    def mapped(self, rows: list[dict], **options) -> list[dict]:
        data = ray.data.from_items(rows, override_num_blocks=3).map_batches(
            Batch,
            fn_constructor_kwargs={"model": str(self.model), **options},
            batch_size=4,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=2),
        )
        return sorted(data.take_all(), key=lambda row: row["id"])

    def test_threads_are_the_cpus_of_a_worker(self):
        class Told(Batch):
            def __call__(self, columns):
                return {"threads": [self._model.info["threads"]] * len(columns["id"])}

        data = ray.data.range(4).map_batches(
            Told,
            fn_constructor_kwargs={"model": str(self.model)},
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        self.assertEqual({row["threads"] for row in data.take_all()}, {1})

    def test_messages_vectors_and_scores(self):
        model = rwkv_edge.Model(self.model, threads=1)
        talks = [[{"role": "user", "content": f"What is trait {n}?"}] for n in range(9)]
        rows = [{"id": n, "messages": talk} for n, talk in enumerate(talks)]
        found = self.mapped(rows, task="chat", max_new_tokens=6)
        alone = [model.chat(talk, max_new_tokens=6).text for talk in talks]
        self.assertEqual([row["generated"] for row in found], alone)
        texts = [f"A trait {n}" for n in range(9)]
        rows = [{"id": n, "text": text} for n, text in enumerate(texts)]
        for row, vector in zip(self.mapped(rows, task="embed"), model.embed(texts), strict=True):
            self.assertEqual(list(row["embedding"]), list(vector))
        self.assertEqual([row["score"] for row in self.mapped(rows, task="score")], list(model.score(texts)))

    def test_bad_rows_do_not_fail_the_others(self):
        rows = [{"id": n, "prompt": "" if n == 5 else f"A trait {n}"} for n in range(9)]
        found = self.mapped(rows, errors="column", max_new_tokens=3)
        self.assertEqual([row["id"] for row in found if row["error"]], [5])
        self.assertIn("empty", found[5]["error"])
        self.assertEqual([bool(row["generated"]) for row in found], [n != 5 for n in range(9)])
        with self.assertRaisesRegex(ray.exceptions.RayTaskError, "empty"):
            self.mapped(rows, max_new_tokens=3)
