"""Which of the target's tokens a draft head predicts over: all of them, or its frequent ones."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from specbench_kangaroo.engine.linear import Linear
from specbench_kangaroo.engine.target import Target


class DraftedTokens:
    """A draft vocabulary of V' tokens, on the target's device; :meth:`of` gives the shared one.

    Args:
        target: whose tokens they are.
        ids: their token ids; None: all V, so that V' is V.
    """

    def __init__(self, target: Target, ids: tuple[int, ...] | None) -> None:
        self._target = target
        self._ids = None if ids is None else torch.tensor(ids, device=target.device)  # (V',)

    @classmethod
    def of(cls, target: Target, ids: tuple[int, ...] | None) -> DraftedTokens:
        """The vocabulary of these tokens that all of the target's methods share."""
        return target.once((cls, ids), lambda: cls(target, ids))

    @cached_property
    def lm_head(self) -> Linear:
        """(T, H) -> (T, V'): the rows of the target's LM head for these tokens.

        Raises:
            UsageError: the head is quantised.
        """
        head = self._target.lm_head
        return Linear(head if self._ids is None else head[self._ids])

    def ids_of(self, chosen: Tensor) -> Tensor:
        """Places in the draft vocabulary, of any shape, to token ids."""
        return chosen if self._ids is None else self._ids[chosen]

    def over_all(self, logits: Tensor) -> Tensor:
        """Logits (V',) over the target's vocabulary (V,); tokens not drafted have no chance."""
        if self._ids is None:
            return logits
        whole = logits.new_full((self._target.vocab_size,), float("-inf"))
        whole[self._ids] = logits
        return whole
