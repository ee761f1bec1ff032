"""Which answers of two runs are compared with each other, and what those add up to.

An answer is matched with the other run's answer of the same entry to the same prompt.  A later
turn continues the baseline entry's earlier answers, so where those have changed it has another
prompt, and its answers say nothing about the entry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from specbench_kangaroo.record.schema import COMPLETE, Status
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.stats.totals import KEY, PROMPT, paired, per_generation, per_question

MISSING = "missing"  # the status of an answer that the candidate does not have


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """Two runs on what both were asked.

    ``answers`` has a row per answer of the baseline run: its key, ``status``, ``error`` and
    ``output_ids`` with the suffixes ``_before`` and ``_after``, ``same_prompt``, and ``usable`` if
    both runs have it without an error.  ``sums`` are each run's usable ones with the sums of their
    steps.
    """

    runs: tuple[Run, Run]  # the baseline and the candidate
    entries: tuple[str, ...]  # those of both, in the baseline run's order
    prompts: int
    answers: pd.DataFrame
    sums: tuple[pd.DataFrame, pd.DataFrame]

    @property
    def baseline(self) -> Run:
        """The run that sets what is expected."""
        return self.runs[0]

    def answers_of(self, entry: str) -> pd.DataFrame:
        """The rows of ``answers`` that are the entry's."""
        return self.answers[self.answers["entry"] == entry]

    def questions(self, entry: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Sums by question in the baseline run and in the candidate, over the same questions."""
        before, after = (
            per_question(paired(sums, entry=entry, baseline=run.manifest.baseline))
            for run, sums in zip(self.runs, self.sums, strict=True)
        )
        return before, after


def asked(run: Run) -> pd.MultiIndex:
    """The prompts of a run; of an unfinished one, those that every entry has come to."""
    entries = run.generations.groupby(PROMPT)["entry"].nunique()
    if run.manifest.status != COMPLETE:
        entries = entries[entries == len(run.manifest.labels)]
    return pd.MultiIndex.from_frame(entries.reset_index()[PROMPT])


def match(baseline: Run, candidate: Run) -> Matched:
    """Pairs the answers of two runs on the prompts and entries that both have."""
    others = set(candidate.manifest.labels)
    entries = tuple(name for name in baseline.manifest.labels if name in others)
    prompts = asked(baseline).intersection(asked(candidate)).to_frame(index=False)
    answers = _answers(baseline, candidate, entries, prompts)
    runs = baseline, candidate
    before, after = (
        per_generation(restricted(run, answers.loc[answers["usable"], KEY])) for run in runs
    )
    return Matched(
        runs=runs, entries=entries, prompts=len(prompts), answers=answers, sums=(before, after)
    )


def restricted(run: Run, keys: pd.DataFrame) -> Run:
    """The run as if it had only the answers that ``keys`` names."""
    return replace(
        run,
        generations=run.generations.merge(keys, on=KEY),
        steps=run.steps.merge(keys, on=KEY),
        judgements=run.judgements.merge(keys, on=KEY),
    )


def _answers(
    baseline: Run, candidate: Run, entries: tuple[str, ...], prompts: pd.DataFrame
) -> pd.DataFrame:
    before, after = (
        run.generations[[*KEY, "status", "error", "output_ids"]] for run in (baseline, candidate)
    )
    among = before[before["entry"].isin(entries)].merge(prompts, on=PROMPT)
    answers = among.merge(after, on=KEY, how="left", suffixes=("_before", "_after"))
    answers["status_after"] = answers["status_after"].fillna(MISSING)
    ok = (answers[["status_before", "status_after"]] == Status.OK.value).all(axis=1)
    answers["same_prompt"] = _same_prompts(answers, baseline, candidate)
    answers["usable"] = ok & answers["same_prompt"]
    return answers


def _same_prompts(answers: pd.DataFrame, baseline: Run, candidate: Run) -> pd.Series[bool]:
    """For each answer, whether the baseline entry answered its earlier turns alike in both runs."""
    before, after = (
        run.generations[run.generations["entry"] == run.manifest.baseline].set_index(PROMPT)["text"]
        for run in (baseline, candidate)
    )
    before, after = before.align(after)
    changed = before.index[before != after].to_frame(index=False)
    text = ["question_id", "repeat"]
    first = changed.groupby(text)["turn"].min().rename("first_changed")
    # Where none has changed it is NaN, which nothing is greater than.
    return ~(answers["turn"] > answers.join(first, on=text)["first_changed"])
