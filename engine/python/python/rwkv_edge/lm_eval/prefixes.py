"""Token sequences as a tree, so that a beginning that several have is read once.

A node is a run of tokens behind that of its parent. Nodes are read in batches; a state is copied where sequences part,
and goes when all that is behind it has been read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix

import numpy as np
from numpy.typing import NDArray

from .. import Model, State

# Tokens read in one pass, of nodes of which only the last row of logits is wanted: more are no faster.
_ROWS = 512
# Rows of logits in one pass of the others, in bytes.
_LOGITS_BYTES = 32 << 20
# States of nodes that wait, in bytes, beyond which those with many rows are no longer put off for a fuller batch.
_WAITING_BYTES = 256 << 20

LogLikelihood = tuple[float, bool]


@dataclass
class _Sequence:
    """Tokens to be read, and the tokens that are asked for behind the last of them."""

    number: int
    tokens: list[int]
    targets: list[int]


@dataclass
class _Node:
    tokens: list[int]
    """Which row (of this node), which sequence, which token is asked for there."""
    questions: list[tuple[int, int, int]]
    """Sequences that end here."""
    ends: list[int]
    children: "list[_Node]" = field(default_factory=list)

    @property
    def wants_all_rows(self) -> bool:
        return any(row != len(self.tokens) - 1 for row, _, _ in self.questions)


class _Held:
    """The state in front of nodes that wait: each gets a copy, the last one itself."""

    def __init__(self, state: State, n_uses: int):
        self.state, self.n_uses = state, n_uses

    def take(self) -> State:
        self.n_uses -= 1
        return self.state.copy() if self.n_uses else self.state


def log_likelihoods(
    model: Model, pairs: Sequence[tuple[list[int], list[int]]], done: Callable[[int], None]
) -> list[LogLikelihood]:
    """Of each continuation behind its context, both token ids, the context at least one: the sum of log p in nats, and
    whether each of its tokens is the likeliest one. `done` is told how many tokens more have been read."""
    sequences = [
        _Sequence(number, [*context, *continuation[:-1]], continuation)
        for number, (context, continuation) in enumerate(pairs)
        if continuation
    ]
    sums = [0.0] * len(pairs)
    greedy = [True] * len(pairs)

    def answer(node: _Node, logits: NDArray[np.float32]) -> None:
        # With one row that is the last.
        first = len(node.tokens) - len(logits)
        rows = sorted({row for row, _, _ in node.questions})
        asked = logits[[row - first for row in rows]]
        likeliest = asked.argmax(axis=1)
        largest = asked.max(axis=1, keepdims=True)
        totals = largest[:, 0] + np.log(np.exp(asked - largest).sum(axis=1, dtype=np.float64))
        places = {row: place for place, row in enumerate(rows)}
        for row, number, target in node.questions:
            place = places[row]
            sums[number] += float(asked[place, target]) - float(totals[place])
            greedy[number] &= bool(likeliest[place] == target)

    _read(model, _tree(sequences, _rows_max(model)), answer, lambda _number, _state: None, done)
    return list(zip(sums, greedy, strict=True))


def states_behind(model: Model, texts: Sequence[list[int]], done: Callable[[int], None]) -> list[State]:
    """A state behind each list of token ids, which may be empty."""
    states: dict[int, State] = {}
    sequences = [_Sequence(number, tokens, []) for number, tokens in enumerate(texts)]
    _read(model, _tree(sequences, _rows_max(model)), lambda _node, _logits: None, states.__setitem__, done)
    return [states[number] for number in range(len(texts))]


def _rows_max(model: Model) -> int:
    return max(1, _LOGITS_BYTES // (4 * model.n_vocab))


def _tree(sequences: list[_Sequence], rows_max: int) -> list[_Node]:
    """The nodes that begin at the empty state."""
    roots: list[_Node] = []
    # Sequences that agree up to some depth, sorted, and where their nodes go.
    waiting: list[tuple[list[_Sequence], int, list[_Node]]] = []

    def part(group: list[_Sequence], depth: int, nodes: list[_Node]) -> None:
        begin = 0
        for end in range(1, len(group) + 1):
            if end == len(group) or group[end].tokens[depth] != group[begin].tokens[depth]:
                waiting.append((group[begin:end], depth, nodes))
                begin = end

    ordered = sorted(sequences, key=lambda sequence: sequence.tokens)
    empty = [sequence for sequence in ordered if not sequence.tokens]
    if empty:
        roots.append(_Node([], [], [sequence.number for sequence in empty]))
    part(ordered[len(empty) :], 0, roots)
    while waiting:
        group, depth, nodes = waiting.pop()
        # What the first and the last of sorted ones have in common, all have.
        stop = len(commonprefix([group[0].tokens, group[-1].tokens]))
        ends = [sequence for sequence in group if len(sequence.tokens) == stop]
        questions = []
        for sequence in group:
            first = len(sequence.tokens) - len(sequence.targets)
            for row in range(max(first, depth), stop) if sequence.targets else ():
                questions.append((row - depth, sequence.number, sequence.targets[row - first]))
        node = _Node(group[0].tokens[depth:stop], questions, [sequence.number for sequence in ends])
        pieces = _pieces(node, rows_max)
        for piece, behind in zip(pieces, pieces[1:]):
            piece.children.append(behind)
        nodes.append(pieces[0])
        part(group[len(ends) :], stop, pieces[-1].children)
    return roots


def _pieces(node: _Node, rows_max: int) -> list[_Node]:
    """The node as one up to the first row that is asked for, and others for what is behind."""
    first = min((row for row, _, _ in node.questions), default=len(node.tokens) - 1)
    cuts = [0, first + 1, *range(first + 1 + rows_max, len(node.tokens), rows_max), len(node.tokens)]
    pieces = []
    for begin, end in zip(cuts, cuts[1:]):
        if begin < end:
            questions = [(row - begin, *rest) for row, *rest in node.questions if begin <= row < end]
            pieces.append(_Node(node.tokens[begin:end], questions, []))
    pieces[-1].ends = node.ends
    return pieces


def _read(
    model: Model,
    roots: list[_Node],
    answer: Callable[[_Node, NDArray[np.float32]], None],
    give: Callable[[int, State], None],
    done: Callable[[int], None],
) -> None:
    # Those that are read first were put in last, so that few states wait.
    short: list[tuple[_Node, _Held]] = []
    long: list[tuple[_Node, _Held]] = []

    def put(nodes: list[_Node], held: _Held) -> None:
        for node in nodes:
            (long if node.wants_all_rows else short).append((node, held))

    def behind(node: _Node, state: State) -> None:
        held = _Held(state, len(node.ends) + len(node.children))
        for number in node.ends:
            give(number, held.take())
        put(node.children, held)

    rows_max = _rows_max(model)
    waiting_max = max(8, _WAITING_BYTES // model.info["state_bytes"])
    empty = _Held(model.new_state(), len(roots))
    for root in roots:
        if root.tokens:
            put([root], empty)
        else:
            behind(root, empty.take())
    while short or long:
        n_long = sum(len(node.tokens) for node, _ in long)
        is_long = not short or n_long >= rows_max or len(long) > waiting_max
        nodes, room = (long, rows_max) if is_long else (short, _ROWS)
        batch = [nodes.pop()]
        room -= len(batch[0][0].tokens)
        while nodes and len(nodes[-1][0].tokens) <= room and len(batch) < waiting_max:
            batch.append(nodes.pop())
            room -= len(batch[-1][0].tokens)
        tokens = [node.tokens for node, _ in batch]
        states: list[State | None] = [held.take() for _, held in batch]
        rows: Sequence[NDArray[np.float32]]
        if is_long:
            rows, moved = model.forward_batch(tokens, states, all=True)
        else:
            logits, moved = model.forward_batch(tokens, states)
            rows = list(logits[:, np.newaxis])
        for (node, _), logits_of_node, state in zip(batch, rows, moved, strict=True):
            if node.questions:
                answer(node, logits_of_node)
            behind(node, state)
        done(sum(map(len, tokens)))
