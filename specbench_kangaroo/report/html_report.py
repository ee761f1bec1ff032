"""A report as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from specbench_kangaroo.record.schema import Manifest
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.report.figures.catalogue import figures_of
from specbench_kangaroo.report.sections import document_of
from specbench_kangaroo.report.sheets import Mark
from specbench_kangaroo.stats.summary import Summary, summarise

# Beside its colour a mark has a sign, a word for those who hear the page, and an explanation.
_SIGNS = {
    Mark.FASTER: ("▲", "faster", "surely above 1, among all cells of its table"),
    Mark.SLOWER: ("▼", "slower", "surely below 1, among all cells of its table"),
    Mark.LOSSLESS: ("✓", "lossless", "every answer is the baseline's, but for near ties"),
    Mark.LOSSY: ("≈", "lossy", "answers may differ from the baseline's by choice"),
    Mark.ALARM: ("✗", "alarm", "claims to be lossless, and is not"),
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_REFERENCE = re.compile(r'(\bid="|href="#|url\(#)')


@dataclass(frozen=True, slots=True)
class Illustrated:
    """What a page needs of a run, which itself may be large and is not needed any more.

    Attributes:
        summary: of the run.
        anchor: its place in the page.
        drawings: its figures as SVG, by name.
        facts: what the manifest says of its origin: titled lists of names and values.
    """

    summary: Summary
    anchor: str
    drawings: Mapping[str, Markup]
    facts: Mapping[str, Mapping[str, str]]


def illustrated(run: Run, *, anchor: str) -> Illustrated:
    """A run's summary, figures and origin; ``anchor`` is unique among the runs of a page."""
    summary = summarise(run)
    drawings = {
        name.replace("_", " "): inline_svg(figure, f"{anchor}-{name}")
        for name, figure in figures_of(run, summary).items()
    }
    facts = {
        title: {name: _written(value) for name, value in values.items()}
        for title, values in _facts(run.manifest)
    }
    return Illustrated(summary, anchor, drawings, facts)


def page(*runs: Illustrated) -> str:
    """The page of one run or several, ending in a newline."""
    summaries = [run.summary for run in runs]
    document = document_of(summaries, with_details=True, with_published=True)
    environment = Environment(
        loader=PackageLoader("specbench_kangaroo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        chapters=list(zip(runs, document.reports, strict=True)),
        side_by_side=document.side_by_side,
        signs={mark.value: sign for mark, sign in _SIGNS.items()},
    )


def inline_svg(figure: Figure, name: str) -> Markup:
    """A figure as an SVG element whose ids begin with ``name``; the same figure, the same text.

    Nothing in it applies to the page around it: its style sheet is a rule of the page's own.
    """
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata=_NO_METADATA)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = _REFERENCE.sub(rf"\g<1>{name}-", svg)
    return Markup(svg)  # safe: matplotlib escapes the texts that it draws


def _facts(manifest: Manifest) -> Iterator[tuple[str, Mapping[str, Any]]]:
    about = ("command", "created", "status", "model", "questions", "baseline", "schema_version")
    yield "Run", {name: getattr(manifest, name) for name in about}
    for name, record in manifest.entries.items():
        values = dict(record.options)
        if record.weights_sha256 is not None:
            values["weights_sha256"] = record.weights_sha256
        if values:
            of = name if name == record.method else f"{name} ({record.method})"
            yield f"Options of {of}", values
    yield "Settings", manifest.settings
    yield "Environment", manifest.environment
    yield "SHA-256", manifest.hashes


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
