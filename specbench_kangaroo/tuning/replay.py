"""The steps that other settings would have taken through the answers of a logged run.

The replay is exact where the log knows the positions that a step needs.  Elsewhere it guesses: an
unknown position is a hit, and an unknown confidence that of the drafted token before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from specbench_kangaroo.tuning.draft_log import Bools, DraftLog, Ints


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
    found: list[tuple[Ints, Ints]] = []
    while len(roots):
        found.append((answer, roots))
        roots = roots + advance[roots]
        going = roots < log.ends[answer]
        answer, roots = answer[going], roots[going]
    if not found:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    answers = np.concatenate([item[0] for item in found])
    visited = np.concatenate([item[1] for item in found])
    order = visited.argsort()
    return answers[order], visited[order]
