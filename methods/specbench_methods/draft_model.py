"""Speculative decoding with a small independent draft model, which Spec-Bench calls SpS.

Leviathan et al., arXiv 2211.17192, and Chen et al., arXiv 2302.01318.  The draft model has the
target's tokenizer, but weights and a key-value cache of its own.  Two models of one tokenizer may
pad their LM heads to different sizes, as Qwen2's do: an id that one of them lacks is never drafted,
and a text that has one all the same is read as if it were the last id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from specbench_kangaroo.engine.method import (
    Draft,
    Drafter,
    MethodOptions,
    PlainMethod,
    Session,
    Verified,
    option,
)
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.engine.tree import chain_parents
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.shared.draft_models import check_vocabulary, load_beside, write_draft_model
from specbench_methods.shared.growth import Growth, StopRule


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModelOptions(MethodOptions):
    """Which model drafts, and how far."""

    model: str = option("", "the draft model: a short name, a folder or a hub id; must be given")
    steps: int = option(5, "γ: the most tokens drafted in a step", minimum=1)
    threshold: float = option(0.0, "stop drafting after a token less likely than this")


class DraftModel(PlainMethod):
    """A small independent model drafts, the target verifies."""

    Options: ClassVar[type[MethodOptions]] = DraftModelOptions

    def __init__(
        self, target: Target, options: DraftModelOptions, draft: Target, sha256: str
    ) -> None:
        super().__init__(options)
        self.max_rows = 1 + options.steps
        self.weights: Mapping[str, Any] = {"sha256": sha256, "model": draft.name}
        self._target, self._draft = target, draft
        self._rule = StopRule(steps=options.steps, threshold=options.threshold)

    @classmethod
    def load(cls, target: Target, options: DraftModelOptions) -> Self:
        """Load the draft model as the target was loaded; see :class:`Method`."""
        if not options.model:
            raise UsageError(
                "draft_model has no model to draft: give draft_model.model=NAME or FOLDER"
            )
        name, folder = options.model, Path(options.model).expanduser()
        key = "draft_model", str(folder.resolve()) if folder.exists() else name
        return cls(target, options, *target.once(key, lambda: _companion(name, target)))

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> list[DraftModelOptions]:
        """Short and long drafts by the target's own first layers; see :class:`Method`."""
        model = write_draft_model(target, folder / "draft", layers=max(1, target.n_layers // 2))
        return [
            DraftModelOptions(model=model, steps=1),
            DraftModelOptions(model=model, steps=3),
            DraftModelOptions(model=model, threshold=0.3),
        ]

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """Let the draft model read the prompt (P,)."""
        return ChainDrafter(self._draft, self._rule, session, prompt, self._target.vocab_size)


def _companion(name: str, target: Target) -> tuple[Target, str]:
    """The draft model beside the target, and the hash of its weights."""
    found = load_beside(target, name)
    draft = Target(
        found.model, name=found.name, tokenizer=found.tokenizer, capturer=target.capturer
    )
    check_vocabulary(draft, target)
    target.companions.append(draft)
    return draft, found.sha256


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
        chain = self._chain = Growth([root])
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

    def _next_logits(self, chain: Growth) -> Tensor:
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


METHOD = DraftModel
