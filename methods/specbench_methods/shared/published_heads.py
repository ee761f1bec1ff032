"""Which heads there are for which model: those in this package, and those that others published.

The numbers of published heads are what the pages beside them say, or follow from: parameters from
the shapes of heads and target, five heads a Medusa file from its authors' word and its size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from specbench_kangaroo.models.heads import KnownHeads
from specbench_methods.shared.weight_sources import WeightKind, shipped

_CATALOGUE = Path(__file__).with_suffix(".json")


def known_heads(kind: WeightKind) -> list[KnownHeads]:
    """The heads of a method: shipped ones, then published ones."""
    return [*(_shipped(model, path, kind) for model, path in shipped(kind.method).items())] + [
        _published(entry, kind) for entry in catalogue() if entry["method"] == kind.method
    ]


def catalogue() -> list[dict[str, Any]]:
    """The published heads of all methods."""
    entries: list[dict[str, Any]] = json.loads(_CATALOGUE.read_text(encoding="utf-8"))
    return entries


def _shipped(model: str, path: Path, kind: WeightKind) -> KnownHeads:
    with safe_open(path, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        note = json.loads(file.metadata()[kind.method])
    sizes = [shape[0] if len(shape) == 1 else shape[0] * shape[1] for shape in shapes]
    return KnownHeads(model=model, parameters=sum(sizes), about=_about(note))


def _published(entry: dict[str, Any], kind: WeightKind) -> KnownHeads:
    return KnownHeads(
        model=entry["model"],
        revision=entry["revision"],
        given=f"{kind.method}.{kind.option}={entry.get('repository', 'FOLDER')}",
        download=entry.get("download", ""),
        parameters=entry["parameters"],
        about=_about(entry),
        sources=tuple(entry["sources"]),
    )


def _about(said: dict[str, Any]) -> str:
    if "exit_layer" in said:
        return f"exit layer {said['exit_layer']}"
    return f"{said['heads']} heads" if "heads" in said else ""
