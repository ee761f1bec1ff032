"""The command line called from a test: exit status, the one line of a refusal, what it imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from specbench_kangaroo.cli.main import main

# A program that exits with the heavy packages that its own command line has imported, or with 0.
WITHOUT_HEAVY_IMPORTS = (
    "import sys\n"
    "from specbench_kangaroo.cli.main import main\n"
    "try: main(sys.argv[1:])\n"
    "except SystemExit as ended: assert not ended.code, ended.code\n"
    "heavy = {'torch', 'transformers', 'pandas', 'scipy', 'matplotlib'} & sys.modules.keys()\n"
    "sys.exit(str(heavy) if heavy else 0)"
)


def call(*arguments: str | Path) -> int:
    """The exit status of a command line."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line on standard error with which a command line is refused."""
    status = call(*arguments)
    shown = capsys.readouterr()
    assert status == 2, f"unusable input must exit with 2: {shown}"
    assert shown.err.startswith("error: "), shown.err
    assert shown.err.count("\n") == 1, f"an error is one line: {shown.err}"
    assert not shown.out
    return shown.err
