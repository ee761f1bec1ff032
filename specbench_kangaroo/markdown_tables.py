"""A report as GitHub-flavoured Markdown.

Knows: Markdown, and :class:`~specbench_kangaroo.sheets.Report`.  Does not know: what a report says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specbench_kangaroo.sections import report_of
from specbench_kangaroo.sheets import Mark, Sheet
from specbench_kangaroo.stats import Summary


def markdown(summary: Summary) -> str:
    """A summary with the tables of all methods, ending in a newline."""
    report = report_of(summary, with_details=True)
    blocks = []
    for section in report.sections:
        blocks.append(f"### {section.title}")
        blocks.append("\n".join(_lines(section.sheet)))
        blocks += [_marked(note.text, note.mark) for note in section.notes]
    blocks += ["; ".join(report.captions) + ".", *(note.text for note in report.closing)]
    return "\n\n".join(blocks) + "\n"


def _lines(sheet: Sheet) -> Iterator[str]:
    yield _line([column.heading.text for column in sheet.columns])
    yield _line(["---" if column.left else "---:" for column in sheet.columns])
    for row in sheet.rows:
        yield _line([_marked(cell.text, cell.mark) for cell in row])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _marked(text: str, mark: Mark) -> str:
    return f"**{text}**" if mark is Mark.ALARM else text
