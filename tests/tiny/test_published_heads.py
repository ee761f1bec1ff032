"""Heads that others published: found in a folder or on the hub, read without running them."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Limits, decode
from specbench_kangaroo.engine.method import Method, MethodOptions
from specbench_kangaroo.models.hub import hub_id
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.kangaroo import Kangaroo, KangarooOptions
from specbench_methods.kangaroo.adapter import (
    PUBLISHED_EXIT_LAYERS,
    Adapter,
    AdapterShape,
)
from specbench_methods.medusa import Medusa, MedusaOptions
from specbench_methods.medusa.heads import Heads, HeadsShape
from specbench_methods.shared.weight_sources import catalogue
from specbench_methods.vanilla import Vanilla

from .models import count_parameters, target

FAMILY = "llama-gqa-tied"
PROMPT = [5, 9, 3, 14, 7, 11, 3, 14]
SIZES = {"7b": (4096, 32), "13b": (5120, 40), "33b": (6656, 52)}  # Vicuna's hidden sizes and heads
V13_CONFIG = {  # of FasterDecoding/medusa-vicuna-7b-v1.3: it says 2, and the file holds 5
    "base_model_name_or_path": "lmsys/vicuna-7b-v1.3",
    "medusa_num_heads": 2,
    "medusa_num_layers": 1,
}


def random_like(module: torch.nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        key: torch.randn(tensor.shape, generator=generator) * 0.2
        for key, tensor in module.state_dict().items()
    }


def medusa_tensors(heads: int = 5, *, own: bool = True, config: Any = None) -> dict[str, Tensor]:
    return random_like(Heads(HeadsShape.of(config or target(FAMILY).config, heads=heads, own=own)))


def kangaroo_tensors() -> dict[str, Tensor]:
    return random_like(Adapter(AdapterShape.of(target(FAMILY).config)))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def medusa_folder(tmp_path: Path) -> Path:
    """v1.3's layout: the heads alone, beside a config of three keys."""
    write_json(tmp_path / "medusa" / "config.json", V13_CONFIG)
    torch.save(medusa_tensors(), tmp_path / "medusa" / "medusa_lm_head.pt")
    return tmp_path / "medusa"


@pytest.fixture
def kangaroo_folder(tmp_path: Path) -> Path:
    """The authors' layout: a state dict beside a Llama config of one layer."""
    write_json(tmp_path / "kangaroo" / "config.json", {"num_hidden_layers": 1})
    torch.save(kangaroo_tensors(), tmp_path / "kangaroo" / "pytorch_model.bin")
    return tmp_path / "kangaroo"


def write_whole_model(folder: Path, *, suffix: str) -> Path:
    """v1.0's layout: a model in two files, the heads among the tensors of the second."""
    heads = {f"medusa_head.{key}": tensor for key, tensor in medusa_tensors().items()}
    first, second = {"model.embed_tokens.weight": torch.ones(2)}, {"lm_head.weight": torch.ones(2)}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    places = {}
    folder.mkdir(exist_ok=True)
    for number, tensors in enumerate((first, second | heads), start=1):
        name = f"{stem}-0000{number}-of-00002.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)(tensors, folder / name)
        places |= dict.fromkeys(tensors, name)
    write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {}, "weight_map": places})
    return folder


def answer(method: Method) -> tuple[int, ...]:
    limits = Limits(max_new_tokens=16, eos=frozenset())
    decoded = decode(target(FAMILY), method, PROMPT, limits=limits, clock=WallClock())
    return tuple(decoded.output_ids)


def medusa(where: str | Path, **options: Any) -> Medusa:
    return Medusa.load(target(FAMILY), MedusaOptions(heads=str(where), **options))


def kangaroo(where: str | Path, **options: Any) -> Kangaroo:
    given = {"exit_layer": 1, "threshold": 0.0} | options
    return Kangaroo.load(target(FAMILY), KangarooOptions(adapter=str(where), **given))


@pytest.mark.parametrize("layout", ["heads", "bin", "safetensors"])
def test_every_medusa_layout_decodes_as_vanilla_does(
    layout: str, medusa_folder: Path, tmp_path: Path
) -> None:
    where = medusa_folder
    if layout != "heads":
        where = write_whole_model(tmp_path / "whole", suffix=layout)
    method = medusa(where)
    assert method.tree.depth == 4, "without a tree of their own, heads draft the published one"
    assert method.weights["parameters"] == sum(t.numel() for t in medusa_tensors().values())
    assert method.weights["heads"] == 5
    assert answer(method) == answer(Vanilla(MethodOptions()))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_the_authors_kangaroo_layout_decodes_as_vanilla_does(
    name: str, kangaroo_folder: Path
) -> None:
    if name.endswith("safetensors"):
        (kangaroo_folder / "pytorch_model.bin").unlink()
        save_file(kangaroo_tensors(), kangaroo_folder / name)
    for where in (kangaroo_folder, kangaroo_folder / name):
        assert answer(kangaroo(where)) == answer(Vanilla(MethodOptions()))


def test_the_record_says_for_which_model_published_heads_were_made(medusa_folder: Path) -> None:
    assert medusa(medusa_folder).weights["target"] == "lmsys/vicuna-7b-v1.3"


def test_the_number_of_heads_bounds_the_tree(medusa_folder: Path) -> None:
    torch.save(medusa_tensors(3), medusa_folder / "medusa_lm_head.pt")
    with pytest.raises(UsageError, match="the tree published is 4 deep, but there are 3 heads"):
        medusa(medusa_folder)
    assert medusa(medusa_folder, tree="chain").tree.depth == 3


def test_heads_below_the_tree_take_no_memory_of_the_device(medusa_folder: Path) -> None:
    assert len(medusa(medusa_folder)._heads._own) == 4, "the file holds 5, the tree asks for 4"


class Malicious:
    """Runs a command when it is unpickled by a reader that lets it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("where", ["medusa", "kangaroo", "whole"])
def test_a_pickle_with_code_is_refused_in_one_line(
    where: str, medusa_folder: Path, kangaroo_folder: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "code-was-run"
    whole = write_whole_model(tmp_path / "whole", suffix="bin")
    file = {
        "medusa": medusa_folder / "medusa_lm_head.pt",
        "kangaroo": kangaroo_folder / "pytorch_model.bin",
        "whole": whole / "pytorch_model-00002-of-00002.bin",
    }[where]
    torch.save({"0.0.linear.weight": Malicious(trace)}, file)
    with pytest.raises(UsageError, match="not a plain file of tensors") as refused:
        (kangaroo if where == "kangaroo" else medusa)(file.parent)
    assert not trace.exists(), "a downloaded checkpoint ran code on the user's machine"
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html>Google Drive can't scan", "not a plain file of tensors"),
        (b"", "not a plain file of tensors"),
    ],
)
def test_what_was_downloaded_instead_of_weights_is_refused(
    content: bytes, reason: str, kangaroo_folder: Path
) -> None:
    (kangaroo_folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        kangaroo(kangaroo_folder)
    (kangaroo_folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match="not a whole safetensors file"):
        kangaroo(kangaroo_folder)


def test_heads_of_another_target_are_refused_by_the_size_that_differs(
    medusa_folder: Path, kangaroo_folder: Path
) -> None:
    file = medusa_folder / "medusa_lm_head.pt"
    sizes = {"hidden_size": 32, "vocab_size": 24}
    for changed, reason in (
        ({"hidden_size": 48}, "a target of hidden size 48, but this one has 32"),
        ({"vocab_size": 30}, "a target of vocabulary size 30, but this one has 24"),
    ):
        shape = HeadsShape(heads=5, own=True, **{**sizes, **changed})
        torch.save(random_like(Heads(shape)), file)
        with pytest.raises(UsageError, match=reason):
            medusa(medusa_folder)
    wide = AdapterShape(48, 4, 2, head_dim=12, rms_norm_eps=1e-6)
    torch.save(random_like(Adapter(wide)), kangaroo_folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="a target of hidden size 48, but this one has 32"):
        kangaroo(kangaroo_folder)


def test_layouts_that_cannot_be_read_say_why(medusa_folder: Path, tmp_path: Path) -> None:
    write_json(medusa_folder / "config.json", {**V13_CONFIG, "medusa_num_heads": 6})
    with pytest.raises(UsageError, match=r"holds 5 heads, but the config.json beside it says 6"):
        medusa(medusa_folder)
    (medusa_folder / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config.json is not readable JSON"):
        medusa(medusa_folder)
    (medusa_folder / "config.json").unlink()
    deep = medusa_tensors() | {"0.1.linear.weight": torch.ones(32, 32)}
    torch.save(deep, medusa_folder / "medusa_lm_head.pt")
    with pytest.raises(UsageError, match=r"heads of several layers \(0.1.linear.weight\)"):
        medusa(medusa_folder)
    torch.save(["a list"], medusa_folder / "medusa_lm_head.pt")
    with pytest.raises(UsageError, match="it holds other things too"):
        medusa(medusa_folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"holds no Medusa heads: none of medusa.safetensors"):
        medusa(empty)


def test_an_index_may_name_nothing_outside_its_folder(tmp_path: Path) -> None:
    for places, reason in (
        ({"medusa_head.0.0.linear.weight": "../../secret.bin"}, "which is no file beside it"),
        ({"medusa_head.0.0.linear.weight": "gone.bin"}, "names gone.bin, which is not there"),
        ({"lm_head.weight": "a.bin"}, "it is a model without them"),
    ):
        write_json(tmp_path / "pytorch_model.bin.index.json", {"weight_map": places})
        with pytest.raises(UsageError, match=reason):
            medusa(tmp_path)


# The hub: a folder that is copied file by file, as snapshot_download would fetch it.


@dataclass
class Hub:
    """Repositories by name; what was asked for, in order."""

    root: Path
    cache: Path
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    fetched: set[str] = field(default_factory=set)

    def snapshot_download(
        self, name: str, *, revision: str | None, allow_patterns: Sequence[str], **_: Any
    ) -> str:
        self.asked.append((name, revision))
        snapshot = self.cache / "0123abc"
        snapshot.mkdir(exist_ok=True)
        for path in (self.root / name).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, snapshot)
                self.fetched.add(path.name)
        return str(snapshot)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    for name in ("hub", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    found = Hub(tmp_path / "hub", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


def test_heads_come_from_the_hub_and_the_record_names_the_commit(
    hub: Hub, medusa_folder: Path
) -> None:
    repository = hub.root / "org" / "medusa"
    shutil.copytree(medusa_folder, repository)
    (repository / "README.md").write_text("not wanted")
    save_file(medusa_tensors(), repository / "medusa_lm_head.safetensors")
    method = medusa("org/medusa@refs/pr/1")
    assert hub.asked[0] == ("org/medusa", "refs/pr/1")
    assert {revision for _, revision in hub.asked[1:]} == {"0123abc"}, (
        "a branch that moves during the download would mix two commits"
    )
    assert hub.fetched == {"config.json", "medusa_lm_head.safetensors"}, (
        "the same heads lie there in two formats of 1.5 GB: one is enough, and not the pickle"
    )
    record = method.weights
    assert (record["repository"], record["commit"]) == ("org/medusa", "0123abc")
    assert record["file"] == "medusa_lm_head.safetensors"
    assert answer(method) == answer(Vanilla(MethodOptions()))


def test_of_a_whole_model_only_the_files_with_heads_are_fetched(hub: Hub, tmp_path: Path) -> None:
    (hub.root / "org").mkdir()
    write_whole_model(hub.root / "org" / "whole", suffix="bin")
    assert medusa("org/whole").weights["heads"] == 5
    assert "pytorch_model-00001-of-00002.bin" not in hub.fetched, "10 GB fetched for nothing"


def test_an_adapter_comes_from_the_hub(hub: Hub, kangaroo_folder: Path) -> None:
    shutil.copytree(kangaroo_folder, hub.root / "org" / "kangaroo")
    method = kangaroo("org/kangaroo")
    assert method.weights["repository"] == "org/kangaroo"
    assert method.weights["parameters"] == sum(t.numel() for t in kangaroo_tensors().values())


def test_a_repository_without_heads_is_refused(hub: Hub) -> None:
    write_json(hub.root / "org" / "other" / "config.json", {})
    with pytest.raises(UsageError, match="org/other on the hub holds no Kangaroo adapter: none of"):
        kangaroo("org/other")


def test_without_a_network_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    for load, kind in ((medusa, "Medusa heads"), (kangaroo, "Kangaroo adapter")):
        with pytest.raises(UsageError, match="the hub does not answer") as refused:
            load("nobody/nothing@main")
        assert f"no known {kind} has that name" in str(refused.value)
        assert "nobody/nothing at revision 'main'" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(UsageError, match=r"no Medusa heads at weights/mine.safetensors"):
        medusa("weights/mine.safetensors")
    assert hub_id("org/name@v1.0") == ("org/name", "v1.0")
    assert hub_id("a/b/c") is None
    assert hub_id("./here/there") is None


# What the catalogue says, against the shapes of Vicuna.


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry["model"])
def test_the_catalogue_gives_the_size_that_the_shapes_have(entry: dict[str, Any]) -> None:
    size = next(size for size in SIZES if f"vicuna-{size}" in entry["model"])
    hidden_size, n_heads = SIZES[size]
    if entry["method"] == "medusa":
        shape = HeadsShape(
            heads=entry["heads"], hidden_size=hidden_size, vocab_size=32000, own=True
        )
        assert count_parameters(lambda: Heads(shape)) == entry["parameters"]
    else:
        adapter = AdapterShape(hidden_size, n_heads, n_heads, 128, 1e-6)
        count = count_parameters(lambda: Adapter(adapter))
        assert count == entry["parameters"]
        assert PUBLISHED_EXIT_LAYERS[count] == entry["exit_layer"], (
            "a published adapter is run at the layer that it was trained for"
        )
    assert entry["sources"], "a number without a source"


def test_four_of_the_five_heads_have_the_published_count() -> None:
    shape = HeadsShape(heads=4, hidden_size=4096, vocab_size=32000, own=True)
    assert count_parameters(lambda: Heads(shape)) == 591_413_248


def test_the_authors_adapters_need_no_exit_layer(
    kangaroo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = sum(tensor.numel() for tensor in kangaroo_tensors().values())
    with pytest.raises(UsageError, match=r"add kangaroo.exit_layer=N"):
        kangaroo(kangaroo_folder, exit_layer=None)
    monkeypatch.setitem(PUBLISHED_EXIT_LAYERS, count, 2)
    assert kangaroo(kangaroo_folder, exit_layer=None).options.exit_layer == 2
    assert kangaroo(kangaroo_folder, exit_layer=3).options.exit_layer == 3
