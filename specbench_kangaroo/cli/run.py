"""``specbench run``: benchmark methods against the baseline."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from specbench_kangaroo.cli import options as flags
from specbench_kangaroo.cli.conclusion import conclude
from specbench_kangaroo.cli.output import say, still_bar
from specbench_kangaroo.record.errors import ResumableError, UsageError
from specbench_kangaroo.record.request import (
    DEFAULT_MODEL,
    DEFAULT_TEMPLATE,
    Decoding,
    QuestionChoice,
    Request,
    TargetChoice,
)
from specbench_kangaroo.record.schema import BASELINE
from specbench_kangaroo.run.config import choices_of

if TYPE_CHECKING:
    from specbench_kangaroo.record.schema import Generation

RESULTS = Path("results")
INTERRUPTED = 130
_MOST_LABELS = 6  # in the name of a run folder
_DEFAULT = Decoding()


def run(  # noqa: PLR0913 (one parameter a flag)
    context: typer.Context,
    *,
    method: flags.Methods = None,
    option: flags.MethodOptions = None,
    sweep: flags.Sweeps = None,
    model: flags.Model = DEFAULT_MODEL,
    revision: flags.Revision = None,
    template: flags.Template = DEFAULT_TEMPLATE,
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
    workers: flags.Workers = _DEFAULT.workers,
    ray_address: flags.RayAddress = None,
    output: flags.RunOutput = None,
    resume: flags.Resume = False,
) -> None:
    """Benchmark methods against vanilla decoding.

    Vanilla always runs beside them, under the label vanilla.  A method can stand several times,
    each with a label and options of its own.  Exit status 1: one changed a greedy output, or
    sampled tokens with other frequencies, and does not say that it is lossy.
    """
    _refuse_batches(batch_size)
    request = _request(context.params)
    raise typer.Exit(
        benchmark(request, str(context.obj), output, resume=resume, ray_address=ray_address)
    )


def _request(given: Mapping[str, Any]) -> Request:
    """The flags by name as a request."""
    return Request(
        target=flags.by_name(TargetChoice, given),
        questions=QuestionChoice(
            source=given["questions"], tasks=tuple(given["task"] or ()), limit=given["limit"]
        ),
        entries=choices_of(given["method"] or (), given["option"] or (), given["sweep"] or ()),
        decoding=flags.by_name(Decoding, given),
    )


def _refuse_batches(size: int) -> None:
    if size != 1:
        raise UsageError(
            f"--batch-size is 1, not {size}: speedups are those of one sequence at a time, as in "
            "Spec-Bench; leave it out"
        )


def benchmark(
    request: Request,
    command: str,
    output: Path | None,
    *,
    resume: bool,
    ray_address: str | None = None,
) -> int:
    """Run and show a benchmark; returns the exit status.

    Args:
        request: what is run.
        command: how it was asked for.
        output: the run folder, None for a new one under ``results``.
        resume: continue the run in ``output``.
        ray_address: of the cluster whose workers answer; None for this process, or for workers on
            this machine if the request has several.
    """
    from specbench_kangaroo.run.perform import perform  # noqa: PLC0415
    from specbench_kangaroo.run.signals import interruptible  # noqa: PLC0415

    if resume and output is None:
        raise UsageError("--resume needs --output DIR, the folder of the run to continue")
    folder = output or _new_folder(request)
    go_on = _resuming(command, folder if output is None else None)
    try:
        with interruptible() as interruption:
            try:
                made = perform(
                    request,
                    folder,
                    command=command,
                    resume=resume,
                    ray_address=ray_address,
                    say=say,
                    progress=_bar,
                    interruption=interruption,
                )
            except KeyboardInterrupt:
                _tell_how_to_go_on(folder, go_on, interruption.word)
                return INTERRUPTED
        return conclude(made)
    except ResumableError as error:  # not unusable input: what is there is whole, and can go on
        say(f"{error.problem}, then go on with {go_on}")
        return INTERRUPTED


@contextmanager
def _bar(total: int, *, done: int) -> Iterator[Callable[[Generation], None]]:
    with still_bar(total, done=done) as update:
        yield lambda made: update(
            advance=1, description=f"{made.task} {made.question_id}, {made.entry}"
        )


def _tell_how_to_go_on(folder: Path, go_on: str, what_happened: str) -> None:
    from specbench_kangaroo.record.writer import GENERATIONS  # noqa: PLC0415

    generations = folder / GENERATIONS
    if not generations.is_file():
        say(f"{what_happened}: nothing was measured yet")
        return
    count = generations.read_bytes().count(b"\n")
    say(f"{what_happened}: {count} generations are in {folder}; go on with\n  {go_on}")


def _new_folder(request: Request) -> Path:
    """Named by the time; a second run of that second, or after the clock was put back, by more."""
    labels = list(dict.fromkeys([BASELINE, *(choice.name for choice in request.entries)]))
    if (more := len(labels) - _MOST_LABELS) > 0:
        labels[_MOST_LABELS:] = [f"{more}-more"]
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{'+'.join(labels)}"
    folder, number = RESULTS / name, 2
    while folder.exists():
        folder, number = RESULTS / f"{name}-{number}", number + 1
    return folder


def _resuming(command: str, new_folder: Path | None) -> str:
    """The command that goes on; ``new_folder`` is the run's where the command does not name one."""
    more = [] if "--resume" in shlex.split(command) else ["--resume"]
    more += [] if new_folder is None else ["--output", str(new_folder)]
    return " ".join([command, *map(shlex.quote, more)])
