"""A summary as text: tables for the terminal and in Markdown.

Knows: :class:`~specbench_kangaroo.stats.Summary`.  Does not know: records, or how figures are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from specbench_kangaroo.bootstrap import INTERVAL_NAME, Figure
from specbench_kangaroo.stats import OVERALL, MethodSummary, Summary

ABSENT = "–"
_INTERVAL_CAPTION = f"in brackets: {INTERVAL_NAME}"
_COMPARED_CAPTION = (
    f"{_INTERVAL_CAPTION}; base: tok/s of the baseline",
    "ideal: the speedup if verifying a draft cost one token; of ideal: realised",
)

# Together with the cells below them no wider than 80 columns, if these stand one apart.
_NARROW = 88
_BASELINE_HEADINGS = ("tok/s", "TTFT, ms", "TPOT, ms")
_HEADINGS = ("speedup", "mean accepted", "acc.\nrate", "tok/s", "base", "ideal", "of\nideal")


class Row(NamedTuple):
    """A line of a method's table; ``speedup`` is what its colour is chosen by."""

    task: str
    n: int
    cells: tuple[str, ...]
    speedup: Figure | None


def terminal(summary: Summary) -> Group:
    """One table per method, for :meth:`rich.console.Console.print`; fits 80 columns."""
    parts: list[RenderableType] = []
    for name in _shown(summary):
        parts += [_title(summary, name), _Fitted(summary, name), _verdict(summary.methods[name])]
        parts.append(Text())
    parts += [Text(line, style="dim") for line in _caption(summary)]
    return Group(*parts, *_unfinished(summary))


def markdown(summary: Summary) -> str:
    """The same tables as GitHub-flavoured Markdown."""
    blocks = []
    for name in _shown(summary):
        blocks.append(f"### {_title(summary, name)}")
        blocks.append("\n".join(_markdown_table(summary, name)))
        blocks.append(_verdict(summary.methods[name]).plain)
    blocks += ["; ".join(_caption(summary)) + ".", *(text.plain for text in _unfinished(summary))]
    return "\n\n".join(blocks) + "\n"


def rows(summary: Summary, method: str) -> Iterator[Row]:
    """The lines of a method's table, "overall" first."""
    baseline = summary.methods[summary.baseline].tasks
    for task, part in summary.methods[method].tasks.items():
        figures = part.figures
        if method == summary.baseline:
            cells = _baseline_cells(figures)
        else:
            cells = _cells(figures, baseline[task].figures)
        yield Row(task, part.n, cells, figures.get("speedup"))


def headings(summary: Summary, method: str) -> tuple[str, ...]:
    """The headings of :attr:`Row.cells`."""
    return _BASELINE_HEADINGS if method == summary.baseline else _HEADINGS


def _shown(summary: Summary) -> list[str]:
    """The baseline stands beside every other method, and alone only if there is none."""
    others = [name for name in summary.methods if name != summary.baseline]
    return others or [summary.baseline]


def _caption(summary: Summary) -> tuple[str, ...]:
    alone = _shown(summary) == [summary.baseline]
    return (_INTERVAL_CAPTION,) if alone else _COMPARED_CAPTION


def _cells(figures: Mapping[str, Figure], baseline: Mapping[str, Figure]) -> tuple[str, ...]:
    return (
        _interval(figures, "speedup"),
        _interval(figures, "mean_accepted_tokens"),
        _value(figures, "acceptance_rate", ".2f"),
        _speed(figures),
        _speed(baseline),
        _value(figures, "speedup_ideal", ".2f"),
        _value(figures, "realised_over_ideal", ".0%"),
    )


def _speed(figures: Mapping[str, Figure]) -> str:
    speed = figures.get("tokens_per_second")
    return ABSENT if speed is None else f"{speed.value:.{1 if speed.value < 99.95 else 0}f}"


def _baseline_cells(figures: Mapping[str, Figure]) -> tuple[str, ...]:
    return tuple(
        _interval(figures, name, ".1f") for name in ("tokens_per_second", "ttft_ms", "tpot_ms")
    )


def _value(figures: Mapping[str, Figure], name: str, form: str) -> str:
    return format(figures[name].value, form) if name in figures else ABSENT


def _interval(figures: Mapping[str, Figure], name: str, form: str = ".2f") -> str:
    figure = figures.get(name)
    if figure is None or figure.low is None or figure.high is None:
        return _value(figures, name, form)
    return f"{figure.value:{form}} ({figure.low:{form}}–{figure.high:{form}})"


def _title(summary: Summary, method: str) -> Text:
    against = "" if method == summary.baseline else f" against {summary.baseline}"
    return Text(f"{method}{against}, {summary.model}, {summary.questions}", style="bold")


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A method's table, its columns drawn together where the terminal is narrow."""

    summary: Summary
    method: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        yield _table(self.summary, self.method, gap=1 if options.max_width >= _NARROW else 0)


def _table(summary: Summary, method: str, *, gap: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0), show_edge=False)
    table.add_column("task", no_wrap=True, min_width=14)  # the longest task of Spec-Bench
    table.add_column("n", justify="right")
    for heading in headings(summary, method):
        # Broken over lines in a narrow terminal, never cut.
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows(summary, method):
        cells: list[str | Text] = list(row.cells)
        cells[0] = Text(row.cells[0], style=_colour(row.speedup))
        table.add_row(row.task, str(row.n), *cells, style="bold" if row.task == OVERALL else None)
    return table


def _colour(speedup: Figure | None) -> str:
    """Only an interval that lies wholly on one side of 1 says faster or slower."""
    if speedup is None or speedup.low is None or speedup.high is None:
        return ""
    if speedup.low > 1:
        return "green"
    return "red" if speedup.high < 1 else ""


def _verdict(method: MethodSummary) -> Text:
    text = Text("lossless: not judged")
    if method.lossless is not None:
        counts = method.lossless
        text = Text(
            f"lossless: {counts['exact']} exact, {_counted(counts['near_tie'], 'near tie')}, "
            f"{_counted(counts['violation'], 'violation')}",
            style="red" if counts["violation"] else "",
        )
    for count, noun in (
        (method.errors, "error"),
        (method.prompt_too_long, "prompt too long"),
        (method.excluded, "excluded"),
    ):
        if count:
            text.append(f"; {_counted(count, noun)}")
    return text


def _counted(count: int, noun: str) -> str:
    irregular = {"prompt too long": "prompts too long", "excluded": "excluded"}
    return f"{count} {noun}" if count == 1 else f"{count} {irregular.get(noun, noun + 's')}"


def _unfinished(summary: Summary) -> list[Text]:
    if summary.status == "complete":
        return []
    return [Text(f"The run is {summary.status}: these are the figures of what it has so far.")]


def _markdown_table(summary: Summary, method: str) -> Iterator[str]:
    names = ("task", "n", *(name.replace("\n", " ") for name in headings(summary, method)))
    yield _markdown_line(names)
    yield _markdown_line(("---", *["---:"] * (len(names) - 1)))
    for row in rows(summary, method):
        yield _markdown_line((row.task, str(row.n), *row.cells))


def _markdown_line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
