"""Where draft weights come from: shipped with the package, a file, a folder, or the hub.

What is listed of published ones is what the pages beside them say, or follows from it: parameters
from the shapes of heads and target, five heads a Medusa file from its authors' word and its size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open

from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.machine.cache_folder import sha256_of
from specbench_kangaroo.models.heads import KnownHeads
from specbench_kangaroo.models.hub import files_sha256, hub_folder, hub_id
from specbench_kangaroo.record.errors import UsageError

CONFIG = "config.json"
_INDEX = ".index.json"  # of a model in several files: which tensor lies in which
_FILES = (".safetensors", ".bin", ".pt")
_SHIPPED = Path(__file__).parents[1] / "weights"
_CATALOGUE = Path(__file__).with_name("published_heads.json")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightKind:
    """What is looked for."""

    method: str
    option: str  # of the method: the one that names the weights
    title: str
    names: tuple[str, ...]  # of files in a folder or on the hub; the first that is there is read
    prefix: str = ""  # with which its tensors begin inside a whole model


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Files that were found, and what is known of them besides their tensors."""

    files: tuple[Path, ...]  # one, or those of a whole model that hold such tensors
    config: Mapping[str, Any] = field(default_factory=dict)  # of the config.json beside them
    origin: Mapping[str, str] = field(default_factory=dict)  # hub repository and commit

    @property
    def path(self) -> Path:
        """The file that an error names."""
        return self.files[0]

    @property
    def identity(self) -> tuple[str, ...]:
        """Of all that is read: the same for the same files with the same contents."""
        beside = json.dumps([dict(self.config), dict(self.origin)], sort_keys=True)
        return (*(str(path.resolve()) for path in self.files), self.sha256(), beside)

    def sha256(self) -> str:
        """Of the one file's bytes, or of all files together."""
        return sha256_of(self.path) if len(self.files) == 1 else files_sha256(self.files)


def known_heads(kind: WeightKind) -> list[KnownHeads]:
    """The heads of a method: shipped ones, then published ones."""
    published = [entry for entry in catalogue() if entry["method"] == kind.method]
    return [
        *(_known_shipped(model, path, kind) for model, path in _shipped(kind).items()),
        *(_known_published(entry, kind) for entry in published),
    ]


def catalogue() -> list[dict[str, Any]]:
    """The published heads of all methods."""
    entries: list[dict[str, Any]] = json.loads(_CATALOGUE.read_text(encoding="utf-8"))
    return entries


def build_once(
    target: Target, given: str | None, kind: WeightKind, build: Callable[[WeightSource], T]
) -> T:
    """What is built of the weights that an option names, which all methods of a target share.

    Args:
        given: a file, a folder, ``org/name`` or ``org/name@revision`` of the hub; None: those
            shipped for a model of the target's name.

    Raises:
        UsageError: there are none, or what ``build`` raises.
    """
    path = _shipped(kind).get(target.name)
    if given is None and path is None:
        raise UsageError(
            f"no {kind.title} shipped for {target.name or 'this model'}: give {kind.method}."
            f"{kind.option}=FILE, FOLDER or org/name (specbench list heads names published ones), "
            f"or make your own with specbench train {kind.method}"
        )
    source = locate(given or str(path), kind)
    return target.once((kind.method, source.identity), lambda: build(source))


def locate(text: str, kind: WeightKind) -> WeightSource:
    """A file, the file of this kind in a folder, or that of a hub repository, downloaded.

    Raises:
        UsageError: nothing of that name, nothing of this kind in it, or no way to fetch it.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        found = [path / name for name in kind.names if (path / name).is_file()]
        if not found:
            raise UsageError(f"{path} holds no {kind.title}: none of {', '.join(kind.names)}")
        path = found[0]
    if path.is_file():
        return WeightSource(_files(path, kind), _config(path.parent))
    named = hub_id(text)
    if named is None or text.endswith(_FILES):
        raise UsageError(
            f"no {kind.title} at {text}: give a file, a folder, or org/name of a hub repository"
        )
    return _fetch(*named, kind)


def _fetch(name: str, revision: str | None, kind: WeightKind) -> WeightSource:
    """One name after the other: repositories hold the same weights in several formats."""

    def download(wanted: Sequence[str]) -> Path:
        return hub_folder(name, revision=commit, wanted=wanted, kind=kind.title)

    commit = revision
    for file in kind.names:
        folder = download([CONFIG, file])
        commit = folder.name  # what follows is of the same commit
        if (folder / file).is_file():
            if file.endswith(_INDEX):
                download(_shards(folder / file, kind))
            origin = {"repository": name, "commit": commit, "file": file}
            return WeightSource(_files(folder / file, kind), _config(folder), origin)
    raise UsageError(f"{name} on the hub holds no {kind.title}: none of {', '.join(kind.names)}")


def _files(path: Path, kind: WeightKind) -> tuple[Path, ...]:
    if not path.name.endswith(_INDEX):
        return (path,)
    paths = tuple(path.parent / name for name in _shards(path, kind))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UsageError(f"{path} names {', '.join(missing)}, which is not there: fetch it too")
    return paths


def _shards(index: Path, kind: WeightKind) -> list[str]:
    """The files beside an index that hold tensors of this kind."""
    places = _json(index).get("weight_map")
    places = places if isinstance(places, dict) else {}
    names = sorted({str(places[key]) for key in places if key.startswith(kind.prefix)})
    if not kind.prefix or not names:
        raise UsageError(f"{index} names no tensor of {kind.title}: it is a model without them")
    if outside := [name for name in names if Path(name).name != name]:
        raise UsageError(f"{index} names {outside[0]!r}, which is no file beside it")
    return names


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def _shipped(kind: WeightKind) -> dict[str, Path]:
    """The weights that come with the package, by the model's short name."""
    paths = sorted(_SHIPPED.glob(f"*/{kind.method}.safetensors"))
    return {path.parent.name: path for path in paths}


def _known_shipped(model: str, path: Path, kind: WeightKind) -> KnownHeads:
    with safe_open(path, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        note = json.loads(file.metadata()[kind.method])
    sizes = [shape[0] if len(shape) == 1 else shape[0] * shape[1] for shape in shapes]
    return KnownHeads(model=model, parameters=sum(sizes), about=_about(note))


def _known_published(entry: dict[str, Any], kind: WeightKind) -> KnownHeads:
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
