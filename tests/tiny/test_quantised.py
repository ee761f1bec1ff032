"""Targets whose weights are packed: how they run, and what the user reads where they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from specbench_kangaroo.bench.registry import method_class
from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Limits, decode
from specbench_kangaroo.engine.layers import LeanLayer, ModuleLayer
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.models import load
from specbench_kangaroo.models.load import load_model
from specbench_kangaroo.record.errors import UsageError

from .bench import SAVED, drafting_methods, save_model
from .models import random_model

FAMILY = "llama-mha-untied"
PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)


class Int8Linear(nn.Module):
    """What quantised projections are like: whole numbers and scales, and no float matrix."""

    weight: Tensor
    scales: Tensor

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        scales = plain.weight.detach().abs().amax(1, keepdim=True) / 127  # [N, 1]
        numbers = (plain.weight.detach() / scales).round().to(torch.int8)  # [N, K]
        self.register_buffer("weight", numbers)
        self.register_buffer("scales", scales)

    def forward(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.weight.to(rows) * self.scales)


def packed_model(*, head: bool = False) -> Any:
    """A tiny model with its layers' projections in int8; bitsandbytes and GPTQ leave the head."""
    model = random_model(FAMILY)
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, Int8Linear(child))
    if head:
        model.lm_head = Int8Linear(model.lm_head)
    model.config.quantization_config = {"quant_method": "stand-in"}
    return model


@pytest.fixture(scope="module")
def packed() -> Target:
    return Target(packed_model())


def test_packed_layers_run_as_their_modules(packed: Target) -> None:
    assert {type(layer) for layer in packed._layers} == {ModuleLayer}


def test_one_packed_projection_keeps_its_layer_from_being_fused() -> None:
    model = random_model(FAMILY)
    model.model.layers[2].mlp.down_proj = Int8Linear(model.model.layers[2].mlp.down_proj)
    kinds = [type(layer) for layer in Target(model)._layers]
    assert kinds == [LeanLayer, LeanLayer, ModuleLayer, LeanLayer]


@pytest.mark.parametrize("name", drafting_methods())
def test_every_method_is_lossless_on_a_packed_target(
    packed: Target, name: str, tmp_path: Path
) -> None:
    kind, limits = method_class(name), Limits(max_new_tokens=12, eos=frozenset())
    vanilla = method_class("vanilla").load(packed, None)
    wanted = decode(packed, vanilla, PROMPT, limits=limits, clock=WallClock()).output_ids
    if name == "draft_model":
        pytest.skip("its example copies the target's weights into an unpacked model")
    method = kind.load(packed, kind.example_options(packed, tmp_path)[0])
    assert decode(packed, method, PROMPT, limits=limits, clock=WallClock()).output_ids == wanted


def test_shares_count_packed_bytes(packed: Target) -> None:
    """A share of parameters would overrate the head, which is left in full precision."""
    layers = packed.model.model.layers
    layer = sum(t.numel() * t.element_size() for t in layers[0].state_dict().values())
    head = packed.lm_head.numel() * 8
    assert packed.weight_share(4) == pytest.approx(head / (head + 4 * layer))
    assert packed.weight_share(4) > 2 * Target(random_model(FAMILY)).weight_share(4)


def test_a_packed_head_gives_logits_but_no_matrix(tmp_path: Path) -> None:
    found = Target(packed_model(head=True))
    assert found.vocab_size == 24
    vanilla = method_class("vanilla").load(found, None)
    limits = Limits(max_new_tokens=5, eos=frozenset())
    assert len(decode(found, vanilla, PROMPT, limits=limits, clock=WallClock()).output_ids) == 5
    for name in ("kangaroo", "medusa"):
        kind = method_class(name)
        options = kind.example_options(found, tmp_path)[0]
        with pytest.raises(UsageError, match=r"LM head is quantised \(Int8Linear\)") as caught:
            kind.load(found, options)
        assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path)


def say_quantised(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = settings
    path.write_text(json.dumps(config))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("the weights were loaded")


@pytest.mark.parametrize(
    ("settings", "missing", "install"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes", "bitsandbytes"),
        (
            {"quant_method": "gptq", "bits": 4},
            "optimum and gptqmodel",
            "optimum gptqmodel",
        ),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel", "gptqmodel"),
    ],
)
def test_a_missing_package_is_one_line_before_anything_is_loaded(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    missing: str,
    install: str,
) -> None:
    say_quantised(folder, **settings)
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(UsageError) as caught:
        load_model(str(folder), device="cpu")
    line = str(caught.value)
    assert f"weights, and {missing} to compute with them" in line
    assert line.endswith(f"not installed: pip install {install}")
    assert "\n" not in line


def test_a_missing_package_that_only_transformers_knows_is_one_line(folder: Path) -> None:
    say_quantised(folder, quant_method="spqr", bits=3, beta1=16, beta2=16)
    with pytest.raises(UsageError, match=r"cannot load a model from .*(spqr|GPU)") as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_an_unknown_quantisation_is_not_loaded_as_plain_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers warns and goes on, with packed numbers or random ones for weights."""
    say_quantised(folder, quant_method="homemade")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(UsageError, match=r"holds homemade weights.*; it knows .*awq.*gptq"):
        load_model(str(folder), device="cpu")


def test_packed_weights_are_placed_at_loading_and_never_moved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say_quantised(folder, quant_method="gptq", bits=4)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "float64"}))
    asked: dict[str, Any] = {}

    def from_pretrained(_: Path, **options: Any) -> Any:
        asked.update(options)
        model = packed_model()
        model.to = refuse  # as bitsandbytes' does
        return model, {"missing_keys": []}

    monkeypatch.setattr(load, "find_spec", lambda name: name)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    loaded = load_model(str(folder), device="cpu")
    assert asked["device_map"] == {"": "cpu"}
    assert asked["dtype"] is torch.float64, "the config's, not the device's default"
    assert (loaded.dtype, loaded.device) == ("float64", "cpu")
    load_model(str(folder), device="auto", dtype="float32")
    assert (asked["device_map"], asked["dtype"]) == ("auto", torch.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_itself_where_it_is_installed(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    plain, folder = save_model(tmp_path), tmp_path / "packed"
    wide = {**SAVED, "hidden_size": 128, "intermediate_size": 128}  # it packs blocks of 64
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**wide)).save_pretrained(plain)
    settings = transformers.BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=settings, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)
    for path in plain.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    loaded = load_model(str(folder), device="cpu")
    found = Target(loaded.model)
    assert {type(layer) for layer in found._layers} == {ModuleLayer}
    assert loaded.model.model.layers[0].mlp.up_proj.weight.dtype != torch.float32
    limits = Limits(max_new_tokens=8, eos=frozenset())
    answers = set()
    for name in ("vanilla", "layer_skip", "prompt_lookup"):
        kind = method_class(name)
        method = kind.load(found, kind.Options())
        answers.add(decode(found, method, PROMPT, limits=limits, clock=WallClock()).output_ids)
    assert len(answers) == 1
