"""methods/README.md against the code that it shows: a tutorial that lies is worse than none."""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

METHODS = Path(__file__).parents[2] / "methods"
README = METHODS / "README.md"
BUILT_IN = METHODS / "specbench_methods" / "prompt_lookup.py"
TUTORIAL = "Worked example: prompt lookup"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block with the heading that it stands under."""

    heading: str
    language: str
    line: int
    text: str


def blocks(language: str, heading: str | None = None) -> list[Block]:
    """The README's blocks of a language, in their order; under one heading if it is given."""
    found: list[Block] = []
    current, fence, text = "", "", ""
    for number, line in enumerate(README.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if line.startswith("```"):
            if fence:
                found.append(Block(current, fence, number - text.count("\n"), text))
            fence, text = "" if fence else line[3:].strip() or "text", ""
        elif fence:
            text += line
        elif line.startswith("#"):
            current = line.strip("# \n")
    assert not fence, "a block of the README has no end"
    return [b for b in found if b.language == language and heading in (None, b.heading)]


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"line {block.line}")
def test_every_python_block_can_be_parsed(block: Block) -> None:
    try:
        ast.parse(textwrap.dedent(block.text))
    except SyntaxError as error:
        pytest.fail(f"README.md:{block.line + (error.lineno or 1) - 1}: {error.msg}")


def test_the_tutorials_steps_are_pieces_of_the_built_in_method() -> None:
    code = BUILT_IN.read_text(encoding="utf-8")
    for piece in blocks("python", TUTORIAL):
        assert f"\n{piece.text}" in code, f"README.md:{piece.line} is not in {BUILT_IN.name}"


def test_the_tutorial_leaves_nothing_of_the_built_in_method_out() -> None:
    """Nothing but imports."""
    rest = BUILT_IN.read_text(encoding="utf-8")
    for piece in blocks("python", TUTORIAL):
        rest = rest.replace(piece.text, "", 1)
    left = re.findall(r"^ *(?:class|def|METHOD) *(\w*)", rest, re.MULTILINE)
    assert not left, "show the reader what else there is"
