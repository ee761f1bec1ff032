from __future__ import annotations

import pytest

from specbench_kangaroo.bench.lossless import TOLERANCE, judge
from specbench_kangaroo.record.schema import GenerationKey, Judgement, Lossless

KEY = GenerationKey("kangaroo", 7, 1, 0)


def verdict(reference: list[int], output: list[int], gap: float = 0.5) -> Judgement:
    return judge(KEY, reference, output, gap_at=lambda _: gap, tolerance=1e-3)


def test_equal_outputs_are_exact_and_never_ask_for_the_gap():
    def gap_at(position: int) -> float:
        raise AssertionError("a pass of the target was spent on an exact output")

    found = judge(KEY, [1, 2], [1, 2], gap_at=gap_at, tolerance=1.0)
    assert found == Judgement("kangaroo", 7, 1, 0, Lossless.EXACT, None, None)


@pytest.mark.parametrize(
    ("reference", "output", "position"),
    [
        ([1, 2, 3], [9, 2, 3], 0),
        ([1, 2, 3], [1, 2, 9, 4], 2),
        ([1, 2, 3], [1, 2], 2),  # stopped early: differs where the shorter one ends
        ([1, 2], [1, 2, 3], 2),
        ([], [1], 0),
    ],
)
def test_the_first_difference_is_where_the_gap_is_asked_for(reference, output, position):
    asked = []

    def gap_at(at: int) -> float:
        asked.append(at)
        return 0.5

    found = judge(KEY, reference, output, gap_at=gap_at, tolerance=1e-3)
    assert asked == [position]
    assert (found.first_difference, found.logit_gap) == (position, 0.5)


def test_only_a_gap_below_the_tolerance_is_a_near_tie():
    assert verdict([1], [2], gap=0.9e-3).verdict is Lossless.NEAR_TIE
    assert verdict([1], [2], gap=1e-3).verdict is Lossless.VIOLATION
    assert verdict([1], [2], gap=float("nan")).verdict is Lossless.VIOLATION, (
        "logits that are no numbers must not pass for a tie"
    )


def test_coarser_dtypes_are_given_more_room():
    order = ["float64", "float32", "float16", "bfloat16"]
    assert sorted(TOLERANCE, key=TOLERANCE.__getitem__) == order


def test_a_text_that_ends_early_is_no_tie():
    found = judge(KEY, [1, 2], [1], gap_at=lambda _: None, tolerance=1.0)
    assert (found.verdict, found.first_difference, found.logit_gap) == (
        Lossless.VIOLATION,
        1,
        None,
    ), "a near tie can change a token, but not end a text"
