"""Runs that are killed at random moments and resumed by the command line: nothing lost or doubled.

Eight kills here; ``KILLS=100 pytest tests/tiny/test_kill.py`` makes a hundred.  Whatever a moment
hits, the same must hold, so no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from specbench_kangaroo.record.columns import GENERATIONS, read_copies
from specbench_kangaroo.record.manifest import MANIFEST, read_manifest
from specbench_kangaroo.record.reader import LOSSLESS
from specbench_kangaroo.record.writer import read_run

from .run_process import KEY, hear_signals, small_run

KILLS = int(os.environ.get("KILLS", "8"))
QUESTIONS = 3
ANSWERS = QUESTIONS * 2 * 3  # turns, entries
WAYS = {"KILL": (signal.SIGKILL,), "TERM": (signal.SIGTERM,), "INT": (signal.SIGINT,)}
WAYS["INT twice"] = (signal.SIGINT, signal.SIGINT)
INTERRUPTED = 130
TIMED = ["ttft_ms", "total_ms", "peak_rss_mb", "draft_ms", "verify_ms", "accept_ms", "logit_gap"]

# A process that has imported everything and runs each command line that it reads in a fork of
# itself: what every start waits for comes once.  A fork can be told to signal itself at its n-th
# access to the run folder, which hits moments that no clock hits.
NURSERY = """
import json, os, sys
import torch, transformers, pandas, scipy.stats, matplotlib.pyplot
from specbench_kangaroo.bench import runner, setup
from specbench_kangaroo.cli.main import main
from specbench_kangaroo.record import writer

torch.set_num_threads(1)
for line in sys.stdin:
    asked = json.loads(line)
    if child := os.fork():
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    told = os.open(asked["told"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(told, 1), os.dup2(told, 2)
    left = asked["access"]

    def count(event, details):
        global left
        if any(str(of).startswith(asked["folder"]) for of in details):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), asked["signal"])

    if left:
        sys.addaudithook(count)
    main(asked["arguments"])
"""


class Nursery:
    """The process that runs command lines in forks of itself.

    Attributes:
        told: the file with all that the last one said.
    """

    def __init__(self, folder: Path) -> None:
        self.told = folder / "told"
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=hear_signals,  # noqa: PLW1509 (it only resets a signal)
        )

    def call(
        self,
        arguments: Sequence[str],
        kill: Callable[[int], None] = lambda _: None,
        **itself: int | str,
    ) -> int:
        """The exit status of a command line; negative: of the signal that ended it.

        Args:
            arguments: of the command line.
            kill: is given its process, to end it.
            itself: the ``access`` to ``folder`` at which it sends itself the ``signal``.
        """
        asked = {"arguments": arguments, "told": str(self.told), "access": 0, **itself}
        to, of = self._process.stdin, self._process.stdout
        assert to is not None
        assert of is not None
        to.write(json.dumps(asked) + "\n")
        to.flush()
        kill(int(of.readline()))
        return int(of.readline())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


@pytest.fixture
def nursery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nursery]:
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    found = Nursery(tmp_path)
    yield found
    found.close()


def begin(arguments: Sequence[str], folder: Path) -> list[str]:
    """The command line that makes a run in ``folder``, or continues the one that is there."""
    if (folder / MANIFEST).exists():
        return ["run", "--resume", str(folder)]
    return [*arguments, "--output", str(folder)]


class Killer:
    """Ends runs at random moments, of the clock or of their accesses to the run folder."""

    def __init__(self, nursery: Nursery, whole_s: float) -> None:
        self._nursery, self._whole_s, self._rng = nursery, whole_s, random.Random(12)
        self.landed: Counter[str] = Counter()

    def kill(self, arguments: Sequence[str], folder: Path) -> int:
        """Runs a command line and ends it, unless it is quicker; returns its exit status."""
        way = list(WAYS)[self.landed.total() % len(WAYS)]
        itself: dict[str, int | str] = {}
        if self._rng.random() < 0.5:
            access = self._rng.randint(1, 40)
            itself = {"access": access, "folder": str(folder), "signal": WAYS[way][0]}

        def send(process: int) -> None:
            for number in WAYS[way][bool(itself) :]:
                time.sleep(self._rng.random() * self._whole_s)
                with suppress(ProcessLookupError):
                    os.kill(process, number)

        status = self._nursery.call(arguments, send, **itself)
        allowed = {0, INTERRUPTED, -WAYS[way][0]}
        told = self._nursery.told.read_text()
        assert status in allowed, f"after {way} ({itself}) it exited with {status}: {told}"
        of_its_own = told.partition("Exception ignored in")[
            0
        ]  # not what hits the interpreter's end
        assert "Traceback" not in of_its_own, f"after {way} ({itself}): {told}"
        self.landed[way] += status != 0
        return status


def made_by(folder: Path) -> list[pd.DataFrame]:
    """What a run found out, without what a clock says, in an order of its own."""
    run = read_run(folder)
    frames = []
    for frame, key in ((run.generations, KEY), (run.steps, [*KEY, "step"]), (run.judgements, KEY)):
        assert not frame.duplicated(key).any(), f"a record of {folder} is there twice"
        kept = frame.drop(columns=TIMED, errors="ignore")
        frames.append(kept.sort_values(key, ignore_index=True))
    return frames


def test_random_kills_lose_nothing_and_double_nothing(nursery: Nursery, tmp_path: Path) -> None:
    arguments = [*small_run(tmp_path, questions=QUESTIONS), "--method", "prompt_lookup"]
    assert nursery.call(begin(arguments, tmp_path / "warm")) == 0
    start_s = time.monotonic()
    assert nursery.call(begin(arguments, tmp_path / "whole")) == 0
    killer = Killer(nursery, time.monotonic() - start_s)
    whole = made_by(tmp_path / "whole")
    assert [len(whole[0]), len(whole[2])] == [ANSWERS, ANSWERS * 2 // 3]
    runs = 0
    while killer.landed.total() < KILLS:
        folder, runs = tmp_path / f"killed-{runs}", runs + 1
        complete_despite_kills(killer, nursery, arguments, folder)
        for found, expected in zip(made_by(folder), whole, strict=True):
            pd.testing.assert_frame_equal(found, expected)
        assert (folder / GENERATIONS).read_bytes().count(b"\n") == ANSWERS
        assert read_manifest(folder).status == "complete"
        assert read_copies(folder) is not None, "its Parquet files are not those of its lines"
        assert not list(folder.glob("*.tmp")), "something half written was left behind"
    print(f"{killer.landed} in {runs} runs")


def complete_despite_kills(
    killer: Killer, nursery: Nursery, arguments: Sequence[str], folder: Path
) -> None:
    """Kills a run and whatever resumes it, until it is complete or there were enough kills."""
    lines = {GENERATIONS: b"", LOSSLESS: b""}
    while killer.landed.total() < KILLS:
        status = killer.kill(begin(arguments, folder), folder)
        for name, before in lines.items():
            path = folder / name
            after = path.read_bytes() if path.exists() else b""
            assert after.startswith(before), f"lines of {name} that were finished have changed"
            lines[name] = after[: after.rfind(b"\n") + 1]
        if (folder / MANIFEST).exists():
            made_by(folder)
        if status == 0:
            return
    status = nursery.call(begin(arguments, folder))
    assert status == 0, nursery.told.read_text()
