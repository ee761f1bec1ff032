"""One manifest out of several: workers must run the same thing, told apart by their device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.manifest import first_difference
from specbench_kangaroo.record.schema import Manifest


def refuse_disagreement(worker: int, given: Manifest, first: Manifest) -> None:
    """Raises :class:`UsageError` that names the first field in which a worker's run is another."""
    found = first_difference(first, given)
    if found is not None:
        raise UsageError(
            f"worker {worker} differs from worker 0: {found.field} is {found.given!r} there and "
            f"{found.stored!r} on worker 0; give all nodes the same model, weights and versions"
        )


def merged(manifests: Sequence[Manifest], *, name: str, command: str) -> Manifest:
    """The run's manifest: the first worker's, with the environment of each in ``workers``.

    Raises:
        UsageError: workers that do not run the same thing.
    """
    first = manifests[0]
    for worker, manifest in enumerate(manifests):
        refuse_disagreement(worker, manifest, first)
    environments = [dict(manifest.environment) for manifest in manifests]
    environment = {**first.environment, "workers": environments}
    return replace(first, name=name, command=command, environment=environment)


def devices_differ(manifests: Sequence[Manifest]) -> str | None:
    """A line for people if the workers' devices are of several kinds, else None."""
    kinds = list(dict.fromkeys(map(device_of, manifests)))
    if len(kinds) == 1:
        return None
    return (
        f"warning: the workers' devices differ ({', '.join(kinds)}); each speedup is of one "
        "device, and the totals mix them"
    )


def device_of(manifest: Manifest) -> str:
    """What a worker computes on: its GPU's name or its processor's."""
    environment: Mapping[str, Any] = manifest.environment
    gpus = environment.get("gpus") or []
    on_gpu = str(manifest.settings.get("device")).startswith("cuda") and gpus
    return str(gpus[0].get("name") if on_gpu else environment.get("cpu"))
