"""Entries: what flags ask for, records and reports by label, and runs of older schemas."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from specbench_kangaroo.bench.config import Entry, choices_of, entries_of
from specbench_kangaroo.cli.conclusion import conclude
from specbench_kangaroo.gate.regression import compare
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.writer import Run, RunWriter, read_run
from specbench_kangaroo.report.documents import latex, markdown
from specbench_kangaroo.report.figures.catalogue import FIGURES, figures_of
from specbench_kangaroo.report.figures.style import looks
from specbench_kangaroo.report.html_report import illustrated, page
from specbench_kangaroo.report.sheets import differing_options
from specbench_kangaroo.report.spec_bench_answers import answer_files
from specbench_kangaroo.stats.summary import Summary, summarise, to_json
from specbench_kangaroo.tuning.rerun import command_line, request_again
from tests.changes import replace
from tests.unit.runs import make_answer, make_entries, make_manifest

GOLDEN = Path(__file__).parent / "golden"
REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_entries(tmp_path_factory.mktemp("entries") / "run"))


@pytest.fixture(scope="module")
def summary(run: Run) -> Summary:
    return summarise(run)


# --- flags ---


def from_flags(
    methods: Sequence[str], options: Sequence[str] = (), sweeps: Sequence[str] = ()
) -> tuple[Entry, ...]:
    return entries_of(choices_of(methods, options, sweeps))


def test_a_method_is_its_own_label_unless_one_is_given() -> None:
    found = from_flags(
        ["kangaroo", "chain=kangaroo", "again=vanilla"], ["chain.tree_width=1", "kangaroo.steps=4"]
    )
    assert found == (
        Entry("vanilla", "vanilla"),
        Entry("kangaroo", "kangaroo", {"steps": "4"}),
        Entry("chain", "kangaroo", {"tree_width": "1"}),
        Entry("again", "vanilla", {}),
    )


def test_sweeps_make_an_entry_a_value_and_their_product() -> None:
    found = from_flags(
        ["medusa", "chain=kangaroo"],
        ["chain.tree_width=1"],
        ["chain.steps=2, 4", "chain.threshold=0.3,0.5"],
    )
    assert [entry.label for entry in found] == [
        "vanilla",
        "medusa",
        "chain[steps=2,threshold=0.3]",
        "chain[steps=2,threshold=0.5]",
        "chain[steps=4,threshold=0.3]",
        "chain[steps=4,threshold=0.5]",
    ]
    assert found[-1].options == {"tree_width": "1", "steps": "4", "threshold": "0.5"}
    assert found[-1].method == "kangaroo"


def test_a_label_can_be_part_of_a_file_name_whatever_is_swept() -> None:
    (_, first, second) = from_flags(["k=m"], [], ["k.adapter=../a b/x|y.st,*.st"])
    assert first.options == {"adapter": "../a b/x|y.st"}
    for entry in (first, second):
        assert re.fullmatch(r"k\[adapter=[A-Za-z0-9_.+-]+\]", entry.label), entry.label


@pytest.mark.parametrize(
    ("methods", "options", "sweeps", "reason"),
    [
        (
            ["k", "k"],
            [],
            [],
            "there is an entry k already; .* --method k-2=k or label = .k-2. in a study$",
        ),
        (["k", "K=m"], [], [], "there is an entry K already"),
        (["vanilla"], [], [], "--method again=vanilla"),
        (["vanilla=k"], [], [], "vanilla is the label of the baseline"),
        (["a.b=k"], [], [], "letters, digits, _ and -"),
        (["a/b=k"], [], [], "letters, digits, _ and -"),
        (["-k=k"], [], [], "letters, digits, _ and -"),
        (["=k"], [], [], r"takes METHOD or LABEL=METHOD, not '=k'"),
        (["k="], [], [], r"takes METHOD or LABEL=METHOD, not 'k='"),
        (["k"], ["k.steps=4", "k.steps=6"], [], "k.steps is given already; .*--method k-2=k$"),
        (["k"], ["j.steps=4"], [], "no entry with options has the label 'j'; there are: k; add"),
        (["k"], ["vanilla.steps=4"], [], "label 'vanilla'"),
        (["k"], ["k.steps"], [], "--option takes LABEL.NAME=VALUE, not 'k.steps'"),
        (["k"], [], ["k.steps=2", "k.steps=4"], "--sweep k.steps=4: k.steps is given already"),
        (["k"], [], ["j.steps=2"], "--sweep j.steps=2: no entry with options has the label 'j'"),
        (["k"], ["k.steps=4"], ["k.steps=2,6"], "k.steps has an --option and a --sweep; leave one"),
        (["k"], [], ["k.steps=2,"], "none empty$"),
        (["k"], [], ["k.steps="], "none empty$"),
        (["k"], [], ["k.steps=2,4, 2"], r"the same label; give each value once"),
        (["k"], [], ["k.adapter=a/b,a|b"], "several values give the same label"),
    ],
)
def test_what_makes_no_entries_is_one_line_that_says_what_to_do(
    methods: list[str], options: list[str], sweeps: list[str], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        from_flags(methods, options, sweeps)
    assert "\n" not in str(caught.value)


def test_an_entry_is_asked_for_again_without_what_a_sweep_added_to_its_label(run: Run) -> None:
    again = request_again(run.manifest, "chain[threshold=0.3]", {"threshold": 0.35})
    (entry,) = again.entries
    assert (entry.label, entry.method) == ("chain", "kangaroo")
    words = command_line(again)
    assert "--method chain=kangaroo --option chain.steps=6 --option chain.threshold=0.35" in words


# --- reports ---


def test_entries_of_a_method_show_the_options_in_which_they_differ_and_no_others(
    summary: Summary,
) -> None:
    (options,) = differing_options([summary])
    assert options == {
        "vanilla": (),
        "kangaroo": ("threshold=0.6", "tree_width=4"),
        "chain[threshold=0.3]": ("threshold=0.3", "tree_width=1"),
        "chain[threshold=0.5]": ("threshold=0.5", "tree_width=1"),
        "hf": (),
    }


@pytest.mark.parametrize("form", ["markdown", "latex", "html"])
def test_every_format_shows_them(run: Run, summary: Summary, form: str) -> None:
    text = {
        "markdown": lambda: markdown(summary).replace("\\", ""),
        "latex": lambda: latex(summary).replace("{[}", "[").replace("{]}", "]").replace("\\_", "_"),
        "html": lambda: page(illustrated(run, anchor="run")),
    }[form]()
    assert "threshold=0.6, " in text or "threshold=0.6,\\\\" in text, "kangaroo's own threshold"
    assert "tree_width=4" in text
    assert "steps=6" not in text.partition("How this run was made")[0], "all of them have that"


def test_runs_side_by_side_tell_the_same_label_with_other_options_apart(summary: Summary) -> None:
    other = replace(summary.entries["kangaroo"], options={"steps": 9, "threshold": 0.6})
    entries = {"vanilla": summary.entries["vanilla"], "kangaroo": other}
    second = replace(summary, run="second", entries=entries)
    heading = markdown(summary, second).splitlines()[2]
    assert "| kangaroo: steps=6, tree_width=4 |" not in heading, (
        "its threshold differs from chain's"
    )
    assert "| kangaroo: steps=6, threshold=0.6, tree_width=4 |" in heading
    assert "| kangaroo: steps=9, threshold=0.6 |" in heading
    assert "| chain[threshold=0.3]: steps=6, tree_width=1 |" in heading
    renamed = replace(other, method="medusa", options={})
    third = replace(second, entries={**entries, "kangaroo": renamed})
    heading = markdown(second, third).splitlines()[2]
    assert heading.endswith("| kangaroo: kangaroo | kangaroo: medusa |"), "not the same method"
    same = markdown(second, replace(second, run="third")).splitlines()[2]
    assert same.endswith("| kangaroo |"), "the same options need no words"


def test_the_summary_says_the_method_and_options_of_each_label(summary: Summary) -> None:
    chain = to_json(summary)["entries"]["chain[threshold=0.3]"]
    assert chain["method"] == "kangaroo"
    assert chain["options"] == {"steps": 6, "threshold": 0.3, "tree_width": 1}


def test_many_entries_are_told_apart_and_keep_their_looks(summary: Summary) -> None:
    entries = {f"k[steps={i}]": summary.entries["kangaroo"] for i in range(30)}
    many = replace(summary, entries={"vanilla": summary.entries["vanilla"], **entries})
    found = looks(many)
    assert len(set(found.values())) == len(found), "two entries look alike"
    fewer = replace(many, entries=dict(list(many.entries.items())[:5]))
    assert looks(fewer).items() <= found.items(), "a label has another look in another run"


def test_answer_files_are_named_by_label(run: Run) -> None:
    files = answer_files(run)
    assert files["chain[threshold=0.3]"].name == (
        "smollm2-135m-chain[threshold=0.3]-float32-temp-0.0.jsonl"
    )
    assert len({file.name for file in files.values()}) == len(run.manifest.labels)


# --- generations without steps ---


def test_an_entry_without_steps_has_speed_and_times_and_no_figure_of_drafts(
    run: Run, summary: Summary
) -> None:
    hf = summary.entries["hf"]
    assert hf.lossless == {"exact": 4, "near_tie": 0, "violation": 0}
    assert hf.positions == []
    assert not (run.steps["entry"] == "hf").any()
    told = hf.tasks["overall"].estimates
    vanilla_ms = sum(140.0 * (1.0 + 0.02 * number) for number in range(4))
    assert told["speedup"].value == pytest.approx(vanilla_ms / (4 * 150.0 + 6.0))
    assert set(told) == {
        *("speedup", "speedup_decode", "speedup_specbench"),
        *("tokens_per_second", "ttft_ms", "tpot_ms"),
    }, "what its steps would say must be absent, not 0"


def test_an_entry_without_steps_is_in_reports_and_figures(
    run: Run, summary: Summary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "hf is not faster than vanilla: its own loop's steps are not known." in markdown(summary)
    assert set(figures_of(run, summary)) == set(FIGURES)
    alone = replace(run.manifest, entries={k: run.manifest.entries[k] for k in ("vanilla", "hf")})
    chosen = {
        name: frame[frame["entry"].isin(alone.entries)]
        for name, frame in (("generations", run.generations), ("judgements", run.judgements))
    }
    steps = run.steps[run.steps["entry"] == "vanilla"]
    only = replace(run, manifest=alone, steps=steps, **chosen, folder=tmp_path)
    assert {"speedup_by_task", "step_time"} <= set(figures_of(only, summarise(only)))
    assert conclude(only) == 0
    assert "lossless: 4 exact" in capsys.readouterr().out
    assert not compare(run, run, timing=True, allow=["session"]).failed
    assert answer_files(run)["hf"].lines[0]["choices"][0]["decoding_steps"] == [0]


# --- older schemas ---


def test_a_run_of_version_2_that_was_killed_is_read_whole(tmp_path: Path) -> None:
    """Torn as by a kill, with its steps in the journal, as version 2 wrote them."""
    folder = tmp_path / "run"
    with RunWriter.create(folder, make_manifest()) as writer:
        for label in ("vanilla", "kangaroo"):
            writer.append(*make_answer(0, label))
    copies = [path.unlink() for path in folder.glob("*.parquet")]
    assert len(copies) == 2
    lines, journal = [], []
    for line in map(json.loads, (folder / "generations.jsonl").read_text().splitlines()):
        steps = line.pop("steps")
        steps["rows"] = steps.pop("nodes")
        line["method"] = line.pop("entry")
        key = {name: line[name] for name in ("method", "question_id", "turn", "repeat")}
        of_step = [dict(zip(steps, row, strict=True)) for row in zip(*steps.values(), strict=True)]
        lines.append(json.dumps(line) + "\n")
        journal.append(json.dumps(key | {"steps": of_step}) + "\n")
    (folder / "generations.jsonl").write_text("".join(lines) + '{"method": "vanil')
    (folder / "steps.jsonl").write_text("".join(journal) + '{"method": "kanga')
    content = json.loads((folder / "run.json").read_text())
    content["methods"] = content.pop("entries")
    for record in content["methods"].values():
        del record["method"]
    (folder / "run.json").write_text(json.dumps(content | {"schema_version": 2}))

    run = read_run(folder)
    assert run.manifest.entries["kangaroo"].method == "kangaroo"
    assert run.manifest.schema_version == 2
    assert run.generations["entry"].tolist() == ["vanilla", "kangaroo"]
    assert run.steps["nodes"].tolist() == [1] * 12 + [5] * 4
    assert summarise(run).entries["kangaroo"].tasks["overall"].n == 1


def test_a_row_with_an_old_and_a_new_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(GOLDEN / "run", folder)
    path = folder / "generations.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first.replace("{", '{"entry": "medusa", ', 1), *rest]))
    with pytest.raises(UsageError, match=r"generations.jsonl:1: .*unknown field `method`"):
        read_run(folder)


@pytest.mark.parametrize("folder", sorted(p.parent for p in REFERENCE.glob("*/run.json")), ids=str)
def test_every_committed_run_is_still_reported_and_compared(folder: Path) -> None:
    run = read_run(folder)
    summary = summarise(run)
    assert f"over {summary.baseline}" in markdown(summary, summary)
    assert list(to_json(summary)["entries"]) == list(run.manifest.labels)
    stored = json.loads((folder / "run.json").read_text())
    if stored["schema_version"] < 3:
        for name, entry in summary.entries.items():
            assert entry.method == name, "older runs had no labels"
    assert not compare(run, run).failed
    kept = json.loads((folder / "summary.json").read_text())
    now = json.loads(json.dumps(to_json(summary)))
    assert rounded(kept) == rounded(now), f"{folder}/summary.json is of an older version"


def rounded(of: Any) -> Any:
    """The last bits of a number are those of the machine that computed it."""
    if isinstance(of, dict):
        return {name: rounded(value) for name, value in of.items()}
    if isinstance(of, list):
        return [rounded(value) for value in of]
    return float(f"{of:.6g}") if isinstance(of, float) else of
