"""What travels between the driver and a worker: a question, what is known of it, and answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from specbench_kangaroo.record.schema import (
    BlockEdge,
    Generation,
    GenerationKey,
    Judgement,
    Manifest,
    StepRecord,
)
from specbench_kangaroo.run.ledger import Ledger, open_rounds
from specbench_kangaroo.run.schedule import Round, conversations


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
    edges: Sequence[BlockEdge] = field(default=())


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
