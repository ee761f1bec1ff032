"""The gates that hold on any machine: errors, tokens, acceptance, losslessness.

A gate asks whether the candidate is worse than the baseline run by more than a tolerance; being
better never fails.  None of these depends on how fast a machine is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from specbench_kangaroo.gate.gates import Bound, Gate, Tolerances, decided
from specbench_kangaroo.gate.pairs import MISSING, Matched, restricted
from specbench_kangaroo.record.schema import Lossless, Status
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.stats.bootstrap import Floats
from specbench_kangaroo.stats.metrics import METRICS, acceptance_at
from specbench_kangaroo.stats.sampling_check import check_sampling
from specbench_kangaroo.stats.totals import KEY


def deterministic_gates(matched: Matched, tolerances: Tolerances) -> Iterator[Gate]:
    """Every gate of every entry, but those that do not apply to it."""
    for entry in matched.entries:
        yield _errors(matched, entry)
        usable = matched.answers_of(entry)["usable"]
        if usable.any():
            yield _tokens(matched, entry, tolerances.tokens)
        yield from _acceptance(matched, entry, tolerances.acceptance)
        yield from _lossless(matched, entry)


def _errors(matched: Matched, entry: str) -> Gate:
    answers = matched.answers_of(entry)
    ok = Status.OK.value
    lost = answers[(answers["status_before"] == ok) & (answers["status_after"] != ok)]
    detail = "no answer lost"
    if len(lost):
        first = lost.iloc[0]
        reason = first["status_after"] if first["status_after"] == MISSING else first["error_after"]
        reason = " ".join(str(reason).split())  # a report has one line for it
        detail = f"{len(lost)} of {len(answers)} answers lost; the first: {_place(first)}: {reason}"
    return decided("errors", entry, None, len(lost), Bound.AT_MOST, 0, detail)


def _tokens(matched: Matched, entry: str, tolerance: float) -> Gate:
    answers = matched.answers_of(entry)
    answers = answers[answers["usable"]]
    before, after = list(answers["output_ids_before"]), list(answers["output_ids_after"])
    changed = [i for i in range(len(answers)) if list(before[i]) != list(after[i])]
    detail = f"{len(changed)} of {len(answers)} answers differ"
    if changed:
        i = changed[0]
        detail += (
            f"; the first: {_place(answers.iloc[i])}, from token {_split(before[i], after[i])} on"
            f" ({len(before[i])} tokens, now {len(after[i])})"
        )
    share = len(changed) / len(answers)
    return decided("tokens", entry, None, share, Bound.AT_MOST, tolerance, detail)


def _acceptance(matched: Matched, entry: str, tolerance: float) -> Iterator[Gate]:
    """The mean, and the position that has lost most; none for an entry that did not draft."""
    before, after = (_means(sums) for sums in matched.questions(entry))
    if not (before.get("drafted", 0.0) > 0 and after["steps"] > 0):
        return
    name = "mean_accepted_tokens"
    mean, now = (float(METRICS[name].ratio.of(means)) for means in (before, after))
    limit = mean * (1 - tolerance)
    change = f"{100 * (now / mean - 1):+.1f} %"
    yield decided(name, entry, mean, now, Bound.AT_LEAST, limit, change)
    old, new = _marginals(before), _marginals(after)
    new += [0.0] * (len(old) - len(new))
    worst = max(range(len(old)), key=lambda i: old[i] - new[i])
    name, limit = "acceptance_by_position", max(old[worst] - tolerance, 0.0)
    detail = f"steps that accept {worst + 1} or more, the worst of {len(old)} positions"
    yield decided(name, entry, old[worst], new[worst], Bound.AT_LEAST, limit, detail)


def _means(questions: pd.DataFrame) -> dict[str, Floats]:
    """The mean over questions of every column; empty without questions."""
    if questions.empty:
        return {}
    numbers = questions.select_dtypes("number")
    return {str(name): np.asarray(numbers[name].mean()) for name in numbers.columns}


def _marginals(means: dict[str, Floats]) -> list[float]:
    """The share of steps that accept at least 1, 2, … tokens, as far as the entry drafts."""
    return [float(marginal.of(means)) for marginal, _ in acceptance_at(means)]


def _lossless(matched: Matched, entry: str) -> Iterator[Gate]:
    """None for the baseline entry, nor for one that was lossy by choice in the baseline run."""
    manifest = matched.baseline.manifest
    record = manifest.entries.get(entry)
    if entry == manifest.baseline or (record is not None and record.lossy):
        return
    sampled = any(run.manifest.sampled for run in _runs(matched))
    gate = (_sampled if sampled else _greedy)(matched, entry)
    if gate is not None:
        yield gate


def _greedy(matched: Matched, entry: str) -> Gate | None:
    """Counts violations; an answer that was judged before and is not now counts as one."""
    answers = matched.answers_of(entry)
    before, after = (run.judgements.merge(answers[KEY], on=KEY) for run in _runs(matched))
    if before.empty and after.empty:
        return None
    allowed, found = _violations(before), _violations(after)
    judged = before[KEY].merge(answers.loc[answers["usable"], KEY], on=KEY)
    unjudged = len(judged) - len(judged.merge(after[KEY], on=KEY))
    detail = f"{found} of {len(after)} answers violate it"
    if unjudged:
        detail += f", and {unjudged} were not judged"
    return decided("lossless", entry, allowed, found + unjudged, Bound.AT_MOST, allowed, detail)


def _sampled(matched: Matched, entry: str) -> Gate | None:
    """Sampled answers have no verdicts: the alarm of the test of token frequencies stands in."""
    keys = matched.answers.loc[matched.answers["usable"], KEY]
    before, after = (check_sampling(restricted(run, keys), entry) for run in _runs(matched))
    if before is None or after is None:
        return None
    detail = f"token frequencies differ from the baseline entry's with p = {after.p_value:.2g}"
    allowed = int(before.alarm)
    return decided("lossless", entry, allowed, int(after.alarm), Bound.AT_MOST, allowed, detail)


def _runs(matched: Matched) -> tuple[Run, Run]:
    return matched.baseline, matched.candidate


def _violations(judgements: pd.DataFrame) -> int:
    return int((judgements["verdict"] == Lossless.VIOLATION.value).sum())


def _place(answer: pd.Series[Any]) -> str:
    repeat = f", repeat {answer['repeat']}" if answer["repeat"] else ""
    return f"question {answer['question_id']}, turn {answer['turn']}{repeat}"


def _split(before: Sequence[int], after: Sequence[int]) -> int:
    """The position of the first token that differs; the shorter one's end if none does."""
    pairs = enumerate(zip(before, after, strict=False))
    return next((i for i, (old, new) in pairs if old != new), min(len(before), len(after)))
