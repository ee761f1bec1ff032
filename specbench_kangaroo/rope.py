"""Rotary position embeddings by table.

Knows: a target's own rotary module.  Does not know: layers, caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FIXED = frozenset({"default", "linear", "llama3", "yarn"})  # angles depend on the position alone
_FIRST_TABLE = 1024


@dataclass(frozen=True, slots=True)
class Angles:
    """Cosines and sines of T positions, each [1, T, d].

    ``signed_sin`` is ``sin`` with its first half negated, for :func:`rotate`.
    """

    cos: Tensor
    sin: Tensor
    signed_sin: Tensor


class Rope:
    """Angles by position; the table doubles when a longer sequence comes.

    Rotations whose angles depend on the sequence's length are asked of the module each time.
    """

    def __init__(self, rotary: Any, config: Any, like: Tensor) -> None:
        self._rotary = rotary
        self._like = like
        parameters = getattr(config, "rope_parameters", None) or {}
        self._fixed = parameters.get("rope_type", "default") in _FIXED
        self._table = self._compute(torch.arange(_FIRST_TABLE))

    def at(self, positions: Sequence[int]) -> Angles:
        """Angles of ``positions``; a run of consecutive ones is a view of the table."""
        first, last = positions[0], max(positions)
        if not self._fixed:
            return self._compute(torch.tensor(positions))
        while last >= self._table.cos.shape[1]:
            self._table = self._compute(torch.arange(2 * self._table.cos.shape[1]))
        if list(positions) == list(range(first, first + len(positions))):
            rows: Any = slice(first, first + len(positions))
        else:
            rows = torch.tensor(positions, device=self._like.device)
        table = self._table
        return Angles(table.cos[:, rows], table.sin[:, rows], table.signed_sin[:, rows])

    def _compute(self, positions: Tensor) -> Angles:
        cos, sin = self._rotary(self._like, positions[None].to(self._like.device))
        half = sin.shape[-1] // 2
        return Angles(cos, sin, torch.cat((-sin[..., :half], sin[..., half:]), dim=-1))


class PlainRotary:
    """Unscaled angles of a given base, with the call of transformers' rotary modules."""

    def __init__(self, base: float, head_dim: int) -> None:
        self._inverse = base ** -(torch.arange(0, head_dim, 2).float() / head_dim)  # [d / 2]

    def __call__(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """``positions`` [1, T] -> cosines and sines, each [1, T, d]."""
        angles = positions[..., None].float() * self._inverse.to(positions.device)
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(like), both.sin().to(like)


def rotate(heads: Tensor, angles: Angles) -> Tensor:
    """Rotate heads [T, n, d] in Llama's layout, whose coordinates are a head's two halves.

    ``roll`` swaps the halves; the sign that one of them needs is in the sine that it meets.
    """
    cos, sin = angles.cos[0, :, None], angles.signed_sin[0, :, None]  # [T, 1, d]
    return torch.addcmul(heads * cos, torch.roll(heads, heads.shape[-1] // 2, dims=-1), sin)
