"""A finished run as a request again, with one of its entries and other options."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from specbench_kangaroo.models.catalogue import MODELS
from specbench_kangaroo.record.schema import Manifest
from specbench_kangaroo.run.config import Entry, ModelChoice, QuestionChoice, Request, Settings
from specbench_kangaroo.run.questions import SOURCES

_FLAGS = {"name": "model", "source": "questions", "tasks": "task"}  # others have the field's name


def request_again(manifest: Manifest, label: str, options: Mapping[str, Any]) -> Request:
    """The manifest's run with the entry ``label`` alone beside the baseline.

    ``options`` replace those that it had; what a sweep has added to its label goes.  Whatever a
    newer version writes into the settings is left out, so compare the hashes of the new run's
    manifest with the old one's.
    """
    # A model of the catalogue has the package that it comes from there, which is no revision.
    revision = None if manifest.model in MODELS else manifest.settings.get("model_revision")
    known = {
        **manifest.settings,
        "name": manifest.model,
        "revision": revision,
        "source": _source(manifest),
        "tasks": tuple(manifest.settings.get("tasks") or ()),
    }
    record = manifest.entries[label]
    kept = {**record.options, **options}
    texts = {name: str(value) for name, value in kept.items() if value is not None}
    return Request(
        model=ModelChoice(**_fields(ModelChoice, known)),
        questions=QuestionChoice(**_fields(QuestionChoice, known)),
        entries=(Entry(label.partition("[")[0], record.method, texts),),
        settings=Settings(**_fields(Settings, known)),
    )


def _fields(kind: type[Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {item.name: known[item.name] for item in fields(kind) if item.name in known}


def command_line(request: Request, output: Path | None = None) -> str:
    """The request as a ``specbench run`` command that a user can paste."""
    words = [
        *("specbench", "run"),
        *_flags(request.model, ModelChoice(name="")),
        *_flags(request.questions, QuestionChoice(source="")),
        *_flags(request.settings, Settings()),
    ]
    for entry in request.entries:
        same = entry.label == entry.method
        words += ["--method", entry.label if same else f"{entry.label}={entry.method}"]
        for name, text in entry.options.items():
            words += ["--option", f"{entry.label}.{name}={text}"]
    return shlex.join([*words, *(() if output is None else ("--output", str(output)))])


def _flags(chosen: Any, default: Any) -> Iterator[str]:
    """A flag for every field that is not as in ``default``; for each item of a field of several."""
    for name in (item.name for item in fields(chosen)):
        value = getattr(chosen, name)
        if value != getattr(default, name):
            for item in value if isinstance(value, tuple) else (value,):
                yield from (f"--{_FLAGS.get(name, name).replace('_', '-')}", str(item))


def _source(manifest: Manifest) -> str:
    """Where the questions came from; of a file the manifest has the name, the command the path."""
    if manifest.questions in SOURCES:
        return manifest.questions
    words = iter(shlex.split(manifest.command))
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--questions":
            return value if equals else next(words, manifest.questions)
    return manifest.questions
