"""Attention of a few rows over cached keys and values.

The queries of one key-value group are folded into rows, so grouped-query attention never expands
the cache: with a mask, torch's own fallback would copy every key once per query head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Visibility:
    """Which of S slots each of T rows sees.

    ``mask`` is (T, S) bool; None means that every row sees every slot, or, with ``causal``, that
    the rows are the slots and see the past and themselves.
    """

    mask: Tensor | None = None
    causal: bool = False

    def on(self, device: torch.device) -> Visibility:
        """The same on another device."""
        return self if self.mask is None else Visibility(self.mask.to(device), self.causal)


ALL_VISIBLE = Visibility()


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Visibility,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Scaled dot-product attention.

    Args:
        queries: [1, n_q, T, d].
        keys: [1, n_kv, S, d], ``n_q`` a multiple of ``n_kv``; ``values`` likewise.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).

    Returns:
        [1, n_q, T, d].
    """
    if visible.causal and softcap is None:
        return functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scale, enable_gqa=True
        )
    _, n_queries, rows, size = queries.shape
    _, n_kv, slots, _ = keys.shape
    groups = n_queries // n_kv
    folded = queries.reshape(1, n_kv, groups * rows, size)
    mask = visible.mask
    if visible.causal:
        mask = torch.ones(rows, slots, dtype=torch.bool, device=keys.device).tril()
    if mask is not None:
        mask = mask.repeat(groups, 1)  # [groups * T, S]
    if softcap is None:
        mixed = functional.scaled_dot_product_attention(
            folded, keys, values, attn_mask=mask, scale=scale
        )
    else:
        mixed = attend_capped(
            folded, keys, values, mask, scale=scale or size**-0.5, softcap=softcap
        )
    return mixed.view(1, n_queries, rows, size)


def attend_capped(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    softcap: float,
) -> Tensor:
    """Attention with capped logits, of as many heads [b, n, T, d] as keys have [b, n, S, d]."""
    logits = softcap * torch.tanh(queries @ keys.transpose(-1, -2) * scale / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(-1) @ values
