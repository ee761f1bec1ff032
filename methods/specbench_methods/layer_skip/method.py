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
from specbench_methods.layer_skip.drafter import LayerDrafter
from specbench_methods.shared.chain import StopRule

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

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """Draft over the target's own cache, so the prompt is there already."""
        del prompt, output
        return LayerDrafter(
            self._target, session, self._rule, self._drafting, exit_layer=self.options.exit_layer
        )


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
