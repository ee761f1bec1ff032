"""A run by several workers: opened, agreed upon, and executed as one process's run would be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from msgspec import structs

from specbench_kangaroo.bench.runner import OnFinished, Runner
from specbench_kangaroo.bench.setup import Plan, plan_of
from specbench_kangaroo.bench.signals import Interruption
from specbench_kangaroo.bench.workers.cluster import RayCrew, cluster, share_of
from specbench_kangaroo.bench.workers.dealing import (
    Crew,
    Dealer,
    Died,
    Ready,
    Refused,
    Say,
    open_units,
    refuse_disagreement,
)
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.request import Request
from specbench_kangaroo.record.schema import Manifest
from specbench_kangaroo.record.writer import RunWriter


@contextmanager
def opened(request: Request, address: str | None, *, say: Say) -> Iterator[Runner]:
    """A runner whose workers have loaded what the request asks for; they end with the block.

    Args:
        request: of so many workers.
        address: a Ray cluster's; None starts one on this machine, which ends with the block too.
        say: tells the user what happened, in a line.

    Raises:
        UsageError: anything in the request that does not exist, fit or work, here or on a worker.
    """
    plan = plan_of(request)
    workers = request.decoding.workers
    with cluster(address, cpus=torch.get_num_threads()) as ray:
        share = share_of(ray, workers, request.target.device)
        if share.device == "cpu" and workers > 1:
            say(
                f"warning: {workers} workers share processors and disturb each other's times; "
                "take speedups from a run with one worker"
            )
        target = structs.replace(request.target, device=share.device)
        plan = replace(plan, request=structs.replace(request, target=target))
        crew = RayCrew(ray, plan, share)
        manifests = load_all(crew, workers)
        if line := devices_differ(manifests):
            say(line)
        yield runner_of(crew, plan, manifests, say=say)


def runner_of(crew: Crew, plan: Plan, manifests: Sequence[Manifest], *, say: Say) -> Runner:
    """What deals the plan's questions to workers that are ready; ``manifests`` are theirs.

    Raises:
        UsageError: workers that do not run the same thing.
    """

    def execute(writer: RunWriter, on_finished: OnFinished, interruption: Interruption) -> None:
        dealer = Dealer(
            crew=crew,
            manifests=manifests,
            writer=writer,
            say=say,
            on_finished=on_finished,
            interruption=interruption,
        )
        dealer.run(open_units(plan.rounds, writer, greedy=plan.sampling is None))

    return Runner(plan, merged(manifests), execute)


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
    return [found[worker] for worker in range(workers)]


def merged(manifests: Sequence[Manifest]) -> Manifest:
    """The run's manifest: the first worker's, with the environment of each in ``workers``.

    Raises:
        UsageError: workers that do not run the same thing.
    """
    first = manifests[0]
    for worker, manifest in enumerate(manifests):
        refuse_disagreement(worker, manifest, first)
    environments = [dict(manifest.environment) for manifest in manifests]
    environment = {**first.environment, "workers": environments}
    return structs.replace(first, environment=environment)


def devices_differ(manifests: Sequence[Manifest]) -> str | None:
    """A line for people if the workers' devices are of several kinds, else None."""
    kinds = list(dict.fromkeys(map(_device_of, manifests)))
    if len(kinds) == 1:
        return None
    return (
        f"warning: the workers' devices differ ({', '.join(kinds)}); each speedup is of one "
        "device, and the totals mix them"
    )


def _device_of(manifest: Manifest) -> str:
    """What a worker computes on: its GPU's name or its processor's."""
    on_gpu = str(manifest.resolved.device).startswith("cuda") and manifest.gpu_names
    return on_gpu[0] if on_gpu else str(manifest.environment.get("cpu"))
