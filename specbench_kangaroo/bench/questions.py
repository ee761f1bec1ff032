"""Questions: Spec-Bench's file format, categories and six tasks, and where the sets come from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench_kangaroo.machine.cache_folder import cache_folder
from specbench_kangaroo.record.errors import UsageError, look_up
from specbench_kangaroo.record.jsonl import is_text

MT_BENCH = (
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
)
TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
CATEGORIES: Mapping[str, str] = dict.fromkeys(MT_BENCH, "mt_bench") | {
    name: name for name in TASKS[1:]
}

SPEC_BENCH_URL = (
    "https://raw.githubusercontent.com/hemingkx/Spec-Bench/"
    "fd2c1cd7d2201ef71db4c5f4e455008f017967bf/data/spec_bench/question.jsonl"
)
SPEC_BENCH_SHA256 = "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04"
SOURCES: Mapping[str, str] = {
    "builtin": "the small set that comes with this package",
    "spec-bench": "Spec-Bench's 480 questions, downloaded once and pinned by SHA-256",
}
_BUILTIN = Path(__file__).with_name("builtin_questions.jsonl")
_LARGEST_ID = 2**63 - 1  # what a column of a run's steps can hold


@dataclass(frozen=True, slots=True)
class Question:
    """One conversation: the user's turns in order."""

    question_id: int
    category: str
    turns: tuple[str, ...]

    @property
    def task(self) -> str:
        """The one of ``TASKS`` that the category belongs to."""
        return CATEGORIES[self.category]


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of one file; ``sha256`` is that of the file's bytes."""

    name: str
    sha256: str
    questions: tuple[Question, ...]


def load_questions(source: str) -> QuestionSet:
    """Read ``builtin``, ``spec-bench``, or the JSON-lines file at the path ``source``.

    Raises:
        UsageError: no such set or file, no network, or a malformed line ("FILE:LINE: reason").
    """
    named = {"builtin": lambda: _BUILTIN, "spec-bench": _download_spec_bench}
    path = named[source]() if source in named else Path(source).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        if path.name == source and not path.suffix:  # a bare word was meant as a set's name
            look_up("question set", source, SOURCES)
        raise UsageError(
            f"cannot read questions from {source!r}: {error.strerror}; "
            f"--questions takes {', '.join(SOURCES)} or the path of a JSON-lines file"
        ) from error
    if source in named:
        return _parse(data, name=source, label=path.name)
    return _parse(data, name=path.name, label=source)


def select(
    questions: Sequence[Question], tasks: Sequence[str] = (), limit: int | None = None
) -> tuple[Question, ...]:
    """At most ``limit`` questions of each of ``tasks`` (all tasks if none is named), in file order.

    Within a task, categories take turns: a limit of 8 on mt_bench is one question of each of its
    categories, where the first 8 lines of Spec-Bench's file would all be ``writing``.

    Raises:
        UsageError: an unknown task, a task without questions here, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit of questions per task must be at least 1, not {limit}")
    present = {question.task for question in questions}
    for task in tasks:
        look_up("task", task, dict.fromkeys(TASKS))
        if task not in present:
            there_are = ", ".join(t for t in TASKS if t in present)
            raise UsageError(f"no question of task {task!r} in this set; it has: {there_are}")
    chosen: set[int] = set()
    for task in tasks or TASKS:
        chosen.update(_by_turns([q for q in questions if q.task == task])[:limit])
    return tuple(question for question in questions if question.question_id in chosen)


def _by_turns(questions: Sequence[Question]) -> list[int]:
    """Question ids ordered so that every category's first comes before any category's second."""
    seen: Counter[str] = Counter()
    ranks: dict[int, int] = {}
    for question in questions:
        ranks[question.question_id] = seen[question.category]
        seen[question.category] += 1
    return sorted(ranks, key=ranks.__getitem__)


def _download_spec_bench() -> Path:
    import pooch  # noqa: PLC0415 (keeps `specbench --help` fast)

    # pooch tells of every download on its logger; the file is small and the message long.
    pooch.get_logger().setLevel(logging.WARNING)
    folder = cache_folder() / "questions"
    name = f"spec_bench-{SPEC_BENCH_SHA256[:8]}.jsonl"
    try:
        return Path(pooch.retrieve(SPEC_BENCH_URL, SPEC_BENCH_SHA256, fname=name, path=folder))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a value
        raise UsageError(
            f"cannot download Spec-Bench's questions ({type(error).__name__}); put the file "
            f"{SPEC_BENCH_URL} at {folder / name}, or give a local copy with --questions PATH"
        ) from error


def _parse(data: bytes, *, name: str, label: str) -> QuestionSet:
    questions: dict[int, Question] = {}
    # Not str.splitlines: it also splits at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            question = _question(line)
            if question.question_id in questions:
                raise ValueError(f"question_id {question.question_id} was used before")
        except (ValueError, UsageError) as error:
            raise UsageError(f"{label}:{number}: {error}") from error
        questions[question.question_id] = question
    if not questions:
        raise UsageError(f"{label}: holds no questions")
    return QuestionSet(name, hashlib.sha256(data).hexdigest(), tuple(questions.values()))


def _question(line: bytes) -> Question:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    except RecursionError:
        raise ValueError("not JSON that can be read: it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    category = _field(record, "category", str)
    look_up("category", category, CATEGORIES)
    turns = _field(record, "turns", list)
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ValueError("'turns' must be a list of at least one text, none of them empty")
    if not all(map(is_text, turns)):
        raise ValueError(
            "'turns' holds half of a surrogate pair (\\ud800 to \\udfff): fix that text"
        )
    number = _field(record, "question_id", int)
    if not -_LARGEST_ID <= number <= _LARGEST_ID:
        raise ValueError("'question_id' has more than 64 bits; give a smaller number")
    return Question(number, category, tuple(turns))


def _field(record: Mapping[str, Any], key: str, kind: type) -> Any:
    if key not in record:
        there_are = ", ".join(name if name.isprintable() else repr(name) for name in record)
        raise ValueError(f"no field {key!r}; there are: {there_are or 'none'}")
    # Not isinstance: a JSON true is an int to it.
    if type(record[key]) is not kind:
        found = type(record[key]).__name__
        raise ValueError(f"{key!r} must be of type {kind.__name__}, not {found}")
    return record[key]
