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

from torch import Tensor

from specbench_kangaroo.engine.method import (
    Drafter,
    MethodOptions,
    PlainMethod,
    Session,
    option,
)
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.models.load import LoadedModel, load_model
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.draft_model.drafter import ChainDrafter
from specbench_methods.draft_model.vocabulary import check_vocabulary
from specbench_methods.shared.chain import StopRule
from specbench_methods.shared.example_models import write_draft_model


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModelOptions(MethodOptions):
    """Which model drafts, and how far."""

    model: str = option("", "the draft model: a short name, a folder or a hub id; must be given")
    steps: int = option(5, "γ: the most tokens drafted in a step")
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
        if options.steps < 1:
            raise UsageError(f"draft_model.steps must be at least 1, not {options.steps}")
        name, folder = options.model, Path(options.model).expanduser()
        key = "draft_model", str(folder.resolve()) if folder.exists() else name
        return cls(target, options, *target.once(key, lambda: _companion(name, target)))

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

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """Let the draft model read the prompt (P,)."""
        del output
        return ChainDrafter(self._draft, self._rule, session, prompt, self._target.vocab_size)


def _companion(name: str, target: Target) -> tuple[Target, str]:
    """The draft model beside the target, and the hash of its weights."""
    loaded = _load(name, target)
    draft = Target(
        loaded.model, name=loaded.name, tokenizer=loaded.tokenizer, capturer=target.capturer
    )
    check_vocabulary(draft, target)
    target.companions.append(draft)
    return draft, loaded.sha256


def _load(name: str, target: Target) -> LoadedModel:
    dtype = str(target.dtype).removeprefix("torch.")
    return load_model(name, dtype=dtype, device=str(target.device))


METHOD = DraftModel
