"""Self-speculation without training: the target drafts with some of its own layers.

``exit_layer``: the first layers draft through the target's own norm and head, and verification goes
on from their states (LayerSkip, Elhoushi et al., arXiv 2404.16710, section 4.3).  ``skip``: all but
the named layers draft, and verification runs all of them anew (Draft & Verify, Zhang et al., arXiv
2309.08168).  LayerSkip's targets were trained for early exits and Draft & Verify searched for its
layers; on any other target this shows what a trained draft head is worth.  Drafts stop at
Kangaroo's threshold, so that at the same exit layer only its adapter makes a difference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from specbench_kangaroo.engine.layers import Rows
from specbench_kangaroo.engine.method import (
    Draft,
    MethodOptions,
    PlainMethod,
    Resume,
    Session,
    option,
)
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.engine.tree import chain_parents
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.shared.chain import Chain, StopRule

# LayerSkip's published commands for Llama 2 7B leave after 8 of 32 layers, with γ = 6.
_PUBLISHED_DEPTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSkipOptions(MethodOptions):
    """Which layers draft, and how far."""

    exit_layer: int | None = option(
        None, "draft with this many first layers; default: a quarter of them"
    )
    skip: str = option("", "draft without these layers instead, counted from 0: 10-19,25")
    steps: int = option(6, "γ: the most tokens drafted in a step")
    threshold: float = option(0.6, "stop drafting after a token less likely than this")


class LayerSkip(PlainMethod):
    """Some of the target's own layers draft, untrained; all of them verify."""

    Options: ClassVar[type[MethodOptions]] = LayerSkipOptions

    def __init__(
        self, target: Target, options: LayerSkipOptions, drafting: Sequence[range]
    ) -> None:
        super().__init__(options)
        self.max_rows = 1 + options.steps
        self._target = target
        self._drafting = tuple(drafting)
        self._rule = StopRule(steps=options.steps, threshold=options.threshold)

    @classmethod
    def load(cls, target: Target, options: LayerSkipOptions) -> Self:
        """Check the layers and fill in the default; see :class:`Method`."""
        if options.steps < 1:
            raise UsageError(f"layer_skip.steps must be at least 1, not {options.steps}")
        if options.skip:
            if options.exit_layer is not None:
                raise UsageError("give layer_skip.exit_layer or layer_skip.skip, not both")
            return cls(target, options, _without(options.skip, target.n_layers))
        exit_layer = options.exit_layer
        if exit_layer is None:
            exit_layer = math.ceil(target.n_layers / _PUBLISHED_DEPTH)
        if not 0 < exit_layer < target.n_layers:
            raise UsageError(
                f"layer_skip.exit_layer is {exit_layer}, but the target has {target.n_layers} "
                f"layers: give one of 1..{target.n_layers - 1}"
            )
        return cls(target, replace(options, exit_layer=exit_layer), [range(exit_layer)])

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> list[LayerSkipOptions]:
        """Early exits and skipped layers, sure and unsure; see :class:`Method`."""
        del folder
        last = target.n_layers - 1
        return [
            LayerSkipOptions(threshold=0.0, steps=3),
            LayerSkipOptions(exit_layer=last, threshold=0.3),
            LayerSkipOptions(skip=str(last), threshold=0.0, steps=3),
            LayerSkipOptions(skip=f"1-{last - 1}", threshold=0.2),
        ]

    def begin(self, session: Session, prompt: Tensor, output: TargetOutput) -> None:
        """Draft over the target's own cache, so the prompt is there already."""
        self._session = session

    def propose(self, root: int, budget: int) -> Draft:
        """Draft until γ, the budget, EOS, or a token less likely than the threshold."""
        chain, states = Chain([root]), []  # states: (1, H) of every row that ran
        while (reason := self._rule.reason(chain, budget, self._session.eos)) is None:
            output = self._predict(chain)
            states.append(output.taps[self._drafting[-1].stop])
            chain.extend(output.logits[0], self._session.sampler)
        if self.options.exit_layer is None:
            return chain.draft(reason)
        hidden, rows = self._newest(chain)  # nothing is drafted after it, but it is verified
        exit_layer, cache = self.options.exit_layer, self._session.cache
        states.append(self._target.layers(hidden, 0, exit_layer, rows, cache))
        return chain.draft(reason, Resume(exit_layer, torch.cat(states)))

    def _predict(self, chain: Chain) -> TargetOutput:
        """The chain's newest row through the drafting layers, above the committed cache.

        Without some of the layers the others write keys and values that are not the target's;
        verification writes every row of every layer again before anything is committed.
        """
        hidden, rows = self._newest(chain)
        *before, last = self._drafting
        for layers in before:
            hidden = self._target.layers(
                hidden, layers.start, layers.stop, rows, self._session.cache
            )
        return self._target.predict(hidden, last.start, last.stop, rows, self._session.cache)

    def _newest(self, chain: Chain) -> tuple[Tensor, Rows]:
        """The chain's newest row, embedded (1, H), and its place."""
        length, newest = self._session.cache.length, chain.depth
        rows = self._target.rows(length, chain_parents(newest + 1), first=newest)
        return self._target.embed(torch.tensor(chain.tokens[newest:])), rows


def _without(skip: str, n_layers: int) -> list[range]:
    """The layers that ``skip`` leaves, as runs of neighbours."""
    left_out: set[int] = set()
    for part in skip.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UsageError(f"layer_skip.skip takes layers such as 10-19,25, not {skip!r}")
        left_out |= {layer for layer in range(n_layers) if first <= layer <= last}
        if last >= n_layers or len(left_out) == n_layers:
            raise UsageError(
                f"layer_skip.skip is {skip!r}, but the target has layers 0..{n_layers - 1}: name "
                "some of these, not all"
            )
    edges = [-1, *sorted(left_out), n_layers]
    runs = (range(before + 1, edge) for before, edge in pairwise(edges))
    return [run for run in runs if run]


METHOD = LayerSkip
