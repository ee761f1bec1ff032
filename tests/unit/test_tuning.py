"""Predicted speedups against those of runs whose every cost is known, and what is refused."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from specbench_kangaroo.cli.main import main
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.manifest import read_manifest, write_manifest
from specbench_kangaroo.record.request import (
    Decoding,
    EntryChoice,
    QuestionChoice,
    Request,
    TargetChoice,
)
from specbench_kangaroo.record.schema import EntryRecord, Resolved
from specbench_kangaroo.record.writer import read_run
from specbench_kangaroo.stats.summary import summarise
from specbench_kangaroo.tuning import figure as tune_figure
from specbench_kangaroo.tuning import tables as tune_tables
from specbench_kangaroo.tuning.rerun import command_line, request_again
from specbench_kangaroo.tuning.step_costs import step_costs
from specbench_kangaroo.tuning.tables import to_json
from specbench_kangaroo.tuning.tuning import THRESHOLDS, Setting, Tuning, tune
from tests.changes import replace
from tests.unit.drafting import ALLOWED, DEEPEST, Answer, Costs, make_answer, make_drafting_run
from tests.unit.runs import asked, make_manifest, make_run

SETTINGS = [(1, 0.0), (2, 0.5), (4, 0.35), (7, 0.7), (12, 0.0), (12, 1.0)]


def make_answers(count: int = 60, *, hits: float = 0.5) -> list[Answer]:
    rng = random.Random(11)
    return [make_answer(rng, hits=hits, length=rng.choice([ALLOWED, 25])) for _ in range(count)]


def predicted(found: Tuning, steps: int, threshold: float, task: str = "overall") -> float:
    return found.at(task, Setting(steps, threshold))


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose questions of mt_bench are drafted well, and those of qa badly."""
    good, bad = make_answers(24, hits=0.85), make_answers(24, hits=0.3)
    answers = [answer for pair in zip(good, bad, strict=True) for answer in pair]
    return make_drafting_run(tmp_path_factory.mktemp("runs") / "logged", answers)


@pytest.mark.parametrize(
    "costs",
    [
        Costs(),
        Costs(draft_token=0.3, verify_row=1.5, rest=0.0),
        # A fixed cost of drafting, known from the short drafts at the ends of answers.
        Costs(draft_step=0.8, draft_token=0.7),
    ],
)
def test_with_known_costs_every_speedup_is_predicted(tmp_path: Path, costs: Costs) -> None:
    answers = make_answers(160, hits=0.4)
    found = tune(read_run(make_drafting_run(tmp_path / "log", answers, costs=costs)))
    assert found.unknown_share == 0, "guesses would blur what this test compares"
    for number, (steps, threshold) in enumerate(SETTINGS):
        folder = make_drafting_run(
            tmp_path / str(number), answers, steps=steps, threshold=threshold, costs=costs
        )
        tasks = summarise(read_run(folder)).entries["kangaroo"].tasks
        for task, part in tasks.items():
            assert predicted(found, steps, threshold, task) == pytest.approx(
                part.estimates["speedup"].value, rel=1e-9
            ), f"{task}: γ = {steps}, η = {threshold} would run at another speed than was promised"


def test_few_unknown_positions_move_no_prediction_far(tmp_path: Path) -> None:
    answers = make_answers(80, hits=0.75)
    found = tune(read_run(make_drafting_run(tmp_path / "log", answers)))
    assert 0 < found.unknown_share < 0.01
    for number, (steps, threshold) in enumerate(SETTINGS):
        folder = make_drafting_run(
            tmp_path / str(number), answers, steps=steps, threshold=threshold
        )
        real = summarise(read_run(folder)).entries["kangaroo"].tasks["overall"].estimates["speedup"]
        assert predicted(found, steps, threshold) == pytest.approx(real.value, rel=0.01)


def test_a_few_slow_steps_make_no_short_draft_dearer_than_a_long_one() -> None:
    def steps_of(drafted: int, count: int, verify_ms: float) -> pd.DataFrame:
        row = {"question_id": 0, "turn": 0, "repeat": 0, "drafted": drafted, "verify_share": 1.0}
        return pd.DataFrame([row | {"draft_ms": float(drafted), "verify_ms": verify_ms}] * count)

    baseline = steps_of(0, 100, 10.0)
    steps = pd.concat([steps_of(12, 100, 13.0), steps_of(1, 5, 30.0), steps_of(2, 6, 11.0)])
    spent = {"draft_ms": steps["draft_ms"].sum(), "verify_ms": steps["verify_ms"].sum()}
    sums = {"steps": len(steps), "ttft_ms": 5.0, "accept_ms": 0.0, "task": "qa"}
    total = {"phases_ms": 5.0 + sum(spent.values()), "total_ms": 5.0 + sum(spent.values())}
    answers = pd.DataFrame([{"question_id": 0, "turn": 0, "repeat": 0} | sums | spent | total])
    costs = step_costs(answers, steps, baseline)
    (curve,) = costs.step_ms
    assert np.all(np.diff(curve) >= 0), "a slow step at the end of an answer became a bend"
    assert curve[0] == pytest.approx(10.0, rel=0.01)
    assert curve[12] == pytest.approx(25.0, rel=0.03)
    taken = np.zeros((1, 13), dtype=np.int64)
    taken[0, [12, 1, 2]] = 100, 5, 6
    assert costs.total_ms(taken) == pytest.approx(total["total_ms"])


def test_the_logged_setting_is_predicted_exactly(logged: Path) -> None:
    run = read_run(logged)
    found = tune(run)
    measured = summarise(run).entries["kangaroo"].tasks["overall"].estimates["speedup"].value
    assert found.measured_at_logged == pytest.approx(measured, rel=1e-12)
    assert found.predicted_at_logged == pytest.approx(measured, rel=1e-12)
    assert predicted(found, DEEPEST, 0.0) == pytest.approx(measured, rel=1e-12)


def test_every_task_has_its_own_best_setting_with_an_interval(logged: Path) -> None:
    found = tune(read_run(logged))
    assert list(found.tasks) == ["overall", "mt_bench", "qa"]
    good, bad = found.tasks["mt_bench"], found.tasks["qa"]
    assert good.best.steps > bad.best.steps, "drafts that hit more often should be longer"
    for part in found.tasks.values():
        row = found.steps.index(part.best.steps)
        column = THRESHOLDS.index(part.best.threshold)
        assert part.speedup[row, column] == part.speedup.max() == pytest.approx(part.estimate.value)
        assert part.estimate.low is not None
        assert part.estimate.high is not None
        assert part.estimate.low < part.estimate.value < part.estimate.high
    assert good.mean_accepted_tokens > bad.mean_accepted_tokens > 1
    assert predicted(found, 1, 0.3) == predicted(found, 1, 0.9), "γ = 1 has nothing to stop"


def test_a_draft_that_costs_nothing_is_never_stopped(tmp_path: Path) -> None:
    free = Costs(draft_token=0.0, verify_row=0.0)
    found = tune(read_run(make_drafting_run(tmp_path / "log", make_answers(), costs=free)))
    surface = found.tasks["overall"].speedup
    assert surface[-1, 0] == surface.max()
    assert np.all(np.diff(surface[:, 0]) >= -1e-12)


def test_the_document_has_the_whole_surface_of_every_task(logged: Path) -> None:
    found = tune(read_run(logged))
    document = json.loads(json.dumps(to_json(found)))
    assert document["steps"] == list(range(1, DEEPEST + 1))
    assert document["thresholds"][:3] == [0.0, 0.05, 0.1]
    for task in ("overall", "mt_bench", "qa"):
        part = document["tasks"][task]
        assert np.shape(part["speedup"]) == (12, 21)
        assert part["best"].keys() == {"steps", "threshold", "speedup"}
        assert part["best"]["speedup"].keys() == {"value", "low", "high"}
    assert document["at_logged"]["measured"] == pytest.approx(found.measured_at_logged)


def changed(folder: Path, *, settings: dict[str, Any] | None = None, **options: Any) -> Path:
    """The run with other settings or other options of its method in its manifest."""
    manifest = read_manifest(folder)
    record = manifest.entries["kangaroo"]
    record = replace(record, options={**record.options, **options})
    entries = {**manifest.entries, "kangaroo": record}
    kept = asked(**{**manifest.settings, **(settings or {})})
    write_manifest(folder, replace(manifest, entries=entries, **kept))
    return folder


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"threshold": 0.4}, "kangaroo.threshold=0.4, so it does not hold what longer drafts"),
        ({"tree_width": 3}, "drafted with branches"),
        ({"settings": {"temperature": 0.7}}, "was sampled, .* --temperature 0"),
    ],
)
def test_a_run_that_cannot_be_replayed_says_how_to_run_again(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    folder = changed(make_drafting_run(tmp_path / "run", make_answers(2)), **change)
    again = (
        "--option kangaroo.threshold=0 --option kangaroo.steps=12 --option kangaroo.tree_width=1"
    )
    with pytest.raises(UsageError, match=f"{reason}.*{again}"):
        tune(read_run(folder))


def test_branches_are_seen_without_the_option_too(tmp_path: Path) -> None:
    folder = make_drafting_run(tmp_path / "run", make_answers(2))
    run = read_run(folder)
    run.steps.loc[run.steps["drafted"] > 0, "nodes"] += 1
    with pytest.raises(UsageError, match="drafted with branches"):
        tune(run)


def test_only_methods_with_both_options_are_tuned(tmp_path: Path) -> None:
    folder = make_drafting_run(tmp_path / "run", make_answers(2))
    with pytest.raises(UsageError, match=r"'vanilla' is no entry .*there are: kangaroo"):
        tune(read_run(folder), "vanilla")
    manifest = read_manifest(folder)
    twin = replace(manifest.entries["kangaroo"])
    write_manifest(folder, replace(manifest, entries={**manifest.entries, "layer_skip": twin}))
    with pytest.raises(UsageError, match="choose one with --method: kangaroo, layer_skip"):
        tune(read_run(folder))
    assert tune(read_run(folder), "kangaroo").entry == "kangaroo"
    with pytest.raises(UsageError, match="no drafts of layer_skip"):
        tune(read_run(folder), "layer_skip")
    with pytest.raises(UsageError, match=r"no entry of .* has the options .*it has: vanilla$"):
        tune(read_run(make_run(tmp_path / "plain", methods=["vanilla"])))


def test_the_command_refuses_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(make_drafting_run(tmp_path / "run", make_answers(2)), threshold=0.6)
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as ended:
        main(["tune", str(folder)])
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out) == (2, "")
    assert shown.err.count("\n") == 1
    assert sorted(folder.iterdir()) == before, "a refused command must leave nothing behind"


def test_the_table_names_the_best_setting_and_what_it_rests_on(logged: Path) -> None:
    found = tune(read_run(logged))
    file = io.StringIO()
    Console(width=80, file=file).print(tune_tables.terminal(found))
    shown = file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    best = found.tasks["overall"]
    assert f"steps {best.best.steps}, threshold {best.best.threshold:.2f}" in shown
    assert f"at the logged setting: predicted {found.measured_at_logged:.2f}, measured" in shown
    assert "of the positions" in shown
    heading = next(line for line in shown.splitlines() if line.startswith("steps"))
    assert f"{best.best.threshold:.2f}" in heading, "the best setting is not in the surface"


def test_the_figure_frames_the_best_of_every_map_and_cuts_nothing(logged: Path) -> None:
    found = tune(read_run(logged))
    figure = tune_figure.speedup_surface(found)
    figure.canvas.draw()
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 3
    for axes, part in zip(maps, found.tasks.values(), strict=True):
        (frame,) = axes.patches
        x, y = frame.get_xy()
        assert THRESHOLDS[round(x + 0.5)] == part.best.threshold
        assert found.steps[round(y + 0.5)] == part.best.steps
    assert len(maps[0].texts) == found.tasks["overall"].speedup.size
    page = figure.bbox
    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels()):
            box = text.get_window_extent()
            inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0
            assert (inside and box.y1 <= page.y1) or not text.get_text(), f"{text} is cut"


def test_one_task_needs_no_small_maps(tmp_path: Path) -> None:
    folder = make_drafting_run(tmp_path / "run", make_answers(4), tasks=["qa"])
    figure = tune_figure.speedup_surface(tune(read_run(folder)))
    assert len([axes for axes in figure.axes if axes.images]) == 1


def test_a_run_is_asked_for_again_with_its_own_settings() -> None:
    questions = QuestionChoice(source="my files/mine.jsonl", tasks=("qa", "rag"), limit=3)
    target = TargetChoice(model="org/model", revision="abc")
    decoding = Decoding(max_new_tokens=64, seed=5)
    options = {"steps": 12, "threshold": 0.0, "adapter": None, "exit_layer": 2}
    manifest = replace(
        make_manifest(),
        model="org/model",
        questions="mine.jsonl",
        entries={"vanilla": EntryRecord("vanilla", {}), "draft": EntryRecord("kangaroo", options)},
        request=Request(
            name="first",
            target=target,
            questions=questions,
            decoding=decoding,
            entries=(EntryChoice(method="medusa"),),
        ),
        resolved=Resolved(dtype="bfloat16", device="cuda", threads=2, model_revision="abc"),
    )
    again = request_again(manifest, "draft", {"steps": 4, "threshold": 0.35})
    assert again == Request(
        target=replace(target, dtype="bfloat16", device="cuda"),
        questions=questions,
        entries=(
            EntryChoice(
                label="draft",
                method="kangaroo",
                options={"steps": 4, "threshold": 0.35, "exit_layer": 2},
            ),
        ),
        decoding=decoding,
    )
    assert command_line(again, Path("out")) == (
        "specbench run --model org/model --revision abc --dtype bfloat16 --device cuda "
        "--questions 'my files/mine.jsonl' --task qa --task rag --limit 3 --max-new-tokens 64 "
        "--seed 5 --method draft=kangaroo --option draft.steps=4 --option draft.threshold=0.35 "
        "--option draft.exit_layer=2 --output out"
    )


def test_a_model_of_the_catalogue_is_asked_for_by_its_name_alone() -> None:
    golden = read_manifest(Path(__file__).parent / "golden" / "run")
    old = replace(golden, resolved=Resolved(model_revision="wheel==1.0"))
    assert request_again(old, "kangaroo", {}).target.revision is None
