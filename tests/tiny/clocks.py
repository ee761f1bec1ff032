"""A clock whose time a test chose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class FakeClock:
    """Stamps that a test chose."""

    def __init__(self, times_ms: Iterable[float]) -> None:
        self._times_ms: Iterator[float] = iter(times_ms)
        self._stamps_ms: list[float] = []

    def stamp(self) -> None:
        self._stamps_ms.append(next(self._times_ms))

    def read(self) -> list[float]:
        stamps, self._stamps_ms = self._stamps_ms, []
        return [stamp - stamps[0] for stamp in stamps]
