"""The default model against its committed reference, on a short subset of `make regression`."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from specbench_kangaroo.record.manifest import MANIFEST, read_manifest
from tests.command import call

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "regression"
SUBSET = ("--task", "qa", "--task", "math_reasoning", "--limit", "1", "--warmup", "0")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (REFERENCE / MANIFEST).is_file(),
        reason=f"no reference run in {REFERENCE}; `make reference-regression` makes it",
    ),
]


def test_the_default_model_holds_against_its_reference(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # The reference's own command line; of a flag that is given twice the last one counts.
    _, *command = shlex.split(read_manifest(REFERENCE).command)
    candidate = str(tmp_path / "run")
    assert call(*command, *SUBSET, "--output", candidate) == 0, capsys.readouterr()
    # Answers are so few that one near tie, turned round by another processor, is half of them.
    flags = ("--tolerance-tokens", "0.05")
    assert call("compare", str(REFERENCE), candidate, *flags) == 0, (
        "tokens, acceptance or losslessness became worse; where that is meant, "
        f"`make reference-regression` makes the reference again:\n{capsys.readouterr().out}"
    )
