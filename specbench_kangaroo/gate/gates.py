"""The gates: each asks of one entry whether the candidate is worse by more than a tolerance.

Being better never fails.  Errors, tokens, acceptance and losslessness are gated on any machine, as
they do not depend on its speed.  Times are paired by question, and an entry's speedup is compared
with its speedup in the baseline run, so that a machine that slows both entries alike changes
nothing; the baseline entry's own speed then shows an engine that slowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd

from specbench_kangaroo.gate.pairs import MISSING, Matched, restricted
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import Lossless, Status
from specbench_kangaroo.report.sheets import interval_text
from specbench_kangaroo.stats.intervals import Estimate, Floats, Ratio, estimates
from specbench_kangaroo.stats.metrics import METRICS, acceptance_at
from specbench_kangaroo.stats.sampling_check import check_sampling
from specbench_kangaroo.stats.totals import KEY

# A loss that is the tolerance itself holds, whichever way its last bit was rounded.
_ROUNDING = 1e-9
_LEAST_QUESTIONS = 2  # one gives no interval


class Bound(Enum):
    """On which side of its limit a value has to stay."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """By how much a candidate may be worse."""

    acceptance: float = 0.02  # relative for the mean, absolute for the share of steps by position
    tokens: float = 0.0  # share of answers
    speedup: float = 0.05  # relative; the whole interval must lie beyond it


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One question about one entry, answered.

    ``baseline`` is None where the value itself is already a comparison.  What is measured in time
    has a ``change``: the value over the baseline's with its interval, the whole of which must lie
    beyond what is allowed for the gate to fail.
    """

    name: str
    entry: str
    value: float
    limit: float
    detail: str
    bound: Bound = Bound.AT_MOST
    baseline: float | None = None
    change: Estimate | None = None

    @property
    def passed(self) -> bool:
        """Whether the value, or the best that its interval leaves open, is within the limit."""
        best = self.value
        if self.change is not None:
            if self.change.high is None or self.baseline is None:
                return True
            best = self.change.high * self.baseline
        room = best - self.limit if self.bound is Bound.AT_LEAST else self.limit - best
        return room >= -_ROUNDING


def gates_of(matched: Matched, tolerances: Tolerances, *, timing: bool) -> Iterator[Gate]:
    """Every gate of every entry, but those that do not apply to it.

    Raises:
        UsageError: there are too few questions for an interval of a time.
    """
    for entry in matched.entries:
        yield _errors(matched, entry)
        yield from _tokens(matched, entry, tolerances.tokens)
        yield from _acceptance(matched, entry, tolerances.acceptance)
        yield from _lossless(matched, entry)
        if timing:
            yield from speed_gates(matched, entry, tolerances.speedup)


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
    return Gate(name="errors", entry=entry, value=len(lost), limit=0, detail=detail)


def _tokens(matched: Matched, entry: str, tolerance: float) -> Iterator[Gate]:
    """None for an entry without a usable answer."""
    answers = matched.answers_of(entry)
    answers = answers[answers["usable"]]
    if answers.empty:
        return
    pairs = zip(answers["output_ids_before"], answers["output_ids_after"], strict=True)
    splits = [_split(list(before), list(after)) for before, after in pairs]
    changed = [i for i, split in enumerate(splits) if split is not None]
    detail = f"{len(changed)} of {len(answers)} answers differ"
    if changed:
        first = answers.iloc[changed[0]]
        before, after = (len(first[f"output_ids_{side}"]) for side in ("before", "after"))
        detail += (
            f"; the first: {_place(first)}, from token {splits[changed[0]]} on"
            f" ({before} tokens, now {after})"
        )
    share = len(changed) / len(answers)
    yield Gate(name="tokens", entry=entry, value=share, limit=tolerance, detail=detail)


def _acceptance(matched: Matched, entry: str, tolerance: float) -> Iterator[Gate]:
    """The mean, and the position that has lost most; none for an entry that did not draft."""
    before, after = (_means(sums) for sums in matched.questions(entry))
    if not (before["drafted"] > 0 and after["steps"] > 0):
        return
    name = "mean_accepted_tokens"
    mean, now = (float(METRICS[name].ratio.of(means)) for means in (before, after))
    yield Gate(
        name=name,
        entry=entry,
        baseline=mean,
        value=now,
        bound=Bound.AT_LEAST,
        limit=mean * (1 - tolerance),
        detail=f"{100 * (now / mean - 1):+.1f} %",
    )
    old, new = _marginals(before), _marginals(after)
    new += [0.0] * (len(old) - len(new))
    worst = max(range(len(old)), key=lambda i: old[i] - new[i])
    yield Gate(
        name="acceptance_by_position",
        entry=entry,
        baseline=old[worst],
        value=new[worst],
        bound=Bound.AT_LEAST,
        limit=max(old[worst] - tolerance, 0.0),
        detail=f"steps that accept {worst + 1} or more, the worst of {len(old)} positions",
    )


def _means(questions: pd.DataFrame) -> dict[str, Floats]:
    """The mean over questions of every column; NaN without questions."""
    means = questions.mean(numeric_only=True)
    return {str(name): np.asarray(value) for name, value in means.items()}


def _marginals(means: dict[str, Floats]) -> list[float]:
    """The share of steps that accept at least 1, 2, … tokens, as far as the entry drafts."""
    return [float(marginal.of(means)) for marginal, _ in acceptance_at(means)]


def _lossless(matched: Matched, entry: str) -> Iterator[Gate]:
    """None for the baseline entry, nor for one that was lossy by choice in the baseline run."""
    manifest = matched.baseline.manifest
    record = manifest.entries.get(entry)
    if entry == manifest.baseline or (record is not None and record.lossy):
        return
    sampled = any(run.manifest.sampled for run in matched.runs)
    yield from (_sampled if sampled else _greedy)(matched, entry)


def _greedy(matched: Matched, entry: str) -> Iterator[Gate]:
    """Counts violations; an answer that was judged before and is not now counts as one."""
    answers = matched.answers_of(entry)
    before, after = (run.judgements.merge(answers[KEY], on=KEY) for run in matched.runs)
    if before.empty and after.empty:
        return
    allowed, found = (
        int((judged["verdict"] == Lossless.VIOLATION.value).sum()) for judged in (before, after)
    )
    judged = before[KEY].merge(answers.loc[answers["usable"], KEY], on=KEY)
    unjudged = len(judged) - len(judged.merge(after[KEY], on=KEY))
    detail = f"{found} of {len(after)} answers violate it"
    if unjudged:
        detail += f", and {unjudged} were not judged"
    yield _violations(entry, found + unjudged, allowed, detail)


def _sampled(matched: Matched, entry: str) -> Iterator[Gate]:
    """Sampled answers have no verdicts: the alarm of the test of token frequencies stands in."""
    keys = matched.answers.loc[matched.answers["usable"], KEY]
    before, after = (check_sampling(restricted(run, keys), entry) for run in matched.runs)
    if before is not None and after is not None:
        detail = f"token frequencies differ from the baseline entry's with p = {after.p_value:.2g}"
        yield _violations(entry, int(after.alarm), int(before.alarm), detail)


def _violations(entry: str, found: int, allowed: int, detail: str) -> Gate:
    return Gate(
        name="lossless", entry=entry, baseline=allowed, value=found, limit=allowed, detail=detail
    )


def speed_gates(matched: Matched, entry: str, tolerance: float) -> Iterator[Gate]:
    """The gate of an entry's speed; none for an entry that has no answer in common.

    Raises:
        UsageError: there are too few questions for an interval, or times that are none.
    """
    before, after = (sums.set_index("question_id") for sums in matched.questions(entry))
    questions = before.add_suffix("_before").join(after.add_suffix("_after"), how="inner")
    if before.empty:
        return
    if len(before) < _LEAST_QUESTIONS:
        raise UsageError(
            f"--timing needs answers of {entry} to {_LEAST_QUESTIONS} questions at least, "
            "and both runs have them to one only; ask more questions, or leave --timing out"
        )
    name = "tokens_per_second" if entry == matched.baseline.manifest.baseline else "speedup"
    found = _sides(METRICS[name].ratio, questions)
    if not {"before", "after", "change"} <= found.keys():
        raise UsageError(
            f"--timing needs times above 0 of {entry} and of the entry that it is compared with; "
            "restore them, or leave --timing out"
        )
    yield Gate(
        name=name,
        entry=entry,
        baseline=found["before"].value,
        value=found["after"].value,
        bound=Bound.AT_LEAST,
        limit=(1 - tolerance) * found["before"].value,
        detail=f"{interval_text(found['change'], '.3f')} times the baseline's, "
        f"over {len(questions)} questions",
        change=found["change"],
    )


def _sides(ratio: Ratio, questions: pd.DataFrame) -> dict[str, Estimate]:
    """The ratio ``before`` and ``after``, and the ``change``: the one divided by the other.

    A scale cancels out of the change, and a constant would not; the metrics of speed have none.
    """
    sides = {
        side: Ratio(
            tuple(f"{name}_{side}" for name in ratio.over),
            tuple(f"{name}_{side}" for name in ratio.under),
            scale=ratio.scale,
        )
        for side in ("before", "after")
    }
    before, after = sides["before"], sides["after"]
    change = Ratio(after.over + before.under, after.under + before.over)
    columns = {
        name: questions[name].to_numpy(dtype=np.float64) for name in (*change.over, *change.under)
    }
    return estimates({**sides, "change": change}, columns)


def _place(answer: pd.Series[Any]) -> str:
    repeat = f", repeat {answer['repeat']}" if answer["repeat"] else ""
    return f"question {answer['question_id']}, turn {answer['turn']}{repeat}"


def _split(before: Sequence[int], after: Sequence[int]) -> int | None:
    """The position of the first token that differs, or of the shorter one's end; None if equal."""
    if before == after:
        return None
    pairs = enumerate(zip(before, after, strict=False))
    return next((i for i, (old, new) in pairs if old != new), min(len(before), len(after)))
