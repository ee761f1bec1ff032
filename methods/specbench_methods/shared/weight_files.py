"""Files of draft weights: read safely, checked strictly."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from specbench_kangaroo.record.errors import UsageError
from specbench_methods.shared.weight_sources import WeightKind, WeightSource


def read_weights(
    source: WeightSource, kind: WeightKind
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors by name, and what the file says of itself under the method's name.

    Of a whole model only the tensors of this kind are taken, without their prefix.  A file that
    says nothing of itself was not written by ``specbench train``: it is a published one.

    Raises:
        UsageError: a file that is torn, or holds more than tensors.
    """
    tensors: dict[str, Tensor] = {}
    note = None
    for path in source.files:
        if path.suffix == ".safetensors":
            found, note = read_safetensors(path, kind)
        else:
            found = _own(read_tensors(path), kind)
        tensors |= found
    return tensors, note


def read_safetensors(
    path: Path, kind: WeightKind
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a kind in one file, and its note for the kind's method, if it has one."""
    try:
        with safe_open(path, framework="pt") as file:
            names = dict.fromkeys(file.keys())
            tensors = {key: file.get_tensor(name) for key, name in _names(names, kind).items()}
            metadata = file.metadata() or {}
        note = json.loads(metadata[kind.method]) if kind.method in metadata else None
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} is not a whole safetensors file: {_first_line(error)}") from None
    return tensors, note


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A published ``.bin`` or ``.pt`` file; nothing in it is executed.

    Raises:
        UsageError: there is more than tensors in it.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UsageError(f"{path} is not a plain file of tensors: {_first_line(error)}") from None
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise UsageError(f"{path} is not a plain file of tensors: it holds other things too")
    return dict(found)


def _own(tensors: Mapping[str, Tensor], kind: WeightKind) -> dict[str, Tensor]:
    return {key: tensors[name] for key, name in _names(tensors, kind).items()}


def _names(names: Mapping[str, Any], kind: WeightKind) -> dict[str, str]:
    """Names without the prefix to names in the file: those with it, or else all."""
    inside = [name for name in names if name.startswith(kind.prefix)]
    return {name.removeprefix(kind.prefix): name for name in inside or names}


def check_sizes(path: Path, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Compare what weights were made for with what the target has, by the size's name.

    Raises:
        UsageError: they were made for another target.
    """
    for name, (found, wanted) in sizes.items():
        if found != wanted:
            raise UsageError(
                f"{path} was made for a target of {name} {found}, but this one has {wanted}: give "
                "weights for this model (specbench list heads)"
            )


def check_tensors(
    path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, owner: str
) -> None:
    """Compare names and shapes.

    Raises:
        UsageError: a tensor is missing, extra or misshapen.
    """
    for key in sorted(wanted.keys() | found.keys()):
        if key not in found:
            raise UsageError(f"{path}: tensor {key} is missing")
        if key not in wanted:
            raise UsageError(f"{path}: tensor {key} does not belong to {owner}")
        if found[key].shape != wanted[key].shape:
            raise UsageError(
                f"{path}: tensor {key} has shape {list(found[key].shape)}, but this target needs "
                f"{list(wanted[key].shape)}"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
