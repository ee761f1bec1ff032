"""Prompts by template, written out literally, and what runs of different templates may do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specbench_kangaroo.models.templates import TEMPLATES, chat_prompt, vicuna_text
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.request import DEFAULT_TEMPLATE
from specbench_kangaroo.record.schema import Manifest
from specbench_kangaroo.record.writer import RunWriter
from specbench_kangaroo.tuning.rerun import command_line, request_again

from .runs import make_manifest

ONE_TURN = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: Who was Ada Lovelace? "
    "ASSISTANT:"
)
TWO_TURNS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: Who was Ada Lovelace? "
    "ASSISTANT: A mathematician.</s>USER: Where was she born? ASSISTANT:"
)
THREE_TURNS = TWO_TURNS + " In London.</s>USER:  And when?\n ASSISTANT:"
QUESTIONS = ("Who was Ada Lovelace?", "Where was she born?", " And when?\n")


class Letters:
    """A tokenizer with one id a character, which begins every text with BOS as Llama's does."""

    BOS = -1
    chat_template: str | None = None

    def __init__(self, **special: Any) -> None:
        self.special_tokens_map = special or {"bos_token": "<s>", "eos_token": "</s>"}

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.BOS, *map(ord, text)]}

    def read(self, ids: list[int]) -> str:
        bos, *rest = ids
        assert bos == self.BOS, "the tokenizer's own BOS is gone: not what Spec-Bench feeds"
        return "".join(map(chr, rest))


def vicuna(*history: str, **special: Any) -> str:
    tokenizer: Any = Letters(**special)
    text: str = tokenizer.read(chat_prompt(tokenizer, history, template="vicuna"))
    return text


def test_vicunas_first_prompt_is_spec_benchs() -> None:
    assert vicuna(QUESTIONS[0]) == ONE_TURN


def test_vicunas_later_prompts_are_spec_benchs() -> None:
    answers = (" A mathematician.\n", "In London.")
    assert vicuna(QUESTIONS[0], answers[0], QUESTIONS[1]) == TWO_TURNS, (
        "an answer is stripped and ends with </s>, and no space stands before the next USER"
    )
    assert (
        vicuna(QUESTIONS[0], answers[0], QUESTIONS[1], answers[1], QUESTIONS[2]) == THREE_TURNS
    ), "questions are taken as they are: only answers are stripped"


@pytest.mark.parametrize(
    ("answer", "special"),
    [
        ("A <s>mathematician</s>.</s>", {}),
        ("A <unk>mathematician.</s>", {"eos_token": "</s>", "pad_token": "<unk>"}),
        ("A [X]mathe[Y]matician.", {"additional_special_tokens": ["[X]", "[Y]"]}),
    ],
)
def test_special_tokens_spelled_in_an_answer_are_deleted(
    answer: str, special: dict[str, Any]
) -> None:
    assert vicuna(QUESTIONS[0], answer, QUESTIONS[1], **special) == TWO_TURNS


def test_only_answers_lose_special_tokens() -> None:
    assert "USER: What is <s> in HTML? ASSISTANT:" in vicuna("What is <s> in HTML?")


def test_an_empty_answer_has_no_separator_as_in_fastchat() -> None:
    assert vicuna_text(["Hi", " </s> ", "Hello?"], ["</s>"]).endswith(
        "USER: Hi ASSISTANT:USER: Hello? ASSISTANT:"
    )


def test_plain_is_the_turns_and_ignores_the_tokenizers_template() -> None:
    tokenizer: Any = Letters()
    tokenizer.chat_template = "anything"
    assert tokenizer.read(chat_prompt(tokenizer, ["a", "b", "c"], template="plain")) == "a\nb\nc\n"


def test_an_unknown_template_names_the_others() -> None:
    tokenizer: Any = Letters()
    with pytest.raises(UsageError, match=r"did you mean 'vicuna'\? .*plain, tokenizer, vicuna"):
        chat_prompt(tokenizer, ["hello"], template="vicunia")


def test_the_default_is_among_the_templates() -> None:
    assert DEFAULT_TEMPLATE in TEMPLATES


def asked_with(template: str) -> Manifest:
    return make_manifest(settings={"template": template})


def test_a_run_is_resumed_with_its_own_template(tmp_path: Path) -> None:
    RunWriter.create(tmp_path, make_manifest()).close("interrupted")
    with pytest.raises(
        UsageError, match=r"settings.template is 'tokenizer' there and 'vicuna' now"
    ):
        RunWriter.resume(tmp_path, asked_with("vicuna"))
    RunWriter.resume(tmp_path, asked_with("tokenizer")).close("complete")


def test_a_rerun_asks_with_the_same_template() -> None:
    again = request_again(asked_with("vicuna"), "kangaroo", {})
    assert again.target.template == "vicuna"
    assert "--template vicuna" in command_line(again)
    assert "--template" not in command_line(request_again(make_manifest(), "kangaroo", {}))
