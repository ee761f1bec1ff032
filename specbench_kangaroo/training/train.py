"""Fitting a draft head to what the target predicts, from stored features.

The loss is the soft cross entropy of arXiv 2404.18911, section 3.2, between the target's and the
draft's next-token distributions at the same position.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.training.distillation import (
    FrozenHead,
    distillation_loss,
    soft_cross_entropy,
)
from specbench_kangaroo.training.features import FeatureStore
from specbench_kangaroo.training.optimiser import HeadOptimiser
from specbench_kangaroo.training.state import TrainSettings, TrainState, Validation
from specbench_kangaroo.training.teacher import Batch, Teacher

_CLIP_NORM = 1.0
_VALIDATED_ROWS = 2048  # their logits lie in memory whole
# With another seed or share, answers that were trained on would be held back for validation.
_SAME_BATCHES = {"batch_tokens", "seed", "validation_share"}


class DraftHead(Protocol):
    """What a method gives the trainer: a module, the layer it reads, and states for the LM head."""

    module: nn.Module
    exit_layer: int | str
    vocabulary: Tensor  # (V',) the LM-head rows that the head predicts over
    ahead: tuple[int, ...]  # ascending; 0: the position's own next token, 1: the one after it, …

    def states(self, hidden: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """What the LM head reads: (M, H), one group of rows after the other.

        ``rows[i]`` (M_i,) of the flat ``hidden`` [B, S, H] are to predict ``ahead[i]``.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What a caller wants to hear of; both default to silence."""

    on_tokens: Callable[[int], None] = lambda _: None
    on_validation: Callable[[Validation], None] = lambda _: None


class Trainer:
    """One training of one head.  ``run`` leaves the best weights in the head's module.

    Args:
        lm_head: (V, H) the target's own output matrix; it stays frozen.
        checkpoint: written at every validation; training continues from it if it exists.
        config: the target's, for a cap on its logits; the head's own are never capped, neither
            here nor when it drafts.

    Raises:
        UsageError: the checkpoint was made with other settings.
    """

    def __init__(
        self,
        head: DraftHead,
        store: FeatureStore,
        lm_head: Tensor,
        settings: TrainSettings,
        *,
        checkpoint: Path | None = None,
        config: Any = None,
    ) -> None:
        self._head = head
        self._settings = settings
        self._checkpoint = checkpoint
        self._device = lm_head.device
        self._frozen = FrozenHead(lm_head[head.vocabulary])
        self._teacher = Teacher(
            store,
            lm_head,
            head.vocabulary,
            top_k=settings.teacher_top_k,
            ahead=head.ahead,
            config=config,
        )
        order = np.random.default_rng(settings.seed).permutation(len(store.spans)).tolist()
        held_back = max(1, round(settings.validation_share * len(order)))
        self._held_back, self._train = order[:held_back], order[held_back:]
        self._optimiser = HeadOptimiser(head.module, settings.optimiser, betas=settings.betas)
        self.state = TrainState()
        if checkpoint and checkpoint.exists():
            self._restore(checkpoint)

    def run(self, hooks: Hooks | None = None) -> TrainState:
        """Train until ``max_tokens``, or until ``patience`` validations brought nothing."""
        hooks = hooks or Hooks()
        state = self.state
        if not state.validations:
            self._validate(hooks)  # what the start is worth, before any step
        for batch in self._batches():
            started = time.monotonic()
            self._step(batch)
            state.tokens_seen += len(batch.rows[0])
            state.seconds += time.monotonic() - started
            hooks.on_tokens(state.tokens_seen)
            due = state.validations[-1].tokens_seen + self._settings.validate_every
            if state.tokens_seen >= min(due, self._settings.max_tokens):
                self._validate(hooks)
                if self._finished():
                    break
        self._head.module.load_state_dict(state.best_weights)
        return state

    def _finished(self) -> bool:
        validations = self.state.validations
        stale = len(validations) - 1 - validations.index(self.state.best)
        return (
            self.state.tokens_seen >= self._settings.max_tokens or stale >= self._settings.patience
        )

    def _batches(self) -> Iterator[Batch]:
        state = self.state
        while not (state.validations and self._finished()):
            epoch = self._teacher.batches(
                self._train,
                self._head.exit_layer,
                answer_tokens=self._settings.batch_tokens,
                seed=self._settings.seed + state.epoch,
            )
            for position, batch in enumerate(epoch):
                if position >= state.batches_into_epoch:
                    state.batches_into_epoch = position + 1
                    yield batch
            state.epoch += 1
            state.batches_into_epoch = 0

    def _step(self, batch: Batch) -> None:
        batch = batch.to(self._device)
        states = self._head.states(batch.hidden, batch.rows)  # (M, H)
        loss = distillation_loss(states, self._frozen, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._head.module.parameters(), _CLIP_NORM)
        self._optimiser.step(self._settings.learning_rate_at(self.state.tokens_seen))

    @torch.no_grad()
    def _validate(self, hooks: Hooks) -> None:
        losses, ranks = [], []
        at_once = _VALIDATED_ROWS // len(self._head.ahead)
        for batch in self._teacher.batches(
            self._held_back, self._head.exit_layer, answer_tokens=at_once, seed=None
        ):
            batch = batch.to(self._device)  # noqa: PLW2901
            logits = self._frozen.forward(self._head.states(batch.hidden, batch.rows))  # (M, V')
            losses.append(float(soft_cross_entropy(logits, batch)) * len(logits))
            ranks.append(_ranks(logits, batch).cpu())
        found = torch.cat(ranks)  # (R, O)
        there = (found >= 0).sum(0)  # (O,)
        by_position = ((found == 0).sum(0) / there).tolist()
        agreement = int((found == 0).sum()) / int(there.sum())
        validation = Validation(
            self.state.tokens_seen, agreement, sum(losses) / int(there.sum()), tuple(by_position)
        )
        self.state.validations.append(validation)
        if self.state.best is validation:
            weights = self._head.module.state_dict()
            self.state.best_weights = {key: value.clone() for key, value in weights.items()}
            self.state.best_ranks = found
        self._save()
        hooks.on_validation(validation)

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        temporary = self._checkpoint.with_suffix(".partial")
        state = {name: getattr(self.state, name) for name in TrainState.__slots__}
        state["validations"] = [asdict(validation) for validation in self.state.validations]
        saved = {
            "state": state,
            "module": self._head.module.state_dict(),
            "optimiser": self._optimiser.state(),
            "settings": asdict(self._settings),
        }
        torch.save(saved, temporary)
        os.replace(temporary, self._checkpoint)

    def _restore(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True, map_location=self._device)
        settings = asdict(self._settings)
        for name in _SAME_BATCHES & saved.get("settings", {}).keys():
            if saved["settings"][name] != settings[name]:
                raise UsageError(
                    f"{path} was made with {name} = {saved['settings'][name]}, not "
                    f"{settings[name]}: use that, or remove the checkpoint to start again"
                )
        saved["state"]["validations"] = [Validation(**v) for v in saved["state"]["validations"]]
        self.state = TrainState(**saved["state"])
        self._head.module.load_state_dict(saved["module"])
        self._optimiser.restore(saved["optimiser"])


def _ranks(logits: Tensor, batch: Batch) -> Tensor:
    """(R, O) how many tokens each position's predictions put before the text's own; int32.

    Row r is the r-th position of the first group.  A token outside the vocabulary comes last, and
    -1 stands where the answer has ended.
    """
    chosen = logits.gather(-1, batch.labels.clamp(min=0)[:, None])  # (M, 1)
    found = (logits > chosen).sum(-1).masked_fill(batch.labels < 0, logits.shape[-1])  # (M,)
    ranks = found.new_full((len(batch.rows[0]), len(batch.rows)), -1)
    for group, part in enumerate(torch.split(found, [len(rows) for rows in batch.rows])):
        ranks[torch.searchsorted(batch.rows[0], batch.rows[group]), group] = part
    return ranks.int()
