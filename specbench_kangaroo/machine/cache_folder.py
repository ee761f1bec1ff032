"""The cache folder, and folders in it that are made once however many processes ask."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import filelock
import platformdirs
from rich.console import Console

from specbench_kangaroo.record.errors import UsageError

CACHE_VARIABLE = "SPECBENCH_CACHE"
_STAMP = "source.sha256"


def cache_folder() -> Path:
    """Where downloads and conversions are kept; the variable SPECBENCH_CACHE overrides it."""
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override).expanduser()
    return Path(platformdirs.user_cache_dir("specbench-kangaroo", appauthor=False))


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered(kind: str, key: str, answer: Callable[[], str]) -> str:
    """A small text kept in the cache folder: ``answer()`` when its key is asked for first.

    No other process ever reads half of it; where ``answer`` raises, nothing is kept.

    Raises:
        UsageError: the cache folder cannot be written.
    """
    path = cache_folder() / kind / hashlib.sha256(key.encode()).hexdigest()[:32]
    if path.exists():
        return path.read_text()
    text = answer()
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text)
        scratch.replace(path)
    except OSError as error:
        raise _cannot_write(path.parent, error) from error
    return text


def is_published(target: Path, *, stamp: str) -> bool:
    """Whether ``target`` is a finished folder made from the source with this stamp."""
    try:
        return (target / _STAMP).read_text() == stamp
    except OSError:
        return False


def publish(target: Path, *, stamp: str, fill: Callable[[Path], None]) -> Path:
    """Make the folder ``target`` with ``fill(folder)``, unless it is there with this stamp.

    ``fill`` writes into a folder beside the target, which takes the target's name when it is
    complete: no reader ever sees half of it.  Of two processes the second waits for the first.

    Raises:
        UsageError: the cache folder cannot be written; and whatever ``fill`` raises.
    """
    if is_published(target, stamp=stamp):
        return target
    with _lock(target.with_name(f"{target.name}.lock")):
        if is_published(target, stamp=stamp):
            return target
        for leftover in target.parent.glob(f".{target.name}-*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as work:
            staged = Path(work) / target.name
            staged.mkdir()
            fill(staged)
            (staged / _STAMP).write_text(stamp)
            shutil.rmtree(target, ignore_errors=True)
            staged.replace(target)
    return target


def stderr_console() -> Console:
    """Progress goes to standard error, so that standard output stays a document."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _lock(path: Path) -> AbstractContextManager[object]:
    """The lock at ``path``, held until the end of a ``with`` statement."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            return lock.acquire(blocking=False)
        except filelock.Timeout:
            waiting = f"Waiting for another process that prepares {path.stem} …"
            with stderr_console().status(waiting):
                return lock.acquire()
    except OSError as error:
        raise _cannot_write(path.parent, error) from error


def _cannot_write(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot write the cache folder {folder}: {error.strerror}; "
        f"{CACHE_VARIABLE} names another one"
    )
