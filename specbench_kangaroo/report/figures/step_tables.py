"""What figures show of single steps: times by phase, confidence and acceptance, context lengths.

Each table has a row per point of a figure, with its interval and how much stands behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from specbench_kangaroo.report.figures.clustered import Ints, ratios, shares, sums
from specbench_kangaroo.report.figures.paired_steps import PairedSteps
from specbench_kangaroo.stats.intervals import Floats
from specbench_kangaroo.stats.summary import Summary

PHASES = ("draft", "verify", "accept", "other")
TOTAL = "total"
CONFIDENCE_BINS = 10  # of equal width
CONTEXT_BINS = 8  # with equally many of the baseline's steps
OF_TIME = ("ms_per_token", "ms_low", "ms_high")
OF_YIELD = ("mean_accepted_tokens", "accepted_low", "accepted_high")


def step_times(parts: Mapping[str, PairedSteps]) -> pd.DataFrame:
    """Milliseconds of a decode step by entry and phase, the whole step as phase ``total``.

    Columns ``entry, phase, ms_per_step, low, high, steps, questions``.  ``other`` is decode time
    outside the three phases: the loop itself.
    """
    tables = [_phases(part).assign(entry=entry) for entry, part in parts.items()]
    columns = ["entry", "phase", "ms_per_step", "low", "high", "steps", "questions"]
    return _stacked(tables, columns)


def _phases(part: PairedSteps) -> pd.DataFrame:
    if not len(part.rows):  # answers of one token have no step
        return pd.DataFrame()
    by_phase = [_by_question(part, part.column(f"{phase}_ms")) for phase in PHASES[:-1]]
    answers = part.generations
    decode_ms = (answers["total_ms"] - answers["ttft_ms"]).to_numpy(dtype=np.float64)
    total = np.bincount(part.answer_question, decode_ms, minlength=part.questions)[None]  # [1, K]
    over = np.concatenate([*by_phase, total - sum(by_phase), total])  # [5, K]
    counts = np.broadcast_to(_by_question(part), over.shape)
    table = ratios(over, counts).rename(columns={"value": "ms_per_step"})
    return table.assign(phase=[*PHASES, TOTAL], steps=len(part.rows))


def accepted_lengths(summary: Summary, entry: str) -> pd.DataFrame:
    """The distribution of accepted lengths, from 0 to the entry's deepest draft.

    Columns ``length, exactly, at_least, low, high``: shares of the decode steps.  ``at_least`` is
    CTAR(length), the marginal acceptance at that position; the interval is its own.
    """
    positions = summary.entries[entry].positions
    at_least = np.array([1.0, *(item.marginal.value for item in positions)])
    bounds = [(1.0, 1.0), *((item.marginal.low, item.marginal.high) for item in positions)]
    table = pd.DataFrame(bounds, columns=["low", "high"], dtype=np.float64)
    table.insert(0, "length", np.arange(len(at_least)))
    table.insert(1, "exactly", -np.diff(at_least, append=0.0))
    table.insert(2, "at_least", at_least)
    return table


def calibration(part: PairedSteps) -> pd.DataFrame:
    """The draft's confidence against acceptance, for an entry that logs confidences.

    ``confidence[i]`` of a step is the draft's top-1 probability at depth i + 1.  That depth was
    judged if all depths before it were accepted, and accepted if ``accepted > i``: a token behind
    a rejected one, or cut off by an EOS, says nothing of the confidence in it.

    Columns ``left, right`` (the bin), ``confidence`` (its mean there), ``accepted`` (a share),
    ``low, high, tokens, questions``; no rows where no confidence was judged.
    """
    told, lengths = part.confidences()
    if not len(told):
        return pd.DataFrame()
    accepted = part.column("accepted").astype(np.int64)
    emitted = part.column("emitted").astype(np.int64)
    judged = np.minimum(lengths, emitted)  # emitted is accepted + 1, or accepted at an EOS
    step = np.repeat(np.arange(len(judged)), judged)  # [T']
    depth = np.arange(len(step)) - np.repeat(judged.cumsum() - judged, judged)
    confidence = told[(lengths.cumsum() - lengths)[step] + depth]
    return _binned_confidence(
        confidence, depth < accepted[step], part.question[step], questions=part.questions
    )


def _binned_confidence(
    confidence: Floats, hit: np.ndarray, question: Ints, *, questions: int
) -> pd.DataFrame:
    edges = np.linspace(0.0, 1.0, CONFIDENCE_BINS + 1)
    place = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    trials = sums(place, question, cells=CONFIDENCE_BINS, questions=questions)
    hits = sums(place, question, hit.astype(float), cells=CONFIDENCE_BINS, questions=questions)
    told = np.bincount(place, confidence, minlength=CONFIDENCE_BINS)
    table = shares(hits, trials).rename(columns={"value": "accepted"})
    counts = trials.sum(axis=1).astype(np.int64)
    means = told / np.maximum(counts, 1)
    table = table.assign(left=edges[:-1], right=edges[1:], confidence=means, tokens=counts)
    return _filled(table, counts)


def by_context(parts: Mapping[str, PairedSteps], baseline: str) -> pd.DataFrame:
    """Time and acceptance by context length, in bins of equally many of the baseline's steps.

    Columns ``entry, context_length`` (mean of the bin's steps), ``ms_per_token, ms_low, ms_high``
    (draft, verify and accept milliseconds per emitted token), ``mean_accepted_tokens,
    accepted_low, accepted_high`` (NaN for an entry that drafts nothing), ``steps, questions``.
    """
    if baseline not in parts or not len(parts[baseline].rows):
        return pd.DataFrame()
    contexts = parts[baseline].column("context_length")
    edges = np.unique(np.quantile(contexts, np.linspace(0.0, 1.0, CONTEXT_BINS + 1)))[1:-1]
    tables = [_contexts(part, edges).assign(entry=name) for name, part in parts.items()]
    return _stacked(tables, ["entry", "context_length", *OF_TIME, *OF_YIELD, "steps", "questions"])


def _contexts(part: PairedSteps, edges: Floats) -> pd.DataFrame:
    contexts = part.column("context_length")
    place = np.searchsorted(edges, contexts, side="right")
    cells = len(edges) + 1
    spent_ms = np.sum([part.column(f"{phase}_ms") for phase in PHASES[:-1]], axis=0)
    steps = sums(place, part.question, cells=cells, questions=part.questions)

    def total(values: Floats) -> Floats:
        return sums(place, part.question, values, cells=cells, questions=part.questions)

    tokens = total(part.column("emitted"))
    table = ratios(total(spent_ms), tokens).set_axis([*OF_TIME, "questions"], axis=1)
    bonus = 1.0 if part.column("drafted").any() else np.nan  # no drafts, no mean of them
    yielded = total(part.column("accepted") + bonus)
    table[list(OF_YIELD)] = ratios(yielded, steps)[["value", "low", "high"]]
    counts = steps.sum(axis=1).astype(np.int64)
    means = total(contexts).sum(axis=1) / np.maximum(counts, 1)
    return _filled(table.assign(context_length=means, steps=counts), counts)


def _by_question(part: PairedSteps, values: Floats | None = None) -> Floats:
    """(1, K) sums over each question's steps, or their number."""
    everywhere = np.zeros(len(part.rows), dtype=np.int64)
    return sums(everywhere, part.question, values, cells=1, questions=part.questions)


def _filled(table: pd.DataFrame, counts: Ints) -> pd.DataFrame:
    """The rows of cells that hold anything."""
    rows: pd.DataFrame = table.loc[counts > 0]
    return rows.reset_index(drop=True)


def _stacked(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True)[columns] if filled else pd.DataFrame()
