"""A run by several workers: opened, agreed upon, and executed as one process's run would be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from msgspec import structs

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.manifest import first_difference
from specbench_kangaroo.record.schema import Manifest
from specbench_kangaroo.record.writer import RunWriter
from specbench_kangaroo.run.config import Request
from specbench_kangaroo.run.runner import OnFinished
from specbench_kangaroo.run.schedule import Round, rounds
from specbench_kangaroo.run.setup import Plan, plan_of
from specbench_kangaroo.run.signals import Interruption
from specbench_kangaroo.run.workers.cluster import RayCrew, cluster, share_of
from specbench_kangaroo.run.workers.dealing import (
    Crew,
    Dealer,
    Died,
    Ready,
    Refused,
    open_units,
)

Say = Callable[[str], None]


class Workers:
    """The :class:`~specbench_kangaroo.run.runner.Runner` that deals questions to workers.

    Args:
        crew: workers that are ready.
        plan: the run.
        manifests: of each worker, by its number.
        say: tells the user what happened, in a line.
    """

    def __init__(self, crew: Crew, plan: Plan, manifests: Sequence[Manifest], *, say: Say) -> None:
        self._crew = crew
        self._plan = plan
        self._manifests = manifests
        self._say = say

    @property
    def rounds(self) -> Sequence[Round]:
        """See :class:`~specbench_kangaroo.run.runner.Runner`."""
        plan = self._plan
        repeats = plan.request.settings.repeats
        return list(rounds(plan.questions.questions, tuple(plan.options), repeats=repeats))

    def manifest(self, *, name: str, command: str) -> Manifest:
        """See :class:`~specbench_kangaroo.run.runner.Runner`."""
        return merged(self._manifests, name=name, command=command)

    def execute(
        self, writer: RunWriter, *, on_finished: OnFinished, interruption: Interruption
    ) -> None:
        """See :class:`~specbench_kangaroo.run.runner.Runner`."""
        dealer = Dealer(
            self._crew,
            writer,
            workers=len(self._manifests),
            agree=partial(refuse_disagreement, first=self._manifests[0]),
            say=self._say,
            on_finished=on_finished,
            interruption=interruption,
        )
        dealer.run(open_units(self.rounds, writer, greedy=self._plan.sampling is None))


@contextmanager
def opened(request: Request, address: str | None, *, say: Say) -> Iterator[Workers]:
    """Workers that have loaded what the request asks for; they end with the block.

    Args:
        request: of so many workers.
        address: a Ray cluster's; None starts one on this machine, which ends with the block too.
        say: tells the user what happened, in a line.

    Raises:
        UsageError: anything in the request that does not exist, fit or work, here or on a worker.
    """
    plan = plan_of(request)
    workers = request.settings.workers
    with cluster(address, cpus=torch.get_num_threads()) as ray:
        share = share_of(ray, workers, request.model.device)
        if share.device == "cpu" and workers > 1:
            say(
                f"warning: {workers} workers share processors and disturb each other's times; "
                "take speedups from a run with one worker"
            )
        model = replace(request.model, device=share.device)
        plan = replace(plan, request=replace(request, model=model))
        crew = RayCrew(ray, plan, share)
        manifests = load_all(crew, workers)
        if line := devices_differ(manifests):
            say(line)
        yield Workers(crew, plan, manifests, say=say)


def load_all(crew: Crew, workers: int) -> list[Manifest]:
    """Start all workers and wait for them: what they do not agree on is refused before any answer.

    Raises:
        UsageError: what a worker said that it cannot run, or that it died.
    """
    for worker in range(workers):
        crew.start(worker)
    found: dict[int, Manifest] = {}
    while len(found) < workers:
        match crew.wait():
            case Ready(worker=worker, manifest=manifest):
                found[worker] = manifest
            case Refused(reason=reason):
                raise UsageError(reason)
            case Died(worker=worker):
                raise UsageError(
                    f"worker {worker} died while it loaded the model, perhaps for lack of memory; "
                    "give fewer --workers, or a smaller --model"
                )
            case _:
                pass
    return [found[worker] for worker in range(workers)]


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
    return structs.replace(first, name=name, command=command, environment=environment)


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
