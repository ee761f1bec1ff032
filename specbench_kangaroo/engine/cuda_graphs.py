"""Backend ``graph``: passes of a few rows are captured once as CUDA graphs and then replayed.

A replay launches hundreds of kernels at the price of one.  A graph is captured when a pass of its
kind is first needed, which spoils the times of the generation that it happens in: ``captures``
tells whoever measures, and a generation in which it grew is made again.  So no method has to say
beforehand what it will run.

A graph replays the same kernels on the same memory, so whatever changes from pass to pass is copied
into buffers first.  Rows are padded to ``rows_bucket`` and the cache is looked at up to
``length_bucket``.  A padding row sees slot 0 alone and is stored in a spare slot that no row sees:
both are finite, and a NaN behind a mask would still spoil a softmax's product with the values.

Passes of more than ``ROWS[-1]`` rows and over an empty cache (prefills) run as in ``eager``: there
the kernels take the time, not their launches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from specbench_kangaroo.engine.attention import Visibility
from specbench_kangaroo.engine.cache import CacheShape, KVCache, Slots, StaticSlots, Storage
from specbench_kangaroo.engine.placement import Angles, Rows

Body = Callable[[Tensor, Rows, Slots], tuple[Tensor, ...]]
"""A pure function of hidden states (T, H), rows and a cache; every output has T rows."""

Replay = Callable[[], tuple[Tensor, ...]]
"""Runs a body once more on the buffers' present contents; the next replay may overwrite outputs."""

MOST_GRAPHS = 256
"""Of one target.  They share their intermediate memory, so that one more costs its buffers, its
outputs (T rows of logits) and the driver's list of kernels: about a megabyte for a small model."""

ROWS: tuple[int, ...] = (*range(1, 9), 12, 16, 24, 32, 48, 64)
_SHORTEST = 128
_LONG = 1024
_LEAST_SLOTS = 1024  # growing drops every graph over the smaller memory
_WARM_UPS = 2


def rows_bucket(rows: int) -> int:
    """The smallest of ``ROWS`` that holds ``rows``."""
    return ROWS[bisect_left(ROWS, rows)]


def length_bucket(slots: int) -> int:
    """A power of two from 128 to 1,024, above that a multiple of 1,024, that holds ``slots``.

    Few enough sizes that a run meets all of them soon, and little too much for attention to read.
    """
    if slots > _LONG:
        return -(-slots // _LONG) * _LONG
    power: int = 1 << (slots - 1).bit_length()
    return max(_SHORTEST, power)


class Capturer(Protocol):
    """Turns a function of buffers into something that does the same again, faster.

    Attributes:
        captures: how often it did.
    """

    captures: int

    def capture(self, function: Callable[[], tuple[Tensor, ...]]) -> Replay:
        """Capture what ``function`` does to memory now; it may be run more than once."""
        ...


class CudaCapturer:
    """Captures CUDA graphs on a stream of its own; all of them share one pool of memory.

    Sharing is safe as outputs are copied out right after each replay and replays never overlap.
    """

    def __init__(self, device: torch.device) -> None:
        self.captures = 0
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
            # A pool whose graphs are all dropped cannot be used again: this one stays.
            self._anchor = self._capture(lambda: (torch.zeros(1, device=device),))

    def capture(self, function: Callable[[], tuple[Tensor, ...]]) -> Replay:
        """Run on the side stream until libraries have set themselves up, then capture."""
        self.captures += 1
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(self._stream)
            return self._capture(function)

    def _capture(self, function: Callable[[], tuple[Tensor, ...]]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # Another thread may use another device meanwhile; this one must do nothing that waits.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            outputs = function()

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return outputs

        return replay


class _Key(NamedTuple):
    """What a segment is for; hashed in every pass, and a storage by its identity."""

    storage: Storage
    body: Body
    rows: int
    length: int


class Graphs:
    """The segments of one target and the memory of its caches.

    Graphs hold addresses, so caches that follow each other share a storage for each list of layer
    shapes.  Within a generation a second cache of the same shapes gets memory of its own, and
    passes over it are not captured.
    """

    def __init__(self, capturer: Capturer, *, most: int = MOST_GRAPHS) -> None:
        self._capturer = capturer
        self._most = most
        self._storages: dict[tuple[CacheShape, ...], Storage] = {}
        self._lent: set[tuple[CacheShape, ...]] = set()
        self._segments: OrderedDict[_Key, _Segment] = OrderedDict()  # the oldest first

    def __len__(self) -> int:
        return len(self._segments)

    def start(self) -> None:
        """A generation begins: caches of earlier ones are done with."""
        self._lent.clear()

    def cache(self, shapes: Sequence[CacheShape], capacity: int) -> KVCache:
        """An empty cache, on the storage that graphs know if that is free."""
        kind = tuple(shapes)
        if kind in self._lent:
            return KVCache(kind, capacity)
        self._lent.add(kind)
        storage = self._storages.get(kind)
        if storage is None or storage.capacity <= capacity:  # one slot is spare
            self._drop(kind)
            slots = max(_LEAST_SLOTS, length_bucket(capacity + 1))
            storage = self._storages[kind] = Storage(kind, slots)
        return KVCache(kind, capacity, storage=storage)

    def takes(self, hidden: Tensor, rows: Rows, cache: KVCache) -> bool:
        """Whether a pass is one to capture."""
        return (
            len(hidden) <= ROWS[-1]
            and not any(visible.causal for visible in rows.visible.values())
            and cache.storage in self._storages.values()
        )

    @torch.inference_mode()
    def run(self, body: Body, hidden: Tensor, rows: Rows, cache: KVCache) -> tuple[Tensor, ...]:
        """``body(hidden, rows, cache)`` by replay; bodies that are equal must do the same."""
        length = length_bucket(cache.end_of(rows.slot, len(hidden)))
        key = _Key(cache.storage, body, rows_bucket(len(hidden)), length)
        segment = self._segments.get(key)
        if segment is None:
            segment = self._segments[key] = _Segment(key, hidden, rows, self._capturer)
            # Only now: capturing has waited for the device, so no dropped graph is still running.
            while len(self._segments) > self._most:
                self._segments.popitem(last=False)
        self._segments.move_to_end(key)
        return segment.run(hidden, rows)

    def _drop(self, kind: tuple[CacheShape, ...]) -> None:
        storage = self._storages.pop(kind, None)
        for key in [key for key in self._segments if key.storage is storage]:
            del self._segments[key]


class _Segment:
    """A body on buffers of its own, T rows over the first L slots of a storage, to be replayed.

    Args:
        hidden: (t, H) of a pass that it is captured with, t at most T; ``rows`` likewise.
    """

    def __init__(self, key: _Key, hidden: Tensor, rows: Rows, capturer: Capturer) -> None:
        device, count = hidden.device, key.rows
        self._spare = key.storage.capacity - 1
        self._columns = torch.arange(key.length, device=device).expand(count, -1)  # [T, L]
        self._hidden = hidden.new_zeros(count, hidden.shape[1])
        slots = torch.full((count,), self._spare, device=device)
        self._cache = StaticSlots(key.storage, slots, key.length)
        masks = {
            window: Visibility(torch.zeros(count, key.length, dtype=torch.bool, device=device))
            for window in rows.visible
        }
        others = {kind: _blank(angles, count) for kind, angles in rows.other_angles.items()}
        self._rows = Rows(0, _blank(rows.angles, count), masks, others)
        self._fill(hidden, rows)
        self._replay = capturer.capture(lambda: key.body(self._hidden, self._rows, self._cache))

    def run(self, hidden: Tensor, rows: Rows) -> tuple[Tensor, ...]:
        """The body's outputs for a pass, (t, …) each, in memory of their own."""
        self._fill(hidden, rows)
        return tuple(output[: len(hidden)].clone() for output in self._replay())

    def _fill(self, hidden: Tensor, rows: Rows) -> None:
        """Bring a pass into the buffers; nothing waits for the device."""
        count = len(hidden)
        self._hidden[:count].copy_(hidden)
        torch.arange(rows.slot, rows.slot + count, out=self._cache.slots[:count])
        _copy(rows.angles, self._rows.angles, count)
        for kind, angles in rows.other_angles.items():
            _copy(angles, self._rows.other_angles[kind], count)
        for window, visible in rows.visible.items():
            self._see(self._rows.visible[window], visible, end=rows.slot + count, count=count)
        if count < len(self._hidden):
            self._hidden[count:].zero_()
            self._cache.slots[count:].fill_(self._spare)

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
    return Angles(*(part.new_zeros(1, count, part.shape[-1]) for part in angles))


def _copy(source: Angles, target: Angles, count: int) -> None:
    for part, buffer in zip(source, target, strict=True):
        buffer[:, :count].copy_(part)
