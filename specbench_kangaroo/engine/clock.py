"""Time stamps at the edges of phases, read out once per generation.

On a GPU a stamp is an event in the stream: it costs a microsecond and stops nothing; the one
synchronisation is at read-out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Protocol

import torch

_RESOLUTION_MS = 1e-3  # of CUDA's events about half of it
_EVENTS_AT_HAND = 4096  # four a step: an answer of a thousand tokens makes none on the way


class ClockError(Exception):
    """The stamps of a generation are in no order that time can have."""


class Clock(Protocol):
    """Collects stamps in order; ``read`` returns them and starts afresh."""

    def stamp(self) -> None:
        """Mark now, after all device work that was submitted before."""
        ...

    def read(self) -> list[float]:
        """The stamps since the last read-out, in milliseconds from the first of them."""
        ...


class WallClock:
    """Stamps of the host's monotonic clock: right where every operation is synchronous."""

    def __init__(self) -> None:
        self._stamps_ns: list[int] = []

    def stamp(self) -> None:
        """See :class:`Clock`."""
        self._stamps_ns.append(time.perf_counter_ns())

    def read(self) -> list[float]:
        """See :class:`Clock`."""
        stamps, self._stamps_ns = self._stamps_ns, []
        return [(stamp - stamps[0]) / 1e6 for stamp in stamps]


class CudaClock:
    """Stamps as events in the current stream of the device that decodes.

    Making an event costs more than recording one, so events are used again: clocks of a device
    share a pool, which is filled before the first stamp of the first of them.

    Args:
        device: where the target is; another device may be torch's current one.
    """

    _pools: ClassVar[dict[torch.device, list[Any]]] = {}

    def __init__(self, device: torch.device) -> None:
        # Once a generation: looking the stream up costs as much as a stamp.
        self._stream = torch.cuda.current_stream(device)
        self._pool = self._pools.setdefault(self._stream.device, [])
        self._events: list[Any] = []
        while len(self._pool) < _EVENTS_AT_HAND:
            self._pool.append(self._recorded(torch.cuda.Event(enable_timing=True)))  # type: ignore[no-untyped-call]

    def stamp(self) -> None:
        """See :class:`Clock`."""
        event = self._pool.pop() if self._pool else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._events.append(self._recorded(event))

    def read(self) -> list[float]:
        """See :class:`Clock`.

        Spans between neighbours are summed: an event gives a span in float32, which after ten
        seconds is no finer than a microsecond.
        """
        events, self._events = self._events, []
        events[-1].synchronize()
        spans_ms = (before.elapsed_time(after) for before, after in pairwise(events))
        stamps_ms = list(accumulate(spans_ms, initial=0.0))
        self._pool += events
        return stamps_ms

    def _recorded(self, event: Any) -> Any:
        event.record(self._stream)
        return event


def in_order(stamps_ms: Sequence[float]) -> list[float]:
    """The stamps, none before the one that was taken earlier.

    A step back within what a clock resolves is no step.

    Raises:
        ClockError: a clock went back, as a suspended or migrated machine's may.
    """
    found = list(accumulate(stamps_ms, max))
    back_ms = [later - own for later, own in zip(found, stamps_ms, strict=True)]
    if not all(span <= _RESOLUTION_MS for span in back_ms):  # nor is a NaN
        raise ClockError(
            f"the clock went back by {max(back_ms):.3g} ms during this answer: it has no times"
        )
    return found


def clock_for(device: torch.device) -> Clock:
    """The clock that measures this device without stopping it."""
    return CudaClock(device) if device.type == "cuda" else WallClock()
