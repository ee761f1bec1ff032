"""A draft without branches: the chain while it grows, and the rule that ends it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from specbench_kangaroo.engine.method import Draft, Resume
from specbench_kangaroo.engine.sampling import Sampler, to_host
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.schema import ExitReason


@dataclass(slots=True)
class Chain:
    """The root and the tokens drafted after it, each with what the draft model said of it."""

    tokens: list[int]
    confidence: list[float] = field(default_factory=list)
    proposals: list[Tensor] = field(default_factory=list)  # (V,) what each token was drawn from

    @property
    def depth(self) -> int:
        """How many tokens are drafted."""
        return len(self.tokens) - 1

    def extend(self, logits: Tensor, sampler: Sampler | None) -> None:
        """Draft one token from the draft model's logits (V,): the likeliest, or a drawn one."""
        probabilities = logits.softmax(-1, torch.promote_types(logits.dtype, torch.float32))
        if sampler is None:
            confidence, token = to_host(probabilities.max(), logits.argmax())
            self.confidence.append(confidence)
            self.tokens.append(token)
            return
        self.confidence.append(float(probabilities.max()))
        proposal = sampler.sampling.probabilities(logits)  # [V]
        self.tokens.append(sampler.chance.pick(proposal))
        self.proposals.append(proposal)

    def draft(self, reason: ExitReason, resume: Resume | None = None) -> Draft:
        """The finished chain."""
        tree = TokenTree.chain(torch.tensor(self.tokens))
        probabilities = torch.stack(self.proposals) if self.proposals else None
        return Draft(tree, resume, probabilities, tuple(self.confidence), reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """When a chain is long enough: γ tokens, or one that is less likely than the threshold."""

    steps: int
    threshold: float

    def reason(self, chain: Chain, budget: int, eos: frozenset[int]) -> ExitReason | None:
        """Why ``chain`` ends here; None: draft one more token."""
        if chain.depth >= self.steps:
            return ExitReason.MAX_STEPS
        if chain.depth >= budget:
            return ExitReason.BUDGET
        if chain.confidence and chain.confidence[-1] < self.threshold:
            return ExitReason.THRESHOLD
        if chain.tokens[-1] in eos:
            return ExitReason.EOS
        return None
