"""Workers as Ray actors: a cluster found or started, its devices shared out, actors and their ends.

A cluster that was started elsewhere must have this package, its methods and the model on every
node, at the same versions and under the same names: code and weights are not sent, questions are.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from specbench_kangaroo.bench.setup import Plan
from specbench_kangaroo.bench.workers import worker
from specbench_kangaroo.bench.workers.dealing import Died, Event, Unit
from specbench_kangaroo.record.errors import UsageError

LOCAL = "local"  # Ray's address of a cluster that is started here and ends with this process
PATIENCE_S = 1.0  # how long a wait takes in which nothing happens
_ANSWER_S = 5.0  # that a cluster elsewhere has to answer in
_OBJECT_STORE_BYTES = 128 * 2**20  # answers are small
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns that it will be so
}


@dataclass(frozen=True, slots=True)
class Share:
    """What of a cluster each worker gets."""

    device: str  # cpu, or cuda: the one GPU that Ray lets the worker see
    threads: int  # of torch
    cpus: int  # reserved; 0 where there are fewer than workers


@contextmanager
def cluster(address: str | None, *, cpus: int) -> Iterator[Any]:
    """Ray, connected: to ``address``, or to a cluster of this machine with ``cpus`` of its cores.

    Raises:
        UsageError: Ray is not installed, or no cluster answers.
    """
    ray = _ray()
    if address is not None:
        _reach(address)
    on_terminate = signal.getsignal(signal.SIGTERM)
    started_here: dict[str, Any] = {
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
    options = started_here if address is None else {}
    try:
        ray.init(address or LOCAL, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _unreachable(address or "this machine", error) from error
    finally:
        _set_handler(on_terminate)  # Ray sets one of its own, which ends the process
    try:
        yield ray
    finally:
        ray.shutdown()


def _ray() -> Any:
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    try:
        import ray  # noqa: PLC0415 (an optional extra, and seconds to import)
    except ImportError:
        raise UsageError(
            'workers need Ray, which is not installed; pip install "specbench-kangaroo[ray]"'
        ) from None
    return ray


def _reach(address: str) -> None:
    """Ask HOST:PORT for a sign of life: Ray itself would try for minutes, and aloud."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
        except OSError as error:
            raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> UsageError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UsageError(
        f"no Ray cluster at {address}: {reason}; start one with `ray start --head`, or set "
        "RAY_AUTH_MODE=token if it wants Ray's token"
    )


def _set_handler(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def share_of(ray: Any, workers: int, device: str | None) -> Share:
    """What each of ``workers`` gets; ``device`` is the user's wish, None for GPUs if there are any.

    Raises:
        UsageError: there are fewer GPUs than workers, or the wish is one GPU by its number.
    """
    if device not in (None, "cpu", "cuda"):
        raise UsageError(
            f"--device {device}: workers get a GPU each; give cuda or cpu, and choose among the "
            "GPUs with CUDA_VISIBLE_DEVICES"
        )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cores = cores_each([int(node.get("CPU", 0)) for node in nodes], workers)
    if device == "cpu" or (device is None and gpus == 0):
        return Share(device="cpu", threads=max(1, cores), cpus=cores)
    if gpus < workers:
        raise UsageError(
            f"--workers {workers} needs as many GPUs and the cluster has {gpus}; give "
            f"{f'--workers {gpus}' if gpus > 1 else 'one worker'}, or --device cpu"
        )
    return Share(device="cuda", threads=max(1, cores), cpus=min(1, cores))


def cores_each(nodes: Sequence[int], workers: int) -> int:
    """The most cores that each worker can have if none is split over nodes; 0 if there are too few.

    Args:
        nodes: the cores of each.
        workers: how many share them.
    """
    shares = range(max(nodes, default=0), 0, -1)
    return next((n for n in shares if sum(cores // n for cores in nodes) >= workers), 0)


class RayCrew:
    """Workers as actors; see :class:`~specbench_kangaroo.bench.workers.dealing.Crew`.

    An actor is never restarted by Ray: whoever deals the questions starts another in its place.
    """

    def __init__(self, ray: Any, plan: Plan, share: Share) -> None:
        self._ray = ray
        self._plan = plan
        self._threads = share.threads
        self._actor = ray.remote(worker.Worker).options(
            num_cpus=share.cpus,
            num_gpus=1 if share.device == "cuda" else 0,
            max_restarts=0,
            max_task_retries=0,
        )
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, int] = {}  # what an actor was asked: which worker it is
        errors = ray.exceptions
        self._gone = (
            errors.RayActorError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.ObjectLostError,  # a node died between the answer and its arrival
        )

    def start(self, worker: int) -> None:
        """See :class:`~specbench_kangaroo.bench.workers.dealing.Crew`."""
        if worker in self._actors:
            self._ray.kill(self._actors[worker])  # one that is unreachable may be alive
        actor = self._actor.remote(worker, self._plan, threads=self._threads)
        self._actors[worker] = actor
        self._pending[actor.load.remote()] = worker

    def ask(self, worker: int, unit: Unit) -> None:
        """See :class:`~specbench_kangaroo.bench.workers.dealing.Crew`."""
        self._pending[self._actors[worker].answer.remote(unit)] = worker

    def wait(self) -> Event | None:
        """See :class:`~specbench_kangaroo.bench.workers.dealing.Crew`."""
        arrived, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=PATIENCE_S)
        if not arrived:
            return None
        worker = self._pending.pop(arrived[0])
        try:
            event: Event = self._ray.get(arrived[0])
        except self._gone:
            return Died(worker)
        return event
