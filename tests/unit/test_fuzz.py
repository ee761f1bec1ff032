"""Files of questions that nobody writes on purpose: they are read, or refused in one line.

Run folders are treated likewise in test_mutations.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from specbench_kangaroo.bench.questions import load_questions, select
from specbench_kangaroo.record.errors import UsageError

FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
QUESTIONS = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"question_id": 1, "category": "writing", "turns": ["Write.", "Again."]},
        {"question_id": 2, "category": "qa", "turns": ["Who?"], "reference": [["I"], "you"]},
    )
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", "\n", "vanilla", "ok", "cuda:x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` with some bytes replaced, removed or put in."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 20)))
        content = content[:start] + draw(st.binary(max_size=8)) + content[end:]
    return content


@st.composite
def altered(draw: st.DrawFn, content: bytes) -> bytes:
    """``content``, JSON or lines of it, with another value somewhere in one of its objects."""
    whole = content.startswith(b"{\n")
    lines = [content] if whole else content.splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    record = json.loads(lines[number])
    place: Any = record
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if not (isinstance(place[key], dict | list) and place[key] and draw(st.booleans())):
            break
        place = place[key]
    if draw(st.integers(0, 5)):
        place[key] = draw(VALUES)
    else:
        del place[key]
    lines[number] = json.dumps(record).encode()
    return b"\n".join(lines) + b"\n"


def anything(content: bytes) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=200) | broken(content) | altered(content)


def gives_one_line_at_most(read: Callable[[], object]) -> None:
    """Runs a reader, which may refuse its file."""
    try:
        read()
    except UsageError as error:
        told = str(error)
    else:
        return
    assert len(told.splitlines()) == 1, f"not one line: {told!r}"
    assert len(told) < 1000, f"nobody reads a line of {len(told)} characters"


@FUZZ
@given(content=anything(QUESTIONS))
@example(content=b"[" * 100_000)
@example(content=b'{"question_id":' * 100_000)
@example(content=QUESTIONS.replace(b"Write.", b"\\ud800"))
@example(content=QUESTIONS.replace(b"Write.", b"\xed\xa0\x80"))
@example(content=QUESTIONS.replace(b"1", b"1" * 30))
@example(content=QUESTIONS.replace(b"1", b"1" * 5000))
@example(content=b'{"a\\nb": 1}')
@example(content=QUESTIONS.decode().encode("utf-16"))
def test_questions(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "questions.jsonl"
    path.write_bytes(content)

    def read() -> None:
        for question in select(load_questions(str(path)).questions):
            json.dumps(question.turns).encode()
            "".join(question.turns).encode()

    gives_one_line_at_most(read)
