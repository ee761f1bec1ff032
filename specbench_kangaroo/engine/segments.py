"""A piece of a model with fixed shapes and addresses: what a captured graph needs to be right.

A graph replays the same kernels on the same memory, so whatever changes from pass to pass is copied
into buffers first.  Rows are padded to ``rows_bucket`` and the cache is looked at up to
``length_bucket``.  A padding row sees slot 0 alone and is stored in a spare slot that no row sees:
both are finite, and a NaN behind a mask would still spoil a softmax's product with the values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specbench_kangaroo.engine.attention import Visibility
from specbench_kangaroo.engine.cache import Slots, StaticSlots, Storage
from specbench_kangaroo.engine.layers import Rows
from specbench_kangaroo.engine.rope import Angles

Body = Callable[[Tensor, Rows, Slots], tuple[Tensor, ...]]
"""A pure function of hidden states (T, H), rows and a cache; every output has T rows."""

Replay = Callable[[], tuple[Tensor, ...]]
"""Runs a body once more on the buffers' present contents; the next replay may overwrite outputs."""

Capture = Callable[[Callable[[], tuple[Tensor, ...]]], Replay]
"""Captures a function of buffers."""

ROWS: tuple[int, ...] = (*range(1, 9), 12, 16, 24, 32, 48, 64)
MOST_ROWS = ROWS[-1]
_SHORTEST = 128
_LONG = 1024


def rows_bucket(rows: int) -> int:
    """The smallest of ``ROWS`` that holds ``rows``, which are at most ``MOST_ROWS``."""
    return ROWS[bisect_left(ROWS, rows)]


def length_bucket(slots: int) -> int:
    """A power of two from 128 to 1,024, above that a multiple of 1,024, that holds ``slots``.

    Few enough sizes that a run meets all of them soon, and little too much for attention to read.
    """
    if slots > _LONG:
        return -(-slots // _LONG) * _LONG
    power: int = 1 << (slots - 1).bit_length()
    return max(_SHORTEST, power)


class Inputs:
    """Buffers of T rows over the first L slots of a storage.

    Args:
        hidden: (t, H) of a pass that the buffers are for, t at most ``count``; ``rows`` likewise.
        count: T.
        length: L, at most the storage's capacity; its last slot is the spare one.
    """

    def __init__(
        self, hidden: Tensor, rows: Rows, *, count: int, length: int, storage: Storage
    ) -> None:
        device = hidden.device
        self._spare = storage.capacity - 1
        self._columns = torch.arange(length, device=device).expand(count, length)  # [T, L]
        slots = torch.full((count,), self._spare, device=device)
        masks = {
            window: Visibility(torch.zeros(count, length, dtype=torch.bool, device=device))
            for window in rows.visible
        }
        self.hidden = hidden.new_zeros(count, hidden.shape[1])
        others = {kind: _blank(angles, count) for kind, angles in rows.other_angles.items()}
        self.rows = Rows(0, _blank(rows.angles, count), masks, others)
        self.cache = StaticSlots(storage, slots, length)

    def fill(self, hidden: Tensor, rows: Rows) -> None:
        """Bring a pass into the buffers; nothing waits for the device."""
        count = len(hidden)
        self.hidden[:count].copy_(hidden)
        torch.arange(rows.slot, rows.slot + count, out=self.cache.slots[:count])
        _copy(rows.angles, self.rows.angles, count)
        for kind, angles in rows.other_angles.items():
            _copy(angles, self.rows.other_angles[kind], count)
        for window, visible in rows.visible.items():
            self._see(self.rows.visible[window], visible, end=rows.slot + count, count=count)
        if count < len(self.hidden):
            self.hidden[count:].zero_()
            self.cache.slots[count:].fill_(self._spare)

    def _see(self, buffer: Visibility, visible: Visibility, *, end: int, count: int) -> None:
        assert buffer.mask is not None
        if visible.mask is None:
            torch.lt(self._columns, end, out=buffer.mask)
            return
        buffer.mask.zero_()
        buffer.mask[:count, :end].copy_(visible.mask)
        if count < len(buffer.mask):
            buffer.mask[count:, 0].fill_(True)


def _blank(angles: Angles, count: int) -> Angles:
    cos, sin, signed = (
        part.new_zeros(1, count, part.shape[-1])
        for part in (angles.cos, angles.sin, angles.signed_sin)
    )
    return Angles(cos, sin, signed)


def _copy(source: Angles, target: Angles, count: int) -> None:
    target.cos[:, :count].copy_(source.cos)
    target.sin[:, :count].copy_(source.sin)
    target.signed_sin[:, :count].copy_(source.signed_sin)


@dataclass(frozen=True, slots=True)
class Segment:
    """A body on its own buffers, ready to be replayed."""

    inputs: Inputs
    replay: Replay

    @classmethod
    def capture(cls, body: Body, inputs: Inputs, capture: Capture) -> Segment:
        """Capture ``body`` on ``inputs``, which hold a pass already."""
        return cls(inputs, capture(lambda: body(inputs.hidden, inputs.rows, inputs.cache)))

    def run(self, hidden: Tensor, rows: Rows) -> tuple[Tensor, ...]:
        """The body's outputs for a pass, (t, …) each, in memory of their own."""
        self.inputs.fill(hidden, rows)
        return tuple(output[: len(hidden)].clone() for output in self.replay())
