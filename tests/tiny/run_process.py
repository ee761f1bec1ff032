"""``specbench run`` in a process of its own, to be killed, interrupted or resumed from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from transformers import LlamaConfig

from specbench_kangaroo.record.writer import read_run
from specbench_methods.parts.kangaroo_adapter import write_untrained

from .bench import SAVED, WORDS, save_model, save_questions

PATIENCE_S = 300
N_QUESTIONS = 8
EACH = 4  # generations of a question: two turns, two methods
KEY = ["entry", "question_id", "turn", "repeat"]


def run_of_seconds(
    folder: Path, *, questions: int = N_QUESTIONS, new_tokens: int = 96
) -> list[str]:
    """A run that takes seconds: long enough to be stopped in the middle."""
    model, adapter = save_model(folder), folder / "adapter.safetensors"
    write_untrained(LlamaConfig(**SAVED), adapter, exit_layer=1, vocabulary_size=len(WORDS))
    asked = save_questions(folder / "questions.jsonl", count=questions)
    return [
        *("run", "--model", str(model), "--questions", str(asked)),
        *("--method", "kangaroo", "--option", f"kangaroo.adapter={adapter}"),
        *("--option", "kangaroo.threshold=0.02", "--max-new-tokens", str(new_tokens)),
        *("--device", "cpu"),
    ]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # a run is resumed only with as many
    }
    return subprocess.Popen(
        [sys.executable, "-m", "specbench_kangaroo.cli.main", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_hear_signals,  # noqa: PLW1509 (it only resets a signal)
    )


def _hear_signals() -> None:
    """A test run in the background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_generations(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    generations, deadline_s = folder / "generations.jsonl", time.monotonic() + PATIENCE_S
    while not generations.exists() or generations.read_bytes().count(b"\n") < count:
        assert process.poll() is None, f"the run ended early: {process.communicate()[1]!r}"
        assert time.monotonic() < deadline_s, "the run makes no generations"
        time.sleep(0.01)


def finished(arguments: list[str]) -> tuple[int, str]:
    """The exit status and standard error of a run that nobody disturbs."""
    process = start(arguments)
    _, told = process.communicate(timeout=PATIENCE_S)
    return process.returncode, told.decode()


def generations_of(folder: Path) -> pd.DataFrame:
    """Those of the folder, none of them twice, all with the steps that made their tokens."""
    run = read_run(folder)
    assert not run.generations.duplicated(KEY).any(), "a generation was recorded twice"
    emitted = run.steps.groupby(KEY)["emitted"].sum()
    made = run.generations.set_index(KEY)["new_tokens"]
    lost = made[made != 1 + emitted.reindex(made.index, fill_value=0)]
    assert lost.empty, f"steps are missing: {lost}"
    return run.generations
