"""A worker: one model on one device, which answers a question with all methods."""

from __future__ import annotations

import gc

import torch
from msgspec.structs import replace

from specbench_kangaroo.machine.nvml import nvml_of
from specbench_kangaroo.record.errors import DeviceLostError, UsageError
from specbench_kangaroo.record.schema import BlockEdge
from specbench_kangaroo.run.device_log import edge_now
from specbench_kangaroo.run.ledger import MemoryLedger, missing
from specbench_kangaroo.run.pauses import collected_by_hand
from specbench_kangaroo.run.runner import answer_round, warm_up
from specbench_kangaroo.run.schedule import Round
from specbench_kangaroo.run.setup import Bench, Plan, load_bench, manifest
from specbench_kangaroo.run.workers.dealing import Answered, Ready, Refused, Unit


class Worker:
    """Lives in a process of its own, whose visible devices are the worker's alone.

    Args:
        number: which worker it is; its generations say so.
        plan: the run.
        threads: of torch, on the CPU.
    """

    def __init__(self, number: int, plan: Plan, *, threads: int) -> None:
        self._number = number
        self._plan = plan
        self._threads = threads
        self._bench: Bench | None = None
        self._warm = False

    def load(self) -> Ready | Refused:
        """Load the model.  What a user can fix is returned, not raised through a process."""
        torch.set_num_threads(self._threads)
        try:
            self._bench = load_bench(self._plan)
        except UsageError as error:
            return Refused(self._number, str(error))
        gc.collect()
        gc.freeze()  # for good: else every question begins with 0.1 s of looking through all that
        return Ready(self._number, manifest(self._bench, name="", command=""))

    def answer(self, unit: Unit) -> Answered:
        """Make what the unit lacks; before the first answer all methods are warmed up."""
        bench = self._loaded()
        ledger = MemoryLedger(unit.finished, unit.judged)
        edges: list[BlockEdge] = []
        nvml = nvml_of(bench.target.device)

        def note(item: Round, edge: str) -> None:
            if nvml is not None:
                edges.append(edge_now(nvml, item, edge, self._number))

        with collected_by_hand():
            if any(missing(item, ledger) for item in unit.rounds) and not self._warm:
                warm_up(bench)
                self._warm = True
            for item in unit.rounds:
                try:
                    answer_round(bench, item, ledger, note=note, on_finished=lambda _: None)
                except DeviceLostError as error:
                    raise SystemExit(str(error)) from error  # a new process may have a device
        answers = [(replace(made, worker=self._number), steps) for made, steps in ledger.answers]
        return Answered(self._number, answers, ledger.verdicts, edges)

    def _loaded(self) -> Bench:
        if self._bench is None:
            raise RuntimeError(f"worker {self._number} was asked before it had loaded its model")
        return self._bench
