"""Every format of a report, made of a recorded run.

``golden/README.md`` says how the expected reports are renewed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from specbench_kangaroo.cli.main import main
from specbench_kangaroo.record.writer import read_run
from specbench_kangaroo.report.documents import CSV_COLUMNS, csv_text, escaped, latex, markdown
from specbench_kangaroo.stats import summary as stats
from tests.unit.runs import make_comparison, make_run

GOLDEN = Path(__file__).parent / "golden"
RUN = GOLDEN / "run"
SUFFIXES = {"terminal": "txt", "markdown": "md", "latex": "tex", "html": "html"}
EXACT = 1e-9  # relative: another version of numpy may add in another order


def report(tmp_path: Path, *arguments: str | Path) -> str:
    """What ``specbench report`` writes into a file."""
    output = tmp_path / "report"
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, arguments), "--output", str(output)])
    assert not ended.value.code
    return output.read_text(encoding="utf-8")


def golden(name: str, found: str) -> str:
    """The text that is expected, which is ``found`` where it is to be renewed."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    return path.read_text(encoding="utf-8")


def without_drawings(page: str) -> str:
    return re.sub(r"<svg.*?</svg>", "<svg/>", page, flags=re.DOTALL)


def numbers_apart(text: str) -> tuple[list[str], list[float]]:
    """A text as what stands between its decimal fractions, and those."""
    pieces = re.split(r"(-?\d+\.\d+(?:e-?\d+)?)", text)
    return pieces[::2], [float(piece) for piece in pieces[1::2]]


@pytest.fixture(scope="module")
def summary() -> stats.Summary:
    return stats.summarise(read_run(RUN))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The recorded run with all that there is to say of it, by format."""
    folder = tmp_path_factory.mktemp("formats")
    flags = ("--details", "--published")
    return {
        name: without_drawings(report(folder, RUN, "--format", name, *flags)) for name in SUFFIXES
    }


# --- golden files ---


@pytest.mark.parametrize("format_", sorted(SUFFIXES))
def test_a_recorded_run_is_reported_as_it_always_was(full: dict[str, str], format_: str) -> None:
    found = full[format_]
    assert found == golden(f"report.{SUFFIXES[format_]}", found), (
        f"--format {format_} has changed; if that is meant, see {GOLDEN / 'README.md'}"
    )


def test_two_recorded_runs_are_reported_as_they_always_were(tmp_path: Path) -> None:
    found = report(tmp_path, RUN, RUN)
    assert found == golden("two.txt", found)


@pytest.mark.parametrize("format_", ["json", "csv"])
def test_the_figures_of_a_recorded_run_stay_the_same(tmp_path: Path, format_: str) -> None:
    found = report(tmp_path, RUN, "--format", format_)
    words, figures = numbers_apart(found)
    expected_words, expected = numbers_apart(golden(f"report.{format_}", found))
    assert words == expected_words, f"--format {format_} has other keys than it had"
    assert figures == pytest.approx(expected, rel=EXACT)


# --- several runs ---


def test_several_runs_stand_side_by_side_before_each_stands_alone(tmp_path: Path) -> None:
    one = make_comparison(tmp_path / "one", tasks=("qa",), questions_per_task=3)
    two = make_run(tmp_path / "two")
    text = report(tmp_path, one, two, "--format", "markdown")
    table, _, rest = text.partition("## synthetic")
    assert table.startswith("### 2 runs: overall speedup over vanilla")
    heading, _, first, second = table.splitlines()[2:6]
    names = [cell.strip() for cell in heading.strip("|").split("|")]
    assert names[:5] == ["run", "model", "questions", "dtype", "device"]
    place = names.index("lookahead")
    assert second.split("|")[1 + place].strip() == "–", "the second run has no such method"
    assert re.search(r"\d\.\d\d", first.split("|")[1 + place])
    assert rest.count("against vanilla") > 2
    assert text.count("## synthetic\n") == 2


def test_one_run_is_not_set_beside_itself(summary: stats.Summary) -> None:
    assert "side" not in markdown(summary)
    assert markdown(summary).startswith("### 3 entries against vanilla")


def test_several_runs_are_a_list_in_json_and_one_is_a_document(tmp_path: Path) -> None:
    one = json.loads(report(tmp_path, RUN, "--format", "json"))
    assert one["run"] == "golden_run"
    assert json.loads(report(tmp_path, RUN, RUN, "--format", "json")) == [one, one]


# --- what every report has ---


@pytest.mark.parametrize("format_", sorted(SUFFIXES))
def test_no_format_leaves_a_measure_out(full: dict[str, str], format_: str) -> None:
    measures = "speedup accepted acc. tok/s Spec-Bench CR TTFT TPOT ideal verdict vicuna-7b-v1.3"
    missing = [word for word in measures.split() if word not in full[format_]]
    assert not missing, f"--format {format_} does not show {missing}"
    shared = "peak memory of the process, which all entries share: 1235 MiB"
    assert shared in " ".join(full[format_].split())


def test_the_peak_memory_of_the_process_is_no_methods_own(summary: stats.Summary) -> None:
    unknown = replace(summary, peak_rss_mb=None)
    assert "peak memory" not in markdown(unknown)


# --- CSV ---


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def numbers(value: Any) -> Iterator[float]:
    """Every number of a JSON document that is measured: no option, count of questions, place."""
    given = {"schema_version", "n", "position", "lossy", "options", "settings", "environment"}
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in given:
                yield from numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


def test_the_csv_table_holds_every_number_of_the_json_document(summary: stats.Summary) -> None:
    rows = rows_of(csv_text(summary))
    found = [float(row[name]) for row in rows for name in ("value", "low", "high") if row[name]]
    assert sorted(found) == sorted(numbers(stats.to_json(summary)))


def test_the_csv_table_is_tidy(summary: stats.Summary) -> None:
    rows = rows_of(csv_text(summary, summary))
    assert list(rows[0]) == list(CSV_COLUMNS)
    keys = [(row["entry"], row["task"], row["position"], row["metric"]) for row in rows]
    assert len(set(keys)) * 2 == len(keys), "a figure stands in the table more than once per run"
    (row,) = (
        row
        for row in rows[: len(rows) // 2]
        if (row["entry"], row["task"], row["metric"]) == ("medusa", "qa", "speedup")
    )
    figure = summary.entries["medusa"].tasks["qa"].estimates["speedup"]
    assert float(row["value"]) == figure.value
    assert (row["lossy"], row["n"], row["model"]) == ("true", "3", "smollm2-135m")


def test_reports_for_programs_say_how_a_run_was_made(tmp_path: Path) -> None:
    manifest = read_run(RUN).manifest
    document = json.loads(report(tmp_path, RUN, "--format", "json"))
    expected = json.loads(json.dumps([manifest.settings, manifest.environment]))
    assert [document["settings"], document["environment"]] == expected
    assert document["device"] == "NVIDIA H200"
    table = pd.read_csv(io.StringIO(report(tmp_path, RUN, RUN, "--format", "csv")))
    for name in ("settings", "environment"):
        assert {*map(str, table[name].map(json.loads))} == {str(document[name])}, f"{name} differ"
    (found,) = table[["dtype", "device", "max_new_tokens", "seed"]].drop_duplicates().to_numpy()
    assert [*found] == ["bfloat16", "NVIDIA H200", 13, 0]
    assert table["value"].dtype == float, "a setting stands among the figures"
    options = table.dropna(subset="entry").groupby("entry")["options"].first().map(json.loads)
    assert options.to_dict() == {
        label: entry["options"] for label, entry in document["entries"].items()
    }


# --- LaTeX ---


def test_latex_tables_are_whole(summary: stats.Summary) -> None:
    text = latex(summary, summary, published=True)
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name, f"\\end{{{name}}} closes another environment"
    assert not opened, f"never closed: {opened}"
    braces = re.sub(r"\\\\|\\[{}]", "", text)  # without those that are text
    assert braces.count("{") == braces.count("}")
    for table in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL):
        rows = [line for line in table.splitlines() if line.endswith(r" \\")]
        assert len(rows) > 1
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1, table


def test_latex_columns_are_as_many_as_are_declared(summary: stats.Summary) -> None:
    text = latex(summary)
    found = re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}\n\\toprule\n(.*)\n", text)
    assert found
    for columns, heading in found:
        assert len(columns) == 1 + len(re.findall(r"(?<!\\)&", heading))


def test_what_has_a_meaning_to_latex_is_escaped(summary: stats.Summary) -> None:
    odd = replace(summary, model=r"50%_of\a{b}&c#$~^<x>", status="interrupted")
    text = latex(odd)
    assert (
        r"50\%\_of\textbackslash{}a\{b\}\&c\#\$\textasciitilde{}\textasciicircum{}"
        r"\textless{}x\textgreater{}"
    ) in text
    assert "The run is interrupted" in text
    assert escaped("1.20–1.35") == "1.20--1.35"


def test_no_text_is_taken_for_an_argument_of_a_lines_end(summary: stats.Summary) -> None:
    odd = replace(summary, run="[1em]", model="*", device="[2]")
    text = latex(odd, odd, published=True)
    assert "{[}1em{]}" in text
    assert not re.search(r"\\\\\s*[\[*]", text)


def test_latex_shows_published_figures_to_those_who_ask(summary: stats.Summary) -> None:
    assert "vicuna" not in latex(summary)
    assert "vicuna-7b-v1.3" in latex(summary, published=True)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(summary: stats.Summary, tmp_path: Path) -> None:
    document = (
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        f"{latex(summary, summary, published=True)}\\end{{document}}\n"
    )
    (tmp_path / "paper.tex").write_text(document, encoding="utf-8")
    made = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout[-2000:]
    assert "Overfull" not in made.stdout, "a table or a note is wider than the page's text"


# --- other versions ---


def test_a_run_of_a_newer_version_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run")
    manifest = json.loads((folder / "run.json").read_text())
    manifest["schema_version"] += 1
    (folder / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit) as ended:
        main(["report", str(RUN), str(folder), "--format", "csv"])
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert re.fullmatch(r"error: .* is newer than \d+, .*upgrade specbench-kangaroo\n", shown.err)
    assert not shown.out, "nothing is reported of some runs when one cannot be read"
