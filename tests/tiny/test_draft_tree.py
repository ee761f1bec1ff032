"""Static draft trees: their rows, their files, and the two ways to choose their nodes."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specbench_kangaroo.record.errors import UsageError
from specbench_methods.shared.draft_tree import (
    Ranks,
    TreeShape,
    best_first,
    likeliest_paths,
    read_shape,
)

CHANCES = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), max_size=3), max_size=3
)  # few values, so that ties are common


@st.composite
def shapes(draw: st.DrawFn) -> TreeShape:
    """Any tree: every node goes below one that is already there."""
    nodes: list[Ranks] = [()]
    for _ in range(draw(st.integers(0, 10))):
        path = (*draw(st.sampled_from(nodes)), draw(st.integers(0, 4)))
        if path not in nodes:
            nodes.append(path)
    return TreeShape.of(nodes[1:])


@st.composite
def rank_tables(draw: st.DrawFn) -> np.ndarray:
    depth = draw(st.integers(1, 3))
    row = st.lists(st.integers(-1, 4), min_size=depth, max_size=depth)
    return np.array(draw(st.lists(row, max_size=12)), dtype=int).reshape(-1, depth)


@given(shape=shapes())
def test_rows_are_the_paths(shape: TreeShape) -> None:
    """Walking up from a node's row reads its path backwards; levels follow each other."""
    assert shape.parents[0] == -1
    assert len(shape.parents) == 1 + len(shape.ranks) == 1 + len(shape.paths)
    for row, path in enumerate(shape.paths, start=1):
        walked, at = [], row
        while at:
            assert shape.parents[at] < at, "a parent must come before its children"
            walked.append(shape.ranks[at - 1])
            at = shape.parents[at]
        assert tuple(reversed(walked)) == path
    lengths = [len(path) for path in shape.paths]
    assert lengths == sorted(lengths), "a level's rows must be neighbours"
    assert shape.depth == max(map(len, shape.paths), default=0)
    assert shape.width == 1 + max((rank for path in shape.paths for rank in path), default=-1)


@given(shape=shapes(), depth=st.integers(0, 6), data=st.data())
def test_a_tree_is_cut_at_a_depth_and_knows_no_order(
    shape: TreeShape, depth: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(shape.paths))
    assert TreeShape.of(shuffled) == shape, "the order in a file must not change the tree"
    assert shape.up_to(depth) == TreeShape.of(path for path in shuffled if len(path) <= depth)
    assert shape.up_to(depth) is shape.up_to(depth), "a cut that is made again costs every step"


def test_a_chain_is_the_tree_of_one_node_a_depth() -> None:
    chain = TreeShape.chain(3)
    assert chain.paths == ((0,), (0, 0), (0, 0, 0))
    assert (chain.parents, chain.depth, chain.width) == ((-1, 0, 1, 2), 3, 1)
    assert TreeShape.chain(0).parents == (-1,)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([[0], [1], [0]], r"\[0\] is there 2 times"),
        ([[0], [0, -1]], r"\[0, -1\] has a negative rank"),
        ([[0], [1, 0]], r"\[1, 0\] needs its parent \[1\]"),
        ([[0, 0, 0], [0]], r"\[0, 0, 0\] needs its parent \[0, 0\]"),
        ([[0], []], "the empty path is the root"),
    ],
)
def test_what_is_no_tree_is_refused(paths: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TreeShape.of(paths)


def test_a_tree_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text("[[0, 1], [0], [2]]")
    assert read_shape(file) == TreeShape.of([(0,), (2,), (0, 1)])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[[0], [0", "not JSON"),
        ("\xff", "not JSON"),
        ('{"paths": [[0]]}', "list of lists of whole numbers"),
        ("[0, 1]", "list of lists of whole numbers"),
        ("[[0], [1.5]]", "list of lists of whole numbers"),
        ("[[0], [true]]", "list of lists of whole numbers"),
        ("[[0], [1, 0]]", "needs its parent"),
        (None, "No such file"),
    ],
)
def test_a_bad_tree_file_is_named_with_its_fault(
    text: str | None, fault: str, tmp_path: Path
) -> None:
    file = tmp_path / "tree.json"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=fault) as caught:
        read_shape(file)
    assert str(file) in str(caught.value), "a user must see which file to fix"
    assert "\n" not in str(caught.value), "a user error is one line"


def by_likelihood(item: tuple[Ranks, float]) -> tuple[float, int, Ranks]:
    return -item[1], len(item[0]), item[0]


@given(chances=CHANCES, nodes=st.integers(0, 20))
def test_best_first_finds_the_likeliest_nodes(
    chances: Sequence[Sequence[float]], nodes: int
) -> None:
    """Against every path there is, sorted by the product of its chances."""
    every = {}
    for depth in range(1, len(chances) + 1):
        for path in product(*(range(len(level)) for level in chances[:depth])):
            every[path] = 1.0
            for level, rank in enumerate(path):
                every[path] *= chances[level][rank]
    best = sorted(every.items(), key=by_likelihood)[:nodes]
    assert best_first(chances, nodes) == TreeShape.of(path for path, chance in best if chance > 0)


@pytest.mark.parametrize("chance", [-0.1, 1.5, float("nan")])
def test_best_first_refuses_what_is_no_chance(chance: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        best_first([[0.5], [chance]], 3)


@given(ranks=rank_tables(), nodes=st.integers(0, 12), width=st.integers(1, 4))
def test_likeliest_paths_counts_how_often_each_path_was_right(
    ranks: np.ndarray, nodes: int, width: int
) -> None:
    every = {}
    for depth in range(1, ranks.shape[1] + 1):
        for path in product(range(width), repeat=depth):
            right = sum(tuple(row[:depth]) == path for row in ranks.tolist())
            if right:
                every[path] = right / len(ranks)
    found = likeliest_paths(ranks, nodes, width=width)
    assert found == sorted(every.items(), key=by_likelihood)[:nodes]
    TreeShape.of(path for path, _ in found)  # raises if a node lacks its parent


def test_paths_are_counted_without_assuming_that_depths_are_independent() -> None:
    """Rank 1 follows rank 0 and the other way round: the product of shares would say 1/4 each."""
    ranks = np.array([[0, 1], [1, 0]] * 5)
    assert likeliest_paths(ranks, 9, width=2) == [
        ((0,), 0.5),
        ((1,), 0.5),
        ((0, 1), 0.5),
        ((1, 0), 0.5),
    ]
