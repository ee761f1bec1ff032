"""The toy package of methods/README.md, as it stands there: installed by pip, found, and run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.unit.test_method_readme import blocks

from .bench import save_model, save_questions

PACKAGE, SHOWN = "As a package of your own", "What you see"
PATIENCE_S = 300


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the package into."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for language, name in (("python", "repeat_last.py"), ("toml", "pyproject.toml")):
        (block,) = blocks(language, PACKAGE)
        (source / name).write_text(block.text, encoding="utf-8")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options]
    child = subprocess.run(
        [*pip, "--target", str(folder), str(source)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert child.returncode == 0, f"pip cannot install the package of the README: {child.stderr}"
    return folder


def session() -> list[str]:
    """What the README says that the user types and sees."""
    (example,) = blocks("text", SHOWN)
    return example.text.splitlines()


def specbench(installed: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own, which finds the package by its entry point."""
    return subprocess.run(
        [sys.executable, "-m", "specbench_kangaroo.cli.main", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(installed), *sys.path]),
            "SPECBENCH_CACHE": str(installed.parent / "cache"),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "COLUMNS": "100",
        },
    )


def test_the_listing_shows_it_as_the_readme_says(installed: Path) -> None:
    promised = [line for line in session() if re.match(r" *repeat_last[.:]", line)]
    assert len(promised) == 2, "the method with its description, and its option"
    child = specbench(installed, "list", "methods")
    assert child.returncode == 0, child.stderr
    shown = [line.rstrip() for line in child.stdout.splitlines()]
    assert [line for line in promised if line not in shown] == [], child.stdout


def test_the_readmes_command_runs_it_and_has_figures(installed: Path, tmp_path: Path) -> None:
    (command,) = (line for line in session() if line.startswith("$ specbench run "))
    child = specbench(
        installed,
        *shlex.split(command)[2:],
        *("--model", save_model(tmp_path), "--device", "cpu", "--max-new-tokens", "16"),
        *("--questions", save_questions(tmp_path / "questions.jsonl", count=2)),
        *("--output", tmp_path / "run"),
    )
    assert child.returncode == 0, child.stderr
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["entries"]["repeat_last"]
    assert (found["errors"], found["lossless"]["violation"]) == (0, 0)
    assert found["tasks"]["overall"]["n"] == 2
    assert {"speedup", "acceptance_rate"} <= found["tasks"]["overall"].keys()
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["entries"]["repeat_last"]["options"] == {"times": 2}
