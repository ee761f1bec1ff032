"""The regression gate: a candidate run compared with a baseline run, if it can be.

What a comparison is about, an entry's options and weights, the versions, the machine, may differ
and is noted.  What would make any difference meaningless is refused, field by field; the user may
allow it by the field's name.  Times are compared only within one session on one machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from specbench_kangaroo.gate.gates import Gate, Tolerances, gates_of
from specbench_kangaroo.gate.pairs import Matched, asked, match
from specbench_kangaroo.record.errors import UsageError, look_up
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
_NOTED = ("backend", "threads", "cpu", "torch", "transformers")
_HASH = 12  # digits of a hash that are shown
_NOT_RECORDED = "not recorded"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Every gate between two runs, and what else a reader must know."""

    matched: Matched
    gates: tuple[Gate, ...]  # by entry
    notes: tuple[str, ...]
    tolerances: Tolerances
    timing: bool

    @property
    def failed(self) -> tuple[Gate, ...]:
        """The gates that do not hold."""
        return tuple(gate for gate in self.gates if not gate.passed)


def compare(
    baseline: Run,
    candidate: Run,
    *,
    tolerances: Tolerances | None = None,
    timing: bool = False,
    allow: Sequence[str] = (),
) -> Comparison:
    """Compares ``candidate`` with ``baseline``, on the prompts that both were asked.

    Args:
        baseline: the run that sets what is expected.
        candidate: the run that must not be worse.
        tolerances: by how much it may be worse; the defaults if None.
        timing: gate speeds too.
        allow: fields of :data:`FIELDS` in which the runs may differ.

    Raises:
        UsageError: the runs cannot be compared; the line says in which fields they differ.
    """
    tolerances = tolerances or Tolerances()
    notes = check(baseline, candidate, allow=allow, timing=timing)
    matched = match(baseline, candidate)
    return Comparison(
        matched=matched,
        gates=tuple(gates_of(matched, tolerances, timing=timing)),
        notes=(*notes, *_left_out(matched)),
        tolerances=tolerances,
        timing=timing,
    )


def _left_out(matched: Matched) -> Iterator[str]:
    other = int((~matched.answers["same_prompt"]).sum())
    if other:
        yield (
            f"not gated: {other} answers whose prompt continues an answer of "
            f"{matched.baseline.manifest.baseline} that has changed"
        )
    for entry in matched.entries:
        if not matched.answers_of(entry)["usable"].any():
            yield f"{entry}: the runs have no good answer in common, so only errors are gated"


class Difference(NamedTuple):
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
    allowed = [name.replace("-", "_") for name in allow]
    for name in allowed:
        look_up("field", name, dict.fromkeys(FIELDS))
    found = [*_differences(baseline, candidate)]
    apart = [*_apart(baseline.manifest, candidate.manifest)] if timing else []
    for claim, remedy, differences in (
        ("these runs cannot be compared", "make the same run as the baseline", found),
        ("--timing compares runs of one session on one machine", "leave --timing out", apart),
    ):
        refused = [item for item in differences if item.field not in allowed]
        if refused:
            texts = "; ".join(item.text for item in refused)
            flags = " ".join(dict.fromkeys(f"--allow {item.field}" for item in refused))
            raise UsageError(f"{claim}: {texts}; {remedy}, or give {flags}")
    common, all_ = asked(baseline).intersection(asked(candidate)), asked(baseline)
    if common.empty:
        raise UsageError("these runs have no prompt in common; run the same questions again")
    notes = [f"allowed: {item.text}" for item in (*found, *apart)]
    if len(common) < len(all_):
        notes.append(f"gated on {len(common)} of the baseline's {len(all_)} prompts")
    return (*notes, *_changes(baseline.manifest, candidate.manifest))


def _differences(baseline: Run, candidate: Run) -> Iterator[Difference]:
    """What makes any difference between the figures meaningless."""
    ours, theirs = baseline.manifest, candidate.manifest
    if {ours.status, theirs.status} != {COMPLETE}:
        yield _versus("status", ours.status, theirs.status)
    before, after = _identity(ours), _identity(theirs)
    # A file by another name holds the same questions if its hash is the same.
    if ours.hashes.get("questions", ours) == theirs.hashes.get("questions", theirs):
        after["questions"] = before["questions"]
    yield from _differing(before, after)
    if missing := [name for name in ours.labels if name not in theirs.labels]:
        yield Difference("entries", f"entries: the candidate lacks {', '.join(missing)}")
    unknown = asked(candidate).difference(asked(baseline))
    if len(unknown):
        question, turn, repeat = unknown[0]
        yield Difference(
            "prompts",
            f"prompts: {len(unknown)} of the candidate's {len(asked(candidate))} are not in the "
            f"baseline, the first: question {question}, turn {turn}, repeat {repeat}",
        )


def _apart(ours: Manifest, theirs: Manifest) -> Iterator[Difference]:
    """What says that two runs were not made in one session on one machine."""
    before, after = (
        {"gpus": run.gpu_names} | _recorded(run, "threads", *_MACHINE) for run in (ours, theirs)
    )
    for item in _differing(before, after):
        yield Difference(SESSION, item.text)
    between = abs(theirs.started - ours.started)
    if between > _SESSION:
        hours = between / timedelta(hours=1)
        limit = _SESSION / timedelta(hours=1)
        yield Difference(SESSION, f"started {hours:.1f} hours apart, more than {limit:.0f}")


def _changes(ours: Manifest, theirs: Manifest) -> Iterator[str]:
    """What may differ, because it may be what the comparison is about."""
    new = [name for name in theirs.labels if name not in ours.labels]
    if new:
        yield f"new in the candidate, not gated: {', '.join(new)}"
    both = [name for name in theirs.labels if name in ours.entries and name in theirs.entries]
    pairs = [(_entry(ours, name), _entry(theirs, name)) for name in both]
    for before, after in (*pairs, (_recorded(ours, *_NOTED), _recorded(theirs, *_NOTED))):
        yield from (item.text for item in _differing(before, after))


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    """The facts that two runs do not share, by name."""
    for name in dict.fromkeys([*before, *after]):
        values = [facts.get(name, _NOT_RECORDED) for facts in (before, after)]
        if values[0] != values[1]:
            yield _versus(name, *values)


def _versus(name: str, before: Any, after: Any) -> Difference:
    return Difference(name, f"{name}: {before} in the baseline, {after} in the candidate")


def _identity(manifest: Manifest) -> dict[str, Any]:
    """What must be equal, by field, as it is shown."""
    model, questions = (
        str(manifest.hashes.get(name, _NOT_RECORDED))[:_HASH] for name in ("model", "questions")
    )
    return {
        "model": f"{manifest.model} ({model})",
        "questions": f"{manifest.questions} ({questions})",
        "device": _device(manifest),
        **_recorded(manifest, *_SETTINGS),
        "baseline_method": manifest.baseline,
    }


def _entry(manifest: Manifest, name: str) -> dict[str, Any]:
    """What an entry is, by the names that a note has for it."""
    record = manifest.entries[name]
    return {
        f"method of {name}": record.method,
        **{f"{name}.{option}": value for option, value in record.options.items()},
        f"weights of {name}": str(record.weights_sha256)[:_HASH],
        f"{name} is lossy": record.lossy,
    }


def _recorded(manifest: Manifest, *names: str) -> dict[str, Any]:
    """Settings of a run, and facts of its environment, by their own names."""
    values = {**manifest.environment, **manifest.settings}
    return {name: values.get(name, _NOT_RECORDED) for name in names}


def _device(manifest: Manifest) -> str:
    """``cpu``, or the GPU's name; another index of the same kind is the same kind."""
    kind, _, index = (manifest.resolved.device or _NOT_RECORDED).partition(":")
    names = manifest.gpu_names
    return names[int(index or 0)] if kind == "cuda" and int(index or 0) < len(names) else kind
