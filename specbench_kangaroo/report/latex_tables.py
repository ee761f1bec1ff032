r"""A report as LaTeX tables for a paper: booktabs, a float per section.

Needs no package but ``booktabs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from specbench_kangaroo.report.sections import document_of
from specbench_kangaroo.report.sheets import Cell, Column, Mark, Section, Sheet
from specbench_kangaroo.stats.summary import Summary

_HEAD = r"% In the preamble: \usepackage{booktabs}"
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


def latex(*summaries: Summary, published: bool = False) -> str:
    r"""Runs with all their tables, ending in a newline; for ``\input`` into a document."""
    document = document_of(summaries, with_details=True, with_published=published)
    blocks = [_HEAD]
    if document.side_by_side is not None:
        blocks.append(_float(document.side_by_side))
    for report in document.reports:
        if len(document.reports) > 1:
            blocks.append(rf"\subsection*{{{escaped(report.run)}}}")
        blocks += [_float(section) for section in report.sections]
        said = "; ".join(report.captions) + "."
        blocks.append(_small(escaped(text) for text in (said, *(n.text for n in report.closing))))
    return "\n\n".join(blocks) + "\n"


def escaped(text: str) -> str:
    """A text in which no character is special to LaTeX."""
    return text.translate(_ESCAPED)


def _float(section: Section) -> str:
    notes = [_marked(escaped(note.text), note.mark) for note in section.notes]
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
    yield _line(_stack(map(escaped, c.heading.stacked), c, "b") for c in sheet.columns)
    yield r"\midrule"
    for place, row in enumerate(sheet.rows):
        if place and sheet.stacked:
            yield r"\addlinespace"
        cells = [
            _stacked(cell, column, small) if sheet.stacked else _flat(cell, small)
            for cell, column in zip(row, sheet.columns, strict=True)
        ]
        marks = [Mark.ALARM if row[0].text == sheet.bold else cell.mark for cell in row]
        yield _line(_marked(text, mark) for text, mark in zip(cells, marks, strict=True))
    yield r"\bottomrule"
    yield r"\end{tabular}%"


def _line(cells: Iterable[str]) -> str:
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


def _marked(text: str, mark: Mark) -> str:
    return rf"\textbf{{{text}}}" if mark is Mark.ALARM else text
