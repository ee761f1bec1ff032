"""The order of a report: what comes first for one method, and for several.

Knows: which sections there are.  Does not know: what they hold, or how they are drawn.
"""

from __future__ import annotations

from specbench_kangaroo import comparison, details
from specbench_kangaroo.sheets import Note, Report
from specbench_kangaroo.stats import Summary


def report_of(summary: Summary, *, with_details: bool) -> Report:
    """What is to be said of a run; ``with_details`` adds each method's own table to a comparison.

    A run of one method is all detail, and one of the baseline alone has its figures.
    """
    methods = comparison.others(summary)
    if len(methods) > 1:
        return _of_several(summary, methods, with_details=with_details)
    (shown,) = methods or [summary.baseline]
    captions = [details.INTERVAL_CAPTION]
    if methods:
        captions = [f"{details.INTERVAL_CAPTION}; {details.BASE_CAPTION}", details.IDEAL_CAPTION]
    section = details.section(summary, shown, with_reason=True)
    return Report((section,), tuple(captions), _closing(summary))


def _of_several(summary: Summary, methods: list[str], *, with_details: bool) -> Report:
    sections = [comparison.overview(summary), comparison.by_task(summary)]
    captions = comparison.captions(summary)
    if with_details:
        # The reasons stand under the comparison already.
        sections += [details.section(summary, name, with_reason=False) for name in methods]
        captions += (details.BASE_CAPTION, details.IDEAL_CAPTION)
    return Report(tuple(sections), captions, _closing(summary))


def _closing(summary: Summary) -> tuple[Note, ...]:
    if summary.status == "complete":
        return ()
    return (Note(f"The run is {summary.status}: these are the figures of what it has so far."),)
