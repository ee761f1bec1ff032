"""The cache: scratch above, committed below."""

import pytest
import torch

from specbench_kangaroo.engine.cache import CacheShape, KVCache, StaticSlots, Storage

SHAPE = CacheShape(2, 3, torch.float32, torch.device("cpu"))
WIDER = CacheShape(2, 4, torch.float32, torch.device("cpu"))


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


def test_layers_of_different_shapes_are_compacted_alike() -> None:
    cache = KVCache([SHAPE, WIDER, SHAPE], 6)
    for layer, size in enumerate((3, 4, 3)):
        written = rows(0, 1, 2, 3)[..., :1].expand(1, 2, -1, size)
        stored = cache.write(layer, 0, written, -written)
        assert stored.keys.shape == (1, 2, 4, size)
    cache.commit([1, 3])
    for layer in range(3):
        assert first_column(cache.committed(layer).keys) == [1, 3]
        assert first_column(cache.committed(layer).values) == [-1, -3]


def test_one_storage_serves_one_cache_after_the_other() -> None:
    storage = Storage([SHAPE], 8)
    first = KVCache([SHAPE], 5, storage=storage)
    first.write(0, 0, rows(1, 2), rows(1, 2))
    first.commit([0, 1])
    second = KVCache([SHAPE], 7, storage=storage)
    assert second.length == 0
    stored = second.write(0, 0, rows(9), rows(9))
    assert stored.keys.data_ptr() == storage.layers[0].keys.data_ptr()
    for use in (lambda: first.write(0, 2, rows(3), rows(3)), lambda: first.commit([0])):
        with pytest.raises(RuntimeError, match="a cache of an earlier generation is used"):
            use()
    assert first_column(second.write(0, 1, rows(8), rows(8)).keys) == [9, 8]


def test_a_borrowed_storage_does_not_raise_the_limit() -> None:
    cache = KVCache([SHAPE], 2, storage=Storage([SHAPE], 8))
    with pytest.raises(IndexError, match=r"rows 1\.\.2 do not fit into 2 cache slots"):
        cache.write(0, 1, rows(1, 2), rows(1, 2))


def test_static_slots_follow_the_contents_of_their_tensor() -> None:
    storage = Storage([SHAPE], 8)
    slots = torch.tensor([2, 3])
    static = StaticSlots(storage, slots, 6)
    assert first_column(static.write(0, 0, rows(5, 6), rows(5, 6)).keys) == [0, 0, 5, 6, 0, 0]
    slots.copy_(torch.tensor([0, 7]))  # the second lies beyond what is looked at
    stored = static.write(0, 0, rows(1, 2), rows(3, 4))
    assert first_column(stored.keys) == [1, 0, 5, 6, 0, 0]
    assert first_column(storage.layers[0].values) == [3, 0, 5, 6, 0, 0, 0, 4]
