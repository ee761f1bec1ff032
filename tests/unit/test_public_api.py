"""The names of ``specbench_kangaroo``: there, quick to import, and the same in every order."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import specbench_kangaroo
from specbench_kangaroo.bench import study

ROOT = Path(__file__).parents[2]
HEAVY = "{'torch', 'transformers', 'pandas', 'numpy', 'pyarrow', 'msgspec', 'typer'}"

# What other code may have imported by then.
FIRST = [
    "",
    "import specbench_kangaroo.bench",
    "import specbench_kangaroo.bench.config",
    "from specbench_kangaroo.bench import config",
    "from specbench_kangaroo.bench.study import run as function",
    "from specbench_kangaroo import read_run",
]


def fresh(program: str) -> str:
    """What a new interpreter prints; a warning is an error there."""
    ended = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "methods")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not ended.returncode, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize("first", FIRST)
def test_run_is_the_function_whatever_was_imported_first(first: str) -> None:
    assert fresh(f"""
{first}
from specbench_kangaroo import run
import specbench_kangaroo
assert run is specbench_kangaroo.run
import specbench_kangaroo.bench.schedule
import specbench_kangaroo.bench.config as config
assert run is specbench_kangaroo.run and config is specbench_kangaroo.bench.config
from specbench_kangaroo import run as again
assert again is run
import inspect
print(inspect.signature(run))
try:
    run({{"entriess": []}})
except specbench_kangaroo.UsageError as refused:
    print(refused)
""").splitlines() == [
        str(inspect.signature(study.run)),
        "the study: unknown key of study 'entriess'; did you mean 'entries'? there are: decoding, "
        "entries, name, questions, target",
    ]


def test_importing_the_package_imports_nothing_else() -> None:
    assert fresh(f"import sys, specbench_kangaroo; print({HEAVY} & sys.modules.keys())") == "set()"


def test_reading_a_run_loads_no_torch() -> None:
    program = "import sys; from specbench_kangaroo import read_run, run, summarise, Request; {}"
    assert fresh(program.format("print('torch' in sys.modules)")) == "False"


@pytest.mark.parametrize("name", specbench_kangaroo.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(specbench_kangaroo, name)
    assert (found.__doc__ or "").strip(), f"{name} has no docstring"
    assert name in dir(specbench_kangaroo)
    assert f"``{name}``" in (specbench_kangaroo.__doc__ or ""), f"help() does not mention {name}"


def test_the_names_that_are_promised_are_public() -> None:
    promised = "run read_run summarise Method Drafter Draft TokenTree"
    assert set(promised.split()) <= set(specbench_kangaroo.__all__)
    assert fresh("from specbench_kangaroo import *; print(callable(run), Draft.__name__)") == (
        "True Draft"
    )


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match=r"'specbench_kangaroo' has no attribute 'ran'"):
        specbench_kangaroo.ran  # noqa: B018
    assert not hasattr(specbench_kangaroo, "__wrapped__"), "what inspect asks of every object"


def test_help_is_a_page_to_start_from() -> None:
    text = fresh("import specbench_kangaroo; help(specbench_kangaroo)")
    assert text.index("from specbench_kangaroo import read_run, run, summarise") < 500
    assert len((specbench_kangaroo.__doc__ or "").splitlines()) <= 45, "one page"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("'nothing.toml'", "cannot read the study nothing.toml: No such file"),
        ("3", "a study is the path of a TOML file, a mapping or a Request, not 3; give one"),
        (
            "{'decoding': {'max_new_tokens': 'many'}}",
            "the study: decoding.max_new_tokens is 'many', and must be a whole number",
        ),
        ("{'entries': [{'method': 'kangoroo'}]}", "unknown method 'kangoroo'"),
        ("Request(name=3)", "the request: "),
    ],
)
def test_what_cannot_be_used_is_one_line(given: str, told: str, tmp_path: Path) -> None:
    assert told in fresh(f"""
import os
os.chdir({str(tmp_path)!r})
from specbench_kangaroo import Request, UsageError, run
try:
    run({given})
except UsageError as refused:
    print(refused)
""")
    assert not [*tmp_path.iterdir()], "nothing is written for what cannot run"
