"""Training text from the target itself: its answers to many prompts, batch by batch, resumable.

A line of the output is ``{"task", "source", "prompt", "response_ids"}``, with "template" too where
prompts were not written with the tokenizer's own; the ids end with EOS where the target ended its
answer.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from specbench_kangaroo.models.load import LoadedModel
from specbench_kangaroo.models.templates import chat_prompt
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.jsonl import as_line, drop_torn_line, read_lines
from specbench_kangaroo.record.request import DEFAULT_TEMPLATE
from specbench_kangaroo.training.features import Document

_TEMPLATE = "template"  # a record without it was asked with the tokenizer's own
_BATCHES_SORTED_TOGETHER = 16  # batches of like length, yet a file cut short is a fair sample


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilSettings:
    """What is asked of the target, and how much of it at once."""

    max_new_tokens: int = 256
    max_prompt_tokens: int = 260
    batch: int = 64
    limit: int | None = None  # the first prompts of the file that are short enough
    temperature: float = 0.0
    seed: int = 0
    template: str = DEFAULT_TEMPLATE


@dataclass(frozen=True, slots=True)
class Distilled:
    """What came of a run over the prompts, in numbers of prompts."""

    answered: int  # now
    found: int  # already answered in the output
    too_long: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to be answered; ``ids`` is what the target reads, chat template included."""

    text: str
    task: str
    source: str
    ids: tuple[int, ...]


def distil(
    loaded: LoadedModel,
    prompts: Path,
    output: Path,
    settings: DistilSettings,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Distilled:
    """Append the target's answers to ``output``, a batch at a time; finished ones are not redone.

    Args:
        loaded: the target.  Its own generation config is put aside: a repetition penalty or a
            top-k from the hub would not be the text that decoding here meets.
        prompts: JSON lines, gzipped or not, of records with ``turns`` or ``prompt``.
        output: JSON lines; a last line that a kill has torn is dropped.
        on_progress: called with (prompts answered, prompts in all), before and after each batch.

    Raises:
        UsageError: unreadable prompts, a gzipped output, or a context too short for the settings.
    """
    _check(loaded, output, settings)
    known = read_prompts(prompts, loaded.tokenizer, template=settings.template)
    short = [prompt for prompt in known if len(prompt.ids) <= settings.max_prompt_tokens]
    wanted = short[: settings.limit]
    finished = _finished(output)
    todo = [prompt for prompt in wanted if prompt.text not in finished]
    done = found = len(wanted) - len(todo)
    torch.manual_seed(settings.seed + found)  # a resumed run must not draw its first batch again
    on_progress(done, len(wanted))
    with output.open("ab") as file:
        for batch in _batches(todo, settings.batch):
            for prompt, response in zip(batch, answer(loaded, batch, settings), strict=True):
                file.write(_line(prompt, response, settings.template))
            file.flush()
            done += len(batch)
            on_progress(done, len(wanted))
    return Distilled(answered=done - found, found=found, too_long=len(known) - len(short))


@torch.inference_mode()
def answer(
    loaded: LoadedModel, prompts: Sequence[Prompt], settings: DistilSettings
) -> list[tuple[int, ...]]:
    """Answers to a batch of prompts, token ids up to and including EOS."""
    eos = sorted(loaded.eos_token_ids)
    pad = eos[0] if eos else 0  # never seen: the mask hides it
    ids = pad_sequence(  # [B, S]
        [torch.tensor(prompt.ids) for prompt in prompts],
        batch_first=True,
        padding_value=pad,
        padding_side="left",
    )
    longest = ids.shape[1]
    lengths = torch.tensor([[len(prompt.ids)] for prompt in prompts])  # [B, 1]
    mask = (torch.arange(longest) >= longest - lengths).long()  # [B, S]
    model: Any = loaded.model
    model.generation_config = _generation_config(settings, eos, pad)
    output = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    return [_until_eos(row, loaded.eos_token_ids) for row in output[:, longest:].tolist()]


def read_prompts(path: Path, tokenizer: Any, *, template: str = DEFAULT_TEMPLATE) -> list[Prompt]:
    """The first turn of every record, each text once, in the file's order.

    Raises:
        UsageError: no such file, or a line without a prompt ("FILE:LINE: reason").
    """
    prompts: dict[str, Prompt] = {}
    for place, record in _records(path):
        turns = record.get("turns") or [record.get("prompt")]
        text = turns[0] if isinstance(turns, list) else None
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{place}: needs 'turns', a list of texts, or 'prompt', a text")
        if text not in prompts:
            ids = tuple(chat_prompt(tokenizer, [text], template=template))
            task, source = str(record.get("task", "")), str(record.get("source", ""))
            prompts[text] = Prompt(text, task, source, ids)
    if not prompts:
        raise UsageError(f"{path}: holds no prompts")
    return list(prompts.values())


def read_documents(path: Path, tokenizer: Any) -> list[Document]:
    """Distilled records as documents, prompts written with the template that they were asked with.

    An answer of a single token is left out: the prefill gives that one, nothing is drafted.

    Raises:
        UsageError: no such file, or a line that ``specbench distil`` did not write.
    """
    documents = []
    for place, record in _records(path):
        text, response = record.get("prompt"), record.get("response_ids")
        if not isinstance(text, str) or not isinstance(response, list):
            raise UsageError(
                f"{place}: no 'prompt' with 'response_ids'; make the file with specbench distil"
            )
        if len(response) > 1:
            template = str(record.get(_TEMPLATE, DEFAULT_TEMPLATE))
            prompt = chat_prompt(tokenizer, [text], template=template)
            task = str(record.get("task", ""))
            documents.append(Document((*prompt, *response), len(prompt), task))
    return documents


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place ("FILE:LINE") and the object of each line of a file, gzipped or not."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parsed(line, f"{path}:{number}")
    except (OSError, EOFError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{place}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise UsageError(f"{place}: expected a JSON object")
    return record


def _check(loaded: LoadedModel, output: Path, settings: DistilSettings) -> None:
    if output.suffix == ".gz":
        raise UsageError(f"{output}: a gzipped file cannot be resumed; write .jsonl, then gzip it")
    longest = settings.max_prompt_tokens + settings.max_new_tokens
    if longest > loaded.context_length:
        raise UsageError(
            f"--max-prompt-tokens and --max-new-tokens add up to {longest}, but the context of "
            f"{loaded.name} is {loaded.context_length} tokens"
        )


def _finished(output: Path) -> set[str]:
    if not output.exists():
        return set()
    drop_torn_line(output)
    return {str(record.get("prompt")) for record in read_lines(output)}


def _batches(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    """In the file's order at large, of like length in a batch: padding is wasted work."""
    for start in range(0, len(prompts), size * _BATCHES_SORTED_TOGETHER):
        chunk = list(prompts[start : start + size * _BATCHES_SORTED_TOGETHER])
        chunk.sort(key=lambda prompt: len(prompt.ids))
        for first in range(0, len(chunk), size):
            yield chunk[first : first + size]


def _generation_config(settings: DistilSettings, eos: Sequence[int], pad: int) -> GenerationConfig:
    chosen: dict[str, Any] = {"do_sample": settings.temperature > 0}
    if settings.temperature > 0:  # transformers' defaults for sampling include top_k = 50
        chosen |= {"temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        **chosen,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=list(eos) or None,
        pad_token_id=pad,
    )


def _until_eos(ids: Sequence[int], eos: frozenset[int]) -> tuple[int, ...]:
    end = next((index for index, token in enumerate(ids, start=1) if token in eos), len(ids))
    return tuple(ids[:end])


def _line(prompt: Prompt, response: Sequence[int], template: str) -> bytes:
    record = {"task": prompt.task, "source": prompt.source, "prompt": prompt.text}
    asked_with = {_TEMPLATE: template} if template != DEFAULT_TEMPLATE else {}
    return as_line({**record, "response_ids": response, **asked_with})
