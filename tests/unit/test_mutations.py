"""Mutated run folders: every command gives its figures or one line, and changes nothing by it.

What a mutation does follows from its number; a failure names the number and the command.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.manifest import read_manifest
from specbench_kangaroo.record.writer import RunWriter, read_run
from tests.command import call
from tests.unit.drafting import make_answer, make_drafting_run
from tests.unit.mutations import CHANGES, mutate
from tests.unit.runs import make_run

if not hasattr(os, "mkfifo"):
    pytest.skip("needs pipes and alarms", allow_module_level=True)
resource = pytest.importorskip("resource")

EACH = 50  # mutations of each folder
HERE = Path(__file__).parent
RECORDED = ("run", "run-2", "run-3", "run-4")
MADE = ("made", "turns", "drafts", "begun", "few")
REFERENCE = HERE.parents[1] / "results" / "reference" / "cpu-entries"
BASES = (*MADE, *RECORDED, REFERENCE.name)
PATIENCE_S = 60  # a command takes a tenth of a second; one that waits for a pipe takes for ever
ROOM = 2 << 30  # bytes that a command may take at most
DRAWN = 60  # every so manieth mutation is drawn, too, which takes seconds

Command = tuple[str | Path, ...]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of every schema version, by name."""
    root, rng = tmp_path_factory.mktemp("bases"), random.Random(3)
    for name in RECORDED:
        shutil.copytree(HERE / "golden" / name, root / name)
    shutil.copytree(
        REFERENCE, root / REFERENCE.name, ignore=shutil.ignore_patterns("*.png", "*.svg", "s*.json")
    )
    make_run(root / "made")
    make_run(root / "turns", turns=2, repeats=2, spread=0.1)
    make_run(root / "begun", status="interrupted")
    make_run(root / "few", tasks=("qa",), questions_per_task=1)
    make_drafting_run(root / "drafts", [make_answer(rng, length=9) for _ in range(6)])
    return {name: root / name for name in BASES}


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """A command that hangs or takes all memory fails."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"a command took {PATIENCE_S} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, limits[1]))
    before = signal.signal(signal.SIGALRM, hangs)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def commands_on(number: int, run: Path, whole: Path, output: Path) -> list[Command]:
    """What a mutation is tried on: the commands take turns, with all their formats."""
    commands: list[Command] = [
        ("report", run, "--details", "--published"),
        ("report", whole, run, run, "--sessions"),
        *(("report", run, "--format", name) for name in ("markdown", "latex", "csv", "json")),
        ("compare", whole, run, "--timing"),
        ("compare", run, whole, "--format", "markdown"),
        ("compare", run, run, "--format", "junit"),
        ("export", run, "--output", output / "export"),
        ("tune", run, "--output", output / "tune.txt"),
    ]
    drawn: list[Command] = [
        ("report", run, "--format", "html"),
        ("plot", run, "--output", output / "figures", "--format", "svg"),
    ]
    turn = number // len(CHANGES)
    return [commands[turn % len(commands)], *([drawn[turn % 2]] if number % DRAWN == 0 else ())]


def contents(folder: Path) -> dict[str, bytes | int]:
    """All that lies in a folder: what is in files, and the kind of everything else."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if stat.S_ISREG(path.lstat().st_mode)
        else stat.S_IFMT(path.lstat().st_mode)
        for path in sorted(folder.rglob("*"))
    }


def try_command(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a command, which may refuse its folder."""
    signal.alarm(PATIENCE_S)
    status = call(*command)
    signal.alarm(0)
    told = capsys.readouterr()
    allowed = (0, 1, 2) if command[0] == "compare" else (0, 2)
    assert status in allowed
    assert "Traceback" not in told.err
    if status == 2:
        assert told.err.startswith("error: ")
        assert told.err.count("\n") == 1, f"an error is one line: {told.err!r}"
        assert len(told.err) < 1500, "nobody reads so long a line"


def try_resuming(folder: Path, whole: Path) -> None:
    """Resumes the run as the one that it was, which keeps every line that it has."""
    path = folder / "generations.jsonl"
    before = path.read_bytes() if path.is_file() else b""
    signal.alarm(PATIENCE_S)
    try:
        with RunWriter.resume(folder, read_manifest(whole)):
            pass
        read_run(folder)
    except UsageError as error:
        told, kept = str(error), before  # to the last byte: it was refused
    else:
        told, kept = "", before[: before.rfind(b"\n") + 1]
    signal.alarm(0)
    assert "\n" not in told, f"an error is one line: {told}"
    after = path.read_bytes() if path.is_file() else b""
    assert after.startswith(kept), "lines that the run had are gone"


@contextmanager
def told_of(number: int, kind: str, command: Sequence[object]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"mutation {number} ({kind}), specbench {' '.join(map(str, command))}")
        raise


@pytest.mark.parametrize("base", BASES)
def test_a_mutated_run_gives_figures_or_one_line(
    bases: dict[str, Path], base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, output = bases[base], tmp_path / "output"
    output.mkdir()
    first = EACH * BASES.index(base)
    for number in range(first, first + EACH):
        place = tmp_path / f"{number}"
        run = shutil.copytree(whole, place / "run")
        kind = mutate(run, number, list(bases.values()))
        before = contents(place)
        for command in commands_on(number, run, whole, output):
            with told_of(number, kind, command):
                try_command(command, capsys)
        assert contents(place) == before, f"mutation {number}: a command changed what it read"
        with told_of(number, kind, ("run", "--resume", run)):
            try_resuming(run, whole)
        shutil.rmtree(place)
