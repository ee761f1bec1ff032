"""Lookahead decoding: n-grams from a Jacobi window that rides along (Fu et al., arXiv 2402.02057).

A step's tree has the current token as its root, then the guesses, then the window.  Its ancestors
and depths are the mask and the positions of the paper, and only guesses can be accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor

from specbench_kangaroo.engine.method import (
    Drafter,
    MethodOptions,
    PlainMethod,
    Session,
    option,
)
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.lookahead.drafter import LookaheadDrafter


@dataclass(frozen=True, slots=True, kw_only=True)
class LookaheadOptions(MethodOptions):
    """N, W and G of the paper, and how its published code differs."""

    ngram: int = option(5, "N: tokens of an n-gram, the one that it is found by included")
    window: int = option(7, "W: columns of the Jacobi window")
    guesses: int = option(7, "G: n-grams kept for a token, and tried in a step")
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
        self.max_rows = _most_rows(options.ngram, options.window, options.guesses)

    @classmethod
    def load(cls, target: Target, options: LookaheadOptions) -> Self:
        """Refuse sizes that give no window or no n-gram; see :class:`Method`."""
        for name, least in (("ngram", 2), ("window", 1), ("guesses", 0)):
            if (value := getattr(options, name)) < least:
                raise UsageError(f"lookahead.{name} must be at least {least}, not {value}")
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
        del session, output
        return LookaheadDrafter(self.options, prompt.tolist())


def _most_rows(ngram: int, window: int, guesses: int) -> int:
    """The largest tree: of the steps that fill the window, or of a later one with all guesses."""
    filling = [(window + ngram - 2 - step) * (step + 1) for step in range(ngram - 2)]
    return max([*filling, (window + guesses) * (ngram - 1)])


METHOD = Lookahead
