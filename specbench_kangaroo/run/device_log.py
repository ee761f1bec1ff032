"""The device at the edges of a run's blocks: the lines of ``device.jsonl``.

A block is one prompt answered by all entries.  A clock that falls between two entries' answers
would make one of them slow for nothing; here is what a reader needs to see that it did not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from specbench_kangaroo.machine.nvml import Nvml
from specbench_kangaroo.record.files import LineFile, storing
from specbench_kangaroo.record.jsonl import as_line, drop_torn_line
from specbench_kangaroo.record.reader import DEVICE
from specbench_kangaroo.record.schema import BlockEdge
from specbench_kangaroo.run.schedule import Round


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
