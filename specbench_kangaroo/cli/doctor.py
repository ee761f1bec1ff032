"""``specbench doctor``: what works on this machine and what does not.

It touches no network and changes nothing but the cache of dtype probes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from specbench_kangaroo.cli.output import deliver
from specbench_kangaroo.machine import devices
from specbench_kangaroo.machine.cache_folder import CACHE_VARIABLE, cache_folder
from specbench_kangaroo.models.catalogue import MODELS, missing_pip
from specbench_kangaroo.record.errors import UsageError


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``ok`` is False only for what keeps something from working."""

    name: str
    ok: bool
    detail: str


def diagnose() -> list[Finding]:
    """Every check, in the order in which the user should read them."""
    found = devices.environment()
    return [
        _versions(found),
        _processor(found),
        Finding("nvml", True, str(found["nvml"])),
        *(_dtypes(device) for device in devices.available_devices()),
        _cache(),
        *(Finding(f"model {name}", True, spec.about) for name, spec in MODELS.items()),
        Finding("pip", not missing_pip(), missing_pip() or "present (the network was not tried)"),
    ]


def _versions(found: Mapping[str, Any]) -> Finding:
    commit = found["git_commit"] or "not a checkout"
    versions = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "transformers"))
    return Finding("versions", True, f"{versions}; commit {commit}")


def _processor(found: Mapping[str, Any]) -> Finding:
    gpus = ", ".join(gpu["name"] for gpu in found["gpus"]) or "no CUDA device"
    threads = found["torch_threads"]
    return Finding("devices", True, f"{found['cpu']}, {threads} torch threads; {gpus}")


def _dtypes(device: str) -> Finding:
    try:
        working = devices.working_dtypes(device)
    except UsageError as error:  # the answer cannot be kept; the cache's own line says why
        return Finding(f"dtypes on {device}", False, str(error))
    broken = [dtype for dtype in devices.DTYPES if dtype not in working]
    detail = f"these work: {', '.join(working) or 'none'}"
    detail += f"; these do not: {', '.join(broken)}" if broken else ""
    return Finding(f"dtypes on {device}", devices.default_dtype(device) in working, detail)


def _cache() -> Finding:
    folder = cache_folder()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        detail = f"{folder} cannot be written; {CACHE_VARIABLE} names another folder"
        return Finding("cache", False, detail)
    size_mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return Finding("cache", True, f"{folder}, {size_mb:.0f} MB")


def doctor() -> None:
    """Check versions, devices, dtypes and the cache.

    Exit status 1: one of them fails.
    """
    findings = diagnose()
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        mark = Text("ok", style="green") if finding.ok else Text("FAILS", style="red")
        table.add_row(mark, Text(finding.name), Text(finding.detail, overflow="fold"))
    deliver(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
