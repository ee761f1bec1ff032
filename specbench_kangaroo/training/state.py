"""How long and how fast a draft head trains, and how far it has come."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How long and how fast to train; token counts are answer tokens."""

    max_tokens: int = 20_000_000
    batch_tokens: int = 1024
    optimiser: str = "muon"  # or adamw, which wants a fifth of the learning rate
    learning_rate: float = 2e-2
    final_rate_share: float = 0.02  # cosine decay ends at this share of the learning rate
    warmup_share: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    teacher_top_k: int = 64
    validation_share: float = 0.05
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
