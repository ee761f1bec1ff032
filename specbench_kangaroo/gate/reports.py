"""A comparison for the terminal, as Markdown, and as JUnit XML.

All three say the same: every gate with its values and its limit, why the failing ones fail, what
was allowed or left out, and all tolerances.
"""

from __future__ import annotations

import html
import re
from itertools import groupby
from xml.etree import ElementTree

from rich.console import Group
from rich.text import Text

from specbench_kangaroo.gate.gates import Gate
from specbench_kangaroo.gate.regression import Comparison
from specbench_kangaroo.record.errors import counted
from specbench_kangaroo.report.documents import bold, markdown_lines
from specbench_kangaroo.report.sheets import (
    ABSENT,
    Cell,
    Column,
    Mark,
    Note,
    Section,
    Sheet,
)
from specbench_kangaroo.report.tables import section_parts

_HEADINGS = ("entry", "gate", "baseline", "candidate", "limit", "verdict")
_NUMBERS = ("baseline", "candidate", "limit")
_FORMATS = {"errors": ".0f", "lossless": ".0f", "tokens": ".1%"}
_OTHER_FORMAT = ".3f"
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def verdict(comparison: Comparison) -> str:
    """All of it in a line."""
    count = len(comparison.gates)
    failed = len(comparison.failed)
    if failed:
        return f"{'gate' if failed == 1 else 'gates'} failed: {failed} of {count}"
    return f"all {count} gates hold"


def terminal(comparison: Comparison) -> Group:
    """For :meth:`rich.console.Console.print`; the failing gates come first."""
    style = "bold red" if comparison.failed else "bold green"
    return Group(*section_parts(_section(comparison)), Text(verdict(comparison), style=style))


def markdown(comparison: Comparison) -> str:
    """GitHub-flavoured, ending in a newline."""
    section = _section(comparison)
    # An error's text may look like a tag, which a page would not show.
    notes = (bold(html.escape(note.text, quote=False), note.mark) for note in section.notes)
    blocks = [f"### Regression: {verdict(comparison)}", section.title]
    blocks += ["\n".join(markdown_lines(section.sheet)), "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(blocks) + "\n"


def junit(comparison: Comparison) -> str:
    """A test suite per entry and a test case per gate, as CI servers read them."""
    root = ElementTree.Element("testsuites", _counts("specbench compare", comparison.gates))
    said = [_title(comparison), *(note.text for note in _common_notes(comparison))]
    for entry, found in groupby(comparison.gates, key=lambda gate: gate.entry):
        gates = tuple(found)
        suite = ElementTree.SubElement(root, "testsuite", _counts(entry, gates))
        for gate in gates:
            _case(suite, gate)
        ElementTree.SubElement(suite, "system-out").text = _legal("\n".join(said))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _counts(name: str, gates: tuple[Gate, ...]) -> dict[str, str]:
    failures = sum(not gate.passed for gate in gates)
    return {"name": name, "tests": str(len(gates)), "failures": str(failures)}


def _case(suite: ElementTree.Element, gate: Gate) -> None:
    about = {"classname": f"specbench.{gate.entry}", "name": gate.name}
    case = ElementTree.SubElement(suite, "testcase", about)
    if gate.passed:
        ElementTree.SubElement(case, "system-out").text = _legal(gate.detail)
    else:
        failure = ElementTree.SubElement(case, "failure", message=_legal(gate.detail))
        failure.text = _legal(_reason(gate))


def _legal(text: str) -> str:
    """XML has no way to write most control characters, which an error's text may hold."""
    return _ILLEGAL.sub("�", text)


def _section(comparison: Comparison) -> Section:
    """The gates as a table, the failing ones first, and what is to be said under it.

    What has a line of its own is a failure's reason, and an interval, which no column has.
    """
    gates = sorted(comparison.gates, key=lambda gate: gate.passed)
    told = (Note(_reason(gate), _mark(gate)) for gate in gates if gate.change or not gate.passed)
    return Section(
        title=_title(comparison),
        sheet=Sheet(
            columns=tuple(Column(Cell(name), left=name not in _NUMBERS) for name in _HEADINGS),
            rows=tuple(_row(gate) for gate in gates),
        ),
        notes=(*told, *_common_notes(comparison)),
    )


def _row(gate: Gate) -> tuple[Cell, ...]:
    form = _FORMATS.get(gate.name, _OTHER_FORMAT)
    texts = (
        gate.entry,
        _words(gate),
        ABSENT if gate.baseline is None else format(gate.baseline, form),
        format(gate.value, form),
        f"{gate.bound.value} {gate.limit:{form}}",
        "holds" if gate.passed else "FAILED",
    )
    return tuple(Cell(text, mark=_mark(gate)) for text in texts)


def _mark(gate: Gate) -> Mark:
    return Mark.NONE if gate.passed else Mark.ALARM


def _words(gate: Gate) -> str:
    return gate.name.replace("_", " ")


def _reason(gate: Gate) -> str:
    return f"{gate.entry}, {_words(gate)}: {gate.detail}"


def _title(comparison: Comparison) -> str:
    matched = comparison.matched
    baseline, candidate = (run.manifest for run in matched.runs)
    return (
        f"{candidate.name} against {baseline.name}: {candidate.model}, "
        f"{counted(matched.prompts, 'prompt')} of {candidate.questions}"
    )


def _common_notes(comparison: Comparison) -> tuple[Note, ...]:
    """What holds for all gates: what was allowed or left out, and the tolerances."""
    allowed = comparison.tolerances
    acceptance = f"{allowed.acceptance:g} relative (mean) and absolute (by position)"
    speed = f"{allowed.speedup:g} relative, for the whole interval"
    tolerances = (
        f"tolerances: acceptance {acceptance}; tokens {allowed.tokens:g} of answers; "
        f"speed {speed if comparison.timing else 'not gated'}"
    )
    return tuple(Note(note) for note in (*comparison.notes, tolerances))
