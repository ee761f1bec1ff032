"""A comparison for the terminal, as Markdown, and as JUnit XML.

All three say the same: every gate with its values and its limit, why the failing ones fail, what
was allowed or left out, and all tolerances.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import groupby
from xml.etree import ElementTree

from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from specbench_kangaroo.gate.gates import Gate
from specbench_kangaroo.gate.regression import Comparison
from specbench_kangaroo.report.sheets import ABSENT, counted

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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for heading in _HEADINGS:
        justify: JustifyMethod = "right" if heading in _NUMBERS else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    for gate in _failing_first(comparison):
        table.add_row(*_cells(gate), style=None if gate.passed else "red")
    parts: list[RenderableType] = [Text(_title(comparison), style="bold"), table]
    for gate in _told(comparison):
        parts.append(Text(_reason(gate), style="" if gate.passed else "red"))
    parts += [Text(note) for note in comparison.notes]
    parts.append(Text(_tolerances(comparison), style="dim"))
    parts.append(Text(verdict(comparison), style="bold red" if comparison.failed else "bold green"))
    return Group(*parts)


def markdown(comparison: Comparison) -> str:
    """GitHub-flavoured, ending in a newline."""
    rows = [list(_HEADINGS), ["---:" if name in _NUMBERS else "---" for name in _HEADINGS]]
    for gate in _failing_first(comparison):
        cells = _cells(gate)
        rows.append([*cells[:-1], cells[-1] if gate.passed else f"**{cells[-1]}**"])
    blocks = [f"### Regression: {verdict(comparison)}", _title(comparison)]
    blocks.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    told = _told(comparison)
    lines = [_reason(gate) if gate.passed else f"**{_reason(gate)}**" for gate in told]
    lines += [*comparison.notes, _tolerances(comparison)]
    # An error's text may look like a tag, which a page would not show.
    blocks.append("\n".join(f"- {html.escape(line, quote=False)}" for line in lines))
    return "\n\n".join(blocks) + "\n"


def junit(comparison: Comparison) -> str:
    """A test suite per entry and a test case per gate, as CI servers read them."""
    root = ElementTree.Element(
        "testsuites",
        name="specbench compare",
        tests=str(len(comparison.gates)),
        failures=str(len(comparison.failed)),
    )
    for entry, gates in groupby(comparison.gates, key=lambda gate: gate.entry):
        _suite(root, comparison, entry, list(gates))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(
    root: ElementTree.Element, comparison: Comparison, entry: str, gates: list[Gate]
) -> None:
    failures = sum(not gate.passed for gate in gates)
    suite = ElementTree.SubElement(
        root, "testsuite", name=entry, tests=str(len(gates)), failures=str(failures)
    )
    for gate in gates:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"specbench.{entry}", name=gate.name
        )
        if gate.passed:
            ElementTree.SubElement(case, "system-out").text = _legal(gate.detail)
        else:
            failure = ElementTree.SubElement(case, "failure", message=_legal(gate.detail))
            failure.text = _legal(_reason(gate))
    said = [_title(comparison), *comparison.notes, _tolerances(comparison)]
    ElementTree.SubElement(suite, "system-out").text = _legal("\n".join(said))


def _legal(text: str) -> str:
    """XML has no way to write most control characters, which an error's text may hold."""
    return _ILLEGAL.sub("�", text)


def _told(comparison: Comparison) -> list[Gate]:
    """What has a line of its own: a failure's reason, and an interval, which no column has."""
    return [gate for gate in _failing_first(comparison) if not gate.passed or gate.change]


def _failing_first(comparison: Comparison) -> Iterator[Gate]:
    yield from comparison.failed
    yield from (gate for gate in comparison.gates if gate.passed)


def _cells(gate: Gate) -> list[str]:
    form = _FORMATS.get(gate.name, _OTHER_FORMAT)
    baseline = ABSENT if gate.baseline is None else format(gate.baseline, form)
    limit = f"{gate.bound.value} {gate.limit:{form}}"
    outcome = "holds" if gate.passed else "FAILED"
    return [gate.entry, _words(gate), baseline, format(gate.value, form), limit, outcome]


def _words(gate: Gate) -> str:
    return gate.name.replace("_", " ")


def _reason(gate: Gate) -> str:
    return f"{gate.entry}, {_words(gate)}: {gate.detail}"


def _title(comparison: Comparison) -> str:
    return (
        f"{comparison.candidate} against {comparison.baseline}: {comparison.model}, "
        f"{counted(comparison.prompts, 'prompt')} of {comparison.questions}"
    )


def _tolerances(comparison: Comparison) -> str:
    allowed = comparison.tolerances
    acceptance = f"{allowed.acceptance:g} relative (mean) and absolute (by position)"
    speed = f"{allowed.speedup:g} relative, for the whole interval"
    return (
        f"tolerances: acceptance {acceptance}; tokens {allowed.tokens:g} of answers; "
        f"speed {speed if comparison.timing else 'not gated'}"
    )
