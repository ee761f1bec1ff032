"""Rotary position embeddings by table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FIXED = frozenset({"default", "linear", "llama3", "yarn"})  # angles depend on the position alone
_FIRST_TABLE = 1024


@dataclass(frozen=True, slots=True)
class Angles:
    """Cosines and sines of T positions, each [1, T, d].

    d may be less than a head's size (Phi-3), and the dtype wider than the states' (OLMo 2).
    ``signed_sin`` is ``sin`` with its first half negated, for :func:`rotate`.
    """

    cos: Tensor
    sin: Tensor
    signed_sin: Tensor

    def on(self, device: torch.device) -> Angles:
        """The same angles on another device."""
        return Angles(self.cos.to(device), self.sin.to(device), self.signed_sin.to(device))


class Rope:
    """Angles by position; the table doubles when a longer sequence comes.

    Args:
        rotary: a rotary module of transformers: (like, positions [1, T]) -> (cos, sin).
        parameters: its settings; None stands for plain angles.
        like: a tensor of the states' dtype on the device where the angles shall be.
        kind: the layer type to ask ``rotary`` for, where it has several rotations.
        limit: positions up to which angles depend on the position alone whatever the settings.
            Rows beyond it never become text (they only ride along), and get the last one's angles.
    """

    def __init__(
        self,
        rotary: Any,
        parameters: Mapping[str, Any] | None,
        like: Tensor,
        *,
        kind: str | None = None,
        limit: int | None = None,
    ) -> None:
        self._rotary = rotary
        self._like = like
        self._kind = () if kind is None else (kind,)
        fixed = (parameters or {}).get("rope_type", "default") in _FIXED
        self._limit = None if fixed else limit
        self._table = self._compute(min(_FIRST_TABLE, self._limit or _FIRST_TABLE))

    def at(self, positions: Sequence[int]) -> Angles:
        """Angles of ``positions``; a run of consecutive ones is a view of the table."""
        if self._limit is not None and max(positions) >= self._limit:
            positions = [min(position, self._limit - 1) for position in positions]
        first, last = positions[0], max(positions)
        while last >= self._table.cos.shape[1]:
            self._table = self._compute(
                min(2 * self._table.cos.shape[1], self._limit or sys.maxsize)
            )
        if list(positions) == list(range(first, first + len(positions))):
            rows: Any = slice(first, first + len(positions))
        else:
            rows = torch.tensor(positions).to(self._like.device, non_blocking=True)
        table = self._table
        return Angles(table.cos[:, rows], table.sin[:, rows], table.signed_sin[:, rows])

    def _compute(self, count: int) -> Angles:
        positions = torch.arange(count, device=self._like.device)[None]  # [1, count]
        cos, sin = self._rotary(self._like, positions, *self._kind)
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

    Angles for fewer coordinates than d rotate the first ones and leave the others as they are.
    ``roll`` swaps the halves; the sign that one of them needs is in the sine that it meets.
    """
    cos, sin = angles.cos[0, :, None], angles.signed_sin[0, :, None]  # [T, 1, d]
    size = cos.shape[-1]
    if size < heads.shape[-1]:
        rotated = rotate(heads[..., :size], angles)
        return torch.cat((rotated, heads[..., size:]), dim=-1)
    turned = torch.addcmul(heads * cos, torch.roll(heads, size // 2, dims=-1), sin)
    return turned.to(heads.dtype)
