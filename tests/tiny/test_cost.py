"""What the harness costs beside the passes of the target: a dry run of Spec-Bench's size.

Times are the process's own processor time, which other processes on the machine do not stretch.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specbench_kangaroo.bench.questions import Question
from specbench_kangaroo.bench.runner import execute
from specbench_kangaroo.bench.setup import manifest
from specbench_kangaroo.engine.method import Draft, MethodOptions, StatelessMethod
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.writer import RunWriter, read_run
from tests.pace import slowness

from .bench import FAMILY, make_bench
from .models import VOCABULARY, target

QUESTIONS, WITH_TWO_TURNS = 480, 80  # Spec-Bench's
NEW_TOKENS = 12
LIMIT_MS = 1.0
ANSWER = 7  # the only token that the fake target ever predicts


class Wrong(StatelessMethod):
    """Drafts two tokens that are always rejected, so that every step emits one token."""

    max_rows = 3

    def propose(self, root: int, budget: int) -> Draft:
        rows = [root, *[ANSWER + 1, ANSWER + 2][:budget]]
        return Draft(TokenTree.chain(torch.tensor(rows)))


@pytest.fixture
def _free_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers and a head that cost next to nothing; all else of a pass stays the engine's."""
    target(FAMILY)  # made, checked and kept while its layers are real
    logits = torch.zeros(64, VOCABULARY, dtype=torch.float64)  # (T, V), T at most a prompt
    logits[:, ANSWER] = 1.0

    def output(model: Target, hidden: Tensor, *, last_alone: bool = False) -> TargetOutput:
        del model
        return TargetOutput(logits[: 1 if last_alone else len(hidden)], hidden)

    monkeypatch.setattr(Target, "_through", lambda model, hidden, *rest: hidden)
    monkeypatch.setattr(Target, "output", output)
    monkeypatch.setattr(Target, "predict", lambda model, hidden, *rest: output(model, hidden))


def spec_bench_like() -> list[Question]:
    return [
        Question(i, "writing", ("w5 w9 w14 w7", "w8 w8"))
        if i < WITH_TWO_TURNS
        else Question(i, "qa", ("w11 w6 w9",))
        for i in range(QUESTIONS)
    ]


@pytest.mark.usefixtures("_free_passes")
def test_a_run_of_480_questions_adds_under_a_millisecond_to_a_step(tmp_path: Path) -> None:
    bench = make_bench(
        {"wrong": Wrong(MethodOptions())}, questions=spec_bench_like(), max_new_tokens=NEW_TOKENS
    )
    writer = RunWriter.create(tmp_path / "run", manifest(bench, name="run", command="dry"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one would spin for the first, which is no work
    try:
        start_s = time.process_time()
        with writer:
            execute(bench, writer, on_finished=lambda _: None)
        spent_ms = 1e3 * (time.process_time() - start_s)
    finally:
        torch.set_num_threads(threads)
    run = read_run(tmp_path / "run")
    prompts = QUESTIONS + WITH_TWO_TURNS
    assert list(run.generations["error"].dropna()) == []
    assert len(run.generations) == 2 * prompts
    assert len(run.steps) == 2 * prompts * (NEW_TOKENS - 1), "one token a step after the first"
    assert len(run.judgements) == prompts
    step_ms = spent_ms / len(run.steps)
    print(f"{step_ms:.3f} ms of processor time a step, {len(run.steps)} steps")
    assert step_ms < LIMIT_MS * slowness(), (
        f"the harness takes {step_ms:.2f} ms a step besides the target: a step of a small model on "
        "a GPU takes a few; `python -m cProfile` on this test shows where it goes"
    )
