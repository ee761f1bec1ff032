"""Masks, depths and paths of a tree, against brute force."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbench_kangaroo.engine.tree import TokenTree, attention_mask, chain_parents, depths


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


def test_merged_continuations_share_rows_and_keep_their_order() -> None:
    tree = TokenTree.merged(7, [(4, 5, 6), (9,), (4, 8), (4, 5, 2), (), (9, 5)])
    assert tree.tokens.tolist() == [7, 4, 5, 6, 9, 8, 2, 5]
    assert tree.parents == (-1, 0, 1, 2, 0, 1, 2, 4)
    assert tree.n_candidates == 8, "every merged row is there to be accepted"
    assert tree.children(0) == (1, 4), "siblings are tried in the order of first appearance"


def test_merging_one_continuation_gives_a_chain_and_none_the_root() -> None:
    one = TokenTree.merged(7, [(7, 7, 8)])
    assert (one.tokens.tolist(), one.parents) == ([7, 7, 7, 8], chain_parents(4))
    for nothing in ([], [()]):
        alone = TokenTree.merged(7, nothing)
        assert (alone.tokens.tolist(), alone.parents, alone.depth) == ([7], (-1,), 0)


@given(
    continuations=st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=7),
)
def test_a_merged_tree_has_a_row_for_every_distinct_beginning(
    continuations: list[list[int]],
) -> None:
    tree = TokenTree.merged(1, continuations)
    paths: list[tuple[int, ...]] = []
    for parent, token in zip(tree.parents, tree.tokens.tolist(), strict=True):
        paths.append((*paths[parent], token) if parent >= 0 else ())
    wanted = {tuple(c[:size]) for c in continuations for size in range(len(c) + 1)} | {()}
    assert len(paths) == len(set(paths)), "a token would be scored twice"
    assert set(paths) == wanted, "a continuation cannot be accepted, or one came from nowhere"


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
