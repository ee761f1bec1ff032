"""Kangaroo's adapter: its size, the files it comes in, and its two ways of running."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from specbench_kangaroo.engine.layers import is_llama_shaped
from specbench_kangaroo.engine.placement import PlainRotary
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.kangaroo.adapter import (
    KIND,
    Adapter,
    AdapterShape,
    exit_layer_of,
    write_untrained,
)
from specbench_methods.kangaroo.adapter import load_adapter as load_source
from specbench_methods.kangaroo.drafter import AdapterRunner, AdapterText
from specbench_methods.shared.growth import Growth
from specbench_methods.shared.weight_sources import locate
from specbench_methods.shared.weights import LoadedWeights, WeightInfo, save_weights

from .models import FAMILIES, target

SHAPE = AdapterShape(hidden_size=8, n_heads=4, n_kv_heads=2, head_dim=2, rms_norm_eps=1e-6)
KEYS = {
    "norm.weight": (8,),
    "layers.0.input_layernorm.weight": (8,),
    "layers.0.self_attn.q_proj.weight": (8, 8),
    "layers.0.self_attn.k_proj.weight": (4, 8),
    "layers.0.self_attn.v_proj.weight": (4, 8),
    "layers.0.self_attn.o_proj.weight": (8, 8),
}


def load_adapter(path: Path, shape: AdapterShape) -> LoadedWeights:
    return load_source(locate(str(path), KIND), shape)


@pytest.mark.parametrize(
    ("hidden_size", "n_heads", "expected"), [(4096, 32, 67_117_056), (5120, 40, 104_867_840)]
)
def test_parameter_counts_are_the_published_ones(
    hidden_size: int, n_heads: int, expected: int
) -> None:
    shape = AdapterShape(hidden_size, n_heads, n_heads, head_dim=128, rms_norm_eps=1e-6)
    with torch.device("meta"):
        adapter = Adapter(shape)
    count = sum(parameter.numel() for parameter in adapter.parameters())
    assert count == expected, "an adapter for Vicuna must have the size that its paper gives"


def published_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {key: torch.randn(shape, generator=generator) for key, shape in KEYS.items()}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as the authors publish it: a pickled state dict beside a one-layer config."""
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
    torch.save(published_tensors(), tmp_path / "pytorch_model.bin")
    return tmp_path


def test_a_published_folder_loads_with_its_own_rope_base(published: Path) -> None:
    loaded = load_adapter(published, SHAPE)
    assert loaded.info == WeightInfo(rope_base=10_000.0), (
        "published adapters were trained with base 10000, whatever the target's own is"
    )
    assert exit_layer_of(loaded, 2) == 2
    for key, tensor in loaded.tensors.items():
        assert torch.equal(tensor, published_tensors()[key]), f"{key} was loaded into another place"


def test_a_published_file_does_not_say_its_exit_layer(published: Path) -> None:
    loaded = load_adapter(published / "pytorch_model.bin", SHAPE)
    with pytest.raises(UsageError, match=r"kangaroo\.exit_layer=N"):
        exit_layer_of(loaded, None)


def test_strict_loading_names_the_tensor(published: Path) -> None:
    key = "layers.0.self_attn.k_proj.weight"
    without = {name: tensor for name, tensor in published_tensors().items() if name != key}
    broken = {
        f"{key} is missing": without,
        "embed_tokens.weight does not belong": {**without, key: torch.ones(4, 8)}
        | {"embed_tokens.weight": torch.ones(1)},
        rf"{key} has shape \[8, 8\], but this target needs \[4, 8\]": {**without}
        | {key: torch.ones(8, 8)},
    }
    for message, tensors in broken.items():
        torch.save(tensors, published / "pytorch_model.bin")
        with pytest.raises(UsageError, match=message):
            load_adapter(published, SHAPE)


class Malicious:
    """Runs a command when it is unpickled by a reader that lets it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_with_code_is_refused(published: Path, tmp_path: Path) -> None:
    trace = tmp_path / "code-was-run"
    torch.save({"norm.weight": Malicious(trace)}, published / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights"):
        load_adapter(published, SHAPE)
    assert not trace.exists(), "a downloaded checkpoint ran code on the user's machine"


def test_metadata_and_weights_survive_a_round_trip(tmp_path: Path) -> None:
    adapter = Adapter(SHAPE)
    info = WeightInfo(
        exit_layer=3,
        rope_base=5e5,
        target="vicuna",
        target_sha256="ab" * 32,
        draft_vocabulary=(1, 5, 7),
        record={"settings": {"seed": 1}},
        drafting={"steps": 4},
        paths=(((0,), 0.5), ((0, 1), 0.25)),
    )
    save_weights(tmp_path / "a.safetensors", adapter, info, KIND)
    loaded = load_adapter(tmp_path / "a.safetensors", SHAPE)
    assert (loaded.info, exit_layer_of(loaded, None)) == (info, 3)
    with pytest.raises(UsageError, match="was trained for exit layer 3, not 2"):
        exit_layer_of(loaded, 2)
    for key, tensor in adapter.state_dict().items():
        assert torch.equal(tensor, loaded.tensors[key]), f"{key} changed on disk"


def test_a_safetensors_file_without_a_note_is_a_published_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(published_tensors(), path)
    loaded = load_adapter(tmp_path, SHAPE)
    assert (loaded.info, loaded.published) == (WeightInfo(rope_base=10_000.0), True)
    with pytest.raises(UsageError, match="no Kangaroo adapter at"):
        load_adapter(tmp_path / "nowhere.safetensors", SHAPE)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def whole_at_once(adapter: Adapter, states: Tensor, rotary: object) -> Tensor:
    """The adapter as it is trained: all positions (P, H) in one pass."""
    positions = torch.arange(len(states))[None]
    cos, sin = rotary(states[None], positions)  # type: ignore[operator]
    output: Tensor = adapter(states[None], cos[:, None], sin[:, None], causal)[0]
    return output


# The families' own attention windows do not bind the adapter, whose attention is full.
@pytest.mark.parametrize("base", [None, 10_000.0])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_decoding_with_a_cache_is_the_trained_adapter(
    family: str, base: float | None, tmp_path: Path
) -> None:
    model = target(family)
    layer = model.model.model.layers[0]
    trained = is_llama_shaped(layer) and hasattr(layer.self_attn, "q_proj")
    if base is None and not trained:
        pytest.skip("no adapter is trained for this family, so none has its own RoPE")
    path = write_untrained(
        model.config, tmp_path / "a.safetensors", exit_layer=1, vocabulary_size=4
    )
    shape = AdapterShape.of(model.config)
    loaded = load_adapter(Path(path), shape)
    loaded = replace(loaded, info=replace(loaded.info, rope_base=base))
    adapter = Adapter(shape)
    adapter.load_state_dict(dict(loaded.tensors))
    states = torch.randn(24, model.hidden_size, dtype=torch.float64)
    rotary = model.model.model.rotary_emb if base is None else PlainRotary(base, shape.head_dim)
    expected = whole_at_once(adapter.double(), states, rotary)

    text = AdapterText(AdapterRunner(model, loaded), states[:9], capacity=32)
    position = 9
    for drafted, accepted in [(3, 3), (2, 1), (4, 0), (1, 1), (3, 2)]:
        growth = Growth([0])
        for depth in range(drafted + 1):
            right = depth <= accepted  # the states of a rejected token must leave no trace
            state = states[position + depth] if right else torch.ones(model.hidden_size).double()
            growth.states.append(state[None])
            if depth == drafted:
                break
            found = text(growth)[-1]
            error = (found - expected[position + depth]).abs().max()
            assert not right or error < 1e-10, (
                f"position {position + depth} is drafted from other states than in training"
            )
            growth.add([0], [growth.newest], [1.0])
        text.commit(growth, range(accepted + 1))
        position += accepted + 1


def test_the_untrained_adapter_file_is_the_same_each_time(tmp_path: Path) -> None:
    config = target("llama-gqa-tied").config
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        write_untrained(config, path, exit_layer=1, vocabulary_size=4)
    first, second = (load_file(path) for path in paths)
    assert all(torch.equal(first[key], second[key]) for key in first)
