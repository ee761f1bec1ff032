"""The HTML page: one file, safe, readable without colours, and the same in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from specbench_kangaroo.record.schema import Resolved
from specbench_kangaroo.record.writer import Run, read_run
from specbench_kangaroo.report.html_report import illustrated, inline_svg, page
from tests.changes import replace

RUN = Path(__file__).parent / "golden" / "run"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FIRST_BAR = (0x56, 0xB4, 0xE9)  # the fill of the first method's bars


class Elements(HTMLParser):
    """Every start tag with its attributes, and whether each is closed."""

    VOID = frozenset({"meta", "br", "wbr", "link", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


@pytest.fixture(scope="module")
def run() -> Run:
    return read_run(RUN)


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    """A page of two runs, which are the same one."""
    return page(illustrated(run, anchor="run-1"), illustrated(run, anchor="run-2"))


@pytest.fixture(scope="module")
def elements(text: str) -> Elements:
    return Elements(text)


# --- the file ---


def test_the_page_is_well_formed_and_says_what_it_is(text: str, elements: Elements) -> None:
    assert text.startswith("<!DOCTYPE html>\n")
    assert elements.open == [], f"never closed: {elements.open}"
    assert ("html", {"lang": "en"}) in elements.found
    assert "<title>Speculative decoding: golden_run, golden_run</title>" in text
    assert 'name="viewport"' in text


def test_the_page_needs_no_network(text: str, elements: Elements) -> None:
    loading = {"src", "srcset", "href", "xlink:href", "action", "data", "poster"}
    for tag, attributes in elements.found:
        assert tag not in {"link", "img", "iframe", "object", "image", "base"}, tag
        for name in loading & attributes.keys():
            assert (attributes[name] or "").startswith("#"), f"<{tag} {name}={attributes[name]}>"
    assert re.findall(r"url\((?!#)|@import|@font-face", text) == []
    assert "default-src 'none'" in text, "the browser itself would refuse to load anything"


def test_ids_are_unique_and_what_is_referred_to_exists(text: str, elements: Elements) -> None:
    ids = Counter(a["id"] for _, a in elements.found if "id" in a)
    twice = [name for name, count in ids.items() if count > 1]
    assert not twice, f"one figure would be drawn with the parts of another: {twice[:5]}"
    referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in referred} <= ids.keys()


def test_both_runs_are_there_whole(elements: Elements) -> None:
    assert elements.count("svg") >= 2
    assert elements.count("svg") % 2 == 0
    assert [a["id"] for tag, a in elements.found if tag == "section" and "id" in a] == [
        "run-1",
        "run-2",
    ]
    assert elements.count("details") == 2 * (1 + 3), "a manifest, and one per method"


def test_the_page_is_the_same_each_time(run: Run, text: str) -> None:
    for name, svg in illustrated(run, anchor="run-1").drawings.items():
        assert svg in text, f"another drawing of {name}"


def test_a_figure_brings_no_style_into_the_page(text: str) -> None:
    assert text.count("<style") == 1
    svg = inline_svg(Figure(figsize=(1, 1)), "one")
    assert svg.startswith("<svg")
    assert "<metadata" not in svg, "it would name matplotlib's version"


# --- what it says ---


def test_texts_of_a_run_are_never_taken_for_html(run: Run) -> None:
    evil = '<script>alert("x")</script>'
    manifest = replace(
        run.manifest, name=evil, model=evil, command=evil, resolved=Resolved(dtype=evil)
    )
    text = page(illustrated(replace(run, manifest=manifest), anchor="run-1"))
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;") >= 4
    assert Elements(text).count("script") == 1, "the page's own"


def test_no_verdict_is_told_by_colour_alone(text: str) -> None:
    signs = dict(re.findall(r'<span class="(\w+)" title="[^"]+"><span [^>]+>(.)</span>', text))
    assert signs == {
        "faster": "▲",
        "slower": "▼",
        "lossless": "✓",
        "lossy": "≈",
        "alarm": "✗",
    }


def test_only_a_whole_interval_is_coloured(text: str) -> None:
    for mark, low, high in re.findall(
        r'class="(faster|slower)".{0,300}?<small>([\d.]+)–([\d.]+)</small>', text
    ):
        assert float(low) >= 1 if mark == "faster" else float(high) <= 1


def test_it_is_written_how_the_run_was_made(text: str) -> None:
    for words in (
        "specbench run --method medusa --method kangaroo --method lookahead --limit 3",
        "2026-11-01T00:00:00Z",
        '<th scope="row">schema_version</th><td>1</td>',
        '<th scope="row">threshold</th><td>0.6</td>',
        "bc452a7a5a310a4547e7b479c07d3d7a92144298ce8dee5effd812d9f4fb7489",
        "a361fdd5e99d3d24edcb249f89e4b1d3fd225151",
        "smollm2-135m in bfloat16 on NVIDIA H200",
    ):
        assert words in text, f"{words} is not on the page"


# --- in a browser ---


def chromium(path: Path, *flags: str) -> str:
    """What Chromium writes about a page."""
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *(
            "--disable-extensions",
            "--hide-scrollbars",
            f"--user-data-dir={path.parent / 'profile'}",
        ),
        *("--host-resolver-rules=MAP * ~NOTFOUND", *flags, path.as_uri()),
    ]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        return child.communicate(timeout=240)[0]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # its own group: a browser leaves children behind
        raise


needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")

CLICKS = """
<script>
const seen = [];
const table = document.querySelectorAll(".scroll table")[1];
const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].dataset.key);
for (const column of [1, 1, 0]) {
  table.tHead.rows[0].cells[column].querySelector("button").click();
  seen.push(order());
}
const root = document.documentElement;
const wide = root.scrollWidth > root.clientWidth;
document.body.dataset.seen = JSON.stringify({ seen, wide, width: root.clientWidth });
</script>
</body>
"""


@needs_chromium
def test_tables_can_be_sorted_and_the_page_fits_a_phone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", CLICKS), encoding="utf-8")
    dom = chromium(path, "--window-size=390,800", "--dump-dom")
    assert dom.count("<svg") == text.count("<svg")
    (noted,) = re.findall(r'data-seen="([^"]+)"', dom)
    found = json.loads(noted.replace("&quot;", '"'))
    fast = ["medusa (lossy)", "kangaroo", "vanilla", "lookahead"]
    assert found["seen"] == [fast, fast[::-1], sorted(fast)]
    assert found["width"] <= 500
    assert not found["wide"], "only tables and figures may be wider than a phone, in their boxes"


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_tables_and_figures(text: str, tmp_path: Path, dark: bool) -> None:
    path, shot = tmp_path / "page.html", tmp_path / "shot.png"
    path.write_text(text, encoding="utf-8")
    flags = ["--blink-settings=preferredColorScheme=0", "--force-dark-mode"] if dark else []
    chromium(path, "--window-size=1000,2600", f"--screenshot={shot}", *flags)
    pixels = (imread(shot)[:, :, :3] * 255).round().astype(int)  # (H, W, RGB)
    assert pixels.shape[:2] == (2600, 1000)
    page_colour = pixels[4, 4]
    assert (page_colour.mean() < 50) == dark, f"the page's background is {page_colour}"
    table, rest = pixels[:1200], pixels[1200:]
    assert np.abs(table - page_colour).sum(axis=2).max() > 300, "no text is drawn"
    bars = (np.abs(rest - FIRST_BAR).sum(axis=2) < 8).sum()
    assert bars > 1000, "no bar of a figure is drawn"
    assert (rest.min(axis=2) == 255).sum() > 50_000, "figures stand on white, in the dark too"
