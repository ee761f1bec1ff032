"""A worker: one model on one device, which answers a question with all methods."""

from __future__ import annotations

import gc

import torch
from msgspec.structs import replace

from specbench_kangaroo.bench.runner import answer_rounds
from specbench_kangaroo.bench.schedule import MemoryLedger
from specbench_kangaroo.bench.setup import Bench, Plan, load_bench, manifest
from specbench_kangaroo.bench.signals import Interruption
from specbench_kangaroo.bench.workers.dealing import Answered, Ready, Refused, Unit
from specbench_kangaroo.record.errors import DeviceLostError, UsageError
from specbench_kangaroo.record.schema import BlockEdge


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
        self._bench: Bench
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
        return Ready(self._number, manifest(self._bench))

    def answer(self, unit: Unit) -> Answered:
        """Make what the unit lacks; before the first answer all methods are warmed up."""
        ledger = MemoryLedger(unit.finished, unit.judged)
        edges: list[BlockEdge] = []
        try:
            answer_rounds(
                self._bench,
                unit.rounds,
                ledger,
                on_finished=lambda _: None,
                on_edge=edges.append,
                interruption=Interruption(),  # the driver's alone is asked
                warm=self._warm,
            )
        except DeviceLostError as error:
            raise SystemExit(str(error)) from error  # a new process may have a device
        self._warm = self._warm or bool(ledger.answers)
        number = self._number
        answers = [(replace(made, worker=number), steps) for made, steps in ledger.answers]
        marked = [replace(edge, worker=number) for edge in edges]
        return Answered(number, answers, ledger.verdicts, marked)
