"""A run as it was asked for, before anything of it was checked or loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import BASELINE, DEFAULT_TEMPLATE

# A label is part of file names, and is written into Markdown, LaTeX and CSV as it is.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NOT_IN_A_LABEL = re.compile(r"[^A-Za-z0-9_.+-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for every entry of a run alike."""

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0
    repeats: int = 1
    warmup: int = 1  # prompts that every entry answers before anything is measured
    workers: int = 1  # each answers its questions with all entries, on a device of its own


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


@dataclass(frozen=True, slots=True)
class Entry:
    """What a run compares: a method with options, under a label of its own."""

    label: str
    method: str
    options: Mapping[str, str] = field(default_factory=dict)  # as texts; others have their defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A run as it was asked for."""

    model: ModelChoice
    questions: QuestionChoice
    entries: tuple[Entry, ...] = ()  # beside the baseline
    settings: Settings = field(default_factory=Settings)

    @property
    def all_entries(self) -> tuple[Entry, ...]:
        """Those of the run, the baseline first."""
        return (Entry(BASELINE, BASELINE), *self.entries)


def entries_of(
    methods: Sequence[str], options: Sequence[str] = (), sweeps: Sequence[str] = ()
) -> tuple[Entry, ...]:
    """The entries that flags ask for, in their order and without the baseline.

    Args:
        methods: METHOD, which is its own label, or LABEL=METHOD.
        options: LABEL.NAME=VALUE.
        sweeps: LABEL.NAME=V1,V2,…: an entry a value takes the place of the label's own, labelled
            ``chain[threshold=0.3]``; several sweeps of a label make their product.

    Raises:
        UsageError: a text of another form, or a label, option or value that is given twice.
    """
    labelled = _labelled(methods)
    given = _assigned("--option", options, labelled)
    swept = _assigned("--sweep", sweeps, labelled)
    found: list[Entry] = []
    for label, method in labelled.items():
        for name in given[label].keys() & swept[label].keys():
            raise UsageError(f"{label}.{name} has an --option and a --sweep; leave one of them out")
        values = {name: _values(label, name, text) for name, text in swept[label].items()}
        found += _expanded(Entry(label, method, given[label]), values)
    for label, count in Counter(entry.label for entry in found).items():
        if count > 1:
            raise UsageError(f"--sweep: several values give the label {label}; rename the files")
    return tuple(found)


def _labelled(texts: Sequence[str]) -> dict[str, str]:
    """The method of each label."""
    found: dict[str, str] = {}
    for text in texts:
        label, equals, method = text.partition("=")
        method = method if equals else label
        if not method:
            raise UsageError(f"--method takes METHOD or LABEL=METHOD, not {text!r}")
        if not _LABEL.fullmatch(label):
            raise UsageError(
                f"--method {text}: a label is made of letters, digits, _ and -, and {label!r} is "
                f"not; give one, as in --method chain={method}"
            )
        if label == BASELINE:
            raise UsageError(
                f"--method {text}: {BASELINE} is the label of the baseline, which runs anyway; "
                f"leave it out, or give another label, as in --method again={method}"
            )
        # Two that differ in their case alone would be one file on some disks.
        if label.lower() in map(str.lower, found):
            raise UsageError(
                f"--method {text}: there is an entry {label} already; give this one another "
                f"label, as in --method {label}-2={method}"
            )
        found[label] = method
    return found


def _assigned(
    flag: str, texts: Sequence[str], labelled: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """The values of LABEL.NAME=VALUE, by label and name."""
    found: dict[str, dict[str, str]] = {label: {} for label in labelled}
    for text in texts:
        path, equals, value = text.partition("=")
        label, dot, name = path.partition(".")
        if not (equals and dot and label and name):
            raise UsageError(f"{flag} takes LABEL.NAME=VALUE, not {text!r}")
        if label not in found:
            raise UsageError(
                f"{flag} {text}: no entry with options has the label {label!r}; there are: "
                f"{', '.join(found) or 'none'}; add --method {label}, or leave it out"
            )
        if name in found[label]:
            raise UsageError(
                f"{flag} {text}: {path} is given already; leave one out, or make it the option of "
                f"a second entry, as of --method {label}-2={labelled[label]}"
            )
        found[label][name] = value
    return found


def _values(label: str, name: str, text: str) -> list[str]:
    values = [value.strip() for value in text.split(",")]
    if not all(values) or len(set(values)) < len(values):
        raise UsageError(
            f"--sweep {label}.{name}={text}: give values between commas, none empty and none twice"
        )
    return values


def _expanded(entry: Entry, sweeps: Mapping[str, Sequence[str]]) -> Iterator[Entry]:
    """An entry for each combination of swept values; without any the entry itself."""
    for values in product(*sweeps.values()):
        chosen = dict(zip(sweeps, values, strict=True))
        written = (f"{name}={_NOT_IN_A_LABEL.sub('-', value)}" for name, value in chosen.items())
        label = f"{entry.label}[{','.join(written)}]" if chosen else entry.label
        yield replace(entry, label=label, options={**entry.options, **chosen})
