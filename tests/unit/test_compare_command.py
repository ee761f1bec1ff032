"""``specbench compare`` as users and CI servers meet it: exit status, reports, refusals."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from specbench_kangaroo.cli import compare as command
from specbench_kangaroo.gate.gates import Tolerances
from specbench_kangaroo.record.schema import Status
from tests.changes import replace
from tests.command import call, refused
from tests.unit.gate_runs import WORSE, at, make_gated, slowed
from tests.unit.runs import make_manifest

SETTINGS = make_manifest().settings


@pytest.fixture(autouse=True)
def _no_job_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(command.JOB_SUMMARY, raising=False)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gated(tmp_path_factory.mktemp("compare") / "baseline")


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two gates fail: what kangaroo drafts is accepted less often."""
    return make_gated(tmp_path_factory.mktemp("compare") / "worse", accepted=WORSE)


def test_a_run_that_holds_exits_with_0(capsys: pytest.CaptureFixture[str], baseline: Path) -> None:
    assert call("compare", baseline, baseline) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "all 7 gates hold"
    assert "tolerances: acceptance 0.02 relative (mean) and absolute (by position)" in shown


def test_a_failed_gate_exits_with_1_and_comes_first(
    capsys: pytest.CaptureFixture[str], baseline: Path, worse: Path
) -> None:
    assert call("compare", baseline, worse) == 1
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[-1] == "gates failed: 2 of 7"
    verdicts = [line.split()[-1] for line in lines if line.endswith(("holds", "FAILED"))]
    assert verdicts == ["FAILED"] * 2 + ["holds"] * 5
    assert re.fullmatch(
        r"kangaroo +mean accepted tokens +3\.000 +2\.400 +≥ 2\.940 +FAILED", lines[3]
    )
    assert "kangaroo, mean accepted tokens: -20.0 %" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        (slowed("kangaroo", by=1.2), ["--timing"]),
        (at("kangaroo", 3, output_ids=(1,) * 13), []),
    ],
)
def test_a_slower_method_and_a_changed_token_each_exit_with_1(
    baseline: Path, tmp_path: Path, change, flags: list[str]
) -> None:
    candidate = make_gated(tmp_path / "run", change=change)
    assert call("compare", baseline, candidate, *flags) == 1


def test_timing_is_off_unless_asked_for(
    capsys: pytest.CaptureFixture[str], baseline: Path, tmp_path: Path
) -> None:
    slow = make_gated(tmp_path / "run", change=slowed("kangaroo", by=2))
    assert call("compare", baseline, slow) == 0
    assert "speed not gated" in capsys.readouterr().out.replace("\n", " ")
    assert call("compare", baseline, slow, "--timing", "--tolerance-speedup", "0.5") == 0
    shown = capsys.readouterr().out
    assert "kangaroo, speedup: 0.500 (0.500–0.500) times the baseline's" in shown, (
        "a speed is never shown without its interval"
    )


@pytest.mark.parametrize(
    ("flag", "value"), [("--tolerance-acceptance", "0.5"), ("--tolerance-tokens", "0.125")]
)
def test_a_tolerance_lets_it_pass(
    baseline: Path, worse: Path, tmp_path: Path, flag: str, value: str
) -> None:
    changed = make_gated(tmp_path / "run", change=at("kangaroo", 3, output_ids=(1,) * 13))
    candidate = worse if "acceptance" in flag else changed
    assert call("compare", baseline, candidate) == 1
    assert call("compare", baseline, candidate, flag, value) == 0


def test_the_flags_have_the_gates_own_defaults() -> None:
    flags = inspect.signature(command.compare).parameters
    defaults = Tolerances()
    for name in ("acceptance", "tokens", "speedup"):
        assert flags[f"tolerance_{name}"].default == getattr(defaults, name)


@pytest.mark.parametrize("flags", [[], ["--allow", "seed"]])
def test_runs_that_cannot_be_compared_exit_with_2(
    capsys: pytest.CaptureFixture[str], baseline: Path, tmp_path: Path, flags: list[str]
) -> None:
    other = make_gated(tmp_path / "run", settings={**SETTINGS, "dtype": "bfloat16"})
    line = refused(capsys, "compare", baseline, other, *flags)
    assert "dtype: float32 in the baseline, bfloat16 in the candidate" in line
    assert line.endswith("or give --allow dtype\n")


def test_an_allowed_field_is_noted(
    capsys: pytest.CaptureFixture[str], baseline: Path, tmp_path: Path
) -> None:
    other = make_gated(tmp_path / "run", settings={**SETTINGS, "dtype": "bfloat16"})
    assert call("compare", baseline, other, "--allow", "dtype") == 0
    assert "allowed: dtype: float32 in the baseline" in capsys.readouterr().out


def test_timing_of_two_sessions_is_refused_and_can_be_allowed(
    capsys: pytest.CaptureFixture[str], baseline: Path, tmp_path: Path
) -> None:
    other = make_gated(tmp_path / "run", created="2026-11-08T00:00:00Z")
    assert call("compare", baseline, other) == 0
    capsys.readouterr()
    assert "started 168.0 hours apart" in refused(capsys, "compare", baseline, other, "--timing")
    assert call("compare", baseline, other, "--timing", "--allow", "session") == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere", "nowhere"], "nowhere holds no run"),
        (["only-one"], "Missing argument 'CANDIDATE'"),
        (["a", "b", "--tolerance-tokens", "2"], "--tolerance-tokens"),
        (["a", "b", "--format", "html"], "'html' is not one of .*'junit'"),
    ],
)
def test_unusable_input(
    capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert re.search(reason, refused(capsys, "compare", *arguments))


def test_an_unknown_field_is_one_line(capsys: pytest.CaptureFixture[str], baseline: Path) -> None:
    line = refused(capsys, "compare", baseline, baseline, "--allow", "modle")
    assert "unknown field 'modle'; did you mean 'model'" in line


# --- reports ---


def test_markdown(capsys: pytest.CaptureFixture[str], baseline: Path, worse: Path) -> None:
    assert call("compare", baseline, worse, "--format", "markdown") == 1
    text = capsys.readouterr().out
    assert text.startswith("### Regression: gates failed: 2 of 7\n")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7
    assert {line.count("|") for line in table} == {7}
    assert sum("**FAILED**" in line for line in table) == 2
    assert "- **kangaroo, mean accepted tokens: -20.0 %**\n" in text


def test_markdown_shows_what_an_error_says(
    capsys: pytest.CaptureFixture[str], baseline: Path, tmp_path: Path
) -> None:
    broken = at("kangaroo", 2, status=Status.ERROR, error="ValueError: <bad> & worse")
    candidate = make_gated(tmp_path / "run", change=broken)
    assert call("compare", baseline, candidate, "--format", "markdown") == 1
    assert "ValueError: &lt;bad&gt; &amp; worse**" in capsys.readouterr().out


def test_junit_has_a_case_for_every_gate_and_its_failures(
    capsys: pytest.CaptureFixture[str], baseline: Path, worse: Path, tmp_path: Path
) -> None:
    path = tmp_path / "gates.xml"
    assert call("compare", baseline, worse, "--format", "junit", "--output", path) == 1
    assert "gates failed: 2 of 7" in capsys.readouterr().out, "a log should show the table too"
    root = ElementTree.parse(path).getroot()
    assert (root.tag, root.get("tests"), root.get("failures")) == ("testsuites", "7", "2")
    suites = {suite.get("name"): suite for suite in root.iter("testsuite")}
    assert {name: suite.get("failures") for name, suite in suites.items()} == {
        "vanilla": "0",
        "kangaroo": "2",
    }
    failures = {
        case.get("name"): failure.get("message")
        for case in root.iter("testcase")
        for failure in case.iter("failure")
    }
    assert failures["mean_accepted_tokens"] == "-20.0 %"
    assert failures.keys() == {"mean_accepted_tokens", "acceptance_by_position"}


def test_junit_is_xml_whatever_an_error_says(baseline: Path, tmp_path: Path) -> None:
    def broken(answer):
        error = "ValueError: \x1b[31m<bad> & \x00 worse"
        return replace(answer, status=Status.ERROR, error=error)

    candidate = make_gated(tmp_path / "run", change=broken)
    path = tmp_path / "gates.xml"
    assert call("compare", baseline, candidate, "--format", "junit", "--output", path) == 1
    (message, *_) = [item.get("message") for item in ElementTree.parse(path).iter("failure")]
    assert message is not None
    assert message.endswith("ValueError: �[31m<bad> & � worse")


@pytest.mark.parametrize("format_", ["terminal", "markdown"])
def test_a_report_into_a_file(baseline: Path, worse: Path, tmp_path: Path, format_: str) -> None:
    path = tmp_path / "report"
    assert call("compare", baseline, worse, "--format", format_, "--output", path) == 1
    text = path.read_text(encoding="utf-8")
    assert "gates failed: 2 of 7" in text
    assert "\x1b" not in text
    assert text.startswith("###") is (format_ == "markdown")


def test_the_job_summary_on_github_is_appended_to(
    baseline: Path, worse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv(command.JOB_SUMMARY, str(summary))
    assert call("compare", baseline, worse) == 1
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("before\n### Regression: gates failed: 2 of 7\n")


def test_a_report_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], baseline: Path, tmp_path: Path
) -> None:
    path = tmp_path / "none" / "gates.xml"
    assert "cannot write" in refused(capsys, "compare", baseline, baseline, "--output", path)
