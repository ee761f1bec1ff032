"""A report of a run as large as Spec-Bench at 1,024 tokens an answer: what it costs a process.

Processor time, not the clock's, and by the pace of this machine: other work on it, or a slower
one, then does not fail the test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from msgspec import structs

from specbench_kangaroo.record.columns import Columns, Line, write_copies
from specbench_kangaroo.record.jsonl import as_line
from specbench_kangaroo.record.manifest import write_manifest
from specbench_kangaroo.record.schema import EntryRecord, ExitReason
from specbench_kangaroo.record.writer import GENERATIONS, LOSSLESS
from specbench_kangaroo.stats.summary import TASK_ORDER
from tests.changes import replace
from tests.pace import slowness
from tests.unit.runs import make_generation, make_judgement, make_manifest, make_run

pytest.importorskip("resource")  # not on Windows

QUESTIONS, TOKENS, DEPTH = 480, 1024, 6
# Steps of each answer of 1,024 tokens: 1.5 million in all.
STEPS_OF = {"vanilla": 1023, "a": 300, "b": 380, "c": 420, "d": 480, "e": 520}

CHILD = """
import json, resource, sys
from specbench_kangaroo.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    if ended.code: raise
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted({"torch", "transformers", "accelerate"} & sys.modules.keys())
from specbench_kangaroo.machine.devices import peak_rss_mb
cost = [used.ru_utime + used.ru_stime, peak_rss_mb(), heavy]
print(json.dumps(cost), file=sys.stderr)
"""


class Cost(NamedTuple):
    """What a report took of the machine, and what it imported that it must not."""

    seconds: float
    peak_mib: float
    heavy: list[str]


def cost_of(*arguments: str | Path) -> Cost:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, "report", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert child.returncode == 0, child.stderr
    return Cost(*json.loads(child.stderr.splitlines()[-1]))


def columns_of(method: str, rng: np.random.Generator) -> Any:
    """The steps of an answer of :data:`TOKENS` tokens."""
    rows = STEPS_OF[method]
    drafted = np.full(rows, 0 if method == "vanilla" else DEPTH)
    hits = rng.choice(max(int(drafted.sum()), 1), TOKENS - 1 - rows, replace=False) // DEPTH
    accepted = np.bincount(hits, minlength=rows)
    confidences = rng.random((rows, int(drafted[0]))).tolist()
    columns = {
        "step": np.arange(rows),
        "context_length": np.arange(rows) + 100,
        "drafted": drafted,
        "accepted": accepted,
        "emitted": accepted + 1,
        "nodes": drafted + 1,
        "verify_share": np.ones(rows),
        "draft_ms": drafted * rng.uniform(0.5, 0.6, rows),
        "verify_ms": rng.uniform(9.0, 10.0, rows),
        "accept_ms": rng.uniform(0.1, 0.2, rows),
    }
    reason = ExitReason.MAX_STEPS if drafted.any() else ExitReason.NO_DRAFT
    return Columns(
        **{name: tuple(values.tolist()) for name, values in columns.items()},
        exit_reason=(reason,) * rows,
        confidence=tuple(map(tuple, confidences)),
    )


def written_lines(folder: Path) -> Iterator[Any]:
    rng = np.random.default_rng(0)
    with (folder / GENERATIONS).open("wb") as answers, (folder / LOSSLESS).open("wb") as verdicts:
        for question in range(QUESTIONS):
            ids = tuple(rng.integers(0, 49_152, TOKENS).tolist())
            for name, steps in STEPS_OF.items():
                answer = make_generation(
                    name,
                    question,
                    task=TASK_ORDER[question * len(TASK_ORDER) // QUESTIONS],
                    output_ids=ids,
                    text="word " * 700,
                    new_tokens=TOKENS,
                    target_passes=1 + steps,
                    total_ms=20.0 + steps * rng.uniform(12.0, 14.0),
                )
                line = Line(**structs.asdict(answer), steps=columns_of(name, rng))
                answers.write(as_line(line))
                if name != "vanilla":
                    verdicts.write(as_line(make_judgement(answer.key)))
                yield line


def write_large_run(folder: Path) -> Path:
    folder.mkdir()
    entries = {name: EntryRecord(name, {}) for name in STEPS_OF}
    write_manifest(folder, replace(make_manifest(), entries=entries, status="complete"))
    write_copies(folder, written_lines(folder))
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large_run(tmp_path_factory.mktemp("speed") / "large")


@pytest.mark.parametrize(
    ("format_", "limit_s"),
    [("terminal", 10.0), ("html", 20.0)],  # thrice what they take
)
def test_a_report_of_a_run_of_spec_benchs_size_takes_seconds(
    large: Path, tmp_path: Path, format_: str, limit_s: float
) -> None:
    cost = cost_of(large, "--format", format_, "--output", tmp_path / "report")
    assert cost.seconds < limit_s * slowness(), (
        f"a report took {cost.seconds:.1f} s of processor time"
    )
    assert cost.peak_mib < 1024, f"a report took {cost.peak_mib:.0f} MiB of memory"


def test_opening_a_report_imports_no_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    for format_ in ("terminal", "json"):
        cost = cost_of(folder, "--format", format_)
        assert not cost.heavy, f"--format {format_} waits for {cost.heavy}, which it never uses"
