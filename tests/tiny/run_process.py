"""``specbench run`` in a process of its own, to be killed, interrupted or resumed from outside.

A test that has to find a run in the middle of something lets it come to a :class:`Gate`: how fast
the machine is, and what else it does, then changes nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from transformers import LlamaConfig

from specbench_kangaroo.record.writer import read_run
from specbench_methods.kangaroo.adapter import write_untrained

from .bench import SAVED, WORDS, save_model, save_questions

PATIENCE_S = 900  # far more than a machine takes that does other things, too
EACH = 4  # generations of a question: two turns, two methods
KEY = ["entry", "question_id", "turn", "repeat"]

# A command line whose generations, or whose workers' questions, come to a gate.  The worker's class
# is one of the program and not of a module, so that Ray sends it to the actors as it is.
GATED = """
import os, sys, time
from pathlib import Path
from specbench_kangaroo.cli.main import main
from specbench_kangaroo.bench import runner
from specbench_kangaroo.bench.workers import worker

gate, left = Path(sys.argv[1]), int(sys.argv[2])
generate = runner.generate

def come_to_the_gate():
    global left
    left -= 1
    if left == -1:
        (gate / str(os.getpid())).touch()
        while not (gate / "open").exists():
            time.sleep(0.01)

def gated(*arguments, **options):
    if "at_most" not in options:  # else it is the warm-up
        come_to_the_gate()
    return generate(*arguments, **options)

class Worker(worker.Worker):
    def answer(self, unit):
        come_to_the_gate()
        return super().answer(unit)

runner.generate, worker.Worker = gated, Worker
main(sys.argv[3:])
"""


@dataclass(frozen=True, slots=True)
class Gate:
    """Where a run's processes wait until the test opens it; then they never wait again.

    Attributes:
        folder: of the gate alone.
        after: so many generations pass, or so many questions of each worker.
    """

    folder: Path
    after: int

    def wait_for(self, process: subprocess.Popen[bytes], count: int = 1) -> list[int]:
        """The ids of the processes that stand at the gate, as soon as they are ``count``."""
        deadline_s = time.monotonic() + PATIENCE_S
        while len(found := [int(path.name) for path in self.folder.iterdir()]) < count:
            assert process.poll() is None, f"the run ended early: {process.communicate()[1]!r}"
            assert time.monotonic() < deadline_s, "the run does not come so far"
            time.sleep(0.01)
        return found

    def open(self) -> None:
        """Let all pass."""
        (self.folder / "open").touch()


def small_run(folder: Path, *, questions: int, new_tokens: int = 16) -> list[str]:
    """The command line of a run in which Kangaroo drafts, of :data:`EACH` answers a question."""
    model, adapter = save_model(folder), folder / "adapter.safetensors"
    write_untrained(LlamaConfig(**SAVED), adapter, exit_layer=1, vocabulary_size=len(WORDS))
    asked = save_questions(folder / "questions.jsonl", count=questions)
    return [
        *("run", "--model", str(model), "--questions", str(asked)),
        *("--method", "kangaroo", "--option", f"kangaroo.adapter={adapter}"),
        *("--option", "kangaroo.threshold=0.02", "--max-new-tokens", str(new_tokens)),
        *("--device", "cpu"),
    ]


def start(arguments: list[str], gate: Gate | None = None) -> subprocess.Popen[bytes]:
    """The run, under way; with ``gate`` it comes there."""
    program = ["-m", "specbench_kangaroo.cli.main"]
    if gate is not None:
        gate.folder.mkdir()
        program = ["-c", GATED, str(gate.folder), str(gate.after)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # a run is resumed only with as many
    }
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_signals,  # noqa: PLW1509 (it only resets a signal)
    )


def hear_signals() -> None:
    """A test run in the background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def generations_of(folder: Path) -> pd.DataFrame:
    """Those of the folder, none of them twice, all with the steps that made their tokens."""
    run = read_run(folder)
    assert not run.generations.duplicated(KEY).any(), "a generation was recorded twice"
    emitted = run.steps.groupby(KEY)["emitted"].sum()
    made = run.generations.set_index(KEY)["new_tokens"]
    lost = made[made != 1 + emitted.reindex(made.index, fill_value=0)]
    assert lost.empty, f"steps are missing: {lost}"
    return run.generations
