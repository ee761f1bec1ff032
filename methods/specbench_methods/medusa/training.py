"""Medusa's side of training: its heads over stored final states (Medusa-1, the target frozen).

Head i imitates at position t what the target predicts at t+1+i; every head shares the LM head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.training.features import FINAL
from specbench_kangaroo.training.train import DraftHead
from specbench_kangaroo.training.trainable import Provenance
from specbench_methods.medusa.heads import KIND, Heads, HeadsShape
from specbench_methods.shared.draft_tree import likeliest_paths
from specbench_methods.shared.weights import WeightInfo, save_weights

HEADS = 4  # as deep as the published tree
_KEPT_PATHS, _KEPT_WIDTH = 64, 10  # as many nodes and ranks as the published tree has


@dataclass(frozen=True, slots=True)
class MedusaTrainee:
    """Heads for one target, to be trained; see :class:`Trainee`."""

    model: Any
    exit_layer: int | str = FINAL
    start: str = "as SiLU(h) before the target's LM head"

    @classmethod
    def of(cls, model: Any, exit_layer: int | None) -> MedusaTrainee:
        """Refuse an exit layer: the heads read the final states."""
        if exit_layer is not None:
            raise UsageError("medusa reads the target's final states: leave --exit-layer out")
        return cls(model)

    def head(self, vocabulary: Tensor) -> HeadsOverText:
        """Heads that begin with W1 = -1, which is h + SiLU(-h) = SiLU(h).

        A final state speaks for the next token, which a later token rarely is, and behind a frozen
        LM head the block must unlearn that: from here it takes far fewer tokens than from h itself
        (agreement 0.25 against 0.23 after 150,000, for the default model's first head).
        """
        return HeadsOverText(self.model, vocabulary=vocabulary)

    def save(self, path: Path, head: DraftHead, provenance: Provenance) -> None:
        """Write the safetensors file that Medusa loads, with the likeliest draft paths."""
        restricted = len(head.vocabulary) < len(self.model.lm_head.weight)
        ranks = provenance.ranks.masked_fill(provenance.ranks < 0, _KEPT_WIDTH)  # never right
        info = WeightInfo(
            target=provenance.target,
            target_sha256=provenance.target_sha256,
            draft_vocabulary=tuple(head.vocabulary.tolist()) if restricted else None,
            record=provenance.record,
            paths=tuple(likeliest_paths(ranks.numpy(), _KEPT_PATHS, width=_KEPT_WIDTH)),
        )
        save_weights(path, head.module, info, KIND)


class HeadsOverText:
    """The heads on many positions at once; their states go to the target's LM head.

    Args:
        model: the target, a ``transformers`` causal language model; it is read, never changed.
        vocabulary: (V',) the LM-head rows that the heads predict over.
    """

    exit_layer: int | str = FINAL
    ahead: tuple[int, ...] = tuple(range(1, HEADS + 1))

    def __init__(self, model: Any, *, vocabulary: Tensor) -> None:
        self.vocabulary = vocabulary
        heads = Heads(HeadsShape.of(model.config, heads=HEADS))
        for key, tensor in heads.state_dict().items():
            if key.endswith("weight"):
                nn.init.eye_(tensor).neg_()
        self.module: nn.Module = heads.to(model.lm_head.weight.device)

    def states(self, hidden: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """(M, H): head i at ``rows[i]`` of the flattened ``hidden`` [B, S, H]."""
        flat = hidden.flatten(0, 1)
        blocks = [layers[0] for layers in self.module.children()]  # type: ignore[index]
        return torch.cat([block(flat[at]) for block, at in zip(blocks, rows, strict=True)])
