"""The one shape that every draft has: tokens, and for each of them the node it follows.

A chain is a tree without branches, and vanilla decoding is the root alone.  Masks, positions and
paths all follow from ``parents``, so each is derived here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Tokens to score in one pass of the target.

    Attributes:
        tokens: (T,) node 0 is the root: the last committed token, not yet in the cache.
        parents: ``parents[0] == -1`` and ``parents[i] < i``.
        n_candidates: nodes ``0 .. n_candidates-1`` may be accepted; later nodes only ride along.

    Raises:
        ValueError: the three do not describe a tree.
    """

    tokens: Tensor
    parents: tuple[int, ...]
    n_candidates: int

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents) or not self.parents:
            raise ValueError(f"{len(self.tokens)} tokens with {len(self.parents)} parents")
        if self.parents[0] != -1 or any(
            not 0 <= parent < node for node, parent in enumerate(self.parents[1:], start=1)
        ):
            raise ValueError(f"parents must come before their children: {self.parents}")
        if not 1 <= self.n_candidates <= len(self.parents):
            raise ValueError(f"n_candidates is {self.n_candidates} of {len(self.parents)} nodes")

    @classmethod
    def chain(cls, tokens: Tensor) -> TokenTree:
        """A tree in which every node follows the one before. ``tokens``: (T,)."""
        return cls(tokens, chain_parents(len(tokens)), len(tokens))

    @classmethod
    def merged(cls, root: int, continuations: Sequence[Sequence[int]]) -> TokenTree:
        """Several continuations of ``root`` as a trie, so that no token is scored twice.

        Those that begin alike share nodes.  Siblings stand in the order of first appearance, and
        the first continuation lies right behind the root, where accepting it copies no cache slots.
        """
        tokens, parents = [root], [-1]
        nodes: dict[tuple[int, int], int] = {}  # (parent's node, token): node
        for continuation in continuations:
            node = 0
            for token in continuation:
                parent, node = node, nodes.setdefault((node, token), len(tokens))
                if node == len(tokens):
                    tokens.append(token)
                    parents.append(parent)
        return cls(torch.tensor(tokens), tuple(parents), len(tokens))

    @property
    def depths(self) -> tuple[int, ...]:
        """(T,) the number of edges from the root; a node's position is ``length + depth``."""
        return depths(self.parents)

    @property
    def depth(self) -> int:
        """The longest path of candidates, root excluded: what a step counts as drafted."""
        return max(self.depths[: self.n_candidates])

    def children(self, node: int) -> tuple[int, ...]:
        """Acceptable nodes that follow ``node``, in the order in which they are tried."""
        return tuple(i for i in range(1, self.n_candidates) if self.parents[i] == node)


def chain_parents(nodes: int) -> tuple[int, ...]:
    """The parents of a chain: -1, 0, 1 and so on."""
    return tuple(range(-1, nodes - 1))


@lru_cache(maxsize=4096)
def depths(parents: tuple[int, ...]) -> tuple[int, ...]:
    """Depth of every node below its root."""
    found: list[int] = []
    for parent in parents:
        found.append(0 if parent < 0 else found[parent] + 1)
    return tuple(found)


@lru_cache(maxsize=1024)
def ancestor_closure(parents: tuple[int, ...]) -> Tensor:
    """(T, T) bool: entry (i, j) says that node i sees node j, its ancestor or itself.

    The result is shared between calls: do not write to it.
    """
    closure = np.eye(
        len(parents), dtype=np.bool_
    )  # some trees are new in every step: no torch here
    for node, parent in enumerate(parents):
        if parent >= 0:
            closure[node] |= closure[parent]
    return torch.from_numpy(closure)


def attention_mask(
    parents: Sequence[int], length: int, *, first: int = 0, window: int | None = None
) -> Tensor:
    """Who may see whom, for nodes ``first ..`` of a tree above ``length`` committed positions.

    Args:
        window: a sliding window: a node sees positions within ``window`` of its own, itself too.

    Returns:
        (T - first, length + T) bool; columns are the committed positions, then the tree's nodes.
    """
    closure = ancestor_closure(tuple(parents))[first:]  # [T - first, T]
    prefix = torch.ones(len(closure), length, dtype=torch.bool)
    mask = torch.cat((prefix, closure), dim=1)
    if window is None:
        return mask
    below = torch.tensor(depths(tuple(parents))) + length  # [T]
    columns = torch.cat((torch.arange(length), below))
    return mask & (below[first:, None] - columns[None, :] < window)
