"""Disks that are full, and files as somebody's editor or a power cut leaves them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from specbench_kangaroo.record import files as whole_writes
from specbench_kangaroo.record.writer import RunWriter


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let any file of this process grow past ``size`` bytes.

    Real refusals of real writes, pyarrow's too: what a full disk does, at a byte of our choice.
    """
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@dataclass
class Disk:
    """Where lines are appended to.

    Attributes:
        free: bytes until writing fails; None: as many as there are.
        error: what it then fails with.
        cuts: whether what was half written can at least be cut off again.
    """

    free: int | None = None
    error: int = errno.ENOSPC
    cuts: bool = True


class _FileOn(FileIO):
    disk: Disk

    def write(self, content: Any) -> int:
        free = self.disk.free
        if free is None:
            return super().write(content)
        if free == 0:
            raise OSError(self.disk.error, os.strerror(self.disk.error))
        written = super().write(bytes(content)[:free])
        self.disk.free = free - written
        return written

    def truncate(self, size: int | None = None) -> int:
        if not self.disk.cuts:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().truncate(size)


def leave(writer: RunWriter) -> None:
    """What the system does for a process that is gone: its files are closed, nothing is settled."""
    for file in (writer._lossless, writer._generations):
        file.close()


@contextmanager
def lines_on(disk: Disk) -> Iterator[None]:
    """Run folders that are opened meanwhile append their lines to ``disk``."""

    def opened(path: Path) -> FileIO:
        file = _FileOn(path, "ab")
        file.disk = disk
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_writes, "_opened", opened)
        yield
