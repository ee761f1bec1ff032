"""A profile as tables for the terminal, within 80 columns.

Knows: :class:`~specbench_kangaroo.profiling.figures.Profile`.  Does not know: how figures are made.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from specbench_kangaroo.bootstrap import Figure
from specbench_kangaroo.profiling.figures import Profile
from specbench_kangaroo.records import BASELINE
from specbench_kangaroo.reports.sheets import ABSENT, interval_text

# Label, key and format of a line.
_SPEEDS = (
    (f"speed of {BASELINE} / generate", "vanilla_over_generate", ".2f"),
    ("  without the prefill", "vanilla_over_generate_decode", ".2f"),
    (f"ms per token: {BASELINE}", "vanilla_ms_per_token", ".2f"),
    ("  generate", "generate_ms_per_token", ".2f"),
    ("  floor: weights read once", "floor_ms_per_token", ".2f"),
    ("memory bandwidth, GB/s", "bandwidth_gb_s", ".1f"),
    ("harness share of decoding", "harness_share", ".1%"),
)
_METHOD_COLUMNS = (
    ("speedup", "speedup"),
    ("mean accepted", "mean_accepted_tokens"),
    ("draft step, ms", "draft_step_ms"),
)
# Keys of the lines of a method against its peer: with the prefill, and without.
_AGAINST = (
    ("total_ms_per_token", "generate_total_ms_per_token", "over_generate"),
    ("decode_ms_per_token", "generate_decode_ms_per_token", "over_generate_decode"),
)
_CAPTION = (
    "in brackets: 95 % intervals; of ratios and ms per token by BCa bootstrap over",
    "prompts, of the others, which are medians, between order statistics",
)


def terminal(profile: Profile) -> Group:
    """Tables for :meth:`rich.console.Console.print`."""
    parts: list[RenderableType] = [_title(profile), Text(), _speeds(profile)]
    parts.append(Text(_tokens_line("generate", profile.generate_differs, profile.prompts)))
    parts += [Text(), _passes(profile), Text()]
    if profile.methods:
        parts += [_methods(profile), Text()]
    if any(method.generate_differs is not None for method in profile.methods.values()):
        parts += [*_against(profile), Text()]
    return Group(*parts, *(Text(line, style="dim") for line in _CAPTION))


def _title(profile: Profile) -> Text:
    about = profile.about
    threads = f" with {about['threads']} threads" if about["device"] == "cpu" else ""
    where = f"{about['model']}, {about['dtype']} on {about['device']}{threads}"
    how = f"{profile.prompts} prompts, {about['new_tokens']} new tokens"
    repeats = about["repeats"]
    often = "measured once" if repeats == 1 else f"measured {repeats} times"
    return Text(f"{where}\n{how}, {often}", style="bold")


def _speeds(profile: Profile) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", min_width=8)
    table.add_column()
    for label, key, form in _SPEEDS:
        # Apart, so that values stand in line where some have no interval.
        value, _, interval = _cell(profile.figures, key, form).partition(" ")
        table.add_row(label, value, interval)
    floor_ms = profile.figures["floor_ms_per_token"].value
    if plain := profile.figures.get("vanilla_ms_per_token"):
        table.add_row(f"{BASELINE} / floor", f"{plain.value / floor_ms:.2f}")
    return table


def _tokens_line(who: str, differs: int, prompts: int) -> str:
    if not differs:
        return f"{who} gave the tokens of {BASELINE} on every prompt"
    return f"{who} gave other tokens than {BASELINE} on {differs} of {prompts} prompts"


def _passes(profile: Profile) -> Table:
    """What a pass of the target costs by its rows."""
    table = _table("rows of a pass", "ms", "of one row's")
    for rows, figure in profile.verify_ms.items():
        table.add_row(str(rows), interval_text(figure), interval_text(profile.verify_ratio[rows]))
    return table


def _methods(profile: Profile) -> Table:
    table = _table("method", *(heading for heading, _ in _METHOD_COLUMNS), "other tokens")
    for name, method in profile.methods.items():
        cells = (_cell(method.figures, key, ".2f") for _, key in _METHOD_COLUMNS)
        table.add_row(name, *cells, f"{method.differs} of {profile.prompts}")
    return table


def _against(profile: Profile) -> list[RenderableType]:
    """Methods that ``generate`` has too: their times, its times, and its tokens."""
    table = _table("method", "ms per token", "generate's", "speed / its")
    lines = []
    for name, method in profile.methods.items():
        if method.generate_differs is None:
            continue
        for label, keys in zip((name, "  without the prefill"), _AGAINST, strict=True):
            table.add_row(label, *(_cell(method.figures, key, ".2f") for key in keys))
        who = f"generate by {name}"
        lines.append(Text(_tokens_line(who, method.generate_differs, profile.prompts)))
    return [Text("against transformers' own", style="bold"), table, *lines]


def _table(first: str, *headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _cell(figures: Mapping[str, Figure], key: str, form: str) -> str:
    return interval_text(figures[key], form) if key in figures else ABSENT
