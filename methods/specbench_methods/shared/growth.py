"""A draft while it grows, one depth after the other, and the rule that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specbench_kangaroo.engine.cache import KVCache
from specbench_kangaroo.engine.method import Draft, Resume
from specbench_kangaroo.engine.placement import Rows
from specbench_kangaroo.engine.sampling import Sampler, to_host
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.schema import ExitReason


@dataclass(slots=True)
class Growth:
    """The root and what is drafted after it; rows of one depth are neighbours, the likeliest first.

    A chain is a tree of width one.
    """

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    scores: Sequence[float] = (1.0,)  # cumulative draft probability of the newest rows
    newest: int = 0  # first row of the deepest depth
    depth: int = 0
    states: list[Tensor] = field(default_factory=list)  # exit-layer states (W, H) of every depth
    confidence: list[float] = field(default_factory=list)
    proposals: list[Tensor] = field(default_factory=list)  # (V,) what each token was drawn from

    def add(
        self, tokens: Sequence[int], parents: Sequence[int], scores: Sequence[float] = (1.0,)
    ) -> None:
        """Append one depth."""
        self.newest = len(self.tokens)
        self.depth += 1
        self.tokens += tokens
        self.parents += parents
        self.scores = scores

    def extend(self, logits: Tensor, sampler: Sampler | None) -> None:
        """Append one token by the draft model's logits (V,): the likeliest, or a drawn one."""
        probabilities = logits.softmax(-1, torch.promote_types(logits.dtype, torch.float32))
        if sampler is not None:
            self.draw(logits, probabilities.max(), sampler)
            return
        confidence, token = to_host(probabilities.max(), logits.argmax())
        self.confidence.append(confidence)
        self.add([token], [self.newest])

    def draw(self, logits: Tensor, confidence: Tensor, sampler: Sampler) -> None:
        """Append one token, drawn by logits (V,)."""
        self.confidence.append(float(confidence))
        proposal = sampler.sampling.probabilities(logits)  # [V]
        self.add([sampler.chance.pick(proposal)], [self.newest])
        self.proposals.append(proposal)

    def newest_rows(self, target: Target, cache: KVCache) -> tuple[Tensor, Rows]:
        """The newest rows, embedded (W, H), and their place above what is committed."""
        rows = target.rows(cache.length, self.parents, first=self.newest)
        return target.embed(torch.tensor(self.tokens[self.newest :])), rows

    def run_first(self, target: Target, cache: KVCache, exit_layer: int) -> None:
        """Run the layers before ``exit_layer`` on the newest rows, and keep their states."""
        hidden, rows = self.newest_rows(target, cache)
        self.states.append(target.layers(hidden, 0, exit_layer, rows, cache))

    def draft(self, reason: ExitReason, exit_layer: int | None = None) -> Draft:
        """The finished draft; with an exit layer it is verified from the states there."""
        tree = TokenTree(torch.tensor(self.tokens), tuple(self.parents), len(self.tokens))
        resume = None if exit_layer is None else Resume(exit_layer, torch.cat(self.states))
        probabilities = torch.stack(self.proposals) if self.proposals else None
        return Draft(tree, resume, probabilities, tuple(self.confidence), reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """When a draft is deep enough: γ tokens, or one that is less likely than the threshold."""

    steps: int
    threshold: float

    def reason(self, growth: Growth, budget: int, eos: frozenset[int]) -> ExitReason | None:
        """Why ``growth`` ends here; None: draft one more depth."""
        if growth.depth >= self.steps:
            return ExitReason.MAX_STEPS
        if growth.depth >= budget:
            return ExitReason.BUDGET
        if growth.confidence and growth.confidence[-1] < self.threshold:
            return ExitReason.THRESHOLD
        if growth.tokens[growth.newest] in eos:
            return ExitReason.EOS
        return None
