"""The order of a report: what comes first for one entry, for several, and for several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from specbench_kangaroo.record.schema import COMPLETE
from specbench_kangaroo.report import comparison, details, published
from specbench_kangaroo.report.sheets import (
    ABSENT,
    SPEEDUP,
    Cell,
    Column,
    Document,
    Mark,
    Note,
    Report,
    Section,
    Sheet,
    differing_options,
    folded,
    interval_cell,
    name_cell,
    speedup_marks,
)
from specbench_kangaroo.stats.intervals import INTERVAL_NAME
from specbench_kangaroo.stats.sessions import SESSIONS_NAME, Sessions
from specbench_kangaroo.stats.summary import OVERALL, Summary

_FACTS = ("model", "questions", "dtype", "device")
_HEADING_WIDTH = 9
_FACT_WIDTH = 14


def document_of(
    summaries: Sequence[Summary], *, with_details: bool, with_published: bool
) -> Document:
    """What is to be said of one run or several; see :func:`report_of`."""
    return Document(
        side_by_side=_side_by_side(summaries) if len(summaries) > 1 else None,
        reports=tuple(
            report_of(summary, with_details=with_details, with_published=with_published)
            for summary in summaries
        ),
    )


def report_of(summary: Summary, *, with_details: bool, with_published: bool = False) -> Report:
    """What is to be said of a run.

    A run of one entry is all detail, and one of the baseline alone has its figures.

    Args:
        summary: of the run.
        with_details: add all tables of each entry.
        with_published: add what was published of the same entries.
    """
    entries = comparison.others(summary)
    several = len(entries) > 1
    if several:
        main = [comparison.overview(summary), comparison.by_task(summary)]
        captions = list(comparison.captions(summary))
    else:
        main, captions = _alone(summary, entries, with_details)
    if with_details:
        captions += [details.BASE_CAPTION, details.IDEAL_CAPTION] if several else []
        captions += details.captions(summary, entries)
    elsewhere = tuple(_published(summary, entries)) if with_published else ()
    return Report(
        run=summary.run,
        main=tuple(main),
        details=_details(summary, entries) if with_details and several else {},
        published=elsewhere,
        captions=(*captions, published.CAPTION) if elsewhere else tuple(captions),
        closing=_closing(summary),
    )


def _alone(
    summary: Summary, entries: Sequence[str], with_details: bool
) -> tuple[list[Section], list[str]]:
    if not entries:
        section = details.section(summary, summary.baseline, with_reason=True)
        return [section], [comparison.INTERVAL_CAPTION]
    sections = [details.section(summary, entries[0], with_reason=True)]
    if with_details:
        sections.append(details.latency(summary, entries[0]))
    brackets = f"{comparison.INTERVAL_CAPTION}; {details.BASE_CAPTION}"
    return sections, [brackets, comparison.MARK_CAPTION, details.IDEAL_CAPTION]


def _details(summary: Summary, entries: Sequence[str]) -> dict[str, tuple[Section, ...]]:
    """By label.  The reasons stand under the comparison already."""
    return {
        summary.label(name): (
            details.section(summary, name, with_reason=False),
            details.latency(summary, name),
        )
        for name in entries
    }


def _published(summary: Summary, entries: Sequence[str]) -> Iterator[Section]:
    methods = dict.fromkeys(summary.entries[label].method for label in entries)
    for method in methods:
        labels = [label for label in entries if summary.entries[label].method == method]
        section = published.section(summary, method, labels)
        if section is not None:
            yield section


def _closing(summary: Summary) -> tuple[Note, ...]:
    notes = details.device_notes(summary.device_health)
    if summary.status == COMPLETE:
        return notes
    unfinished = f"The run is {summary.status}: these are the figures of what it has so far."
    return (*notes, Note(unfinished))


def _side_by_side(summaries: Sequence[Summary]) -> Section:
    """A row per run, a column per entry; an entry that a run has not got is a dash.

    The same label with other options, or of another method, is another entry.
    """
    pairs = {(label, entry.method) for s in summaries for label, entry in s.entries.items()}
    methods = Counter(label for label, _ in pairs)
    found = [
        {
            (summary.label(label), (entry.method,) * (methods[label] > 1) + options[label]): label
            for label, entry in summary.entries.items()
            if label != summary.baseline
        }
        for summary, options in zip(summaries, differing_options(summaries), strict=True)
    ]
    columns = dict.fromkeys(column for entries in found for column in entries)
    left = (Column(Cell(name), left=True) for name in ("run", *_FACTS))
    right = (Column(name_cell(label, _HEADING_WIDTH, of)) for label, of in columns)
    parts = {
        (run, of): summary.entries[label].tasks[OVERALL]
        for run, (summary, entries) in enumerate(zip(summaries, found, strict=True))
        for of, label in entries.items()
        if summary.entries[label].tasks
    }
    marks = speedup_marks(parts)
    rows = (
        (
            *_facts(summary),
            *(
                interval_cell(
                    parts[run, of].estimates if (run, of) in parts else {},
                    SPEEDUP,
                    mark=marks.get((run, of), Mark.NONE),
                )
                for of in columns
            ),
        )
        for run, summary in enumerate(summaries)
    )
    baselines = " or ".join(dict.fromkeys(summary.baseline for summary in summaries))
    return Section(
        title=f"{len(summaries)} runs: overall speedup over {baselines}",
        sheet=Sheet((*left, *right), tuple(rows), stacked=True),
    )


def _facts(summary: Summary) -> tuple[Cell, ...]:
    facts = (getattr(summary, name) or ABSENT for name in _FACTS)
    return name_cell(summary.run, _FACT_WIDTH), *(folded(str(f), _FACT_WIDTH) for f in facts)


def over_sessions(found: Sessions) -> Section:
    """A row per entry: its speedup in any session, and in each of these."""
    columns = (
        Column(Cell("entry"), left=True),
        Column(Cell("n")),
        Column(Cell("all sessions", ("all", "sessions"))),
        *(Column(name_cell(name, _HEADING_WIDTH)) for name in found.runs),
    )
    ranked = sorted(found.entries.items(), key=lambda item: -item[1].overall.value)
    rows = (
        (
            name_cell(label, _FACT_WIDTH),
            Cell(str(of.n)),
            *(interval_cell({SPEEDUP: one}, SPEEDUP) for one in (of.overall, *of.each)),
        )
        for label, of in ranked
    )
    return Section(
        title=f"{len(found.runs)} sessions: overall speedup over {found.baseline}, "
        f"{found.model}, {found.questions}",
        sheet=Sheet(columns, tuple(rows), stacked=True),
        notes=(
            Note(f"all sessions: geometric mean, in brackets {SESSIONS_NAME}"),
            Note(f"each session: in brackets {INTERVAL_NAME}, which holds for that session alone"),
        ),
    )
