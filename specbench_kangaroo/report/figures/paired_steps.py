"""The steps of each entry on the prompts that both it and the baseline answered without an error.

The same prompts as every report is on, found without a row of Python per step: a run may have
millions of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from specbench_kangaroo.record.schema import Status
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.report.figures.clustered import Ints
from specbench_kangaroo.stats.bootstrap import Floats


@dataclass(frozen=True, slots=True, eq=False)
class PairedSteps:
    """One entry's answers to paired prompts; S steps, A answers, K questions.

    Attributes:
        generations: the answers, A of the run's rows.
        answer_question: (A,) the number of each answer's question, below ``questions``.
        steps: all steps of the run.
        rows: (S,) which of them are of these answers.
        question: (S,) the number of each one's question.
        questions: K, the same for all entries of a run.
    """

    generations: pd.DataFrame
    answer_question: Ints
    steps: pd.DataFrame
    rows: Ints
    question: Ints
    questions: int

    def column(self, name: str) -> Floats:
        """(S,) a column of the steps, as numbers."""
        values: Floats = self.steps[name].to_numpy()[self.rows].astype(np.float64)
        return values

    @property
    def has_branches(self) -> bool:
        """Whether any draft was a tree and not a chain."""
        return bool((self.column("nodes") > self.column("drafted") + 1).any())

    def confidences(self) -> tuple[Floats, Ints]:
        """All confidences, step after step, and how many each step has: (T,) and (S,)."""
        table = pa.Table.from_pandas(self.steps[["confidence"]], preserve_index=False)
        taken = table["confidence"].take(pa.array(self.rows))
        lengths = pc.fill_null(pc.list_value_length(taken), 0)
        return pc.list_flatten(taken).to_numpy(), lengths.to_numpy().astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Prompts:
    """Numbers for questions and prompts, small enough to index arrays with."""

    questions: pd.Index
    turns: int
    repeats: int

    @classmethod
    def of(cls, generations: pd.DataFrame) -> _Prompts:
        return cls(
            questions=pd.Index(generations["question_id"].unique()),
            turns=int(generations["turn"].max()) + 1,
            repeats=int(generations["repeat"].max()) + 1,
        )

    @property
    def count(self) -> int:
        return len(self.questions) * self.turns * self.repeats

    def question(self, frame: pd.DataFrame) -> Ints:
        return self.questions.get_indexer(pd.Index(frame["question_id"]))

    def prompt(self, frame: pd.DataFrame, question: Ints) -> Ints:
        turn, repeat = frame["turn"].to_numpy(), frame["repeat"].to_numpy()
        number: Ints = (question * self.turns + turn) * self.repeats + repeat
        return number


def paired_steps(run: Run) -> dict[str, PairedSteps]:
    """By entry, the baseline first; an entry that no prompt could be paired for is absent."""
    generations, steps = run.generations, run.steps
    usable = generations[generations["status"] == Status.OK.value]
    if usable.empty:
        return {}
    prompts = _Prompts.of(generations)
    answer_question, step_question = prompts.question(usable), prompts.question(steps)
    answer_prompt = prompts.prompt(usable, answer_question)
    step_prompt = prompts.prompt(steps, step_question)
    numbers, names = pd.factorize(steps["entry"])
    of_baseline = (usable["entry"] == run.manifest.baseline).to_numpy()
    by_baseline = _marked(answer_prompt[of_baseline], prompts.count)
    found = {}
    for entry in run.manifest.labels:
        ours = (usable["entry"] == entry).to_numpy() & by_baseline[answer_prompt]
        if not ours.any():
            continue
        number = names.get_loc(entry) if entry in names else -1
        paired = _marked(answer_prompt[ours], prompts.count)
        rows = np.flatnonzero((numbers == number) & paired[step_prompt])
        found[entry] = PairedSteps(
            generations=usable[ours],
            answer_question=answer_question[ours],
            steps=steps,
            rows=rows,
            question=step_question[rows],
            questions=len(prompts.questions),
        )
    return found


def _marked(numbers: Ints, count: int) -> np.ndarray:
    marks = np.zeros(count, dtype=bool)
    marks[numbers] = True
    return marks
