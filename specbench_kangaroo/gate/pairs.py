"""Which answers of two runs stand against each other, and what those add up to.

An answer is matched with the other run's answer of the same entry to the same prompt.  A later
turn continues the baseline entry's earlier answers, so where those have changed it has another
prompt, and its answers say nothing about the entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

import pandas as pd

from specbench_kangaroo.record.schema import COMPLETE, Status
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.stats.totals import KEY, PROMPT, paired, per_generation, per_question

MISSING = "missing"  # the status of an answer that the candidate does not have

Prompt = tuple[int, ...]  # question, turn, repeat


@dataclass(frozen=True, slots=True)
class Matched:
    """Two runs on what both were asked.

    ``answers`` has a row per answer of the baseline run: its key, ``status``, ``error`` and
    ``output_ids`` with the suffixes ``_before`` and ``_after``, ``same_prompt``, and ``usable`` if
    both runs have it without an error.  ``before`` and ``after`` are the usable ones with the sums
    of their steps.
    """

    baseline: Run
    candidate: Run
    entries: tuple[str, ...]  # those of both, in the baseline run's order
    prompts: Set[Prompt]
    answers: pd.DataFrame
    before: pd.DataFrame
    after: pd.DataFrame

    def answers_of(self, entry: str) -> pd.DataFrame:
        """The rows of ``answers`` that are the entry's."""
        return self.answers[self.answers["entry"] == entry]

    def questions(self, entry: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Sums by question in the baseline run and in the candidate, over the same questions."""
        return (
            _question_sums(self.before, entry, self.baseline.manifest.baseline),
            _question_sums(self.after, entry, self.candidate.manifest.baseline),
        )


def asked(run: Run) -> frozenset[Prompt]:
    """The prompts of a run; of an unfinished one, those that every entry has come to."""
    entries = run.generations.groupby(PROMPT)["entry"].nunique()
    if run.manifest.status != COMPLETE:
        entries = entries[entries == len(run.manifest.labels)]
    return frozenset(_prompts(entries.reset_index()))


def match(baseline: Run, candidate: Run) -> Matched:
    """Sets two runs against each other on the prompts and entries that both have."""
    others = set(candidate.manifest.labels)
    entries = tuple(name for name in baseline.manifest.labels if name in others)
    prompts = asked(baseline) & asked(candidate)
    answers = _answers(baseline, candidate, entries, prompts)
    keys = answers.loc[answers["usable"], KEY]
    return Matched(
        baseline=baseline,
        candidate=candidate,
        entries=entries,
        prompts=prompts,
        answers=answers,
        before=per_generation(restricted(baseline, keys)),
        after=per_generation(restricted(candidate, keys)),
    )


def restricted(run: Run, keys: pd.DataFrame) -> Run:
    """The run as if it had only the answers that ``keys`` names."""
    return replace(
        run,
        generations=run.generations.merge(keys[KEY], on=KEY),
        steps=run.steps.merge(keys[KEY], on=KEY),
        judgements=run.judgements.merge(keys[KEY], on=KEY),
    )


def _answers(
    baseline: Run, candidate: Run, entries: tuple[str, ...], prompts: Set[Prompt]
) -> pd.DataFrame:
    columns = [*KEY, "status", "error", "output_ids"]
    before = baseline.generations[columns]
    among = pd.Series([prompt in prompts for prompt in _prompts(before)], index=before.index)
    before = before[among & before["entry"].isin(entries)]
    answers = before.merge(
        candidate.generations[columns], on=KEY, how="left", suffixes=("_before", "_after")
    )
    answers["status_after"] = answers["status_after"].fillna(MISSING)
    ok = (answers[["status_before", "status_after"]] == Status.OK.value).all(axis=1)
    same = _same_prompts(baseline, candidate, prompts)
    answers["same_prompt"] = [prompt in same for prompt in _prompts(answers)]
    answers["usable"] = ok & answers["same_prompt"]
    return answers


def _same_prompts(baseline: Run, candidate: Run, prompts: Set[Prompt]) -> set[Prompt]:
    """Those whose earlier turns the baseline entry answered alike in both runs."""
    before, after = _texts(baseline), _texts(candidate)
    return {
        (question, turn, repeat)
        for question, turn, repeat in prompts
        if all(
            before.get((question, earlier, repeat)) == after.get((question, earlier, repeat))
            for earlier in range(turn)
        )
    }


def _texts(run: Run) -> Mapping[Prompt, str]:
    """The baseline entry's answers, which later turns continue."""
    own = run.generations[run.generations["entry"] == run.manifest.baseline]
    return dict(zip(_prompts(own), own["text"], strict=True))


def _prompts(frame: pd.DataFrame) -> list[Prompt]:
    return [tuple(map(int, row)) for row in frame[PROMPT].to_numpy()]


def _question_sums(generations: pd.DataFrame, entry: str, baseline: str) -> pd.DataFrame:
    return per_question(paired(generations, entry=entry, baseline=baseline))
