"""The order of a report: what comes first for one entry, for several, and for several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from specbench_kangaroo.record.schema import COMPLETE
from specbench_kangaroo.report import comparison, details, published
from specbench_kangaroo.report.comparison import name_cell
from specbench_kangaroo.report.sheets import (
    ABSENT,
    Cell,
    Column,
    Document,
    Note,
    Part,
    Report,
    Section,
    Sheet,
    differing_options,
    folded,
    speedup_cell,
)
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
    sections, captions = _first(summary, entries)
    if with_details:
        sections += _details(summary, entries)
        captions += _detail_captions(summary, entries)
    if with_published and (found := list(_published(summary, entries))):
        sections += found
        captions.append(published.CAPTION)
    return Report(summary.run, tuple(sections), tuple(captions), _closing(summary))


def _first(summary: Summary, entries: Sequence[str]) -> tuple[list[Section], list[str]]:
    """What no reader can do without."""
    if len(entries) > 1:
        both = [comparison.overview(summary), comparison.by_task(summary)]
        return both, list(comparison.captions(summary))
    (shown,) = entries or [summary.baseline]
    captions = [details.INTERVAL_CAPTION]
    if entries:
        captions = [f"{details.INTERVAL_CAPTION}; {details.BASE_CAPTION}", details.IDEAL_CAPTION]
    return [details.section(summary, shown, with_reason=True)], captions


def _details(summary: Summary, entries: Sequence[str]) -> Iterator[Section]:
    if len(entries) == 1:
        yield details.latency(summary, entries[0])
        return
    for name in entries:
        # The reasons stand under the comparison already.
        shown = (details.section(summary, name, with_reason=False), details.latency(summary, name))
        label = summary.label(name)
        yield from (replace(section, part=Part.DETAIL, subject=label) for section in shown)


def _detail_captions(summary: Summary, entries: Sequence[str]) -> Iterator[str]:
    if len(entries) > 1:
        yield details.BASE_CAPTION
        yield details.IDEAL_CAPTION
    if entries:
        yield details.latency_caption(summary)
    if any(details.measures_energy(summary, name) for name in entries):
        yield details.ENERGY_CAPTION
    if (on_device := details.device_memory_caption(summary)) is not None:
        yield on_device
    if summary.peak_rss_mb is not None:
        yield details.memory_caption(summary.peak_rss_mb)


def _published(summary: Summary, entries: Sequence[str]) -> Iterator[Section]:
    labels: dict[str, list[str]] = {}
    for label in entries:
        labels.setdefault(summary.entries[label].method, []).append(label)
    for method, found in labels.items():
        section = published.section(summary, method, found)
        if section is not None:
            yield replace(section, part=Part.PUBLISHED)


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
    rows = (
        (*_facts(summary), *(_speedup(summary, entries.get(column)) for column in columns))
        for summary, entries in zip(summaries, found, strict=True)
    )
    return Section(
        title=f"{len(summaries)} runs: overall speedup over {_baselines(summaries)}",
        sheet=Sheet((*left, *right), tuple(rows), stacked=True),
    )


def _baselines(summaries: Sequence[Summary]) -> str:
    return " or ".join(dict.fromkeys(summary.baseline for summary in summaries))


def _facts(summary: Summary) -> tuple[Cell, ...]:
    facts = (getattr(summary, name) or ABSENT for name in _FACTS)
    return name_cell(summary.run, _FACT_WIDTH), *(folded(str(f), _FACT_WIDTH) for f in facts)


def _speedup(summary: Summary, name: str | None) -> Cell:
    part = None if name is None else summary.entries[name].tasks.get(OVERALL)
    return Cell(ABSENT) if part is None else speedup_cell(part.estimates)
