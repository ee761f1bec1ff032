"""A study made into a run from Python, and where its folder goes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench_kangaroo.bench.config import checked, read_study, request_of
from specbench_kangaroo.record.errors import ResumableError, UsageError
from specbench_kangaroo.record.manifest import resume_command
from specbench_kangaroo.record.request import Request
from specbench_kangaroo.record.schema import BASELINE, Generation

if TYPE_CHECKING:
    from specbench_kangaroo.record.reader import Run

Study = str | os.PathLike[str] | Mapping[str, Any] | Request
"""A TOML file, what such a file has, or a request."""

RESULTS = Path("results")
_COMMAND = "specbench_kangaroo.run(...)"  # what the manifest says in place of a command line
_MOST_LABELS = 6  # in the name of a run folder


def run(
    study: Study,
    *,
    output: str | os.PathLike[str] | None = None,
    progress: Callable[[Generation], None] | None = None,
) -> Run:
    """Make a run and read it back.  Nothing is printed, and no signal handler is changed.

    Args:
        study: the path of a TOML file; a mapping with what such a file has, such as
            ``{"entries": [{"method": "kangaroo"}], "questions": {"limit": 1}}``; or a
            :class:`Request`, such as ``read_run(folder).manifest.request``, to repeat a run.
            Vanilla runs beside its entries.
        output: the run folder, which must be new or empty; None for a new one in ``results``.
        progress: called after each answer, with its record, and never within one.

    Raises:
        UsageError: anything in the study that does not exist, fit or work here, or a folder that is
            taken; one line says what and how to fix it.
        KeyboardInterrupt: Ctrl-C.  What was answered until then is in the folder, and
            ``specbench run --resume FOLDER`` makes the rest.
    """
    from specbench_kangaroo.bench.perform import perform  # noqa: PLC0415 (torch)

    request = _request(study)
    if not request.entries:
        raise UsageError("the study names no entry to compare; give it entries, each with a method")
    folder = new_folder(request) if output is None else Path(output)

    @contextmanager
    def counted(total: int, *, done: int) -> Iterator[Callable[[Generation], None]]:
        del total, done
        yield progress or (lambda _: None)

    try:
        return perform(request, folder, command=_COMMAND, progress=counted)
    except (KeyboardInterrupt, ResumableError) as stopped:
        stopped.add_note(f"go on with: {resume_command(folder)}")
        raise


def _request(study: Study) -> Request:
    if isinstance(study, Request):
        return checked(study)
    if isinstance(study, Mapping):
        return request_of(study)
    if isinstance(study, str | os.PathLike):
        return read_study(Path(study))
    raise UsageError(
        f"a study is the path of a TOML file, a mapping or a Request, not {study!r}; give one"
    )


def new_folder(request: Request) -> Path:
    """One that does not exist, named by the time and by the request or its entries."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{_title(request)}"
    folder, number = RESULTS / name, 2
    while folder.exists():  # made in the same second, or before the clock was put back
        folder, number = RESULTS / f"{name}-{number}", number + 1
    return folder


def _title(request: Request) -> str:
    """The request's name, as far as it can be a folder's; without one the labels of the entries."""
    if name := re.sub(r"[^\w.+-]+", "-", request.name).strip("-"):
        return name
    labels = list(dict.fromkeys([BASELINE, *(choice.name for choice in request.entries)]))
    if (more := len(labels) - _MOST_LABELS) > 0:
        labels[_MOST_LABELS:] = [f"{more}-more"]
    return "+".join(labels)
