"""A report as one tidy CSV table: a row per figure, for a spreadsheet or a data frame.

It holds what the JSON document holds, and takes its metrics' names from there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from specbench_kangaroo.stats.summary import OVERALL, Summary, to_json

Row = dict[str, Any]

COLUMNS = (
    *("run", "status", "model", "questions", "baseline"),  # of the run, in every row
    *("method", "lossy", "task", "n", "position"),  # empty where a figure is of all of them
    *("metric", "value", "low", "high"),
)
_OF_RUN = COLUMNS[:5]


def csv_text(*summaries: Summary) -> str:
    """Runs one after another under one heading."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for summary in summaries:
        writer.writerows(_rows(to_json(summary)))
    return file.getvalue()


def _rows(document: Mapping[str, Any]) -> Iterator[Row]:
    run = {name: document[name] for name in _OF_RUN}
    if "peak_rss_mb" in document:
        yield run | {"metric": "peak_rss_mb", "value": document["peak_rss_mb"]}
    for name, method in document["methods"].items():
        labels = run | {"method": name, "lossy": "true" if method["lossy"] else "false"}
        yield from (labels | row for row in _of_method(method))


def _of_method(method: Mapping[str, Any]) -> Iterator[Row]:
    for task, part in method["tasks"].items():
        for metric, figure in part.items():
            if metric != "n":
                yield {"task": task, "n": part["n"], "metric": metric} | figure
    yield from _by_position(method)
    for kind in ("lossless", "sampling_check"):
        for name, value in method.get(kind, {}).items():
            yield {"metric": f"{kind}.{name}", "value": value}
    for name in ("errors", "prompt_too_long", "excluded"):
        yield {"metric": name, "value": method[name]}


def _by_position(method: Mapping[str, Any]) -> Iterator[Row]:
    for item in method.get("acceptance_by_position", ()):
        labels = {
            "task": OVERALL,
            "n": method["tasks"][OVERALL]["n"],
            "position": item["position"],
        }
        for kind in ("marginal", "conditional"):
            yield labels | {"metric": f"acceptance_by_position.{kind}"} | item[kind]
        ctar = method["ctar"][str(item["position"])]
        yield labels | {"metric": "ctar"} | ctar
