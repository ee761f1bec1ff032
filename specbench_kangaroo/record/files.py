"""Files of a run folder are written whole or not at all, and a disk's refusal is one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import ModuleType

from specbench_kangaroo.record.errors import StorageError, UsageError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: no advisory locks
    fcntl = None

_HINTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the largest size of a file (ulimit -f)",
    errno.EROFS: "make the disk writable",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.ENOENT: "put the folder back",
}
_NO_LOCKS_HERE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Around whatever writes into a run folder.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
        hint = _HINTS.get(error.errno or 0, "see to the disk")
        raise StorageError(f"cannot write {folder}: {reason}; {hint}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to, which then takes its place atomically.

    If that fails, ``path`` stays as it was and nothing else is left behind.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        # Before the name is given: a power cut must not leave an empty file under it.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes a file of a run folder whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    with storing(path.parent), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _opened(path: Path) -> FileIO:
    return path.open("ab", buffering=0)


class LineFile:
    """A file that lines are appended to: each whole or not at all, and none after one that failed.

    Unbuffered, so that nothing of a line that failed can follow later.

    Args:
        path: of the file; it is made if there is none.
        locked: nobody else may open it so until it is closed or the process dies.  Where there are
            no locks (Windows, some network folders), another writer is noticed at the next line.

    Raises:
        UsageError: somebody else has locked it.
    """

    def __init__(self, path: Path, *, locked: bool = False) -> None:
        self.path = path
        self.failed = False
        self._file = _opened(path)
        self._end: int | None = (
            None  # known from the first line on: until then others may repair it
        )
        if locked:
            self._lock()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                return
            self._file.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise UsageError(
                f"{self.path.parent} is being written by another process; wait for it, "
                "or give another --output"
            ) from None

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._file.closed

    def append(self, line: bytes) -> None:
        """Adds a line; it has left this process when this returns.

        Raises:
            StorageError: the disk refuses, now or earlier, or another process writes here too.
        """
        with storing(self.path.parent):
            start = self._checked_end()
            self._write(line, start)
        self._end = start + len(line)

    def _checked_end(self) -> int:
        folder, state = self.path.parent, os.fstat(self._file.fileno())
        if self.failed:
            raise StorageError(f"cannot write {folder}: an earlier line failed; see to the disk")
        if state.st_nlink == 0 or self._end not in (None, state.st_size):
            self.failed = True
            what = "removed" if state.st_nlink == 0 else "changed"
            raise StorageError(
                f"cannot write {folder}: another process has {what} {self.path.name}; "
                "let only one write"
            )
        return state.st_size

    def _write(self, line: bytes, start: int) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except BaseException:
            self.failed = True
            with suppress(OSError):  # what cannot be cut off stays last, and readers drop it
                self._file.truncate(start)
            raise

    def close(self) -> None:
        """Ends the lock."""
        self._file.close()

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
