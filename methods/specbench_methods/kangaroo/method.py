"""Kangaroo: self-speculative decoding with two early exits (Liu et al., arXiv 2404.18911).

The target's first layers and a small adapter draft; the remaining layers verify, starting from the
states that drafting already computed.  Drafting itself stops early when the draft is unsure.

``tree_width`` 1 is the paper's chain.  Wider, every depth keeps the likeliest few continuations by
cumulative draft probability; a chain is the tree of width one, so there is one code path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from specbench_kangaroo.engine.method import Drafter, MethodOptions, PlainMethod, Session, option
from specbench_kangaroo.engine.target import Needs, Target, TargetOutput
from specbench_kangaroo.models.heads import KnownHeads
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.kangaroo.adapter import (
    KIND,
    AdapterShape,
    exit_layer_of,
    load_adapter,
    write_untrained,
)
from specbench_methods.kangaroo.drafter import AdapterRunner, AdapterText, KangarooDrafter
from specbench_methods.kangaroo.training import KangarooTrainee
from specbench_methods.shared.drafted_tokens import DraftedTokens
from specbench_methods.shared.growth import StopRule
from specbench_methods.shared.weight_sources import build_once, known_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class KangarooOptions(MethodOptions):
    """Named as in the paper where it has a name.

    What is left out is the adapter's own choice if its file names one, else the paper's.
    """

    exit_layer: int | None = option(None, "first early exit; default: the adapter's own")
    steps: int | None = option(
        None, "γ: the most tokens drafted in a step; the paper's is 6", minimum=1
    )
    threshold: float | None = option(
        None, "η: stop drafting after a token less likely than this; the paper's is 0.6"
    )
    adapter: str | None = option(
        None, "file, folder or org/name[@revision]; default: the one shipped for the model"
    )
    tree_width: int | None = option(
        None, "continuations kept at every depth; the paper's is 1, a chain", minimum=1
    )
    full_vocabulary: bool = option(False, "draft over all tokens, not the adapter's frequent ones")


PAPER = {"steps": 6, "threshold": 0.6, "tree_width": 1}


class Kangaroo(PlainMethod):
    """Early-exit drafting with a trained adapter, verified by the remaining layers."""

    Options: ClassVar[type[MethodOptions]] = KangarooOptions

    def __init__(
        self, target: Target, options: KangarooOptions, exit_layer: int, runner: AdapterRunner
    ) -> None:
        info = runner.about.info
        chosen = {**PAPER, **info.drafting, "exit_layer": exit_layer}
        missing = {name: value for name, value in chosen.items() if getattr(options, name) is None}
        super().__init__(options := replace(options, **missing))
        steps, self._width = int(options.steps or 0), int(options.tree_width or 0)
        self._rule = StopRule(steps=steps, threshold=float(options.threshold or 0))
        self.needs = Needs(layers=(exit_layer,))
        self.max_rows = 1 + steps * self._width
        self.weights: Mapping[str, Any] = runner.about.record
        self._runner, self._exit_layer = runner, exit_layer
        ids = None if options.full_vocabulary else info.draft_vocabulary
        self._drafted = DraftedTokens.of(target, ids)
        self._head = self._drafted.lm_head  # refused now if it is quantised, not in a text's midst

    @classmethod
    def load(cls, target: Target, options: KangarooOptions) -> Self:
        """Find and read the adapter; see :class:`Method`."""
        shape = AdapterShape.of(target.config)
        runner = build_once(
            target,
            options.adapter,
            KIND,
            lambda source: AdapterRunner(target, load_adapter(source, shape)),
        )
        exit_layer = exit_layer_of(runner.about, options.exit_layer)
        if not 0 < exit_layer < target.n_layers:
            raise UsageError(
                f"kangaroo.exit_layer is {exit_layer}, but the target has {target.n_layers} "
                f"layers: give one of 1..{target.n_layers - 1}"
            )
        return cls(target, options, exit_layer, runner)

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> list[KangarooOptions]:
        """Chains and trees over an untrained adapter; see :class:`Method`."""
        adapter = write_untrained(
            target.config,
            folder / "kangaroo.safetensors",
            exit_layer=1,
            vocabulary_size=target.vocab_size // 2,
        )
        return [
            KangarooOptions(adapter=adapter, threshold=0.0, steps=3),
            KangarooOptions(adapter=adapter, threshold=2.0, full_vocabulary=True),
            KangarooOptions(adapter=adapter, threshold=0.2, steps=3, tree_width=3),
        ]

    @classmethod
    def known_heads(cls) -> list[KnownHeads]:
        """For ``specbench list``; see :class:`NeedsHeads`."""
        return known_heads(KIND)

    @classmethod
    def trainee(cls, model: Any, *, exit_layer: int | None) -> KangarooTrainee:
        """The adapter as ``specbench train`` wants it; see :class:`Trainable`."""
        return KangarooTrainee.of(model, exit_layer)

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """Let the adapter see the prompt's exit-layer states."""
        (states,) = output.hidden.values()  # [P, H]
        text = AdapterText(self._runner, states, session.cache.capacity)
        return KangarooDrafter(
            text, self._drafted, session, self._rule, self._exit_layer, self._width
        )


METHOD = Kangaroo
