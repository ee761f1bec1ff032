"""What a run's drafts say of every position of its answers, whichever step they come from.

A greedy draft of a text position follows from the text before it, not from where its step began.  A
step from the root at position p that drafted d tokens and had a of them accepted thus tells of
p+1 .. p+a that the draft hits them, and of p+a+1 that it misses, each with its confidence.  After a
miss the draft goes on along a path of its own, which depends on the miss alone.  Only the token
after a fully accepted draft was drafted by no one; such a position is unknown.

So it is with every draft that is computed as the text itself would be.  One that reads states of
its own guess instead, as of a target with layers left out, depends on the root a little, and a
replay of it is an approximation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from specbench_kangaroo.record.schema import ExitReason
from specbench_kangaroo.stats.bootstrap import Floats
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
        hit: (P,) whether the draft of this position is the text's own token.
        known: (P,) whether any step drafted this position; an unknown one is taken for a hit, as
            the γ before it were, with the confidence of the one before it.
        dead: (P,) whether nothing is drafted after this position, as after EOS.
        paths: (P, γ) the confidence of this position's draft and, if it misses, of what was drafted
            after it; NaN where the log ends.
        lengths: (P,) how many of those are known.
        closed: (P,) whether a miss's path ended by itself, not by the logged γ or budget.
    """

    starts: Ints
    ends: Ints
    limits: Ints
    hit: Bools
    known: Bools
    dead: Bools
    paths: Floats
    lengths: Ints
    closed: Bools

    @property
    def deepest(self) -> int:
        """The most tokens that any step drafted."""
        return int(self.paths.shape[1])

    @property
    def unknown_share(self) -> float:
        """Unknown positions among those that a draft could reach."""
        index = np.arange(len(self.hit))
        reachable = index <= self.limits
        reachable[self.starts] = False
        reachable[1:] &= ~self.dead[:-1]
        return float((reachable & ~self.known).sum() / max(reachable.sum(), 1))


@dataclass(frozen=True, slots=True)
class _Step:
    drafted: int
    accepted: int
    emitted: int
    exit_reason: str
    confidence: Sequence[float]


def draft_log(answers: pd.DataFrame, steps: pd.DataFrame, *, max_new_tokens: int) -> DraftLog:
    """The log of one method's drafts.

    Args:
        answers: a row per answer, in the order that the log is to have; columns ``PROMPT`` and
            ``new_tokens``.
        steps: the method's steps, those of other answers too.
        max_new_tokens: of the run; an answer that the context cut shorter shows it by its budget.
    """
    counts = answers["new_tokens"].to_numpy(dtype=np.int64)
    starts = np.concatenate(([0], counts.cumsum()[:-1])).astype(np.int64)
    log = _blank(starts, counts, max_new_tokens, deepest=int(steps["drafted"].max()))
    by_answer = _by_answer(steps)
    for number, key in enumerate(answers[PROMPT].itertuples(index=False, name=None)):
        root = int(starts[number])
        for step in by_answer.get(key, ()):
            _enter(log, step, root)
            if step.exit_reason == ExitReason.BUDGET.value:
                log.limits[starts[number] : log.ends[number] + 1] = root + step.drafted
            root += step.emitted
    return log


def _blank(starts: Ints, counts: Ints, max_new_tokens: int, *, deepest: int) -> DraftLog:
    size, ends = int(counts.sum()), starts + counts - 1
    dead = np.zeros(size, dtype=bool)
    dead[ends] = True
    return DraftLog(
        starts=starts,
        ends=ends,
        # The last token is always a bonus token, so no draft reaches it.
        limits=np.repeat(starts + max_new_tokens - 2, counts),
        hit=np.ones(size, dtype=bool),
        known=np.zeros(size, dtype=bool),
        dead=dead,
        paths=np.full((size, deepest), np.nan),
        lengths=np.zeros(size, dtype=np.int64),
        closed=np.zeros(size, dtype=bool),
    )


def _by_answer(steps: pd.DataFrame) -> dict[tuple[Any, ...], list[_Step]]:
    columns = ["drafted", "accepted", "emitted", "exit_reason", "confidence"]
    return {
        key: list(_steps(part[columns]))
        for key, part in steps.sort_values([*PROMPT, "step"]).groupby(PROMPT, sort=False)
    }


def _steps(part: pd.DataFrame) -> Iterator[_Step]:
    # Lists first: to take a row out of a frame costs more than all that is done with it.
    for row in zip(*(part[name].tolist() for name in part.columns), strict=True):
        yield _Step(*row)


def _enter(log: DraftLog, step: _Step, root: int) -> None:
    """Write down what one step tells of the positions after its root."""
    after = root + 1 + step.accepted
    log.paths[root + 1 : after, 0] = step.confidence[: step.accepted]
    log.lengths[root + 1 : after] = 1
    log.known[root + 1 : after] = True
    if step.accepted < step.drafted:
        path = step.confidence[step.accepted :]
        log.paths[after, : len(path)] = path
        log.lengths[after] = len(path)
        log.hit[after] = False
        log.known[after] = True
        log.closed[after] = step.exit_reason in _FINAL
        return
    if step.exit_reason == ExitReason.NO_DRAFT.value:
        log.dead[root + step.drafted] = True
    if step.emitted > step.accepted:  # not if the draft ended the text
        log.paths[after, 0] = step.confidence[-1] if step.drafted else 1.0
