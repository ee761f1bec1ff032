"""The regression gate: a candidate run compared with a baseline run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specbench_kangaroo.gate.comparability import check
from specbench_kangaroo.gate.gates import Gate, Tolerances, gates_of
from specbench_kangaroo.gate.pairs import Matched, match
from specbench_kangaroo.record.writer import Run


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
        allow: fields of :data:`comparability.FIELDS` in which the runs may differ.

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
