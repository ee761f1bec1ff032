"""Answers whose every draft is known, and the steps that any setting takes through them.

The steps are made one token at a time, as a method's ``propose`` makes them, so that the replay,
which does it all at once from a log, can be compared with them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from specbench_kangaroo.record.schema import EntryRecord, ExitReason, StepRecord
from specbench_kangaroo.record.writer import RunWriter
from tests.changes import replace
from tests.unit.runs import TTFT_MS, make_generation, make_manifest, make_step

ALLOWED = 40  # new tokens at most
DEEPEST = 12


@dataclass(frozen=True)
class Token:
    """What the draft says of a text position, and what it would say after it if that is wrong."""

    confidence: float
    hit: bool
    path: tuple[float, ...]
    path_eos: int  # which token of the wrong path is EOS, the miss itself being 0; far off: none


@dataclass(frozen=True)
class Answer:
    """Tokens by position; the first is the prefill's.  One shorter than ALLOWED ends with EOS."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Costs:
    """Milliseconds."""

    draft_step: float = 0.0
    draft_token: float = 1.0
    verify_row: float = 0.2
    verify_step: float = 9.8
    accept: float = 0.5
    rest: float = 0.1


def make_answer(rng: random.Random, *, length: int | None = None, hits: float = 0.6) -> Answer:
    def token() -> Token:
        hit = rng.random() < hits
        confidence = rng.betavariate(4, 2) if hit else rng.betavariate(2, 3)
        path = tuple(rng.betavariate(2, 3) for _ in range(DEEPEST))
        return Token(confidence, hit, path, rng.choice([0, 1, 3, *[99] * 12]))

    count = rng.choice([1, 2, 3, 17, 30, ALLOWED - 1, ALLOWED]) if length is None else length
    return Answer(tuple(token() for _ in range(count)))


def decode(answer: Answer, steps: int, threshold: float, costs: Costs) -> list[StepRecord]:
    """The steps of a real run with these settings."""
    records: list[StepRecord] = []
    root, last = 0, len(answer.tokens) - 1
    while root < last:
        record = _step(answer, root, steps, threshold)
        drafted = record.drafted
        records.append(
            replace(
                record,
                step=len(records),
                draft_ms=costs.draft_step + costs.draft_token * drafted,
                verify_ms=costs.verify_step + costs.verify_row * (1 + drafted),
                accept_ms=costs.accept,
            )
        )
        root += record.emitted
    return records


def _step(answer: Answer, root: int, steps: int, threshold: float) -> StepRecord:
    budget, last = ALLOWED - root - 2, len(answer.tokens) - 1
    most = min(steps, budget)
    reason = ExitReason.MAX_STEPS if most == steps else ExitReason.BUDGET
    confidence: list[float] = []
    miss, is_eos = None, False
    while len(confidence) < most:
        if confidence and confidence[-1] < threshold:
            reason = ExitReason.THRESHOLD
            break
        if is_eos:
            reason = ExitReason.EOS
            break
        position = root + len(confidence) + 1
        if miss is None:
            token = answer.tokens[position]
            confidence.append(token.confidence)
            is_eos = token.hit and position == last and last + 1 < ALLOWED
            if not token.hit:
                miss, is_eos = position, token.path_eos == 0
        else:
            wrong = answer.tokens[miss]
            confidence.append(wrong.path[position - miss - 1])
            is_eos = wrong.path_eos == position - miss
    accepted = len(confidence) if miss is None else miss - root - 1
    return make_step(
        drafted=len(confidence),
        accepted=accepted,
        emitted=min(accepted + 1, last - root),
        exit_reason=reason,
        confidence=tuple(confidence),
        context_length=10 + root,
    )


def as_frame(logged: Iterable[Sequence[StepRecord]]) -> pd.DataFrame:
    """Steps of several answers as a run's frame has them."""
    return pd.DataFrame(
        [
            {
                "question_id": number,
                "turn": 0,
                "repeat": 0,
                **{name: getattr(step, name) for name in StepRecord.__slots__},
                "exit_reason": step.exit_reason.value,
                "confidence": list(step.confidence),
            }
            for number, steps in enumerate(logged)
            for step in steps
        ]
    )


def make_drafting_run(
    folder: Path,
    answers: Sequence[Answer],
    *,
    steps: int = DEEPEST,
    threshold: float = 0.0,
    costs: Costs = Costs(),
    tasks: Sequence[str] = ("mt_bench", "qa"),
    method: str = "kangaroo",
    **manifest: Any,
) -> Path:
    """Writes the run of one setting; an answer is a question, and the tasks take turns.

    A vanilla step verifies one row, without a draft.
    """
    options = {"steps": steps, "threshold": threshold, "tree_width": 1}
    settings = {"max_new_tokens": ALLOWED, "temperature": 0.0, "dtype": "float32"}
    record = make_manifest(("vanilla",), **({"settings": settings} | manifest))
    entry = EntryRecord(method, options)
    record = replace(record, entries={**record.entries, method: entry})
    plain = replace(costs, draft_step=0.0, draft_token=0.0)
    with RunWriter.create(folder, record) as writer:
        for number, answer in enumerate(answers):
            for name, of, most in (("vanilla", plain, 0), (method, costs, steps)):
                taken = decode(answer, most, threshold, of)
                spent = sum(step.draft_ms + step.verify_ms + step.accept_ms for step in taken)
                generation = make_generation(
                    name,
                    number,
                    steps=taken,
                    task=tasks[number % len(tasks)],
                    total_ms=TTFT_MS + spent + costs.rest * len(taken),
                )
                writer.append(generation, taken)
    return folder
