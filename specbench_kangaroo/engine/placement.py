"""Where the rows of a tree or a prompt stand: cache slots, rotary angles, and whom they see."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbench_kangaroo.engine.attention import ALL_VISIBLE, Visibility
from specbench_kangaroo.engine.families import Layout, rope_parameters
from specbench_kangaroo.engine.tree import attention_mask, chain_parents, depths

_FIXED = frozenset({"default", "linear", "llama3", "yarn"})  # angles depend on the position alone
_FIRST_TABLE = 1024


class Angles(NamedTuple):
    """Cosines and sines of T positions, each [1, T, d].

    d may be less than a head's size (Phi-3), and the dtype wider than the states' (OLMo 2).
    ``signed_sin`` is ``sin`` with its first half negated, for :func:`rotate`.
    """

    cos: Tensor
    sin: Tensor
    signed_sin: Tensor

    def on(self, device: torch.device) -> Angles:
        """The same angles on another device."""
        return Angles(*(part.to(device) for part in self))


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


@dataclass(frozen=True, slots=True)
class Rows:
    """Where some rows of a tree stand: their first cache slot, angles, and whom they see.

    Attributes:
        angles: the model's own; those of layer types that rotate otherwise are ``other_angles``.
        visible: one entry per attention window that the target's layers use; None is full.
        copies: these rows on other devices, made when a layer there first asks.
    """

    slot: int
    angles: Angles
    visible: Mapping[int | None, Visibility]
    other_angles: Mapping[str, Angles] = field(default_factory=dict)
    copies: dict[torch.device, Rows] = field(default_factory=dict, repr=False, compare=False)

    def angles_of(self, rotation: str | None) -> Angles:
        """Angles for a layer type; None is the model's own."""
        return self.angles if rotation is None else self.other_angles[rotation]

    def on(self, device: torch.device) -> Rows:
        """These rows on a layer's device: copied once, however many layers are there."""
        if device == self.angles.cos.device:
            return self
        if device not in self.copies:
            self.copies[device] = Rows(
                self.slot,
                self.angles.on(device),
                {window: visible.on(device) for window, visible in self.visible.items()},
                {kind: angles.on(device) for kind, angles in self.other_angles.items()},
            )
        return self.copies[device]


class Placement:
    """How a target's rows are placed.

    Args:
        like: a tensor of the states' dtype on the device where angles and masks go.

    Attributes:
        rope: the target's own angles.
    """

    def __init__(self, model: Any, layout: Layout, like: Tensor) -> None:
        def rope(kind: str | None) -> Rope:
            asked = kind or layout.main_rotation
            return Rope(
                model.model.rotary_emb,
                rope_parameters(model.config, asked),
                like,
                kind=asked,
                limit=layout.context_length,
            )

        self.rope = rope(None)
        self._other_ropes = {kind: rope(kind) for kind in {*layout.rotations} if kind is not None}
        self._windows = {None, *layout.windows}  # that layers may use
        self._device = like.device

    def rows(
        self, length: int, parents: Sequence[int], *, first: int = 0, rope: Rope | None = None
    ) -> Rows:
        """Place rows ``first ..`` of a tree above ``length`` committed positions.

        Args:
            length: committed positions.
            parents: of all rows of the tree, as in :class:`TokenTree`.
            first: the first row that is run; earlier ones are in the cache already.
            rope: rotary angles other than the target's own, for a draft head that has its own.
        """
        parents = tuple(parents)
        positions = [length + depth for depth in depths(parents)[first:]]
        visible = {
            window: self._visible(parents, length, first, window) for window in self._windows
        }
        return self._placed(length + first, positions, visible, rope)

    def prompt_rows(self, count: int, *, rope: Rope | None = None) -> Rows:
        """Place the ``count`` rows of a prompt in an empty cache; see :meth:`rows` for ``rope``."""
        visible = {
            window: Visibility(causal=True)
            if window is None or window >= count
            else Visibility(attention_mask(chain_parents(count), 0, window=window).to(self._device))
            for window in self._windows
        }
        return self._placed(0, range(count), visible, rope)

    def _placed(
        self,
        slot: int,
        positions: Sequence[int],
        visible: Mapping[int | None, Visibility],
        rope: Rope | None,
    ) -> Rows:
        if rope is not None:
            return Rows(slot, rope.at(positions), visible)
        others = {kind: other.at(positions) for kind, other in self._other_ropes.items()}
        return Rows(slot, self.rope.at(positions), visible, others)

    def _visible(
        self, parents: tuple[int, ...], length: int, first: int, window: int | None
    ) -> Visibility:
        if window is not None and length + len(parents) <= window:
            window = None
        single = len(parents) - first == 1
        if window is None and single and parents == chain_parents(len(parents)):
            return ALL_VISIBLE
        mask = attention_mask(parents, length, first=first, window=window)
        return Visibility(mask.to(self._device, non_blocking=True))
