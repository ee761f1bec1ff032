"""A run as it was asked for, before anything of it was checked or loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from specbench_kangaroo.record.schema import DEFAULT_TEMPLATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for every method of a run alike."""

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0
    repeats: int = 1
    warmup: int = 1  # prompts that every method answers before anything is measured
    workers: int = 1  # each answers its questions with all methods, on a device of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """Which target, how it is asked and how it computes; None leaves the choice to the device."""

    name: str
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    backend: str = "eager"
    template: str = DEFAULT_TEMPLATE


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionChoice:
    """Which questions: a set, some of its tasks (all if none is named), so many of each."""

    source: str = "builtin"
    tasks: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A run as it was asked for; ``options`` are texts such as "kangaroo.threshold=0.6"."""

    model: ModelChoice
    questions: QuestionChoice
    methods: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)
