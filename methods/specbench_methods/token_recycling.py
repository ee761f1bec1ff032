"""Token Recycling: draft from the candidates that the target's own logits held (Luo et al., 2024).

A table holds the likeliest successors of every token, taken from the last pass in which the target
scored it, in a rejected row too (arXiv 2408.08696, section 3).  A breadth-first search of the table
fills a static tree: a node is the successor of its parent's token at the node's rank.  No weights.

Ours, not the paper's:

- The tree is computed, for any number of nodes, where the authors searched theirs greedily.  Rank r
  is taken to be right with a chance of 0.5 ** (r + 1) at every depth.  Of the paper's 80 nodes the
  six depths then have 7, 21, 30, 15, 6, 1; in the published tree they have 8, 21, 25, 15, 8, 3.
- A prompt's own successors come first, the latest before others: a prefill has no logits of them.
- Of several rows with one token an accepted one counts, else the last.
- Every text has a table of its own.  With ``keep`` all texts fill one, as in the paper, but then
  drafts depend on the questions before: the text is still the target's, yet a speed cannot be
  attributed to a question, a resumed run differs, and a seed does not fix a sampled text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from specbench_kangaroo.engine.method import (
    Draft,
    Drafter,
    MethodOptions,
    PlainMethod,
    Session,
    Verified,
    option,
)
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.shared.draft_tree import TreeShape, best_first, exit_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecyclingOptions(MethodOptions):
    """The size of the table and of the tree, and what the table remembers."""

    topk: int = option(8, "successors kept for every token", minimum=1)
    nodes: int = option(
        16, "the most tokens drafted in a step, over all branches; the paper's: 80", minimum=1
    )
    depth: int = option(6, "the longest branch", minimum=1)
    keep: bool = option(
        False, "as in the paper, carry the table over to the next answer, which then depends on it"
    )
    prompt: bool = option(True, "start with the successors that stand in the prompt")


class TokenRecycling(PlainMethod):
    """Draft a tree from the target's earlier candidates for what follows each token."""

    Options: ClassVar[type[MethodOptions]] = TokenRecyclingOptions

    def __init__(self, options: TokenRecyclingOptions) -> None:
        super().__init__(options)
        chances = [0.5 ** (rank + 1) for rank in range(options.topk)]
        self.shape = best_first([chances] * options.depth, options.nodes)
        self.max_rows = len(self.shape.parents)
        self._kept: dict[int, list[int]] = {}  # the table of all texts, with ``keep``

    @classmethod
    def load(cls, target: Target, options: TokenRecyclingOptions) -> Self:
        """Check the table's width; see :class:`Method`."""
        if options.topk > (size := target.vocab_size):
            told = f"token_recycling.topk is {options.topk}, but the target has {size} tokens"
            raise UsageError(f"{told}: give fewer")
        return cls(options)

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> list[TokenRecyclingOptions]:
        """Trees, a chain, and a cold table; ``keep`` is left out, as its past is no option's."""
        return [
            TokenRecyclingOptions(),
            TokenRecyclingOptions(topk=3, nodes=80, depth=4),
            TokenRecyclingOptions(topk=1, nodes=3, prompt=False),
        ]

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """Fill the table from the prompt, and from the target's logits of its last token."""
        table = self._kept if self.options.keep else {}
        tokens, topk = prompt.tolist(), self.options.topk
        for token, successor in pairwise(tokens if self.options.prompt else ()):
            table[token] = [*dict.fromkeys((successor, *table.get(token, ())))][:topk]
        drafter = RecyclingDrafter(self.shape, topk, table, session.eos)
        drafter.recycle(tokens[-1:], output.logits)
        return drafter


class RecyclingDrafter:
    """One text: the tree, and the table that fills it, a token's likeliest successors first."""

    def __init__(
        self, shape: TreeShape, topk: int, table: dict[int, list[int]], eos: frozenset[int]
    ) -> None:
        self._shape, self._topk, self._table, self._eos = shape, topk, table, eos

    def propose(self, root: int, budget: int) -> Draft:
        """The static tree with the table's tokens; a node that lacks one falls with its subtree."""
        shape = self._shape.up_to(budget)
        tokens, parents = [root], [-1]
        # One entry a row of the shape: its row in the draft, and what may follow it there.
        rows, successors = [0], [self._successors(root)]
        for parent, rank in zip(shape.parents[1:], shape.ranks, strict=True):
            if rank >= len(successors[parent]):
                rows.append(-1)
                successors.append(())
                continue
            token = successors[parent][rank]
            rows.append(len(tokens))
            successors.append(self._successors(token))
            tokens.append(token)
            parents.append(rows[parent])
        self._tokens = tokens
        tree = TokenTree(torch.tensor(tokens), tuple(parents), len(tokens))
        return Draft(tree, exit_reason=exit_reason(len(successors[0]), self._shape.depth, budget))

    def observe(self, verified: Verified) -> None:
        """Recycle the candidates of every row; those of accepted rows replace the others'."""
        self.recycle(self._tokens, verified.output.logits, last=verified.nodes)

    def recycle(self, tokens: list[int], logits: Tensor, *, last: Sequence[int] = ()) -> None:
        """Store the likeliest successors of (T,) tokens by their logits (T, V)."""
        candidates = logits.topk(self._topk, dim=-1).indices.tolist()
        self._table.update(zip(tokens, candidates, strict=True))
        for row in last:
            self._table[tokens[row]] = candidates[row]

    def _successors(self, token: int) -> Sequence[int]:
        return () if token in self._eos else self._table.get(token, ())


METHOD = TokenRecycling
