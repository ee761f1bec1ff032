"""Files of draft weights: read safely, checked strictly.

Knows: safetensors with a JSON note in their metadata, published files of plain tensors.  Does not
know: what the tensors are for.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from specbench_kangaroo.errors import UsageError


def shipped(model: str, method: str) -> Path | None:
    """The weights that come with the package for a model of this name, if there are any."""
    path = Path(__file__).parents[1] / "weights" / model / f"{method}.safetensors"
    return path if model and path.is_file() else None


def read_safetensors(path: Path, method: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and what the file says of itself under the method's name.

    Raises:
        UsageError: it says nothing, so it was not written for this method.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    if method not in metadata:
        raise UsageError(
            f"{path} has no {method!r} metadata: write it with specbench train {method}"
        )
    return tensors, json.loads(metadata[method])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A published ``.bin`` or ``.pt`` file; nothing in it is executed.

    Raises:
        UsageError: there is more than tensors in it.
    """
    try:
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UsageError(f"{path} is not a plain file of tensors: {_first_line(error)}") from None
    return found


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
