"""Static draft trees: which of a draft's ranked guesses are tried at which depth.

A static tree is the same in every step, so its parents are computed once and a step only
fills in tokens (Cai et al., arXiv 2401.10774, section 2.1.2; Luo et al., arXiv 2408.08696, 3.2).
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import ExitReason

Ranks = tuple[int, ...]
"""A node by the ranks on its way from the root: (0, 2) is the third likeliest token after the
likeliest."""


@dataclass(frozen=True, slots=True)
class TreeShape:
    """Which ranks to try at which depth; made by :meth:`of`, :meth:`chain` or :func:`best_first`.

    Row 0 is the root, row 1 + i the node ``paths[i]``, so a parent comes before its children and
    siblings stand by rank.

    Attributes:
        paths: every node but the root, by depth, then by ranks.
        parents: (T,) row of every row's parent, -1 for the root; T is ``1 + len(paths)``.
        ranks: (T-1,) a node's rank among its parent's guesses.
        depth: that of the deepest node; 0 if there is none.
        width: one more than the largest rank: how many guesses a node needs.
    """

    paths: tuple[Ranks, ...]
    parents: tuple[int, ...] = field(init=False, repr=False, compare=False)
    ranks: tuple[int, ...] = field(init=False, repr=False, compare=False)
    depth: int = field(init=False, repr=False, compare=False)
    width: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive what every step reads."""
        rows = {(): 0, **{path: row for row, path in enumerate(self.paths, 1)}}
        ranks = tuple(path[-1] for path in self.paths)
        derived = {
            "parents": (-1, *(rows[path[:-1]] for path in self.paths)),
            "ranks": ranks,
            "depth": max(map(len, self.paths), default=0),
            "width": 1 + max(ranks, default=-1),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, paths: Iterable[Sequence[int]]) -> TreeShape:
        """The tree of these nodes, in any order.

        Raises:
            ValueError: a node that is there twice, has a negative rank or lacks its parent, or the
                empty path: the root is always there.
        """
        nodes = [tuple(path) for path in paths]
        known = {(), *nodes}
        for path, count in Counter(nodes).items():
            if not path:
                raise ValueError("the empty path is the root, which every tree has: leave it out")
            if count > 1:
                raise ValueError(f"path {list(path)} is there {count} times")
            if min(path) < 0:
                raise ValueError(f"path {list(path)} has a negative rank; the likeliest is 0")
            if path[:-1] not in known:
                raise ValueError(f"path {list(path)} needs its parent {list(path[:-1])}")
        return cls(tuple(sorted(nodes, key=_by_depth)))

    @classmethod
    def chain(cls, depth: int) -> TreeShape:
        """The likeliest guess at every depth, without branches."""
        return cls.of((0,) * length for length in range(1, depth + 1))

    def up_to(self, depth: int) -> TreeShape:
        """This tree without its nodes below ``depth``; cached, as every step asks for it."""
        return self if depth >= self.depth else _cut(self, depth)


@lru_cache(maxsize=256)
def _cut(shape: TreeShape, depth: int) -> TreeShape:
    return TreeShape(tuple(path for path in shape.paths if len(path) <= depth))


def exit_reason(nodes: int, depth: int, budget: int) -> ExitReason:
    """Why a draft of so many nodes, whose shape is made for ``depth``, is no deeper."""
    if not nodes:
        return ExitReason.NO_DRAFT
    return ExitReason.BUDGET if budget < depth else ExitReason.MAX_STEPS


def _by_depth(path: Ranks) -> tuple[int, Ranks]:
    return len(path), path


def read_shape(path: Path) -> TreeShape:
    """A tree from a JSON file: a list of nodes, each the list of its ranks from the root.

    Raises:
        UsageError: the file cannot be read, or is not such a tree.
    """
    try:
        nodes = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the draft tree {path}: {error.strerror}") from None
    except ValueError as error:  # of JSON and of UTF-8
        raise UsageError(f"the draft tree {path} is not JSON: {error}") from None
    if not _is_list_of_ranks(nodes):
        raise UsageError(
            f"the draft tree {path} must be a list of lists of whole numbers, such as "
            "[[0], [1], [0, 0]]"
        )
    try:
        return TreeShape.of(nodes)
    except ValueError as error:
        raise UsageError(f"the draft tree {path} is no tree: {error}") from None


def _is_list_of_ranks(nodes: Any) -> bool:
    return isinstance(nodes, list) and all(
        isinstance(path, list) and all(type(rank) is int for rank in path) for path in nodes
    )


def best_first(chances: Sequence[Sequence[float]], nodes: int) -> TreeShape:
    """The likeliest nodes, if ranks at different depths were independent.

    A node is right with the product of its ranks' chances.  Of equally likely nodes the shallower
    goes first, then the one with the lower ranks; nodes that are never right are left out.

    Args:
        chances: ``chances[d][r]`` is the probability, 0 to 1, that rank r is right at depth d + 1.
        nodes: the most nodes, without the root.
    """
    if not all(0 <= chance <= 1 for depth in chances for chance in depth):
        raise ValueError("a chance must be between 0 and 1")
    chosen: list[Ranks] = []
    heap: list[tuple[float, int, Ranks]] = [(-1.0, 0, ())]  # the likeliest on top
    while heap and len(chosen) <= nodes:
        negated, depth, path = heapq.heappop(heap)
        chosen.append(path)
        # No child is likelier than its parent, so what is popped next is the next likeliest of all.
        for rank, chance in enumerate(chances[depth] if depth < len(chances) else ()):
            if negated * chance < 0:
                heapq.heappush(heap, (negated * chance, depth + 1, (*path, rank)))
    return TreeShape.of(chosen[1:])


def likeliest_paths(ranks: NDArray[Any], nodes: int, *, width: int) -> list[tuple[Ranks, float]]:
    """The nodes that were right most often, each with its share of the positions.

    A node is right where the ranks begin with its path.  Paths are counted as they are, so depths
    need not be independent.  No node is right more often than its parent and ties go to the
    shallower, so every parent is among the nodes: ``TreeShape.of`` takes them.

    Args:
        ranks: (N, D) whole numbers: at each position the rank that the draft gave to the true token
            at each depth.
        nodes: the most nodes; there are fewer if no more were ever right.
        width: a rank from here on, or a negative one, counts as wrong.
    """
    tried = (ranks >= 0) & (ranks < width)  # (N, D)
    right = np.logical_and.accumulate(tried, axis=1)  # (N, D) up to and with this depth
    counts: Counter[Ranks] = Counter()
    for depth in range(ranks.shape[1]):
        counts.update(map(tuple, ranks[right[:, depth], : depth + 1].tolist()))
    best = sorted(counts.items(), key=lambda item: (-item[1], *_by_depth(item[0])))[:nodes]
    return [(path, count / len(ranks)) for path, count in best]
