"""Medians with intervals, and what a profile computes from samples of known times."""

from __future__ import annotations

import pytest

from specbench_kangaroo.microbench.estimates import (
    Profile,
    Repeat,
    median_estimate,
    summarise,
    to_json,
)

ROWS = (1, 2, 4)
BANDWIDTHS_GB_S = (12.0, 10.0, 20.0)


def profile() -> Profile:
    """A pass of so many rows takes as many milliseconds, twice and three times as slow later on.

    As graphs, passes take half as long.
    """
    repeats = [
        Repeat(
            {
                "eager": [{rows: rows * slow for rows in ROWS} for _ in range(2)],
                "graph": [{rows: rows * slow / 2 for rows in ROWS} for _ in range(2)],
            },
            gb_s,
            tflop_s,
        )
        for slow, gb_s, tflop_s in zip(
            (1.0, 2.0, 3.0), BANDWIDTHS_GB_S, (0.5, 0.7, 0.6), strict=True
        )
    ]
    return summarise(repeats, weight_bytes=6 * 10**6, about={"model": "tiny"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bandwidth_gb_s", 12.0),
        ("floor_ms_per_token", 0.5),
        ("matmul_tflop_s", 0.6),
        ("one_row_ms", 2.0),
        # 1 ms at a floor of 6/12, 2 at 6/10, 3 at 6/20: the repeats' own, 2, 3.33 and 10
        ("one_row_over_floor", 10 / 3),
    ],
)
def test_estimates_follow_from_the_times(name: str, value: float) -> None:
    assert to_json(profile())[name]["value"] == pytest.approx(value)


def test_a_machine_that_slows_down_is_as_far_from_its_floor_as_before() -> None:
    repeats = [Repeat({"eager": [{1: ms}]}, gb_s, 1.0) for ms, gb_s in ((3.0, 8.0), (6.0, 4.0))]
    found = summarise(repeats * 3, weight_bytes=8 * 10**6, about={}).backends["eager"]
    ratio = found.one_row_over_floor
    assert (ratio.low, ratio.value, ratio.high) == (3, 3, 3)


def test_the_widest_bandwidth_gives_the_lowest_floor() -> None:
    repeats = [Repeat({"eager": [{1: 1.0}]}, gb_s, 1.0) for gb_s in (5, 6, 7, 8, 9, 10, 11)]
    found = summarise(repeats, weight_bytes=10**6, about={}).floor_ms_per_token
    assert (found.low, found.value, found.high) == pytest.approx((1 / 11, 1 / 8, 1 / 5))


def test_the_first_backend_stands_on_top() -> None:
    found = to_json(profile())
    assert (found["schema_version"], found["model"]) == (3, "tiny")
    assert found["verify_ms"]["4"]["value"] == 8
    graph = found["backends"]["graph"]
    assert list(graph["verify_ms"]) == ["1", "2", "4"]
    assert (graph["one_row_ms"]["value"], graph["verify_ms"]["4"]["value"]) == (1, 4)
    assert graph["one_row_over_floor"]["value"] == pytest.approx(5 / 3)
    assert not graph.keys() & {"bandwidth_gb_s", "backends", "schema_version"}


def test_ratios_of_passes_are_paired_within_a_sweep() -> None:
    found = profile().backends["eager"]
    assert found.verify_ms[4].value == 8
    assert {item.value for item in found.verify_ratio.values()} == set(map(float, ROWS)), (
        "sweeps at different speeds must not blur the ratio"
    )


def test_a_median_lies_between_order_statistics() -> None:
    found = median_estimate([5.0, 1.0, 4.0, 2.0, 3.0, 7.0, 6.0])
    assert found.value == 4
    # Of seven, only the extremes hold the median with 95 %: the next pair does with 87.5 %.
    assert (found.low, found.high) == (1, 7)


@pytest.mark.parametrize("samples", [[2.0], [2.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_too_few_samples_give_a_median_and_no_interval(samples: list[float]) -> None:
    found = median_estimate(samples)
    assert found.low is None
    assert found.high is None


def test_equal_samples_give_an_interval_of_no_width() -> None:
    found = median_estimate([3.0] * 9)
    assert (found.low, found.value, found.high) == (3, 3, 3)
