"""``specbench run``: benchmark methods against the baseline.

Knows: flags, the run folder's name, what a person is shown before, during and after a run.
Does not know: how anything is run, measured or computed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from specbench_kangaroo.cli import options as flags
from specbench_kangaroo.cli.run_progress import run_progress
from specbench_kangaroo.errors import UsageError
from specbench_kangaroo.loading.catalogue import DEFAULT_MODEL
from specbench_kangaroo.request import ModelChoice, QuestionChoice, Request, Settings

if TYPE_CHECKING:
    from specbench_kangaroo.bench import Bench
    from specbench_kangaroo.stats import Summary
    from specbench_kangaroo.store import Run

RESULTS = Path("results")
SUMMARY = "summary.json"
INTERRUPTED = 130
FAILED = 1
_DEFAULT = Settings()


def run(  # noqa: PLR0913 (one parameter a flag)
    context: typer.Context,
    *,
    method: flags.Methods = None,
    option: flags.MethodOptions = None,
    model: flags.Model = DEFAULT_MODEL,
    revision: flags.Revision = None,
    questions: flags.Questions = "builtin",
    task: flags.Tasks = None,
    limit: flags.Limit = None,
    max_new_tokens: flags.MaxNewTokens = _DEFAULT.max_new_tokens,
    temperature: flags.Temperature = _DEFAULT.temperature,
    top_p: flags.TopP = _DEFAULT.top_p,
    seed: flags.Seed = _DEFAULT.seed,
    repeats: flags.Repeats = _DEFAULT.repeats,
    warmup: flags.Warmup = _DEFAULT.warmup,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    backend: flags.BackendFlag = flags.Backend.EAGER,
    batch_size: flags.BatchSize = 1,
    output: flags.RunOutput = None,
    resume: flags.Resume = False,
) -> None:
    """Benchmark methods against vanilla decoding.

    Vanilla always runs beside them.  Exit status 1: a method changed a greedy output, or sampled
    tokens with other frequencies, and does not say that it is lossy.
    """
    _refuse_batches(batch_size)
    request = Request(
        model=ModelChoice(
            name=model, revision=revision, dtype=dtype, device=device, backend=backend
        ),
        questions=QuestionChoice(source=questions, tasks=tuple(task or ()), limit=limit),
        methods=tuple(method or ()),
        options=tuple(option or ()),
        settings=Settings(**{item.name: context.params[item.name] for item in fields(Settings)}),
    )
    raise typer.Exit(benchmark(request, str(context.obj), output, resume=resume))


def _refuse_batches(size: int) -> None:
    if size != 1:
        raise UsageError(
            f"--batch-size is 1, not {size}: speedups are those of one sequence at a time, as in "
            "Spec-Bench; leave it out"
        )


def benchmark(request: Request, command: str, output: Path | None, *, resume: bool) -> int:
    """Run and show a benchmark; returns the exit status."""
    from specbench_kangaroo.bench import manifest, open_bench  # noqa: PLC0415
    from specbench_kangaroo.runner import execute, generation_count  # noqa: PLC0415
    from specbench_kangaroo.store import RunWriter, read_run  # noqa: PLC0415

    if resume and output is None:
        raise UsageError("--resume needs --output DIR, the folder of the run to continue")
    bench = open_bench(request)
    folder = output or RESULTS / _folder_name(list(bench.methods))
    record = manifest(bench, name=folder.resolve().name, command=command)
    writer = (RunWriter.resume if resume else RunWriter.create)(folder, record)
    _say(_announcement(bench))
    try:
        total = generation_count(bench)
        with writer, run_progress(total, done=len(writer.finished)) as on_finished:
            execute(bench, writer, on_finished=on_finished)
    except KeyboardInterrupt:
        _say(f"interrupted: {len(writer.finished)} generations are in {folder}; go on with")
        _say(f"  {_resuming(command, folder)}")
        return INTERRUPTED
    return _conclude(read_run(folder))


def _folder_name(methods: list[str]) -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{'+'.join(methods)}"


def _announcement(bench: Bench) -> str:
    import torch  # noqa: PLC0415

    from specbench_kangaroo.reports.sheets import counted  # noqa: PLC0415

    loaded, count = bench.loaded, len(bench.questions.questions)
    threads = f" with {counted(torch.get_num_threads(), 'thread')}"
    return (
        f"{loaded.name}, {loaded.dtype} on {loaded.device}"
        f"{threads if loaded.device == 'cpu' else ''}; "
        f"{counted(count, 'question')} of {bench.questions.name}; "
        f"{', '.join(bench.methods)}"
    )


def _conclude(run_: Run) -> int:
    """Write and show what the run found; returns the exit status."""
    from specbench_kangaroo.cli.output import write_file  # noqa: PLC0415
    from specbench_kangaroo.cli.plot import draw  # noqa: PLC0415
    from specbench_kangaroo.cli.report import as_json, show  # noqa: PLC0415
    from specbench_kangaroo.stats import summarise  # noqa: PLC0415

    summary = summarise(run_)
    write_file(run_.folder / SUMMARY, as_json(summary))
    show(summary)
    typer.echo(f"run folder: {run_.folder}")
    try:
        typer.echo(f"figure: {draw(summary, run_.folder)[0]}")
    except UsageError as reason:
        typer.echo(f"no figure: {reason}")
    _tell_of_errors(run_)
    failures = [*_violations(run_), *_sampling_alarms(summary)]
    for failure in failures:
        _say(failure)
    return FAILED if failures else 0


def _tell_of_errors(run_: Run) -> None:
    failed = run_.generations[run_.generations["status"] != "ok"]
    if len(failed):
        first = failed.iloc[0]
        _say(
            f"{len(failed)} of {len(run_.generations)} generations failed; the first: "
            f"{first['method']}, question {first['question_id']}, {first['error']}"
        )


def _violations(run_: Run) -> Iterator[str]:
    """Where a method that claims to be lossless changed a greedy output."""
    lossy = {name for name, record in run_.manifest.methods.items() if record.lossy}
    found = run_.judgements
    found = found[(found["verdict"] == "violation") & ~found["method"].isin(lossy)]
    for item in found.assign(ended=found["logit_gap"].isna()).itertuples():
        why = f"where one of the two tokens lies {item.logit_gap:.2g} below the best logit"
        if item.ended:
            why = "where one of the two texts has ended"
        yield (
            f"lossless check failed: {item.method} differs from {run_.manifest.baseline} on "
            f"question {item.question_id}, turn {item.turn}, from token "
            f"{item.first_difference:.0f} on, {why}"
        )


def _sampling_alarms(summary: Summary) -> Iterator[str]:
    """Which methods that claim to be lossless sampled from another distribution."""
    from specbench_kangaroo.reports.sheets import counted  # noqa: PLC0415

    for name, method in summary.methods.items():
        check = method.sampling
        if check is not None and check.alarm and not method.lossy:
            yield (
                f"lossless check failed: {name}'s tokens have other frequencies than "
                f"{summary.baseline}'s on {counted(check.prompts, 'prompt')}, "
                f"p = {check.p_value:.2g}"
            )


def _resuming(command: str, folder: Path) -> str:
    words = shlex.split(command)
    if "--resume" not in words:
        words.append("--resume")
    if not any(re.match("--output(=|$)", word) for word in words):
        words += ["--output", str(folder)]
    return shlex.join(words)


def _say(line: str) -> None:
    typer.echo(line, err=True)
