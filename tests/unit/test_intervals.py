"""Intervals hold the truth as often as they say, from two questions to Spec-Bench's 480.

The table in docs/measures.md is what :func:`coverage` reaches here.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from specbench_kangaroo.stats.intervals import (
    Estimate,
    Ratio,
    estimates,
    holm,
    intervals,
)

RATIO = {"r": Ratio(("a",), ("b",))}
SPEEDUP = Ratio(("base_ms", "tokens"), ("base_tokens", "ms"))
DRAWS = 2000
LENGTHS = 0.5  # spread of the logarithm of answers' lengths
NOISE = 0.05  # and of the baseline's time per token
# Of six tasks: the true speedup, and how long an answer is.
TASKS = ((1.4, 1.2), (1.3, 0.8), (1.0, 1.0), (1.3, 0.8), (1.55, 1.2), (1.05, 1.6))
MEASURES = Path(__file__).parents[2] / "docs" / "measures.md"


# --- coverage ---


def slowdowns(kind: str, rng, shape) -> tuple[np.ndarray, float]:
    """How a question's time differs from the mean speedup's, and the mean of that: all positive."""
    if kind == "rare":  # one answer in twenty takes two and a half times as long
        slow = np.where(rng.random(shape) < 0.05, 2.5, 1.0)
        return slow * np.exp(0.2 * rng.standard_normal(shape)), 1.075 * np.exp(0.2**2 / 2)
    if kind == "skewed":  # a spread of 0.4 with a skewness of 1
        scaled = 0.2 * (rng.gamma(4.0, size=shape) - 4)
        return np.exp(scaled), np.exp(-0.8) * (1 - 0.2) ** -4
    spread = float(kind)
    return np.exp(spread * rng.standard_normal(shape)), np.exp(spread**2 / 2)


def drawn(kind: str, rng, speedup: float, length: float, questions: int):
    """Columns (draws, questions) of pairs that share their length, and the true sums of the two."""
    shape = (DRAWS, questions)
    tokens = length * np.exp(LENGTHS * rng.standard_normal(shape))
    base_ms = tokens * np.exp(NOISE * rng.standard_normal(shape))
    factor, mean = slowdowns(kind, rng, shape)
    columns = {
        "base_ms": base_ms,
        "ms": base_ms * factor / speedup,
        "tokens": tokens,
        "base_tokens": tokens,
    }
    expected = length * np.exp((LENGTHS**2 + NOISE**2) / 2)
    return columns, expected, expected * mean / speedup


@cache
def coverage(kind: str, questions: int, tasks: int = 1) -> float:
    """The share of draws whose interval holds the true speedup."""
    rng = np.random.default_rng([questions, tasks, *kind.encode()])
    given = TASKS if tasks > 1 else TASKS[:1]
    parts = [drawn(kind, rng, *task, questions // tasks) for task in given]
    columns = {name: np.hstack([part[0][name] for part in parts]) for name in parts[0][0]}
    truth = sum(part[1] for part in parts) / sum(part[2] for part in parts)
    found = intervals(SPEEDUP, columns, strata=np.repeat(range(tasks), questions // tasks).tolist())
    assert np.isfinite([found.low, found.high]).all()
    return float(((found.low <= truth) & (truth <= found.high)).mean())


@pytest.mark.parametrize("questions", [2, 4, 8, 24, 48, 480])
@pytest.mark.parametrize("kind", ["0.12", "0.4"])
def test_intervals_hold_the_truth_as_often_as_they_say(kind, questions):
    assert 0.93 <= coverage(kind, questions) <= 0.97


@pytest.mark.parametrize("questions", [24, 48, 480])
@pytest.mark.parametrize("kind", ["0.12", "0.4"])
def test_so_do_those_over_six_tasks_which_are_not_drawn(kind, questions):
    assert 0.93 <= coverage(kind, questions, tasks=6) <= 0.97


@pytest.mark.parametrize(("questions", "least"), [(6, 0.93), (12, 0.92)])
def test_tasks_of_one_or_two_questions_do_not_make_it_too_narrow(questions, least):
    assert coverage("0.4", questions, tasks=6) >= least


@pytest.mark.parametrize("kind", ["skewed", "rare"])
def test_what_is_reached_with_long_tails_is_what_the_documentation_says(kind):
    assert coverage(kind, 4) >= 0.9


def test_the_documented_table_is_what_the_simulation_gives():
    rows = re.findall(r"^\| (.+?) \| ([.0-9 |]+) \|$", MEASURES.read_text("utf-8"), re.MULTILINE)
    kinds = {
        "spread 0.12": ("0.12", 1),
        "spread 0.4": ("0.4", 1),
        "spread 0.4, skewed": ("skewed", 1),
        "one answer in 20 takes 2.5 times as long": ("rare", 1),
        "six tasks together, spread 0.12": ("0.12", 6),
        "six tasks together, spread 0.4": ("0.4", 6),
    }
    table = {label: [float(x) for x in row.split("|")] for label, row in rows if label in kinds}
    assert table.keys() == kinds.keys()
    for label, (kind, tasks) in kinds.items():
        sizes = (12, 24, 48, 480) if tasks > 1 else (4, 8, 24, 48, 480)
        reached = [round(coverage(kind, n, tasks), 3) for n in sizes]
        assert table[label][-len(sizes) :] == pytest.approx(reached, abs=0.0011), label


@pytest.mark.parametrize("questions", [4, 8, 24, 48])
@pytest.mark.parametrize("noise", [0.03, 0.08])
def test_the_gates_rule_raises_few_false_alarms(questions, noise):
    """Of two equal runs: a whole interval below what the gate's tolerance of 5 % allows."""
    rng = np.random.default_rng([questions, int(100 * noise)])
    length = np.exp(LENGTHS * rng.standard_normal((DRAWS, questions)))
    sides = ("before", "baseline_after", "after", "baseline_before")
    columns = {
        name: length * np.exp(noise * rng.standard_normal((DRAWS, questions))) for name in sides
    }
    change = intervals(Ratio(sides[:2], sides[2:]), columns)
    assert (change.high < 0.95).mean() <= 0.01


# --- the formula, step by step ---


def by_hand(a, b, tasks=None):
    """Variances and effective numbers of questions by stratum, with a loop over questions."""
    tasks = np.zeros(len(a)) if tasks is None else np.asarray(tasks)
    weights = a / a.sum() + b / b.sum()
    variances, effective = [], []
    for task in sorted(set(tasks)):
        (mine,) = np.nonzero(tasks == task)
        n, deleted = len(mine), []
        for i in mine:
            kept = [j for j in mine if j != i]
            above, below = (x.sum() + n / (n - 1) * x[kept].sum() - x[mine].sum() for x in (a, b))
            deleted.append(above / below)
        variances.append((n - 1) * np.var(deleted))
        effective.append(weights[mine].sum() ** 2 / (weights[mine] ** 2).sum())
    return np.array(variances), np.array(effective)


@pytest.mark.parametrize("tasks", [None, [0, 0, 0, 1, 1, 1, 1, 2, 2]])
def test_the_interval_is_that_of_a_loop_over_questions(tasks):
    rng = np.random.default_rng(3)
    a, b = rng.lognormal(size=(2, 9))
    variances, effective = by_hand(a, b, tasks)
    degrees = np.maximum(effective - 1, 1)
    total = variances.sum()
    freedom = min(total**2 / (variances**2 / (degrees + 2)).sum() - 2, degrees.sum())
    value = a.sum() / b.sum()
    reach = np.exp(student.ppf(0.975, freedom) * np.sqrt(total) / value)
    found = estimates(RATIO, {"a": a, "b": b}, strata=tasks)["r"]
    assert (found.low, found.value, found.high) == pytest.approx(
        (value / reach, value, value * reach)
    )
    distance = abs(np.log(value)) * value / np.sqrt(total)
    assert found.p == pytest.approx(2 * student.sf(distance, freedom))


def test_equally_long_answers_have_students_degrees_of_freedom():
    columns = {"a": np.full(5, 2.0) + 1e-6 * np.arange(5), "b": np.ones(5)}
    found = estimates(RATIO, columns)["r"]
    error = np.std(columns["a"], ddof=1) / np.sqrt(5)
    assert found.high - found.value == pytest.approx(student.ppf(0.975, 4) * error, rel=1e-3)


def test_one_answer_longer_than_all_others_together_leaves_little_to_rely_on():
    rng = np.random.default_rng(4)
    a, b = np.exp(0.1 * rng.standard_normal((2, 30)))
    alike = estimates(RATIO, {"a": a, "b": b})["r"]
    length = np.where(np.arange(30) == 0, 1000.0, 1.0)
    ruled = estimates(RATIO, {"a": a * length, "b": b * length})["r"]
    assert np.log(ruled.high / ruled.low) > 3 * np.log(alike.high / alike.low)


def test_what_differs_between_tasks_widens_no_interval_over_them():
    rng = np.random.default_rng(5)
    b = np.ones(60)
    tasks = np.repeat(["qa", "rag", "stem"], 20)
    a = np.exp(0.1 * rng.standard_normal(60)) * np.repeat([1.0, 1.5, 2.0], 20)
    apart = estimates(RATIO, {"a": a, "b": b}, strata=tasks.tolist())["r"]
    mixed = estimates(RATIO, {"a": a, "b": b})["r"]
    assert apart.value == mixed.value
    assert apart.high - apart.low < 0.5 * (mixed.high - mixed.low)


def test_tasks_of_one_question_are_taken_together():
    rng = np.random.default_rng(6)
    columns = dict(zip("ab", rng.lognormal(size=(2, 6)), strict=True))

    def found(*tasks):
        return estimates(RATIO, columns, strata=tasks)["r"]

    assert found(*"uvwxyz") == found(*"uuuuuu") == estimates(RATIO, columns)["r"]
    assert found(*"uvxxxx") == found(*"vvxxxx")
    assert found(*"uvvxxx") == found(*"vvvxxx"), "one that stands alone joins the smallest"


# --- kinds of ratios ---


def test_the_interval_of_a_share_stays_between_0_and_1():
    hits, trials = np.array([9.0, 10, 10, 10, 7]), np.full(5, 10.0)
    (found,) = estimates(
        {"r": Ratio(("a",), ("b",), share=True)}, {"a": hits, "b": trials}
    ).values()
    assert 0 < found.low < found.value < found.high < 1
    assert found.p is None, "no share is to be compared with 1"
    left = Ratio(("a",), ("b",), scale=-1.0, constant=1.0, share=True)
    (rest,) = estimates({"r": left}, {"a": hits, "b": trials}).values()
    assert (rest.low, rest.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_a_constant_bounds_the_interval():
    """1 + accepted / steps is never below 1."""
    accepted, steps = np.array([1.0, 0, 0, 2, 0]), np.full(5, 20.0)
    more = Ratio(("a",), ("b",), constant=1.0)
    (found,) = estimates({"r": more}, {"a": accepted, "b": steps}).values()
    assert 1 < found.low < found.value == 1.03 < found.high
    assert found.p is None


def test_a_share_of_products_is_compared_as_its_logarithm():
    rng = np.random.default_rng(7)
    times = dict(zip("abcd", rng.lognormal(size=(4, 12)), strict=True))
    product = Ratio(("a", "b"), ("c", "d"))
    found = estimates({"r": product, "twice": Ratio(("a", "b"), ("c", "d"), scale=2.0)}, times)
    for end in ("low", "value", "high"):
        assert getattr(found["twice"], end) == pytest.approx(2 * getattr(found["r"], end))
    assert found["r"].value / found["r"].low == pytest.approx(found["r"].high / found["r"].value)


@pytest.mark.parametrize("seed", range(20))
def test_p_is_below_5_percent_just_where_the_interval_leaves_out_1(seed):
    rng = np.random.default_rng(seed)
    a, b = np.exp(0.3 * rng.standard_normal((2, 7)))
    found = estimates(RATIO, {"a": a * (1 + seed / 20), "b": b})["r"]
    assert (found.p < 0.05) == (not found.low <= 1 <= found.high)


# --- where there is little or nothing to go by ---


def test_one_question_gives_no_interval():
    columns = {"a": np.array([3.0]), "b": np.array([2.0])}
    assert estimates(RATIO, columns) == {"r": Estimate(1.5, None, None)}


def test_two_questions_give_a_very_wide_one():
    found = estimates(RATIO, {"a": np.array([1.4, 1.5]), "b": np.array([1.0, 1.0])})["r"]
    assert 0 < found.low < 1 < found.value < 2 < found.high < 10


@pytest.mark.parametrize(("times", "p"), [(1.0, 1.0), (3.0, 0.0)])
def test_equal_questions_give_an_interval_of_no_width(times, p):
    b = np.array([0.1, 0.2, 0.3])
    found = estimates(RATIO, {"a": times * b, "b": b})["r"]
    assert found.low == found.high == found.value == pytest.approx(times)
    assert found.p == p


@pytest.mark.parametrize("share", [True, False])
def test_nothing_accepted_anywhere_is_a_figure_of_no_width(share):
    none = {"r": Ratio(("a",), ("b",), share=share)}
    found = estimates(none, {"a": np.zeros(4), "b": np.ones(4)})["r"]
    assert (found.low, found.value, found.high) == (0.0, 0.0, 0.0)


def test_a_ratio_without_a_denominator_is_absent():
    assert estimates(RATIO, {"a": np.zeros(4), "b": np.zeros(4)}) == {}
    assert estimates(RATIO, {"a": np.zeros(0), "b": np.zeros(0)}) == {}


def test_a_denominator_that_one_question_has_gives_no_interval():
    found = estimates(RATIO, {"a": np.array([1.0, 0, 0]), "b": np.array([2.0, 0, 0])})["r"]
    assert found == Estimate(0.5, None, None), "without that question there is no ratio at all"


def test_only_one_question_of_many_that_accepts_gives_a_wide_interval():
    share = {"r": Ratio(("a",), ("b",), share=True)}
    found = estimates(share, {"a": np.array([0.0, 0, 5, 0, 0, 0]), "b": np.full(6, 10.0)})["r"]
    assert 0 < found.low < 0.02
    assert 0.5 < found.high < 1


# --- many cells ---


def test_holms_correction():
    """The example of R's p.adjust: the smallest counts for all, the next for one less."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}
    assert holm({"x": 0.7, "y": 0.9}) == {"x": 1.0, "y": 1.0}


def test_twenty_equal_cells_have_a_marked_one_in_at_most_one_table_of_twenty():
    rng = np.random.default_rng(8)
    a, b = np.exp(0.2 * rng.standard_normal((2, 500 * 20, 8)))
    p = intervals(RATIO["r"], {"a": a, "b": b}).p.reshape(500, 20)
    wrong = [min(holm(dict(enumerate(row))).values()) < 0.05 for row in p]
    assert np.mean(wrong) <= 0.07
    assert np.mean(p.min(axis=1) < 0.05) > 0.4, "without the correction most tables have one"
