"""A report as GitHub-flavoured Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specbench_kangaroo.report.sections import document_of
from specbench_kangaroo.report.sheets import Mark, Section, Sheet
from specbench_kangaroo.stats.summary import Summary


def markdown(*summaries: Summary) -> str:
    """Runs with all their tables and what others published, ending in a newline."""
    document = document_of(summaries, with_details=True, with_published=True)
    blocks: list[str] = []
    if document.side_by_side is not None:
        blocks += _section(document.side_by_side)
    for report in document.reports:
        blocks += [f"## {report.run}"] if len(document.reports) > 1 else []
        blocks += [block for section in report.sections for block in _section(section)]
        blocks += ["; ".join(report.captions) + ".", *(note.text for note in report.closing)]
    return "\n\n".join(blocks) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"### {section.title}"
    yield "\n".join(sheet_lines(section.sheet))
    yield from (marked(note.text, note.mark) for note in section.notes)


def sheet_lines(sheet: Sheet) -> Iterator[str]:
    """A table, line by line."""
    yield _line([column.heading.text for column in sheet.columns])
    yield _line(["---" if column.left else "---:" for column in sheet.columns])
    for row in sheet.rows:
        yield _line([marked(cell.text, cell.mark) for cell in row])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def marked(text: str, mark: Mark) -> str:
    """A text as its mark has it: an alarm is bold."""
    return f"**{text}**" if mark is Mark.ALARM else text
