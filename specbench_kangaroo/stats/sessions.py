"""Runs of one request made at different times: what their speedup is in another session.

An interval over questions does not hold for another day, when other processes run and pages lie
elsewhere.  A second one, from at least three sessions, has both: how far the sessions' speedups are
apart, and how far the questions' are, which all sessions share.  The half-widths of the two, each
with its own quantile of Student's t, add up as squares, since questions and sessions are drawn
independently.  Simulated with three to five sessions that covers in 94 % or more; Satterthwaite's
degrees of freedom for the sum, in place of the two quantiles, in 91 % where sessions differ most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.manifest import Difference, first_difference
from specbench_kangaroo.record.schema import Manifest
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.stats.intervals import CONFIDENCE_LEVEL, Estimate, Ratio, estimates
from specbench_kangaroo.stats.metrics import METRICS
from specbench_kangaroo.stats.totals import paired, per_generation, per_question

LEAST_SESSIONS = 3
SESSIONS_VERSION = 1
SESSIONS_NAME = "95 % over sessions and questions"

_SPEEDUP = METRICS["speedup"].ratio
_COLUMNS = [*_SPEEDUP.over, *_SPEEDUP.under]


@dataclass(frozen=True, slots=True)
class SessionSpeedup:
    """An entry's speedup over several sessions, on the questions that it answered in all of them.

    ``overall`` is the geometric mean, its interval over sessions and questions; ``each`` are the
    sessions', with theirs over questions.
    """

    n: int
    overall: Estimate
    each: tuple[Estimate, ...]


@dataclass(frozen=True, slots=True)
class Sessions:
    """Several runs of one request; ``entries`` has no entry without answers in common."""

    runs: tuple[str, ...]
    model: str
    questions: str
    baseline: str
    entries: Mapping[str, SessionSpeedup]


def over_sessions(runs: Iterable[Run]) -> Sessions:
    """The speedups of all entries; of each run only its sums by question are kept.

    Raises:
        UsageError: there are fewer than three runs, or two are the same or of different requests.
    """
    manifests: list[Manifest] = []
    sums: list[dict[str, pd.DataFrame]] = []
    for run in runs:
        _refuse_others(manifests, run.manifest)
        manifests.append(run.manifest)
        sums.append(_sums(run))
    if len(sums) < LEAST_SESSIONS:
        raise UsageError(
            f"--sessions needs {LEAST_SESSIONS} runs at least, and there are {len(sums)}; make the "
            "same run again at another time, or leave --sessions out"
        )
    first = manifests[0]
    found = {label: _speedup([of[label] for of in sums]) for label in sums[0]}
    return Sessions(
        runs=tuple(manifest.name for manifest in manifests),
        model=first.model,
        questions=first.questions,
        baseline=first.baseline,
        entries={label: item for label, item in found.items() if item is not None},
    )


def _refuse_others(known: Sequence[Manifest], manifest: Manifest) -> None:
    if not known:
        return
    if any(manifest.created == other.created for other in known):
        raise UsageError(
            f"{manifest.name}, started {manifest.created}, is given twice; every session is to be "
            "a run of its own"
        )
    first = known[0]
    found = first_difference(first, manifest) or _other_machine(first, manifest)
    if found is not None:
        raise UsageError(
            f"--sessions takes runs of one request: {found.field} is {found.stored!r} in "
            f"{first.name} and {found.given!r} in {manifest.name}; give runs of the same command "
            "on the same kind of machine"
        )


def _other_machine(first: Manifest, other: Manifest) -> Difference | None:
    """A speedup belongs to a processor."""
    both = [
        {
            "cpu": manifest.environment.get("cpu"),
            "gpus": manifest.gpu_names,
        }
        for manifest in (first, other)
    ]
    differing = (name for name in both[0] if both[0][name] != both[1][name])
    return next((Difference(name, both[0][name], both[1][name]) for name in differing), None)


def _speedup(sessions: Sequence[pd.DataFrame]) -> SessionSpeedup | None:
    """None for an entry without a question that it answered in every session."""
    tasks = pd.concat([of["task"] for of in sessions], axis=1, join="inner").iloc[:, 0]
    if tasks.empty:
        return None
    columns = {
        f"{name} {place}": of.loc[tasks.index, name].to_numpy(dtype=np.float64)
        for place, of in enumerate(sessions)
        for name in _COLUMNS
    }
    ratios = {
        str(place): Ratio(
            tuple(f"{name} {place}" for name in _SPEEDUP.over),
            tuple(f"{name} {place}" for name in _SPEEDUP.under),
        )
        for place in range(len(sessions))
    }
    product = Ratio(
        tuple(name for ratio in ratios.values() for name in ratio.over),
        tuple(name for ratio in ratios.values() for name in ratio.under),
    )
    found = estimates({**ratios, "product": product}, columns, strata=[*tasks])
    each = tuple(found[name] for name in ratios)
    return SessionSpeedup(len(tasks), combined([one.value for one in each], found["product"]), each)


def combined(values: Sequence[float], product: Estimate) -> Estimate:
    """The geometric mean of the sessions' values.

    Args:
        values: of three sessions or more.
        product: of the values, with its interval over questions.
    """
    logs = np.log(values)
    count = len(logs)
    value = math.exp(logs.mean())
    if product.low is None or product.high is None:
        return Estimate(value, None, None)
    between = stdtrit(count - 1, 0.5 + CONFIDENCE_LEVEL / 2) * logs.std(ddof=1) / math.sqrt(count)
    within = math.log(product.high / product.low) / 2 / count
    reach = math.exp(math.hypot(between, within))
    return Estimate(value, value / reach, value * reach)


def _sums(run: Run) -> dict[str, pd.DataFrame]:
    """By entry: the sums of a speedup by question, with its task."""
    generations, baseline = per_generation(run), run.manifest.baseline
    return {
        label: per_question(paired(generations, entry=label, baseline=baseline)).set_index(
            "question_id"
        )[["task", *_COLUMNS]]
        for label in run.manifest.labels
        if label != baseline
    }


def to_json(found: Sessions) -> dict[str, Any]:
    """The document of ``specbench report --sessions --format json``."""
    return {
        "schema_version": SESSIONS_VERSION,
        **{name: getattr(found, name) for name in ("model", "questions", "baseline")},
        "sessions": list(found.runs),
        "entries": {
            label: {
                "n": of.n,
                "speedup": of.overall.figures,
                "speedup_by_session": [one.figures for one in of.each],
            }
            for label, of in found.entries.items()
        },
    }
