"""Where the rows of a tree or a prompt stand: cache slots, rotary angles, and whom they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from specbench_kangaroo.engine.attention import ALL_VISIBLE, Visibility
from specbench_kangaroo.engine.families import Layout, rope_parameters
from specbench_kangaroo.engine.layers import Rows
from specbench_kangaroo.engine.rope import Rope
from specbench_kangaroo.engine.tree import attention_mask, chain_parents, depths


@dataclass(frozen=True, slots=True)
class Placement:
    """How a target's rows are placed.

    Attributes:
        rope: the target's own angles.
        other_ropes: those of layer types that have their own.
        windows: that layers may use; None, full attention, is always among them.
        device: where masks go.
    """

    rope: Rope
    other_ropes: Mapping[str, Rope]
    windows: frozenset[int | None]
    device: torch.device

    @classmethod
    def of(cls, model: Any, layout: Layout, *, dtype: torch.dtype, device: torch.device) -> Self:
        """The placement that a model of this layout needs."""

        def rope(kind: str | None) -> Rope:
            asked = kind or layout.main_rotation
            return Rope(
                model.model.rotary_emb,
                rope_parameters(model.config, asked),
                torch.empty(1, dtype=dtype, device=device),
                kind=asked,
                limit=layout.context_length,
            )

        others = {kind: rope(kind) for kind in {*layout.rotations} if kind is not None}
        return cls(rope(None), others, frozenset({None, *layout.windows}), device)

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
        visible = {window: self._visible(parents, length, first, window) for window in self.windows}
        return self._placed(length + first, positions, visible, rope)

    def prompt_rows(self, count: int, *, rope: Rope | None = None) -> Rows:
        """Place the ``count`` rows of a prompt in an empty cache; see :meth:`rows` for ``rope``."""
        visible = {
            window: Visibility(causal=True)
            if window is None or window >= count
            else Visibility(attention_mask(chain_parents(count), 0, window=window).to(self.device))
            for window in self.windows
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
        others = {kind: other.at(positions) for kind, other in self.other_ropes.items()}
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
        return Visibility(mask.to(self.device, non_blocking=True))
