"""A step of Lookahead: the guesses that may be accepted, and the window that rides along."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specbench_kangaroo.engine.method import Draft, Verified
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.lookahead.window import JacobiWindow, NgramPool

if TYPE_CHECKING:
    from specbench_methods.lookahead.method import LookaheadOptions


class LookaheadDrafter:
    """One text: its window and its pool.

    Args:
        options: N, W and G.
        prompt: (P,) the tokens that the window is drawn from.
    """

    def __init__(self, options: LookaheadOptions, prompt: Sequence[int]) -> None:
        size = options.ngram
        start = random.Random(options.seed).choices(prompt, k=options.window + size - 3)
        self._published = options.published_scoring
        self._deepest = size - (2 if self._published else 1)
        self._window = JacobiWindow(start, ngram=size)
        self._pool = NgramPool(options.guesses)
        if options.prompt_pool:
            for end in range(size, len(prompt) + 1):
                self._pool.add(prompt[end - size : end])

    def propose(self, root: int, budget: int) -> Draft:
        """The guesses that the pool has under the root; behind them the window."""
        self._looks_ahead = budget > 0  # the last token needs no draft, and no step comes after it
        if not self._looks_ahead:
            return Draft(TokenTree.merged(root, ()), exit_reason=ExitReason.BUDGET)
        window = self._window
        window.set_current(root)
        guesses = self._guesses(root, budget)
        rows = torch.tensor(window.tokens(), dtype=torch.long)  # [W']
        tree = TokenTree(
            torch.cat((guesses.tokens, rows)),
            guesses.parents + window.parents(len(guesses.parents)),
            guesses.n_candidates,
        )
        return Draft(tree, exit_reason=self._reason(guesses, budget))

    def observe(self, verified: Verified) -> None:
        """Take n-grams from the window's columns and let it move on by one token."""
        if not self._looks_ahead:
            return
        newest = self._newest(verified.output.logits)
        if self._window.full:
            for ngram in self._window.ngrams(newest):
                self._pool.add(ngram)
        self._window.advance(newest)

    def _guesses(self, root: int, budget: int) -> TokenTree:
        """Root and guesses; of a trie greedy acceptance takes the longest match."""
        found = self._pool.after(root) if self._window.full else []
        guesses = [ngram[:budget] for ngram in found]
        if not self._published:
            return TokenTree.merged(root, guesses)
        # Merged first, so that all rows that may be accepted come before those that may not.
        acceptable = [ngram[: self._deepest] for ngram in guesses]
        tree = TokenTree.merged(root, [*acceptable, *guesses])
        return replace(tree, n_candidates=sum(depth <= self._deepest for depth in tree.depths))

    def _newest(self, logits: Tensor) -> list[int]:
        """The target's next token after each column of the newest level. ``logits``: (T, V)."""
        beside = len(logits) - self._window.columns
        if len(self._window.levels) > 1:
            rows = logits[beside:]  # [columns, V]
        else:  # level 0 begins with the root, which is not beside the rest of it
            rows = torch.cat((logits[:1], logits[beside + 1 :]))
        newest: list[int] = rows.argmax(-1).tolist()
        return newest

    def _reason(self, guesses: TokenTree, budget: int) -> ExitReason:
        if len(guesses.parents) == 1:
            return ExitReason.NO_DRAFT
        return ExitReason.BUDGET if budget < self._deepest else ExitReason.MAX_STEPS
