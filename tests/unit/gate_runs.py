"""Pairs of runs for the regression gate: the same run twice, but for what a test changes.

Built on the answers of :mod:`tests.unit.runs`: 13 tokens each, vanilla in 140 ms, kangaroo in 88 ms
with 3, 1, 3 and 1 of four drafted tokens accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specbench_kangaroo.record.schema import Generation, Lossless, Status, StepRecord
from specbench_kangaroo.record.writer import Run, RunWriter, read_run
from tests.changes import replace
from tests.unit.runs import ACCEPTED, TASKS, make_generation, make_judgement, make_manifest
from tests.unit.runs import make_steps as steps_of

# The same 13 tokens in five steps: 7 / 5 accepted a step, where ACCEPTED has 8 / 4.
WORSE = (2, 1, 2, 1, 1)

Change = Callable[[Generation], Generation]


def make_gated(
    folder: Path,
    *,
    methods: Sequence[str] = ("vanilla", "kangaroo"),
    questions: int = 8,
    turns: int = 1,
    accepted: Sequence[int] = ACCEPTED,
    change: Change = lambda generation: generation,
    verdicts: Sequence[Lossless] = (),
    judged: bool = True,
    status: str = "complete",
    **manifest: Any,
) -> Path:
    """Writes a run and returns its folder.

    ``change`` is applied to every answer before it is written; ``verdicts`` are the first ones of
    the methods beside the baseline, all further ones are exact; ``manifest`` replaces fields of it.
    """
    given = list(verdicts)
    with RunWriter.create(folder, make_manifest(methods, **manifest)) as writer:
        for question in range(1, questions + 1):
            for turn in range(turns):
                for method in methods:
                    steps = steps_of(method, accepted=accepted)
                    task = TASKS[question % len(TASKS)]
                    answer = change(
                        make_generation(method, question, steps=steps, task=task, turn=turn)
                    )
                    if answer.status is Status.OK:
                        steps = cut(steps, answer.new_tokens)
                        answer = replace(answer, target_passes=1 + len(steps))
                    writer.append(answer, steps if answer.status is Status.OK else ())
                    if judged and method != "vanilla" and answer.status is Status.OK:
                        verdict = given.pop(0) if given else Lossless.EXACT
                        writer.judge(make_judgement(answer.key, verdict))
        writer.close(status)
    return folder


def cut(steps: Sequence[StepRecord], tokens: int) -> list[StepRecord]:
    """The steps as if EOS had ended the text with token number ``tokens``."""
    found, left = [], tokens - 1
    for step in steps:
        if left > 0:
            found.append(replace(step, emitted=min(step.emitted, left)))
        left -= step.emitted
    return found


def gated(folder: Path, **given: Any) -> Run:
    """:func:`make_gated`, read back."""
    return read_run(make_gated(folder, **given))


def slowed(*methods: str, by: float) -> Change:
    """Answers of ``methods`` take ``by`` times as long."""

    def change(answer: Generation) -> Generation:
        if answer.entry not in methods:
            return answer
        return replace(answer, ttft_ms=by * answer.ttft_ms, total_ms=by * answer.total_ms)

    return change


def at(method: str, question: int, *, turn: int | None = None, **changes: Any) -> Change:
    """The method's answers to one question, or to one turn of it, have other values."""

    def change(answer: Generation) -> Generation:
        here = (answer.entry, answer.question_id) == (method, question)
        return replace(answer, **changes) if here and turn in (None, answer.turn) else answer

    return change


def noisy(run: Run, *, spread: float, seed: int) -> Run:
    """Every answer's times stretched by a factor of its own, normal around 1."""
    rng = np.random.default_rng(seed)
    frame = run.generations
    factor = rng.normal(1.0, spread, len(frame))
    stretched = {name: frame[name] * factor for name in ("ttft_ms", "total_ms")}
    return replace(run, generations=frame.assign(**stretched))
