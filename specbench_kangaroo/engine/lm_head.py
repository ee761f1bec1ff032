"""A target's LM head: logits of final states, and its matrix for draft heads that share it."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from specbench_kangaroo.engine.families import home, is_plain
from specbench_kangaroo.engine.linear import Linear
from specbench_kangaroo.record.errors import UsageError


class LmHead:
    """Logits (T, V) of normed final states (T, H), capped where the family caps them (Gemma 2).

    A head that is quantised or offloaded runs as its module, hooks included; any other one by a
    product that is made for few rows.
    """

    def __init__(self, module: Any, config: Any) -> None:
        self._module = module
        self._config = config
        self.device = home(module)
        self.vocab_size: int = getattr(module, "out_features", None) or len(module.weight)
        self._product: Any = module
        if is_plain(module):
            bias = None if module.bias is None else module.bias.detach()
            self._product = Linear(module.weight.detach(), bias)

    def __call__(self, normed: Tensor) -> Tensor:
        """(T, H) on any device -> (T, V) on the head's."""
        logits: Tensor = self._product(normed.to(self.device))
        return capped(logits, self._config)

    def matrix(self, device: torch.device) -> Tensor:
        """See :func:`matrix_of`."""
        return matrix_of(self._module, device)


def matrix_of(module: Any, device: torch.device) -> Tensor:
    """A head's weight (V, H) on ``device``; one that is offloaded is loaded for good.

    Raises:
        UsageError: the head is quantised.
    """
    if type(module) is not nn.Linear or not module.weight.is_floating_point():
        raise UsageError(
            f"the target's LM head is quantised ({type(module).__name__}), and this draft shares "
            "its matrix: use a model whose lm_head is left in full precision"
        )
    with align_module_device(module):
        return module.weight.detach().to(device)


def capped(logits: Tensor, config: Any) -> Tensor:
    """Logits as the family's own forward pass leaves them: Gemma 2 bounds them smoothly."""
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
