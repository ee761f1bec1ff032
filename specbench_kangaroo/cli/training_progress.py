"""The progress bar of a long job with stages, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from specbench_kangaroo.machine.cache_folder import stderr_console

if TYPE_CHECKING:
    from specbench_kangaroo.training.fit import FitHooks
    from specbench_kangaroo.training.state import Validation


@dataclass(slots=True)
class Bar:
    """One bar that goes through the stages of a long job."""

    progress: Progress
    task: TaskID
    start: int | None = None  # where a resumed stage began, so that the rate is this run's

    def stage(self, name: str) -> None:
        """Begin a stage whose length is not known yet."""
        self.start = None
        self.progress.reset(self.task, description=name, total=None, rate="", note="")

    def advance_to(self, done: int, total: int) -> None:
        """Show how far the stage is, and its rate."""
        if self.start is None:
            self.start = done
            self.progress.reset(self.task)
        seconds = self.progress.tasks[0].elapsed or 0.0
        rate = f"{(done - self.start) / seconds:,.0f}/s" if seconds else ""
        self.progress.update(self.task, completed=done, total=total, rate=rate)

    def hooks(self, max_tokens: int) -> FitHooks:
        """What shows a training; every validation leaves a line behind."""
        from specbench_kangaroo.training.fit import FitHooks  # noqa: PLC0415

        def validated(validation: Validation) -> None:
            note = f"agreement {validation.agreement:.4f}, loss {validation.loss:.3f}"
            self.progress.update(self.task, note=note)
            self.progress.console.print(f"{validation.tokens_seen:>13,} tokens: {note}")

        return FitHooks(
            on_stage=self.stage,
            on_features=self.advance_to,
            on_tokens=lambda seen: self.advance_to(seen, max_tokens),
            on_validation=validated,
        )


@contextmanager
def progress_bar(unit: str) -> Iterator[Bar]:
    """A bar that counts ``unit``; it goes when the job is done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} " + unit),
        TextColumn("{task.fields[rate]} {task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr_console(), transient=True) as progress:
        yield Bar(progress, progress.add_task("", total=None, rate="", note=""))
