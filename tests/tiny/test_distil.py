"""Distilling: the batched answers are the target's own, and a kill costs one batch at most."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from specbench_kangaroo.models.load import LoadedModel
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.training import distil as module
from specbench_kangaroo.training.distil import (
    Distilled,
    DistilSettings,
    distil,
    read_documents,
    read_prompts,
)

from .models import CONTEXT, random_model

EOS = frozenset({2, 3})
SETTINGS = DistilSettings(max_new_tokens=12, max_prompt_tokens=20, batch=3)
TEXTS = [" ".join(str(4 + (3 * i + j) % 20) for j in range(1 + i % 7)) for i in range(11)]


class Words:
    """A tokenizer whose tokens are the numbers in the text; it has no chat template."""

    chat_template = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def load(family: str = "llama-gqa-tied") -> LoadedModel:
    model: Any = random_model(family)
    return LoadedModel("tiny", model, Words(), "float64", "cpu", "00", None, EOS, CONTEXT)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    records: list[dict[str, object]] = [
        {"turns": [text, "and then?"], "task": "qa", "source": "s"} for text in TEXTS[:-1]
    ]
    records += [{"prompt": TEXTS[-1]}, {"turns": [TEXTS[0]]}, {"turns": ["5 " * 30]}]
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@torch.inference_mode()
def one_by_one(loaded: LoadedModel, text: str, new: int) -> list[int]:
    ids = [int(word) for word in text.split()]
    start = len(ids)
    while len(ids) < start + new and (len(ids) == start or ids[-1] not in EOS):
        model: Any = loaded.model
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("family", ["llama-gqa-tied", "qwen2-mixed-windows"])
def test_batched_answers_are_the_targets_own(family: str, prompts: Path, tmp_path: Path) -> None:
    loaded = load(family)
    # As a model from the hub may come: its author's taste must not get into the text.
    loaded.model.generation_config = GenerationConfig(repetition_penalty=3.0, do_sample=True)
    done = distil(loaded, prompts, tmp_path / "out.jsonl", SETTINGS)
    assert done == Distilled(answered=len(TEXTS), found=0, too_long=1)
    records = lines(tmp_path / "out.jsonl")
    assert sorted(record["prompt"] for record in records) == sorted(TEXTS), "each prompt once"
    for record in records:
        assert record["response_ids"] == one_by_one(loaded, record["prompt"], 12), (
            "padding or a generation config changed the target's answer"
        )
    ends = [record["response_ids"][-1] in EOS for record in records]
    assert any(ends), "no answer of this model ends with EOS: the test shows nothing about it"
    assert {"task": "qa", "source": "s"}.items() <= next(
        record for record in records if record["prompt"] == TEXTS[1]
    ).items()


def test_a_killed_run_goes_on_where_it_stopped(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, whole, parts = load(), tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    distil(loaded, prompts, whole, SETTINGS)
    answered: list[str] = []
    answer = module.answer

    def killed(*args: Any) -> list[tuple[int, ...]]:
        if len(answered) >= 6:
            raise KeyboardInterrupt
        answered.extend(prompt.text for prompt in args[1])
        return answer(*args)

    monkeypatch.setattr(module, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        distil(loaded, prompts, parts, SETTINGS)
    assert len(lines(parts)) == 6, "finished batches must be on disk when the run is killed"
    parts.write_bytes(parts.read_bytes()[:-9])  # and the kill tore the last line

    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "answer", answer)
    progress = distil(loaded, prompts, parts, SETTINGS, on_progress=lambda *at: seen.append(at))
    assert progress == Distilled(answered=len(TEXTS) - 5, found=5, too_long=1)
    assert (seen[0], seen[-1]) == ((5, 11), (11, 11)), "progress counts what was there already"

    def by_prompt(path: Path) -> dict[str, Sequence[int]]:
        return {record["prompt"]: record["response_ids"] for record in lines(path)}

    assert by_prompt(parts) == by_prompt(whole), "the resumed file holds other answers"
    assert len(lines(parts)) == len(TEXTS), "a prompt was answered twice"


def test_limit_counts_what_is_there(prompts: Path, tmp_path: Path) -> None:
    loaded, output = load(), tmp_path / "out.jsonl"
    for expected in (4, 0):
        settings = DistilSettings(max_new_tokens=2, max_prompt_tokens=20, batch=3, limit=4)
        assert distil(loaded, prompts, output, settings).answered == expected
    assert sorted(record["prompt"] for record in lines(output)) == sorted(TEXTS[:4])


def test_sampled_answers_follow_the_seed(prompts: Path, tmp_path: Path) -> None:
    loaded = load()
    written = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        settings = DistilSettings(
            max_new_tokens=8, max_prompt_tokens=20, temperature=1.0, seed=seed
        )
        distil(loaded, prompts, tmp_path / name, settings)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1], "the same seed gave other text"
    assert written[0] != written[2], "another seed gave the same text"


def test_what_cannot_work_is_said_before_the_first_answer(prompts: Path, tmp_path: Path) -> None:
    loaded = load()
    with pytest.raises(UsageError, match="then gzip it"):
        distil(loaded, prompts, tmp_path / "out.jsonl.gz", SETTINGS)
    settings = DistilSettings(max_new_tokens=60, max_prompt_tokens=20)
    with pytest.raises(UsageError, match="context of tiny is 64 tokens"):
        distil(loaded, prompts, tmp_path / "out.jsonl", settings)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "5"}\n\n{"prompt": ', r":3: not JSON"),
        ("[1]", r":1: expected a JSON object"),
        ('{"turns": []}', r":1: needs 'turns'"),
        ('{"turns": [7]}', r":1: needs 'turns'"),
    ],
)
def test_unusable_prompts_name_the_line(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=reason):
        read_prompts(path, Words())
    with pytest.raises(UsageError, match="cannot read"):
        read_prompts(tmp_path / "nowhere.jsonl", Words())


def test_answers_say_with_which_template_they_were_asked(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    distil(load(), prompts, output, replace(SETTINGS, template="plain", limit=2))
    assert [line["template"] for line in lines(output)] == ["plain", "plain"]
    (document, *_) = read_documents(output, Words())
    assert document.tokens[: document.prompt_length] == tuple(map(int, TEXTS[0].split()))
    output.write_text(output.read_text().replace("plain", "fancy"))
    with pytest.raises(UsageError, match="unknown template 'fancy'"):
        read_documents(output, Words())


def test_documents_are_prompt_and_answer(tmp_path: Path) -> None:
    records = [
        {"task": "qa", "source": "s", "prompt": "5 6\u2028 7", "response_ids": [8, 9, 2]},
        {"task": "qa", "source": "s", "prompt": "5", "response_ids": [2]},
    ]
    path = tmp_path / "answers.jsonl.gz"
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_bytes(gzip.compress(text.encode()))
    (document,) = read_documents(path, Words())
    assert document.tokens == (5, 6, 7, 8, 9, 2)
    assert (document.prompt_length, document.task) == (3, "qa")
    path.write_bytes(gzip.compress(b'{"turns": ["5"]}'))
    with pytest.raises(UsageError, match="specbench distil"):
        read_documents(path, Words())
