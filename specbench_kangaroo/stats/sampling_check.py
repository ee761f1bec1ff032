"""Do the answers of a sampled run come from the baseline's distribution?

Greedy outputs are compared token by token; sampled ones can only be compared as samples.  This is
a two-sample permutation test of token frequencies, a method against the baseline on the same
prompts.

Why no chi-square table: tokens within an answer depend on each other (a word that came once comes
again), so counts vary far more than those of independent draws, and the table would cry wolf.
Whole answers are what is exchangeable: under losslessness a method's answer and the baseline's
answer to a prompt are drawn from the same distribution, so swapping the two changes nothing.  A
permutation swaps them at each prompt with probability 1/2; the p-value is the share of permutations
whose statistic is at least the observed one.  Answers are counted as they are, not per length: a
length is part of an answer and is swapped with it, and a method that ends its answers too early is
caught as well.

Limits:
    - It sees the frequencies of tokens over all prompts, not their order.  A method may fail in
      ways that leave those alone, or that favour other tokens at each prompt and so cancel out.
    - A large p-value is no proof: what can be seen grows with the number of prompts.  Below
      :data:`LEAST_PROMPTS` there are too few swaps for an alarm at all.
    - The test is exact if the two answers to a prompt are drawn independently.  In a run they start
      from the same seed, and a second turn continues the baseline's first answer.  Answers then
      depend on each other, but differences of counts still have mean 0, are uncorrelated with those
      of the turns before, and are swapped with the variance that they have, coupled or not.  So the
      test holds for many prompts, by the central limit theorem; with ten questions of two turns it
      was seen to reject 6 to 7.5 % at a level of 5 %, in a simulation that links turns closely.
    - Each method is tested for itself: of a thousand lossless ones, one raises an alarm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specbench_kangaroo.record.schema import Status
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.stats.totals import PROMPT

ALARM = 0.001  # a p-value below this says that a method is not lossless
LEAST_PROMPTS = 12  # n prompts can be swapped in 2^(n-1) ways that differ: 2048 for 12
PERMUTATIONS = 9_999
SEED = 20240701

# Tokens that all answers together hold less often than this are counted as one: each alone would
# add noise and no evidence.  The limit on columns bounds the time that a large run takes.
_RARE = 10
_MOST_COLUMNS = 1_000
_BATCH = 500  # permutations held at once: 2 MB of counts

Answers = Sequence[Sequence[int]]
Counts = NDArray[np.float32]  # whole numbers below 2^24, so that sums in any order are exact


@dataclass(frozen=True, slots=True)
class SamplingCheck:
    """Whether a method's sampled answers have the baseline's token frequencies."""

    p_value: float
    prompts: int
    tokens: int  # in the answers of both

    @property
    def alarm(self) -> bool:
        """A lossless method raises one in a thousand runs."""
        return self.p_value < ALARM


def check_sampling(run: Run, entry: str) -> SamplingCheck | None:
    """The entry's answers against the baseline's, on the prompts that both answered.

    None for a greedy run, for the baseline itself, and where there is no such prompt.
    """
    baseline = run.manifest.baseline
    if entry == baseline or not run.manifest.sampled:
        return None
    usable = run.generations[run.generations["status"] == Status.OK.value]
    usable = usable[["entry", *PROMPT, "output_ids"]]
    pairs = usable[usable["entry"] == entry].merge(
        usable[usable["entry"] == baseline], on=PROMPT, suffixes=("", "_of_baseline")
    )
    if pairs.empty:
        return None
    return compare_answers(list(pairs["output_ids"]), list(pairs["output_ids_of_baseline"]))


def compare_answers(
    ours: Answers, theirs: Answers, *, permutations: int = PERMUTATIONS, seed: int = SEED
) -> SamplingCheck:
    """Tests whether ``ours[i]`` and ``theirs[i]``, the answers to prompt i, are interchangeable.

    The statistic is Σ over tokens of (difference of counts)² / (sum of counts), as in a two-sample
    chi-square; only its distribution is taken from permutations.

    Args:
        ours: token ids of one method's answers.
        theirs: the other's, in the same order of prompts.
        permutations: p-values are multiples of 1 / (1 + permutations).
        seed: the same seed and answers give the same p-value.
    """
    tokens = sum(map(len, ours)) + sum(map(len, theirs))
    if not tokens:
        return SamplingCheck(p_value=1.0, prompts=len(ours), tokens=0)
    differences, sums = _count(ours, theirs)
    observed = _statistics(np.ones((1, len(ours)), dtype=np.float32), differences, sums)
    reached = sum(
        int((_statistics(signs, differences, sums) >= observed).sum())
        for signs in _swaps(len(ours), permutations, seed)
    )
    return SamplingCheck((1 + reached) / (1 + permutations), prompts=len(ours), tokens=tokens)


def _count(ours: Answers, theirs: Answers) -> tuple[Counts, Counts]:
    """Differences of counts (P, K) by prompt and token, and sums of counts (K,) over all prompts.

    Which tokens are pooled follows from the sums alone, which no swap changes.
    """
    answers = [*ours, *theirs]
    lengths = [len(answer) for answer in answers]
    ids = np.concatenate([np.asarray(answer, dtype=np.int64) for answer in answers])
    prompt = np.repeat(np.tile(np.arange(len(ours)), 2), lengths)
    sign = np.repeat([1.0, -1.0], [sum(lengths[: len(ours)]), sum(lengths[len(ours) :])])
    column = _columns(ids)
    width = int(column.max()) + 1
    flat = np.bincount(prompt * width + column, weights=sign, minlength=len(ours) * width)
    sums = np.bincount(column, minlength=width)
    return flat.reshape(-1, width).astype(np.float32), sums.astype(np.float32)


def _columns(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The column of each token: one per frequent token, and one for all the others."""
    _, kind, totals = np.unique(ids, return_inverse=True, return_counts=True)
    frequent = np.argsort(-totals, kind="stable")[:_MOST_COLUMNS]
    frequent = frequent[totals[frequent] >= _RARE]
    chosen = np.full(len(totals), len(frequent))
    chosen[frequent] = np.arange(len(frequent))
    columns: NDArray[np.int64] = chosen[kind]
    return columns


def _swaps(prompts: int, permutations: int, seed: int) -> Iterator[Counts]:
    """Random signs (B, P), batch by batch: -1 swaps the two answers to a prompt."""
    rng = np.random.default_rng(seed)
    for start in range(0, permutations, _BATCH):
        size = (min(_BATCH, permutations - start), prompts)
        yield (2 * rng.integers(0, 2, size=size, dtype=np.int8) - 1).astype(np.float32)


def _statistics(signs: Counts, differences: Counts, sums: Counts) -> NDArray[Any]:
    """The statistic (B,) of each row of signs (B, P)."""
    totals = signs @ differences  # (B, K)
    statistics: NDArray[Any] = (totals**2 / sums).sum(axis=1)
    return statistics
