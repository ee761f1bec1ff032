"""A finished run as a request again, with one of its entries and other options."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from specbench_kangaroo.record.request import (
    Decoding,
    EntryChoice,
    QuestionChoice,
    Request,
    TargetChoice,
    Value,
)
from specbench_kangaroo.record.schema import Manifest

_FLAGS = {"source": "questions", "tasks": "task"}  # others have the field's name


def request_again(manifest: Manifest, label: str, options: Mapping[str, Value]) -> Request:
    """The manifest's run with the entry ``label`` alone beside the baseline.

    ``options`` replace those that it had; what a sweep has added to its label goes.  On the device
    and in the dtype that the run resolved to; compare the hashes of the new run's manifest with the
    old one's.
    """
    record, resolved = manifest.entries[label], manifest.resolved
    kept = {name: value for name, value in record.options.items() if value is not None}
    choice = EntryChoice(
        method=record.method, label=label.partition("[")[0], options={**kept, **options}
    )
    target = replace(manifest.request.target, dtype=resolved.dtype, device=resolved.device)
    return replace(manifest.request, name="", target=target, entries=(choice,))


def command_line(request: Request, output: Path | None = None) -> str:
    """The request, which sweeps nothing, as a ``specbench run`` command that a user can paste."""
    words = [
        *("specbench", "run"),
        *_flags(request.target, TargetChoice()),
        *_flags(request.questions, QuestionChoice()),
        *_flags(request.decoding, Decoding()),
    ]
    for entry in request.entries:
        same = entry.name == entry.method
        words += ["--method", entry.name if same else f"{entry.name}={entry.method}"]
        for name, value in entry.options.items():
            words += ["--option", f"{entry.name}.{name}={value}"]
    return shlex.join([*words, *(() if output is None else ("--output", str(output)))])


def _flags(chosen: Struct, default: Struct) -> Iterator[str]:
    """A flag for every field that is not as in ``default``; for each item of a field of several."""
    for name in chosen.__struct_fields__:
        value = getattr(chosen, name)
        if value != getattr(default, name):
            for item in value if isinstance(value, tuple) else (value,):
                yield from (f"--{_FLAGS.get(name, name).replace('_', '-')}", str(item))
