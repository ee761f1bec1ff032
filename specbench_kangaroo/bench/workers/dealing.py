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

from specbench_kangaroo.bench.runner import OnFinished, append_edges
from specbench_kangaroo.bench.schedule import Ledger, Round, conversations, missing, open_rounds
from specbench_kangaroo.bench.signals import Interruption
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.manifest import first_difference
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

Say = Callable[[str], None]
"""Tells the user what happened, in a line."""

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


@dataclass(kw_only=True)
class Dealer:
    """One run's dealing, from workers that are ready to the last answer.

    Attributes:
        crew: workers by their place in ``manifests``, all of them ready.
        manifests: of each worker; one that replaces another must not differ from the first.
        writer: the run folder.
        say: tells the user what happened, in a line.
        on_finished: called for every generation, when its unit has arrived.
        interruption: asked before a unit is dealt.
    """

    crew: Crew
    manifests: Sequence[Manifest]
    writer: RunWriter
    say: Say
    on_finished: OnFinished
    interruption: Interruption

    def __post_init__(self) -> None:
        self._idle = set(range(len(self.manifests)))
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
            if not self.interruption.asked:
                self._deal()
            if not self._running and (self.interruption.asked or not self._queue):
                break
            self._take(self.crew.wait())
        if self._queue:
            self.interruption.stop_if_asked()
        self.interruption.under_way = ""

    def _deal(self) -> None:
        for worker in sorted(self._idle):
            wanted = (unit for unit in self._queue if unit.worker in (None, worker))
            unit = next(wanted, None)
            if unit is not None:
                self._queue.remove(unit)
                self._idle.remove(worker)
                self._running[worker] = unit
                self.crew.ask(worker, unit)
        ids = [str(self._running[worker].question_id) for worker in sorted(self._running)]
        plural = "s" if len(ids) > 1 else ""
        self.interruption.under_way = f"question{plural} {', '.join(ids)}" if ids else ""

    def _take(self, event: Event | None) -> None:
        match event:
            case Answered(worker=worker):
                del self._running[worker]
                self._idle.add(worker)
                self._write(event)
            case Died(worker=worker):
                self._bury(worker)
            case Ready(worker=worker, manifest=manifest):
                refuse_disagreement(worker, manifest, self.manifests[0])
                self._failed_starts[worker] = 0
                self._idle.add(worker)
            case Refused(worker=worker, reason=reason):
                raise UsageError(f"the replacement of worker {worker} stopped: {reason}")

    def _write(self, found: Answered) -> None:
        for generation, steps in found.answers:
            self.writer.append(generation, steps)
            self.on_finished(generation)
        for verdict in found.verdicts:
            self.writer.judge(verdict)
        append_edges(self.writer.folder, found.edges)

    def _bury(self, worker: int) -> None:
        """Deal the dead worker's unit again, and put another worker into its place."""
        unit = self._running.pop(worker, None)
        if unit is None:
            self._failed_starts[worker] += 1
        else:
            self.say(f"worker {worker} died while it answered question {unit.question_id}")
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
        if not self.interruption.asked:
            self.crew.start(worker)

    def _give_up(self, worker: int, unit: Unit) -> None:
        error = f"{MOST_DEATHS} workers died while they answered this question"
        for item in unit.rounds:
            for entry in missing(item, self.writer):
                lost = item.unanswered(entry)
                lost = replace(lost, status=Status.ERROR, error=error, worker=worker)
                self.writer.append(lost, ())
                self.on_finished(lost)


def refuse_disagreement(worker: int, given: Manifest, first: Manifest) -> None:
    """Raises :class:`UsageError` that names the first field in which a worker's run is another."""
    found = first_difference(first, given)
    if found is not None:
        raise UsageError(
            f"worker {worker} differs from worker 0: {found.field} is {found.given!r} there and "
            f"{found.stored!r} on worker 0; give all nodes the same model, weights and versions"
        )
