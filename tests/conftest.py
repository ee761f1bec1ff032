"""What makes the whole suite quick, and every run of it the same; no test depends on it."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

# No example fails because the machine is slow, or because today's were others than yesterday's.
# `--hypothesis-profile=default` looks for new ones.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Every run collects garbage before it measures: 0.7 s each with all libraries looked through.

    They are imported by now and never go away.
    """
    del session
    gc.collect()
    gc.freeze()
