"""A speedup over several sessions holds for another one; other runs are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from specbench_kangaroo.cli.main import main
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.files import write_whole
from specbench_kangaroo.record.schema import EntryRecord
from specbench_kangaroo.record.writer import read_run
from specbench_kangaroo.stats import intervals
from specbench_kangaroo.stats.sessions import combined, over_sessions
from specbench_kangaroo.stats.summary import summarise
from tests.changes import replace
from tests.unit.runs import asked, make_manifest, make_run


def session(run, number: int, *, faster: float = 1.0, **manifest):
    """The run as if made at another time, when all but vanilla were faster by this factor."""
    frame = run.generations
    factor = np.where(frame["entry"] == "vanilla", 1.0, 1 / faster)
    times = {name: frame[name] * factor for name in ("ttft_ms", "total_ms")}
    given = {"name": f"session-{number}", "created": f"2026-11-0{number}T00:00:00Z"} | manifest
    return replace(run, generations=frame.assign(**times), manifest=replace(run.manifest, **given))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(
        tmp_path_factory.mktemp("run") / "run",
        tasks=("qa", "rag"),
        questions_per_task=4,
        spread=0.02,
    )
    return read_run(folder)


@pytest.fixture
def three(run):
    return [session(run, i + 1, faster=faster) for i, faster in enumerate((1.0, 1.1, 0.95))]


# --- the interval ---


def test_it_is_the_geometric_mean_with_both_spreads(three):
    found = over_sessions(three)
    assert found.runs == ("session-1", "session-2", "session-3")
    of = found.entries["kangaroo"]
    assert of.n == 8
    alone = [
        summarise(run).entries["kangaroo"].tasks["overall"].estimates["speedup"] for run in three
    ]
    for one, expected in zip(of.each, alone, strict=True):
        assert (one.low, one.value, one.high) == pytest.approx(
            (expected.low, expected.value, expected.high)
        ), "a session's own figure is that of its report"
    logs = np.log([one.value for one in alone])
    between = student.ppf(0.975, 2) * np.std(logs, ddof=1) / np.sqrt(3)
    within = np.log(alone[0].high / alone[0].low) / 2  # the same in all three, as is their noise
    reach = np.exp(np.hypot(between, within))
    value = np.exp(logs.mean())
    assert (of.overall.low, of.overall.value, of.overall.high) == pytest.approx(
        (value / reach, value, value * reach)
    )


def test_equal_sessions_have_the_interval_over_questions(run):
    of = over_sessions([session(run, i) for i in (1, 2, 3)]).entries["kangaroo"]
    assert (of.overall.low, of.overall.high) == pytest.approx(
        (of.each[0].low, of.each[0].high), rel=1e-4
    )


def test_only_questions_that_all_sessions_answered_count(three):
    lost = three[1].generations
    lost = lost[lost["question_id"] != 3]
    three[1] = replace(three[1], generations=lost)
    assert over_sessions(three).entries["kangaroo"].n == 7
    none = replace(three[1], generations=lost[lost["entry"] == "vanilla"])
    assert over_sessions([three[0], none, three[2]]).entries == {}


def covered(sessions: int, questions: int, between: float, within: float, noise: float) -> float:
    """How often the true speedup lies in the interval, in simulated studies."""
    rng = np.random.default_rng([sessions, questions])
    draws = 1000
    length = np.exp(0.5 * rng.standard_normal((draws, questions)))
    of_question = within * rng.standard_normal((draws, questions))
    columns, values = {}, []
    for place in range(sessions):
        shift = between * rng.standard_normal((draws, 1))
        noisy = of_question + shift + noise * rng.standard_normal((draws, questions))
        columns |= {f"a{place}": length, f"b{place}": length * np.exp(-noisy)}
        values.append(length.sum(axis=1) / columns[f"b{place}"].sum(axis=1))
    names = [tuple(f"{column}{place}" for place in range(sessions)) for column in "ab"]
    found = intervals.intervals(intervals.Ratio(*names), columns)
    truth = np.exp(-(within**2 + noise**2) / 2)
    held = 0
    for draw in range(draws):
        product = intervals.Estimate(
            *(float(x[draw]) for x in (found.value, found.low, found.high))
        )
        item = combined([float(value[draw]) for value in values], product)
        held += item.low <= truth <= item.high
    return held / draws


@pytest.mark.parametrize("sessions", [3, 4, 5])
@pytest.mark.parametrize(("between", "within"), [(0.08, 0.12), (0.04, 0.4), (0.0, 0.12)])
def test_the_interval_holds_the_truth(sessions, between, within):
    """Of another session and other questions; 24 questions."""
    assert 0.93 <= covered(sessions, 24, between, within, noise=0.05) <= 0.995


# --- refusals ---


def test_two_runs_are_refused(three):
    with pytest.raises(UsageError, match=r"needs 3 runs at least, and there are 2; .*again"):
        over_sessions(three[:2])


def test_the_same_run_twice_is_refused(three):
    with pytest.raises(UsageError, match=r"session-1, started .*, is given twice"):
        over_sessions([*three, three[0]])


SETTINGS = make_manifest().settings
OTHER = {
    "model": {"model": "qwen"},
    "hashes.questions": {"hashes": {"questions": "ff", "model": "bb"}},
    "settings.dtype": asked(**{**SETTINGS, "dtype": "bfloat16"}),
    "settings.device": asked(**{**SETTINGS, "device": "cuda"}),
    "settings.max_new_tokens": asked(**{**SETTINGS, "max_new_tokens": 64}),
    "entries.kangaroo.options.threshold": {
        "entries": {
            "vanilla": EntryRecord("vanilla", {}),
            "kangaroo": EntryRecord("kangaroo", {"threshold": 0.7, "exit_layer": 4}),
        }
    },
    "cpu": {"environment": {"cpu": "AMD EPYC"}},
    "gpus": {"environment": {"gpus": [{"name": "H200"}]}},
}


@pytest.mark.parametrize("field", OTHER)
def test_runs_of_different_requests_are_refused(three, field):
    three[2] = replace(three[2], manifest=replace(three[2].manifest, **OTHER[field]))
    with pytest.raises(UsageError) as refused:
        over_sessions(three)
    assert f"{field} is " in str(refused.value)
    assert "in session-1 and " in str(refused.value)
    assert "\n" not in str(refused.value)


# --- the command ---


@pytest.fixture
def folders(tmp_path):
    found = []
    for number in (1, 2, 3):
        folder = make_run(tmp_path / f"run-{number}", questions_per_task=2, spread=0.01 * number)
        manifest = json.loads((folder / "run.json").read_text())
        manifest |= {"created": f"2026-11-0{number}T00:00:00Z", "name": folder.name}
        write_whole(folder / "run.json", json.dumps(manifest))
        found.append(str(folder))
    return found


def shown(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    assert not ended.value.code
    return capsys.readouterr().out


def test_the_command_shows_one_table_that_says_which_interval_it_has(folders, capsys):
    text = shown(capsys, *folders, "--sessions")
    assert text.startswith("3 sessions: overall speedup over vanilla, smollm2-135m, builtin")
    assert "in brackets 95 % over sessions and questions" in text
    assert "that session alone" in " ".join(text.split())
    page = shown(capsys, *folders, "--sessions", "--format", "markdown")
    assert page.startswith("### 3 sessions")
    assert "| entry | n | all sessions | run-1 | run-2 | run-3 |" in page


def test_the_document_has_the_same_figures(folders, capsys):
    document = json.loads(shown(capsys, *folders, "--sessions", "--format", "json"))
    expected = over_sessions(read_run(Path(folder)) for folder in folders).entries["kangaroo"]
    assert document["sessions"] == ["run-1", "run-2", "run-3"]
    found = document["entries"]["kangaroo"]
    assert found["speedup"] == pytest.approx(expected.overall.figures)
    assert found["speedup"]["low"] < found["speedup"]["value"] < found["speedup"]["high"]
    assert [one["value"] for one in found["speedup_by_session"]] == pytest.approx(
        [one.value for one in expected.each]
    )


def test_a_format_without_it_is_refused_in_one_line(folders, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", *folders, "--sessions", "--format", "latex"])
    assert ended.value.code == 2
    assert "--sessions has no format latex; give --format terminal or" in capsys.readouterr().err
