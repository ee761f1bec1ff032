"""What a report says of the device: energy, memory, and whether it ran at one speed throughout."""

from __future__ import annotations

from specbench_kangaroo.report.sheets import Note, counted
from specbench_kangaroo.stats.device_health import STEADY, DeviceHealth
from specbench_kangaroo.stats.summary import Summary

ENERGY_CAPTION = (
    "J per token: what the whole device drew by its own counter, prefill included, per new token"
)


def measures_energy(summary: Summary, entry: str) -> bool:
    """Whether the device told how much energy an entry's answers took."""
    tasks = summary.entries[entry].tasks.values()
    return any("joules_per_token" in part.estimates for part in tasks)


def memory_caption(summary: Summary) -> str | None:
    """The most memory that each entry's answers had on the accelerator; None without one."""
    peaks = [
        f"{summary.label(name)} {entry.peak_device_mb:.0f}"
        for name, entry in summary.entries.items()
        if entry.peak_device_mb is not None
    ]
    return f"peak memory on the device, MiB: {', '.join(peaks)}" if peaks else None


def notes(health: DeviceHealth | None) -> tuple[Note, ...]:
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
