"""How a conversation is written for a model: the tokenizer's own chat template, or one by name.

``vicuna`` is the text that Spec-Bench (``evaluation/eval.py`` of hemingkx/Spec-Bench) gives to
Vicuna: FastChat's conversation "vicuna_v1.1".  Its ids are those that the installed tokenizer has
for that text.  Releases of transformers read ``</s>`` and the word after it differently, so a later
turn's prompt may differ from a published log's by a few ids, though not by a character.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specbench_kangaroo.record.errors import look_up
from specbench_kangaroo.record.request import DEFAULT_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_ROLES = (("USER", " "), ("ASSISTANT", "</s>"))  # each with what stands after its turn


@dataclass(frozen=True, slots=True)
class Template:
    """A way to write a conversation that waits for its next answer."""

    description: str
    ids: Callable[[Any, Sequence[str]], list[int]]  # of a tokenizer and the turns so far


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase,
    history: Sequence[str],
    *,
    template: str = DEFAULT_TEMPLATE,
) -> list[int]:
    """Token ids of a conversation that waits for its next answer.

    Args:
        tokenizer: the model's, with or without a template.
        history: user and assistant turns by turns, a user's first and last.
        template: one of ``TEMPLATES``.

    Raises:
        UsageError: no such template.
        ValueError: an even number of turns.
    """
    if len(history) % 2 == 0:
        raise ValueError(f"a prompt ends with the user's turn, but there are {len(history)} turns")
    return template_named(template).ids(tokenizer, history)


def template_named(name: str) -> Template:
    """One of ``TEMPLATES``.

    Raises:
        UsageError: there is none of that name; lists those that there are.
    """
    return look_up("template", name, TEMPLATES)


def vicuna_text(history: Sequence[str], special: Sequence[str] = ()) -> str:
    """A conversation as Spec-Bench writes it for Vicuna; BOS is for the tokenizer to add.

    Args:
        history: user and assistant turns by turns, a user's first and last.
        special: the texts of the tokenizer's special tokens.  Spec-Bench deletes them from an
            answer before the next turn, also where the model spelled one out of ordinary tokens.

    A turn without text has no separator either: that is FastChat's doing, and kept.
    """
    written = f"{_SYSTEM} "
    for index, turn in enumerate((*history, "")):  # the last turn is the answer that is waited for
        role, separator = _ROLES[index % 2]
        text = _answer(turn, special) if index % 2 else turn
        written += f"{role}: {text}{separator}" if text else f"{role}:"
    return written


def _answer(text: str, special: Sequence[str]) -> str:
    for token in special:
        text = text.replace(token, "")
    return text.strip()


def _vicuna(tokenizer: Any, history: Sequence[str]) -> list[int]:
    named = tokenizer.special_tokens_map.values()
    lists = [value if isinstance(value, list) else [value] for value in named]
    text = vicuna_text(history, [str(token) for tokens in lists for token in tokens])
    return list(tokenizer(text)["input_ids"])


def _plain(tokenizer: Any, history: Sequence[str]) -> list[int]:
    return list(tokenizer("".join(f"{turn}\n" for turn in history))["input_ids"])


def _own(tokenizer: Any, history: Sequence[str]) -> list[int]:
    if tokenizer.chat_template is None:
        return _plain(tokenizer, history)
    messages = [
        {"role": "assistant" if index % 2 else "user", "content": turn}
        for index, turn in enumerate(history)
    ]
    encoding = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(encoding["input_ids"])


TEMPLATES: Mapping[str, Template] = {
    DEFAULT_TEMPLATE: Template("the tokenizer's own; without one, as plain", _own),
    "vicuna": Template("FastChat's vicuna_v1.1, as Spec-Bench writes its prompts", _vicuna),
    "plain": Template("the turns, each followed by a newline", _plain),
}
