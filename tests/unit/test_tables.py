from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from specbench_kangaroo import stats, tables
from specbench_kangaroo.bootstrap import Figure
from specbench_kangaroo.records import Status
from specbench_kangaroo.store import RunWriter, read_run
from tests.unit.runs import make_generation, make_manifest, make_run, make_steps

TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")


def printed(summary, *, width: int, colour: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        width=width, file=file, force_terminal=colour, color_system="standard" if colour else None
    )
    console.print(tables.terminal(summary))
    return file.getvalue()


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "run"
    return stats.summarise(read_run(make_run(folder, tasks=TASKS, spread=0.05)))


@pytest.mark.parametrize("width", [100, 80])
def test_every_row_is_whole_on_one_line(summary, width):
    text = printed(summary, width=width)
    assert "…" not in text, "a cell was cut"
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    overall = summary.methods["kangaroo"].tasks["overall"].figures["speedup"]
    interval = f"{overall.value:.2f} ({overall.low:.2f}–{overall.high:.2f})"
    for task in ("overall", *TASKS):
        (line,) = (line for line in lines if line.startswith(task))
        assert line.split()[-1].endswith("%"), f"the row of {task} goes on in another line: {line}"
    assert interval in next(line for line in lines if line.startswith("overall"))


def test_a_very_narrow_terminal_breaks_cells_but_cuts_none(summary):
    assert "…" not in printed(summary, width=60)


def test_the_terminal_names_the_interval_and_the_verdict(summary):
    text = printed(summary, width=100)
    assert "95 % BCa bootstrap over questions" in text
    assert "lossless: 12 exact, 0 near ties, 0 violations\n" in text
    assert "kangaroo against vanilla" in text


@pytest.mark.parametrize(
    ("speedup", "colour"),
    [
        (Figure(1.3, 1.2, 1.4), "\x1b[32m"),
        (Figure(0.8, 0.7, 0.9), "\x1b[31m"),
        (Figure(1.3, 0.9, 1.4), None),
        (Figure(1.3, None, None), None),
    ],
)
def test_only_a_whole_interval_is_coloured(summary, speedup, colour):
    kangaroo = summary.methods["kangaroo"]
    part = kangaroo.tasks["qa"]
    part = replace(part, figures={**part.figures, "speedup": speedup})
    changed = replace(
        summary, methods={**summary.methods, "kangaroo": replace(kangaroo, tasks={"qa": part})}
    )
    text = printed(changed, width=100, colour=True)
    assert [code for code in ("\x1b[32m", "\x1b[31m") if code in text] == (
        [colour] if colour else []
    )


def test_violations_errors_and_exclusions_are_counted(summary):
    kangaroo = replace(
        summary.methods["kangaroo"],
        lossless={"exact": 9, "near_tie": 1, "violation": 2},
        errors=1,
        prompt_too_long=2,
        excluded=3,
    )
    text = printed(replace(summary, methods={**summary.methods, "kangaroo": kangaroo}), width=100)
    assert (
        "lossless: 9 exact, 1 near tie, 2 violations; 1 error; 2 prompts too long; 3 excluded"
    ) in text


def test_markdown_has_the_same_cells(summary):
    text = tables.markdown(summary)
    (line,) = (line for line in text.splitlines() if line.startswith("| qa "))
    (row,) = (row for row in tables.rows(summary, "kangaroo") if row.task == "qa")
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["qa", "2", *row.cells]
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "all rows of a Markdown table have the same number of cells"


def test_a_run_of_the_baseline_alone_still_has_a_table(tmp_path):
    run = read_run(make_run(tmp_path / "run", methods=["vanilla"], status="interrupted"))
    text = printed(stats.summarise(run), width=80)
    assert "92.9 (92.9–92.9)" in text
    assert "The run is interrupted" in text


def test_a_method_that_never_succeeded_says_so(tmp_path):
    with RunWriter.create(tmp_path / "run", make_manifest()) as writer:
        steps = make_steps("vanilla")
        writer.append(make_generation("vanilla", 1, steps=steps), steps)
        writer.append(make_generation("kangaroo", 1, status=Status.ERROR, error="boom"), [])
    summary = stats.summarise(read_run(tmp_path / "run"))
    assert "lossless: not judged; 1 error; 1 excluded" in printed(summary, width=80)
    assert "1 error" in tables.markdown(summary)
