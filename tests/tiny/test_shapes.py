"""Models of random weights by their size, and what a profile says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from specbench_kangaroo.loading import shapes

from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.microbench import bandwidth, subjects
from specbench_kangaroo.microbench.subjects import ProfileRequest, open_subjects
from specbench_kangaroo.models.shapes import SHAPES, Shape, random_model, shape_named
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.run.config import ModelChoice
from tests.command import call, refused

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
BILLIONS = {
    "smollm2-135m": 0.1345,
    "qwen2.5-0.5b": 0.494,
    "tinyllama-1.1b": 1.10,
    "llama-3.2-1b": 1.236,
    "vicuna-7b": 6.738,
    "vicuna-13b": 13.016,
    "llama-3-8b": 8.030,
    "mistral-7b": 7.248,
    "qwen2.5-7b": 7.616,
    "qwen3-8b": 8.191,
}


def tiny(kind: str, **more: Any) -> Shape:
    return Shape(f"tiny-{kind}", {"model_type": kind, **SIZES, **more})


def built(shape: Shape) -> Any:
    return random_model(shape, dtype="float64", device="cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", 2**16)
    monkeypatch.setattr(bandwidth, "PRODUCT_SIZE", {"cpu": 64})


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config.json as people have them, with keys that say nothing of a size."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **tiny("llama").config}))
    return path


@pytest.fixture
def arguments(config: Path) -> list[str]:
    return [
        *("profile", "--shape", str(config), "--device", "cpu"),
        *("--new-tokens", "6", "--repeats", "1"),
    ]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_shape_becomes_a_target(kind: str, tied: bool) -> None:
    model = built(tiny(kind, tie_word_embeddings=tied))
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    target = Target(model)  # compares our layers with the model's own logits
    with torch.inference_mode():
        logits = target.prefill(torch.arange(9), target.new_cache(9)).logits
    assert logits.isfinite().all()
    assert logits.std() > 0, "all tokens are alike, so attention has nothing to weigh"


def test_the_same_shape_has_the_same_weights() -> None:
    first, second = built(tiny("llama")), built(tiny("llama"))
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), f"{name} differs, so no two profiles are of one model"


@pytest.mark.parametrize("name", SHAPES)
def test_a_named_shape_has_the_size_of_its_model(name: str) -> None:
    model = shapes._without_weights(shape_named(name), "bfloat16")
    model.tie_weights()
    parameters = sum(weight.numel() for weight in model.parameters())
    assert parameters / 1e9 == pytest.approx(BILLIONS[name], rel=2e-3)
    assert all(weight.is_meta for weight in model.parameters()), "seven billion on the host"


def test_weights_that_do_not_fit_are_refused_before_they_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Free:
        available = 2**30

    monkeypatch.setattr(psutil, "virtual_memory", Free)
    with pytest.raises(UsageError, match=r"needs 25\.1 GiB on cpu, which has 1\.0 GiB free"):
        random_model(shape_named("vicuna-7b"), dtype="float32", device="cpu")


def test_a_profile_of_a_shape_says_so_wherever_it_is_read(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(*arguments) == 0
    shown = capsys.readouterr().out
    assert "small (random weights: latency only)" in shown.splitlines()[0]
    assert shown.count("random weights: latency only") == 2, "title and caption"
    assert "untrained draft" in shown
    for said_of_trained_weights in ("speedup", "mean accepted", "other tokens", "gave the tokens"):
        assert said_of_trained_weights not in shown
    assert "…" not in shown, f"something was cut off:\n{shown}"
    assert max(map(len, shown.splitlines())) <= 80


def test_the_document_of_a_shape_has_latencies_and_no_acceptance(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "small"
    assert found["weights"] == "random weights: latency only"
    assert found["shape"]["hidden_size"] == 32
    assert found["prompt_tokens"] == [32, 64, 96, 122, 122, 122], "the context has 128"
    for key in ("vanilla_over_generate", "vanilla_over_floor", "draft_step_ms", "matmul_tflop_s"):
        assert found[key]["value"] > 0, key
    assert {"1", "64"} <= found["verify_ms"].keys()
    assert found["methods"], "no trainable method was found"
    for name, method in found["methods"].items():
        assert method.keys() == {"draft_step_ms"}, f"{name} says more than a cost"
    assert "generate_differs" not in found


def test_an_untrained_draft_drafts_at_full_length(config: Path) -> None:
    """Under a threshold it would stop at once, and its one token would bear the whole overhead."""
    request = ProfileRequest(
        model=ModelChoice(name="", device="cpu"),
        shape=str(config),
        exit_layer=2,
        methods=("kangaroo",),
        options=("kangaroo.steps=3",),
    )
    (engine,) = open_subjects(request).engines
    options: Any = engine.methods["kangaroo"].options
    assert (options.exit_layer, options.steps, options.threshold) == (2, 3, 0.0)


def test_backends_share_the_weights_that_generate_reads(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "check_backend", lambda choice: None)
    monkeypatch.setattr(subjects, "capturer_of", lambda choice, device: None)
    request = ProfileRequest(
        model=ModelChoice(name="", device="cpu"), shape=str(config), backends=("eager", "graph")
    )
    found = open_subjects(request)
    assert [engine.backend for engine in found.engines] == ["eager", "graph"]
    weight = found.untouched.lm_head.weight
    assert all(engine.target.model.lm_head.weight is weight for engine in found.engines)
    assert found.untouched is not found.engines[0].target.model, "its attention would be ours"
    assert found.untouched.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--shape", "vicuna-8b"], "did you mean 'vicuna-7b'?"),
        (["--shape", "missing.json"], "cannot read a shape from missing.json"),
        (["--model", "elsewhere"], "leave --model and --revision out"),
        (["--peers"], "random weights"),
        (["--method", "medusa", "--exit-layer", "2"], "leave --exit-layer out"),
        (["--method", "kangaroo", "--exit-layer", "4"], "give one of 1..3"),
        (["--backend", "graph"], "use --backend eager"),
        (["--new-tokens", "128"], "leaves no room for a prompt"),
    ],
)
def test_what_a_shape_cannot_have_is_refused_in_one_line(
    more: list[str], reason: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refused(capsys, *arguments, *more)


def test_an_exit_layer_is_for_untrained_drafts(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("profile", "--device", "cpu", "--exit-layer", "2") == 2
    assert "--shape" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"hidden_size": 32}'])
def test_a_file_that_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(UsageError, match=r"odd\.json"):
        shape_named(str(tmp_path / "odd.json"))


def test_a_config_that_makes_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="makes no model"):
        built(Shape("odd", {"model_type": "no-such-family"}))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_of_seven_billion_is_there_in_seconds() -> None:
    before = psutil.Process().memory_info().rss
    model: Any = random_model(shape_named("vicuna-7b"), dtype="bfloat16", device="cuda")
    assert model.device.type == "cuda"
    assert psutil.Process().memory_info().rss - before < 4 * 2**30, "it was drawn on the host"
