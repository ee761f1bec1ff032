"""Lookahead decoding: n-grams from a Jacobi window that rides along (Fu et al., arXiv 2402.02057).

A step's tree has the current token as its root, then the guesses, then the window.  Its ancestors
and depths are the mask and the positions of the paper, and only guesses can be accepted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.lookahead.window import JacobiWindow, NgramPool, most_rows
from specbench_methods.shared.draft_tree import exit_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class LookaheadOptions(MethodOptions):
    """N, W and G of the paper, and how its published code differs."""

    ngram: int = option(
        5, "N: tokens of an n-gram, the one that it is found by included", minimum=2
    )
    window: int = option(7, "W: columns of the Jacobi window", minimum=1)
    guesses: int = option(7, "G: n-grams kept for a token, and tried in a step", minimum=0)
    seed: int = option(0, "of the prompt tokens that the window begins with")
    prompt_pool: bool = option(False, "begin with the prompt's n-grams, not with an empty pool")
    published_scoring: bool = option(
        False, "never accept the last token of a guess, as the published code first did"
    )


class Lookahead(PlainMethod):
    """Guess n-grams that earlier passes of the target made up on the side; no draft model."""

    Options: ClassVar[type[MethodOptions]] = LookaheadOptions

    def __init__(self, options: LookaheadOptions) -> None:
        super().__init__(options)
        self.max_rows = most_rows(options.ngram, options.window, options.guesses)

    @classmethod
    def load(cls, target: Target, options: LookaheadOptions) -> Self:
        """Refuse a scoring that accepts nothing; see :class:`Method`."""
        if options.published_scoring and options.ngram == 2:
            raise UsageError(
                "lookahead.published_scoring accepts nothing if lookahead.ngram is 2: "
                "give an ngram of at least 3"
            )
        return super().load(target, options)

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> list[LookaheadOptions]:
        """Guesses in the first step, after a fill phase, scored as published, and never."""
        return [
            LookaheadOptions(ngram=2, window=1, guesses=2, prompt_pool=True),
            LookaheadOptions(ngram=4, window=3, guesses=3),
            LookaheadOptions(
                ngram=3, window=2, guesses=2, prompt_pool=True, published_scoring=True, seed=1
            ),
            LookaheadOptions(ngram=5, window=1, guesses=0),
        ]

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """A window of tokens drawn from the prompt (P,), the same whatever came before."""
        return LookaheadDrafter(self.options, prompt.tolist())


class LookaheadDrafter:
    """One text: its window, drawn from the prompt's tokens (P,), and its pool."""

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
        return Draft(tree, exit_reason=exit_reason(len(guesses.parents) - 1, self._deepest, budget))

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


METHOD = Lookahead
