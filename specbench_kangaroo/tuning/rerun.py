"""A finished run as a request again, with one of its entries and other options."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from specbench_kangaroo.models.catalogue import MODELS
from specbench_kangaroo.record.schema import DEFAULT_TEMPLATE, Manifest
from specbench_kangaroo.run.config import (
    Entry,
    ModelChoice,
    QuestionChoice,
    Request,
    Settings,
)
from specbench_kangaroo.run.questions import SOURCES

_DEFAULT = Settings()


def request_again(manifest: Manifest, label: str, options: Mapping[str, Any]) -> Request:
    """The manifest's run with the entry ``label`` alone beside the baseline.

    ``options`` replace those that it had; what a sweep has added to its label goes.  Whatever a
    newer version writes into the settings is left out, so compare the hashes of the new run's
    manifest with the old one's.
    """
    settings = manifest.settings
    record = manifest.entries[label]
    kept = {**record.options, **options}
    texts = {name: str(value) for name, value in kept.items() if value is not None}
    return Request(
        model=ModelChoice(
            name=manifest.model,
            revision=_revision(manifest),
            dtype=settings.get("dtype"),
            device=settings.get("device"),
            backend=settings.get("backend", ModelChoice(name="").backend),
            template=settings.get("template", DEFAULT_TEMPLATE),
        ),
        questions=QuestionChoice(
            source=_source(manifest),
            tasks=tuple(settings.get("tasks") or ()),
            limit=settings.get("limit"),
        ),
        entries=(Entry(label.partition("[")[0], record.method, texts),),
        settings=Settings(
            **{item.name: settings[item.name] for item in fields(Settings) if item.name in settings}
        ),
    )


def command_line(request: Request, output: Path | None = None) -> str:
    """The request as a ``specbench run`` command that a user can paste."""
    return shlex.join(["specbench", "run", *_words(request, output)])


def _words(request: Request, output: Path | None) -> Iterator[str]:
    model, questions = request.model, request.questions
    given: list[tuple[str, Any, Any]] = [
        ("model", model.name, None),
        ("revision", model.revision, None),
        ("dtype", model.dtype, None),
        ("device", model.device, None),
        ("backend", model.backend, ModelChoice(name="").backend),
        ("template", model.template, DEFAULT_TEMPLATE),
        ("questions", questions.source, None),
        *(("task", task, None) for task in questions.tasks),
        ("limit", questions.limit, None),
    ]
    for item in fields(Settings):
        given.append(
            (item.name, getattr(request.settings, item.name), getattr(_DEFAULT, item.name))
        )
    for entry in request.entries:
        plain = entry.label == entry.method
        given.append(("method", entry.label if plain else f"{entry.label}={entry.method}", None))
        options = entry.options.items()
        given += [("option", f"{entry.label}.{name}={text}", None) for name, text in options]
    given.append(("output", output, None))
    for name, value, default in given:
        if value != default:
            yield from (f"--{name.replace('_', '-')}", str(value))


def _revision(manifest: Manifest) -> str | None:
    """That of a hub model; the package that a model of the catalogue comes from is none."""
    if manifest.model in MODELS:
        return None
    revision = manifest.settings.get("model_revision")
    return None if revision is None else str(revision)


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
