from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.container import BarContainer, ErrorbarContainer

from specbench_kangaroo import plots, stats
from specbench_kangaroo.bootstrap import Figure
from specbench_kangaroo.errors import UsageError
from specbench_kangaroo.store import read_run
from tests.unit.runs import make_run

METHODS = ("vanilla", "kangaroo", "medusa")


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots") / "run"
    return stats.summarise(read_run(make_run(folder, methods=METHODS, spread=0.05)))


def test_every_method_and_task_has_a_bar_with_its_value(summary):
    figure = plots.speedup_by_task(summary)
    (axes,) = figure.axes
    bars = [bar for box in axes.containers if isinstance(box, BarContainer) for bar in box]
    expected = [
        part.figures["speedup"].value
        for name in METHODS[1:]
        for part in summary.methods[name].tasks.values()
    ]
    assert [bar.get_width() for bar in bars] == pytest.approx(expected)
    assert [text.get_text() for text in axes.texts] == [f"{value:.2f}×" for value in expected]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["kangaroo", "medusa"]


def test_a_lossy_method_is_marked_in_legend_and_title(summary):
    lossy = replace(summary.methods["medusa"], lossy=True)
    several = replace(summary, methods={**summary.methods, "medusa": lossy})
    (legend,) = plots.speedup_by_task(several).legends
    assert [text.get_text() for text in legend.get_texts()] == ["kangaroo", "medusa (lossy)"]
    alone = replace(summary, methods={"vanilla": summary.methods["vanilla"], "medusa": lossy})
    (axes,) = plots.speedup_by_task(alone).axes
    assert axes.get_title().startswith("medusa (lossy): ")


def test_nothing_is_cut_or_lies_over_something_else(summary):
    figure = plots.speedup_by_task(summary)
    figure.canvas.draw()
    (axes,) = figure.axes
    page = figure.bbox
    texts = [*axes.texts, *axes.get_yticklabels(), axes.xaxis.label, axes.title]
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= page.x0 and box.x1 <= page.x1, f"{text.get_text()!r} is cut"  # noqa: PT018
        assert box.y0 >= page.y0 and box.y1 <= page.y1, f"{text.get_text()!r} is cut"  # noqa: PT018
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent()), "legend over data"


def test_a_question_alone_is_drawn_without_an_error_bar(summary):
    kangaroo = summary.methods["kangaroo"]
    part = replace(kangaroo.tasks["qa"], figures={"speedup": Figure(1.2, None, None)})
    alone = {
        "vanilla": summary.methods["vanilla"],
        "kangaroo": replace(kangaroo, tasks={"qa": part}),
    }
    figure = plots.speedup_by_task(replace(summary, methods=alone))
    (axes,) = figure.axes
    assert not [box for box in axes.containers if isinstance(box, ErrorbarContainer)]
    assert not figure.legends, "one method needs no legend: the title names it"
    assert axes.get_title().startswith("kangaroo: ")


def test_an_interval_that_misses_its_value_can_be_drawn(summary):
    kangaroo = summary.methods["kangaroo"]
    part = replace(kangaroo.tasks["qa"], figures={"speedup": Figure(1.2, 1.25, 1.3)})
    missed = {
        "vanilla": summary.methods["vanilla"],
        "kangaroo": replace(kangaroo, tasks={"qa": part}),
    }
    plots.speedup_by_task(replace(summary, methods=missed)).canvas.draw()


def test_saved_files_keep_the_runs_name_and_are_reproducible(summary, tmp_path):
    figure = plots.speedup_by_task(summary)
    paths = plots.save(figure, tmp_path / "deep" / "smollm2.v1", formats=plots.FORMATS)
    assert [path.name for path in paths] == ["smollm2.v1.png", "smollm2.v1.svg", "smollm2.v1.pdf"]
    again = plots.save(plots.speedup_by_task(summary), tmp_path / "again", formats=plots.FORMATS)
    for first, second in zip(paths, again, strict=True):
        assert first.read_bytes() == second.read_bytes(), f"{first.suffix} differs between two runs"


def test_an_unknown_format_is_refused_before_anything_is_written(summary, tmp_path):
    with pytest.raises(UsageError, match="'bmp'; there are: png, svg, pdf"):
        plots.save(plots.speedup_by_task(summary), tmp_path / "figure", formats=("png", "bmp"))
    assert not list(tmp_path.iterdir())


def test_a_run_of_the_baseline_alone_has_no_speedup_to_plot(tmp_path):
    run = read_run(make_run(tmp_path / "run", methods=["vanilla"]))
    with pytest.raises(UsageError, match="nothing but the baseline"):
        plots.speedup_by_task(stats.summarise(run))
