"""Every metric of a run, with its interval, from the records alone.

An entry is measured on the prompts that both it and the baseline answered without an error; the
others are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from specbench_kangaroo.record.schema import EntryRecord, Lossless, Manifest, Status
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.stats.device_health import DeviceHealth, health
from specbench_kangaroo.stats.intervals import Estimate, Floats, Ratio, estimates
from specbench_kangaroo.stats.metrics import Has, acceptance_at, applicable
from specbench_kangaroo.stats.sampling_check import SamplingCheck, check_sampling
from specbench_kangaroo.stats.totals import PROMPT, paired, per_generation, per_question

# 1 had methods instead of entries; 2 had no settings, environment and device.
SUMMARY_VERSION = 3
OVERALL = "overall"
TASK_ORDER = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """The figures of one entry on one task, or on all; ``n`` questions stand behind them."""

    n: int
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Position:
    """Acceptance at a position of the draft, counted from 1; 1 + Σ marginal is the mean accepted.

    ``marginal`` is the share of all steps that accept this far: CTAR(position).  ``conditional`` is
    the share of those that draft this far, so that "never drafted" does not read as "rejected".
    """

    position: int
    marginal: Estimate
    conditional: Estimate


@dataclass(frozen=True, slots=True)
class EntrySummary:
    """All that a report says about one entry, and how it ran."""

    method: str
    options: Mapping[str, Any]  # every one, with its value

    tasks: Mapping[str, TaskSummary]  # "overall" first; empty if no prompt could be paired
    positions: Sequence[Position]  # empty for an entry that does not draft
    lossless: Mapping[str, int] | None  # None without judgements, as when sampling
    errors: int
    prompt_too_long: int
    excluded: int  # prompts that this entry or the baseline has no good answer to
    lossy: bool  # its outputs may differ from the target's own, by choice
    sampling: SamplingCheck | None  # None for greedy runs, and for the baseline
    peak_device_mb: float | None = None  # allocated on the accelerator; None without one


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures, the baseline first among the entries."""

    run: str
    status: str
    baseline: str
    model: str
    questions: str
    dtype: str | None
    device: str | None  # by its own name, as far as the machine tells
    settings: Mapping[str, Any]  # what held for every entry: Manifest.settings
    environment: Mapping[str, Any]  # of the machine that made it: Manifest.environment
    entries: Mapping[str, EntrySummary]
    # Of the whole process, which all entries share: no entry's own.
    peak_rss_mb: float | None
    device_health: DeviceHealth | None = None  # None where its state was not measured

    def label(self, entry: str) -> str:
        """The entry's name as tables and figures show it, so that none hides a lossy entry."""
        return f"{entry} (lossy)" if self.entries[entry].lossy else entry

    def estimates(self, entry: str, task: str) -> Mapping[str, Estimate]:
        """An entry's, by the metric's name; empty where it has no answers to the task."""
        part = self.entries[entry].tasks.get(task)
        return {} if part is None else part.estimates

    def overall(self, entry: str) -> Mapping[str, Estimate]:
        """An entry's estimates on all tasks."""
        return self.estimates(entry, OVERALL)


def summarise(run: Run) -> Summary:
    """Every figure of the run."""
    manifest = run.manifest
    generations = per_generation(run)
    return Summary(
        run=manifest.name,
        status=manifest.status,
        baseline=manifest.baseline,
        model=manifest.model,
        questions=manifest.questions,
        dtype=manifest.resolved.dtype,
        device=_device(manifest),
        settings=manifest.settings,
        environment=manifest.environment,
        entries={name: _entry_summary(run, generations, name) for name in manifest.labels},
        peak_rss_mb=_peak(run.generations["peak_rss_mb"]),
        device_health=health(run.device),
    )


def _peak(megabytes: pd.Series) -> float | None:
    peak = megabytes.max()
    return None if pd.isna(peak) else float(peak)


def _device(manifest: Manifest) -> str | None:
    device = manifest.resolved.device
    names = manifest.gpu_names
    if device is None or device == "cpu" or not names:
        return manifest.environment.get("cpu") or device
    index = int(str(device).partition(":")[2] or 0)
    return names[index] if index < len(names) else device


def _entry_summary(run: Run, generations: pd.DataFrame, entry: str) -> EntrySummary:
    baseline = run.manifest.baseline
    pairs = paired(generations, entry=entry, baseline=baseline)
    questions = per_question(pairs)
    ours = generations[generations["entry"] == entry]
    status = ours["status"]
    asked = generations.loc[generations["entry"].isin([entry, baseline]), PROMPT]
    record = run.manifest.entries.get(entry, EntryRecord(method=entry, options={}))
    return EntrySummary(
        method=record.method,
        options=record.options,
        tasks=_tasks(questions, compared=entry != baseline),
        positions=_positions(questions),
        lossless=_verdicts(run, entry),
        errors=int((status == Status.ERROR.value).sum()),
        prompt_too_long=int((status == Status.PROMPT_TOO_LONG.value).sum()),
        excluded=len(asked.drop_duplicates()) - len(pairs),
        lossy=record.lossy,
        sampling=check_sampling(run, entry),
        peak_device_mb=_peak(ours["peak_device_mb"]),
    )


def _tasks(questions: pd.DataFrame, *, compared: bool) -> dict[str, TaskSummary]:
    if questions.empty:
        return {}
    has = Has.ANSWERS | (Has.BASELINE if compared else Has(0))
    for column, what in (("target_passes", Has.STEPS), ("drafted", Has.DRAFTS)):
        has |= what if _sums_to_any(questions, column) else Has(0)
    ratios = applicable(has)
    return {
        task: TaskSummary(
            n=len(part), estimates=estimates(ratios, _columns(part), strata=[*part["task"]])
        )
        for task, part in by_task(questions).items()
    }


def by_task(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All rows as ``overall``, and then those of each task."""
    present = set(rows["task"])
    order = [task for task in TASK_ORDER if task in present]
    order += sorted(present - set(TASK_ORDER))
    return {OVERALL: rows} | {task: rows[rows["task"] == task] for task in order}


def _sums_to_any(questions: pd.DataFrame, column: str) -> bool:
    return bool(questions[column].sum() > 0)


def _columns(questions: pd.DataFrame) -> dict[str, Floats]:
    numbers = questions.select_dtypes("number")
    return {str(name): numbers[name].to_numpy(dtype=np.float64) for name in numbers.columns}


def _positions(questions: pd.DataFrame) -> list[Position]:
    """Up to the deepest draft of the entry."""
    if not _sums_to_any(questions, "drafted"):
        return []
    columns = _columns(questions)
    ratios: dict[str, Ratio] = {}
    for i, (marginal, conditional) in enumerate(acceptance_at(columns), start=1):
        ratios |= {f"marginal_{i}": marginal, f"conditional_{i}": conditional}
    found = estimates(ratios, columns, strata=[*questions["task"]])
    return [
        Position(i, found[f"marginal_{i}"], found[f"conditional_{i}"])
        for i in range(1, len(ratios) // 2 + 1)
    ]


def _verdicts(run: Run, entry: str) -> dict[str, int] | None:
    verdicts = run.judgements.loc[run.judgements["entry"] == entry, "verdict"]
    if verdicts.empty:
        return None
    return {verdict.value: int((verdicts == verdict.value).sum()) for verdict in Lossless}


def to_json(summary: Summary) -> dict[str, Any]:
    """The document of ``specbench report --format json``; keys that do not apply are absent."""
    document: dict[str, Any] = {
        "schema_version": SUMMARY_VERSION,
        "run": summary.run,
        "status": summary.status,
        "baseline": summary.baseline,
        "model": summary.model,
        "questions": summary.questions,
        "settings": dict(summary.settings),
        "environment": dict(summary.environment),
        "entries": {name: _entry_json(entry) for name, entry in summary.entries.items()},
    }
    if summary.device is not None:
        document["device"] = summary.device
    if summary.peak_rss_mb is not None:
        document["peak_rss_mb"] = summary.peak_rss_mb
    if summary.device_health is not None:
        document["device_health"] = asdict(summary.device_health)
    return document


def _entry_json(entry: EntrySummary) -> dict[str, Any]:
    document: dict[str, Any] = {
        "method": entry.method,
        "options": dict(entry.options),
        "lossy": entry.lossy,
    }
    if entry.lossless is not None:
        document["lossless"] = dict(entry.lossless)
    if entry.sampling is not None:
        document["sampling_check"] = asdict(entry.sampling)
    if entry.peak_device_mb is not None:
        document["peak_device_mb"] = entry.peak_device_mb
    document |= {
        "errors": entry.errors,
        "prompt_too_long": entry.prompt_too_long,
        "excluded": entry.excluded,
        "tasks": {
            task: {"n": part.n} | {name: found.figures for name, found in part.estimates.items()}
            for task, part in entry.tasks.items()
        },
    }
    if entry.positions:
        document["acceptance_by_position"] = [
            {
                "position": item.position,
                "marginal": item.marginal.figures,
                "conditional": item.conditional.figures,
            }
            for item in entry.positions
        ]
        document["ctar"] = {str(item.position): item.marginal.figures for item in entry.positions}
    return document
