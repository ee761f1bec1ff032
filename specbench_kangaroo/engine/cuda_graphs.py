"""Backend ``graph``: passes of a few rows are captured once as CUDA graphs and then replayed.

A replay launches hundreds of kernels at the price of one.  A graph is captured when a pass of its
kind is first needed, which spoils the times of the generation that it happens in: ``captures``
tells whoever measures, and a generation in which it grew is made again.  So no method has to say
beforehand what it will run.

Passes of more than ``MOST_ROWS`` rows and over an empty cache (prefills) run as in ``eager``: there
the kernels take the time, not their launches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from specbench_kangaroo.engine.cache import CacheShape, KVCache, Storage
from specbench_kangaroo.engine.layers import Rows
from specbench_kangaroo.engine.segments import (
    MOST_ROWS,
    Body,
    Inputs,
    Replay,
    Segment,
    length_bucket,
    rows_bucket,
)

MOST_GRAPHS = 256
"""Of one target.  They share their intermediate memory, so that one more costs its buffers, its
outputs (T rows of logits) and the driver's list of kernels: about a megabyte for a small model."""

_LEAST_SLOTS = 1024  # growing drops every graph over the smaller memory
_WARM_UPS = 2


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


class Uncaptured:
    """Calls the function again: everything but the capture, on any device."""

    def __init__(self) -> None:
        self.captures = 0

    def capture(self, function: Callable[[], tuple[Tensor, ...]]) -> Replay:
        """See :class:`Capturer`."""
        self.captures += 1
        return function


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
        self._segments: OrderedDict[_Key, Segment] = OrderedDict()  # the oldest first

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
            len(hidden) <= MOST_ROWS
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
            segment = self._segment(key, hidden, rows)
        self._segments.move_to_end(key)
        return segment.run(hidden, rows)

    def _segment(self, key: _Key, hidden: Tensor, rows: Rows) -> Segment:
        inputs = Inputs(hidden, rows, count=key.rows, length=key.length, storage=key.storage)
        inputs.fill(hidden, rows)
        segment = self._segments[key] = Segment.capture(key.body, inputs, self._capturer.capture)
        # Only now: capturing has waited for the device, so that no dropped graph is still running.
        while len(self._segments) > self._most:
            self._segments.popitem(last=False)
        return segment

    def _drop(self, kind: tuple[CacheShape, ...]) -> None:
        storage = self._storages.pop(kind, None)
        for key in [key for key in self._segments if key.storage is storage]:
            del self._segments[key]
