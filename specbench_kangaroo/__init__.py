"""Benchmark harness for speculative decoding: one engine, cache, acceptance rule and loop.

A run compares methods with vanilla decoding on the same prompts, and leaves a folder of records::

    from specbench_kangaroo import read_run, run, summarise

    study = {
        "target": {"model": "smollm2-135m"},  # or any Hugging Face id, or a local folder
        "questions": {"source": "builtin", "tasks": ["qa", "rag"], "limit": 1},
        "decoding": {"max_new_tokens": 32},
        "entries": [{"method": "prompt_lookup"}],  # vanilla runs beside it
    }
    run(study, output="results/first")

    found = read_run("results/first")  # now, or at any later time
    print(found.steps.groupby("entry")["accepted"].mean())  # pandas frames
    speedup = summarise(found).overall("prompt_lookup")["speedup"]
    print(f"{speedup.value:.2f} times as fast, 95 % interval {speedup.low:.2f}-{speedup.high:.2f}")

Runs:
    ``run`` makes one, from what a study file has, and returns it.  ``read_run`` reads a folder as a
    ``Run``: its manifest, and frames of generations, steps and verdicts.  ``summarise`` makes a
    ``Summary`` of it, every measure with its interval.  ``Request`` is a study with types.  A
    ``UsageError`` is one line that says what cannot be used and how to fix it.

Methods of one's own:
    A ``Method`` is loaded once and starts a ``Drafter`` for each text, which proposes a ``Draft``
    (a ``TokenTree`` and why it ends, an ``ExitReason``) and is told what the target ``Verified``.
    ``PlainMethod`` and ``StatelessMethod`` are bases that have the rest; ``MethodOptions`` and
    ``option`` declare what a user may set, ``Needs`` which hidden states are wanted.  ``Session``,
    ``Target`` and ``TargetOutput`` are what they are given.

Importing this package imports nothing else: torch comes with the first name that needs it.
Other modules are not part of this interface and may change.  Read on in ``docs/python.md``,
``docs/study.md`` (all keys of a study), ``docs/measures.md`` and ``methods/README.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbench_kangaroo.bench.study import run
    from specbench_kangaroo.engine.method import (
        Draft,
        Drafter,
        Method,
        MethodOptions,
        PlainMethod,
        Session,
        StatelessMethod,
        Verified,
        option,
    )
    from specbench_kangaroo.engine.target import Needs, Target, TargetOutput
    from specbench_kangaroo.engine.tree import TokenTree
    from specbench_kangaroo.record.errors import UsageError
    from specbench_kangaroo.record.reader import Run, read_run
    from specbench_kangaroo.record.request import Request
    from specbench_kangaroo.record.schema import ExitReason
    from specbench_kangaroo.stats.summary import Summary, summarise

__version__ = "0.1.0"

__all__ = [
    "Draft",
    "Drafter",
    "ExitReason",
    "Method",
    "MethodOptions",
    "Needs",
    "PlainMethod",
    "Request",
    "Run",
    "Session",
    "StatelessMethod",
    "Summary",
    "Target",
    "TargetOutput",
    "TokenTree",
    "UsageError",
    "Verified",
    "option",
    "read_run",
    "run",
    "summarise",
]

_HOMES = {
    "bench.study": ("run",),
    "engine.method": (
        *("Draft", "Drafter", "Method", "MethodOptions", "PlainMethod", "Session"),
        *("StatelessMethod", "Verified", "option"),
    ),
    "engine.target": ("Needs", "Target", "TargetOutput"),
    "engine.tree": ("TokenTree",),
    "record.errors": ("UsageError",),
    "record.reader": ("Run", "read_run"),
    "record.request": ("Request",),
    "record.schema": ("ExitReason",),
    "stats.summary": ("Summary", "summarise"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # to a type checker, it would make every other name exist

    def __getattr__(name: str) -> Any:
        """What is imported when it is first asked for."""
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
