"""The progress bar of a run, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from specbench_kangaroo.record.schema import Generation


@contextmanager
def run_progress(total: int, *, done: int) -> Iterator[Callable[[Generation], None]]:
    """A bar drawn by hand between generations, and by no thread within one: those are timed.

    Yields what is to be called after each generation.  Without a terminal nothing is drawn.
    """
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    progress = Progress(
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        bar = progress.add_task("warming up", total=total, completed=done)
        progress.refresh()

        def on_finished(generation: Generation) -> None:
            place = f"{generation.task} {generation.question_id}, {generation.entry}"
            progress.update(bar, advance=1, description=place, refresh=True)

        yield on_finished
