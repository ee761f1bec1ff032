"""A profile as tables for the terminal, within 80 columns."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from specbench_kangaroo.microbench.estimates import PassCosts, Profile
from specbench_kangaroo.microbench.passes import ROWS
from specbench_kangaroo.record.errors import counted
from specbench_kangaroo.report.sheets import interval_text

_CAPTION = "medians; in brackets: 95 % intervals between order statistics"


def terminal(profile: Profile) -> Group:
    """Tables for :meth:`rich.console.Console.print`."""
    parts: list[RenderableType] = [_title(profile), Text(), _rates(profile)]
    for backend, costs in profile.backends.items():
        parts += [Text(), Text(f"backend {backend}", style="bold")]
        parts += [_against_floor(costs), Text(), _passes(costs)]
    return Group(*parts, Text(), Text(_CAPTION, style="dim"))


def _title(profile: Profile) -> Text:
    about = profile.about
    threads = f" with {counted(about['threads'], 'thread')}" if about["device"] == "cpu" else ""
    weights = f" ({about['weights']})" if "weights" in about else ""
    where = f"{about['model']}{weights}, {about['dtype']} on {about['device']}{threads}"
    how = f"{counted(about['sweeps'], 'sweep')} over a context of {about['context_tokens']} tokens"
    return Text(f"{where}\n{how}", style="bold")


def _rates(profile: Profile) -> Table:
    return _lines(
        ("memory bandwidth, GB/s", interval_text(profile.bandwidth_gb_s, ".1f")),
        ("matrix products, TFLOP/s", interval_text(profile.matmul_tflop_s, ".3g")),
        ("floor: weights read once, ms", interval_text(profile.floor_ms_per_token)),
    )


def _against_floor(costs: PassCosts) -> Table:
    return _lines(
        ("pass of one row, ms", interval_text(costs.verify_ms[1])),
        ("pass of one row / floor", interval_text(costs.one_row_over_floor)),
    )


def _lines(*lines: tuple[str, str]) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, min_width=len("floor: weights read once, ms"))
    table.add_column(justify="right", min_width=8)
    table.add_column()
    for label, text in lines:
        # Apart, so that values stand in line where some have no interval.
        value, _, interval = text.partition(" ")
        table.add_row(label, value, interval)
    return table


def _passes(costs: PassCosts) -> Table:
    """What a pass of the target costs by its rows; the JSON document has more of them on a GPU."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("rows of a pass", no_wrap=True)
    for heading in ("ms", "of one row's"):
        table.add_column(heading, justify="right", overflow="fold")
    for rows, estimate in costs.verify_ms.items():
        if rows in ROWS:
            ratio = costs.verify_ratio[rows]
            table.add_row(str(rows), interval_text(estimate), interval_text(ratio))
    return table
