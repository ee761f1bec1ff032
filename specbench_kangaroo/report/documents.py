r"""A report as text for a file: Markdown, LaTeX tables for a paper, and one tidy CSV table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from specbench_kangaroo.report.sections import document_of
from specbench_kangaroo.report.sheets import (
    Cell,
    Column,
    Mark,
    Report,
    Section,
    Sheet,
)
from specbench_kangaroo.stats.summary import OVERALL, Summary, to_json

_OF_RUN = ("run", "status", "model", "device", "questions", "baseline")
_SETTINGS = ("dtype", "max_new_tokens", "temperature", "seed")  # those that one groups by
CSV_COLUMNS = (
    *_OF_RUN,  # in every row, as are its settings
    *_SETTINGS,
    # Of a figure; one that is of all entries, tasks or positions leaves theirs empty.
    *("entry", "method", "options", "lossy", "task", "n", "position"),
    *("metric", "value", "low", "high"),
    *("settings", "environment"),  # all of them, as JSON: last, as they are long
)

_LATEX_HEAD = r"% In the preamble: \usepackage{booktabs}"
# Type of a table and of its intervals, by how many columns it has: wide ones fit a page of article.
_SMALL, _SMALLER = (r"\footnotesize", r"\scriptsize"), (r"\scriptsize", r"\tiny")
_MANY_COLUMNS = 7
_COLUMN_GAP = r"\setlength{\tabcolsep}{3pt}"
_ESCAPED = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "[": "{[}",  # after a line's end it would begin an argument
        "]": "{]}",
        "*": "{*}",
        "\n": " ",
        "–": "--",
        "…": r"\dots{}",
        "×": r"$\times$",
        "≥": r"$\geq$",
    }
)


def markdown(*summaries: Summary) -> str:
    """Runs with all their tables and what others published, as GitHub draws it."""
    document = document_of(summaries, with_details=True, with_published=True)
    blocks = document.drawn(
        section=markdown_section,
        heading=lambda run: [f"## {run}"],
        ending=_ending,
    )
    return "\n\n".join(blocks) + "\n"


def latex(*summaries: Summary, published: bool = False) -> str:
    r"""Runs with all their tables, a float each, for ``\input`` into a document.

    Needs no package but ``booktabs``.
    """
    document = document_of(summaries, with_details=True, with_published=published)
    blocks = document.drawn(
        section=lambda section: [_float(section)],
        heading=lambda run: [rf"\subsection*{{{escaped(run)}}}"],
        ending=lambda report: [_small(map(escaped, _ending(report)))],
    )
    return "\n\n".join([_LATEX_HEAD, *blocks]) + "\n"


def csv_text(*summaries: Summary) -> str:
    """Runs one after another under one heading: a row per figure, for a spreadsheet or data frame.

    It holds what the JSON document holds, and takes its metrics' names from there.  ``options``,
    ``settings`` and ``environment`` are JSON texts.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for summary in summaries:
        writer.writerows(_rows(to_json(summary)))
    return file.getvalue()


def escaped(text: str) -> str:
    """A text in which no character is special to LaTeX."""
    return text.translate(_ESCAPED)


def _ending(report: Report) -> tuple[str, ...]:
    """What the columns mean, in one sentence, and what is wrong."""
    return ("; ".join(report.captions) + ".", *(note.text for note in report.closing))


def markdown_section(section: Section) -> Iterator[str]:
    """A section's title, table and notes, block by block."""
    yield f"### {section.title}"
    yield "\n".join(markdown_lines(section.sheet))
    yield from (bold(note.text, note.mark) for note in section.notes)


def markdown_lines(sheet: Sheet) -> Iterator[str]:
    """A table as GitHub draws it, line by line."""
    yield _markdown_line([column.heading.text for column in sheet.columns])
    yield _markdown_line(["---" if column.left else "---:" for column in sheet.columns])
    for row in sheet.rows:
        yield _markdown_line([bold(cell.text, cell.mark) for cell in row])


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def bold(text: str, mark: Mark) -> str:
    """A text as its mark has it: an alarm is bold."""
    return f"**{text}**" if mark is Mark.ALARM else text


def _float(section: Section) -> str:
    notes = [_textbf(escaped(note.text), note.mark) for note in section.notes]
    lines = [
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{escaped(section.title)}}}",
        f"{_sizes(section.sheet)[0]}{_COLUMN_GAP}",
        r"\makebox[\textwidth]{%",  # one that is wider than the text stays in its middle
        *_tabular(section.sheet),
        "}",
        *([r"\par\medskip", _small(notes)] if notes else []),
        r"\end{table}",
    ]
    return "\n".join(lines)


def _small(texts: Iterable[str]) -> str:
    return "\n".join([r"{\footnotesize", *(rf"{text}\par" for text in texts), "}"])


def _sizes(sheet: Sheet) -> tuple[str, str]:
    return _SMALLER if len(sheet.columns) > _MANY_COLUMNS else _SMALL


def _tabular(sheet: Sheet) -> Iterator[str]:
    sides = "".join("l" if column.left else "r" for column in sheet.columns)
    small = _sizes(sheet)[1]
    yield rf"\begin{{tabular}}{{@{{}}{sides}@{{}}}}"
    yield r"\toprule"
    yield _latex_line(_stack(map(escaped, c.heading.stacked), c, "b") for c in sheet.columns)
    yield r"\midrule"
    for place, row in enumerate(sheet.rows):
        if place and sheet.stacked:
            yield r"\addlinespace"
        cells = [
            _stacked(cell, column, small) if sheet.stacked else _flat(cell, small)
            for cell, column in zip(row, sheet.columns, strict=True)
        ]
        marks = [Mark.ALARM if row[0].text == sheet.bold else cell.mark for cell in row]
        yield _latex_line(_textbf(text, mark) for text, mark in zip(cells, marks, strict=True))
    yield r"\bottomrule"
    yield r"\end{tabular}%"


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _flat(cell: Cell, small: str) -> str:
    """A cell in one line, its interval small."""
    value, *rest = cell.stacked
    if rest and cell.text == f"{value} ({rest[0]})":
        return f"{escaped(value)} {{{small}({escaped(rest[0])})}}"
    return escaped(cell.text)


def _stacked(cell: Cell, column: Column, small: str) -> str:
    """Lines under one another; below a figure stands its interval, which is small."""
    first, *more = map(escaped, cell.stacked)
    if not column.left:
        more = [f"{{{small} {line}}}" for line in more]
    return _stack([first, *more], column, "t")


def _stack(lines: Iterable[str], column: Column, edge: str) -> str:
    """Lines whose first (edge "t") or last ("b") stands in line with the neighbours."""
    first, *more = lines
    if not more:
        return first
    side = "l" if column.left else "r"
    rows = r"\\".join([first, *more])
    return rf"\begin{{tabular}}[{edge}]{{@{{}}{side}@{{}}}}{rows}\end{{tabular}}"


def _textbf(text: str, mark: Mark) -> str:
    return rf"\textbf{{{text}}}" if mark is Mark.ALARM else text


def _rows(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    run = {name: document.get(name) for name in _OF_RUN}
    run |= {name: document["settings"].get(name) for name in _SETTINGS}
    run |= {name: json.dumps(document[name]) for name in ("settings", "environment")}
    if "peak_rss_mb" in document:
        yield run | {"metric": "peak_rss_mb", "value": document["peak_rss_mb"]}
    for name, entry in document["entries"].items():
        labels = run | {"entry": name, "method": entry["method"]}
        labels |= {"options": json.dumps(entry["options"])}
        labels |= {"lossy": "true" if entry["lossy"] else "false"}
        yield from (labels | row for row in _of_entry(entry))


def _of_entry(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, part in entry["tasks"].items():
        for metric, figure in part.items():
            if metric != "n":
                yield {"task": task, "n": part["n"], "metric": metric} | figure
    yield from _by_position(entry)
    for kind in ("lossless", "sampling_check"):
        for name, value in entry.get(kind, {}).items():
            yield {"metric": f"{kind}.{name}", "value": value}
    for name in ("errors", "prompt_too_long", "excluded"):
        yield {"metric": name, "value": entry[name]}


def _by_position(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for item in entry.get("acceptance_by_position", ()):
        labels = {
            "task": OVERALL,
            "n": entry["tasks"][OVERALL]["n"],
            "position": item["position"],
        }
        for kind in ("marginal", "conditional"):
            yield labels | {"metric": f"acceptance_by_position.{kind}"} | item[kind]
        ctar = entry["ctar"][str(item["position"])]
        yield labels | {"metric": "ctar"} | ctar
