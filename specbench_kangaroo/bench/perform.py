"""A request performed: opened, run into its folder and read back, whoever asked for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from specbench_kangaroo.bench.runner import OnFinished, Runner, execute
from specbench_kangaroo.bench.schedule import refuse_strangers
from specbench_kangaroo.bench.setup import Plan, load_bench, manifest, plan_of
from specbench_kangaroo.bench.signals import Interruption
from specbench_kangaroo.record.errors import counted
from specbench_kangaroo.record.request import Request
from specbench_kangaroo.record.schema import Generation, Manifest
from specbench_kangaroo.record.writer import Run, RunWriter, read_run, refuse_taken

Say = Callable[[str], None]
"""Tells the user what happened, in a line."""


class Progress(Protocol):
    """Shows how far a run is, from before the first generation to after the last."""

    def __call__(self, total: int, *, done: int) -> AbstractContextManager[OnFinished]:
        """Generations in all, and those that an earlier process made; yields what counts one."""
        ...


@contextmanager
def unseen(total: int, *, done: int) -> Iterator[OnFinished]:
    """No progress is shown."""
    del total, done

    def on_finished(made: Generation) -> None:
        del made

    yield on_finished


def perform(
    request: Request,
    folder: Path,
    *,
    command: str = "",
    resume: bool = False,
    ray_address: str | None = None,
    say: Say = lambda _: None,
    progress: Progress = unseen,
    interruption: Interruption | None = None,
) -> Run:
    """Run what is asked for, and return the run.

    Args:
        request: what is run.
        folder: of the run; new or empty, or that of the run to go on with.
        command: how it was asked for, as its manifest says it.
        resume: go on with the run in ``folder``.
        ray_address: of the cluster whose workers answer; None for this process, or for workers on
            this machine if the request has several.
        say: tells the user what happened, in a line.
        progress: shows how far the run is.
        interruption: asked between two questions whether to stop.

    Raises:
        UsageError: anything in the request that does not exist, fit or work here, a folder that is
            taken, or one that holds another run.
        ResumableError: the disk or the device refuses; what is written is whole.
        KeyboardInterrupt: ``interruption`` asked for it, or Ctrl-C was pressed; so is it then.
    """
    if not resume:
        refuse_taken(folder)  # before anything is loaded
    with opened(request, ray_address, say=say) as runner:
        record = replace(
            runner.manifest,
            name=folder.resolve().name,
            command=command,
            directory=str(Path.cwd()) if _has_relative_paths(request) else None,
        )
        writer = (RunWriter.resume if resume else RunWriter.create)(folder, record)
        say(_announcement(record, runner.plan))
        rounds = runner.plan.rounds
        total = len(rounds) * len(record.entries)
        with writer, progress(total, done=len(writer.finished)) as on_finished:
            refuse_strangers(rounds, writer)
            runner.execute(writer, on_finished, interruption or Interruption())
    return read_run(folder)


@contextmanager
def opened(request: Request, ray_address: str | None, *, say: Say) -> Iterator[Runner]:
    """What runs the request: this process, or workers if it asks for several or for a cluster.

    Raises:
        UsageError: see :func:`perform`.
    """
    if request.decoding.workers == 1 and ray_address is None:
        bench = load_bench(plan_of(request))
        yield Runner(bench, manifest(bench), partial(execute, bench))
    else:
        from specbench_kangaroo.bench.workers import session  # noqa: PLC0415 (Ray is an extra)

        with session.opened(request, ray_address, say=say) as workers:
            yield workers


def _has_relative_paths(request: Request) -> bool:
    """Whether a run elsewhere would look for a file or folder in another place."""
    texts: list[object] = [request.target.model, request.questions.source]
    for entry in request.entries:
        texts += [*entry.options.values(), *chain(*entry.sweep.values())]
    given = [text for text in texts if isinstance(text, str) and text]
    return any(not os.path.isabs(text) and os.path.exists(text) for text in given)


def _announcement(record: Manifest, plan: Plan) -> str:
    settings = record.settings
    device, workers = settings["device"], settings["workers"]
    on = f"{device} with {counted(settings['threads'], 'thread')}" if device == "cpu" else device
    return (
        f"{record.model}, {settings['dtype']} on {on}"
        f"{f', {workers} workers' if workers > 1 else ''}; "
        f"{counted(len(plan.questions.questions), 'question')} of "
        f"{record.questions}; {', '.join(record.entries)}"
    )
