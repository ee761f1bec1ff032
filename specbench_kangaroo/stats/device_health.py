"""Whether the device ran at one speed throughout a run, from its states at block edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specbench_kangaroo.record.schema import AFTER, BlockEdge

# What holds clocks down for heat or power; the other reasons are settings, or that nothing runs.
HEAT_OR_POWER = frozenset(
    {
        "sw_power_cap",
        "hw_slowdown",
        "sw_thermal_slowdown",
        "hw_thermal_slowdown",
        "hw_power_brake_slowdown",
    }
)
STEADY = 0.05  # of the highest SM clock: a smaller change between blocks is not worth a line


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """What the states of a run say of its device.

    Attributes:
        edges: how many there are.
        throttled: how many of them name a reason of heat or power.
        reasons: those reasons, each with the number of its edges.
        sm_low_mhz: the lowest SM clock at the end of a block, and ``sm_high_mhz`` the highest, of
            the worker whose clock moved most; None if no clock is known.
    """

    edges: int
    throttled: int
    reasons: Mapping[str, int]
    sm_low_mhz: int | None
    sm_high_mhz: int | None

    @property
    def sm_change(self) -> float:
        """How far the SM clock moved, as a share of its highest."""
        if self.sm_low_mhz is None or not self.sm_high_mhz:
            return 0.0
        return 1 - self.sm_low_mhz / self.sm_high_mhz

    @property
    def steady(self) -> bool:
        """Whether nothing is to be said of the device."""
        return not self.throttled and self.sm_change <= STEADY


def health(edges: Sequence[BlockEdge]) -> DeviceHealth | None:
    """What the states of a run say; None if there are none."""
    if not edges:
        return None
    found = [HEAT_OR_POWER.intersection(edge.throttle or ()) for edge in edges]
    low, high = _sm_range(edges)
    return DeviceHealth(
        edges=len(edges),
        throttled=sum(map(bool, found)),
        reasons=dict(sorted(Counter(name for names in found for name in names).items())),
        sm_low_mhz=low,
        sm_high_mhz=high,
    )


def _sm_range(edges: Sequence[BlockEdge]) -> tuple[int | None, int | None]:
    """Of ends of blocks alone: before one, a device may have been idle and its clock down."""
    clocks: dict[int, list[int]] = {}
    for edge in edges:
        if edge.edge == AFTER and edge.sm_mhz:
            clocks.setdefault(edge.worker, []).append(edge.sm_mhz)
    if not clocks:
        return None, None
    widest = max(clocks.values(), key=lambda found: 1 - min(found) / max(found))
    return min(widest), max(widest)
