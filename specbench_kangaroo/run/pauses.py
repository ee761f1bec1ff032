"""Garbage collection kept out of what is timed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
