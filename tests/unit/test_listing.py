"""``specbench list heads`` and ``list methods``: which heads there are, and who needs some."""

from __future__ import annotations

import re

import pytest

from tests.command import call


def listed(what: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert call("list", what) == 0
    return capsys.readouterr().out


def blocks(text: str) -> dict[str, str]:
    """What is listed, by the unindented line above it."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.startswith(" "):
            title = line
            found[title] = ""
        else:
            found[title] += f"{line}\n"
    return found


def test_heads_are_listed_by_the_model_that_they_fit(capsys: pytest.CaptureFixture[str]) -> None:
    found = blocks(listed("heads", capsys))
    assert re.search(r"kangaroo: .*exit layer 3, shipped", found["--model smollm2-135m"])
    vicuna = found["--model lmsys/vicuna-7b-v1.3 --revision refs/pr/4"]
    assert "kangaroo: 67.1 M parameters, exit layer 2" in vicuna
    assert "kangaroo.adapter=FOLDER, from https://" in vicuna, "they are not on the hub"
    assert "medusa.heads=FasterDecoding/medusa-vicuna-7b-v1.3" in vicuna
    assert "https://github.com/FasterDecoding/Medusa" in found["Sources"]


def test_heads_fit_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    *_, sources = (text := listed("heads", capsys)).partition("Sources\n")
    wide = [line for line in text.removesuffix(sources).splitlines() if len(line) > 80]
    assert not wide, "lines would wrap, and what is to be pasted would break"


def test_methods_say_whether_they_need_heads(capsys: pytest.CaptureFixture[str]) -> None:
    text = listed("methods", capsys)
    need = dict(re.findall(r"^(\w+): (?:.*\n)+?  (needs .*)$", text, re.MULTILINE))
    shipped = "needs draft heads, shipped for smollm2-135m; see specbench list heads"
    assert (need["kangaroo"], need["medusa"]) == (shipped, shipped)
    others = {line for name, line in need.items() if name not in ("kangaroo", "medusa")}
    assert others == {"needs no draft heads"}


def test_options_are_shown_whole_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = listed("methods", capsys)
    assert "…" not in text, "an option's name or default is cut off"
    assert " hf_generate.assistant_confidence_threshold=0.4 " in text
