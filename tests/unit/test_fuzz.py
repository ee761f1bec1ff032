"""Files that nobody writes on purpose: every reader gives figures or one line, no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from specbench_kangaroo.bench.questions import load_questions, select
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.manifest import MANIFEST
from specbench_kangaroo.record.writer import GENERATIONS, LOSSLESS, RunWriter, read_run
from specbench_kangaroo.stats.summary import summarise
from tests.unit.faults import leave
from tests.unit.runs import make_answer, make_judgement, make_manifest

FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
QUESTIONS = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"question_id": 1, "category": "writing", "turns": ["Write.", "Again."]},
        {"question_id": 2, "category": "qa", "turns": ["Who?"], "reference": [["I"], "you"]},
    )
)
MADE = make_manifest(
    settings={"temperature": 0.0, "dtype": "bfloat16", "device": "cuda:0"},
    environment={"cpu": "EPYC", "gpus": [{"name": "H200", "memory_mb": 143771}]},
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that a kill has left, with all its lines, for each of its files."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    writer = RunWriter.create(folder, MADE)
    for method in ("vanilla", "kangaroo"):
        for number in range(2):
            generation, steps = make_answer(number, method)
            writer.append(generation, steps)
            if method == "kangaroo":
                writer.judge(make_judgement(generation.key))
    leave(writer)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", [GENERATIONS, LOSSLESS, MANIFEST])
@FUZZ
@given(data=st.data())
def test_a_run_folder(
    tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path], name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(runs[name].parent, folder)
    (folder / name).write_bytes(data.draw(anything(runs[name].read_bytes())))
    gives_one_line_at_most(lambda: summarise(read_run(folder)))

    def resume() -> None:
        with RunWriter.resume(folder, MADE):
            pass

    gives_one_line_at_most(resume)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [GENERATIONS, LOSSLESS, MANIFEST])
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000 + b"\n", b"\x00" * 500, b""]
)
def test_nesting_without_an_end_and_holes(
    tmp_path: Path, runs: dict[str, Path], name: str, content: bytes
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[name].parent, folder)
    (folder / name).write_bytes(content)
    gives_one_line_at_most(lambda: read_run(folder))
