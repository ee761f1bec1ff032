"""A report as one tidy CSV table: a row per figure, for a spreadsheet or a data frame.

It holds what the JSON document holds, and takes its metrics' names from there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specbench_kangaroo.report.sheets import differing_options
from specbench_kangaroo.stats.summary import OVERALL, Summary, to_json

Row = dict[str, Any]

COLUMNS = (
    *("run", "status", "model", "questions", "baseline"),  # of the run, in every row
    *(
        "entry",
        "method",
        "options",
        "lossy",
        "task",
        "n",
        "position",
    ),  # empty where a figure is of all of them
    *("metric", "value", "low", "high"),
)
_OF_RUN = COLUMNS[:5]


def csv_text(*summaries: Summary) -> str:
    """Runs one after another under one heading."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for summary, options in zip(summaries, differing_options(summaries), strict=True):
        writer.writerows(_rows(to_json(summary), options))
    return file.getvalue()


def _rows(document: Mapping[str, Any], options: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    run = {name: document[name] for name in _OF_RUN}
    if "peak_rss_mb" in document:
        yield run | {"metric": "peak_rss_mb", "value": document["peak_rss_mb"]}
    for name, entry in document["entries"].items():
        labels = run | {"entry": name, "method": entry["method"]}
        labels |= {"options": ", ".join(options[name])}
        labels["lossy"] = "true" if entry["lossy"] else "false"
        yield from (labels | row for row in _of_entry(entry))


def _of_entry(entry: Mapping[str, Any]) -> Iterator[Row]:
    for task, part in entry["tasks"].items():
        for metric, figure in part.items():
            if metric != "n":
                yield {"task": task, "n": part["n"], "metric": metric} | figure
    yield from _by_position(entry)
    for kind in ("lossless", "sampling_check"):
        for name, value in entry.get(kind, {}).items():
            yield {"metric": f"{kind}.{name}", "value": value}
    for name in ("errors", "prompt_too_long", "excluded"):
        yield {"metric": name, "value": entry[name]}


def _by_position(entry: Mapping[str, Any]) -> Iterator[Row]:
    for item in entry.get("acceptance_by_position", ()):
        labels = {
            "task": OVERALL,
            "n": entry["tasks"][OVERALL]["n"],
            "position": item["position"],
        }
        for kind in ("marginal", "conditional"):
            yield labels | {"metric": f"acceptance_by_position.{kind}"} | item[kind]
        ctar = entry["ctar"][str(item["position"])]
        yield labels | {"metric": "ctar"} | ctar
