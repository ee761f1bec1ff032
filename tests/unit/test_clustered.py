from __future__ import annotations

import numpy as np
import pytest

from specbench_kangaroo.report.figures.clustered import ratios, shares, sums
from specbench_kangaroo.stats import intervals
from specbench_kangaroo.stats.intervals import Ratio


def test_sums_are_by_cell_and_question():
    cell, question = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    found = sums(cell, question, np.array([1.0, 2.0, 3.0, 4.0, 5.0]), cells=3, questions=2)
    assert found.tolist() == [[1.0, 2.0], [5.0, 7.0], [0.0, 0.0]]
    counts = sums(cell, question, cells=3, questions=2)
    assert counts.tolist() == [[1.0, 1.0], [1.0, 2.0], [0.0, 0.0]]


def test_a_ratio_and_its_interval_worked_out_by_hand():
    # Questions of 10 / 2 and 20 / 2: the ratio is 7.5, the residuals are -5 and 5, so the standard
    # error is sqrt(2 / 1 * 50) / 4 = 2.5, and Student's t with one degree of freedom is 12.706.
    found = ratios(np.array([[10.0, 20.0]]), np.array([[2.0, 2.0]]))
    assert found.value[0] == pytest.approx(7.5)
    assert found.high[0] - 7.5 == pytest.approx(12.7062 * 2.5, rel=1e-4)
    assert 7.5 - found.low[0] == pytest.approx(12.7062 * 2.5, rel=1e-4)
    assert found.questions[0] == 2


def test_intervals_agree_with_those_that_reports_have():
    random = np.random.default_rng(0)
    trials = random.integers(5, 60, 150).astype(float)
    hits = random.binomial(trials.astype(int), random.beta(6, 4, 150)).astype(float)
    reported = intervals.estimates({"share": Ratio(("a",), ("b",))}, {"a": hits, "b": trials})
    width = reported["share"].high - reported["share"].low
    for found in (ratios(hits[None], trials[None]), shares(hits[None], trials[None])):
        assert found.value[0] == pytest.approx(reported["share"].value)
        assert found.low[0] == pytest.approx(reported["share"].low, abs=0.1 * width)
        assert found.high[0] == pytest.approx(reported["share"].high, abs=0.1 * width)


def test_a_share_of_all_or_none_still_has_an_interval_within_bounds():
    trials = np.full((2, 6), 3.0)
    found = shares(np.stack([np.zeros(6), trials[1]]), trials)
    assert found.low.tolist() == pytest.approx([0.0, 1.0 - found.high[0]], abs=1e-12)
    assert 0.2 < found.high[0] < 0.7, "six questions that all failed do not prove a share of 0"
    assert found.high[1] == pytest.approx(1.0)


def test_one_question_gives_no_interval_and_none_no_value():
    over, under = np.array([[4.0, 0.0], [0.0, 0.0]]), np.array([[8.0, 0.0], [0.0, 0.0]])
    for found in (ratios(over, under), shares(over, under)):
        assert found.value[0] == 0.5
        assert np.isnan(found.value[1])
        assert np.isnan([*found.low, *found.high]).all(), "one question cannot give an interval"
        assert found.questions.tolist() == [1, 0]
