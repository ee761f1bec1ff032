"""The device at the edges of a run's blocks: ``device.jsonl``, written, read back, and judged.

A block is one prompt answered by all methods.  A clock that falls between two methods' answers
would make one of them slow for nothing; here is what a reader needs to see that it did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from specbench_kangaroo.jsonl import as_line, drop_torn_line, read_records
from specbench_kangaroo.records import BlockEdge
from specbench_kangaroo.schedule import Round
from specbench_kangaroo.telemetry import Nvml
from specbench_kangaroo.whole_writes import LineFile, storing

DEVICE = "device.jsonl"
BEFORE, AFTER = "before", "after"

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


class DeviceLog:
    """Appends the device's state at block edges; without NVML there is no file and no line.

    Args:
        folder: of the run; a resumed run appends, and a torn last line goes.
        nvml: of the device that decodes, None where it cannot be asked.
        worker: which worker's device it is.
    """

    def __init__(self, folder: Path, nvml: Nvml | None, *, worker: int = 0) -> None:
        self._path = folder / DEVICE
        self._nvml = nvml
        self._worker = worker
        if nvml is not None and self._path.exists():
            drop_torn_line(self._path)

    def note(self, block: Round, edge: str) -> None:
        """Read the device and add a line; not within a timed span."""
        if self._nvml is not None:
            append_edges(self._path.parent, [edge_now(self._nvml, block, edge, self._worker)])


def edge_now(nvml: Nvml, block: Round, edge: str, worker: int) -> BlockEdge:
    """The device's state at this moment, which is an edge of the block."""
    return BlockEdge(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        question_id=block.question.question_id,
        turn=block.turn,
        repeat=block.repeat,
        edge=edge,
        **asdict(nvml.state()),
        worker=worker,
    )


def append_edges(folder: Path, edges: Iterable[BlockEdge]) -> None:
    """Add lines to the run's ``device.jsonl``; without edges no file is made."""
    lines = b"".join(map(as_line, edges))
    if lines:
        with storing(folder), LineFile(folder / DEVICE) as file:
            file.append(lines)


def read_device_log(folder: Path) -> tuple[BlockEdge, ...]:
    """The states of a run, in order; none if they were not measured.

    Raises:
        UsageError: a malformed line other than a torn last one.
    """
    path = folder / DEVICE
    return tuple(read_records(path, BlockEdge)) if path.is_file() else ()


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
