"""Loading a model: a tiny random Llama in a folder, and what the user reads when it goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from specbench_kangaroo.loading import weights
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specbench_kangaroo.models.load import load_model
from specbench_kangaroo.models.templates import chat_prompt
from specbench_kangaroo.record.errors import UsageError

WORDS = ["<unk>", "<eos>", "<end>", "user", "assistant", ":", "hello", "there", "again"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant :' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        eos_token_id=[1, 2],
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_local_folder_loads(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(str(folder), device="cpu")
    assert (loaded.dtype, loaded.device, loaded.revision) == ("float32", "cpu", None)
    assert loaded.model.dtype is torch.float32
    assert not loaded.model.training, "dropout would make every run different"
    assert loaded.eos_token_ids == {1, 2}, "generation config and tokenizer both end a text"
    assert loaded.context_length == 64
    assert loaded.sha256 == load_model(str(folder), device="cpu").sha256
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", ""), "a load that takes a second needs no progress bars"


def test_dtype_is_as_asked(folder: Path) -> None:
    assert load_model(str(folder), dtype="float64", device="cpu").model.dtype is torch.float64


def test_the_hash_follows_the_weights_alone(folder: Path) -> None:
    before = weights.weights_sha256(folder)
    edit_config(folder, use_cache=False)
    assert weights.weights_sha256(folder) == before
    path = folder / "model.safetensors"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    assert weights.weights_sha256(folder) != before, "an edited file must not keep its old hash"


def test_the_hash_of_a_large_file_is_not_computed_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weights.weights_sha256(folder)

    def refuse(path: Path) -> str:
        raise AssertionError(f"hashed {path} again")

    monkeypatch.setattr(weights, "sha256_of", refuse)
    assert weights.weights_sha256(folder) == first


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("smollm2-135n", "did you mean 'smollm2-135m'"),
        ("/nowhere/model", "or a local folder"),
        ("./a/b", "there are: smollm2-135m"),
    ],
)
def test_an_unknown_name_lists_what_there_is(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_a_revision_needs_a_hub_id(folder: Path) -> None:
    for name in (str(folder), "smollm2-135m"):
        with pytest.raises(UsageError, match="--revision needs a hub id"):
            load_model(name, revision="main")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "fp32"}, r"unknown dtype 'fp32'; .*float32"),
        ({"device": "cuda:99"}, "unknown device 'cuda:99'; .*cpu"),
    ],
)
def test_unknown_dtypes_and_devices_list_those_there_are(
    folder: Path, options: dict[str, str], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        load_model(str(folder), **options)


def test_a_folder_that_is_no_model_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"holds no \*\.safetensors"):
        load_model(str(folder), device="cpu")
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        load_model(str(folder), device="cpu")


def test_an_unknown_architecture_is_one_line(folder: Path) -> None:
    edit_config(folder, model_type="no-such-architecture")
    with pytest.raises(UsageError, match="cannot load a model from") as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_damaged_weight_file_is_one_line(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match="cannot load a model from") as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_one_line(folder: Path) -> None:
    edit_config(folder, intermediate_size=48)
    with pytest.raises(UsageError, match="cannot load a model from") as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_an_error(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=3)
    with pytest.raises(UsageError, match="lacks 9 weights"):
        load_model(str(folder), device="cpu")  # a random third layer would be benchmarked


def test_a_folder_without_tokenizer_is_named(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(UsageError, match="cannot load a tokenizer from"):
        load_model(str(folder), device="cpu")


def test_code_in_a_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(witness)!r}, 'w')")
    edit_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(UsageError):
        load_model(str(folder), device="cpu")
    assert not witness.exists(), "a benchmark must not run code that came with a model"


def test_no_network_and_no_copy_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub  # noqa: PLC0415

    def offline(*args: object, **options: object) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline\nmore")

    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UsageError, match="no cached copy, and the hub does not answer") as caught:
        load_model("nobody/nothing", revision="main", device="cpu")
    assert "nobody/nothing at revision 'main'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_models_revision_is_its_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = folder.rename(folder.with_name("0123abc"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(snapshot))
    assert load_model("some-one/some.thing", device="cpu").revision == "0123abc"


def test_a_chat_prompt_goes_through_the_template() -> None:
    tokenizer = make_tokenizer()
    ids = chat_prompt(tokenizer, ["hello there", "hello", "again"])
    expected = "user : hello there <end> assistant : hello <end> user : again <end> assistant :"
    assert tokenizer.decode(ids) == expected
    assert all(type(i) is int for i in ids)


def test_without_a_template_turns_are_lines() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    ids = chat_prompt(tokenizer, ["hello", "there", "again"])
    assert ids == tokenizer("hello\nthere\nagain\n")["input_ids"]


def test_a_prompt_that_ends_with_an_answer_is_a_defect() -> None:
    with pytest.raises(ValueError, match="ends with the user's turn"):
        chat_prompt(make_tokenizer(), ["hello", "there"])


def test_the_registry_opens_without_torch() -> None:
    module = "specbench_kangaroo.models.load"
    code = f"import sys, {module} as m; m.MODELS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, (
        "`specbench list models` would wait for torch"
    )
