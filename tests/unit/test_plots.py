"""The figures of speedups, and what all figures share: files, looks, error bars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer, ErrorbarContainer

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.writer import read_run
from specbench_kangaroo.report.figures import speedups
from specbench_kangaroo.report.figures.style import FORMATS, looks, save
from specbench_kangaroo.report.figures.times import PHASE_LOOKS
from specbench_kangaroo.stats import summary as stats
from specbench_kangaroo.stats.intervals import Estimate
from tests.unit.runs import SIDES, make_comparison, make_run

METHODS = ("vanilla", "kangaroo", "medusa")


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots") / "run"
    return stats.summarise(read_run(make_run(folder, methods=METHODS, spread=0.05)))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots") / "run"
    return stats.summarise(read_run(make_comparison(folder)))


def with_figures(summary, figures):
    """A summary of kangaroo alone, with these figures and no others."""
    kangaroo = summary.entries["kangaroo"]
    part = replace(kangaroo.tasks["overall"], estimates=figures)
    alone = replace(kangaroo, tasks={"overall": part})
    return replace(summary, entries={"vanilla": summary.entries["vanilla"], "kangaroo": alone})


def test_every_method_and_task_has_a_bar_with_its_value(summary):
    figure = speedups.speedup_by_task(summary)
    (axes,) = figure.axes
    bars = [bar for box in axes.containers if isinstance(box, BarContainer) for bar in box]
    expected = [
        part.estimates["speedup"].value
        for name in METHODS[1:]
        for part in summary.entries[name].tasks.values()
    ]
    assert [bar.get_width() for bar in bars] == pytest.approx(expected)
    assert [text.get_text() for text in axes.texts] == [f"{value:.2f}×" for value in expected]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["kangaroo", "medusa"]


def test_a_lossy_method_is_marked_in_legend_and_title(summary):
    lossy = replace(summary.entries["medusa"], lossy=True)
    several = replace(summary, entries={**summary.entries, "medusa": lossy})
    (legend,) = speedups.speedup_by_task(several).legends
    assert [text.get_text() for text in legend.get_texts()] == ["kangaroo", "medusa (lossy)"]
    alone = replace(summary, entries={"vanilla": summary.entries["vanilla"], "medusa": lossy})
    (axes,) = speedups.speedup_by_task(alone).axes
    assert axes.get_title().startswith("medusa (lossy): ")


def test_a_question_alone_is_drawn_without_an_error_bar(summary):
    figure = speedups.speedup_by_task(with_figures(summary, {"speedup": Estimate(1.2, None, None)}))
    (axes,) = figure.axes
    assert not [box for box in axes.containers if isinstance(box, ErrorbarContainer)]
    assert not figure.legends, "one method needs no legend: the title names it"
    assert axes.get_title().startswith("kangaroo: ")


def test_an_interval_that_misses_its_value_can_be_drawn(summary):
    missed = with_figures(summary, {"speedup": Estimate(1.2, 1.25, 1.3)})
    speedups.speedup_by_task(missed).canvas.draw()


def test_a_run_of_the_baseline_alone_has_no_speedup_to_plot(tmp_path):
    alone = stats.summarise(read_run(make_run(tmp_path / "run", methods=["vanilla"])))
    assert speedups.speedup_by_task(alone) is None
    assert speedups.realised_over_ideal(alone) is None


def test_the_ideal_is_hollow_and_the_realised_speedup_filled(comparison):
    (axes,) = speedups.realised_over_ideal(comparison).axes
    points = {
        (line.get_ydata()[0], line.get_markerfacecolor()): line.get_xdata()[0]
        for line in axes.lines
        if line.get_marker() not in ("None", "|") and len(line.get_xdata()) == 1
    }
    known = looks(comparison)
    for row, name in enumerate(SIDES):
        figures = comparison.entries[name].tasks["overall"].estimates
        assert points[row, "white"] == pytest.approx(figures["speedup_ideal"].value), name
        assert points[row, known[name].colour] == pytest.approx(figures["speedup"].value), name
        share = f"{100 * figures['realised_over_ideal'].value:.0f} %"
        assert axes.texts[row].get_text() == share
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    assert ticks == [comparison.label(name) for name in SIDES]
    assert axes.yaxis_inverted(), "the first method stands at the top"


def test_saved_files_keep_the_runs_name_and_are_reproducible(summary, tmp_path):
    figure = speedups.speedup_by_task(summary)
    paths = save(figure, tmp_path / "deep" / "smollm2.v1", formats=FORMATS)
    assert [path.name for path in paths] == ["smollm2.v1.png", "smollm2.v1.svg", "smollm2.v1.pdf"]
    again = save(speedups.speedup_by_task(summary), tmp_path / "again", formats=FORMATS)
    for first, second in zip(paths, again, strict=True):
        assert first.read_bytes() == second.read_bytes(), f"{first.suffix} differs between two runs"


def test_an_unknown_format_is_refused_before_anything_is_written(summary, tmp_path):
    with pytest.raises(UsageError, match="'bmp'; there are: png, svg, pdf"):
        save(speedups.speedup_by_task(summary), tmp_path / "figure", formats=("png", "bmp"))
    assert not list(tmp_path.iterdir())


def test_methods_can_be_told_apart_without_colours(comparison):
    found = looks(comparison)
    assert len({look.marker for look in found.values()}) == len(found)
    others = [look for name, look in found.items() if name != "vanilla"]
    assert len({look.hatch for look in others}) == len(others)
    assert {look.line for look in others} != {found["vanilla"].line}


def test_phases_are_ordered_from_dark_to_light():
    weights = (0.2126, 0.7152, 0.0722)  # of red, green and blue in what is seen as brightness
    greys = [np.dot(weights, to_rgb(look.colour)) for look in PHASE_LOOKS.values()]
    assert np.diff(greys).min() > 0.15, f"a greyscale print shows {greys}"


def test_dollars_in_names_are_no_formulas(summary, tmp_path):
    """matplotlib takes what stands between two of them for one, and refuses what is none."""
    tasks = {name: of.tasks | {"$y_{$": of.tasks["qa"]} for name, of in summary.entries.items()}
    entries = {name: replace(of, tasks=tasks[name]) for name, of in summary.entries.items()}
    named = replace(summary, model="a $x_{$ model", entries=entries)
    figure = speedups.realised_over_ideal(named)
    (axes,) = figure.axes
    assert axes.get_title() == "a $x_{$ model, builtin"
    for drawn in (figure, speedups.speedup_by_task(named)):
        save(drawn, tmp_path / "figure", ("svg",))
