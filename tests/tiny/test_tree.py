"""Masks, depths and paths of a tree, against brute force."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbench_kangaroo.tree import TokenTree, attention_mask, chain_parents, depths


@st.composite
def parent_lists(draw: st.DrawFn) -> tuple[int, ...]:
    size = draw(st.integers(1, 12))
    return (-1, *(draw(st.integers(0, row - 1)) for row in range(1, size)))


def sees(parents: tuple[int, ...], length: int, row: int, column: int, window: int | None) -> bool:
    """Who may see whom, said row by row: a row sees the prefix, its ancestors and itself."""
    path = [row]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    own_position = length + len(path) - 1
    if column < length:
        position, visible = column, True
    else:
        visible = column - length in path
        position = length + len(path) - 1 - path.index(column - length) if visible else -1
    return visible and (window is None or own_position - position < window)


@given(
    parents=parent_lists(),
    length=st.integers(0, 7),
    window=st.one_of(st.none(), st.integers(1, 9)),
    data=st.data(),
)
def test_the_mask_is_who_may_see_whom(
    parents: tuple[int, ...], length: int, window: int | None, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(parents) - 1))
    found = attention_mask(parents, length, first=first, window=window)
    wanted = [
        [sees(parents, length, row, column, window) for column in range(length + len(parents))]
        for row in range(first, len(parents))
    ]
    assert found.tolist() == wanted


@given(parents=parent_lists())
def test_depth_counts_edges_from_the_root(parents: tuple[int, ...]) -> None:
    for row, depth in enumerate(depths(parents)):
        for _ in range(depth):
            row = parents[row]  # noqa: PLW2901 (walking up is the test)
        assert row == 0


def test_a_chain_is_a_tree_without_branches() -> None:
    chain = TokenTree.chain(torch.tensor([7, 8, 9]))
    assert (chain.parents, chain.depths, chain.depth) == ((-1, 0, 1), (0, 1, 2), 2)
    assert chain.children(0) == (1,)
    assert chain_parents(1) == (-1,)


def test_rows_that_ride_along_are_neither_children_nor_depth() -> None:
    tree = TokenTree(torch.arange(5), (-1, 0, 0, 2, 3), n_candidates=3)
    assert tree.children(0) == (1, 2)
    assert tree.children(2) == ()
    assert tree.depth == 1


@pytest.mark.parametrize(
    ("parents", "candidates"),
    [((-1, 1), 2), ((0,), 1), ((-1, 0, 2), 3), ((-1, -1), 2), ((-1, 0), 0), ((-1, 0), 3)],
)
def test_what_is_no_tree_is_refused(parents: tuple[int, ...], candidates: int) -> None:
    with pytest.raises(ValueError, match=r"parents|n_candidates"):
        TokenTree(torch.arange(len(parents)), parents, candidates)
