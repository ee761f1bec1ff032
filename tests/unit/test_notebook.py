"""notebooks/analysis.ipynb: kept without outputs, and run from its first cell to its last.

The kernel is a process of its own, as a reader's is, and imports this checkout.
"""

from __future__ import annotations

import ast
import json
import os
import random
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from specbench_kangaroo.bench.config import entries_of, request_of
from specbench_kangaroo.bench.registry import built_in_files
from specbench_kangaroo.record.writer import read_run
from specbench_kangaroo.report.figures.catalogue import FIGURES
from specbench_kangaroo.report.sheets import interval_cell
from specbench_kangaroo.stats.summary import OVERALL, summarise
from specbench_kangaroo.tuning.tuning import tune
from tests.unit.drafting import ALLOWED, make_answer, make_drafting_run

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "analysis.ipynb"
REFERENCE = ROOT / "results" / "reference" / "cpu-builtin"
OF_QUESTIONS = ("stop-figure", "pay-figure", "eta-figure")
CELL_SECONDS = 300
MEASURED = re.compile(r"\d+[.,]\d+|\d+\s*(%|×|ms\b|times\b)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# What a test asks of the kernel when the notebook is done.
PROBE = """
import json, sys
whole = value.loc[OVERALL, "speedup"]
print(json.dumps({
    "torch": "torch" in sys.modules,
    "reference": str(run.folder),
    "products": (against["product"] * whole / against["speedup"]).tolist(),
    "gain": {eta: figure.value for eta, figure in gain.items()},
    "replayed": [] if found is None else held["replayed"].tolist(),
}))
"""


def notebook() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def execute(folder: Path, *, leave_out: Collection[str] = (), **parameters: str) -> NotebookNode:
    """The notebook with its outputs; ``parameters`` replace those of its own.

    ``folder`` is for what Jupyter writes beside it.
    """
    filled = notebook()
    filled.cells = [cell for cell in filled.cells if cell.id not in leave_out]
    (place,) = [i for i, cell in enumerate(filled.cells) if "parameters" in tags(cell)]
    given = "\n".join(f"{name} = {text!r}" for name, text in parameters.items())
    filled.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
    filled.cells.append(nbformat.v4.new_code_cell(PROBE, id="probe"))
    client = NotebookClient(
        filled,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "methods")]))
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        try:
            client.execute()
        except CellExecutionError as error:
            pytest.fail(f"a cell of {NOTEBOOK.name} fails:\n{COLOUR.sub('', str(error))}")
    return filled


def tags(cell: NotebookNode) -> list[str]:
    found: list[str] = cell.metadata.get("tags", [])
    return found


def outputs(filled: NotebookNode, cell: str) -> list[NotebookNode]:
    (found,) = [item for item in filled.cells if item.id == cell]
    shown: list[NotebookNode] = found.outputs
    return shown


def text(filled: NotebookNode, cell: str) -> str:
    """What a cell printed, and its frames as plain text."""
    return "\n".join(
        output.text if output.output_type == "stream" else output.data.get("text/plain", "")
        for output in outputs(filled, cell)
    )


def images(filled: NotebookNode, cell: str) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(filled, cell))


def probed(filled: NotebookNode) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text(filled, "probe"))
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """Filled in as it stands."""
    return execute(tmp_path_factory.mktemp("jupyter"))


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain that was run with a threshold of 0; one task is drafted well, the other badly."""
    rng = random.Random(3)
    answers = [
        make_answer(rng, hits=hits, length=rng.choice([ALLOWED, 25]))
        for _ in range(24)
        for hits in (0.85, 0.3)
    ]
    return make_drafting_run(tmp_path_factory.mktemp("runs") / "logged", answers)


@pytest.fixture(scope="module")
def replayed(logged: Path, tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    folder = tmp_path_factory.mktemp("jupyter")
    return execute(folder, leave_out=("report", "figures"), RUN=str(logged))


def test_it_is_kept_without_outputs() -> None:
    kept = notebook()
    nbformat.validate(kept)
    for cell in kept.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, (
                f"cell {cell.id!r} has outputs, which change with every run and hide what did; "
                "clear all outputs in the editor and save"
            )
            assert cell.execution_count is None, (
                f"cell {cell.id!r} has an execution count; clear all outputs in the editor and save"
            )


def test_its_text_states_no_measured_number() -> None:
    for cell in notebook().cells:
        if cell.cell_type == "markdown":
            found = MEASURED.search(cell.source)
            assert found is None, (
                f"cell {cell.id!r} says {found[0]!r}, which another run will make wrong: let a "
                "code cell print it"
            )


def test_it_shows_how_to_make_a_run_and_makes_none_by_default() -> None:
    cells = {cell.id: cell.source for cell in notebook().cells}
    assert "MAKE = False" in cells["parameters"]
    assigned, condition = ast.parse(cells["make"]).body
    assert isinstance(assigned, ast.Assign)
    assert ast.unparse(condition).startswith("if MAKE:\n    made = specbench_kangaroo.run(STUDY")
    entries = entries_of(request_of(ast.literal_eval(assigned.value)).entries)
    assert len(entries) > 2
    assert {entry.method for entry in entries} <= {*built_in_files()}


def test_every_cell_runs_on_the_reference_run(reference: NotebookNode) -> None:
    for cell in reference.cells:
        warned = [
            output.text
            for output in cell.get("outputs", ())
            if output.output_type == "stream" and output.name == "stderr"
        ]
        assert not warned, f"cell {cell.id!r} warns its reader:\n{warned[0]}"
    assert probed(reference)["reference"] == str(REFERENCE), "it reads another run by default"
    assert not probed(reference)["torch"], "it loads torch, so a reader of a run waits for it"


def test_it_shows_the_report_and_every_figure(reference: NotebookNode) -> None:
    figures = summarise(read_run(REFERENCE)).entries["kangaroo"].tasks[OVERALL].estimates
    assert interval_cell(figures, "speedup").text in text(reference, "report"), (
        "the tables lack the overall speedup that `specbench report` gives"
    )
    named = text(reference, "figures")
    missing = [name for name in FIGURES if name not in named]
    assert not missing, f"the reference has data for these figures, which are not shown: {missing}"
    assert images(reference, "figures") == len(FIGURES), "a figure is named and not drawn"
    for cell in OF_QUESTIONS:
        assert images(reference, cell) == 1, f"{cell} shows no figure"


def test_the_reasons_of_a_task_explain_all_of_its_speedup(reference: NotebookNode) -> None:
    products = probed(reference)["products"]
    assert products == pytest.approx([1.0] * 6), (
        "yield, cost and prefill leave something of a task's speedup out, or count it twice"
    )


def test_a_run_that_cannot_be_replayed_says_how_to_make_one(reference: NotebookNode) -> None:
    said = text(reference, "eta-replay")
    for part in ("kangaroo.threshold=0", "kangaroo.tree_width=1", "specbench tune"):
        assert part in said, f"the reader is not told {part!r}:\n{said}"
    assert images(reference, "eta-surface") == 0, "a run that holds no other drafts is replayed"


def test_a_chain_with_threshold_0_is_replayed_as_specbench_tune_does(
    replayed: NotebookNode, logged: Path
) -> None:
    best = tune(read_run(logged)).best
    assert f"best overall: γ = {best.steps}, η = {best.threshold:g}" in text(
        replayed, "eta-surface"
    ), "the notebook and specbench tune disagree about the best setting"
    assert images(replayed, "eta-surface") == 1, "the surface is not shown"


def test_cutting_drafts_short_comes_near_the_replay(replayed: NotebookNode) -> None:
    found = probed(replayed)
    cut = list(found["gain"].values())
    assert len(cut) == 21, "a threshold of the grid is missing"
    assert max(cut) > 1.2, "no threshold gains anything here, so little is compared"
    assert cut == pytest.approx(found["replayed"], rel=0.03), (
        "what the notebook says of a higher η is far from the steps that η would have taken"
    )
