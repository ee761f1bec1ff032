"""Weights on disk: a folder from the hub, and the hash that identifies a folder's weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from specbench_kangaroo.machine.cache_folder import remembered, sha256_of
from specbench_kangaroo.record.errors import UsageError

# Only what loading reads.  Some repositories hold the same weights again under other names.
_WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_UNWANTED = ["*/*", "consolidated*"]
_HUB_ID = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


def hub_id(text: str) -> tuple[str, str | None] | None:
    """The name and the revision of ``org/name`` or ``org/name@revision``; None if it is neither."""
    found = _HUB_ID.fullmatch(text)
    return (found[1], found[2]) if found else None


def hub_folder(
    name: str,
    *,
    revision: str | None = None,
    wanted: Sequence[str] = _WANTED,
    kind: str = "model",
) -> Path:
    """The snapshot folder of ``name`` on the hub, named by its commit; downloaded if need be.

    Args:
        name: ``org/name``.
        revision: a branch, tag or commit.
        wanted: patterns of the files that are fetched; the folder may lack any of them.
        kind: what an error calls it.

    Raises:
        UsageError: no such model or revision, no permission, or no network and no cached copy.
    """
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415 (slow to import)

    at = f" at revision {revision!r}" if revision else ""
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(wanted), ignore_patterns=_UNWANTED
        )
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{name} asks for permission: accept its terms at https://huggingface.co/{name}, then "
            "`hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UsageError(f"the hub has no {kind} {name}{at} (or it is private)") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise UsageError(
            f"cannot fetch {name}{at} ({type(error).__name__}): no folder and no known {kind} has "
            "that name, there is no cached copy, and the hub does not answer"
        ) from error
    return Path(folder)


def weights_sha256(folder: Path) -> str:
    """One SHA-256 over names, sizes and bytes of a folder's safetensors files.

    Hashing runs near 1 GB/s, so the answer for each file is kept in the cache under the file's
    path, size and modification time.

    Raises:
        UsageError: the folder is not a model's.
    """
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no config.json; --model takes a folder that has one")
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UsageError(f"{folder} holds no *.safetensors file; other formats are not loaded")
    return files_sha256(paths)


def files_sha256(paths: Sequence[Path]) -> str:
    """One SHA-256 over names, sizes and bytes of files, in their order; kept in the cache."""
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name} {path.stat().st_size} {_file_sha256(path)}\n".encode())
    return total.hexdigest()


def _file_sha256(path: Path) -> str:
    state = path.stat()
    key = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
    return remembered("hashes", key, lambda: sha256_of(path))
