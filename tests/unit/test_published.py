"""Published figures beside ours: cited, for the right method, and never mixed up with ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specbench_kangaroo.bench.registry import built_in_files
from specbench_kangaroo.record.writer import read_run
from specbench_kangaroo.report import published
from specbench_kangaroo.report.published import Published
from specbench_kangaroo.report.sections import report_of
from specbench_kangaroo.report.sheets import Section
from specbench_kangaroo.stats import summary as stats
from specbench_kangaroo.stats.intervals import Estimate

RUN = Path(__file__).parent / "golden" / "run"
LEADERBOARD = "Spec-Bench Leaderboard.md (fd2c1cd)"
PAPER = "Kangaroo paper v1, figure 1 (read from the figure, +-0.01)"


@pytest.fixture(scope="module")
def summary() -> stats.Summary:
    return stats.summarise(read_run(RUN))


def found(method: str, source: str, model: str = "vicuna-7b-v1.3") -> Published:
    (item,) = (
        item
        for item in published.published()
        if (item.method, item.source, item.model) == (method, source, model)
    )
    return item


def shown(summary: stats.Summary, method: str) -> Section:
    section = published.section(summary, method, [method])
    assert section is not None
    return section


def cells(section: Section, row: int) -> dict[str, str]:
    headings = (column.heading.text for column in section.sheet.columns)
    return dict(zip(headings, (cell.text for cell in section.sheet.rows[row]), strict=True))


def test_every_key_is_a_method_that_there_is() -> None:
    names = built_in_files().keys()
    keys = {item.key for item in published.published()} - {""}
    assert keys <= names, f"no method is called {sorted(keys - names)}"
    assert len(keys) >= 6


def test_a_method_of_ours_has_one_key_whatever_a_source_calls_it() -> None:
    names = {item.method: item.key for item in published.published()}
    assert {name: names[name] for name in ("PLD", "SpS", "Recycling", "Medusa-1 (chain)")} == {
        "PLD": "prompt_lookup",
        "SpS": "draft_model",
        "Recycling": "token_recycling",
        "Medusa-1 (chain)": "medusa",
    }
    assert names["EAGLE2"] == "", "not built in"


def test_the_figures_are_those_of_their_sources() -> None:
    medusa = found("Medusa", LEADERBOARD)
    assert (medusa.gpu, medusa.mean_accepted_tokens) == ("A100-80GB", 2.31)
    assert (medusa.speedups["overall"], medusa.speedups["rag"]) == (1.71, 1.49)
    kangaroo = found("Kangaroo", PAPER)
    assert kangaroo.speedups == {
        "mt_bench": 1.68,
        "math_reasoning": 1.61,
        "rag": 1.52,
        "summarization": 1.49,
    }
    assert (kangaroo.gpu, kangaroo.mean_accepted_tokens) == ("", None)


def test_every_figure_is_a_speedup_on_a_known_task_and_has_a_source() -> None:
    known = {stats.OVERALL, *stats.TASK_ORDER}
    assert len(published.published()) >= 30
    for item in published.published():
        assert item.source
        assert item.model
        assert item.speedups.keys() <= known
        assert all(0.5 < value < 5 for value in item.speedups.values())


def test_each_source_has_a_row_with_its_citation(summary: stats.Summary) -> None:
    section = shown(summary, "medusa")
    assert [cells(section, i)["published as"] for i in range(5)] == [
        "this run",
        *["Medusa [1]"] * 3,
        "Medusa-1 (chain) [2]",
    ]
    assert [note.text for note in section.notes] == [
        f"[1] {LEADERBOARD}: greedy, fp16, batch 1, mean of 3 runs, torch 2.5.1",
        f"[2] {PAPER}: chain verification",
    ]
    row = cells(section, 1)
    assert row["model, GPU"] == "vicuna-7b-v1.3, A100-80GB"
    assert (row["overall"], row["rag"], row["mean accepted"]) == ("1.71", "1.49", "2.31")
    assert cells(section, 4)["qa"] == "–", "the paper says nothing of that task"


def test_this_run_stands_first_by_the_leaderboards_own_formula(summary: stats.Summary) -> None:
    part = summary.entries["medusa"].tasks["qa"]
    other = replace(
        part, estimates={**part.estimates, "speedup_specbench": Estimate(1.5, 1.4, 1.6)}
    )
    tasks = {**summary.entries["medusa"].tasks, "qa": other}
    medusa = replace(summary.entries["medusa"], tasks=tasks)
    row = cells(shown(replace(summary, entries={**summary.entries, "medusa": medusa}), "medusa"), 0)
    assert row["qa"] == "1.50 (1.40–1.60)"
    assert row["rag"] == "–", "no question of this run was of that task"
    assert row["model, GPU"] == "smollm2-135m, NVIDIA H200"


def test_a_method_that_nobody_published_has_no_section(summary: stats.Summary) -> None:
    assert published.section(summary, "repeat_last", ["kangaroo"]) is None
    renamed = {
        "vanilla": summary.entries["vanilla"],
        "kangaroo": replace(summary.entries["kangaroo"], method="repeat_last"),
    }
    report = report_of(replace(summary, entries=renamed), with_details=False, with_published=True)
    assert not report.published
    assert published.CAPTION not in report.captions


def test_a_method_without_any_answer_still_has_its_sources(summary: stats.Summary) -> None:
    failed = replace(summary.entries["medusa"], tasks={})
    section = shown(replace(summary, entries={**summary.entries, "medusa": failed}), "medusa")
    assert cells(section, 0)["overall"] == "–"
    assert cells(section, 1)["overall"] == "1.71"


def test_the_reader_is_told_that_these_are_other_models(summary: stats.Summary) -> None:
    report = report_of(summary, with_details=False, with_published=True)
    (caption,) = (line for line in report.captions if "published" in line)
    assert "other models on other GPUs" in caption
    assert "speedup_specbench" in caption
