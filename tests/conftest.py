"""What makes the whole suite quick, and every run of it the same; no test depends on it."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

# No example fails because the machine is slow, or because today's were others than yesterday's.
# `--hypothesis-profile=default` looks for new ones.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

# Files of minutes, half minutes and 20 seconds; all others take less.
LONGEST = (
    *("test_contract.py", "test_ray.py", "test_far_device.py", "test_graphs.py", "test_signals.py"),
    *("test_workers.py", "test_notebook.py", "test_report_speed.py", "test_release.py"),
    *(
        "test_mutations.py",
        "test_kill.py",
        "test_cost.py",
        "test_start.py",
        "test_plugin.py",
        "test_draft_model.py",
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: else one process is left with one of them when the others are done."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def _no_garbage() -> None:
    """Every run collects garbage before it measures: up to 0.7 s with all libraries looked through.

    They never go away, and neither do the models that earlier files have left in caches.
    """
    gc.collect()
    gc.freeze()
