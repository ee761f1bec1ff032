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

import torch
from torch import Tensor

from specbench_kangaroo.engine.host import to_host
from specbench_kangaroo.engine.linear import Linear
from specbench_kangaroo.engine.method import Draft, MethodOptions, Session, Verified, option
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.models.heads import KnownHeads
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.kangaroo.adapter import (
    KIND,
    AdapterShape,
    LoadedAdapter,
    load_adapter,
    write_untrained,
)
from specbench_methods.kangaroo.draft import AdapterRunner, Growth
from specbench_methods.kangaroo.training import KangarooTrainee
from specbench_methods.shared.drafted_tokens import DraftedTokens
from specbench_methods.shared.published_heads import known_heads
from specbench_methods.shared.weight_sources import find_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class KangarooOptions(MethodOptions):
    """Named as in the paper where it has a name.

    What is left out is the adapter's own choice if its file names one, else the paper's.
    """

    exit_layer: int | None = option(None, "first early exit; default: the adapter's own")
    steps: int | None = option(None, "γ: the most tokens drafted in a step; the paper's is 6")
    threshold: float | None = option(
        None, "η: stop drafting after a token less likely than this; the paper's is 0.6"
    )
    adapter: str | None = option(
        None, "file, folder or org/name[@revision]; default: the one shipped for the model"
    )
    tree_width: int | None = option(
        None, "continuations kept at every depth; the paper's is 1, a chain"
    )
    full_vocabulary: bool = option(False, "draft over all tokens, not the adapter's frequent ones")


PAPER = {"steps": 6, "threshold": 0.6, "tree_width": 1}


class Kangaroo:
    """Early-exit drafting with a trained adapter, verified by the remaining layers."""

    Options: ClassVar[type[MethodOptions]] = KangarooOptions
    lossy: bool = False

    def __init__(self, target: Target, options: KangarooOptions, loaded: LoadedAdapter) -> None:
        self.options = options = _filled_in(options, loaded)
        self.steps, self.width = int(options.steps or 0), int(options.tree_width or 0)
        self.threshold = float(options.threshold or 0.0)
        self.exit_layer = loaded.info.exit_layer
        self.taps = (self.exit_layer,)
        self.max_rows = 1 + self.steps * self.width
        self._target = target
        self._adapter = AdapterRunner(target, loaded)
        ids = None if options.full_vocabulary else loaded.info.draft_vocabulary
        self._drafted = DraftedTokens(target, ids)
        self._head = Linear(self._drafted.lm_head())
        self.weights: Mapping[str, Any] = {
            "sha256": loaded.sha256,
            **loaded.info.record,
            **loaded.found,
        }

    @classmethod
    def load(cls, target: Target, options: KangarooOptions) -> Self:
        """Find and read the adapter; see :class:`Method`."""
        for name in ("steps", "tree_width"):
            if (value := getattr(options, name)) is not None and value < 1:
                raise UsageError(f"kangaroo.{name} must be at least 1, not {value}")
        source = find_weights(options.adapter, target.name, KIND)
        shape = AdapterShape.of(target.config)
        loaded = load_adapter(source, shape, exit_layer=options.exit_layer)
        if not 0 < loaded.info.exit_layer < target.n_layers:
            raise UsageError(
                f"kangaroo.exit_layer is {loaded.info.exit_layer}, but the target has "
                f"{target.n_layers} layers: give one of 1..{target.n_layers - 1}"
            )
        return cls(target, options, loaded)

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

    def begin(self, session: Session, prompt: Tensor, output: TargetOutput) -> None:
        """Let the adapter see the prompt's exit-layer states."""
        self._session = session
        self._adapter.begin(output.taps[self.exit_layer], session.cache.capacity)

    def propose(self, root: int, budget: int) -> Draft:
        """Draft until γ, the budget, EOS, or a depth whose likeliest token is under η."""
        growth = Growth.from_root(root)
        steps = min(self.steps, budget)
        reason = ExitReason.MAX_STEPS if steps == self.steps else ExitReason.BUDGET
        self._shallow(growth)
        while growth.depth < steps:
            if growth.confidence and growth.confidence[-1] < self.threshold:
                reason = ExitReason.THRESHOLD
                break
            if growth.tokens[growth.newest] in self._session.eos:
                reason = ExitReason.EOS
                break
            self._expand(growth, self._head(self._adapter(growth)))
            self._shallow(growth)
        self._growth = growth
        return growth.draft(self.exit_layer, reason)

    def observe(self, verified: Verified) -> None:
        """Roll the adapter's cache back to what was accepted."""
        self._adapter.commit(self._growth, verified.nodes)

    def _shallow(self, growth: Growth) -> None:
        """Run the first layers on the rows of the newest depth, above the committed cache."""
        cache, first = self._session.cache, growth.newest
        rows = self._target.rows(cache.length, growth.parents, first=first)
        embedded = self._target.embed(torch.tensor(growth.tokens[first:]))  # [W, H]
        growth.states.append(self._target.layers(embedded, 0, self.exit_layer, rows, cache))

    def _expand(self, growth: Growth, logits: Tensor) -> None:
        """Add the next depth from the newest rows' draft logits (W, V')."""
        probabilities = logits.float().softmax(-1)
        best = probabilities[0].max()
        sampler = self._session.sampler
        if sampler is not None and self.width == 1:
            growth.confidence.append(float(best))
            proposal = sampler.sampling.probabilities(self._drafted.over_all(logits[0]))  # [V]
            growth.add([sampler.chance.pick(proposal)], [growth.newest], [1.0])
            growth.proposals.append(proposal)
            return
        width = self.width
        scores = torch.tensor(growth.scores[growth.newest :], device=logits.device)  # (W,)
        likeliest = probabilities.topk(width, dim=-1)  # [W, K]
        kept = (likeliest.values * scores[:, None]).flatten().topk(width)
        chosen = likeliest.indices.flatten()[kept.indices]
        tokens = self._drafted.ids_of(chosen)
        parents = kept.indices.div(width, rounding_mode="floor") + growth.newest
        confidence, *depth = to_host(best, tokens, parents, kept.values)
        growth.confidence.append(confidence)
        growth.add(*depth)


def _filled_in(options: KangarooOptions, loaded: LoadedAdapter) -> KangarooOptions:
    """Options as they will be used and recorded."""
    chosen = {**PAPER, "exit_layer": loaded.info.exit_layer, **loaded.info.drafting}
    missing = {name: value for name, value in chosen.items() if getattr(options, name) is None}
    return replace(options, **missing)


METHOD = Kangaroo
