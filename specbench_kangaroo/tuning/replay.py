"""The steps that other settings would have taken through the answers of a logged run.

A greedy draft of a text position follows from the text before it, not from where its step began.  A
step from the root at position p that drafted d tokens and had a of them accepted thus tells of
p+1 .. p+a that the draft hits them, and of p+a+1 that it misses, each with its confidence.  After a
miss the draft goes on along a path of its own, which depends on the miss alone.  Only the token
after a fully accepted draft was drafted by no one; such a position is unknown.

The replay is exact where the log knows the positions that a step needs.  Elsewhere it guesses: an
unknown position is a hit, and an unknown confidence that of the drafted token before it.

So it is with every draft that is computed as the text itself would be.  One that reads states of
its own guess instead, as of a target with layers left out, depends on the root a little, and a
replay of it is an approximation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from specbench_kangaroo.record.schema import ExitReason
from specbench_kangaroo.stats.intervals import Floats
from specbench_kangaroo.stats.totals import PROMPT

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# The draft itself went no further, and would go no further from any other root.
_FINAL = (ExitReason.EOS.value, ExitReason.NO_DRAFT.value)


@dataclass(frozen=True, slots=True, eq=False)
class DraftLog:
    """The answers one after the other, a position per token; P positions, A answers, γ the deepest.

    Attributes:
        starts: (A,) where each answer's first token is, which the prefill gave.
        ends: (A,) where its last token is.
        limits: (P,) the last position that the budget of the answer lets a draft reach.
        hit: (P,) whether the draft of this position is the text's own token; an unknown one is
            taken for a hit, as the γ before it were, with the confidence of the one before it.
        dead: (P,) whether nothing is drafted after this position, as after EOS.
        paths: (P, γ) the confidence of this position's draft and, if it misses, of what was drafted
            after it; NaN where the log ends.
        lengths: (P,) how many of those are known; 0 for a position that no step drafted.
        closed: (P,) whether a miss's path ended by itself, not by the logged γ or budget.
    """

    starts: Ints
    ends: Ints
    limits: Ints
    hit: Bools
    dead: Bools
    paths: Floats
    lengths: Ints
    closed: Bools

    @property
    def deepest(self) -> int:
        """The most tokens that any step drafted."""
        return int(self.paths.shape[1])

    @property
    def known(self) -> Bools:
        """(P,) whether any step drafted this position."""
        return self.lengths > 0

    @property
    def unknown_share(self) -> float:
        """Unknown positions among those that a draft could reach."""
        index = np.arange(len(self.hit))
        reachable = index <= self.limits
        reachable[self.starts] = False
        reachable[1:] &= ~self.dead[:-1]
        return float((reachable & ~self.known).sum() / max(reachable.sum(), 1))


def draft_log(answers: pd.DataFrame, steps: pd.DataFrame, *, max_new_tokens: int) -> DraftLog:
    """The log of one method's drafts.

    Args:
        answers: a row per answer, in the order that the log is to have; columns ``PROMPT`` and
            ``new_tokens``.
        steps: the method's steps, those of other answers too.
        max_new_tokens: of the run; an answer that the context cut shorter shows it by its budget.
    """
    counts = answers["new_tokens"].to_numpy(dtype=np.int64)
    ends = counts.cumsum() - 1
    starts = ends - counts + 1
    placed = _placed(answers, steps, starts)
    cut = placed[placed["exit_reason"] == ExitReason.BUDGET.value]
    limits = starts + max_new_tokens - 2  # the last is a bonus token, which no draft reaches
    limits[cut["answer"]] = cut["root"] + cut["drafted"]
    size = int(counts.sum())
    log = DraftLog(
        starts=starts,
        ends=ends,
        limits=np.repeat(limits, counts),
        hit=np.ones(size, dtype=bool),
        dead=np.isin(np.arange(size), ends),
        paths=np.full((size, int(steps["drafted"].max())), np.nan),
        lengths=np.zeros(size, dtype=np.int64),
        closed=np.zeros(size, dtype=bool),
    )
    _enter(log, placed)
    return log


def _placed(answers: pd.DataFrame, steps: pd.DataFrame, starts: Ints) -> pd.DataFrame:
    """The answers' steps in order, each with its ``answer`` by number and the position ``root``."""
    numbered = answers[PROMPT].assign(answer=np.arange(len(answers)))
    placed = steps.merge(numbered, on=PROMPT).sort_values(["answer", "step"], ignore_index=True)
    before = placed.groupby("answer")["emitted"].cumsum() - placed["emitted"]
    return placed.assign(root=starts[placed["answer"]] + before)


def _enter(log: DraftLog, placed: pd.DataFrame) -> None:
    """Write down what the steps tell of the positions after their roots."""
    names = ("root", "drafted", "accepted", "emitted")
    root, drafted, accepted, emitted = (placed[name].to_numpy() for name in names)
    reason = placed["exit_reason"]
    after = root + 1 + accepted
    told = np.array([1.0, *chain.from_iterable(placed["confidence"].tolist())])
    # Of every drafted token: its step, and its place in the draft from 0 on.
    step = np.repeat(np.arange(len(placed)), drafted)
    place = np.arange(len(step)) - np.repeat(drafted.cumsum() - drafted, drafted)
    at = root[step] + 1 + np.minimum(place, accepted[step])
    log.paths[at, np.maximum(place - accepted[step], 0)] = told[1:]
    np.add.at(log.lengths, at, 1)
    missed = accepted < drafted
    log.hit[after[missed]] = False
    log.closed[after[missed]] = reason[missed].isin(_FINAL)
    log.dead[(root + drafted)[~missed & (reason == ExitReason.NO_DRAFT.value)]] = True
    # After a draft that was accepted whole and did not end the text: as its last token was, if any.
    unknown = ~missed & (emitted > accepted)
    last = told[np.where(drafted > 0, drafted.cumsum(), 0)]
    log.paths[after[unknown], 0] = last[unknown]


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """The steps of one setting, answer by answer and in order; S of them.

    Attributes:
        answer: (S,) which answer the step belongs to.
        root: (S,) the token that it starts from, counted from the answer's first.
        drafted: (S,) tokens drafted.
        accepted: (S,) of them accepted, the bonus token left out.
        guessed: (S,) whether the step rests on something that the log does not know.
    """

    answer: Ints
    root: Ints
    drafted: Ints
    accepted: Ints
    guessed: Bools

    def steps_by_depth(self, answers: int, deepest: int) -> Ints:
        """How many steps of each answer drafted 0, 1, … ``deepest`` tokens: (A, deepest + 1)."""
        cell = self.answer * (deepest + 1) + self.drafted
        counts = np.bincount(cell, minlength=answers * (deepest + 1))
        return counts.reshape(answers, deepest + 1).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Stops:
    """What one η does at each position: (P,) each.

    ``first`` is the first position from here on at which a draft misses, or after which it stops;
    ``extra`` counts the tokens drafted after a miss here; ``open`` says that the log ends first.
    """

    first: Ints
    extra: Ints
    open: Bools


def walks(log: DraftLog, steps: Sequence[int], threshold: float) -> Iterator[Walk]:
    """The walk of every γ of ``steps`` with the same η ``threshold``.

    Args:
        log: of a run with η = 0.
        steps: every γ from 1 up to ``log.deepest``; above it the log knows nothing.
        threshold: any η; above 1 one token is drafted a step.
    """
    stops = _stops(log, threshold)
    unknown = (~log.known).cumsum()
    for most in steps:
        yield _walk(log, stops, unknown, most)


def _stops(log: DraftLog, threshold: float) -> _Stops:
    index = np.arange(len(log.hit))
    below = log.paths < threshold  # (P, γ), False where the log ends
    stops = np.where(~log.hit | below[:, 0] | log.dead, index, index[-1])
    first = np.minimum.accumulate(stops[::-1])[::-1]
    ended = below.any(axis=1)
    unending = ~ended & ~log.closed
    extra = np.where(ended, below.argmax(axis=1), log.lengths - 1)
    return _Stops(first, np.where(unending, log.deepest, extra), unending)


def _walk(log: DraftLog, stops: _Stops, unknown: Ints, most: int) -> Walk:
    """One setting: a step from every position first, then those that the answers come by."""
    root = np.arange(len(log.hit))
    last = np.maximum(np.minimum(root + most, log.limits), root)  # that γ and the budget allow
    last[log.dead] = root[log.dead]
    end = stops.first[np.minimum(root + 1, root[-1])]  # where the draft stops by itself
    cut = end > last
    missed = ~cut & ~log.hit[end]
    accepted = np.where(cut, last, end - missed) - root
    drafted = np.where(missed, np.minimum(end + stops.extra[end], last), np.minimum(end, last))
    drafted -= root
    off_log = missed & stops.open[end] & (drafted > end - root + log.lengths[end] - 1)
    guessed = (unknown[np.minimum(end, last)] > unknown[root]) | off_log
    answer, visited = _visited(log, accepted + 1)
    return Walk(
        answer=answer,
        root=visited - log.starts[answer],
        drafted=drafted[visited],
        accepted=accepted[visited],
        guessed=guessed[visited],
    )


def _visited(log: DraftLog, advance: Ints) -> tuple[Ints, Ints]:
    """The roots of the walk with their answers, in the order of the text; all answers in step."""
    answer = np.flatnonzero(log.starts < log.ends)
    roots = log.starts[answer]
    found = [(answer[:0], roots[:0])]
    while len(roots):
        found.append((answer, roots))
        roots = roots + advance[roots]
        going = roots < log.ends[answer]
        answer, roots = answer[going], roots[going]
    answers, visited = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = visited.argsort()
    return answers[order], visited[order]
