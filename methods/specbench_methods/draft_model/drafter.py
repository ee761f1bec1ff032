"""A chain by a second model, which has the text in a cache of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specbench_kangaroo.engine.method import Draft, Session, Verified
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.engine.tree import chain_parents
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.shared.chain import Chain, StopRule


class ChainDrafter:
    """One text, as the draft model has read it."""

    def __init__(
        self, draft: Target, rule: StopRule, session: Session, prompt: Tensor, vocab_size: int
    ) -> None:
        self._draft, self._rule, self._session = draft, rule, session
        self._vocab_size = vocab_size  # the target's
        self._cache = draft.new_cache(session.cache.capacity)
        self._pending: list[int] = []  # committed tokens that the draft model has not read yet
        if len(prompt) < draft.context_length:  # else no draft can follow
            draft.prefill(self._readable(prompt), self._cache)

    def propose(self, root: int, budget: int) -> Draft:
        """Draft until γ, the budget, EOS, an unlikely token, or the end of the draft's context."""
        chain = self._chain = Chain([root])
        while (reason := self._rule.reason(chain, budget, self._session.eos)) is None:
            if self._session.cache.length + chain.depth >= self._draft.context_length:
                reason = ExitReason.NO_DRAFT
                break
            chain.extend(self._next_logits(chain), self._session.sampler)
        return chain.draft(reason)

    def observe(self, verified: Verified) -> None:
        """Keep what was accepted; the last drafted token is pending, as nothing came after it."""
        text = [*self._pending, *(self._chain.tokens[row] for row in verified.nodes)]
        read = len(self._pending) + self._chain.depth if self._chain.depth else 0
        kept = min(len(text), read)
        self._cache.commit(range(kept))
        self._pending = text[kept:]

    def _next_logits(self, chain: Chain) -> Tensor:
        """(V,) after the chain; its first pass takes the pending tokens along with the root."""
        unread = [*self._pending, *chain.tokens]
        first = 0 if chain.depth == 0 else len(unread) - 1
        rows = self._draft.rows(self._cache.length, chain_parents(len(unread)), first=first)
        hidden = self._draft.embed(self._readable(torch.tensor(unread[first:])))  # [T, H]
        output = self._draft.predict(hidden, 0, self._draft.n_layers, rows, self._cache)
        logits = output.logits[-1]  # [V of the draft]
        missing = self._vocab_size - len(logits)  # negative: the draft's has more
        return functional.pad(logits, (0, missing), value=float("-inf")) if missing else logits

    def _readable(self, tokens: Tensor) -> Tensor:
        """(T,) ids that the draft model has."""
        return tokens.clamp(max=self._draft.vocab_size - 1)
