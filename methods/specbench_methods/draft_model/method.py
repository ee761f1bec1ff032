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
    MethodOptions,
    PlainMethod,
    Session,
    Verified,
    option,
)
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.engine.tree import chain_parents
from specbench_kangaroo.models.load import LoadedModel, load_model
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.draft_model.example import write_draft_model
from specbench_methods.draft_model.vocabulary import check_vocabulary
from specbench_methods.shared.chain import Chain, StopRule


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModelOptions(MethodOptions):
    """Which model drafts, and how far."""

    model: str = option("", "the draft model: a short name, a folder or a hub id; must be given")
    steps: int = option(5, "γ: the most tokens drafted in a step")
    threshold: float = option(0.0, "stop drafting after a token less likely than this")


class DraftModel(PlainMethod):
    """A small independent model drafts, the target verifies."""

    Options: ClassVar[type[MethodOptions]] = DraftModelOptions

    def __init__(self, target: Target, options: DraftModelOptions, loaded: LoadedModel) -> None:
        super().__init__(options)
        self.max_rows = 1 + options.steps
        self.weights: Mapping[str, Any] = {"sha256": loaded.sha256, "model": loaded.name}
        self._target = target
        self._draft = Target(
            loaded.model,
            name=loaded.name,
            tokenizer=loaded.tokenizer,
            capturer=target.capturer,
        )
        check_vocabulary(self._draft, target)
        self._rule = StopRule(steps=options.steps, threshold=options.threshold)

    @classmethod
    def load(cls, target: Target, options: DraftModelOptions) -> Self:
        """Load the draft model as the target was loaded; see :class:`Method`."""
        if not options.model:
            raise UsageError(
                "draft_model has no model to draft: give draft_model.model=NAME or FOLDER"
            )
        if options.steps < 1:
            raise UsageError(f"draft_model.steps must be at least 1, not {options.steps}")
        return cls(target, options, _load(options.model, target))

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> list[DraftModelOptions]:
        """Short and long drafts by the target's own first layers; see :class:`Method`."""
        model = write_draft_model(
            target, folder / "draft_model", layers=max(1, target.n_layers // 2)
        )
        return [
            DraftModelOptions(model=model, steps=1),
            DraftModelOptions(model=model, steps=3),
            DraftModelOptions(model=model, threshold=0.3),
        ]

    def generate_options(self) -> dict[str, Any]:
        """Keyword arguments with which ``generate`` of transformers drafts with the same model.

        It is what ``specbench profile --peers`` sets this method against.  The draft model is
        loaded once more, as ours has another attention.  The settings are its own generation
        config's: given to ``generate``, transformers 5.23 ignores them.  Where scikit-learn is
        installed, transformers adapts a threshold that is not 0.

        Raises:
            UsageError: the LM heads differ in size: ``generate`` would translate texts instead.
        """
        if self._draft.vocab_size != self._target.vocab_size:
            raise UsageError(
                f"generate takes no draft model of {self._draft.vocab_size} token ids for a target "
                f"of {self._target.vocab_size}: choose another draft_model.model"
            )
        assistant: Any = _load(self.options.model, self._target).model
        assistant.generation_config.num_assistant_tokens = self.options.steps
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = self.options.threshold
        return {"assistant_model": assistant}

    def begin(self, session: Session, prompt: Tensor, output: TargetOutput) -> None:
        """Let the draft model read the prompt, unless that fills its whole context."""
        self._session = session
        self._draft.start()
        self._cache = self._draft.new_cache(session.cache.capacity)
        self._pending: list[int] = []  # committed tokens that the draft model has not read yet
        if len(prompt) < self._draft.context_length:
            self._draft.prefill(self._readable(prompt), self._cache)

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
        missing = self._target.vocab_size - len(logits)  # negative: the draft's has more
        return functional.pad(logits, (0, missing), value=float("-inf")) if missing else logits

    def _readable(self, tokens: Tensor) -> Tensor:
        """(T,) ids that the draft model has."""
        return tokens.clamp(max=self._draft.vocab_size - 1)


def _load(name: str, target: Target) -> LoadedModel:
    dtype = str(target.dtype).removeprefix("torch.")
    return load_model(name, dtype=dtype, device=str(target.device))


METHOD = DraftModel
