"""Models of random weights by their size, and what a profile says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.microbench import bandwidth, profile
from specbench_kangaroo.microbench.profile import ProfileRequest, open_subject
from specbench_kangaroo.models import shapes
from specbench_kangaroo.models.shapes import SHAPES, Shape, random_model, shape_named
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.request import TargetChoice
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
    return ["profile", "--shape", str(config), "--device", "cpu", "--repeats", "1"]


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


def test_a_profile_of_a_shape_says_so_where_it_is_read(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(*arguments) == 0
    shown = capsys.readouterr().out
    assert "small (random weights: latency only)" in shown.splitlines()[0]
    assert "…" not in shown, f"something was cut off:\n{shown}"
    assert max(map(len, shown.splitlines())) <= 80


def test_the_document_of_a_shape_has_its_sizes(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "small"
    assert found["weights"] == "random weights: latency only"
    assert found["shape"]["hidden_size"] == 32
    assert found["context_tokens"] == 64, "the context has 128, and the largest pass 64 rows"
    assert {"1", "64"} <= found["verify_ms"].keys()


def test_backends_share_the_weights(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "check_backend", lambda choice: None)
    monkeypatch.setattr(profile, "capturer_of", lambda choice, device: None)
    request = ProfileRequest(
        target=TargetChoice(model="", device="cpu"), shape=str(config), backends=("eager", "graph")
    )
    found = open_subject(request).targets
    assert list(found) == ["eager", "graph"]
    assert found["eager"].model is found["graph"].model


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--shape", "vicuna-8b"], "did you mean 'vicuna-7b'?"),
        (["--shape", "missing.json"], "cannot read a shape from missing.json"),
        (["--model", "elsewhere"], "leave --model and --revision out"),
        (["--backend", "graph"], "use --backend eager"),
    ],
)
def test_what_a_shape_cannot_have_is_refused_in_one_line(
    more: list[str], reason: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refused(capsys, *arguments, *more)


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
