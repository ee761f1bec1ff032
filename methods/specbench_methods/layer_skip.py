"""Self-speculation without training: the target drafts with some of its own layers.

``exit_layer``: the first layers draft through the target's own norm and head, and verification goes
on from their states (LayerSkip, Elhoushi et al., arXiv 2404.16710, section 4.3).  ``skip``: all but
the named layers draft, and verification runs all of them again (Draft & Verify, Zhang et al., arXiv
2309.08168).  LayerSkip's targets were trained for early exits and Draft & Verify searched for its
layers; on any other target this shows what a trained draft head is worth.  Drafts stop at
Kangaroo's threshold, so that at the same exit layer only its adapter makes a difference.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Self

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
from specbench_kangaroo.engine.target import NOTHING, Needs, Target, TargetOutput
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.shared.growth import Growth, StopRule

# LayerSkip's published commands for Llama 2 7B leave after 8 of 32 layers, with γ = 6.
_PUBLISHED_DEPTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSkipOptions(MethodOptions):
    """Which layers draft, and how far."""

    exit_layer: int | None = option(
        None, "draft with this many first layers; default: a quarter of them"
    )
    skip: str = option("", "draft without these layers instead, counted from 0: 10-19,25")
    steps: int = option(6, "γ: the most tokens drafted in a step", minimum=1)
    threshold: float = option(0.6, "stop drafting after a token less likely than this")


class LayerSkip(PlainMethod):
    """Some of the target's own layers draft, untrained; all of them verify."""

    Options: ClassVar[type[MethodOptions]] = LayerSkipOptions

    def __init__(self, target: Target, options: LayerSkipOptions, drafting: list[range]) -> None:
        super().__init__(options)
        self.max_rows = 1 + options.steps
        self.target, self.drafting = target, drafting

    @classmethod
    def load(cls, target: Target, options: LayerSkipOptions) -> Self:
        """Check the layers and fill in the default; see :class:`Method`."""
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
        last = target.n_layers - 1
        return [
            LayerSkipOptions(threshold=0.0, steps=3),
            LayerSkipOptions(exit_layer=last, threshold=0.3),
            LayerSkipOptions(skip=str(last), threshold=0.0, steps=3),
            LayerSkipOptions(skip=f"1-{last - 1}", threshold=0.2),
        ]

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """Draft over the target's own cache, so the prompt is there already."""
        return LayerDrafter(self, session)


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
    return [range(last + 1, edge) for last, edge in pairwise(edges) if last + 1 < edge]


class LayerDrafter:
    """One text, drafted over the target's own cache."""

    def __init__(self, method: LayerSkip, session: Session) -> None:
        options = method.options
        self._target, self._session = method.target, session
        self._rule = StopRule(steps=options.steps, threshold=options.threshold)
        *self._before, self._last = method.drafting
        self._exit_layer = options.exit_layer  # verification goes on from there; None: it runs all
        self._kept = NOTHING if self._exit_layer is None else Needs(layers=(self._exit_layer,))

    def propose(self, root: int, budget: int) -> Draft:
        """Draft until γ, the budget, EOS, or a token less likely than the threshold."""
        chain = Growth([root])
        while (reason := self._rule.reason(chain, budget, self._session.eos)) is None:
            output = self._predict(chain)
            chain.states += output.hidden.values()  # (1, H) if they are kept
            chain.extend(output.logits[0], self._session.sampler)
        if self._exit_layer is not None:  # nothing is drafted after the newest, but it is verified
            chain.run_first(self._target, self._session.cache, self._exit_layer)
        return chain.draft(reason, self._exit_layer)

    def observe(self, verified: Verified) -> None:
        """Nothing: what was accepted is in the target's cache."""

    def _predict(self, chain: Growth) -> TargetOutput:
        """The chain's newest row through the drafting layers, above the committed cache.

        Without some of the layers the others write keys and values that are not the target's;
        verification writes every row of every layer again before anything is committed.
        """
        target, cache = self._target, self._session.cache
        hidden, rows = chain.newest_rows(target, cache)
        for layers in self._before:
            hidden = target.layers(hidden, layers.start, layers.stop, rows, cache)
        return target.predict(hidden, self._last.start, self._last.stop, rows, cache, self._kept)


METHOD = LayerSkip
