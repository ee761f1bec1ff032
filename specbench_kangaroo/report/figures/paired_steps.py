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
from numpy.typing import ArrayLike

from specbench_kangaroo.record.schema import Status
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.report.figures.clustered import Ints
from specbench_kangaroo.stats.intervals import Floats
from specbench_kangaroo.stats.totals import PROMPT


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


def paired_steps(run: Run) -> dict[str, PairedSteps]:
    """By entry, the baseline first; an entry that no prompt could be paired for is absent."""
    answers, steps = run.generations, run.steps
    both = pd.concat([answers[PROMPT], steps[PROMPT]])
    prompt, step_prompt = _split(both.groupby(PROMPT).ngroup(), len(answers))
    numbers, known = pd.factorize(both["question_id"])
    question, step_question = _split(numbers, len(answers))
    usable = answers["status"] == Status.OK.value
    of_baseline = prompt[usable & (answers["entry"] == run.manifest.baseline)]
    step_entry, names = pd.factorize(steps["entry"])
    found = {}
    for entry in run.manifest.labels:
        ours = (usable & (answers["entry"] == entry)).to_numpy() & np.isin(prompt, of_baseline)
        if not ours.any():
            continue
        number = names.get_loc(entry) if entry in names else -1
        rows = np.flatnonzero((step_entry == number) & np.isin(step_prompt, prompt[ours]))
        found[entry] = PairedSteps(
            generations=answers[ours],
            answer_question=question[ours],
            steps=steps,
            rows=rows,
            question=step_question[rows],
            questions=len(known),
        )
    return found


def _split(numbers: ArrayLike, answers: int) -> list[Ints]:
    """Numbers of answers, and of steps behind them."""
    return np.split(np.asarray(numbers), [answers])
