"""Studies: those that come with the documentation, and what is wrong with one in a line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from specbench_kangaroo.bench.config import entries_of, read_study
from specbench_kangaroo.bench.setup import plan_of
from specbench_kangaroo.record.request import EntryChoice, Request
from tests.command import refused

DOCS = Path(__file__).parents[2] / "docs"
STUDIES = {path.name: path for path in sorted((DOCS / "studies").glob("*.toml"))}


def test_the_studies_of_the_documentation_are_all_tested() -> None:
    assert set(STUDIES) == {"ablation.toml", "methods.toml", "own-model.toml"}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_of_the_documentation_can_be_planned(name: str) -> None:
    assert STUDIES[name].read_text().startswith("# "), "it says what it is for"
    request = read_study(STUDIES[name])
    assert request.name == Path(name).stem
    assert len(plan_of(request).entries) > 3


def test_the_ablation_is_the_papers() -> None:
    _, *entries = entries_of(read_study(STUDIES["ablation.toml"]).entries)
    swept = {(entry.options["steps"], entry.options["threshold"]) for entry in entries}
    assert len(swept) == len(entries) == 16, "every length with every threshold"
    assert ("6", "0.6") in swept, "the paper's own setting is among them"
    assert {entry.options["tree_width"] for entry in entries} == {"1"}, "no chain"


def test_the_page_on_studies_shows_one_that_can_be_planned(tmp_path: Path) -> None:
    page = (DOCS / "study.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "study.toml").write_text(block)
    assert len(plan_of(read_study(tmp_path / "study.toml")).entries) > 3


def test_the_page_on_studies_has_every_key_and_no_other() -> None:
    page = (DOCS / "study.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `\[\[?(\w+)\]\]?` \| (.*) \|$", page, re.MULTILINE))
    request = Request()
    assert rows.keys() == {*Request.__struct_fields__} - {"name"}
    parts = {name: getattr(request, name) for name in ("target", "questions", "decoding")}
    for name, part in (parts | {"entries": EntryChoice(method="any")}).items():
        assert set(re.findall(r"`(\w+)`", rows[name])) == set(part.__struct_fields__), name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[decodng]\n", "unknown key of study 'decodng'; did you mean 'decoding'"),
        (b"methods = []\n", "unknown key of study 'methods'; there are: decoding, entries, name"),
        (
            b"[decoding]\nmax_tokens = 8\n",
            "unknown key of decoding 'max_tokens'; did you mean 'max",
        ),
        (b"[decoding]\nbatch_size = 1\n", "unknown key of decoding 'batch_size'; there are: max_n"),
        (b"[[entries]]\nmethd = 'a'\n", "unknown key of entries 'methd'; did you mean 'method'"),
        (b"[questions]\nlimit = 'few'\n", "questions.limit is 'few', and must be a whole number$"),
        (b"[questions]\nlimit = 0\n", "questions.limit is 0, and must be a whole number >= 1$"),
        (b"[questions]\ntasks = 'qa'\n", r"questions.tasks is 'qa', and must be a list \(\[...\]"),
        (b"[decoding]\nrepeats = true\n", "decoding.repeats is True, and must be a whole number$"),
        (b"[decoding]\ntop_p = 1.5\n", "decoding.top_p is 1.5, and must be a number <= 1.0$"),
        (
            b"[decoding]\ntemperature = nan\n",
            "decoding.temperature is nan, and must be a number >= 0",
        ),
        (b"questions = 'builtin'\n", "questions is 'builtin', and must be a table$"),
        (b"[entries]\nmethod = 'a'\n", r"entries is a table, and must be a list .*\[\[...\]\] of"),
        (b"[[entries]]\nlabel = 'a'\n", r"entries\[0\] lacks the key method; add it$"),
        (
            b"[[entries]]\nmethod = 'kangaroo'\noptions = { steps = [2] }\n",
            r"entries\[0\].options must be true or false, a whole number, a number, a text$",
        ),
        (
            b"[[entries]]\nmethod = 'kangaroo'\nsweep = { steps = 2 }\n",
            r"a value in entries\[0\].sweep must be a list",
        ),
        (b"[target]\nmodel = '" + b"a" * 256 + b"'\n", "each part of a path up to 255 long$"),
        (b'[questions]\nsource = "\\u0000"\n', "source is .*, and must be a text of one line"),
        (b'name = "a\\n"\n', "name is .*, and must be a text of one line"),
        (b'name = "a\\nb"\n', r"name is 'a\\nb', and must be a text of one line"),
        (b"[target]\nmodel = \n", r"not a TOML file \(Invalid value \(at line 2, column 9\)\)"),
        (b"[questions]\n[questions]\n", r"not a TOML file \(Cannot declare .* \(at line 2"),
        (b"\xff\xfe\x00\x01", "not a TOML file .*can't decode byte 0xff"),
    ],
)
def test_what_is_wrong_with_a_study_is_one_line_that_names_it(
    text: bytes, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(text)
    line = refused(capsys, "run", "--config", path).rstrip()
    assert line.startswith(f"error: {path}: ")
    assert re.search(reason, line), line


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("method = 'kangoroo'", "unknown method 'kangoroo'; did you mean 'kangaroo'"),
        (
            "method = 'kangaroo'\noptions = { step = 2 }",
            "unknown option of kangaroo 'step'; did you mean 'steps'",
        ),
        (
            "method = 'kangaroo'\noptions = { steps = 'few' }",
            "kangaroo.steps must be of type int, not 'few'",
        ),
        ("method = 'kangaroo'\noptions = { steps = 0 }", "kangaroo.steps"),
        ("method = 'kangaroo'\nsweep = { steps = [] }", "the sweep of steps has no value"),
        (
            "method = 'kangaroo'\noptions = { steps = 2 }\nsweep = { steps = [2] }",
            "steps is an option and swept; leave one out",
        ),
    ],
)
def test_what_a_method_does_not_know_is_refused_in_a_study_as_on_the_command_line(
    entry: str, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f"[[entries]]\n{entry}\n")
    assert reason in refused(capsys, "run", "--config", path)


@pytest.mark.parametrize(
    ("name", "reason"), [("none.toml", "No such file or directory"), (".", "Is a directory")]
)
def test_what_is_no_file_is_no_study(
    name: str, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = refused(capsys, "run", "--config", tmp_path / name)
    assert f"cannot read the study {tmp_path / name}: {reason}; give a file" in line
