"""May two runs be compared at all, and what differs between them all the same.

What a comparison is about, an entry's options and weights, the versions, the machine, may differ
and is noted.  What would make any difference meaningless is refused, field by field; the user may
allow it by the field's name.  Times are compared only within one session on one machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from specbench_kangaroo.gate.pairs import asked
from specbench_kangaroo.record.errors import UsageError, look_up
from specbench_kangaroo.record.manifest import SETTINGS_BEFORE
from specbench_kangaroo.record.schema import COMPLETE, Manifest
from specbench_kangaroo.record.writer import Run

SESSION = "session"
_SETTINGS = ("dtype", "template", "seed", "max_new_tokens", "temperature", "top_p")
FIELDS = (
    *("status", "model", "questions", "device", *_SETTINGS),
    *("baseline_method", "entries", "prompts", SESSION),
)
"""What ``--allow`` takes."""

# One session's runs are started within a working day.
_SESSION = timedelta(hours=12)
_MACHINE = ("cpu", "cores", "logical_cores", "memory_mb", "platform", "torch", "torch_threads")
_NOTED_SETTINGS = ("backend", "threads")
_NOTED_ENVIRONMENT = ("cpu", "torch", "transformers")
_HASH = 12  # digits of a hash that are shown
_NOT_RECORDED = "not recorded"


@dataclass(frozen=True, slots=True)
class Difference:
    """A field in which two runs differ, and how."""

    field: str
    text: str


def check(
    baseline: Run, candidate: Run, *, allow: Sequence[str] = (), timing: bool = False
) -> tuple[str, ...]:
    """What a reader of the comparison must know, if the runs can be compared.

    Raises:
        UsageError: they cannot; the line names every field with both values, and what would allow
            it.  Or ``allow`` holds something that is no field.
    """
    known = dict.fromkeys(FIELDS)
    allowed = [name.replace("-", "_") for name in allow]
    for name in allowed:
        look_up("field", name, known)
    found = [*_differences(baseline, candidate)]
    apart = [*_apart(baseline.manifest, candidate.manifest)] if timing else []
    for claim, remedy, differences in (
        ("these runs cannot be compared", "make the same run as the baseline", found),
        ("--timing compares runs of one session on one machine", "leave --timing out", apart),
    ):
        _refuse(claim, remedy, [item for item in differences if item.field not in allowed])
    common, all_ = asked(baseline) & asked(candidate), asked(baseline)
    if not common:
        raise UsageError("these runs have no prompt in common; run the same questions again")
    notes = [f"allowed: {item.text}" for item in (*found, *apart)]
    if len(common) < len(all_):
        notes.append(f"gated on {len(common)} of the baseline's {len(all_)} prompts")
    return (*notes, *_changes(baseline.manifest, candidate.manifest))


def _refuse(claim: str, remedy: str, differences: Sequence[Difference]) -> None:
    if differences:
        texts = "; ".join(item.text for item in differences)
        flags = dict.fromkeys(f"--allow {item.field}" for item in differences)
        raise UsageError(f"{claim}: {texts}; {remedy}, or give {' '.join(flags)}")


def _differences(baseline: Run, candidate: Run) -> Iterator[Difference]:
    ours, theirs = baseline.manifest, candidate.manifest
    if {ours.status, theirs.status} != {COMPLETE}:
        yield _versus("status", ours.status, theirs.status)
    for field, before, after in _identities(ours, theirs):
        if before != after:
            yield _versus(field, before, after)
    before, after = ours.labels, theirs.labels
    missing = [name for name in before if name not in after]
    if missing:
        yield Difference("entries", f"entries: the candidate lacks {', '.join(missing)}")
    unknown = sorted(asked(candidate) - asked(baseline))
    if unknown:
        question, turn, repeat = unknown[0]
        yield Difference(
            "prompts",
            f"prompts: {len(unknown)} of the candidate's {len(asked(candidate))} are not in the "
            f"baseline, the first: question {question}, turn {turn}, repeat {repeat}",
        )


def _identities(ours: Manifest, theirs: Manifest) -> Iterator[tuple[str, Any, Any]]:
    """What must be equal, by field, as it is shown."""
    yield "model", _hashed(ours.model, ours, "model"), _hashed(theirs.model, theirs, "model")
    asked_ = _hashed(ours.questions, ours, "questions")
    # A file by another name holds the same questions if its hash is the same.
    same = ours.hashes.get("questions", ours) == theirs.hashes.get("questions", theirs)
    yield "questions", asked_, asked_ if same else _hashed(theirs.questions, theirs, "questions")
    yield "device", _device(ours), _device(theirs)
    for name in _SETTINGS:
        yield name, _setting(ours, name), _setting(theirs, name)
    yield "baseline_method", ours.baseline, theirs.baseline


def _hashed(name: str, manifest: Manifest, of: str) -> str:
    return f"{name} ({str(manifest.hashes.get(of, _NOT_RECORDED))[:_HASH]})"


def _device(manifest: Manifest) -> str:
    """``cpu``, or the GPU's name; another index of the same kind is the same kind."""
    kind, _, index = str(manifest.settings.get("device", _NOT_RECORDED)).partition(":")
    names = _gpus(manifest)
    return names[int(index or 0)] if kind == "cuda" and int(index or 0) < len(names) else kind


def _gpus(manifest: Manifest) -> list[str]:
    return [str(gpu.get("name")) for gpu in manifest.environment.get("gpus") or ()]


def _apart(ours: Manifest, theirs: Manifest) -> Iterator[Difference]:
    """What says that two runs were not made in one session on one machine."""
    pairs = [("gpus", _gpus(ours), _gpus(theirs))]
    pairs += [("threads", _setting(ours, "threads"), _setting(theirs, "threads"))]
    pairs += [(name, _machine(ours, name), _machine(theirs, name)) for name in _MACHINE]
    for name, before, after in pairs:
        if before != after:
            yield Difference(SESSION, _versus(name, before, after).text)
    between = abs(_created(theirs) - _created(ours))
    if between > _SESSION:
        hours = between / timedelta(hours=1)
        limit = _SESSION / timedelta(hours=1)
        yield Difference(SESSION, f"started {hours:.1f} hours apart, more than {limit:.0f}")


def _changes(ours: Manifest, theirs: Manifest) -> Iterator[str]:
    """What may differ, because it may be what the comparison is about."""
    before, after = set(ours.labels), theirs.labels
    new = [name for name in after if name not in before]
    if new:
        yield f"new in the candidate, not gated: {', '.join(new)}"
    for name in after:
        if name in ours.entries and name in theirs.entries:
            yield from _entry_changes(name, ours, theirs)
    for name in _NOTED_SETTINGS:
        yield from _noted(name, _setting(ours, name), _setting(theirs, name))
    for name in _NOTED_ENVIRONMENT:
        yield from _noted(name, _machine(ours, name), _machine(theirs, name))


def _entry_changes(name: str, ours: Manifest, theirs: Manifest) -> Iterator[str]:
    before, after = ours.entries[name], theirs.entries[name]
    yield from _noted(f"method of {name}", before.method, after.method)
    for option in dict.fromkeys([*before.options, *after.options]):
        values = [record.options.get(option, _NOT_RECORDED) for record in (before, after)]
        yield from _noted(f"{name}.{option}", *values)
    hashes = [str(record.weights_sha256)[:_HASH] for record in (before, after)]
    yield from _noted(f"weights of {name}", *hashes)
    yield from _noted(f"{name} is lossy", before.lossy, after.lossy)


def _noted(name: str, before: Any, after: Any) -> Iterator[str]:
    if before != after:
        yield _versus(name, before, after).text


def _versus(name: str, before: Any, after: Any) -> Difference:
    return Difference(name, f"{name}: {before} in the baseline, {after} in the candidate")


def _setting(manifest: Manifest, name: str) -> Any:
    return manifest.settings.get(name, SETTINGS_BEFORE.get(name, _NOT_RECORDED))


def _machine(manifest: Manifest, name: str) -> Any:
    return manifest.environment.get(name, _NOT_RECORDED)


def _created(manifest: Manifest) -> datetime:
    try:
        created = datetime.fromisoformat(manifest.created)
    except ValueError:
        raise UsageError(
            f"{manifest.name}: {manifest.created!r} in run.json is no time; restore the file"
        ) from None
    return created if created.tzinfo else created.replace(tzinfo=UTC)
