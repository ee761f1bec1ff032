"""What is said of a method's outputs, and of the prompts that it could not be measured on.

A greedy run has lossless verdicts, a sampled one a test of token frequencies.  Outputs that a lossy
method changed are counted, but raise no alarm: they were to be expected.
"""

from __future__ import annotations

from specbench_kangaroo.report.sheets import Cell, Mark, Note, counted
from specbench_kangaroo.stats.sampling_check import LEAST_PROMPTS, SamplingCheck
from specbench_kangaroo.stats.summary import MethodSummary


def verdict(method: MethodSummary, baseline: str) -> Note:
    """The line under a method's own table: its outputs, then what was left out."""
    kind = "sampling" if method.sampling else "lossless"
    prefix = "" if method.lossy and method.lossless else f"{kind}: "
    words = [prefix + outputs(method, baseline), *_left_out(method)]
    return Note("; ".join(words), _mark(method))


def problem(label: str, method: MethodSummary, baseline: str) -> Note | None:
    """What a reader of one line per method must still be told; None if all is well."""
    mark = _mark(method)
    words = [outputs(method, baseline)] if mark is Mark.ALARM else []
    words += _left_out(method)
    loud = Mark.ALARM if mark is Mark.ALARM else Mark.NONE
    return Note(f"{label}: {'; '.join(words)}", loud) if words else None


def outputs(method: MethodSummary, baseline: str) -> str:
    """The outputs against the baseline's, in words."""
    if method.sampling is not None:
        return _frequencies(method.sampling, baseline, lossy=method.lossy)
    if method.lossless is None:
        return "not judged"
    if method.lossy:
        judged = sum(method.lossless.values())
        differing = judged - method.lossless["exact"]
        return f"differs on {differing} of {counted(judged, 'answer')} (lossy by choice)"
    counts = method.lossless
    return (
        f"{counts['exact']} exact, {counted(counts['near_tie'], 'near tie')}, "
        f"{counted(counts['violation'], 'violation')}"
    )


def verdict_cell(method: MethodSummary) -> Cell:
    """The same in few words, for a row of a table; zeros are left out."""
    lines = _short(method)
    between = " " if method.lossy and method.lossless else ", "
    return Cell(between.join(lines), lines, _mark(method))


def _short(method: MethodSummary) -> tuple[str, ...]:
    if method.sampling is not None:
        return (f"p = {method.sampling.p_value:.2g}", counted(method.sampling.prompts, "prompt"))
    if method.lossless is None:
        return ("not judged",)
    exact, ties, violations = (method.lossless[k] for k in ("exact", "near_tie", "violation"))
    if method.lossy:
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


def _mark(method: MethodSummary) -> Mark:
    """A sampled run raises an alarm or proves nothing, so it is never marked as lossless."""
    if method.lossy:
        return Mark.LOSSY
    if method.sampling is not None:
        return Mark.ALARM if method.sampling.alarm else Mark.NONE
    if method.lossless is None:
        return Mark.NONE
    return Mark.ALARM if method.lossless["violation"] else Mark.LOSSLESS


def _left_out(method: MethodSummary) -> list[str]:
    kinds = (
        (method.errors, "error", None),
        (method.prompt_too_long, "prompt too long", "prompts too long"),
        (method.excluded, "excluded", "excluded"),
    )
    return [counted(count, noun, plural) for count, noun, plural in kinds if count]
