"""Columns of rows in, columns out: what engines for large data call on each of their workers.

    ds.map_batches(
        rwkv_edge.batch.Batch,
        fn_constructor_kwargs={"model": "model.rwkv", "key": "id", "max_new_tokens": 64},
        num_cpus=2, compute=ray.data.ActorPoolStrategy(size=4), batch_size=64)

A row's result depends on the row alone: it is the same, bit for bit, however rows are cut into batches and whichever
worker has them, also where tokens are drawn. So a batch that is done again gives the same rows again. Only with f32
weights the last digits of logits depend on what stands beside a row.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

from . import Error, Model

__all__ = ["Batch"]

# What a task reads unless it is told otherwise.
_COLUMNS = {"generate": "prompt", "chat": "messages", "embed": "text", "score": "text"}


class Batch:
    """A model that is called with columns of rows, and gives them with columns of results beside them.

    model: the path of what `Model` opens. A model file is mapped, so that all workers of a machine share its memory;
        what other checkpoints become is each worker's own
    task: 'generate' (a text to each prompt), 'chat' (an answer to each list of messages, or to its JSON), 'embed' (a
        vector) or 'score' (a log likelihood in nats)
    column: what is read: 'prompt', 'messages' or 'text' unless another is said
    key: a column of int, str or bytes that tells rows apart. What is drawn depends on it and on `seed`; without one
        the text is the key, so that equal texts have equal results
    seed: another one gives other draws
    errors: with 'raise' a row that cannot be worked on, such as an empty prompt, fails its batch. With 'column' there
        is one more column, 'error', and such a row has the reason there and '', 0 or NaN as its results; all others ''
    threads: of this worker; None is what OMP_NUM_THREADS says, which Ray sets to `num_cpus`, or else one for each
        physical core
    quant, max_memory, tokenizer: as of `Model`
    options: those of `Model.generate`, `chat`, `embed` or `score`, for all rows

    The columns of results are 'generated', 'finish_reason' and 'n_tokens', of chats also 'thought', all lists;
    'embedding', float32 (rows, width); or 'score', float64 (rows). A process opens a model once, and keeps it. A Batch
    pickles as its arguments.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        task: Literal["generate", "chat", "embed", "score"] = "generate",
        *,
        column: str | None = None,
        key: str | None = None,
        seed: int = 0,
        errors: Literal["raise", "column"] = "raise",
        threads: int | None = None,
        quant: str | None = None,
        max_memory: int | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        if task not in _COLUMNS:
            raise ValueError(f"task: {task!r}, expected one of {', '.join(_COLUMNS)}")
        if errors not in ("raise", "column"):
            raise ValueError(f"errors: {errors!r}, expected raise or column")
        if "state" in options:
            raise TypeError("state: rows begin at the empty state")
        self._again = functools.partial(
            Batch,
            model,
            task,
            column=column,
            key=key,
            seed=seed,
            errors=errors,
            threads=threads,
            quant=quant,
            max_memory=max_memory,
            tokenizer=tokenizer,
            **options,
        )
        self._task, self._column, self._key, self._seed, self._errors = task, column, key, seed, errors
        self._options = options
        if threads is None:
            threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        tokenizer = None if tokenizer is None else os.fspath(tokenizer)
        self._model = _opened(os.fspath(model), quant, threads, max_memory, tokenizer)
        # Options that make no sense are told here, and not by the first batch.
        draws = {"max_new_tokens": 1} if task in ("generate", "chat") else {}
        (self._sample,) = self._work([[{"role": "user", "content": "A"}] if task == "chat" else [0]], [0], **draws)

    def __reduce__(self) -> tuple[Callable[[], "Batch"], tuple[()]]:
        return self._again, ()

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The given columns, lists or numpy arrays, and those of the results, all of as many rows."""
        rows = self._of(columns, self._column or _COLUMNS[self._task])
        keys = rows if self._key is None else self._of(columns, self._key)
        results: list[Any] = [None] * len(rows)
        errors = [""] * len(rows)
        # Halves of what fails, until the rows are found that do: the others' results do not depend on it.
        waiting = [range(len(rows))] if rows else []
        while waiting:
            some = waiting.pop()
            try:
                found = self._work([rows[row] for row in some], [keys[row] for row in some])
            except (Error, TypeError, ValueError) as error:
                if self._errors == "raise":
                    raise
                if len(some) > 1:
                    half = len(some) // 2
                    waiting += [some[half:], some[:half]]
                else:
                    errors[some[0]] = f"{type(error).__name__}: {error}"
                continue
            for row, result in zip(some, found, strict=True):
                results[row] = result
        told = {"error": errors} if self._errors == "column" else {}
        return {**columns, **self._columns_of(results), **told}

    def _of(self, columns: Mapping[str, Any], name: str) -> list[Any]:
        if name not in columns:
            raise KeyError(f"no column {name!r}, expected it among {', '.join(map(repr, columns))}")
        # numpy's numbers, and lists within arrays, as Python has them.
        return [item.tolist() if hasattr(item, "tolist") else item for item in columns[name]]

    def _work(self, rows: list[Any], keys: list[Any], **more: Any) -> list[Any]:
        options = {**self._options, **more}
        match self._task:
            case "embed":
                return list(self._model.embed([_text(row) for row in rows], **options))
            case "score":
                return list(self._model.score([_text(row) for row in rows], **options))
        seeds = [self._seed_of(key) for key in keys]
        if self._task == "chat":
            return self._model.chat([_messages(row) for row in rows], seed=seeds, **options)
        return self._model.generate([_text(row) for row in rows], seed=seeds, **options)

    def _seed_of(self, key: Any) -> int:
        if self._key is not None and not isinstance(key, (int, str, bytes)):
            raise TypeError(f"{self._key}: {type(key).__name__}, expected keys of type int, str or bytes")
        told_apart = repr((self._seed, key)).encode()
        return int.from_bytes(hashlib.blake2b(told_apart, digest_size=8).digest(), "little")

    def _columns_of(self, results: list[Any]) -> dict[str, Any]:
        if self._task in ("generate", "chat"):
            names = ["thought", "finish_reason"] if self._task == "chat" else ["finish_reason"]
            texts = {"generated": [(result and result.text) or "" for result in results]}
            facts = {name: [(result and getattr(result, name)) or "" for result in results] for name in names}
            return {**texts, **facts, "n_tokens": [len(result.tokens) if result else 0 for result in results]}
        # It was imported when the engine gave the first array.
        import numpy as np

        name = "embedding" if self._task == "embed" else "score"
        values = np.full((len(results), *np.shape(self._sample)), np.nan, self._sample.dtype)
        for row, result in enumerate(results):
            if result is not None:
                values[row] = result
        return {name: values}


# Also where several stages of a job have the same model.
@functools.cache
def _opened(
    path: str,
    quant: Any,
    threads: int,
    max_memory: int | None,
    tokenizer: str | None,
) -> Model:
    return Model(path, quant=quant, threads=threads, max_memory=max_memory, tokenizer=tokenizer)


def _text(row: Any) -> Any:
    """A text, or token ids."""
    if not isinstance(row, (str, list)):
        raise TypeError(f"{type(row).__name__}, expected a str, or a list of token ids")
    return row


def _messages(row: Any) -> Any:
    found = json.loads(row) if isinstance(row, str) else row
    if not isinstance(found, list) or not all(isinstance(message, Mapping) for message in found):
        raise TypeError("expected a list of messages, each a dict with role and content, or its JSON")
    return found
