from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from specbench_kangaroo.cli.main import main
from specbench_kangaroo.record.schema import Lossless, Status
from specbench_kangaroo.record.writer import RunWriter, read_run
from specbench_kangaroo.report import tables
from specbench_kangaroo.report.documents import markdown
from specbench_kangaroo.report.sections import report_of
from specbench_kangaroo.stats import summary as stats
from specbench_kangaroo.stats.intervals import Estimate
from specbench_kangaroo.stats.sampling_check import SamplingCheck
from tests.unit.runs import (
    SIDES,
    make_comparison,
    make_entries,
    make_generation,
    make_manifest,
    make_run,
    make_steps,
)

TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
RANKED = (
    "token_recycling",
    "medusa (lossy)",
    "kangaroo",
    "prompt_lookup",
    "vanilla",
    "layer_skip",
    "lookahead",
)
VERDICTS = {
    "medusa": [Lossless.VIOLATION] * 9 + [Lossless.NEAR_TIE],
    "kangaroo": [Lossless.NEAR_TIE],
    "lookahead": [Lossless.VIOLATION, Lossless.NEAR_TIE],
}
RED, GREEN = "\x1b[31m", "\x1b[32m"


def printed(summary, *, width: int, colour: bool = False, details: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        width=width, file=file, force_terminal=colour, color_system="standard" if colour else None
    )
    console.print(tables.terminal(summary, details=details))
    return file.getvalue()


def changed(summary, method, **changes):
    """The summary with something else said of a method."""
    other = replace(summary.entries[method], **changes)
    return replace(summary, entries={**summary.entries, method: other})


def with_figures(summary, method, **figures):
    """The summary with other overall figures of a method."""
    part = summary.entries[method].tasks["overall"]
    part = replace(part, estimates={**part.estimates, **figures})
    return changed(summary, method, tasks={**summary.entries[method].tasks, "overall": part})


def sentence(summary, method) -> str:
    """Why a method is slow, as the report says it."""
    (line,) = (line for line in markdown(summary).splitlines() if line.startswith(f"{method} is "))
    return line


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "run"
    return stats.summarise(read_run(make_run(folder, tasks=TASKS, spread=0.05)))


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "six"
    return stats.summarise(read_run(make_comparison(folder, tasks=TASKS, verdicts=VERDICTS)))


# --- one method ---


@pytest.mark.parametrize("width", [100, 80])
def test_every_row_is_whole_on_one_line(summary, width):
    text = printed(summary, width=width)
    assert "…" not in text, "a cell was cut"
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    overall = summary.entries["kangaroo"].tasks["overall"].estimates["speedup"]
    interval = f"{overall.value:.2f} ({overall.low:.2f}–{overall.high:.2f})"
    for task in ("overall", *TASKS):
        (line,) = (line for line in lines if line.startswith(task))
        assert line.split()[-1].endswith("%"), f"the row of {task} goes on in another line: {line}"
    assert interval in next(line for line in lines if line.startswith("overall"))


def test_a_very_narrow_terminal_breaks_cells_but_cuts_none(summary):
    assert "…" not in printed(summary, width=60)


def test_the_terminal_names_the_interval_and_the_verdict(summary):
    text = printed(summary, width=100)
    assert "95 % jackknife-t over questions" in text
    assert "lossless: 12 exact, 0 near ties, 0 violations\n" in text
    assert "kangaroo against vanilla" in text


def coloured(summary, parts: dict[str, tuple[int, Estimate]]) -> list[str]:
    """The colours of a table whose speedups are these, by task with their numbers of questions."""
    part = summary.entries["kangaroo"].tasks["qa"]
    tasks = {
        task: replace(part, n=n, estimates={**part.estimates, "speedup": speedup})
        for task, (n, speedup) in parts.items()
    }
    text = printed(changed(summary, "kangaroo", tasks=tasks), width=100, colour=True)
    return re.findall(f"{re.escape(GREEN)}|{re.escape(RED)}", text)


@pytest.mark.parametrize(
    ("n", "speedup", "colour"),
    [
        (6, Estimate(1.3, 1.2, 1.4, p=0.001), GREEN),
        (6, Estimate(0.8, 0.7, 0.9, p=0.001), RED),
        (6, Estimate(1.3, 0.9, 1.4, p=0.2), None),
        (6, Estimate(1.3, None, None), None),
        (5, Estimate(1.3, 1.2, 1.4, p=0.001), None),
    ],
)
def test_only_a_sure_difference_of_six_questions_or_more_is_coloured(summary, n, speedup, colour):
    assert coloured(summary, {"qa": (n, speedup)}) == ([colour] if colour else [])


def test_cells_of_one_table_are_coloured_only_if_they_are_sure_together(summary):
    """Alone, a speedup that is just above 1 has its colour, and among others it has not."""
    weak, strong = Estimate(1.2, 1.01, 1.4, p=0.04), Estimate(1.2, 1.1, 1.3, p=0.001)
    assert coloured(summary, {"qa": (8, weak)}) == [GREEN]
    unsure = Estimate(1.1, 0.9, 1.3, p=0.3)
    assert coloured(summary, {"qa": (8, weak), "rag": (8, strong), "stem": (8, unsure)}) == [GREEN]
    assert coloured(summary, {"qa": (8, weak), "rag": (8, strong)}) == [GREEN, GREEN], (
        "Holm's second step asks for less than the first"
    )


def test_violations_errors_and_exclusions_are_counted(summary):
    counts = {"exact": 9, "near_tie": 1, "violation": 2}
    bad = changed(summary, "kangaroo", lossless=counts, errors=1, prompt_too_long=2, excluded=3)
    text = printed(bad, width=100)
    assert (
        "lossless: 9 exact, 1 near tie, 2 violations; 1 error; 2 prompts too long; 3 excluded"
    ) in text


def test_markdown_has_the_same_cells(summary):
    text = markdown(summary)
    lines = [line for line in text.splitlines() if line.startswith("| qa ")]
    sections = report_of(summary, with_details=True).sections
    assert len(lines) == len(sections) == 2
    for line, section in zip(lines, sections, strict=True):
        (row,) = (row for row in section.sheet.rows if row[0].text == "qa")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells == [cell.text for cell in row]
    for block in text.split("\n\n"):
        widths = {line.count("|") for line in block.splitlines()}
        assert len(widths) == 1, "all rows of a Markdown table have the same number of cells"


def test_a_run_of_the_baseline_alone_still_has_a_table(tmp_path):
    run = read_run(make_run(tmp_path / "run", methods=["vanilla"], status="interrupted"))
    text = printed(stats.summarise(run), width=80)
    assert "92.9 (92.9–92.9)" in text
    assert "The run is interrupted" in text


def test_a_method_that_never_succeeded_says_so(tmp_path):
    with RunWriter.create(tmp_path / "run", make_manifest()) as writer:
        steps = make_steps("vanilla")
        writer.append(make_generation("vanilla", 1, steps=steps), steps)
        writer.append(make_generation("kangaroo", 1, status=Status.ERROR, error="boom"), [])
    summary = stats.summarise(read_run(tmp_path / "run"))
    assert "lossless: not judged; 1 error; 1 excluded" in printed(summary, width=80)
    assert "1 error" in markdown(summary)


# --- lossy methods and sampled runs ---


def test_a_lossy_methods_differences_are_counted_but_not_red(summary):
    counts = {"exact": 9, "near_tie": 1, "violation": 2}
    good = with_figures(summary, "kangaroo", speedup=Estimate(1.2, 1.1, 1.3))
    lossy = changed(good, "kangaroo", lossless=counts, lossy=True)
    text = printed(lossy, width=100)
    assert text.startswith("kangaroo (lossy) against vanilla")
    assert "\ndiffers on 3 of 12 answers (lossy by choice)\n" in text
    assert RED not in printed(lossy, width=100, colour=True)
    assert RED in printed(changed(lossy, "kangaroo", lossy=False), width=100, colour=True)


@pytest.mark.parametrize(
    ("check", "lossy", "line"),
    [
        ((0.4149, 96), False, "token frequencies as vanilla's, p = 0.41 (96 prompts)"),
        ((0.0005, 96), False, "token frequencies differ from vanilla's, p = 0.0005 (96 prompts)"),
        ((0.0005, 96), True, "differ from vanilla's, p = 0.0005 (96 prompts; lossy by choice)"),
        ((0.25, 6), False, "as vanilla's, p = 0.25 (6 prompts, too few for an alarm)"),
    ],
)
def test_a_sampled_run_is_told_from_its_token_frequencies(summary, check, lossy, line):
    sampling = SamplingCheck(*check, tokens=4000)
    faster = with_figures(summary, "kangaroo", speedup=Estimate(1.2, 1.1, 1.3))
    sampled = changed(faster, "kangaroo", lossless=None, sampling=sampling, lossy=lossy)
    text = printed(sampled, width=100)
    assert line in text
    assert "\nsampling: " in text
    assert (RED in printed(sampled, width=100, colour=True)) == (sampling.alarm and not lossy)


# --- several methods ---


@pytest.mark.parametrize("width", [100, 80])
def test_methods_are_compared_first_and_the_fastest_leads(six, width):
    text = printed(six, width=width)
    lines = text.splitlines()
    assert "…" not in text
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("6 entries against vanilla")
    first = lines[: next(i for i, line in enumerate(lines) if "by task" in line)]
    names = [name for line in first for name in RANKED if line.startswith(f"{name} ")]
    assert names[: len(RANKED)] == list(RANKED), "a row each, whole, sorted by speedup"


@pytest.mark.parametrize("width", [100, 80])
def test_every_figure_of_a_comparison_is_whole(six, width):
    text = printed(six, width=width)
    for name in SIDES:
        for task in ("overall", *TASKS):
            speedup = six.entries[name].tasks[task].estimates["speedup"]
            interval = f"{speedup.low:.2f}–{speedup.high:.2f}"
            assert re.search(rf"(?<!\S){interval}(?!\S)", text), f"{name}'s {interval} is broken"
    for word in (
        "token_",
        "recycling",
        "(lossy)",
        "kangaroo",
        "prompt_",
        "lookahead",
        "61.0 nodes",
    ):
        assert re.search(rf"(?<!\S){re.escape(word)}(?!\S)", text), f"{word} is cut"


def test_six_methods_stand_side_by_side_by_task_in_80_columns(six):
    lines = printed(six, width=80).splitlines()
    assert sum(line.startswith("overall ") for line in lines) == 1
    (line,) = (line for line in lines if line.startswith("qa "))
    assert len(line.split()) == 1 + len(SIDES)


def test_a_narrower_terminal_gets_several_tables_but_no_broken_figure(six):
    lines = printed(six, width=60).splitlines()
    overall = [line.split()[1:] for line in lines if line.startswith("overall ")]
    expected = [
        f"{six.entries[name.split()[0]].tasks['overall'].estimates['speedup'].value:.2f}"
        for name in RANKED
        if name != "vanilla"
    ]
    assert len(overall) == 2
    assert [value for row in overall for value in row] == expected, (
        "every method is in one of the tables, once"
    )
    assert max(map(len, lines)) <= 60


def test_the_verdict_column_tells_exact_near_and_lossy_apart(six):
    rows = dict(re.findall(r"^\| ([a-z_ ()]+) \| .* \| ([^|]+) \|$", markdown(six), re.MULTILINE))
    assert rows["token_recycling"] == "48 exact"
    assert rows["kangaroo"] == "47 exact, 1 near tie"
    assert rows["medusa (lossy)"] == "10 of 48 differ"
    assert rows["lookahead"] == "**46 exact, 1 near tie, 1 violation**"
    assert rows["vanilla"] == "baseline"


def test_costs_stand_beside_the_rows_that_cause_them(six):
    (line,) = (line for line in markdown(six).splitlines() if line.startswith("| layer_skip |"))
    assert "| 0.93 | 1.07 (7.0 nodes) |" in line


def test_what_is_wrong_is_told_below_the_comparison(six):
    bad = changed(six, "kangaroo", errors=1, excluded=3)
    text = printed(bad, width=80)
    assert "\nkangaroo: 1 error; 3 excluded\n" in text
    assert "\nlookahead: 46 exact, 1 near tie, 1 violation\n" in text
    assert "medusa (lossy): " not in text, "its differences were its choice"
    alarm = changed(six, "kangaroo", sampling=SamplingCheck(0.0001, 96, 4000), lossless=None)
    text = printed(alarm, width=80)
    assert (
        "\nkangaroo: token frequencies differ from vanilla's, p = 0.0001 (96 prompts)\n"
    ) in text
    assert "p: how likely a lossless method" in text


def test_a_method_without_a_figure_comes_last(six):
    failed = changed(six, "token_recycling", tasks={}, lossless=None, errors=48, excluded=48)
    rows = report_of(failed, with_details=False).sections[0].sheet.rows
    assert rows[-1][0].text == "token_recycling"
    assert [cell.text for cell in rows[-1][1:]] == ["–"] * 6 + ["not judged"]
    assert "token_recycling: 48 errors; 48 excluded" in printed(failed, width=80)


def test_tables_of_each_method_are_for_those_who_ask(six):
    assert "kangaroo against vanilla" not in printed(six, width=80)
    text = printed(six, width=80, details=True)
    order = ["6 entries against", "speedup over vanilla by task", "medusa (lossy) against vanilla"]
    places = [text.index(words) for words in (*order, "kangaroo against vanilla", "of ideal: ")]
    assert places == sorted(places)
    assert text.count("layer_skip is slower") == 1, "a reason is given once"
    assert "### kangaroo against vanilla" in markdown(six)


def test_the_flag_for_details(tmp_path, capsys):
    two = {name: SIDES[name] for name in ("kangaroo", "layer_skip")}
    folder = make_comparison(tmp_path / "run", sides=two, tasks=("qa",), questions_per_task=2)
    for arguments, expected in (([], 0), (["--details"], 1)):
        with pytest.raises(SystemExit) as ended:
            main(["report", str(folder), *arguments])
        assert not ended.value.code
        assert capsys.readouterr().out.count("kangaroo against vanilla") == expected


# --- why a method is slow ---


def test_a_slow_method_is_explained_by_what_its_steps_cost_and_yield(six):
    tokens = six.entries["layer_skip"].tasks["overall"].estimates["tokens_per_step"].value
    assert sentence(six, "layer_skip") == (
        "layer_skip is slower than vanilla: a step costs 0.93 (draft) + 1.07 (verifying 7.0 nodes) "
        f"vanilla passes and yields {tokens:.2f} tokens."
    )
    explained = [line.split()[0] for line in markdown(six).splitlines() if " than vanilla" in line]
    assert explained == ["layer_skip", "lookahead"], "a reason is for those that need one"


@pytest.mark.parametrize(
    ("speedup", "claim"),
    [
        (Estimate(0.9, 0.85, 0.95, p=0.001), "kangaroo is slower than vanilla: a step costs "),
        (Estimate(0.98, 0.9, 1.05), "kangaroo is not faster than vanilla: a step costs "),
        (Estimate(0.9, None, None), "kangaroo is not faster than vanilla: a step costs "),
    ],
)
def test_only_what_is_surely_under_1_is_called_slower(summary, six, speedup, claim):
    slow = {"speedup": speedup, "speedup_decode": Estimate(0.9, 0.85, 0.95)}
    for run in (summary, six):
        assert sentence(with_figures(run, "kangaroo", **slow), "kangaroo").startswith(claim)
        assert claim in printed(with_figures(run, "kangaroo", **slow), width=100)


def test_a_method_that_drafts_nothing_is_not_explained_by_its_steps(tmp_path):
    with RunWriter.create(tmp_path / "run", make_manifest()) as writer:
        for name in ("vanilla", "kangaroo"):
            for question in range(6):
                steps = make_steps("vanilla")
                slower = 1.0 if name == "vanilla" else 1.1
                writer.append(make_generation(name, question, steps=steps, slower=slower), steps)
    summary = stats.summarise(read_run(tmp_path / "run"))
    assert sentence(summary, "kangaroo") == ("kangaroo is slower than vanilla: it drafted nothing.")


def test_a_slow_prefill_is_the_reason_where_decoding_is_faster(six):
    slow = {
        "speedup": Estimate(0.9, 0.85, 0.95, p=0.001),
        "speedup_decode": Estimate(1.1, 1.0, 1.2),
        "ttft_ms": Estimate(75.0, 70.0, 80.0),
    }
    assert sentence(with_figures(six, "kangaroo", **slow), "kangaroo") == (
        "kangaroo is slower than vanilla: its decoding is 1.10 times as fast, but its first token "
        "takes 75.0 ms instead of 20.0."
    )


def test_time_between_the_phases_is_named_where_it_is_the_reason(six):
    figures = {
        "speedup": Estimate(0.9, 0.85, 0.95, p=0.001),
        "speedup_decode": Estimate(0.8, 0.7, 0.9),
        "draft_cost": Estimate(0.2, 0.2, 0.2),
        "verify_cost": Estimate(1.1, 1.1, 1.1),
        "tokens_per_step": Estimate(2.0, 2.0, 2.0),
    }
    assert sentence(with_figures(six, "kangaroo", **figures), "kangaroo") == (
        "kangaroo is slower than vanilla: a step costs 0.20 (draft) + 1.10 (verifying 5.0 nodes) + "
        "1.20 (all else) vanilla passes and yields 2.00 tokens."
    )


def test_brackets_in_names_are_no_markup(tmp_path):
    summary = stats.summarise(read_run(make_entries(tmp_path / "run")))
    chain = summary.entries["chain[threshold=0.3]"]
    other = changed(summary, "chain[threshold=0.3]", options={**chain.options, "adapter": "[/b]"})
    other = replace(other, run="[/u]", model="[bold]m")
    file = io.StringIO()
    Console(width=200, file=file).print(tables.terminal(other, other, details=True))
    assert all(name in file.getvalue() for name in ("adapter=[/b]", "[/u]", "[bold]m"))
