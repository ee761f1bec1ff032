"""Files of draft weights: read safely, checked strictly, and what they say of themselves."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from specbench_kangaroo.record.errors import UsageError
from specbench_methods.shared.weight_sources import WeightKind, WeightSource


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightInfo:
    """What a file of ours says of itself; what does not apply to its method is left out of it."""

    target: str = ""
    target_sha256: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)  # how they were trained
    drafting: Mapping[str, Any] = field(default_factory=dict)  # options that were fastest with them
    draft_vocabulary: tuple[int, ...] | None = None  # LM-head rows that drafting uses; None: all
    exit_layer: int = 0  # whose states are read, if not the final ones
    rope_base: float | None = None  # None: the target's own RoPE
    # Draft paths by how often they were right on held-back text, the likeliest first.
    paths: tuple[tuple[tuple[int, ...], float], ...] = ()

    @classmethod
    def of(cls, note: dict[str, Any]) -> WeightInfo:
        """From a file's note, JSON that knows no tuples."""
        vocabulary = note.pop("draft_vocabulary", None)
        paths = note.pop("paths", ())
        return cls(
            **note,
            draft_vocabulary=None if vocabulary is None else tuple(vocabulary),
            paths=tuple((tuple(path), float(share)) for path, share in paths),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """Tensors by name, and what is known of them.

    Attributes:
        path: the file that an error names.
        published: the file says nothing of itself, so that ``specbench train`` did not write it.
        record: for a run's manifest: hash, training record, where published ones were found.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    info: WeightInfo
    published: bool
    record: Mapping[str, Any]


def read_weights(source: WeightSource, kind: WeightKind) -> LoadedWeights:
    """Everything that was found.  Of a whole model only the tensors of this kind are taken.

    Raises:
        UsageError: a file that is torn, or holds more than tensors.
    """
    tensors: dict[str, Tensor] = {}
    note = None
    for path in source.files:
        if path.suffix == ".safetensors":
            found, note = _read_safetensors(path, kind)
        else:
            found = _read_pickle(path, kind)
        tensors |= found
    info, published = WeightInfo.of(note or {}), note is None
    parameters = sum(tensor.numel() for tensor in tensors.values())
    found_at = {**source.origin, "parameters": parameters} if published else {}
    return LoadedWeights(
        path=source.path,
        tensors=tensors,
        info=info,
        published=published,
        record={"sha256": source.sha256(), **info.record, **found_at},
    )


def save_weights(path: Path, module: nn.Module, info: WeightInfo, kind: WeightKind) -> None:
    """Write a safetensors file in the published names; ``info`` goes into its metadata."""
    tensors = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
    of_one_kind = ("exit_layer", "paths")
    told = {name: of for name, of in asdict(info).items() if of or name not in of_one_kind}
    save_file(tensors, path, metadata={kind.method: json.dumps(told)})


def _read_safetensors(
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


def _read_pickle(path: Path, kind: WeightKind) -> dict[str, Tensor]:
    """The tensors of a kind in a published ``.bin`` or ``.pt`` file; nothing in it is executed.

    Raises:
        UsageError: there is more than tensors in it.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UsageError(f"{path} is not a plain file of tensors: {_first_line(error)}") from None
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise UsageError(f"{path} is not a plain file of tensors: it holds other things too")
    return {key: found[name] for key, name in _names(found, kind).items()}


def _names(names: Mapping[str, Any], kind: WeightKind) -> dict[str, str]:
    """Names without the prefix to names in the file: those with it, or else all."""
    inside = [name for name in names if name.startswith(kind.prefix)]
    return {name.removeprefix(kind.prefix): name for name in inside or names}


def check_tensors(
    loaded: LoadedWeights,
    build: Callable[[], nn.Module],
    sizes: Mapping[str, tuple[str, int]],
    *,
    owner: str,
) -> None:
    """Compare names and shapes with those of the module that ``build`` makes.

    Args:
        sizes: of the target, by what they are called: a tensor that is as long, and the number.

    Raises:
        UsageError: they were made for another target, or a tensor is missing, extra or misshapen.
    """
    path, found = loaded.path, loaded.tensors
    for name, (key, size) in sizes.items():
        if key in found and len(found[key]) != size:
            raise UsageError(
                f"{path} was made for a target of {name} {len(found[key])}, but this one has "
                f"{size}: give weights for this model (specbench list heads)"
            )
    with torch.device("meta"):
        wanted = build().state_dict()
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
