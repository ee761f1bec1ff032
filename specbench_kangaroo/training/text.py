"""Files of text: conversations to be answered, and what is trained on.

Both are JSON lines, gzipped or not.  A conversation has ``turns`` or ``prompt``, and perhaps
``response``, an answer to its first turn by whomever; the target's own answer, as ``specbench
distil`` writes it, has ``prompt``, ``response_ids`` and perhaps ``history`` and ``template``.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from specbench_kangaroo.models.templates import chat_prompt
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.request import DEFAULT_TEMPLATE
from specbench_kangaroo.training.features import Document

HISTORY = "history"  # turns and answers by turns, before a turn that is not the first
TEMPLATE = "template"  # how the prompt was written, unless with the tokenizer's own


@dataclass(frozen=True, slots=True)
class Prompt:
    """A turn to be answered; ``ids`` is what the target reads, chat template included.

    Attributes:
        history: the turns and answers before it, by turns.
        later: the user's turns after it.
    """

    text: str
    task: str
    source: str
    ids: tuple[int, ...]
    history: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """The user's turns up to it: what tells one prompt from another."""
        return (*self.history[::2], self.text)


def read_prompts(path: Path, tokenizer: Any, *, template: str = DEFAULT_TEMPLATE) -> list[Prompt]:
    """The first turn of every record, each text once, in the file's order.

    Raises:
        UsageError: no such file, or a line without a prompt ("FILE:LINE: reason").
    """
    prompts: dict[str, Prompt] = {}
    for place, record in _records(path):
        text, *later = _turns(place, record)
        if text not in prompts:
            ids = tuple(chat_prompt(tokenizer, [text], template=template))
            task, source = str(record.get("task", "")), str(record.get("source", ""))
            prompts[text] = Prompt(text, task, source, ids, later=tuple(later))
    if not prompts:
        raise UsageError(f"{path}: holds no prompts")
    return list(prompts.values())


def read_documents(path: Path, tokenizer: Any) -> list[Document]:
    """Distilled records as documents, prompts written with the template that they were asked with.

    An answer of a single token is left out: the prefill gives that one, nothing is drafted.  A
    record without the target's answer, with ``turns`` or ``prompt`` and perhaps ``response`` (to
    the first turn, by whomever), is text that the target only reads.

    Raises:
        UsageError: no such file, or a line with neither.
    """
    documents = []
    for place, record in _records(path):
        template, task = str(record.get(TEMPLATE, DEFAULT_TEMPLATE)), str(record.get("task", ""))
        if "response_ids" not in record:
            tokens = _read_only(_turns(place, record), record.get("response"), tokenizer, template)
            documents.append(Document(tokens, len(tokens), task))
            continue
        text, response = record.get("prompt"), record["response_ids"]
        if not isinstance(text, str) or not isinstance(response, list):
            raise UsageError(f"{place}: no 'prompt' with 'response_ids' as specbench distil writes")
        if len(response) > 1:
            turns = [*record.get(HISTORY, []), text]
            prompt = chat_prompt(tokenizer, turns, template=template)
            documents.append(Document((*prompt, *response), len(prompt), task))
    return documents


def _read_only(
    turns: Sequence[str], response: object, tokenizer: Any, template: str
) -> tuple[int, ...]:
    """The first turn, a response to it if there is one, and the turn after that."""
    first, *later = turns
    if not isinstance(response, str) or not response.strip():
        return tuple(chat_prompt(tokenizer, [first], template=template))
    if later:
        return tuple(chat_prompt(tokenizer, [first, response, later[0]], template=template))
    # Up to where the next turn would begin, whatever it is: how a response ends is the template's.
    either, other = (
        chat_prompt(tokenizer, [first, response, text], template=template) for text in ("1", "2")
    )
    same = takewhile(lambda pair: pair[0] == pair[1], zip(either, other, strict=False))
    return tuple(token for token, _ in same)


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


def _turns(place: str, record: Mapping[str, Any]) -> list[str]:
    turns = record.get("turns") or [record.get("prompt")]
    if not isinstance(turns, list) or not all(isinstance(t, str) and t.strip() for t in turns):
        raise UsageError(f"{place}: needs 'turns', a list of texts, or 'prompt', a text")
    return turns


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{place}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise UsageError(f"{place}: expected a JSON object")
    return record
