"""Vanilla decoding, the baseline: no draft, one token a target pass.

Its draft is the root alone, so it runs through the same loop, cache and products as every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from specbench_kangaroo import method
from specbench_kangaroo.method import Draft, Session, Verdict
from specbench_kangaroo.records import ExitReason
from specbench_kangaroo.target import Target, TargetOutput
from specbench_kangaroo.tree import TokenTree


class Vanilla:
    """The denominator of every speedup."""

    Options: ClassVar[type[method.Options]] = method.Options
    lossy: ClassVar[bool] = False
    taps: tuple[int, ...] = ()
    max_rows = 1
    weights: Mapping[str, Any] = {}

    def __init__(self, options: method.Options) -> None:
        self.options = options

    @classmethod
    def load(cls, target: Target, options: method.Options) -> Self:
        """Nothing to load."""
        del target
        return cls(options)

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> list[method.Options]:
        """It has no options."""
        del target, folder
        return [method.Options()]

    def begin(self, session: Session, prompt: Tensor, output: TargetOutput) -> None:
        """Nothing to prepare."""

    def propose(self, root: int, budget: int) -> Draft:
        """The root alone."""
        del budget
        return Draft(TokenTree.chain(torch.tensor([root])), exit_reason=ExitReason.NO_DRAFT)

    def observe(self, verdict: Verdict) -> None:
        """Nothing to learn."""


METHOD = Vanilla
