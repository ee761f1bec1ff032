"""The optimiser of draft heads: orthogonalised momentum for matrices, AdamW for the rest.

Muon (Jordan et al. 2024, ``torch.optim.Muon``) brought the adapter of the default model to AdamW's
agreement in a tenth of the tokens.  It is for matrices alone; norms stay with AdamW.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from specbench_kangaroo.record.errors import UsageError

OPTIMISERS = ("muon", "adamw")


class HeadOptimiser:
    """One optimiser for a module's matrices and one for its vectors, stepped together.

    Raises:
        UsageError: an unknown kind, or ``muon`` with a torch that lacks it (before 2.9).
    """

    def __init__(self, module: nn.Module, kind: str, *, betas: tuple[float, float]) -> None:
        matrices = [p for p in module.parameters() if p.dim() == 2]
        others = [p for p in module.parameters() if p.dim() != 2]
        if kind not in OPTIMISERS:
            raise UsageError(f"unknown optimiser {kind!r}; there are: {', '.join(OPTIMISERS)}")
        if kind == "muon" and not hasattr(torch.optim, "Muon"):
            raise UsageError("this torch has no Muon; upgrade it to 2.9, or use --optimiser adamw")
        self._parts: list[torch.optim.Optimizer] = []
        if others:
            self._parts.append(torch.optim.AdamW(others, betas=betas, weight_decay=0.0))
        if matrices and kind == "adamw":
            self._parts.append(torch.optim.AdamW(matrices, betas=betas, weight_decay=0.0))
        elif matrices:
            # "match_rms_adamw" scales updates to the size of AdamW's, so one rate serves both.
            self._parts.append(
                torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            )

    def step(self, learning_rate: float) -> None:
        """Apply the gradients at this learning rate, and clear them."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad()

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint must hold."""
        return [part.state_dict() for part in self._parts]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Go on from :meth:`state`."""
        for part, saved in zip(self._parts, state, strict=True):
            part.load_state_dict(saved)
