"""Garbage collection and the capture of graphs kept out of what is timed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from specbench_kangaroo.engine.target import Target

Measured = TypeVar("Measured")

_ATTEMPTS = 5


@contextmanager
def collected_by_hand() -> Iterator[None]:
    """No garbage collection within an answer: its pause would be charged to one method.

    Collecting by hand between prompts keeps memory level.  What exists before, the model and the
    libraries, is frozen: each of those collections then takes a moment, not 0.1 s.  Where somebody
    has frozen that already, as a worker does once for all its questions, it stays frozen.
    """
    was_enabled, was_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    if not was_frozen:
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not was_frozen:
            gc.unfreeze()
        if was_enabled:
            gc.enable()


def without_captures(target: Target, measure: Callable[[], Measured]) -> Measured:
    """What ``measure`` gives, again if a graph was captured on the way: that takes long.

    The same measurement needs the same graphs, so that the second attempt has them.  It is dropped
    as well: a capture empties torch's store of device memory, which has to be filled again.

    Raises:
        RuntimeError: every attempt captured another graph.
    """
    warm = True
    for _ in range(_ATTEMPTS):
        captures = target.captures
        found = measure()
        replayed = target.captures == captures
        if replayed and warm:
            return found
        warm = replayed
    raise RuntimeError(f"graphs were captured in {_ATTEMPTS} attempts, which spoils the times")
