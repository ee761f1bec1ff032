"""A run folder after somebody's editor, a bad disk or a bad copy: right figures, or one line."""

from __future__ import annotations

import json
import shutil
from codecs import BOM_UTF8
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specbench_kangaroo.record.columns import COPY, STEPS
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.manifest import MANIFEST
from specbench_kangaroo.record.writer import GENERATIONS, LOSSLESS, RunWriter, read_run
from tests.changes import replace
from tests.unit.faults import leave
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


COUNT, AMOUNT = "Expected `int`", "Expected `float`"
WRONG_FIELDS = [
    (GENERATIONS, {"turn": "0"}, f"{COUNT}, got `str` - at `$.turn`"),
    (GENERATIONS, {"turn": True}, f"{COUNT}, got `bool` - at `$.turn`"),
    (GENERATIONS, {"prompt_tokens": -3}, f"{COUNT} >= 0 - at `$.prompt_tokens`"),
    (GENERATIONS, {"new_tokens": 1.5}, f"{COUNT}, got `float` - at `$.new_tokens`"),
    (GENERATIONS, {"question_id": 2**70}, f"{COUNT} <= {2**63 - 1} - at `$.question_id`"),
    (GENERATIONS, {"total_ms": float("nan")}, "JSON is malformed: invalid character"),
    (GENERATIONS, {"total_ms": float("inf")}, "JSON is malformed: invalid character"),
    (GENERATIONS, {"total_ms": -1}, f"{AMOUNT} >= 0.0 - at `$.total_ms`"),
    (GENERATIONS, {"total_ms": 1e300}, f"{AMOUNT} <= 1000000000000000.0 - at `$.total_ms`"),
    (GENERATIONS, {"total_ms": 10**400}, "Number out of range - at `$.total_ms`"),
    (GENERATIONS, {"peak_rss_mb": "much"}, "Expected `float | null`, got `str`"),
    (GENERATIONS, {"output_ids": "123"}, "Expected `array`, got `str` - at `$.output_ids`"),
    (GENERATIONS, {"output_ids": [1, "2"]}, f"{COUNT}, got `str` - at `$.output_ids[1]`"),
    (GENERATIONS, {"output_ids": [1, True]}, f"{COUNT}, got `bool` - at `$.output_ids[1]`"),
    (GENERATIONS, {"output_ids": [1, -2]}, f"{COUNT} >= 0 - at `$.output_ids[1]`"),
    (GENERATIONS, {"status": "fine"}, "Invalid enum value 'fine' - at `$.status`"),
    (GENERATIONS, {"status": ["ok"]}, "Expected `str`, got `array` - at `$.status`"),
    (GENERATIONS, {"text": None}, "Expected `str`, got `null` - at `$.text`"),
    (GENERATIONS, {"text": "\ud800"}, "utf-16 surrogate pair"),
    (GENERATIONS, {"worker": None}, f"{COUNT}, got `null` - at `$.worker`"),
    (GENERATIONS, {"colour": "red"}, "Object contains unknown field `colour`"),
    (GENERATIONS, {"entry": "medusa"}, "entry 'medusa' is not among vanilla, kangaroo"),
    (GENERATIONS, {"question_id": 2}, "vanilla's answer to question 2, turn 0, repeat 0 stands in"),
    (GENERATIONS, {"steps": None}, "Expected `object`, got `null` - at `$.steps`"),
    (GENERATIONS, {"steps": {"step": [1]}}, "Object missing required field `context_length`"),
    (GENERATIONS, {"target_passes": 5}, "target_passes is 5, but it has 12 steps"),
    (GENERATIONS, {"new_tokens": 12}, "new_tokens is 12, but its steps emitted 12 after the first"),
    (GENERATIONS, {"output_ids": [1]}, "new_tokens is 13, but it has 1 output_ids"),
    (LOSSLESS, {"verdict": "perhaps"}, "Invalid enum value 'perhaps' - at `$.verdict`"),
    (LOSSLESS, {"logit_gap": "wide"}, "Expected `float | null`, got `str` - at `$.logit_gap`"),
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
    ({"drafted": "4"}, f"{COUNT}, got `str` - at `$.steps.drafted[3]`"),
    ({"drafted": 1.5}, f"{COUNT}, got `float` - at `$.steps.drafted[3]`"),
    ({"drafted": 2**63 - 1}, f"{COUNT} <= 65536 - at `$.steps.drafted[3]`"),
    ({"accepted": 10**6}, f"{COUNT} <= 65536 - at `$.steps.accepted[3]`"),
    ({"accepted": 5}, "step 3 accepted 5 of 4 drafted tokens"),
    ({"emitted": 0}, "step 3 emitted 0 tokens, having accepted 1"),
    ({"emitted": 3}, "step 3 emitted 3 tokens, having accepted 1"),
    ({"emitted": 1}, "new_tokens is 13, but its steps emitted 11 after the first"),
    ({"draft_ms": float("nan")}, "JSON is malformed: invalid character"),
    ({"draft_ms": None}, f"{AMOUNT}, got `null` - at `$.steps.draft_ms[3]`"),
    ({"verify_ms": -0.5}, f"{AMOUNT} >= 0.0 - at `$.steps.verify_ms[3]`"),
    ({"confidence": [0.5, None]}, f"{AMOUNT}, got `null` - at `$.steps.confidence[3][1]`"),
    ({"exit_reason": "bored"}, "Invalid enum value 'bored' - at `$.steps.exit_reason[3]`"),
]


def running(folder: Path, method: str = "vanilla") -> Path:
    """A run as a kill leaves it."""
    writer = RunWriter.create(folder, make_manifest())
    for number in range(2):
        writer.append(*make_answer(number, method))
    leave(writer)
    return folder


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(("change", "reason"), WRONG_STEPS)
def test_a_wrong_value_in_a_step_is_named_with_its_line(tmp_path, change, reason, closed):
    folder = running(tmp_path / "run", "kangaroo")
    if closed:  # its copies are then not those of the lines any more
        RunWriter.resume(folder, make_manifest()).close("complete")

    def alter(record: dict[str, Any]) -> None:
        for name, value in change.items():
            record["steps"][name][3] = value

    edit(folder / GENERATIONS, alter, line=2)
    for read in (read_run, resume):
        with pytest.raises(UsageError) as caught:
            read(folder)
        assert str(caught.value).startswith(f"{folder / GENERATIONS}:2: ")
        assert reason in str(caught.value)


def test_columns_of_different_lengths_are_named(tmp_path):
    folder = running(tmp_path / "run")
    edit(folder / GENERATIONS, lambda record: record["steps"]["draft_ms"].pop())
    with pytest.raises(UsageError, match=r"jsonl:1: .*the columns of its steps differ in length"):
        read_run(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"drafted": 4, "accepted": 4, "emitted": 6}, "step 0 emitted 6 tokens, having accepted 4"),
        ({"accepted": 1}, "step 0 accepted 1 of 0 drafted tokens"),
        ({"drafted": 10**6}, "<= 65536"),
        ({"context_length": -1}, ">= 0"),
        ({"nodes": True}, "got `bool`"),
        ({"confidence": (float("nan"),)}, "got `null` - at `$.steps.confidence[0][0]`"),
        ({"draft_ms": float("inf")}, "got `null` - at `$.steps.draft_ms[0]`"),
    ],
)
def test_what_would_not_be_read_is_not_written(tmp_path, changes, reason):
    steps = [replace(step, **changes) for step in make_steps("vanilla")]
    with RunWriter.create(tmp_path, make_manifest()) as writer:
        with pytest.raises(UsageError) as caught:
            writer.append(make_generation(steps=steps, total_ms=1.0), steps)
        assert str(caught.value).startswith("vanilla's answer to question 1, turn 0, repeat 0 can")
        assert reason in str(caught.value)
        with pytest.raises(UsageError, match="is no number"):
            writer.append(make_generation(energy_j=float("nan")), [])
        with pytest.raises(UsageError, match="surrogates not allowed"):
            writer.append(make_generation(text="\ud800"), [])
        assert not writer.finished
        writer.append(make_generation(), [])
    assert len(read_run(tmp_path).generations) == 1
    with pytest.raises(
        UsageError, match=r"cannot record this run in .*: Expected .* at ...request"
    ):
        RunWriter.create(tmp_path / "new", make_manifest(settings={"dtype": 3}))


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


@pytest.mark.parametrize("name", [GENERATIONS, LOSSLESS])
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
    with pytest.raises(UsageError, match=r"jsonl:2: not a Generation \(.*\); remove or"):
        read_run(folder)


@pytest.mark.parametrize("name", [GENERATIONS, LOSSLESS, MANIFEST])
@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000 + b"\n", b"\x00" * 500])
def test_nesting_without_an_end_and_holes_are_said_in_one_line(tmp_path, name, content):
    folder = running(tmp_path / "run")
    (folder / name).write_bytes(content)
    told = ""
    try:  # what has no end may be a torn line
        read_run(folder)
    except UsageError as error:
        told = str(error)
    assert "\n" not in told
    assert len(told) < 1000


@pytest.mark.parametrize("name", [GENERATIONS, LOSSLESS])
def test_an_empty_file_is_a_run_without_such_records(tmp_path, name):
    folder = make_run(tmp_path / "run", questions_per_task=1)
    (folder / name).write_bytes(b"")
    run = read_run(folder)
    assert run.judgements.empty
    assert run.generations.empty == run.steps.empty == (name == GENERATIONS)


# --- Parquet ---


GOLDEN = Path(__file__).parent / "golden" / "run-2"


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
        (lambda table: table.drop_columns(["draft_ms"]), "missing required field `draft_ms`"),
        (lambda table: table.drop_columns(["turn"]), "steps ('turn'); restore the file"),
        (replaced("draft_ms", None), "Expected `float`, got `null` - at `$.draft_ms[0]`"),
        (replaced("draft_ms", float("nan")), "Expected `float`, got `null` - at `$.draft_ms[0]`"),
        (replaced("accepted", -1), "Expected `int` >= 0 - at `$.accepted[0]`"),
        (replaced("accepted", 10**6), "Expected `int` <= 65536 - at `$.accepted[0]`"),
        (replaced("accepted", 1), "step 0 accepted 1 of 0 drafted tokens"),
        (replaced("drafted", 2**63 - 1), "Expected `int` <= 65536 - at `$.drafted[0]`"),
        (replaced("exit_reason", "bored"), "Invalid enum value 'bored'"),
        (replaced("confidence", [0.5, float("inf")]), "got `null` - at `$.confidence[0][1]`"),
        (replaced("draft_ms", "long"), "Expected `float`, got `str`"),
        (lambda table: table.slice(5), "target_passes is 13, but it has"),
        (lambda table: table.slice(0, 0), "target_passes is 13, but it has 0 steps"),
    ],
)
def test_steps_that_no_run_can_have_are_named(tmp_path, change, reason):
    """Of version 2, which has its steps nowhere else."""
    folder = shutil.copytree(GOLDEN, tmp_path / "run")
    change_steps(folder, change)
    with pytest.raises(UsageError) as caught:
        read_run(folder)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [replaced("drafted", 2**62), replaced("draft_ms", 7.0), lambda table: table.slice(5)]
)
def test_a_copy_that_was_edited_is_not_read(tmp_path, change):
    folder = make_run(tmp_path / "run")
    whole = read_run(folder).steps
    change_steps(folder, change)
    assert read_run(folder).steps.equals(whole)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1), bit=st.integers(0, 8), of=st.sampled_from([GOLDEN, STEPS, COPY]))
def test_parquet_that_was_cut_or_flipped_gives_no_other_figures(tmp_path_factory, place, bit, of):
    """Either the file is said to be broken, or the run is the same; bit 8 stands for a cut."""
    folder, name = tmp_path_factory.mktemp("flip") / "run", STEPS if of is GOLDEN else of
    shutil.copytree(of, folder) if of is GOLDEN else make_run(folder, questions_per_task=1)
    whole = read_run(folder)
    content = bytearray((folder / name).read_bytes())
    at = min(len(content) - 1, round(place * len(content)))
    if bit == 8:
        del content[at:]
    else:
        content[at] ^= 1 << bit
    (folder / name).write_bytes(content)
    with suppress(UsageError) if of is GOLDEN else nullcontext():
        run = read_run(folder)
        assert run.steps.equals(whole.steps)
        assert run.generations.equals(whole.generations)


# --- the manifest ---


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": 3}, "Expected `str`, got `int` - at `$.name`"),
        ({"entries": []}, "Expected `object`, got `array` - at `$.entries`"),
        ({"entries": {"vanilla": 1}}, "Expected `object`, got `int` - at `$.entries[...]`"),
        (
            {"entries": {"vanilla": {"method": "vanilla", "options": 1}}},
            "Expected `object`, got `int` - at `$.entries[...].options`",
        ),
        ({"entries": {"vanilla": {"method": "vanilla"}}}, "missing required field `options`"),
        ({"entries": {"vanilla": {"options": {}}}}, "missing required field `method`"),
        (
            {"entries": {"vanilla": {"method": "v", "options": {}, "lossy": "no"}}},
            "Expected `bool`, got `str` - at `$.entries[...].lossy`",
        ),
        ({"request": {"decoding": {"temperature": "warm"}}}, "got `str` - at `$.request.decoding."),
        ({"request": {"decoding": {"temperature": -1}}}, "Expected `float` >= 0.0 - at `$.request"),
        ({"resolved": {"device": "cuda:x"}}, "Expected `str` matching regex"),
        ({"entries": {"../up": {"method": "v", "options": {}}}}, "Expected `str` matching regex"),
        ({"entries": {"a b": {"method": "v", "options": {}}}}, "Expected `str` matching regex"),
        ({"baseline": "[/b]"}, "Expected `str` matching regex"),
        ({"created": "yesterday"}, "created: Invalid isoformat string: 'yesterday'"),
        ({"environment": {"gpus": [1]}}, "environment: Expected `object`, got `int` - at `$.gpus"),
        ({"schema_version": "2"}, "schema_version is '2'"),
        ({"schema_version": 0}, "schema_version is 0"),
        ({"colour": 1}, "unknown field `colour`"),
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
