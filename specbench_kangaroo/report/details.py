"""One entry by task: every figure that a reader compares; and what is said of the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from specbench_kangaroo.report.comparison import reason
from specbench_kangaroo.report.sheets import (
    Cell,
    Column,
    Note,
    Section,
    Sheet,
    counted,
    interval_cell,
    rate_text,
    speedup_cell,
    value_text,
)
from specbench_kangaroo.report.verdicts import verdict
from specbench_kangaroo.stats.bootstrap import INTERVAL_NAME, Estimate
from specbench_kangaroo.stats.device_health import STEADY, DeviceHealth
from specbench_kangaroo.stats.summary import OVERALL, Summary

INTERVAL_CAPTION = f"in brackets: {INTERVAL_NAME}"
BASE_CAPTION = "base: tok/s of the baseline"
IDEAL_CAPTION = "ideal: the speedup if verifying a draft cost one token; of ideal: realised"
ENERGY_CAPTION = (
    "J per token: what the whole device drew by its own counter, prefill included, per new token"
)

_LATENCY = (
    ("Spec-Bench", "speedup"),
    ("CR",),
    ("TTFT,", "ms"),
    ("base", "TTFT"),
    ("TPOT,", "ms"),
    ("base", "TPOT"),
)
_ENERGY = (("J per", "token"), ("base J", "per token"))
_OF_BASELINE = ("tok/s", "TTFT, ms", "TPOT, ms")
_OF_ENTRY = ("speedup", "mean accepted", "acc.\nrate", "tok/s", "base", "ideal", "of\nideal")


def section(summary: Summary, entry: str, *, with_reason: bool) -> Section:
    """An entry's table, the verdict on its outputs, and why it is slow if it is."""
    notes = [verdict(summary.entries[entry], summary.baseline)]
    why = reason(summary, entry) if with_reason else None
    against = "" if entry == summary.baseline else f" against {summary.baseline}"
    return Section(
        title=f"{summary.label(entry)}{against}, {summary.model}, {summary.questions}",
        sheet=_sheet(summary, entry),
        notes=(*notes, why) if why else tuple(notes),
    )


def latency(summary: Summary, entry: str) -> Section:
    """What an entry's own table has no room for: Spec-Bench's speedup, passes, and latencies."""
    energy = _ENERGY if measures_energy(summary, entry) else ()
    columns = (Column(Cell(" ".join(lines), lines)) for lines in (*_LATENCY, *energy))
    return Section(
        title=f"{summary.label(entry)}: speedup by Spec-Bench's formula, compression, latency",
        sheet=Sheet(
            (Column(Cell("task"), left=True), *columns),
            tuple(_latency_rows(summary, entry)),
            bold=OVERALL,
            stacked=True,
        ),
    )


def latency_caption(summary: Summary) -> str:
    """What the columns of :func:`latency` mean."""
    return (
        f"Spec-Bench speedup: mean tok/s over questions, divided by that of {summary.baseline}; "
        "CR: new tokens per pass of the target, prefill included; "
        "TTFT: time to the first token; TPOT: time per token after it"
    )


def memory_caption(peak_rss_mb: float) -> str:
    """The memory of a run, which no entry has for itself."""
    return f"peak memory of the process, which all entries share: {peak_rss_mb:.0f} MiB"


def _latency_rows(summary: Summary, entry: str) -> Iterator[tuple[Cell, ...]]:
    baseline = summary.entries[summary.baseline].tasks
    energy = ("joules_per_token",) if measures_energy(summary, entry) else ()
    for task, part in summary.entries[entry].tasks.items():
        base = baseline[task].estimates
        yield (
            Cell(task),
            interval_cell(part.estimates, "speedup_specbench"),
            interval_cell(part.estimates, "compression_rate"),
            *(
                _ms_cell(estimates, name)
                for name in ("ttft_ms", "tpot_ms")
                for estimates in (part.estimates, base)
            ),
            *(
                interval_cell(estimates, name, ".3g")
                for name in energy
                for estimates in (part.estimates, base)
            ),
        )


def _ms_cell(estimates: Mapping[str, Estimate], name: str) -> Cell:
    """Milliseconds: a tenth of one matters below a hundred."""
    long = name in estimates and estimates[name].value >= 99.95
    return interval_cell(estimates, name, ".0f" if long else ".1f")


def _sheet(summary: Summary, entry: str) -> Sheet:
    headings = ["n", *(_OF_BASELINE if entry == summary.baseline else _OF_ENTRY)]
    if entry == summary.baseline and measures_energy(summary, entry):
        headings.append("J per\ntoken")
    cells = (Cell(name.replace("\n", " "), tuple(name.split("\n"))) for name in headings)
    columns = (Column(Cell("task"), left=True), *(Column(cell) for cell in cells))
    return Sheet(columns, tuple(_rows(summary, entry)), bold=OVERALL)


def _rows(summary: Summary, entry: str) -> Iterator[tuple[Cell, ...]]:
    baseline = summary.entries[summary.baseline].tasks
    for task, part in summary.entries[entry].tasks.items():
        if entry == summary.baseline:
            cells = _of_baseline(part.estimates, energy=measures_energy(summary, entry))
        else:
            cells = _of_entry(part.estimates, baseline[task].estimates)
        yield (Cell(task), Cell(str(part.n)), *cells)


def _of_baseline(estimates: Mapping[str, Estimate], *, energy: bool) -> tuple[Cell, ...]:
    names = ("tokens_per_second", "ttft_ms", "tpot_ms")
    cells = [interval_cell(estimates, name, ".1f") for name in names]
    cells += [interval_cell(estimates, "joules_per_token", ".3g")] if energy else []
    return tuple(cells)


def _of_entry(
    estimates: Mapping[str, Estimate], baseline: Mapping[str, Estimate]
) -> tuple[Cell, ...]:
    return (
        speedup_cell(estimates),
        interval_cell(estimates, "mean_accepted_tokens"),
        Cell(value_text(estimates, "acceptance_rate")),
        Cell(rate_text(estimates)),
        Cell(rate_text(baseline)),
        Cell(value_text(estimates, "speedup_ideal")),
        Cell(value_text(estimates, "realised_over_ideal", ".0%")),
    )


def measures_energy(summary: Summary, entry: str) -> bool:
    """Whether the device told how much energy an entry's answers took."""
    tasks = summary.entries[entry].tasks.values()
    return any("joules_per_token" in part.estimates for part in tasks)


def device_memory_caption(summary: Summary) -> str | None:
    """The most memory that each entry's answers had on the accelerator; None without one."""
    peaks = [
        f"{summary.label(name)} {entry.peak_device_mb:.0f}"
        for name, entry in summary.entries.items()
        if entry.peak_device_mb is not None
    ]
    return f"peak memory on the device, MiB: {', '.join(peaks)}" if peaks else None


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
