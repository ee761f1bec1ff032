"""Fitting a draft head to what the target predicts, from stored features.

Matrices learn by orthogonalised momentum (Muon, Jordan et al. 2024), norms by AdamW: that brought
the adapter of the default model to AdamW's agreement in a tenth of the tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.files import replacing
from specbench_kangaroo.training.features import FeatureStore
from specbench_kangaroo.training.teacher import (
    Batch,
    FrozenHead,
    Rows,
    Teacher,
    answer_rows,
    distillation_loss,
    distinct_rows,
    label_ranks,
    soft_cross_entropy,
)

OPTIMISERS = ("muon", "adamw")
_CLIP_NORM = 1.0
_VALIDATED_ROWS = 2048  # their logits lie in memory whole
# With another seed or share, answers that were trained on would be held back for validation.
_SAME_BATCHES = {"batch_tokens", "everywhere", "seed", "validation_share"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How long and how fast to train; token counts are positions with loss."""

    max_tokens: int = 20_000_000
    batch_tokens: int = 1024
    optimiser: str = "muon"  # or adamw, which wants a fifth of the learning rate
    learning_rate: float = 2e-2
    final_rate_share: float = 0.02  # cosine decay ends at this share of the learning rate
    warmup_share: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    teacher_top_k: int = 64
    everywhere: bool = False  # loss at all positions, not at those alone that predict answers
    validation_share: float = 0.05  # of documents with answers, where none are named
    validate_every: int = 500_000
    patience: int = 6  # validations without a better agreement before it stops
    seed: int = 0

    def learning_rate_at(self, tokens_seen: int) -> float:
        """A linear warm-up, then a cosine down to ``final_rate_share``."""
        done = min(1.0, tokens_seen / self.max_tokens)
        if done < self.warmup_share:
            return self.learning_rate * (done + 0.01) / (self.warmup_share + 0.01)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        share = self.final_rate_share + (1 - self.final_rate_share) * cosine
        return self.learning_rate * share


@dataclass(frozen=True, slots=True)
class Validation:
    """One look at held-back answers: top-1 agreement with the answers' own tokens, and the loss."""

    tokens_seen: int
    agreement: float
    loss: float
    by_position: tuple[float, ...] = ()  # agreement at each of the positions ahead


@dataclass(slots=True)
class TrainState:
    """Everything that a checkpoint must hold for training to go on as if it had not stopped."""

    tokens_seen: int = 0
    epoch: int = 0
    batches_into_epoch: int = 0
    seconds: float = 0.0
    validations: list[Validation] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    # (R, O): what rank the best weights gave to the text's token, at each held-back position and
    # for each of the positions ahead; -1 past the answer's end.
    best_ranks: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int32))

    @property
    def best(self) -> Validation:
        """The validation with the highest agreement: the one whose weights are kept."""
        return max(self.validations, key=lambda validation: validation.agreement)

    def record(self, settings: TrainSettings) -> dict[str, Any]:
        """JSON-ready, for the metadata of the weights."""
        return {
            "settings": asdict(settings),
            "tokens_seen": self.tokens_seen,
            "seconds": round(self.seconds),
            "validations": [asdict(validation) for validation in self.validations],
            "validation_agreement": self.best.agreement,
        }


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
    """What a caller wants to hear of; all default to silence."""

    on_stage: Callable[[str], None] = lambda _: None
    on_features: Callable[[int, int], None] = lambda done, total: None
    on_tokens: Callable[[int], None] = lambda _: None
    on_validation: Callable[[Validation], None] = lambda _: None


class Trainer:
    """One training of one head.  ``run`` leaves the best weights in the head's module.

    Args:
        lm_head: (V, H) the target's own output matrix; it stays frozen, and products with it are
            in its dtype.
        checkpoint: written at every validation; training continues from it if it exists.
        config: the target's, for a cap on its logits; the head's own are never capped, neither
            here nor when it drafts.
        held_back: documents to validate on; None: a share of those that have answers.

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
        held_back: Sequence[int] | None = None,
    ) -> None:
        self._head = head
        self._settings = settings
        self._checkpoint = checkpoint
        self._device = lm_head.device
        self._frozen = FrozenHead(lm_head[head.vocabulary])
        rows = self._split(store, held_back)
        top_k, ahead = settings.teacher_top_k, head.ahead
        self._teacher = Teacher(
            store, lm_head, head.vocabulary, top_k=top_k, ahead=ahead, config=config, rows=rows
        )
        self._optimisers = _optimisers(head.module, settings)
        self.state = TrainState()
        if checkpoint and checkpoint.exists():
            self._restore(checkpoint)

    def _split(self, store: FeatureStore, held_back: Sequence[int] | None) -> list[Rows]:
        """Choose what is held back and what is trained on: the rows of each that carry loss."""
        settings, rows = self._settings, answer_rows(store)
        order = np.random.default_rng(settings.seed).permutation(len(rows)).tolist()
        if held_back is None:
            answered = [document for document in order if len(rows[document])]
            held_back = answered[: max(1, round(settings.validation_share * len(answered)))]
        self._held_back = list(held_back)
        others = set(order) - set(held_back)
        if settings.everywhere:
            distinct = distinct_rows(store, sorted(others))
            rows = [distinct[i] if i in others else rows[i] for i in range(len(rows))]
        self._train = [document for document in order if document in others and len(rows[document])]
        return rows

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
        state = self.state
        stale = len(state.validations) - 1 - state.validations.index(state.best)
        return state.tokens_seen >= self._settings.max_tokens or stale >= self._settings.patience

    def _batches(self) -> Iterator[Batch]:
        state = self.state
        while not self._finished():
            epoch = self._teacher.batches(
                self._train,
                self._head.exit_layer,
                loss_tokens=self._settings.batch_tokens,
                seed=self._settings.seed + state.epoch,
            )
            for position, batch in enumerate(epoch):
                if position >= state.batches_into_epoch:
                    state.batches_into_epoch = position + 1
                    yield batch.to(self._device)
            state.epoch += 1
            state.batches_into_epoch = 0

    def _step(self, batch: Batch) -> None:
        states = self._head.states(batch.hidden, batch.rows)  # (M, H)
        distillation_loss(states, self._frozen, batch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._head.module.parameters(), _CLIP_NORM)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self._settings.learning_rate_at(self.state.tokens_seen)
            optimiser.step()
            optimiser.zero_grad()

    def _validate(self, hooks: Hooks) -> None:
        state = self.state
        validation, ranks = self._measured()
        state.validations.append(validation)
        if state.best is validation:
            weights = self._head.module.state_dict()
            state.best_weights = {key: value.clone() for key, value in weights.items()}
            state.best_ranks = ranks
        if self._checkpoint is not None:
            self._save(self._checkpoint)
        hooks.on_validation(validation)

    @torch.no_grad()
    def _measured(self) -> tuple[Validation, Tensor]:
        """The head on the answers that were held back, with its ranks (R, O) there."""
        losses, ranks = [], []
        for batch in self._teacher.batches(
            self._held_back,
            self._head.exit_layer,
            loss_tokens=_VALIDATED_ROWS // len(self._head.ahead),
            seed=None,
        ):
            there = batch.to(self._device)
            logits = self._frozen.forward(self._head.states(there.hidden, there.rows))  # (M, V')
            losses.append(float(soft_cross_entropy(logits, there)) * len(logits))
            ranks.append(label_ranks(logits, there).cpu())
        found = torch.cat(ranks)  # (R, O)
        right, asked = (found == 0).sum(0), (found >= 0).sum(0)  # (O,)
        total = int(asked.sum())
        by_position = tuple((right / asked).tolist())
        seen = self.state.tokens_seen
        return Validation(seen, int(right.sum()) / total, sum(losses) / total, by_position), found

    def _save(self, path: Path) -> None:
        saved = {
            "state": asdict(self.state),
            "module": self._head.module.state_dict(),
            "optimiser": [optimiser.state_dict() for optimiser in self._optimisers],
            "settings": asdict(self._settings),
        }
        with replacing(path) as temporary:
            torch.save(saved, temporary)

    def _restore(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True, map_location=self._device)
        for name in _SAME_BATCHES & saved.get("settings", {}).keys():
            was, wanted = saved["settings"][name], getattr(self._settings, name)
            if was != wanted:
                raise UsageError(
                    f"{path} was made with {name} = {was}, not {wanted}: use that, "
                    "or remove the checkpoint to start again"
                )
        saved["state"]["validations"] = [Validation(**v) for v in saved["state"]["validations"]]
        self.state = TrainState(**saved["state"])
        self._head.module.load_state_dict(saved["module"])
        for optimiser, part in zip(self._optimisers, saved["optimiser"], strict=True):
            optimiser.load_state_dict(part)


def _optimisers(module: nn.Module, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """AdamW, and for ``muon`` another one that has the matrices.

    Raises:
        UsageError: an unknown name, or ``muon`` with a torch that lacks it (before 2.9).
    """
    kind = settings.optimiser
    if kind not in OPTIMISERS:
        raise UsageError(f"unknown optimiser {kind!r}; there are: {', '.join(OPTIMISERS)}")
    if kind == "muon" and not hasattr(torch.optim, "Muon"):
        raise UsageError("this torch has no Muon; upgrade it to 2.9, or use --optimiser adamw")
    # "match_rms_adamw" scales updates to the size of AdamW's, so one rate serves both.
    muon: dict[str, Any] = {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    matrices = [p for p in module.parameters() if kind == "muon" and p.dim() == 2]
    others = [p for p in module.parameters() if not (kind == "muon" and p.dim() == 2)]
    return [
        *([torch.optim.AdamW(others, betas=settings.betas, weight_decay=0.0)] if others else []),
        *([torch.optim.Muon(matrices, **muon)] if matrices else []),
    ]
