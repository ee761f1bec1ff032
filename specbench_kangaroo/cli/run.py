"""``specbench run``: benchmark methods against the baseline."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from specbench_kangaroo.bench.config import read_study
from specbench_kangaroo.bench.study import new_folder
from specbench_kangaroo.cli import options as flags
from specbench_kangaroo.cli.conclusion import conclude
from specbench_kangaroo.cli.output import deliver, say, still_bar
from specbench_kangaroo.record.errors import ResumableError, UsageError
from specbench_kangaroo.record.manifest import manifest_to_resume, read_manifest, resume_command
from specbench_kangaroo.record.request import (
    DEFAULT_MODEL,
    DEFAULT_TEMPLATE,
    Decoding,
    Request,
)

if TYPE_CHECKING:
    from specbench_kangaroo.record.schema import Generation

INTERRUPTED = 130
_DEFAULT = Decoding()
_BESIDE_RESUME = ("resume", "ray_address")


def run(  # noqa: PLR0913 (one parameter a flag)
    context: typer.Context,
    *,
    config: flags.Config = None,
    from_: flags.From = None,
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
    resume: flags.Resume = None,
    dry_run: flags.DryRun = False,
) -> None:
    """Benchmark methods against vanilla decoding.

    Vanilla always runs beside them, under the label vanilla.  A method can stand several times,
    each with a label and options of its own.  Exit status 1: one changed a greedy output, or
    sampled tokens with other frequencies, and does not say that it is lossy.
    """
    _refuse_batches(batch_size)
    if resume is not None:
        _refuse_beside_resume(context)
        raise typer.Exit(go_on(resume, ray_address=ray_address))
    request = _request(context, config, from_)
    if dry_run:
        _show(request, output, ray_address)
        return
    folder = output or new_folder(request)
    raise typer.Exit(benchmark(request, str(context.obj), folder, ray_address=ray_address))


def _request(context: typer.Context, study: Path | None, folder: Path | None) -> Request:
    """What the study's file or the folder's run asks for, but for the flags that were given.

    A flag that was not given has the same default as the field that it fills.
    """
    if study is not None and folder is not None:
        raise UsageError("--config and --from each bring a whole run; leave one of them out")
    base = Request()
    if study is not None:
        base = read_study(study)
    elif folder is not None:
        base = read_manifest(folder).request
    given = {name: context.params[name] for name in flags.given_flags(context)}
    request = flags.overridden(base, given)
    if study is not None and not request.entries:
        raise UsageError(f"{study} names no entry to compare; add [[entries]], or give --method")
    return request


def _refuse_batches(size: int) -> None:
    if size != 1:
        raise UsageError(
            f"--batch-size is 1, not {size}: speedups are those of one sequence at a time, as in "
            "Spec-Bench; leave it out"
        )


def _refuse_beside_resume(context: typer.Context) -> None:
    given = flags.given_flags(context)
    if others := [flag for name, flag in given.items() if name not in _BESIDE_RESUME]:
        raise UsageError(
            f"--resume goes on with a run as it was begun: leave out {', '.join(others)}, or start "
            "a new run by --from"
        )


def go_on(folder: Path, *, ray_address: str | None = None) -> int:
    """Make what the run in a folder lacks, and show it; returns the exit status.

    Raises:
        UsageError: there is no run, or it cannot have stayed the same.
    """
    stored = manifest_to_resume(folder)
    directory = None if stored.directory is None else Path(stored.directory)
    # Where that is gone, the files may have moved to where the user is now, with the run.
    if directory and (not os.access(directory / ".", os.X_OK) or directory == Path.cwd()):
        directory = None
    return benchmark(
        stored.request,
        stored.command,
        folder,
        resume=True,
        ray_address=ray_address,
        directory=directory,
    )


def benchmark(
    request: Request,
    command: str,
    folder: Path,
    *,
    resume: bool = False,
    ray_address: str | None = None,
    directory: Path | None = None,
) -> int:
    """Run and show a benchmark; returns the exit status.

    Args:
        request: what is run.
        command: how it was asked for.
        folder: of the run.
        resume: continue the run in ``folder``.
        ray_address: of the cluster whose workers answer; None for this process, or for workers on
            this machine if the request has several.
        directory: where the request's relative paths start; None for the current one.
    """
    from specbench_kangaroo.bench.perform import perform  # noqa: PLC0415
    from specbench_kangaroo.bench.signals import interruptible  # noqa: PLC0415

    place = folder if directory is None else folder.absolute()
    try:
        with interruptible() as interruption, chdir(directory) if directory else nullcontext():
            try:
                made = perform(
                    request,
                    place,
                    command=command,
                    resume=resume,
                    ray_address=ray_address,
                    say=say,
                    progress=_bar,
                    interruption=interruption,
                )
            except KeyboardInterrupt:
                _tell_how_to_go_on(place, resume_command(folder, ray_address), interruption.word)
                return INTERRUPTED
        return conclude(replace(made, folder=folder))
    except ResumableError as error:  # not unusable input: what is there is whole, and can go on
        say(f"{error.problem}, then go on with {resume_command(folder, ray_address)}")
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


def _show(request: Request, output: Path | None, ray_address: str | None) -> None:
    """What the request would do, and about how long it would take."""
    from specbench_kangaroo.bench.dry_run import described, rehearse  # noqa: PLC0415
    from specbench_kangaroo.bench.setup import load_bench, plan_of  # noqa: PLC0415
    from specbench_kangaroo.record.writer import refuse_taken  # noqa: PLC0415

    try:
        plan = plan_of(request)
        if output is not None:
            refuse_taken(output)
        found = None
        if ray_address is None:
            bench = load_bench(plan)
            with still_bar(len(plan.entries)) as update:
                found = rehearse(bench, lambda entry: update(advance=1, description=entry))
        deliver(described(plan, found))
    except KeyboardInterrupt:
        say("interrupted: nothing was kept")
        raise typer.Exit(INTERRUPTED) from None
