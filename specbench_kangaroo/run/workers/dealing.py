"""Dealing questions to workers, taking their answers, and what happens when one dies.

A unit's answers arrive together and this process alone writes them, one after the other: what a
dead worker had begun is made again whole.  A second Ctrl-C, a kill or a full disk may come between
two of them; what is written then stays, and resuming makes the others on the same worker.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import (
    BlockEdge,
    Generation,
    GenerationKey,
    Judgement,
    Manifest,
    Status,
    StepRecord,
)
from specbench_kangaroo.record.writer import RunWriter
from specbench_kangaroo.run.device_log import append_edges
from specbench_kangaroo.run.ledger import Ledger, missing, open_rounds
from specbench_kangaroo.run.schedule import Round, conversations
from specbench_kangaroo.run.signals import Interruption

MOST_DEATHS = 3
"""So many workers may die of one question, or one after the other while they load."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A question in one repeat: all its open turns, for all methods, on one worker."""

    rounds: tuple[Round, ...]
    finished: tuple[Generation, ...] = ()  # by an interrupted run, earlier turns included
    judged: frozenset[GenerationKey] = frozenset()

    @property
    def question_id(self) -> int:
        """Which question it is."""
        return self.rounds[0].question.question_id

    @property
    def key(self) -> tuple[int, int]:
        """Its question and repeat."""
        return self.question_id, self.rounds[0].repeat

    @property
    def worker(self) -> int | None:
        """The worker that has to finish it, as its answers are to be compared on one device."""
        return self.finished[0].worker if self.finished else None


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has loaded its model; the manifest is what a run of it alone would have."""

    worker: int
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker cannot run the request: the line of its :class:`UsageError`."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A unit's new answers with their steps, its verdicts, and the device while it was made."""

    worker: int
    answers: Sequence[tuple[Generation, Sequence[StepRecord]]]
    verdicts: Sequence[Judgement]
    edges: Sequence[BlockEdge] = ()


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is gone, and what it was doing with it."""

    worker: int


Event = Ready | Refused | Answered | Died


def open_units(rounds: Iterable[Round], ledger: Ledger, *, greedy: bool) -> Iterator[Unit]:
    """What the run folder lacks, question by question in the run's order."""
    for turns in conversations(rounds):
        todo = open_rounds(turns, ledger, greedy=greedy)
        if todo:
            keys = [item.key(method) for item in turns for method in item.order]
            yield Unit(
                rounds=tuple(todo),
                finished=tuple(ledger.finished[key] for key in keys if key in ledger.finished),
                judged=frozenset(keys) & ledger.judged,
            )


class Crew(Protocol):
    """Workers by number, whatever they run on."""

    def start(self, worker: int) -> None:
        """Start a worker, in place of the one of that number if there was one."""
        ...

    def ask(self, worker: int, unit: Unit) -> None:
        """Give a unit to a worker that has nothing to do."""
        ...

    def wait(self) -> Event | None:
        """What happened next; None after a while in which nothing did."""
        ...


class Dealer:
    """One run's dealing, from workers that are ready to the last answer.

    Args:
        crew: workers 0 to ``workers - 1``, all of them ready.
        writer: the run folder.
        agree: refuses the manifest of a worker that replaces another, by a UsageError.
        say: tells the user what happened, in a line.
        on_finished: called for every generation, when its unit has arrived.
        interruption: asked before a unit is dealt.
    """

    def __init__(
        self,
        crew: Crew,
        writer: RunWriter,
        *,
        workers: int,
        agree: Callable[[int, Manifest], None],
        say: Callable[[str], None],
        on_finished: Callable[[Generation], None],
        interruption: Interruption,
    ) -> None:
        self._crew = crew
        self._writer = writer
        self._agree = agree
        self._say = say
        self._on_finished = on_finished
        self._interruption = interruption
        self._idle = set(range(workers))
        self._running: dict[int, Unit] = {}
        self._deaths: Counter[tuple[int, int]] = Counter()  # by question and repeat
        self._failed_starts: Counter[int] = Counter()

    def run(self, units: Iterable[Unit]) -> None:
        """Have all units answered and written.

        Raises:
            KeyboardInterrupt: the interruption asked for it; what was under way is written.
            UsageError: a worker cannot be replaced.
        """
        self._queue = deque(units)
        while True:
            if not self._interruption.asked:
                self._deal()
            if not self._running and (self._interruption.asked or not self._queue):
                break
            self._take(self._crew.wait())
        if self._queue:
            self._interruption.stop_if_asked()
        self._interruption.under_way = ""

    def _deal(self) -> None:
        for worker in sorted(self._idle):
            wanted = (unit for unit in self._queue if unit.worker in (None, worker))
            unit = next(wanted, None)
            if unit is not None:
                self._queue.remove(unit)
                self._idle.remove(worker)
                self._running[worker] = unit
                self._crew.ask(worker, unit)
        self._say_what_is_under_way()

    def _say_what_is_under_way(self) -> None:
        ids = [str(self._running[worker].question_id) for worker in sorted(self._running)]
        plural = "s" if len(ids) > 1 else ""
        self._interruption.under_way = f"question{plural} {', '.join(ids)}" if ids else ""

    def _take(self, event: Event | None) -> None:
        match event:
            case Answered(worker=worker):
                del self._running[worker]
                self._idle.add(worker)
                self._write(event)
            case Died(worker=worker):
                self._bury(worker)
            case Ready(worker=worker, manifest=manifest):
                self._agree(worker, manifest)
                self._failed_starts[worker] = 0
                self._idle.add(worker)
            case Refused(worker=worker, reason=reason):
                raise UsageError(f"worker {worker}, started anew, stopped: {reason}")

    def _write(self, found: Answered) -> None:
        for generation, steps in found.answers:
            self._writer.append(generation, steps)
            self._on_finished(generation)
        for verdict in found.verdicts:
            self._writer.judge(verdict)
        append_edges(self._writer.folder, found.edges)

    def _bury(self, worker: int) -> None:
        """Deal the dead worker's unit again, and put another worker into its place."""
        unit = self._running.pop(worker, None)
        if unit is None:
            self._failed_starts[worker] += 1
        else:
            self._say(f"worker {worker} died while it answered question {unit.question_id}")
            self._deaths[unit.key] += 1
            if self._deaths[unit.key] < MOST_DEATHS:
                self._queue.appendleft(unit)
            else:
                self._give_up(worker, unit)
        if self._failed_starts[worker] == MOST_DEATHS:
            raise UsageError(
                f"worker {worker} died {MOST_DEATHS} times while it loaded the model, perhaps for "
                "lack of memory; give fewer --workers"
            )
        if not self._interruption.asked:
            self._crew.start(worker)

    def _give_up(self, worker: int, unit: Unit) -> None:
        for item in unit.rounds:
            for method in missing(item, self._writer):
                generation = _lost(item, method, worker)
                self._writer.append(generation, ())
                self._on_finished(generation)


def _lost(item: Round, method: str, worker: int) -> Generation:
    """The record of an answer that no worker has survived."""
    error = f"{MOST_DEATHS} workers died while they answered this question"
    return replace(item.unanswered(method), status=Status.ERROR, error=error, worker=worker)
