"""``specbench doctor``: what works on this machine."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Check versions, devices, dtypes and the cache.

    Exit status 1: one of them fails.
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from specbench_kangaroo.doctor import diagnose  # noqa: PLC0415

    findings = diagnose()
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        mark = Text("ok", style="green") if finding.ok else Text("FAILS", style="red")
        table.add_row(mark, Text(finding.name), Text(finding.detail, overflow="fold"))
    Console(highlight=False).print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
