"""The key-value cache: preallocated, with committed rows below and scratch rows above.

Knows: tensors and slots.  Does not know: layers' arithmetic, trees, methods.

Invariant: slots below ``length`` hold the committed tokens' keys and values, whatever the method
did; slots above are scratch.  Rolling back a rejected draft is not advancing ``length``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The size of one layer's keys (and values), and where they live."""

    n_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class KVCache:
    """Keys and values of some layers for one sequence.

    Args:
        shapes: one per layer.
        capacity: slots: the prompt, the budget and the scratch rows, never the model's maximum.
    """

    def __init__(self, shapes: Sequence[CacheShape], capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys = [_slots(shape, capacity) for shape in shapes]  # each [1, n_kv, S, d]
        self._values = [_slots(shape, capacity) for shape in shapes]

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> CachedLayer:
        """Store rows [1, n_kv, T, d] from ``slot`` on and return all slots up to their end.

        Raises:
            IndexError: the rows do not fit; nothing is written.
        """
        end = slot + keys.shape[2]
        if end > self.capacity:
            raise IndexError(f"rows {slot}..{end - 1} do not fit into {self.capacity} cache slots")
        stored_keys = self._keys[layer][:, :, :end]
        stored_values = self._values[layer][:, :, :end]
        stored_keys[:, :, slot:] = keys
        stored_values[:, :, slot:] = values
        return CachedLayer(stored_keys, stored_values)

    def commit(self, rows: Sequence[int]) -> None:
        """Keep scratch rows ``length + rows[i]`` as the next committed ones.

        ``rows`` ascend.  An accepted chain already lies where it belongs, so it is not copied.
        """
        if list(rows) != list(range(len(rows))):
            self._compact(rows)
        self.length += len(rows)

    def _compact(self, rows: Sequence[int]) -> None:
        for stored in (*self._keys, *self._values):
            source = torch.tensor(rows, device=stored.device) + self.length
            target = slice(self.length, self.length + len(rows))
            stored[:, :, target] = stored.index_select(2, source)

    def committed(self, layer: int) -> CachedLayer:
        """A layer's committed keys and values, each [1, n_kv, length, d]: views, not copies."""
        keys, values = self._keys[layer], self._values[layer]
        return CachedLayer(keys[:, :, : self.length], values[:, :, : self.length])


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """Views of one layer's slots, each [1, n_kv, S, d]."""

    keys: Tensor
    values: Tensor


def _slots(shape: CacheShape, capacity: int) -> Tensor:
    size = (1, shape.n_kv_heads, capacity, shape.head_dim)
    return torch.zeros(size, dtype=shape.dtype, device=shape.device)
