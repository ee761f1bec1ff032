"""Targets whose layers lie on several devices, or are fetched from the disk for every pass.

There is one device on most machines that run the tests, so accelerate's offloading is real here and
a second device is torch's meta device: it takes tensors, and computes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from transformers import AutoModelForCausalLM

from specbench_kangaroo.bench.registry import method_class
from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Limits, decode
from specbench_kangaroo.engine.layers import LeanLayer, ModuleLayer
from specbench_kangaroo.engine.placement import Angles, Rows
from specbench_kangaroo.engine.target import Needs, Target
from specbench_kangaroo.engine.tree import chain_parents
from specbench_kangaroo.models.load import load_model

from .bench import drafting_methods, save_model
from .models import FAMILIES, random_model, target

IDS = torch.tensor([5, 9, 3, 14, 7, 11, 3, 14])
CPU, META = torch.device("cpu"), torch.device("meta")
ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.layers.3": "disk",
    "model.norm": "disk",
    "lm_head": "disk",
}


def offloaded(family: str, folder: Path) -> Target:
    """A target of which two layers, the norm and the head are read from the disk in every pass."""
    random_model(family).save_pretrained(folder)
    places = dict(ON_DISK)
    if target(family).config.tie_word_embeddings:
        places["lm_head"] = "cpu"  # with the embeddings
    model = AutoModelForCausalLM.from_pretrained(folder, device_map=places, dtype=torch.float64)
    return Target(model.eval())


@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_layers_give_what_resident_ones_give(family: str, tmp_path: Path) -> None:
    found, resident = offloaded(family, tmp_path), target(family)
    kinds = [type(layer) for layer in found._layers]
    assert kinds[1::2] == [ModuleLayer] * 2, "weights that are away are only there in the module"
    assert kinds[::2] == [type(layer) for layer in resident._layers][::2]
    with torch.inference_mode():
        outputs = [t.prefill(IDS, t.new_cache(8), Needs(layers=(1, 2))) for t in (found, resident)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs[0].hidden[2], outputs[1].hidden[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", drafting_methods())
def test_every_method_runs_on_an_offloaded_target(name: str, tmp_path: Path) -> None:
    found = offloaded("llama-mha-untied", tmp_path / "target")
    limits = Limits(max_new_tokens=12, eos=frozenset())
    wanted = decode(
        target("llama-mha-untied"), vanilla(), IDS.tolist(), limits=limits, clock=WallClock()
    ).output_ids
    kind = method_class(name)
    (tmp_path / "drafts").mkdir()
    options = kind.example_options(target("llama-mha-untied"), tmp_path / "drafts")[0]
    method = kind.load(found, options)
    got = decode(found, method, IDS.tolist(), limits=limits, clock=WallClock()).output_ids
    assert got == wanted


def vanilla() -> Any:
    kind = method_class("vanilla")
    return kind.load(target("llama-mha-untied"), kind.Options())


def test_a_head_that_is_offloaded_is_there_for_draft_heads(tmp_path: Path) -> None:
    found, resident = offloaded("llama-mha-untied", tmp_path), target("llama-mha-untied")
    assert found.model.lm_head.weight.is_meta
    torch.testing.assert_close(found.lm_head, resident.lm_head)
    assert found.model.lm_head.weight.is_meta, "the module's own weights must go away again"
    assert found.vocab_size == resident.vocab_size


def test_an_offloaded_embedding_is_no_device() -> None:
    """``weight.device`` would say meta, and prompts would be sent there."""
    model = cpu_offload(random_model("gemma2-capped"), execution_device=CPU)
    found = Target(model)
    assert found.model.get_input_embeddings().weight.is_meta
    assert found.device == CPU
    with torch.inference_mode():
        logits = [t.prefill(IDS, t.new_cache(8)).logits for t in (found, target("gemma2-capped"))]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)


def test_shares_count_weights_that_are_away(tmp_path: Path) -> None:
    found = offloaded("llama-mha-untied", tmp_path)
    assert found.weight_share(2) == target("llama-mha-untied").weight_share(2)


class Spy:
    """A layer somewhere: it notes where its inputs are, and answers with zeros of the host."""

    def __init__(self) -> None:
        self.seen: list[torch.device] = []

    def __call__(self, hidden: Any, rows: Rows, cache: Any) -> Any:
        del cache
        visible = rows.visible[None].mask
        assert visible is not None
        for tensor in (rows.angles.cos, rows.angles.signed_sin, visible):
            assert tensor.device == hidden.device, "a layer's inputs must be on one device"
        self.seen.append(hidden.device)
        return torch.zeros(hidden.shape, dtype=hidden.dtype)


def spread(homes: list[torch.device]) -> tuple[Target, list[Spy]]:
    """A target whose layers claim to be elsewhere."""
    found, spies = Target(random_model("llama-gqa-tied")), [Spy() for _ in homes]
    found._layers, found._homes, found._is_spread = list(spies), homes, True
    return found, spies


def test_states_angles_and_masks_follow_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    found, spies = spread([CPU, META, META, CPU])
    copies: list[torch.device] = []
    copy = Angles.on

    def on(self: Angles, device: torch.device) -> Angles:
        copies.append(device)
        return copy(self, device)

    monkeypatch.setattr(Angles, "on", on)
    rows = found.rows(4, (-1, 0, 0))
    cache = found.new_cache(9)
    states = found.layers(torch.zeros(3, 32, dtype=torch.float64), 0, 4, rows, cache)
    assert [spy.seen for spy in spies] == [[CPU], [META], [META], [CPU]]
    assert copies == [META], "one copy serves all layers of a device"
    assert states.device == found.device
    found.layers(states, 1, 2, rows, cache)
    assert copies == [META], "and every range of the same pass"


def test_states_come_back_from_a_range_that_ends_elsewhere() -> None:
    found, spies = spread([CPU, META, META, META])
    found.device = CPU
    states = found.layers(
        torch.zeros(2, 32, dtype=torch.float64), 0, 2, found.rows(0, (-1, 0)), found.new_cache(2)
    )
    assert spies[1].seen == [META]
    assert states.device == CPU, "a draft head reads them where the embedding is"


def test_logits_and_states_are_given_on_the_targets_device() -> None:
    found = Target(random_model("llama-gqa-tied"))
    found.device = META  # the norm and the head are on the host
    with torch.inference_mode():
        output = found.output(torch.zeros(2, 32, dtype=torch.float64))
    assert (output.logits.device, output.normed.device) == (META, META)


def test_keys_and_values_are_kept_where_their_layer_is() -> None:
    found, _ = spread([CPU, META, CPU, META])
    cache = found.new_cache(5)
    assert [cache.committed(layer).keys.device for layer in range(4)] == [CPU, META, CPU, META]
    assert found.new_cache(5, layers=2).committed(1).values.device == CPU, "a draft head's is here"


def test_auto_on_a_device_that_suffices_is_that_device(tmp_path: Path) -> None:
    loaded = load_model(str(save_model(tmp_path)), device="auto")
    assert loaded.device in ("cpu", "cuda:0"), "a run there is comparable with one without auto"
    assert not hasattr(loaded.model.model.layers[0], "_hf_hook")


def test_auto_takes_the_disk_when_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_model(tmp_path))
    whole = load_model(folder, device="cpu")
    layer = sum(p.numel() for p in whole.model.model.layers[0].parameters()) * 4
    monkeypatch.setattr(
        "transformers.integrations.accelerate.get_balanced_memory",
        lambda *_, **__: {"cpu": 3 * layer},
    )
    loaded = load_model(folder, device="auto", dtype="float32")
    assert loaded.device == "auto"
    assert "disk" in loaded.model.hf_device_map.values()
    found, wanted = Target(loaded.model), Target(whole.model)
    with torch.inference_mode():
        outputs = [t.prefill(IDS, t.new_cache(8)).logits for t in (found, wanted)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    assert found.rows(0, chain_parents(2)).slot == 0
    assert LeanLayer in {type(layer) for layer in found._layers}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_layers_on_a_gpu_and_layers_in_the_hosts_memory() -> None:
    model = random_model("llama-mha-untied")
    places: dict[str, Any] = dict.fromkeys(ON_DISK, 0) | {"model.layers.2": "cpu"}
    found = Target(dispatch_model(model, places))
    assert found.device == torch.device("cuda", 0)
    with torch.inference_mode():
        logits = found.prefill(IDS, found.new_cache(8)).logits
        wanted = target("llama-mha-untied").prefill(IDS, target("llama-mha-untied").new_cache(8))
    torch.testing.assert_close(logits.cpu(), wanted.logits, rtol=0, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device or none")
def test_layers_on_two_gpus() -> None:
    model = random_model("llama-mha-untied")
    places: dict[str, Any] = dict.fromkeys(ON_DISK, 0)
    places |= dict.fromkeys(("model.layers.2", "model.layers.3", "model.norm", "lm_head"), 1)
    found = Target(dispatch_model(model, places))
    assert all(isinstance(layer, LeanLayer) for layer in found._layers)
    with torch.inference_mode():
        output = found.prefill(IDS, found.new_cache(8))
        wanted = target("llama-mha-untied").prefill(IDS, target("llama-mha-untied").new_cache(8))
    assert output.logits.device == found.device
    torch.testing.assert_close(output.logits.cpu(), wanted.logits, rtol=0, atol=1e-5)
