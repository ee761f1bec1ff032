"""A step of Kangaroo: shallow passes and the adapter in turn, until the draft is unsure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specbench_kangaroo.engine.method import Draft, Session, Verified
from specbench_kangaroo.engine.sampling import to_host
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.kangaroo.draft import AdapterText, Growth
from specbench_methods.shared.drafted_tokens import DraftedTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPlan:
    """How a draft grows and ends: the options in the paper's words ℓ, γ and η, and the width."""

    exit_layer: int
    steps: int
    width: int
    threshold: float


class KangarooDrafter:
    """One text, drafted by the target's first layers and the adapter."""

    def __init__(
        self,
        target: Target,
        plan: DraftPlan,
        drafted: DraftedTokens,
        adapter: AdapterText,
        session: Session,
    ) -> None:
        self._target, self._plan, self._drafted = target, plan, drafted
        self._adapter, self._session = adapter, session

    def propose(self, root: int, budget: int) -> Draft:
        """Draft until γ, the budget, EOS, or a depth whose likeliest token is under η."""
        growth = Growth.from_root(root)
        steps = min(self._plan.steps, budget)
        reason = ExitReason.MAX_STEPS if steps == self._plan.steps else ExitReason.BUDGET
        self._shallow(growth)
        while growth.depth < steps:
            if growth.confidence and growth.confidence[-1] < self._plan.threshold:
                reason = ExitReason.THRESHOLD
                break
            if growth.tokens[growth.newest] in self._session.eos:
                reason = ExitReason.EOS
                break
            self._expand(growth, self._drafted.lm_head(self._adapter(growth)))
            self._shallow(growth)
        self._growth = growth
        return growth.draft(self._plan.exit_layer, reason)

    def observe(self, verified: Verified) -> None:
        """Roll the adapter's cache back to what was accepted."""
        self._adapter.commit(self._growth, verified.nodes)

    def _shallow(self, growth: Growth) -> None:
        """Run the first layers on the rows of the newest depth, above the committed cache."""
        cache, first = self._session.cache, growth.newest
        rows = self._target.rows(cache.length, growth.parents, first=first)
        embedded = self._target.embed(torch.tensor(growth.tokens[first:]))  # [W, H]
        growth.states.append(self._target.layers(embedded, 0, self._plan.exit_layer, rows, cache))

    def _expand(self, growth: Growth, logits: Tensor) -> None:
        """Add the next depth from the newest rows' draft logits (W, V')."""
        probabilities = logits.float().softmax(-1)
        best = probabilities[0].max()
        sampler = self._session.sampler
        if sampler is not None and self._plan.width == 1:
            growth.confidence.append(float(best))
            proposal = sampler.sampling.probabilities(self._drafted.over_all(logits[0]))  # [V]
            growth.add([sampler.chance.pick(proposal)], [growth.newest], [1.0])
            growth.proposals.append(proposal)
            return
        width = self._plan.width
        scores = torch.tensor(growth.scores[growth.newest :], device=logits.device)  # (W,)
        likeliest = probabilities.topk(width, dim=-1)  # [W, K]
        kept = (likeliest.values * scores[:, None]).flatten().topk(width)
        chosen = likeliest.indices.flatten()[kept.indices]
        tokens = self._drafted.ids_of(chosen)
        parents = kept.indices.div(width, rounding_mode="floor") + growth.newest
        confidence, *depth = to_host(best, tokens, parents, kept.values)
        growth.confidence.append(confidence)
        growth.add(*depth)
