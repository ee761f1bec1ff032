"""A run folder after somebody's editor, a bad disk or a bad copy: right figures, or one line."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.manifest import MANIFEST
from specbench_kangaroo.record.steps import JOURNAL, STEPS
from specbench_kangaroo.record.writer import GENERATIONS, LOSSLESS, RunWriter, read_run
from tests.unit.runs import (
    make_answer,
    make_generation,
    make_manifest,
    make_run,
    make_steps,
    resume_run,
)


def resume(folder: Path) -> None:
    RunWriter.resume(folder, make_manifest())


# --- lines ---


def edit(path: Path, change: Callable[[dict[str, Any]], object], *, line: int = 1) -> None:
    """Changes one line of a file of records."""
    lines = path.read_text().splitlines()
    record = json.loads(lines[line - 1])
    change(record)
    lines[line - 1] = json.dumps(record)
    path.write_text("".join(f"{item}\n" for item in lines))


WRONG_FIELDS = [
    (GENERATIONS, {"turn": "0"}, "'turn' must be a whole number of at least 0, not '0'"),
    (GENERATIONS, {"turn": True}, "'turn' must be a whole number of at least 0, not True"),
    (GENERATIONS, {"prompt_tokens": -3}, "'prompt_tokens' must be a whole number of at least 0"),
    (GENERATIONS, {"new_tokens": 1.5}, "'new_tokens' must be a whole number"),
    (GENERATIONS, {"question_id": 2**70}, "'question_id' must be a whole number of 64 bits"),
    (GENERATIONS, {"total_ms": float("nan")}, "'total_ms' must be a finite number of at least 0"),
    (GENERATIONS, {"total_ms": float("inf")}, "'total_ms' must be a finite number of at least 0"),
    (GENERATIONS, {"total_ms": -1}, "'total_ms' must be a finite number of at least 0, not -1"),
    (GENERATIONS, {"total_ms": 10**400}, "'total_ms' must be a finite number of at least 0"),
    (GENERATIONS, {"peak_rss_mb": "much"}, "'peak_rss_mb' must be a finite number"),
    (GENERATIONS, {"output_ids": "123"}, "'output_ids' must be a list of whole numbers"),
    (GENERATIONS, {"output_ids": [1, "2"]}, "'output_ids' must be a list of whole numbers"),
    (GENERATIONS, {"output_ids": [1, True]}, "'output_ids' must be a list of whole numbers"),
    (GENERATIONS, {"output_ids": [1, -2]}, "whole numbers of at least 0, not a list"),
    (GENERATIONS, {"status": "fine"}, "'status' must be one of ok, error, prompt_too_long, not"),
    (GENERATIONS, {"status": ["ok"]}, "'status' must be one of ok, error, prompt_too_long, not"),
    (GENERATIONS, {"text": None}, "'text' must be a text, not None"),
    (GENERATIONS, {"worker": None}, "'worker' must be a whole number"),
    (GENERATIONS, {"colour": "red"}, "unknown field 'colour'"),
    (GENERATIONS, {"entry": "medusa"}, "entry 'medusa' is not among vanilla, kangaroo"),
    (GENERATIONS, {"question_id": 2}, "vanilla's answer to question 2, turn 0, repeat 0 stands in"),
    (LOSSLESS, {"verdict": "perhaps"}, "'verdict' must be one of exact, near_tie, violation, not"),
    (LOSSLESS, {"logit_gap": "wide"}, "'logit_gap' must be a finite number of at least 0"),
]


@pytest.mark.parametrize(("name", "change", "reason"), WRONG_FIELDS)
def test_a_wrong_value_is_named_with_its_line(tmp_path, name, change, reason):
    folder = make_run(tmp_path / "run")
    edit(folder / name, lambda record: record.update(change))
    for read in (read_run, resume):
        with pytest.raises(UsageError) as caught:
            read(folder)
        message = str(caught.value)
        assert message.startswith(f"{folder / name}:"), "which file and line?"
        assert reason in message
        assert message.endswith("; remove or fix that line")
        assert "\n" not in message


WRONG_STEPS = [
    ({"drafted": "4"}, "'drafted' must be a whole number of at least 0, not '4'"),
    ({"drafted": 1.5}, "'drafted' must be a whole number of at least 0, not 1.5"),
    ({"draft_ms": float("nan")}, "'draft_ms' must be a finite number"),
    ({"verify_ms": -0.5}, "'verify_ms' must be a finite number of at least 0, not -0.5"),
    ({"confidence": [0.5, None]}, "'confidence' must be a list of numbers"),
    ({"exit_reason": "bored"}, "'exit_reason' must be one of threshold, max_steps"),
    ({"extra": 1}, "unknown field 'extra'"),
]


def running(folder: Path) -> Path:
    """A run as a kill leaves it: its steps are in the journal."""
    writer = RunWriter.create(folder, make_manifest())
    for number in range(2):
        writer.append(*make_answer(number))
    for file in (writer._journal, writer._lossless, writer._generations):
        file.close()
    return folder


@pytest.mark.parametrize(("change", "reason"), WRONG_STEPS)
def test_a_wrong_value_in_a_step_is_named_with_its_line(tmp_path, change, reason):
    folder = running(tmp_path / "run")
    edit(folder / JOURNAL, lambda record: record["steps"][3].update(change), line=2)
    for read in (read_run, resume):
        with pytest.raises(UsageError) as caught:
            read(folder)
        assert str(caught.value).startswith(f"{folder / JOURNAL}:2: ")
        assert reason in str(caught.value)


@pytest.mark.parametrize("steps", [None, "many", [1, 2], {"step": 1}])
def test_a_journal_without_steps_is_named(tmp_path, steps):
    folder = running(tmp_path / "run")
    edit(folder / JOURNAL, lambda record: record.update(steps=steps))
    with pytest.raises(UsageError, match=r"steps\.jsonl:1: no list of 'steps'"):
        read_run(folder)


def test_steps_that_are_there_twice_are_named(tmp_path):
    folder = running(tmp_path / "run")
    lines = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(lines + lines.splitlines(keepends=True)[0])
    with pytest.raises(UsageError, match=r"steps\.jsonl:3: vanilla's .* stands in line 1 already"):
        read_run(folder)


@pytest.mark.parametrize("settled", [True, False])
def test_steps_that_are_missing_are_named(tmp_path, settled):
    folder = running(tmp_path / "run")
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    (folder / JOURNAL).write_bytes(lines[1])
    for read in (read_run, resume):
        with pytest.raises(UsageError, match="has 0 steps of vanilla's answer to question 0"):
            read(folder)
    # What the message says: without its line the answer is made again.
    path = folder / GENERATIONS
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[1])
    resume_run(folder, answers=2)
    assert sorted(read_run(folder).generations["question_id"]) == [0, 1]


def test_an_answer_whose_line_was_removed_is_made_again_with_its_own_steps(tmp_path):
    folder = make_run(tmp_path / "run", questions_per_task=1)
    path = folder / GENERATIONS
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    steps = make_steps("vanilla")[:5]
    with RunWriter.resume(folder, make_manifest()) as writer:
        writer.append(make_generation("vanilla", 1, steps=steps), steps)
    run = read_run(folder)
    found = run.steps[(run.steps["entry"] == "vanilla") & (run.steps["question_id"] == 1)]
    assert len(found) == 5, "the steps of the answer that was removed must not be the new one's"


def test_a_verdict_on_an_answer_that_was_removed_is_not_the_new_ones(tmp_path):
    folder = make_run(tmp_path / "run", questions_per_task=1)
    path = folder / GENERATIONS
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    steps = make_steps("kangaroo")
    with RunWriter.resume(folder, make_manifest()) as writer:
        writer.append(make_generation("kangaroo", 1, steps=steps), steps)
    assert read_run(folder).judgements.empty
    with RunWriter.resume(folder, make_manifest()) as writer:
        assert writer.judged == set(), "it is to be judged"


@pytest.mark.parametrize("name", [GENERATIONS, LOSSLESS, JOURNAL])
def test_windows_line_endings_blank_lines_and_a_byte_order_mark_are_read(tmp_path, name):
    folder = running(tmp_path / "run")
    (folder / LOSSLESS).write_text(json.dumps(_verdict()) + "\n")
    lines = (folder / name).read_bytes().splitlines()
    (folder / name).write_bytes(BOM_UTF8 + b"".join(x + b"\r\n\r\n" for x in lines) + b" \n")
    assert len(read_run(folder).steps) == 24
    resume_run(folder, answers=3)
    run = read_run(folder)
    assert run.generations["question_id"].tolist() == [0, 1, 2]
    assert len(run.steps) == 36


def _verdict() -> dict[str, Any]:
    key = {"entry": "vanilla", "question_id": 0, "turn": 0, "repeat": 0}
    return key | {"verdict": "exact", "first_difference": None, "logit_gap": None}


def test_a_malformed_last_line_that_has_an_end_is_no_torn_one(tmp_path):
    folder = running(tmp_path / "run")
    path = folder / GENERATIONS
    path.write_bytes(path.read_bytes()[:-30] + b"\n")
    with pytest.raises(UsageError, match=r"generations\.jsonl:2: not a JSON object; remove or"):
        read_run(folder)


@pytest.mark.parametrize("name", [GENERATIONS, LOSSLESS])
def test_an_empty_file_is_a_run_without_such_records(tmp_path, name):
    folder = make_run(tmp_path / "run", questions_per_task=1)
    (folder / name).write_bytes(b"")
    run = read_run(folder)
    assert run.judgements.empty
    assert run.generations.empty == run.steps.empty == (name == GENERATIONS)


# --- Parquet ---


def change_steps(folder: Path, change: Callable[[Any], Any]) -> None:
    pq.write_table(change(pq.read_table(folder / STEPS)), folder / STEPS)


def replaced(name: str, value: Any) -> Callable[[Any], Any]:
    def change(table: Any) -> Any:
        values = [value, *table[name].to_pylist()[1:]]
        if isinstance(value, str):  # a column has one type
            values = [value] * len(table)
        return table.set_column(table.schema.get_field_index(name), name, [values])

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.drop_columns(["draft_ms"]), "column draft_ms is missing"),
        (replaced("draft_ms", None), "draft_ms has gaps"),
        (replaced("draft_ms", float("nan")), "draft_ms holds what is no number"),
        (replaced("accepted", -1), "accepted holds -1"),
        (replaced("exit_reason", "bored"), "exit_reason holds 'bored'"),
        (replaced("confidence", [0.5, float("inf")]), "confidence holds what is no number"),
        (replaced("confidence", [0.5, None]), "confidence holds what is no number"),
        (replaced("draft_ms", "long"), "not readable as steps"),
        (lambda table: table.slice(5), "has 7 steps of vanilla's answer to question 1"),
    ],
)
def test_steps_that_no_run_can_have_are_named(tmp_path, change, reason):
    folder = make_run(tmp_path / "run")
    change_steps(folder, change)
    with pytest.raises(UsageError) as caught:
        read_run(folder)
    assert reason in str(caught.value)
    assert "restore the file" in str(caught.value)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1), bit=st.integers(0, 8))
def test_parquet_that_was_cut_or_flipped_gives_no_other_figures(tmp_path_factory, place, bit):
    """Either the file is said to be broken, or its steps are the same; bit 8 stands for a cut."""
    folder = make_run(tmp_path_factory.mktemp("flip") / "run", questions_per_task=1)
    whole = read_run(folder).steps
    content = bytearray((folder / STEPS).read_bytes())
    at = min(len(content) - 1, round(place * len(content)))
    if bit == 8:
        del content[at:]
    else:
        content[at] ^= 1 << bit
    (folder / STEPS).write_bytes(content)
    with suppress(UsageError):
        assert read_run(folder).steps.equals(whole)


# --- the manifest ---


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": 3}, "'name' must be a text, not 3"),
        ({"entries": []}, "'entries' must be an object, not a list"),
        ({"entries": {"vanilla": 1}}, "entries.vanilla must be an object, not 1"),
        (
            {"entries": {"vanilla": {"method": "vanilla", "options": 1}}},
            "'options' must be an object, not 1",
        ),
        ({"entries": {"vanilla": {"method": "vanilla"}}}, "no 'options'"),
        ({"entries": {"vanilla": {"options": {}}}}, "no 'method'"),
        (
            {"entries": {"vanilla": {"method": "v", "options": {}, "lossy": "no"}}},
            "'lossy' must be true or false",
        ),
        ({"settings": {"temperature": "warm"}}, "settings.temperature is 'warm'"),
        ({"settings": {"device": "cuda:x"}}, "settings.device is 'cuda:x'"),
        ({"environment": {"gpus": [1]}}, "environment.gpus must be a list of objects"),
        ({"schema_version": "2"}, "schema_version is '2'"),
        ({"schema_version": 0}, "schema_version is 0"),
        ({"colour": 1}, "unknown field 'colour'"),
    ],
)
def test_a_wrong_value_in_the_manifest_is_named(tmp_path, change, reason):
    folder = make_run(tmp_path / "run")
    content = json.loads((folder / MANIFEST).read_text()) | change
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UsageError) as caught:
        read_run(folder)
    assert str(caught.value).startswith(f"{folder / MANIFEST}: not a manifest (")
    assert reason in str(caught.value)


def test_a_manifest_with_a_byte_order_mark_is_read(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / MANIFEST
    path.write_bytes(BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_run(folder).manifest == make_manifest(status="complete")
