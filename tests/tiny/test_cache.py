"""The cache: scratch above, committed below."""

import pytest
import torch

from specbench_kangaroo.cache import CacheShape, KVCache

SHAPE = CacheShape(2, 3, torch.float32, torch.device("cpu"))


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, -1, 1).expand(1, 2, -1, 3)


def first_column(states: torch.Tensor) -> list[float]:
    return states[0, 0, :, 0].tolist()


def test_rollback_is_not_advancing() -> None:
    cache = KVCache([SHAPE], 6)
    cache.write(0, 0, rows(1, 2), rows(1, 2))
    cache.commit([0, 1])
    cache.write(0, 2, rows(3, 4), rows(3, 4))
    cache.commit([0])  # row 4 was rejected
    stored = cache.write(0, 3, rows(5), rows(5))
    assert first_column(stored.keys) == [1, 2, 3, 5]
    assert first_column(cache.committed(0).values) == [1, 2, 3]


def test_an_accepted_path_is_compacted_in_every_layer() -> None:
    cache = KVCache([SHAPE, SHAPE], 8)
    for layer in (0, 1):
        cache.write(layer, 0, rows(9), rows(9))
    cache.commit([0])
    for layer in (0, 1):
        cache.write(layer, 1, rows(0, 1, 2, 3, 4), rows(0, -1, -2, -3, -4))
    cache.commit([0, 2, 4])
    for layer in (0, 1):
        assert first_column(cache.committed(layer).keys) == [9, 0, 2, 4]
        assert first_column(cache.committed(layer).values) == [9, 0, -2, -4]


def test_rows_that_do_not_fit_are_refused_and_nothing_is_written() -> None:
    cache = KVCache([SHAPE], 2)
    with pytest.raises(IndexError, match=r"rows 1\.\.2 do not fit into 2 cache slots"):
        cache.write(0, 1, rows(1, 2), rows(1, 2))
    assert not cache.write(0, 0, rows(0), rows(0)).keys.any()
