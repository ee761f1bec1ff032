"""``specbench profile`` on tiny models: the document's shape, what is compared, what is refused.

No figure's size is asserted: times on a busy machine say nothing.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from specbench_kangaroo.engine.decode import Decoded
from specbench_kangaroo.engine.method import Method, MethodOptions
from specbench_kangaroo.microbench import bandwidth, contest
from specbench_kangaroo.microbench import profile as profiling
from specbench_kangaroo.microbench.contest import Answer
from specbench_kangaroo.microbench.document import to_json
from specbench_kangaroo.microbench.figures import summarise_profile
from specbench_kangaroo.microbench.peers import HasPeer, peer_of
from specbench_kangaroo.microbench.profile import Samples, measure
from specbench_kangaroo.microbench.subjects import Engine, Model, Subjects, Turn
from specbench_kangaroo.microbench.verify_cost import ROWS
from specbench_kangaroo.run import registry
from specbench_methods.vanilla import Vanilla
from tests.command import call, refused

from .bench import FAMILY, Cheats, Stub, make_bench, save_model
from .clocks import FakeClock
from .models import CONTEXT, random_model

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


class LooksUp(Stub):
    """A stub that says that generate has it too: its prompt lookup."""

    def generate_options(self) -> Mapping[str, Any]:
        return {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2}


class Assisted(Stub):
    """A stub whose peer is assisted by the target itself: each of its drafts is right."""

    assistants: ClassVar[list[Any]] = []  # all that were loaded

    def generate_options(self) -> Mapping[str, Any]:
        assistant = random_model(FAMILY)
        assistant.generation_config.update(
            num_assistant_tokens=2,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
        self.assistants.append(assistant)
        return {"assistant_model": assistant}


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", 2**16)
    monkeypatch.setattr(bandwidth, "PRODUCT_SIZE", {"cpu": 64})


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
        lambda: (
            real
            | {"stub": lambda: Stub, "trained": lambda: TrainedStub, "looks_up": lambda: LooksUp}
        ),
    )
    return [
        *("profile", "--model", str(model), "--device", "cpu"),
        *("--new-tokens", "4", "--repeats", "1"),
    ]


def subjects(*backends: str, **methods: type[Stub]) -> Subjects:
    """Those of a profile with --peers."""
    bench, backends = make_bench(), backends or ("eager",)
    given = {name: kind(bench.target) for name, kind in methods.items()}
    vanilla: dict[str, Method] = {"vanilla": Vanilla(MethodOptions())}
    methods_ = vanilla | given
    return Subjects(
        model=Model(name="tiny", dtype="float64", device="cpu"),
        engines=tuple(
            Engine(backend=name, target=bench.target, methods=methods_) for name in backends
        ),
        untouched=random_model(FAMILY),
        prompts=PROMPTS,
        peers={
            peer_of(name): method.generate_options()
            for name, method in given.items()
            if isinstance(method, HasPeer)
        },
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
        assert list(found[key]) == [str(rows) for rows in ROWS if rows < CONTEXT]
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
    """The random models say <eos>, as any other token, sooner or later.

    A peer's last draft may reach beyond the last token; no more than that one comes out.
    """
    for sample in measured(subjects(looks_up=LooksUp, assisted=Assisted)).answers:
        emitted = len(sample.answer.decoded.output_ids)
        assert emitted == NEW_TOKENS, f"{sample.contestant} stopped after {emitted} tokens"


def test_generate_tells_its_prefill_from_its_decoding() -> None:
    of = subjects()
    found = contest.answer(of, "generate", PROMPTS[0], NEW_TOKENS).decoded
    assert 0 < found.ttft_ms < found.total_ms


def test_a_models_own_generation_config_bends_nothing() -> None:
    """Qwen2's comes with a repetition penalty and sampling settings."""
    of = subjects()
    of.untouched.generation_config.update(repetition_penalty=9.0, do_sample=True, max_length=9)
    assert document(of)["generate_differs"] == 0


def test_other_tokens_from_generate_are_counted_by_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = contest.generate

    def lying(model: Any, prompt: Sequence[int], new_tokens: int) -> Answer:
        answer = honest(model, prompt, new_tokens)
        if tuple(prompt) != PROMPTS[1]:
            return answer
        told = answer.decoded
        ids = ((told.output_ids[0] + 1) % 24, *told.output_ids[1:])
        return Answer(Decoded(ids, (), told.ttft_ms, told.total_ms), answer.passes)

    monkeypatch.setattr(contest, "generate", lying)
    assert document(subjects(), repeats=2)["generate_differs"] == 1


def test_a_method_that_changes_the_text_is_found_out() -> None:
    assert document(subjects(cheats=Cheats))["methods"]["cheats"]["differs"] > 0


def test_all_take_turns_within_a_repeat() -> None:
    answers = measured(subjects(stub=Stub), repeats=3).answers
    openers = {sample.contestant for sample in answers[:: len(subjects(stub=Stub).turns)]}
    assert openers == {"generate", "vanilla", "stub"}, "one contestant is always the first"
    assert [sample.prompt for sample in answers[:6]] == [0, 0, 0, 1, 1, 1]


PEER_FIGURES = {
    "over_generate",
    "over_generate_decode",
    "total_ms_per_token",
    "generate_total_ms_per_token",
    "decode_ms_per_token",
    "generate_decode_ms_per_token",
    "compression_rate",
    "generate_compression_rate",
}


def test_a_method_that_generate_has_too_is_set_against_it() -> None:
    found = document(subjects(looks_up=LooksUp))["methods"]
    assert list(found) == ["looks_up"], "a peer is a figure of its method, and no method"
    for name in PEER_FIGURES:
        figure = found["looks_up"][name]
        assert 0 < figure["low"] <= figure["value"] <= figure["high"], f"{name}: {figure}"
    assert found["looks_up"]["generate_differs"] == 0


def test_a_method_that_generate_does_not_have_is_profiled_as_without_peers() -> None:
    found = document(subjects(looks_up=LooksUp, stub=Stub))["methods"]["stub"]
    assert found.keys() == {"speedup", "mean_accepted_tokens", "draft_step_ms", "differs"}


@pytest.mark.parametrize("kind", [LooksUp, Assisted])
@pytest.mark.parametrize("new_tokens", [2, 3, 12, 13])
def test_a_peer_emits_vanillas_tokens_to_the_last(kind: type[Stub], new_tokens: int) -> None:
    of = subjects(method=kind)
    for prompt in PROMPTS:
        vanilla = contest.answer(of, "vanilla", prompt, new_tokens)
        peer = contest.answer(of, "generate:method", prompt, new_tokens)
        assert peer.decoded.output_ids == vanilla.decoded.output_ids


def test_a_peer_drafts_and_its_drafts_are_accepted() -> None:
    """Otherwise a method would be set against plain generate under another name."""
    for kind, prompt in ((Assisted, PROMPTS[0]), (LooksUp, (7, 5, 9, 14) * 4)):
        peer = contest.answer(subjects(method=kind), "generate:method", prompt, 20)
        assert peer.passes < 20, f"{kind.__name__}: one token a pass, as without a draft"


@pytest.mark.parametrize("contestant", ["generate", "generate:looks_up", "generate:assisted"])
def test_the_first_token_is_stamped_after_the_prefill_and_before_more(
    contestant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock shows how many passes of the target have run."""
    of = subjects(looks_up=LooksUp, assisted=Assisted)
    passes = []
    of.untouched.register_forward_hook(lambda *_: passes.append(1))
    now = iter(lambda: float(len(passes)), None)
    monkeypatch.setattr(contest, "clock_for", lambda _: FakeClock(now))
    found = contest.answer(of, contestant, (7, 5, 9, 14) * 4, 20)
    assert found.decoded.ttft_ms == 1, "the prefill is one pass"
    assert found.decoded.total_ms == len(passes) == found.passes


def test_tokens_that_came_with_the_prefill_are_not_counted_as_decoded() -> None:
    """A right draft of two tokens before the prefill: three tokens are there after one pass."""
    peer = contest.answer(subjects(method=Assisted), "generate:method", PROMPTS[0], 10)
    assert peer.first_tokens == 3
    assert contest.answer(subjects(), "vanilla", PROMPTS[0], 10).first_tokens == 1
    assert contest.answer(subjects(), "generate", PROMPTS[0], 10).first_tokens == 1


def test_a_peer_decodes_greedily_whatever_it_is_given() -> None:
    of = subjects(looks_up=LooksUp)
    bent = {**of.peers["generate:looks_up"], "do_sample": True, "repetition_penalty": 9.0}
    found = document(dataclasses.replace(of, peers={"generate:looks_up": bent}))
    assert found["methods"]["looks_up"]["generate_differs"] == 0


def test_an_assistant_is_loaded_once_and_never_while_measuring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Assisted, "assistants", [])
    of = subjects(assisted=Assisted)
    assert len(Assisted.assistants) == 1
    measured(of, repeats=2)
    assert len(Assisted.assistants) == 1, "loading was timed as decoding"


def test_a_method_and_its_peer_are_neighbours() -> None:
    """Neighbours in time see the machine at the same speed."""
    of = subjects(looks_up=LooksUp, stub=Stub)
    names = [turn.name for turn in of.turns]
    assert names == ["generate", "vanilla", "looks_up", "generate:looks_up", "stub"]


def test_backends_take_turns_too() -> None:
    of = subjects("eager", "graph", stub=Stub)
    assert of.turns == (
        Turn("generate"),
        Turn("vanilla", "eager"),
        Turn("vanilla", "graph"),
        Turn("stub", "eager"),
        Turn("stub", "graph"),
    )
    found = document(of)
    assert found["backends"].keys() == {"graph"}
    assert found["backends"]["graph"].keys() - found.keys() == {"vanilla_over_eager"}
    assert found["backends"]["graph"]["methods"]["stub"]["differs"] == 0


def test_peers_are_for_those_who_ask(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [*arguments, "--method", "looks_up", "--format", "json"]
    assert call(*chosen) == 0
    without = json.loads(capsys.readouterr().out)["methods"]["looks_up"]
    assert not without.keys() & {*PEER_FIGURES, "generate_differs"}
    assert call(*chosen, "--peers") == 0
    found = json.loads(capsys.readouterr().out)["methods"]["looks_up"]
    assert {*PEER_FIGURES, "generate_differs"} <= found.keys()


def test_without_methods_peers_adds_those_that_generate_has_and_that_load(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real ones that need no options are among them: prompt lookup, by its real class."""
    monkeypatch.setenv("COLUMNS", "80")
    assert call(*arguments, "--peers", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)["methods"]
    assert next(iter(found)) == "trained", "the document's draft_step_ms is another method's"
    assert {"looks_up", "prompt_lookup"} <= found.keys()
    assert "stub" not in found, "neither trained nor known to generate"
    assert "over_generate" in found["prompt_lookup"]
    assert "over_generate" not in found["trained"]


def test_the_terminal_has_a_section_for_peers(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(*arguments, "--method", "prompt_lookup", "--peers") == 0
    shown = capsys.readouterr().out
    assert "against transformers' own" in shown
    assert "generate by prompt_lookup gave" in shown
    assert "…" not in shown, f"something was cut off:\n{shown}"
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("size", [1, 2, 3])
def test_prompt_lookup_needs_as_many_passes_as_transformers_give_or_take_one(size: int) -> None:
    """Both copy the same tokens, but generate drafts before its prefill already."""
    bench = make_bench()
    kind = registry.method_class("prompt_lookup")
    method = kind.load(bench.target, kind.Options(ngram=size, tokens=4))
    assert isinstance(method, HasPeer)
    of = dataclasses.replace(
        subjects(),
        engines=(Engine(backend="eager", target=bench.target, methods={"prompt_lookup": method}),),
        peers={"generate:prompt_lookup": method.generate_options()},
    )
    for prompt in (*PROMPTS, (7, 5, 9, 14) * 4):
        ours = contest.answer(of, "prompt_lookup", prompt, 24)
        theirs = contest.answer(of, "generate:prompt_lookup", prompt, 24)
        assert ours.decoded.output_ids == theirs.decoded.output_ids
        assert abs(ours.passes - theirs.passes) <= 1, (
            "the two draft by different rules, so their speeds say nothing of the engines"
        )


def test_a_failure_leaves_garbage_collection_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Answer:
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
    assert call(*arguments, "--format", "json") == 0
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
    assert call(*arguments, "--method", "stub") == 0
    shown = capsys.readouterr().out
    assert "speed of vanilla / generate" in shown
    assert "draft step, ms" in shown
    assert "…" not in shown, f"something was cut off:\n{shown}"
    assert max(map(len, shown.splitlines())) <= 80


def test_vanilla_alone_can_be_asked_for(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--method", "vanilla", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["methods"] == {}


@pytest.mark.parametrize("format_", ["json", "terminal"])
def test_a_file_gets_what_the_terminal_would(
    format_: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--format", format_, "--output", "profile.txt") == 0
    assert "generate" in (tmp_path / "profile.txt").read_text()
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--method", "kangaro"], "did you mean 'kangaroo'?"),
        (["--option", "kangaroo.steps=4"], "add --method kangaroo"),
        (["--method", "stub", "--option", "stub.depth=4"], "unknown option of stub 'depth'"),
        (["--method", "kangaroo"], "no Kangaroo adapter"),
        (["--new-tokens", "1"], "--new-tokens"),
        (["--new-tokens", "1024"], "leaves no room for a prompt"),
        (["--repeats", "0"], "--repeats"),
        (["--model", "nowhere"], "unknown model 'nowhere'"),
        (["--peers", "--method", "stub"], "has no counterpart to stub; it has one to: "),
        (["--output", "missing/profile.json"], "its folder does not exist"),
        (["--format", "yaml"], "--format"),
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
    assert "--new-tokens" in child.stdout
    shown = " ".join(child.stdout.replace("│", " ").split())
    assert "--peers" in shown
    assert "against generate by the same method" in shown


def test_ctrl_c_exits_with_130(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Answer:
        raise KeyboardInterrupt

    monkeypatch.setattr(profiling, "answer", interrupted)
    assert call(*arguments) == 130
    assert "nothing was kept" in capsys.readouterr().err
