"""Every figure of a run: that it says what the numbers are, and that all of it can be read."""

from __future__ import annotations

import itertools
import random
import time

import pandas as pd
import pyarrow as pa
import pytest
from matplotlib.container import BarContainer
from matplotlib.text import Text

from specbench_kangaroo.record.columns import CONFIDENCE_TYPE
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.writer import read_run
from specbench_kangaroo.report.figures.catalogue import FIGURES, figures_of
from specbench_kangaroo.report.figures.paired_steps import paired_steps
from specbench_kangaroo.report.figures.step_tables import PHASES, accepted_lengths, step_times
from specbench_kangaroo.report.figures.style import save
from specbench_kangaroo.stats import summary as stats
from tests.changes import replace
from tests.pace import slowness
from tests.unit.runs import SIDES, make_comparison, make_run

ALL = (
    "speedup_by_task",
    "acceptance_by_position",
    "step_time",
    "accepted_lengths",
    "calibration",
    "context_length",
    "realised_over_ideal",
)
LONG = dict(zip((f"a_method_of_a_long_name_{i}" for i in range(7)), SIDES.values(), strict=False))
LONG["a_method_of_a_long_name_6"] = SIDES["kangaroo"]


def with_confidences(run, methods):
    """The run with confidences of all sizes for ``methods``, and none for the others."""
    rng = random.Random(0)
    told = run.steps["entry"].isin(methods)
    lists = [
        [rng.random() for _ in range(drafted)] if tells else []
        for drafted, tells in zip(run.steps["drafted"], told, strict=True)
    ]
    column = pd.array(pa.array(lists, CONFIDENCE_TYPE), dtype=pd.ArrowDtype(CONFIDENCE_TYPE))
    return replace(run, steps=run.steps.assign(confidence=column))


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    run = read_run(make_comparison(tmp_path_factory.mktemp("figures") / "run"))
    thresholds = {"kangaroo": {"threshold": 0.6}}
    entries = {
        name: replace(record, options=thresholds.get(name, {}))
        for name, record in run.manifest.entries.items()
    }
    run = replace(run, manifest=replace(run.manifest, entries=entries))
    run = with_confidences(run, ["kangaroo", "medusa"])
    return run, stats.summarise(run)


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "run"
    run = read_run(make_comparison(folder, sides=LONG, tasks=("mt_bench", "math_reasoning")))
    return run, stats.summarise(run)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    run = read_run(make_run(tmp_path_factory.mktemp("figures") / "run", spread=0.05))
    return run, stats.summarise(run)


@pytest.fixture(scope="module")
def drawn(six, seven, one):
    return {"six": figures_of(*six), "seven": figures_of(*seven), "one": figures_of(*one)}


def texts(figure):
    """Every text that is drawn, with the box it takes in pixels."""
    figure.canvas.draw()
    unseen = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high:  # kept by matplotlib, but not drawn
                    unseen |= {tick.label1, tick.label2}
    for text in figure.findobj(Text):
        if text not in unseen and text.get_visible() and text.get_text().strip():
            yield text.get_text(), text.get_window_extent()


def bars(axes):
    return [box for box in axes.containers if isinstance(box, BarContainer)]


cases = pytest.mark.parametrize(
    ("which", "name"), [(which, name) for which in ("one", "six", "seven") for name in ALL]
)


@cases
def test_no_text_is_cut(drawn, which, name):
    figure = drawn[which][name]
    for text, box in texts(figure):
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1
        assert inside and box.y1 <= figure.bbox.y1, f"{text!r} is cut in {name}"  # noqa: PT018


@cases
def test_no_text_lies_over_another(drawn, which, name):
    for (first, one_box), (second, other_box) in itertools.combinations(
        texts(drawn[which][name]), 2
    ):
        overlap = one_box.padded(-1).overlaps(other_box.padded(-1))
        assert not overlap, f"{first!r} and {second!r} overlap in {name}"


@cases
def test_no_legend_lies_over_data(drawn, which, name):
    figure = drawn[which][name]
    figure.canvas.draw()
    for legend, axes in itertools.product(figure.legends, figure.axes):
        box = legend.get_window_extent()
        assert not box.overlaps(axes.get_tightbbox()), f"the legend of {name} lies over data"


@pytest.mark.parametrize("name", ALL)
def test_the_same_run_gives_the_same_bytes(six, tmp_path, name):
    first, second = (
        save(figures_of(*six, [name])[name], tmp_path / which, ["svg"])[0].read_bytes()
        for which in ("first", "second")
    )
    assert first == second, f"{name} differs between two drawings"


def test_all_figures_come_in_their_order(drawn):
    assert tuple(FIGURES) == ALL
    assert tuple(drawn["six"]) == ALL


def test_figures_are_drawn_as_they_are_asked_for(one):
    asked = ["step_time", "speedup_by_task"]
    assert list(figures_of(*one, asked)) == asked
    with pytest.raises(UsageError, match="unknown figure 'steps_time'; did you mean 'step_time'"):
        figures_of(*one, ["steps_time"])


def test_a_figure_without_data_is_left_out(one, tmp_path):
    run, summary = one
    silent = with_confidences(run, [])
    assert set(ALL) - figures_of(silent, summary).keys() == {"calibration"}
    run = read_run(make_run(tmp_path / "vanilla", methods=["vanilla"]))
    assert list(figures_of(run, stats.summarise(run))) == ["step_time", "context_length"]
    run = read_run(make_run(tmp_path / "nothing", questions_per_task=0))
    assert figures_of(run, stats.summarise(run)) == {}


@pytest.mark.parametrize("name", sorted(set(ALL) - {"calibration"}))
def test_every_figure_names_every_method_and_marks_the_lossy_one(drawn, name):
    shown = " | ".join(text for text, _ in texts(drawn["six"][name]))
    for method in SIDES:
        assert method in shown, f"{name} does not name {method}"
    assert "medusa (lossy)" in shown, f"{name} hides that medusa is lossy"


def test_acceptance_lines_are_the_summarys(six, drawn):
    _, summary = six
    for axes, which in zip(
        drawn["six"]["acceptance_by_position"].axes, ("marginal", "conditional"), strict=True
    ):
        assert which in axes.get_title()
        for box, name in zip(axes.containers, SIDES, strict=True):
            positions = summary.entries[name].positions
            expected = [getattr(item, which).value for item in positions]
            assert box.lines[0].get_ydata() == pytest.approx(expected), (name, which)
            places = [round(float(x)) for x in box.lines[0].get_xdata()]
            assert places == [item.position for item in positions]


def test_a_stack_is_as_long_as_its_step(six, drawn):
    run, _ = six
    table = step_times(paired_steps(run))
    left, right = drawn["six"]["step_time"].axes
    names = ["vanilla", *SIDES]
    for phase, box in zip(PHASES, bars(left), strict=True):
        expected = table[table["phase"] == phase].set_index("entry").loc[names, "ms_per_step"]
        assert [bar.get_width() for bar in box] == pytest.approx(expected.to_list(), abs=1e-9)
    totals = table[table["phase"] == "total"]["ms_per_step"].to_list()
    assert [bar.get_x() + bar.get_width() for bar in bars(left)[-1]] == pytest.approx(totals)
    assert [text.get_text() for text in right.texts][:1] == ["10.0"], "vanilla's time of a token"
    assert left.get_ylim()[0] > left.get_ylim()[1], "vanilla stands at the top"


def test_panels_of_accepted_lengths_show_distribution_and_ctar(six, drawn):
    _, summary = six
    for axes, name in zip(drawn["six"]["accepted_lengths"].axes, SIDES, strict=True):
        table = accepted_lengths(summary, name)
        (box,) = bars(axes)
        assert [bar.get_height() for bar in box] == pytest.approx(table["exactly"].to_list())
        line = axes.lines[0]
        assert line.get_ydata() == pytest.approx(table["at_least"].to_numpy())
        mean = summary.entries[name].tasks["overall"].estimates["mean_accepted_tokens"].value
        assert axes.get_title() == f"{summary.label(name)}\nmean {mean:.2f}"


def test_calibration_has_a_column_for_each_method_that_tells_its_confidence(drawn):
    figure = drawn["six"]["calibration"]
    medusa, _, kangaroo, below = figure.axes
    assert medusa.get_title().startswith("medusa (lossy) (tree)\nn = ")
    assert kangaroo.get_title().startswith("kangaroo\nη = 0.6, n = ")
    marks = [line for line in kangaroo.lines if line.get_label() == "threshold η"]
    assert [set(mark.get_xdata()) for mark in marks] == [{0.6}]
    assert all(line.get_label() != "threshold η" for line in medusa.lines), "it has no threshold"
    tokens = sum(bar.get_height() for bar in bars(below)[0])
    assert f"n = {tokens:,.0f} tokens" in kangaroo.get_title()
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["calibrated", "measured", "threshold η"]


def test_the_baseline_is_in_the_first_panel_of_contexts_only(drawn):
    left, right = drawn["six"]["context_length"].axes
    assert len(left.containers) == 1 + len(SIDES)
    assert len(right.containers) == len(SIDES)


def test_millions_of_steps_are_drawn_at_once(six):
    run, summary = six
    steps = pd.concat([run.steps] * 720, ignore_index=True)
    assert len(steps) > 1_500_000
    began = time.process_time()
    assert set(figures_of(replace(run, steps=steps), summary)) == set(ALL)
    assert time.process_time() - began < 10 * slowness(), (
        "figures must not keep their reader waiting"
    )
