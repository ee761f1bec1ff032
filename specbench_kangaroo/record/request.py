"""A run as it is asked for: what flags, a study's file and ``run.json`` all hold.

::

    name = "ablation"
    [target]
    model = "smollm2-135m"
    [questions]
    limit = 4
    [decoding]
    max_new_tokens = 128
    [[entries]]
    method = "kangaroo"
    sweep = { threshold = [0.3, 0.5] }
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct, field

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_TEMPLATE = "tokenizer"  # how prompts are written: by the tokenizer's own template

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
# What no file system takes would end in an OSError wherever a path is looked at.
Text = Annotated[str, Meta(pattern=r"^([^/\x00-\x1f\x7f]{0,255}(/|\Z))*\Z")]
Value = bool | int | float | Text
"""Of an option; a method's own type decides what it means."""


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Immutable; its values are checked by their types when it is read."""


class TargetChoice(Part, frozen=True):
    """Which target, how it is asked and how it computes; None leaves the choice to the device."""

    model: Text = DEFAULT_MODEL
    revision: Text | None = None
    template: Text = DEFAULT_TEMPLATE
    dtype: Text | None = None
    device: Text | None = None
    backend: Text = "eager"


class QuestionChoice(Part, frozen=True):
    """Which questions: a set, some of its tasks (all if none is named), so many of each."""

    source: Text = "builtin"
    tasks: tuple[Text, ...] = ()
    limit: Positive | None = None


class Decoding(Part, frozen=True):
    """What holds for every entry of a run alike."""

    max_new_tokens: Positive = 128
    temperature: Annotated[float, Meta(ge=0, le=1e6)] = 0.0  # 0 is greedy
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0
    repeats: Positive = 1
    warmup: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 1  # prompts answered before any is measured
    workers: Positive = 1  # each answers its questions with all entries, on a device of its own


class EntryChoice(Part, frozen=True):
    """A method with options, under a label; with a sweep an entry for each combination."""

    method: Text
    label: Text = ""  # the method's name
    options: Mapping[Text, Value] = field(default_factory=dict)  # others have their defaults
    sweep: Mapping[Text, tuple[Value, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its label, which is the method's name unless one was given."""
        return self.label or self.method


class Request(Part, frozen=True):
    """A run as it was asked for, before anything of it was checked or loaded."""

    name: Annotated[Text, Meta(max_length=100)] = ""  # of its run folder, after the time
    target: TargetChoice = field(default_factory=TargetChoice)
    questions: QuestionChoice = field(default_factory=QuestionChoice)
    decoding: Decoding = field(default_factory=Decoding)
    entries: tuple[EntryChoice, ...] = ()  # beside the baseline
