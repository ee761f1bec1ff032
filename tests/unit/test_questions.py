"""Question files: what is read, what is refused and with which words, what is selected."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pooch
import pytest

from specbench_kangaroo.bench.questions import (
    CATEGORIES,
    SPEC_BENCH_SHA256,
    TASKS,
    Question,
    load_questions,
    select,
)
from specbench_kangaroo.record.errors import UsageError

SPEC_BENCH = Path(__file__).parents[3] / "shared/data/spec_bench/question.jsonl"
GOOD = {"question_id": 7, "category": "qa", "turns": ["Who?"], "reference": ["I"]}


def write(path: Path, *lines: object) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def question(question_id: int, category: str) -> Question:
    return Question(question_id, category, ("?",))


def ids(questions: tuple[Question, ...]) -> list[int]:
    return [q.question_id for q in questions]


def test_a_file_is_read_with_its_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", GOOD, "")
    found = load_questions(str(path))
    assert found.name == "mine.jsonl", "a run folder must not hold the user's paths"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.questions == (Question(7, "qa", ("Who?",)),)
    assert found.questions[0].task == "qa"


def test_a_line_separator_inside_a_text_does_not_split_the_line(tmp_path: Path) -> None:
    text = "one\u2028two"
    line = json.dumps(GOOD | {"turns": [text]}, ensure_ascii=False)
    found = load_questions(str(write(tmp_path / "q.jsonl", line)))
    assert found.questions[0].turns == (text,)


@pytest.mark.parametrize("reference", [None, [], ["a", ["b", "c"]], "alone", {"any": "thing"}])
def test_a_reference_of_any_kind_is_passed_over(tmp_path: Path, reference: object) -> None:
    path = write(tmp_path / "q.jsonl", GOOD | {"reference": reference})
    assert load_questions(str(path)).questions == (Question(7, "qa", ("Who?",)),)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question_id": 1', "not JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ({"question_id": 1, "turns": ["?"]}, "no field 'category'; there are: question_id, turns"),
        (GOOD | {"question_id": "1"}, "'question_id' must be of type int, not str"),
        (GOOD | {"question_id": True}, "'question_id' must be of type int, not bool"),
        (GOOD | {"category": "maths"}, "unknown category 'maths'; did you mean 'math'?"),
        (GOOD | {"category": "cooking"}, "there are: coding,"),
        (GOOD | {"turns": []}, "at least one text"),
        (GOOD | {"turns": ["fine", "  "]}, "none of them empty"),
        (GOOD | {"turns": ["fine", 3]}, "at least one text"),
        (GOOD | {"turns": "bare"}, "'turns' must be of type list, not str"),
        (GOOD, "question_id 7 was used before"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: object, reason: str) -> None:
    path = write(tmp_path / "q.jsonl", GOOD, line)
    with pytest.raises(UsageError) as caught:
        load_questions(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}:2: "), "the user must learn which line to fix"
    assert reason in message
    assert "\n" not in message, "a usage error is one line"


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"question_id": 1, "category": "qa", "turns": ["\xff"]}')
    with pytest.raises(UsageError, match=r"q\.jsonl:1: not JSON"):
        load_questions(str(path))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no questions"):
        load_questions(str(write(tmp_path / "q.jsonl")))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("buildin", "did you mean 'builtin'"),
        ("nowhere/q.jsonl", "No such file or directory; --questions takes builtin, spec-bench or"),
        (".", "Is a directory"),
    ],
)
def test_a_missing_source_is_named(source: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load_questions(source)


def test_the_builtin_set_covers_every_category() -> None:
    found = load_questions("builtin")
    assert found.name == "builtin"
    assert {q.category for q in found.questions} == set(CATEGORIES)


@pytest.mark.parametrize("failure", [ConnectionError("no route"), ValueError("SHA256 differs")])
def test_a_failed_download_says_where_the_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def retrieve(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(UsageError, match="--questions PATH") as caught:
        load_questions("spec-bench")
    assert str(tmp_path / "questions") in str(caught.value)


@pytest.mark.skipif(not SPEC_BENCH.exists(), reason="no shared copy of Spec-Bench's questions")
def test_spec_bench_itself_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / f"spec_bench-{SPEC_BENCH_SHA256[:8]}.jsonl").write_bytes(SPEC_BENCH.read_bytes())
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path))
    found = load_questions("spec-bench")  # a file put there by hand needs no network
    assert found.sha256 == SPEC_BENCH_SHA256
    counts = {task: sum(q.task == task for q in found.questions) for task in TASKS}
    assert counts == dict.fromkeys(TASKS, 80)


def test_the_limit_is_per_task_and_goes_round_the_categories() -> None:
    questions = [
        question(1, "writing"),
        question(2, "writing"),
        question(3, "math"),
        question(4, "qa"),
        question(5, "qa"),
        question(6, "qa"),
    ]
    assert ids(select(questions, [], 2)) == [1, 3, 4, 5]
    assert ids(select(questions, ["mt_bench"], None)) == [1, 2, 3]
    assert ids(select(questions, ["qa", "mt_bench"], 1)) == [1, 4], "file order, not task order"


def test_what_cannot_be_selected_is_named() -> None:
    questions = [question(1, "qa")]
    with pytest.raises(UsageError, match=r"unknown task 'translations'; did you mean 'translation"):
        select(questions, ["translations"])
    with pytest.raises(UsageError, match="no question of task 'rag' in this set; it has: qa"):
        select(questions, ["rag"])
    with pytest.raises(UsageError, match="at least 1, not 0"):
        select(questions, [], 0)


def test_questions_open_without_torch() -> None:
    code = "import sys, specbench_kangaroo.bench.questions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, (
        "`specbench list questions` would wait for torch"
    )
