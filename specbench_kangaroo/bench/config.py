"""A run as it is asked for, from flags or from a study's file, and the entries that it makes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from specbench_kangaroo.record.errors import UsageError, look_up
from specbench_kangaroo.record.jsonl import one_line
from specbench_kangaroo.record.request import EntryChoice, Request, Value
from specbench_kangaroo.record.schema import BASELINE, LABEL_STEM

# A label is part of file names, and is written into Markdown, LaTeX and CSV as it is.
_NOT_IN_A_LABEL = re.compile(r"[^A-Za-z0-9_.+-]")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a run compares: a method with options, under a label of its own."""

    label: str
    method: str
    options: Mapping[str, str] = field(default_factory=dict)  # as texts; others have their defaults


# --- a study's file ---


def read_study(path: Path) -> Request:
    """The request in a TOML file.

    Raises:
        UsageError: no such file, no TOML, an unknown key (the message names the nearest) or a value
            of another type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the study {path}: {error.strerror}; give a file") from error
    except ValueError as error:  # no UTF-8, or no TOML
        raise UsageError(f"{path}: not a TOML file ({one_line(error)}); correct it") from error
    return request_of(content, source=str(path))


def request_of(content: Mapping[str, Any], *, source: str = "the study") -> Request:
    """The request that the tables of a study make; ``source`` names it in messages.

    Raises:
        UsageError: see :func:`read_study`.
    """
    try:
        _refuse_unknown(content, msgspec.inspect.type_info(Request), "study")
        return msgspec.convert(content, Request)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    except msgspec.ValidationError as error:
        raise UsageError(f"{source}: {_reason(error, content)}") from error


_ONE_LINE = "a text of one line, each part of a path up to 255 long"
_PLAIN = {
    "object": "a table",
    "array": "a list ([...], or [[...]] of tables)",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
}


def _reason(error: msgspec.ValidationError, content: Any) -> str:
    """Which value is wrong, and what is allowed in its place."""
    told, _, path = one_line(error).replace("`", "").partition(" - at $")
    told, path = told.partition(", got ")[0], path.removeprefix(".")
    if told.startswith("Object missing"):
        return f"{path} lacks the key {told.rpartition(' ')[2]}; add it"
    told = told.removeprefix("Expected ").removesuffix(" | null")
    for name, meant in _PLAIN.items():
        told = re.sub(rf"\b{name}\b", meant, told)
    told = re.sub("a text matching .*", _ONE_LINE, told.replace(" | ", ", "))
    path, below, _ = path.partition("[...]")
    if below:  # under a key that msgspec does not tell
        return f"a value in {path} must be {told}"
    for step in re.findall(r"\w+", path):
        content = content[int(step) if step.isdecimal() else step]
    given = "a table" if isinstance(content, Mapping) else one_line(repr(content))
    return f"{path} is {given}, and must be {told}"


def _refuse_unknown(content: Any, of: msgspec.inspect.Type, where: str) -> None:
    """Raises :class:`UsageError` for the first key that no field of the type has."""
    match of, content:
        case msgspec.inspect.StructType(fields=fields), Mapping():
            known = {item.encode_name: item.type for item in fields}
            for key, value in content.items():
                look_up(f"key of {where}", key, known)
                _refuse_unknown(value, known[key], key)
        case msgspec.inspect.VarTupleType(item_type=item), list() | tuple():
            for value in content:
                _refuse_unknown(value, item, where)


def checked(request: Request) -> Request:
    """The request, if its values are what their types say; one made by hand may hold anything.

    Raises:
        UsageError: they are not.
    """
    return request_of(msgspec.to_builtins(request), source="the request")


# --- flags ---


def choices_of(
    methods: Sequence[str],
    options: Sequence[str] = (),
    sweeps: Sequence[str] = (),
    *,
    base: Sequence[EntryChoice] = (),
) -> tuple[EntryChoice, ...]:
    """The entries that flags ask for, in their order and without the baseline.

    Args:
        methods: METHOD, which is its own label, or LABEL=METHOD; none: those of ``base``.
        options: LABEL.NAME=VALUE.
        sweeps: LABEL.NAME=V1,V2,….
        base: a study's entries, whose options and sweeps the flags replace.

    Raises:
        UsageError: a text of another form, no such label, or a value that is given twice.
    """
    choices = [*map(_choice, methods)] if methods else [*base]
    labels = {choice.name: choice.method for choice in choices}
    given = _assigned("--option", options, labels)
    swept = _assigned("--sweep", sweeps, labels)
    found = []
    for choice in choices:
        ours, values = given.get(choice.name, {}), swept.get(choice.name, {})
        for name in ours.keys() & values.keys():
            path = f"{choice.name}.{name}"
            raise UsageError(f"{path} has an --option and a --sweep; leave one of them out")
        kept = {name: value for name, value in choice.options.items() if name not in values}
        also = {name: value for name, value in choice.sweep.items() if name not in ours}
        sweep = also | {name: _values(choice.name, name, text) for name, text in values.items()}
        found.append(msgspec.structs.replace(choice, options=kept | ours, sweep=sweep))
    return tuple(found)


def _choice(text: str) -> EntryChoice:
    label, equals, method = text.partition("=")
    if not (label and (method or not equals)):
        raise UsageError(f"--method takes METHOD or LABEL=METHOD, not {text!r}")
    return EntryChoice(method=method, label=label) if equals else EntryChoice(method=label)


def _assigned(
    flag: str, texts: Sequence[str], labels: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """The values of LABEL.NAME=VALUE, by label and name."""
    found: dict[str, dict[str, str]] = {label: {} for label in labels}
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
                f"a second entry, as of --method {label}-2={labels[label]}"
            )
        found[label][name] = value
    return found


def _values(label: str, name: str, text: str) -> tuple[str, ...]:
    values = tuple(value.strip() for value in text.split(","))
    if not all(values):
        raise UsageError(f"--sweep {label}.{name}={text}: give values between commas, none empty")
    return values


# --- entries ---


def entries_of(choices: Sequence[EntryChoice]) -> tuple[Entry, ...]:
    """Every entry of a run, the baseline first.

    Of a sweep an entry a value takes the place of the label's own, labelled
    ``chain[threshold=0.3]``; several sweeps of a label make their product.

    Raises:
        UsageError: a label that cannot be one or is there twice, or a sweep that gives one twice.
    """
    found = [Entry(BASELINE, BASELINE)]
    labels: set[str] = set()
    for choice in choices:
        _refuse_label(choice, labels)
        labels.add(choice.name.lower())
        expanded = [*_expanded(choice)]
        if len({entry.label for entry in expanded}) < len(expanded):
            raise UsageError(
                f"sweep of {choice.name}: several values give the same label; give each value "
                "once, and rename files whose names differ in punctuation only"
            )
        found += expanded
    return tuple(found)


def _refuse_label(choice: EntryChoice, others: set[str]) -> None:
    label, method = choice.name, choice.method
    if not re.fullmatch(LABEL_STEM, label):
        raise UsageError(
            f"entry {label}: a label is made of letters, digits, _ and -, and {label!r} is "
            f"not; give one, as in --method chain={method}"
        )
    if label == BASELINE:
        raise UsageError(
            f"entry {label}: {BASELINE} is the label of the baseline, which runs anyway; "
            f"leave it out, or give another label, as in --method again={method}"
        )
    # Two that differ in their case alone would be one file on some disks.
    if label.lower() in others:
        raise UsageError(
            f"entry {label}: there is an entry {label} already; give this one another "
            f'label, as in --method {label}-2={method} or label = "{label}-2" in a study'
        )


def _expanded(choice: EntryChoice) -> Iterator[Entry]:
    """An entry for each combination of swept values; without any the entry itself."""
    plain = Entry(choice.name, choice.method, _texts(choice.options))
    for name in choice.options.keys() & choice.sweep.keys():
        raise UsageError(f"entry {choice.name}: {name} is an option and swept; leave one out")
    for name, values in choice.sweep.items():
        if not values:
            raise UsageError(f"entry {choice.name}: the sweep of {name} has no value; give some")
    for values in product(*choice.sweep.values()):
        chosen = _texts(dict(zip(choice.sweep, values, strict=True)))
        written = (f"{name}={_NOT_IN_A_LABEL.sub('-', value)}" for name, value in chosen.items())
        label = f"{plain.label}[{','.join(written)}]" if chosen else plain.label
        yield replace(plain, label=label, options={**plain.options, **chosen})


def _texts(values: Mapping[str, Value]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
