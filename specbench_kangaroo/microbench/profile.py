"""A profile: what is asked for, loaded and measured.

Passes by rows, of every backend in turn, and the machine's rates beside them in every repeat, so
that a machine whose speed drifts hits all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from msgspec.structs import replace

from specbench_kangaroo.bench.pauses import collected_by_hand
from specbench_kangaroo.bench.schedule import rotated
from specbench_kangaroo.bench.setup import capturer_of, check_backend
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.machine import devices
from specbench_kangaroo.machine.devices import environment
from specbench_kangaroo.microbench.bandwidth import (
    measured_bandwidth_gb_s,
    measured_matmul_tflop_s,
    weight_bytes_per_token,
)
from specbench_kangaroo.microbench.estimates import Profile, Repeat, Sweep, summarise
from specbench_kangaroo.microbench.passes import Scene, open_scene, sweep
from specbench_kangaroo.models.load import load_model
from specbench_kangaroo.models.shapes import LATENCY_ONLY, random_model, shape_named
from specbench_kangaroo.record.request import TargetChoice

_SWEEPS_A_REPEAT = 5

OnProgress = Callable[[int, int], None]
"""Called with what is done and the total, between measurements and never within one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """A profile as it was asked for."""

    target: TargetChoice  # its backend is not looked at
    backends: tuple[str, ...] = ("eager",)
    shape: str | None = None  # random weights of this size in place of the model's
    repeats: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A target by backend, all of the same modules, and what the document says of it."""

    targets: Mapping[str, Target]
    weight_bytes: int  # that one token reads
    about: Mapping[str, Any]


def open_subject(request: ProfileRequest) -> Subject:
    """Check and load what a profile measures, what costs least first.

    Raises:
        UsageError: a model, shape, backend, dtype or device that does not exist, fit or work here.
    """
    for backend in request.backends:
        check_backend(replace(request.target, backend=backend))
    model, about = (_model if request.shape is None else _random_model)(request)
    targets = {
        name: Target(
            model, capturer=capturer_of(replace(request.target, backend=name), model.device)
        )
        for name in request.backends
    }
    weight_bytes = weight_bytes_per_token(model)
    about |= {
        "backend": request.backends[0],
        "threads": torch.get_num_threads(),
        "weight_bytes": weight_bytes,
        "repeats": request.repeats,
        "environment": environment(),
    }
    return Subject(targets=targets, weight_bytes=weight_bytes, about=about)


def _model(request: ProfileRequest) -> tuple[Any, dict[str, Any]]:
    choice = request.target
    loaded = load_model(
        choice.model, revision=choice.revision, dtype=choice.dtype, device=choice.device
    )
    said = {"model": loaded.name, "dtype": loaded.dtype, "device": loaded.device}
    return loaded.model, said


def _random_model(request: ProfileRequest) -> tuple[Any, dict[str, Any]]:
    shape, choice = shape_named(str(request.shape)), request.target
    device = devices.main_device(devices.check_device(choice.device or devices.default_device()))
    dtype = devices.check_dtype(choice.dtype or devices.default_dtype(device), device)
    # Every target lays the weights out again.
    model = random_model(shape, dtype=dtype, device=device, copies=1 + len(request.backends))
    said = {"model": shape.name, "weights": LATENCY_ONLY, "shape": shape.config}
    return model, said | {"dtype": dtype, "device": device}


def measure(subject: Subject, *, repeats: int, on_progress: OnProgress) -> Profile:
    """Warm up, then measure everything in turns, ``repeats`` times."""
    with collected_by_hand():
        scenes = {name: open_scene(target) for name, target in subject.targets.items()}
        for scene in scenes.values():
            sweep(scene, 0)  # kernels are chosen and passes captured at their first use
        found = []
        for number in range(repeats):
            on_progress(number, repeats)
            found.append(_repeat(scenes, number))
    committed = next(iter(scenes.values())).cache.length
    counts = {"context_tokens": committed, "sweeps": repeats * _SWEEPS_A_REPEAT}
    return summarise(found, weight_bytes=subject.weight_bytes, about={**subject.about, **counts})


def _repeat(scenes: Mapping[str, Scene], number: int) -> Repeat:
    sweeps: dict[str, list[Sweep]] = {name: [] for name in scenes}
    for turn in range(number * _SWEEPS_A_REPEAT, (number + 1) * _SWEEPS_A_REPEAT):
        for name in rotated(tuple(scenes), turn):
            sweeps[name].append(sweep(scenes[name], turn))
    target = next(iter(scenes.values())).target
    return Repeat(
        sweeps,
        measured_bandwidth_gb_s(target.device),
        measured_matmul_tflop_s(target.device, target.dtype),
    )
