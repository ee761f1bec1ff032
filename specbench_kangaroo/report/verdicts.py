"""What is said of an entry's outputs, and of the prompts that it could not be measured on.

A greedy run has lossless verdicts, a sampled one a test of token frequencies.  Outputs that a lossy
entry changed are counted, but raise no alarm: they were to be expected.
"""

from __future__ import annotations

from specbench_kangaroo.record.errors import counted
from specbench_kangaroo.report.sheets import Cell, Mark, Note
from specbench_kangaroo.stats.sampling_check import LEAST_PROMPTS, SamplingCheck
from specbench_kangaroo.stats.summary import EntrySummary


def verdict(entry: EntrySummary, baseline: str) -> Note:
    """The line under an entry's own table: its outputs, then what was left out."""
    kind = "sampling" if entry.sampling else "lossless"
    prefix = "" if entry.lossy and entry.lossless else f"{kind}: "
    words = [prefix + outputs(entry, baseline), *_left_out(entry)]
    return Note("; ".join(words), _mark(entry))


def problem(label: str, entry: EntrySummary, baseline: str) -> Note | None:
    """What a reader of one line per entry must still be told; None if all is well."""
    mark = _mark(entry)
    words = [outputs(entry, baseline)] if mark is Mark.ALARM else []
    words += _left_out(entry)
    loud = Mark.ALARM if mark is Mark.ALARM else Mark.NONE
    return Note(f"{label}: {'; '.join(words)}", loud) if words else None


def outputs(entry: EntrySummary, baseline: str) -> str:
    """The outputs against the baseline's, in words."""
    if entry.sampling is not None:
        return _frequencies(entry.sampling, baseline, lossy=entry.lossy)
    if entry.lossless is None:
        return "not judged"
    if entry.lossy:
        judged = sum(entry.lossless.values())
        differing = judged - entry.lossless["exact"]
        return f"differs on {differing} of {counted(judged, 'answer')} (lossy by choice)"
    counts = entry.lossless
    return (
        f"{counts['exact']} exact, {counted(counts['near_tie'], 'near tie')}, "
        f"{counted(counts['violation'], 'violation')}"
    )


def verdict_cell(entry: EntrySummary) -> Cell:
    """The same in few words, for a row of a table; zeros are left out."""
    lines = _short(entry)
    between = " " if entry.lossy and entry.lossless else ", "
    return Cell(between.join(lines), lines, _mark(entry))


def _short(entry: EntrySummary) -> tuple[str, ...]:
    if entry.sampling is not None:
        return (f"p = {entry.sampling.p_value:.2g}", counted(entry.sampling.prompts, "prompt"))
    if entry.lossless is None:
        return ("not judged",)
    exact, ties, violations = (entry.lossless[k] for k in ("exact", "near_tie", "violation"))
    if entry.lossy:
        return (f"{ties + violations} of {exact + ties + violations}", "differ")
    rest = [counted(n, noun) for n, noun in ((ties, "near tie"), (violations, "violation")) if n]
    return (f"{exact} exact", *rest)


def _frequencies(check: SamplingCheck, baseline: str, *, lossy: bool) -> str:
    found = f"differ from {baseline}'s" if check.alarm else f"as {baseline}'s"
    behind = counted(check.prompts, "prompt")
    if check.prompts < LEAST_PROMPTS:
        behind += ", too few for an alarm"
    if lossy:
        behind += "; lossy by choice"
    return f"token frequencies {found}, p = {check.p_value:.2g} ({behind})"


def _mark(entry: EntrySummary) -> Mark:
    """A sampled run raises an alarm or proves nothing, so it is never marked as lossless."""
    if entry.lossy:
        return Mark.LOSSY
    if entry.sampling is not None:
        return Mark.ALARM if entry.sampling.alarm else Mark.NONE
    if entry.lossless is None:
        return Mark.NONE
    return Mark.ALARM if entry.lossless["violation"] else Mark.LOSSLESS


def _left_out(entry: EntrySummary) -> list[str]:
    kinds = (
        (entry.errors, "error", None),
        (entry.prompt_too_long, "prompt too long", "prompts too long"),
        (entry.excluded, "excluded", "excluded"),
    )
    return [counted(count, noun, plural) for count, noun, plural in kinds if count]
