"""The key-value cache: preallocated, with committed rows below and scratch rows above.

Invariant: slots below ``length`` hold the committed tokens' keys and values, whatever the method
did; slots above are scratch.  Rolling back a rejected draft is not advancing ``length``.

The memory, :class:`Storage`, may outlive a cache: captured graphs hold addresses, so that one cache
after the other then lives in the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The size of one layer's keys (and values), and where they live."""

    n_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """Views of one layer's slots, each [1, n_kv, S, d]."""

    keys: Tensor
    values: Tensor


class Slots(Protocol):
    """What a layer needs of a cache."""

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> CachedLayer:
        """Store rows [1, n_kv, T, d] and return the slots that they may look at."""
        ...


class Storage:
    """Zeroed memory for the keys and values of some layers; layers of one shape share a block.

    Attributes:
        shapes: one per layer.
        capacity: S, its slots.
        loans: how many caches it was given to; each ends the one before.
        layers: the layers' slots: views of the blocks.
    """

    def __init__(self, shapes: Sequence[CacheShape], capacity: int) -> None:
        self.shapes = tuple(shapes)
        self.capacity = capacity
        self.loans = 0
        self._blocks: list[Tensor] = []  # each [2 * layers of one shape, n_kv, S, d]
        found: dict[int, CachedLayer] = {}
        for shape in dict.fromkeys(shapes):
            layers = [layer for layer, other in enumerate(shapes) if other == shape]
            block = _zeros(shape, 2 * len(layers), capacity)
            self._blocks.append(block)
            for place, layer in enumerate(layers):
                found[layer] = CachedLayer(block[2 * place :][:1], block[2 * place + 1 :][:1])
        self.layers = [found[layer] for layer in range(len(shapes))]

    def move(self, rows: Sequence[int], start: int) -> None:
        """Copy slots ``start + rows[i]`` to ``start + i`` in all layers at once."""
        target = slice(start, start + len(rows))
        found = torch.tensor([start + row for row in rows])  # [len(rows)]
        for block in self._blocks:
            source = found.to(block.device, non_blocking=True)
            block[:, :, target] = block.index_select(2, source)


class KVCache:
    """Keys and values of some layers for one sequence.

    Args:
        shapes: one per layer.
        capacity: slots: the prompt, the budget and the scratch rows, never the model's maximum.
        storage: memory of an earlier cache of these shapes, which cannot be used any more then.
    """

    def __init__(
        self, shapes: Sequence[CacheShape], capacity: int, *, storage: Storage | None = None
    ) -> None:
        self.capacity = capacity
        self.length = 0
        self.storage = storage or Storage(shapes, capacity)
        self.storage.loans += 1
        self._loan = self.storage.loans

    def end_of(self, slot: int, count: int) -> int:
        """One past the last of ``count`` rows from ``slot`` on.

        Raises:
            IndexError: they do not fit.
            RuntimeError: the memory belongs to a later cache by now.
        """
        end = slot + count
        if end > self.capacity:
            raise IndexError(f"rows {slot}..{end - 1} do not fit into {self.capacity} cache slots")
        self._check_loan()
        return end

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> CachedLayer:
        """Store rows [1, n_kv, T, d] from ``slot`` on and return all slots up to their end.

        Raises:
            IndexError: the rows do not fit; nothing is written.
            RuntimeError: the memory belongs to a later cache by now.
        """
        end = self.end_of(slot, keys.shape[2])
        stored = self.storage.layers[layer]
        stored_keys, stored_values = stored.keys[:, :, :end], stored.values[:, :, :end]
        stored_keys[:, :, slot:] = keys
        stored_values[:, :, slot:] = values
        return CachedLayer(stored_keys, stored_values)

    def commit(self, rows: Sequence[int]) -> None:
        """Keep scratch rows ``length + rows[i]`` as the next committed ones.

        ``rows`` ascend.  An accepted chain already lies where it belongs, so it is not copied.
        """
        self._check_loan()
        if list(rows) != list(range(len(rows))):
            self.storage.move(rows, self.length)
        self.length += len(rows)

    def committed(self, layer: int) -> CachedLayer:
        """A layer's committed keys and values, each [1, n_kv, length, d]: views, not copies."""
        stored = self.storage.layers[layer]
        return CachedLayer(stored.keys[:, :, : self.length], stored.values[:, :, : self.length])

    def release(self) -> None:
        """Let go of the memory, whoever still holds this cache: it can be used no more."""
        self.capacity = self.length = 0
        self.storage = Storage((), 0)

    def _check_loan(self) -> None:
        if self.storage.loans != self._loan:
            raise RuntimeError(
                "a cache of an earlier generation is used: its memory has another user now"
            )


@dataclass(frozen=True, slots=True)
class StaticSlots:
    """A storage's slots at fixed addresses, for layers that are captured and replayed.

    Attributes:
        slots: (T,) where rows go; its contents change from replay to replay, its memory never.
        length: L, how many slots a layer looks at; those without a row are the mask's business.
    """

    storage: Storage
    slots: Tensor
    length: int

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> CachedLayer:
        """Store rows [1, n_kv, T, d] at ``slots`` and return the first L slots.

        ``slot`` is not read: it would be the same in every replay.
        """
        stored = self.storage.layers[layer]
        stored.keys.index_copy_(2, self.slots, keys.to(stored.keys.dtype))
        stored.values.index_copy_(2, self.slots, values.to(stored.values.dtype))
        return CachedLayer(stored.keys[:, :, : self.length], stored.values[:, :, : self.length])


def _zeros(shape: CacheShape, count: int, capacity: int) -> Tensor:
    size = (count, shape.n_kv_heads, capacity, shape.head_dim)
    with torch.inference_mode(False):  # memory that lasts is written in that mode and outside it
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)
