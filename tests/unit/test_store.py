from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specbench_kangaroo.record import reader
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import (
    SCHEMA_VERSION,
    EntryRecord,
    Generation,
    GenerationKey,
    Judgement,
    Status,
    StepRecord,
)
from specbench_kangaroo.record.writer import RunWriter, read_run
from tests.changes import replace
from tests.unit.faults import leave
from tests.unit.random_records import GENERATIONS
from tests.unit.runs import (
    SETTINGS,
    asked,
    make_generation,
    make_judgement,
    make_manifest,
    make_run,
    make_step,
    make_steps,
)


def killed_run(folder, *, generations: int = 2) -> list[Generation]:
    """Leaves the folder as a kill does: nothing closed, the lock gone."""
    writer = RunWriter.create(folder, make_manifest())
    made = []
    for number in range(generations):
        made.append(make_generation("vanilla", number, steps=make_steps("vanilla")))
        writer.append(made[-1], make_steps("vanilla"))
    leave(writer)
    return made


def append_bytes(path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


# --- round trip ---


def test_a_closed_run_reads_back_whole(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "generations.jsonl",
        "generations.parquet",
        "lossless.jsonl",
        "run.json",
        "steps.parquet",
    ], "a finished run holds the documented files and nothing else"
    assert run.manifest == make_manifest(status="complete")
    assert len(run.generations) == 8
    assert len(run.steps) == 4 * (12 + 4)
    assert list(run.judgements["verdict"]) == ["exact"] * 4
    assert list(run.generations["status"].unique()) == ["ok"]
    assert run.generations["output_ids"][0] == list(range(13))
    kangaroo = run.steps[run.steps["entry"] == "kangaroo"]
    assert kangaroo["confidence"].iloc[0] == [0.9] * 4
    assert set(run.steps.columns) == {
        *StepRecord.__struct_fields__,
        *GenerationKey.__struct_fields__,
    }


def test_a_running_run_can_be_read_and_is_not_changed(tmp_path):
    killed_run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = read_run(tmp_path)
    assert run.manifest.status == "running"
    assert (len(run.generations), len(run.steps), len(run.judgements)) == (2, 24, 0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_empty_run_has_frames_with_columns(tmp_path):
    with RunWriter.create(tmp_path / "run", make_manifest()):
        pass
    run = read_run(tmp_path / "run")
    assert run.generations.empty
    assert "draft_ms" in run.steps.columns
    assert "verdict" in run.judgements.columns


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=GENERATIONS, cut=st.integers(0, 4))
def test_what_is_written_is_what_is_read(tmp_path_factory, content, cut):
    folder = tmp_path_factory.mktemp("run")
    with RunWriter.create(folder, make_manifest()) as writer:
        for generation, steps in content[:cut]:
            writer.append(generation, steps)
    with RunWriter.resume(folder, make_manifest()) as writer:
        for generation, steps in content[cut:]:
            writer.append(generation, steps)
    with RunWriter.resume(folder, make_manifest()) as writer:
        assert writer.finished == {generation.key: generation for generation, _ in content}
    frame = read_run(folder).steps
    read = [
        StepRecord(
            **{
                name: tuple(row[name]) if name == "confidence" else row[name]
                for name in StepRecord.__struct_fields__
            }
        )
        for row in frame.to_dict("records")
    ]
    assert read == [step for _, steps in content for step in steps]


# --- kills ---


def test_a_torn_last_line_is_dropped_and_redone(tmp_path):
    first, second = killed_run(tmp_path)
    path = tmp_path / "generations.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read_run(tmp_path).generations) == 1, "readers must leave the torn line out"
    with RunWriter.resume(tmp_path, make_manifest()) as writer:
        assert list(writer.finished) == [first.key]
        writer.append(second, make_steps("vanilla"))
    run = read_run(tmp_path)
    assert list(run.generations["question_id"]) == [0, 1]
    assert len(run.steps) == 24, "the steps of the torn generation must not be counted twice"


def test_a_line_that_lacks_only_its_newline_is_kept(tmp_path):
    killed_run(tmp_path, generations=1)
    path = tmp_path / "generations.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    with RunWriter.resume(tmp_path, make_manifest()) as writer:
        writer.append(make_generation("vanilla", 5), [])
    assert list(read_run(tmp_path).generations["question_id"]) == [0, 5]


def test_copies_of_other_lines_are_not_read(tmp_path):
    """A kill, or an editor, leaves Parquet files of what generations.jsonl was before."""
    folder = make_run(tmp_path / "run", questions_per_task=1)
    path = folder / "generations.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:1]))
    run = read_run(folder)
    assert len(run.generations) == 1
    assert len(run.steps) == 12
    assert run.judgements.empty, "the verdict on a lost generation says nothing"
    path.write_bytes(whole.replace(b'"draft_ms":[4.0', b'"draft_ms":[5.0'))
    assert 5.0 in set(read_run(folder).steps["draft_ms"]), "the file was changed, not its size"


@pytest.mark.parametrize("name", ["generations.parquet", "steps.parquet"])
@pytest.mark.parametrize("content", [None, b"", b"PAR1"])
def test_without_whole_copies_the_lines_are_read(tmp_path, name, content):
    folder = make_run(tmp_path / "run")
    before = read_run(folder)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    after = read_run(folder)
    assert after.generations.equals(before.generations)
    assert after.steps.equals(before.steps)
    RunWriter.resume(folder, make_manifest()).close("complete")
    assert (folder / name).read_bytes().endswith(b"PAR1"), "the copy is made again"


def test_copies_are_read_in_place_of_the_lines(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    monkeypatch.setattr(reader, "read_answers", None)
    assert len(read_run(folder).steps) == 64, "a report of a large run would take its lines' time"


def test_a_malformed_line_with_others_after_it_is_named(tmp_path):
    killed_run(tmp_path)
    path = tmp_path / "generations.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{broken\n" + lines[1])
    with pytest.raises(UsageError, match=r"generations\.jsonl:2"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match=r"generations\.jsonl:2"):
        RunWriter.resume(tmp_path, make_manifest())


def test_a_line_without_its_fields_is_named(tmp_path):
    killed_run(tmp_path)
    append_bytes(tmp_path / "generations.jsonl", b'{"entry": "vanilla"}\n')
    with pytest.raises(UsageError, match=r"generations\.jsonl:3: not a Generation"):
        read_run(tmp_path)
    append_bytes(tmp_path / "lossless.jsonl", b'{"verdict": "perhaps"}\n')
    path = tmp_path / "generations.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(UsageError, match=r"lossless\.jsonl:1: not a Judgement"):
        read_run(tmp_path)


# --- one writer, one run ---


def test_create_refuses_a_folder_that_is_in_use(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is not empty; give another --output"):
        RunWriter.create(tmp_path, make_manifest())
    run = make_run(tmp_path / "my run")
    with pytest.raises(UsageError, match=r"by specbench run --resume '.*my run', or give another"):
        RunWriter.create(run, make_manifest())
    with pytest.raises(UsageError, match="not empty"):
        RunWriter.create(tmp_path / "note.txt", make_manifest())
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path):
    pytest.importorskip("fcntl")
    with RunWriter.create(tmp_path / "run", make_manifest()) as first:
        with pytest.raises(UsageError, match="another process"):
            RunWriter.resume(tmp_path / "run", make_manifest())
        first.append(make_generation(), [])  # and the first is none the worse
    RunWriter.resume(tmp_path / "run", make_manifest()).close("complete")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "model is 'smollm2-135m' there and 'llama' now"),
        ({"questions": "spec-bench"}, "questions is"),
        ({"hashes": {"questions": "aa", "model": "cc"}}, "hashes.model is 'bb' there and 'cc' now"),
        (asked(**{**SETTINGS, "seed": 1}), "settings.seed is 0 there and 1 now"),
        (
            {
                "entries": {
                    "vanilla": EntryRecord("vanilla", {}),
                    "kangaroo": EntryRecord("kangaroo", {"threshold": 0.7, "exit_layer": 4}),
                }
            },
            "entries.kangaroo.options.threshold is 0.6 there and 0.7 now",
        ),
        ({"entries": {"vanilla": EntryRecord("vanilla", {})}}, "entries.kangaroo is"),
    ],
)
def test_resume_names_the_first_field_that_differs(tmp_path, changes, message):
    folder = make_run(tmp_path / "run")
    with pytest.raises(UsageError) as caught:
        RunWriter.resume(folder, replace(make_manifest(), **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value), "a usage error is one line"


def test_resume_on_another_day_and_machine_goes_on(tmp_path):
    folder = make_run(tmp_path / "run", status="interrupted")
    later = make_manifest(created="2027-01-01", environment={"python": "3.13"}, command="again")
    with RunWriter.resume(folder, later) as writer:
        assert len(writer.finished) == 8
        assert len(writer.judged) == 4
    assert read_run(folder).manifest == make_manifest(status="complete")


def test_errors_are_finished_too(tmp_path):
    failed = make_generation(status=Status.ERROR, error="out of memory", new_tokens=0)
    with RunWriter.create(tmp_path / "run", make_manifest()) as writer:
        writer.append(failed, [])
        assert failed.key in writer.finished
    with RunWriter.resume(tmp_path / "run", make_manifest()) as writer:
        assert writer.finished[failed.key] == failed


def test_nothing_is_written_twice(tmp_path):
    generation = make_generation()
    with RunWriter.create(tmp_path / "run", make_manifest()) as writer:
        writer.append(generation, [])
        writer.judge(make_judgement(generation.key))
        with pytest.raises(ValueError, match="already in"):
            writer.append(generation, [])
        with pytest.raises(ValueError, match="already judged"):
            writer.judge(make_judgement(generation.key))


def test_a_verdict_lost_with_its_generation_is_given_again(tmp_path):
    generation = make_generation("kangaroo")
    with RunWriter.create(tmp_path, make_manifest()) as writer:
        writer.append(generation, [])
        writer.judge(make_judgement(generation.key))
    (tmp_path / "generations.jsonl").write_bytes(b"")
    with RunWriter.resume(tmp_path, make_manifest()) as writer:
        assert writer.judged == set()
        writer.append(generation, [])
        writer.judge(replace(make_judgement(generation.key), logit_gap=0.25))
    judgements = read_run(tmp_path).judgements
    assert list(judgements["logit_gap"]) == [0.25]
    assert set(judgements.columns) == set(Judgement.__struct_fields__)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_says_so_and_is_settled(tmp_path, error):
    def interrupted() -> None:
        with RunWriter.create(tmp_path / "run", make_manifest()) as writer:
            writer.append(make_generation(steps=[make_step()]), [make_step()])
            raise error

    with pytest.raises(error):
        interrupted()
    run = read_run(tmp_path / "run")
    assert run.manifest.status == "interrupted"
    assert (run.folder / "steps.parquet").exists()
    assert len(run.steps) == 1


# --- unusable folders ---


def test_runs_of_every_schema_version_still_load():
    samples = [
        read_run(path.parent) for path in (Path(__file__).parent / "golden").glob("*/run.json")
    ]
    versions = {run.manifest.schema_version for run in samples}
    assert versions == set(range(1, SCHEMA_VERSION + 1)), (
        "a version without a recorded run may become unreadable unnoticed: add one to golden/"
    )
    for run in samples:
        assert len(run.generations)
        assert len(run.steps) > len(run.generations)
        assert len(run.judgements)


@pytest.mark.parametrize("name", ["run", "run-2"])
def test_a_run_of_an_older_schema_is_not_resumed(tmp_path, name):
    shutil.copytree(Path(__file__).parent / "golden" / name, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UsageError, match=r"older .* \(schema ., .*run --from .*run --output NEW"):
        RunWriter.resume(tmp_path / "run", read_run(tmp_path / "run").manifest)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_what_schema_2_added_reads_back():
    run = read_run(Path(__file__).parent / "golden" / "run-2")
    first, second = (run.generations[run.generations["worker"] == number] for number in (0, 1))
    assert (len(first), len(second)) == (6, 6), "each worker answered two of the four questions"
    assert first["peak_device_mb"].eq(412.5).all()
    assert first["energy_j"].gt(0).all()
    assert second[["peak_device_mb", "energy_j"]].isna().all(axis=None), "not measured is not 0"
    assert [edge.throttle for edge in run.device[2:4]] == [("sw_power_cap",)] * 2


def test_a_run_from_before_a_field_had_been_added_still_loads(tmp_path):
    folder = make_run(tmp_path / "run")
    manifest = json.loads((folder / "run.json").read_text())
    for record in manifest["entries"].values():
        for name in ("weights_sha256", "weights_record", "lossy"):
            del record[name]
    del manifest["baseline"]
    (folder / "run.json").write_text(json.dumps(manifest))
    lines = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    for line in lines:
        del line["peak_rss_mb"]
    (folder / "generations.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    run = read_run(folder)
    assert run.manifest == make_manifest(status="complete")
    assert run.generations["peak_rss_mb"].isna().all()


def test_a_newer_schema_is_refused(tmp_path):
    folder = make_run(tmp_path / "run")
    content = json.loads((folder / "run.json").read_text())
    newer = SCHEMA_VERSION + 1
    (folder / "run.json").write_text(json.dumps(content | {"schema_version": newer, "new": 1}))
    with pytest.raises(UsageError, match=rf"schema version {newer} is newer .* upgrade"):
        read_run(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 1}', '{"a": 1}'])
def test_a_malformed_manifest_is_refused(tmp_path, content):
    folder = make_run(tmp_path / "run")
    (folder / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"run\.json: not a manifest"):
        read_run(folder)


@pytest.mark.parametrize("name", ["run.json", "generations.jsonl", "steps.parquet"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = make_run(tmp_path / "run")
    if name == "steps.parquet":  # whose content is nowhere else in older runs
        folder = shutil.copytree(Path(__file__).parent / "golden" / "run", tmp_path / "old")
    (folder / name).unlink()
    with pytest.raises(UsageError, match=f"{name} is missing"):
        read_run(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no run"):
        RunWriter.resume(tmp_path, make_manifest())
