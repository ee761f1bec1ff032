"""Files of training text: prompts to be answered, and the target's answers to them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench_kangaroo.models.templates import chat_prompt
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import DEFAULT_TEMPLATE
from specbench_kangaroo.training.features import Document

TEMPLATE = "template"  # of a distilled record; one without it was asked with the tokenizer's own


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to be answered; ``ids`` is what the target reads, chat template included."""

    text: str
    task: str
    source: str
    ids: tuple[int, ...]


def read_prompts(path: Path, tokenizer: Any, *, template: str = DEFAULT_TEMPLATE) -> list[Prompt]:
    """The first turn of every record, each text once, in the file's order.

    Raises:
        UsageError: no such file, or a line without a prompt ("FILE:LINE: reason").
    """
    prompts: dict[str, Prompt] = {}
    for number, record in _records(path):
        turns = record.get("turns") or [record.get("prompt")]
        text = turns[0] if isinstance(turns, list) else None
        if not isinstance(text, str) or not text.strip():
            raise UsageError(
                f"{path}:{number}: needs 'turns', a list of texts, or 'prompt', a text"
            )
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
    for number, record in _records(path):
        text, response = record.get("prompt"), record.get("response_ids")
        if not isinstance(text, str) or not isinstance(response, list):
            raise UsageError(
                f"{path}:{number}: no 'prompt' with 'response_ids'; "
                "make the file with specbench distil"
            )
        if len(response) > 1:
            template = str(record.get(TEMPLATE, DEFAULT_TEMPLATE))
            prompt = chat_prompt(tokenizer, [text], template=template)
            document = Document((*prompt, *response), len(prompt), str(record.get("task", "")))
            documents.append(document)
    return documents


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(Line number, object) of each line of a file of JSON lines, gzipped or not."""
    try:
        data = path.read_bytes()
        # Not str.splitlines: it also splits at U+2028, which may stand inside a JSON string.
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).split(b"\n")
    except (OSError, EOFError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise UsageError(f"{path}:{number}: not JSON: {error}") from error
        if isinstance(record, dict):
            yield number, record
        elif line.strip():
            raise UsageError(f"{path}:{number}: expected a JSON object")
