"""``specbench profile`` on tiny models: the document's shape, what is compared, what is refused.

No figure's size is asserted: times on a busy machine say nothing.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from specbench_kangaroo import bandwidth, contest, registry
from specbench_kangaroo import profile as profiling
from specbench_kangaroo.cli.main import main
from specbench_kangaroo.decode import Decoded
from specbench_kangaroo.method import Method, MethodOptions
from specbench_kangaroo.profile import Samples, measure
from specbench_kangaroo.profile_figures import summarise_profile, to_json
from specbench_kangaroo.profile_subjects import Subjects
from specbench_kangaroo.verify_cost import ROWS
from specbench_methods.vanilla import Vanilla

from .bench import FAMILY, Cheats, Stub, make_bench, save_model
from .models import random_model

NEW_TOKENS = 6
PROMPTS = ((5, 9, 14, 7), (8, 8, 3), (11, 6, 20, 19, 12))
FIGURES = (
    "vanilla_over_generate",
    "vanilla_over_generate_decode",
    "vanilla_ms_per_token",
    "generate_ms_per_token",
    "floor_ms_per_token",
    "bandwidth_gb_s",
)


class TrainedStub(Stub):
    """A stub that says it has trained weights."""

    weights: Mapping[str, Any] = {"sha256": "22"}


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", 2**16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def arguments(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small profile; stub methods are registered beside the real ones."""
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    real = registry._loaders()
    monkeypatch.setattr(
        registry,
        "_loaders",
        lambda: real | {"stub": lambda: Stub, "trained": lambda: TrainedStub},
    )
    return [
        *("profile", "--model", str(model), "--device", "cpu"),
        *("--new-tokens", "4", "--repeats", "1"),
    ]


def status(arguments: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(str(ended.value.code))


def subjects(**methods: type[Stub]) -> Subjects:
    bench = make_bench()
    loaded: dict[str, Method] = {"vanilla": Vanilla(MethodOptions())}
    return Subjects(
        loaded=bench.loaded,
        target=bench.target,
        untouched=random_model(FAMILY),
        methods=loaded | {name: kind(bench.target) for name, kind in methods.items()},
        prompts=PROMPTS,
    )


def measured(of: Subjects, *, repeats: int = 2) -> Samples:
    return measure(of, new_tokens=NEW_TOKENS, repeats=repeats, on_progress=lambda *_: None)


def document(of: Subjects, **settings: Any) -> dict[str, Any]:
    return to_json(summarise_profile(measured(of, **settings), weight_bytes=10**6, about={}))


def test_every_figure_is_there_with_its_interval() -> None:
    found = document(subjects(stub=Stub))
    for name in FIGURES:
        assert found[name].keys() == {"value", "low", "high"}
        assert found[name]["value"] > 0, f"{name} is no ratio or time: {found[name]}"
    ratio = found["vanilla_over_generate"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert 0 <= found["harness_share"]["value"] < 1
    json.dumps(found, allow_nan=False)


def test_passes_are_timed_for_every_number_of_rows() -> None:
    found = document(subjects())
    for key in ("verify_ms", "verify_ratio"):
        assert list(found[key]) == [str(rows) for rows in ROWS]
        assert all(item["value"] > 0 for item in found[key].values())
    assert found["verify_ratio"]["1"]["value"] == 1


def test_a_drafting_method_has_its_costs_beside_its_speedup() -> None:
    found = document(subjects(stub=Stub))
    assert found["methods"]["stub"].keys() == {
        "speedup",
        "mean_accepted_tokens",
        "draft_step_ms",
        "differs",
    }
    assert found["draft_step_ms"] == found["methods"]["stub"]["draft_step_ms"]
    assert found["methods"]["stub"]["differs"] == 0
    assert found["methods"]["stub"]["mean_accepted_tokens"]["value"] > 2, "the stub is always right"


def test_without_a_drafting_method_its_figures_are_absent_not_zero() -> None:
    found = document(subjects())
    assert "draft_step_ms" not in found
    assert found["methods"] == {}


def test_generate_of_the_untouched_model_gives_vanillas_tokens() -> None:
    assert document(subjects())["generate_differs"] == 0


def test_nobody_stops_at_the_end_of_text() -> None:
    """The random models say <eos>, as any other token, sooner or later."""
    for sample in measured(subjects(stub=Stub)).answers:
        emitted = len(sample.decoded.output_ids)
        assert emitted == NEW_TOKENS, f"{sample.contestant} stopped after {emitted} tokens"


def test_generate_tells_its_prefill_from_its_decoding() -> None:
    of = subjects()
    found = contest.answer(of, "generate", PROMPTS[0], NEW_TOKENS)
    assert 0 < found.ttft_ms < found.total_ms


def test_a_models_own_generation_config_bends_nothing() -> None:
    """Qwen2's comes with a repetition penalty and sampling settings."""
    of = subjects()
    of.untouched.generation_config.update(repetition_penalty=9.0, do_sample=True, max_length=9)
    assert document(of)["generate_differs"] == 0


def test_other_tokens_from_generate_are_counted_by_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = contest.generate

    def lying(model: Any, prompt: Sequence[int], new_tokens: int) -> Decoded:
        told = honest(model, prompt, new_tokens)
        if tuple(prompt) != PROMPTS[1]:
            return told
        ids = ((told.output_ids[0] + 1) % 24, *told.output_ids[1:])
        return Decoded(ids, (), told.ttft_ms, told.total_ms)

    monkeypatch.setattr(contest, "generate", lying)
    assert document(subjects(), repeats=2)["generate_differs"] == 1


def test_a_method_that_changes_the_text_is_found_out() -> None:
    assert document(subjects(cheats=Cheats))["methods"]["cheats"]["differs"] > 0


def test_all_take_turns_within_a_repeat() -> None:
    answers = measured(subjects(stub=Stub), repeats=3).answers
    openers = {sample.contestant for sample in answers[:: len(subjects(stub=Stub).contestants)]}
    assert openers == {"generate", "vanilla", "stub"}, "one contestant is always the first"
    assert [sample.prompt for sample in answers[:6]] == [0, 0, 0, 1, 1, 1]


def test_a_failure_leaves_garbage_collection_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Decoded:
        raise RuntimeError

    monkeypatch.setattr(profiling, "answer", fails)
    with pytest.raises(RuntimeError):
        measured(subjects())
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
    assert status([*arguments, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == str(model)
    assert found["dtype"] == "float32"
    assert len(found["prompt_tokens"]) == 6, "one prompt of each task"
    assert max(found["prompt_tokens"]) <= 200
    assert list(found["methods"]) == ["trained"], "without --method: those with trained weights"
    assert {*FIGURES, "draft_step_ms", "verify_ms"} <= found.keys()


def test_a_terminal_of_80_columns_shows_it_whole(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert status([*arguments, "--method", "stub"]) == 0
    shown = capsys.readouterr().out
    assert "speed of vanilla / generate" in shown
    assert "draft step, ms" in shown
    assert "…" not in shown, f"something was cut off:\n{shown}"
    assert max(map(len, shown.splitlines())) <= 80


def test_vanilla_alone_can_be_asked_for(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status([*arguments, "--method", "vanilla", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"] == {}


@pytest.mark.parametrize("format_", ["json", "terminal"])
def test_a_file_gets_what_the_terminal_would(
    format_: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status([*arguments, "--format", format_, "--output", "profile.txt"]) == 0
    assert "generate" in (tmp_path / "profile.txt").read_text()
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--method", "kangaro"], "did you mean 'kangaroo'?"),
        (["--option", "kangaroo.steps=4"], "add --method kangaroo"),
        (["--method", "stub", "--option", "stub.depth=4"], "unknown option of stub 'depth'"),
        (["--method", "kangaroo"], "no Kangaroo adapter is shipped for"),
        (["--new-tokens", "1"], "--new-tokens"),
        (["--new-tokens", "1024"], "leaves no room for a prompt"),
        (["--repeats", "0"], "--repeats"),
        (["--model", "nowhere"], "unknown model 'nowhere'"),
        (["--output", "missing/profile.json"], "its folder does not exist"),
        (["--format", "yaml"], "--format"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    more: list[str], reason: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status([*arguments, *more]) == 2
    shown = capsys.readouterr()
    assert reason in shown.err
    assert shown.err.count("\n") == 1, shown.err
    assert not shown.out


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
    assert "--new-tokens" in child.stdout


def test_ctrl_c_exits_with_130(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Decoded:
        raise KeyboardInterrupt

    monkeypatch.setattr(profiling, "answer", interrupted)
    assert status(arguments) == 130
    assert "nothing was kept" in capsys.readouterr().err
