"""In which order a run asks what: questions × turns × repeats, and the entries of each.

Entries take turns on every question, in an order that rotates with question and repeat, so that a
machine whose speed drifts hits them all alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from specbench_kangaroo.record.schema import Generation, GenerationKey, Status
from specbench_kangaroo.run.questions import Question


@dataclass(frozen=True, slots=True)
class Round:
    """One prompt that every entry answers, in this order, before the next prompt comes."""

    question: Question
    turn: int
    repeat: int
    order: tuple[str, ...]

    def key(self, entry: str, *, turn: int | None = None) -> GenerationKey:
        """The generation of ``entry`` in this round, or in an earlier turn of it."""
        asked = self.turn if turn is None else turn
        return GenerationKey(entry, self.question.question_id, asked, self.repeat)

    def unanswered(self, entry: str) -> Generation:
        """The generation of ``entry`` before anything is known of its answer."""
        return Generation(
            entry=entry,
            question_id=self.question.question_id,
            category=self.question.category,
            task=self.question.task,
            turn=self.turn,
            repeat=self.repeat,
            status=Status.OK,
            error=None,
            prompt_tokens=0,
            output_ids=(),
            text="",
            new_tokens=0,
            target_passes=0,
            ttft_ms=0.0,
            total_ms=0.0,
        )


def rounds(
    questions: Sequence[Question], entries: Sequence[str], *, repeats: int
) -> Iterator[Round]:
    """Every prompt of a run.

    A turn waits for all entries' answers to the one before, as it continues the baseline's.  All
    questions come once before any comes again: an interrupted run has then seen every task.
    """
    for repeat in range(repeats):
        for index, question in enumerate(questions):
            order = rotated(entries, index + repeat)
            for turn in range(len(question.turns)):
                yield Round(question, turn, repeat, order)


def conversations(given: Iterable[Round]) -> list[tuple[Round, ...]]:
    """Rounds by question and repeat, in order: turns that continue each other stay together."""
    same = groupby(given, key=lambda item: (item.question.question_id, item.repeat))
    return [tuple(turns) for _, turns in same]


def rotated(entries: Sequence[str], places: int) -> tuple[str, ...]:
    """``entries`` from ``places`` on, and then those before."""
    start = places % len(entries)
    return (*entries[start:], *entries[:start])


def chance_seed(seed: int, round_: Round) -> int:
    """The seed of a sampled generation: the same on any machine, whatever ran before.

    The entry is left out, so that an entry which drafts nothing gives vanilla's very text.
    """
    text = f"{seed}/{round_.question.question_id}/{round_.turn}/{round_.repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])  # torch takes 63 bits
