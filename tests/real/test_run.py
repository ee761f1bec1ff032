"""A short run of the default model through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specbench_kangaroo.cli.main import main

pytestmark = pytest.mark.real


def test_a_short_run_of_the_default_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("run", "--task", "qa", "--limit", "2", "--max-new-tokens", "16"),
                *("--method", "kangaroo", "--output", str(folder), "--device", "cpu"),
            ]
        )
    assert ended.value.code == 0, "the lossless check failed, or no adapter is shipped"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["model"], summary["questions"]) == ("smollm2-135m", "builtin")
    assert (summary["baseline"], summary["status"]) == ("vanilla", "complete")
    kangaroo = summary["entries"]["kangaroo"]
    assert kangaroo["lossless"]["violation"] == kangaroo["errors"] == 0
    overall = kangaroo["tasks"]["overall"]
    assert overall["n"] == 2
    for key in (
        "speedup",
        "tokens_per_second",
        "mean_accepted_tokens",
        "acceptance_rate",
        "compression_rate",
        "speedup_ideal",
        "harness_share",
    ):
        assert {"value", "low", "high"} <= overall[key].keys(), key
    assert set(kangaroo["tasks"]) == {"overall", "qa"}
    assert (folder / "speedup_by_task.svg").stat().st_size
