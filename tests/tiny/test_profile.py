"""``specbench profile`` on tiny models: the document's shape, what is timed, what is refused.

No estimate's size is asserted: times on a busy machine say nothing.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.microbench import bandwidth, passes
from specbench_kangaroo.microbench import profile as profiling
from specbench_kangaroo.microbench.estimates import Profile, to_json
from specbench_kangaroo.microbench.passes import ROWS, open_scene, sweep
from specbench_kangaroo.microbench.profile import Subject, measure
from tests.command import call, refused

from .bench import FAMILY, save_model
from .models import CONTEXT, random_model, target

ESTIMATES = (
    *("bandwidth_gb_s", "matmul_tflop_s", "floor_ms_per_token"),
    *("one_row_ms", "one_row_over_floor"),
)


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", 2**16)
    monkeypatch.setattr(bandwidth, "PRODUCT_SIZE", {"cpu": 64})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def arguments(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small profile."""
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return ["profile", "--model", str(model), "--device", "cpu", "--repeats", "1"]


def measured(*backends: str, repeats: int = 1) -> Profile:
    """A profile of the tiny target, which every backend runs alike here."""
    about = {"model": "tiny", "dtype": "float64", "device": "cpu", "threads": 1}
    subject = Subject(
        targets=dict.fromkeys(backends or ("eager",), target(FAMILY)),
        weight_bytes=10**6,
        about=about,
    )
    return measure(subject, repeats=repeats, on_progress=lambda *_: None)


def test_every_estimate_is_there_with_its_bounds() -> None:
    found = to_json(measured())
    for name in ESTIMATES:
        assert found[name].keys() == {"value", "low", "high"}
        assert found[name]["value"] > 0, f"{name} is no rate, ratio or time: {found[name]}"
    assert (found["schema_version"], found["sweeps"]) == (3, 5)
    json.dumps(found, allow_nan=False)


def test_passes_are_timed_for_every_number_of_rows() -> None:
    found = to_json(measured())
    for key in ("verify_ms", "verify_ratio"):
        assert list(found[key]) == [str(rows) for rows in ROWS if rows < CONTEXT]
        assert all(item["value"] > 0 for item in found[key].values())
    assert found["verify_ratio"]["1"]["value"] == 1
    assert found["one_row_ms"] == found["verify_ms"]["1"]
    assert found["context_tokens"] == CONTEXT - max(rows for rows in ROWS if rows < CONTEXT)


def test_enough_repeats_give_intervals() -> None:
    found = to_json(measured(repeats=6))
    for name in ESTIMATES:
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name


def test_a_pass_scores_its_rows_above_the_context_and_commits_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int]] = []
    real = passes.verify

    def watched(model: Target, draft: Any, cache: Any) -> Any:
        seen.append((len(draft.tree.parents), cache.length))
        return real(model, draft, cache)

    monkeypatch.setattr(passes, "verify", watched)
    scene = open_scene(target(FAMILY))
    first, second = sweep(scene, 0), sweep(scene, 3)
    assert list(first) == list(second) == list(scene.rows)
    order = [rows for rows, _ in seen]
    assert order[: len(scene.rows)] == list(scene.rows)
    assert order[len(scene.rows) :] == [*scene.rows[3:], *scene.rows[:3]], "one size always leads"
    assert {length for _, length in seen} == {scene.cache.length}


class Captures:
    """A target that captures passes at the calls whose numbers are in ``at``."""

    def __init__(self, at: set[int]) -> None:
        self.at, self.calls, self.captures = at, 0, 0
        self.device = torch.device("cpu")

    def verify(self, *_: Any) -> None:
        self.captures += self.calls in self.at
        self.calls += 1


@pytest.mark.parametrize(("at", "calls"), [(set(), 1), ({0}, 3), ({0, 1}, 4)])
def test_a_pass_that_was_captured_is_timed_anew(
    at: set[int], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass after a capture is dropped too, as in a run: it fills the store of memory again."""
    model = Captures(at)
    monkeypatch.setattr(passes, "verify", model.verify)
    scene = passes.Scene(model, None, torch.arange(4), (2,))  # type: ignore[arg-type]
    assert sweep(scene, 0)[2] > 0
    assert model.calls == calls


def test_passes_that_are_captured_again_and_again_have_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Captures(set(range(99)))
    monkeypatch.setattr(passes, "verify", model.verify)
    scene = passes.Scene(model, None, torch.arange(4), (2,))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="captured in 5 attempts"):
        sweep(scene, 0)


def test_backends_take_turns_within_a_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    real = profiling.sweep

    def watched(scene: Any, number: int) -> Mapping[int, float]:
        turns.append(id(scene))
        return real(scene, number)

    monkeypatch.setattr(profiling, "sweep", watched)
    found = to_json(measured("eager", "graph"))
    first, second = turns[:2]  # the warm-up
    assert turns[2:] == [first, second, second, first] * 2 + [first, second]
    assert found["backends"].keys() == {"graph"}
    costs = {"one_row_ms", "one_row_over_floor", "verify_ms", "verify_ratio"}
    assert found["backends"]["graph"].keys() == costs


def test_a_failure_leaves_garbage_collection_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(profiling, "sweep", fails)
    with pytest.raises(RuntimeError):
        measured()
    assert gc.isenabled()


def test_a_tied_head_is_read_once_and_an_untied_embedding_but_for_one_row() -> None:
    tied, untied = (random_model(family) for family in ("llama-gqa-tied", "llama-mha-untied"))
    row = 32 * 8  # hidden size, float64
    every = sum(p.numel() for p in tied.parameters()) * 8
    assert bandwidth.weight_bytes_per_token(tied) == every + row
    every = sum(p.numel() for p in untied.parameters()) * 8
    assert bandwidth.weight_bytes_per_token(untied) == every - 24 * row + row


def test_the_json_document_names_what_was_measured(
    arguments: list[str], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["dtype"], found["device"]) == (str(model), "float32", "cpu")
    assert (found["backend"], found["repeats"]) == ("eager", 1)
    assert found["weight_bytes"] > 0
    assert {"threads", "environment", "context_tokens", *ESTIMATES} <= found.keys()
    of_a_run = ("speed", "vanilla", "generate", "accepted", "compression", "harness", "methods")
    said = [key for key in found if any(word in key for word in of_a_run)]
    assert not said, f"a run says this, by its own definitions: {said}"


def test_a_terminal_of_80_columns_shows_it_whole(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 0
    shown = capsys.readouterr().out
    for label in ("memory bandwidth, GB/s", "pass of one row / floor", "rows of a pass"):
        assert label in shown
    assert "backend eager" in shown
    assert "…" not in shown, f"something was cut off:\n{shown}"
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("format_", ["json", "terminal"])
def test_a_file_gets_what_the_terminal_would(
    format_: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--format", format_, "--output", "profile.txt") == 0
    assert "floor" in (tmp_path / "profile.txt").read_text()
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--repeats", "0"], "--repeats"),
        (["--model", "nowhere"], "unknown model 'nowhere'"),
        (["--backend", "graph"], "use --backend eager"),
        (["--output", "missing/profile.json"], "its folder does not exist"),
        (["--format", "yaml"], "--format"),
        (["--peers"], "--peers"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    more: list[str], reason: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refused(capsys, *arguments, *more)


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\n"
        "from specbench_kangaroo.cli.main import main\n"
        "try: main(['profile', '--help'])\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "sys.exit('imported for nothing: torch' if 'torch' in sys.modules else 0)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert child.returncode == 0, child.stderr
    assert "--shape" in child.stdout
    shown = " ".join(child.stdout.split())
    assert "specbench run --method hf_generate" in shown, "where did generate go?"


def test_ctrl_c_exits_with_130(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(profiling, "sweep", interrupted)
    assert call(*arguments) == 130
    assert "nothing was kept" in capsys.readouterr().err
