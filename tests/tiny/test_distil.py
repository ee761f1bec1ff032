"""Distilling: answers side by side are the target's own, and a kill costs those not finished."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from specbench_kangaroo.models.load import LoadedModel
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.training.answering import drawn
from specbench_kangaroo.training.distil import (
    Distilled,
    DistilSettings,
    Waiting,
    distil,
)
from specbench_kangaroo.training.features import Document
from specbench_kangaroo.training.text import Prompt, read_documents, read_prompts

from .models import CONTEXT, FAMILIES, random_model

EOS = frozenset({2, 3})
SETTINGS = DistilSettings(
    max_new_tokens=12, max_prompt_tokens=20, batch=3, turns=1, sampled_share=0
)
TEXTS = [" ".join(str(4 + (3 * i + j) % 20) for j in range(1 + i % 7)) for i in range(11)]


class Words:
    """A tokenizer whose tokens are the numbers in the text; it has no chat template."""

    chat_template = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return " ".join(str(token) for token in ids if not (skip_special_tokens and token in EOS))


def load(family: str = "llama-gqa-tied") -> LoadedModel:
    model: Any = random_model(family)
    return LoadedModel("tiny", model, Words(), "float64", "cpu", "00", None, EOS, CONTEXT)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    records: list[dict[str, object]] = [
        {"turns": [text, "5 6"], "task": "qa", "source": "s"} for text in TEXTS[:-1]
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


def until_loop(answer: list[int]) -> list[int]:
    """An answer up to where any six tokens in a row come for the third time."""
    for end in range(6, len(answer)):
        starts = range(end - 5)
        if sum(answer[start : start + 6] == answer[end - 6 : end] for start in starts) == 3:
            return answer[:end]
    return answer


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_side_by_side_are_the_targets_own(
    family: str, prompts: Path, tmp_path: Path
) -> None:
    """Eleven prompts in three places: places are taken again, beside longer and shorter ones."""
    loaded = load(family)
    # As a model from the hub may come: its author's taste must not get into the text.
    loaded.model.generation_config = GenerationConfig(repetition_penalty=3.0, do_sample=True)
    implementation = loaded.model.config._attn_implementation
    done = distil(loaded, prompts, tmp_path / "out.jsonl", replace(SETTINGS, max_new_tokens=30))
    assert loaded.model.config._attn_implementation == implementation, "the model was changed"
    records = lines(tmp_path / "out.jsonl")
    tokens = sum(len(record["response_ids"]) for record in records)
    assert done == Distilled(answered=len(TEXTS), found=0, too_long=1, tokens=tokens)
    assert sorted(record["prompt"] for record in records) == sorted(TEXTS), "each prompt once"
    for record in records:
        assert record["response_ids"] == until_loop(one_by_one(loaded, record["prompt"], 30)), (
            "what stands beside it, its place or a generation config changed the target's answer"
        )
    assert {"task": "qa", "source": "s", "temperature": 0}.items() <= next(
        record for record in records if record["prompt"] == TEXTS[1]
    ).items()


def test_answers_end_for_each_of_the_reasons(prompts: Path, tmp_path: Path) -> None:
    """Without this, the test above might show nothing about an end that no answer has."""
    distil(load(), prompts, tmp_path / "out.jsonl", replace(SETTINGS, max_new_tokens=30))
    answers = [record["response_ids"] for record in lines(tmp_path / "out.jsonl")]
    assert any(answer[-1] in EOS for answer in answers)
    looped = [answer for answer in answers if len(answer) < 30 and answer[-1] not in EOS]
    assert looped, "no answer was cut where it ran in a loop"


def test_a_later_turn_follows_the_targets_own_answer(prompts: Path, tmp_path: Path) -> None:
    loaded, output = load(), tmp_path / "out.jsonl"
    distil(loaded, prompts, output, replace(SETTINGS, turns=2, max_prompt_tokens=29))
    first = {line["prompt"]: line for line in lines(output) if "history" not in line}
    later = [line for line in lines(output) if "history" in line]
    assert len(later) == len(TEXTS) - 1, "all but one conversation have a second turn"
    for line in later:
        question, answer = line["history"]
        assert answer == Words().decode(first[question]["response_ids"], skip_special_tokens=True)
        whole = " ".join((question, answer, line["prompt"]))
        assert line["response_ids"] == until_loop(one_by_one(loaded, whole, 12))
    documents = read_documents(output, Words())
    for line in later:
        text = " ".join((*line["history"], line["prompt"]))
        tokens = (*map(int, text.split()), *line["response_ids"])
        assert len(line["response_ids"]) == 1 or any(d.tokens == tokens for d in documents)


@pytest.mark.parametrize("sampled", [0.0, 0.5])
def test_a_killed_run_goes_on_where_it_stopped(
    sampled: float, prompts: Path, tmp_path: Path
) -> None:
    """Also in what is sampled, though other texts stand beside it when it goes on."""
    loaded, whole, parts = load(), tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    settings = replace(SETTINGS, turns=2, sampled_share=sampled, max_prompt_tokens=29)
    total = distil(loaded, prompts, whole, settings).answered

    def killed(done: int, _: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(loaded, prompts, parts, settings, on_progress=killed)
    assert len(lines(parts)) >= 6, "finished answers must be on disk when the run is killed"
    parts.write_bytes(parts.read_bytes()[:-9])  # and the kill tore the last line
    kept = [json.loads(line) for line in parts.read_text().splitlines()[:-1]]
    found = sum("history" not in record for record in kept)

    seen: list[tuple[int, int]] = []
    progress = distil(loaded, prompts, parts, settings, on_progress=lambda *at: seen.append(at))
    assert (progress.answered, progress.found) == (total - len(kept), found)
    assert (seen[0], seen[-1]) == ((found, 11), (11, 11)), "progress counts what was there already"
    assert by_turns(parts) == by_turns(whole), "the resumed file holds other answers"
    assert len(lines(parts)) == total, "a prompt was answered twice"
    hot = [record["temperature"] for record in lines(parts) if record["temperature"]]
    assert bool(hot) == bool(sampled)
    assert all(0.7 <= temperature <= 1 for temperature in hot)


def by_turns(path: Path) -> dict[tuple[str, ...], Sequence[int]]:
    return {
        (*record.get("history", []), record["prompt"]): record["response_ids"]
        for record in lines(path)
    }


def test_prompts_side_by_side_are_of_like_length() -> None:
    lengths = np.random.default_rng(0).permutation(200).tolist()
    prompts = [Prompt(str(length), "", "", (5,) * length) for length in lengths]
    waiting = Waiting(iter(prompts), 50)
    taken = []
    while (prompt := waiting.take()) is not None:
        taken.append(len(prompt.ids))
        if len(taken) == 100:
            waiting.add(Prompt("a later turn", "", "", (5,) * 1000))
    assert sorted(taken) == [*range(200), 1000], "each prompt once, those added meanwhile too"
    turns = np.count_nonzero(np.diff(np.sign(np.diff(taken))))
    assert turns <= 8, "lengths jump about: short texts wait for the attention of long ones"


def test_limit_counts_what_is_there(prompts: Path, tmp_path: Path) -> None:
    loaded, output = load(), tmp_path / "out.jsonl"
    for expected in (4, 0):
        settings = replace(SETTINGS, max_new_tokens=2, limit=4)
        assert distil(loaded, prompts, output, settings).answered == expected
    assert sorted(record["prompt"] for record in lines(output)) == sorted(TEXTS[:4])


def test_sampled_answers_follow_the_seed(prompts: Path, tmp_path: Path) -> None:
    loaded = load()
    written = []
    for name, seed, batch in [("a", 1, 3), ("b", 1, 7), ("c", 2, 3)]:
        settings = replace(SETTINGS, sampled_share=1.0, seed=seed, batch=batch)
        distil(loaded, prompts, tmp_path / name, settings)
        written.append(by_turns(tmp_path / name))
    assert written[0] == written[1], "the same seed gave other text"
    assert written[0] != written[2], "another seed gave the same text"


def test_draws_choose_tokens_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0])
    draws = (np.arange(1000) + 0.5) / 1000
    counts = np.bincount([drawn(logits, 0.7, draw) for draw in draws], minlength=4)
    np.testing.assert_allclose(counts, (logits / 0.7).softmax(-1) * 1000, atol=1)
    assert drawn(logits, 0.7, 1 - 1e-12) == 3, "rounding must not lead past the vocabulary"


def test_what_cannot_work_is_said_before_the_first_answer(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load()
    with pytest.raises(UsageError, match="then gzip it"):
        distil(loaded, prompts, tmp_path / "out.jsonl.gz", SETTINGS)
    settings = DistilSettings(max_new_tokens=60, max_prompt_tokens=20)
    with pytest.raises(UsageError, match="context of tiny is 64 tokens"):
        distil(loaded, prompts, tmp_path / "out.jsonl", settings)

    def scaled(*args: Any, **kwargs: Any) -> Any:  # as families have it that do more than layers
        output = type(loaded.model).forward(loaded.model, *args, **kwargs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(loaded.model, "forward", scaled)
    with pytest.raises(UsageError, match="run one by one, do not give its own logits"):
        distil(loaded, prompts, tmp_path / "o", SETTINGS)
    with pytest.raises(UsageError, match=r"--min-temperature 1.5 is above --max-temperature 1.0"):
        distil(loaded, prompts, tmp_path / "o", replace(SETTINGS, min_temperature=1.5))


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
    path.write_bytes(gzip.compress(b'{"prompt": "5", "response_ids": 7}'))
    with pytest.raises(UsageError, match="specbench distil"):
        read_documents(path, Words())


@pytest.mark.parametrize(
    ("record", "tokens"),
    [
        ({"turns": ["5 6", "7"]}, (5, 6)),
        ({"prompt": "5 6", "response": ""}, (5, 6)),
        ({"prompt": "5 6", "response": "8 9"}, (5, 6, 8, 9)),
        ({"turns": ["5 6", "7", "10"], "response": "8 9"}, (5, 6, 8, 9, 7)),
    ],
)
def test_without_the_targets_answer_a_text_is_only_read(
    record: dict[str, object], tokens: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(record))
    assert read_documents(path, Words()) == [Document(tokens, len(tokens), "")]
