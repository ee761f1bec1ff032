"""Time stamps at the edges of phases, read out once per generation.

Knows: wall time and CUDA events.  Does not know: what happens between two stamps.

On a GPU a stamp is an event in the stream: it costs a microsecond and stops nothing; the one
synchronisation is at read-out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch


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
    """Stamps as events in the current CUDA stream."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def stamp(self) -> None:
        """See :class:`Clock`."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append(event)

    def read(self) -> list[float]:
        """See :class:`Clock`."""
        events, self._events = self._events, []
        events[-1].synchronize()
        return [events[0].elapsed_time(event) for event in events]


class FakeClock:
    """Stamps that a test chose."""

    def __init__(self, times_ms: Iterable[float]) -> None:
        self._times_ms: Iterator[float] = iter(times_ms)
        self._stamps_ms: list[float] = []

    def stamp(self) -> None:
        """See :class:`Clock`."""
        self._stamps_ms.append(next(self._times_ms))

    def read(self) -> list[float]:
        """See :class:`Clock`."""
        stamps, self._stamps_ms = self._stamps_ms, []
        return [stamp - stamps[0] for stamp in stamps]


def clock_for(device: torch.device) -> Clock:
    """The clock that measures this device without stopping it."""
    return CudaClock() if device.type == "cuda" else WallClock()
