"""A profile as tables for the terminal, within 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from specbench_kangaroo.microbench.figures import EngineProfile, MethodProfile, Profile
from specbench_kangaroo.microbench.verify_cost import ROWS
from specbench_kangaroo.models.shapes import LATENCY_ONLY
from specbench_kangaroo.record.schema import BASELINE
from specbench_kangaroo.report.sheets import ABSENT, counted, interval_text
from specbench_kangaroo.stats.bootstrap import Estimate

# Label, key and format of a line.
_SPEEDS = (
    (f"speed of {BASELINE} / generate", "vanilla_over_generate", ".2f"),
    ("  without the prefill", "vanilla_over_generate_decode", ".2f"),
    (f"ms per token: {BASELINE}", "vanilla_ms_per_token", ".2f"),
    ("  generate", "generate_ms_per_token", ".2f"),
    ("  floor: weights read once", "floor_ms_per_token", ".2f"),
    (f"{BASELINE} / floor", "vanilla_over_floor", ".2f"),
    ("harness share of decoding", "harness_share", ".1%"),
)
_MACHINE = (
    ("memory bandwidth, GB/s", "bandwidth_gb_s", ".1f"),
    ("matrix products, TFLOP/s", "matmul_tflop_s", ".3g"),
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
    parts: list[RenderableType] = [_title(profile), Text()]
    for number, (backend, engine) in enumerate(profile.engines.items()):
        if len(profile.engines) > 1:
            parts += [Text(f"backend {backend}", style="bold")]
        parts += [*_engine(profile, engine, is_first=number == 0), Text()]
    return Group(*parts, *(Text(line, style="dim") for line in _captions(profile)))


def _captions(profile: Profile) -> Iterator[str]:
    yield from _CAPTION
    if profile.latency_only:
        yield f"{LATENCY_ONLY}; what drafts are worth is not measured"


def _title(profile: Profile) -> Text:
    about = profile.about
    threads = f" with {counted(about['threads'], 'thread')}" if about["device"] == "cpu" else ""
    what = f"{about['model']} ({LATENCY_ONLY})" if profile.latency_only else about["model"]
    where = f"{what}, {about['dtype']} on {about['device']}{threads}"
    how = f"{profile.prompts} prompts, {about['new_tokens']} new tokens"
    repeats = about["repeats"]
    often = "measured once" if repeats == 1 else f"measured {repeats} times"
    return Text(f"{where}\n{how}, {often}", style="bold")


def _engine(profile: Profile, engine: EngineProfile, *, is_first: bool) -> Iterator[RenderableType]:
    """One backend's tables; what is the machine's own stands with the first."""
    yield _speeds(profile, engine, is_first=is_first)
    if engine.generate_differs is not None:
        yield Text(_tokens_line("generate", engine.generate_differs, profile.prompts))
    yield Text()
    yield _passes(engine)
    if engine.methods:
        yield Text()
        yield _drafts(engine) if profile.latency_only else _methods(profile, engine)
    if any(method.generate_differs is not None for method in engine.methods.values()):
        yield Text()
        yield from _against(profile, engine)


def _speeds(profile: Profile, engine: EngineProfile, *, is_first: bool) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", min_width=8)
    table.add_column()
    found = {**profile.limits, **engine.estimates}
    lines = [*_SPEEDS, *(_MACHINE if is_first else ())]
    over = next(iter(profile.engines))
    if not is_first:
        lines.insert(0, (f"speed of {BASELINE} / {over}'s", f"{BASELINE}_over_{over}", ".2f"))
    for label, key, form in lines:
        # Apart, so that values stand in line where some have no interval.
        value, _, interval = _cell(found, key, form).partition(" ")
        table.add_row(label, value, interval)
    return table


def _tokens_line(who: str, differs: int, prompts: int) -> str:
    if not differs:
        return f"{who} gave the tokens of {BASELINE} on every prompt"
    return f"{who} gave other tokens than {BASELINE} on {differs} of {prompts} prompts"


def _passes(engine: EngineProfile) -> Table:
    """What a pass of the target costs by its rows; the JSON document has more of them on a GPU."""
    table = _table("rows of a pass", "ms", "of one row's")
    for rows, figure in engine.verify_ms.items():
        if rows in ROWS:
            ratio = engine.verify_ratio[rows]
            table.add_row(str(rows), interval_text(figure), interval_text(ratio))
    return table


def _drafts(engine: EngineProfile) -> Table:
    """What one more drafted token costs, of heads that nobody has trained."""
    table = _table("untrained draft", "draft step, ms")
    for name, method in engine.methods.items():
        table.add_row(name, _cell(method.estimates, "draft_step_ms", ".2f"))
    return table


def _methods(profile: Profile, engine: EngineProfile) -> Table:
    table = _table("method", *(heading for heading, _ in _METHOD_COLUMNS), "other tokens")
    for name, method in engine.methods.items():
        cells = (_cell(method.estimates, key, ".2f") for _, key in _METHOD_COLUMNS)
        table.add_row(name, *cells, f"{method.differs} of {profile.prompts}")
    return table


def _against(profile: Profile, engine: EngineProfile) -> list[RenderableType]:
    """Methods that ``generate`` has too: their times, its times, and its tokens."""
    table = _table("method", "ms per token", "generate's", "speed / its")
    lines = []
    for name, method in engine.methods.items():
        if method.generate_differs is None:
            continue
        _add_against(table, name, method)
        who = f"generate by {name}"
        lines.append(Text(_tokens_line(who, method.generate_differs, profile.prompts)))
    return [Text("against transformers' own", style="bold"), table, *lines]


def _add_against(table: Table, name: str, method: MethodProfile) -> None:
    for label, keys in zip((name, "  without the prefill"), _AGAINST, strict=True):
        table.add_row(label, *(_cell(method.estimates, key, ".2f") for key in keys))


def _table(first: str, *headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _cell(estimates: Mapping[str, Estimate], key: str, form: str) -> str:
    return interval_text(estimates[key], form) if key in estimates else ABSENT
