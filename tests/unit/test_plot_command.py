"""``specbench plot``: which files it writes where, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from specbench_kangaroo.report.figures.catalogue import FIGURES
from specbench_kangaroo.report.figures.learning import read_learning
from tests.command import call, refused
from tests.unit.runs import make_run

WEIGHTS = Path(__file__).parents[2] / "methods/specbench_methods/weights/smollm2-135m"
SPEEDUP = ("--figure", "speedup_by_task")


def test_all_figures_go_into_the_run_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run")
    assert call("plot", folder) == 0
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    expected = [f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")]
    assert [path.name for path in paths] == expected
    assert all(path.parent == folder / "figures" and path.stat().st_size for path in paths)


def test_only_what_was_asked_for_is_written(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    asked = ("--figure", "step_time", *SPEEDUP, "--format", "pdf")
    assert call("plot", folder, *asked, "--output", tmp_path / "out") == 0
    written = sorted(path.name for path in (tmp_path / "out" / "run").iterdir())
    assert written == ["speedup_by_task.pdf", "step_time.pdf"]
    assert not (folder / "figures").exists()


def test_several_runs_have_a_folder_each(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("first", "second")]
    out = tmp_path / "out"
    assert call("plot", *runs, *SPEEDUP, "--format", "svg", "--output", out) == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.svg"))
    assert written == ["first/speedup_by_task.svg", "second/speedup_by_task.svg"]


def test_runs_of_one_name_do_not_overwrite_each_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / name / "run") for name in ("first", "second")]
    line = refused(capsys, "plot", *runs, "--output", tmp_path / "out")
    assert "would overwrite each other" in line
    assert not (tmp_path / "out").exists()


def test_draft_weights_show_how_they_learned(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("kangaroo", "medusa"):
        found = read_learning(WEIGHTS / f"{name}.safetensors")
        assert found.name == f"{name}, smollm2-135m"
        assert all(len(curve) == len(found.tokens) > 2 for curve in found.agreement)
        assert all(curve[0] < curve[-1] <= 1 for curve in found.agreement), "it learned nothing"
    heads = sorted(WEIGHTS.glob("*.safetensors"))
    assert call("plot", *heads, "--format", "svg", "--output", tmp_path) == 0
    drawn = Path(capsys.readouterr().out.strip())
    assert drawn == tmp_path / "learning_curve.svg"
    text = drawn.read_text(encoding="utf-8")
    for label in ("kangaroo, smollm2-135m", "medusa, smollm2-135m, 4 ahead", "training tokens"):
        assert label in text, f"the figure does not say {label!r}"


def test_weights_without_a_training_record_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torn, bare = tmp_path / "torn.safetensors", tmp_path / "bare.safetensors"
    torn.write_bytes(b"{}")
    save_file({"w": np.zeros(2)}, bare, metadata={"kangaroo": "{}"})
    assert "cannot read" in refused(capsys, "plot", torn)
    assert "no training record" in refused(capsys, "plot", bare)
    assert "cannot read" in refused(capsys, "plot", tmp_path / "nowhere.safetensors")


def test_an_unknown_figure_is_refused_before_the_run_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = refused(capsys, "plot", tmp_path / "nowhere", "--figure", "speedup")
    assert "unknown figure 'speedup'; did you mean 'speedup_by_task'? there are: " in line


def test_a_figure_without_data_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run", methods=["vanilla"])
    line = refused(capsys, "plot", folder, *SPEEDUP)
    assert "has no data for speedup_by_task; leave it out" in line


def test_a_run_without_answers_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run", questions_per_task=0)
    assert "has no answers to draw anything from" in refused(capsys, "plot", folder)


def test_a_folder_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("in the way")
    line = refused(capsys, "plot", folder, *SPEEDUP, "--output", tmp_path / "file")
    assert "cannot write" in line
    assert "give another --output" in line


def test_a_report_does_not_wait_for_matplotlib(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    code = (
        "import sys\n"
        "from specbench_kangaroo.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "heavy = {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, "report", str(folder)],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert child.returncode == 0, f"imported for nothing: {child.stderr}"
