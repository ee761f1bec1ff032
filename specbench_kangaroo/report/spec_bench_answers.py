"""A run as Spec-Bench's own answer files, which its ``evaluation/speed.py`` reads.

Upstream's speedup is the mean over questions of tokens per second, divided by the same mean of
the baseline; on these files that is our ``speedup_specbench``.  Two things differ when upstream's
script itself reads them.  It counts the baseline's tokens again, from its text, and takes one off
each turn for the BOS that Vicuna's tokenizer adds; here all entries' token ids were counted.  And
it reads the first choice only, where ours sums over repeats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pandas as pd

from specbench_kangaroo.record.schema import Manifest, Status
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.stats.totals import KEY

Line = Mapping[str, Any]

_ID_LENGTH = 22  # of upstream's random ids


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """The answers of one entry: a line per question, in the order of their ids.

    ``left_out`` counts the entry's generations that failed and are in no line.
    """

    name: str
    lines: tuple[Line, ...]
    left_out: int


def answer_files(run: Run) -> dict[str, AnswerFile]:
    """The answer file of every entry of the run, the baseline's among them, by entry.

    A repeat is a choice, as upstream's ``num_choices`` are; turns of a choice are in order.  What
    failed is left out, down to single turns, so that ``turns`` may be shorter than the question.
    """
    steps = run.steps.sort_values([*KEY, "step"])
    lengths = (steps["accepted"] + 1).groupby([steps[name] for name in KEY]).agg(list)  # with bonus
    by_key = lengths.rename("accept_lengths").reset_index()  # pandas joins no empty index
    answers = run.generations.merge(by_key, on=KEY, how="left")
    return {
        name: _answer_file(run.manifest, name, answers[answers["entry"] == name])
        for name in run.manifest.labels
    }


def model_id(manifest: Manifest, entry: str) -> str:
    """Named as upstream's scripts name it: ``vicuna-7b-v1.3-vanilla-float16-temp-0.0``."""
    dtype, temperature = manifest.resolved.dtype, manifest.request.decoding.temperature
    parts = [PurePath(manifest.model).name, entry]
    if dtype is not None:
        parts.append(dtype)
    return "-".join([*parts, "temp", str(float(temperature))])


def _answer_file(manifest: Manifest, entry: str, generations: pd.DataFrame) -> AnswerFile:
    good = generations[generations["status"] == Status.OK.value]
    lines = tuple(
        _line(manifest, entry, question) for _, question in good.groupby("question_id", sort=True)
    )
    name = f"{model_id(manifest, entry)}.jsonl"
    return AnswerFile(name=name, lines=lines, left_out=len(generations) - len(good))


def _line(manifest: Manifest, entry: str, question: pd.DataFrame) -> Line:
    first = question.iloc[0]
    question_id = int(first["question_id"])
    # Upstream's id is random; the same run exported twice must give the same bytes.
    identity = f"{manifest.name}/{manifest.created}/{entry}/{question_id}"
    return {
        "question_id": question_id,
        "category": str(first["category"]),
        "answer_id": hashlib.sha256(identity.encode()).hexdigest()[:_ID_LENGTH],
        "model_id": model_id(manifest, entry),
        "choices": [
            _choice(repeat, turns) for repeat, turns in question.groupby("repeat", sort=True)
        ],
        "tstamp": manifest.started.timestamp(),
    }


def _choice(repeat: Any, turns: pd.DataFrame) -> dict[str, Any]:
    turns = turns.sort_values("turn")
    # An answer of one token has no step.
    lengths = [found if isinstance(found, list) else [] for found in turns["accept_lengths"]]
    return {
        "index": int(repeat),
        "turns": [text.strip() for text in turns["text"]],
        "decoding_steps": [len(steps) for steps in lengths],
        "new_tokens": [int(count) for count in turns["new_tokens"]],
        "wall_time": [float(total_ms) / 1000.0 for total_ms in turns["total_ms"]],
        "accept_lengths": [length for steps in lengths for length in steps],
    }
