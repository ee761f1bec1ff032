"""What a run has by now and what it lacks: answers and verdicts, wherever they are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import (
    BASELINE,
    Generation,
    GenerationKey,
    Judgement,
    Status,
    StepRecord,
)
from specbench_kangaroo.run.schedule import Round


class Ledger(Protocol):
    """Where answers and verdicts go: the run folder's writer, or a worker's memory."""

    @property
    def finished(self) -> Mapping[GenerationKey, Generation]:
        """Every generation there is, whatever its status."""
        ...

    @property
    def judged(self) -> AbstractSet[GenerationKey]:
        """Generations that have their lossless verdict."""
        ...

    def append(self, generation: Generation, steps: Sequence[StepRecord]) -> None:
        """Add a generation and its steps."""
        ...

    def judge(self, judgement: Judgement) -> None:
        """Add a lossless verdict."""
        ...


class MemoryLedger:
    """A ledger that a worker fills: what an earlier run has made, and apart from it what is new."""

    def __init__(
        self, finished: Iterable[Generation] = (), judged: Iterable[GenerationKey] = ()
    ) -> None:
        self.finished = {item.key: item for item in finished}
        self.judged = set(judged)
        self.answers: list[tuple[Generation, Sequence[StepRecord]]] = []
        self.verdicts: list[Judgement] = []

    def append(self, generation: Generation, steps: Sequence[StepRecord]) -> None:
        """See :class:`Ledger`."""
        self.finished[generation.key] = generation
        self.answers.append((generation, steps))

    def judge(self, judgement: Judgement) -> None:
        """See :class:`Ledger`."""
        self.judged.add(judgement.key)
        self.verdicts.append(judgement)


def open_rounds(rounds: Iterable[Round], ledger: Ledger, *, greedy: bool) -> list[Round]:
    """Rounds that lack an answer, or, in a greedy run, a verdict."""
    return [item for item in rounds if missing(item, ledger) or (greedy and unjudged(item, ledger))]


def refuse_strangers(rounds: Iterable[Round], ledger: Ledger) -> None:
    """Raises :class:`UsageError` if there is an answer to a prompt that the run does not have."""
    known = {item.key(entry) for item in rounds for entry in item.order}
    for key in ledger.finished:
        if key not in known:
            raise UsageError(
                f"the run holds an answer of {key.entry} to question {key.question_id}, turn "
                f"{key.turn}, repeat {key.repeat}, which is none of its prompts; remove its line "
                "from generations.jsonl"
            )


def missing(item: Round, ledger: Ledger) -> list[str]:
    """Entries that have not answered the round, in its order."""
    return [entry for entry in item.order if item.key(entry) not in ledger.finished]


def unjudged(item: Round, ledger: Ledger) -> list[Generation]:
    """Finished answers that can be set against the baseline's and have not been yet."""
    reference = ledger.finished.get(item.key(BASELINE))
    if reference is None or reference.status is not Status.OK:
        return []
    keys = [item.key(entry) for entry in item.order if entry != BASELINE]
    answers = [ledger.finished[key] for key in keys if key in ledger.finished]
    return [a for a in answers if a.status is Status.OK and a.key not in ledger.judged]
