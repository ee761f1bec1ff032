"""One entry by task: every figure that a reader compares; and what is said of the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specbench_kangaroo.record.errors import counted
from specbench_kangaroo.report.comparison import reason
from specbench_kangaroo.report.sheets import (
    Cell,
    Column,
    Mark,
    Measure,
    Note,
    Section,
    Sheet,
    speedup_marks,
)
from specbench_kangaroo.report.verdicts import verdict
from specbench_kangaroo.stats.device_health import STEADY, DeviceHealth
from specbench_kangaroo.stats.summary import OVERALL, Summary

BASE_CAPTION = "base: tok/s of the baseline"
IDEAL_CAPTION = "ideal: the speedup if verifying a draft cost one token; of ideal: realised"
_ENERGY_CAPTION = (
    "J per token: what the whole device drew by its own counter, prefill included, per new token"
)

_OF_BASELINE = (
    Measure("tok/s", "tokens_per_second", ".1f"),
    Measure("TTFT, ms", "ttft_ms", ".1f"),
    Measure("TPOT, ms", "tpot_ms", ".1f"),
)
_OF_ENTRY = (
    Measure("speedup", "speedup"),
    Measure("mean accepted", "mean_accepted_tokens"),
    Measure("acc.\nrate", "acceptance_rate", interval=False),
    Measure("tok/s", "tokens_per_second", None, interval=False),
    Measure("base", "tokens_per_second", None, interval=False, of_baseline=True),
    Measure("ideal", "speedup_ideal", interval=False),
    Measure("of\nideal", "realised_over_ideal", ".0%", interval=False),
)
_LATENCY = (
    Measure("Spec-Bench\nspeedup", "speedup_specbench"),
    Measure("CR", "compression_rate"),
    Measure("TTFT,\nms", "ttft_ms", None),
    Measure("base\nTTFT", "ttft_ms", None, of_baseline=True),
    Measure("TPOT,\nms", "tpot_ms", None),
    Measure("base\nTPOT", "tpot_ms", None, of_baseline=True),
)
_ENERGY = (
    Measure("J per\ntoken", "joules_per_token", ".3g"),
    Measure("base J\nper token", "joules_per_token", ".3g", of_baseline=True),
)


def section(summary: Summary, entry: str, *, with_reason: bool) -> Section:
    """An entry's table, the verdict on its outputs, and why it is slow if it is."""
    measures: Sequence[Measure] = _OF_ENTRY
    if entry == summary.baseline:
        measures = (*_OF_BASELINE, *_ENERGY[: _measures_energy(summary, entry)])
    notes = [verdict(summary.entries[entry], summary.baseline)]
    marks = speedup_marks(summary.entries[entry].tasks)
    why = reason(summary, entry, marks.get(OVERALL)) if with_reason else None
    against = "" if entry == summary.baseline else f" against {summary.baseline}"
    return Section(
        title=f"{summary.label(entry)}{against}, {summary.model}, {summary.questions}",
        sheet=_sheet(summary, entry, measures),
        notes=(*notes, why) if why else tuple(notes),
    )


def latency(summary: Summary, entry: str) -> Section:
    """What an entry's own table has no room for: Spec-Bench's speedup, passes, and latencies."""
    measures = (*_LATENCY, *_ENERGY) if _measures_energy(summary, entry) else _LATENCY
    return Section(
        title=f"{summary.label(entry)}: speedup by Spec-Bench's formula, compression, latency",
        sheet=_sheet(summary, entry, measures, stacked=True),
    )


def captions(summary: Summary, entries: Sequence[str]) -> Iterator[str]:
    """What the columns of :func:`latency` mean, and what of a run is in no table."""
    if entries:
        yield (
            f"Spec-Bench speedup: mean tok/s over questions, divided by that of {summary.baseline};"
            " CR: new tokens per pass of the target, prefill included; "
            "TTFT: time to the first token; TPOT: time per token after it"
        )
    if any(_measures_energy(summary, name) for name in entries):
        yield _ENERGY_CAPTION
    peaks = [
        f"{summary.label(name)} {entry.peak_device_mb:.0f}"
        for name, entry in summary.entries.items()
        if entry.peak_device_mb is not None
    ]
    if peaks:
        yield f"peak memory on the device, MiB: {', '.join(peaks)}"
    if summary.peak_rss_mb is not None:
        yield (
            f"peak memory of the process, which all entries share: {summary.peak_rss_mb:.0f} MiB"
        )


def _sheet(
    summary: Summary, entry: str, measures: Sequence[Measure], *, stacked: bool = False
) -> Sheet:
    """A row per task; a stacked sheet, which comes second, does not repeat how many questions."""
    marks = speedup_marks(summary.entries[entry].tasks)
    fixed = [Column(Cell("task"), left=True), Column(Cell("n"))][: 1 if stacked else 2]
    rows = (
        (
            *[Cell(task), Cell(str(part.n))][: len(fixed)],
            *(
                measure.cell(
                    part.estimates,
                    summary.estimates(summary.baseline, task),
                    marks.get(task, Mark.NONE),
                )
                for measure in measures
            ),
        )
        for task, part in summary.entries[entry].tasks.items()
    )
    columns = (*fixed, *(measure.column for measure in measures))
    return Sheet(columns, tuple(rows), bold=OVERALL, stacked=stacked)


def _measures_energy(summary: Summary, entry: str) -> bool:
    """Whether the device told how much energy an entry's answers took."""
    tasks = summary.entries[entry].tasks.values()
    return any("joules_per_token" in part.estimates for part in tasks)


def device_notes(health: DeviceHealth | None) -> tuple[Note, ...]:
    """Warnings of a device that was held back, or whose clock moved, between blocks."""
    if health is None or health.steady:
        return ()
    found = []
    if health.throttled:
        reasons = ", ".join(health.reasons)
        found.append(
            f"Warning: the GPU was throttled for heat or power ({reasons}) at {health.throttled} "
            f"of {counted(health.edges, 'block edge')}."
        )
    if health.sm_change > STEADY:
        found.append(
            f"Warning: the SM clock moved between {health.sm_low_mhz} and {health.sm_high_mhz} MHz "
            f"({health.sm_change:.0%}) from block to block."
        )
    return tuple(
        Note(f"{text} Ratios hold, as entries took turns; times do not.") for text in found
    )
