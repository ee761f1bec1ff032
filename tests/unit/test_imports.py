"""Who may import whom, read from the source: nothing of the package is imported to find out.

Rooms are folders, and each may import only those below it; reports open without torch, the core
knows no method, and transformers stays behind a few modules.  CONTRIBUTING.md has the picture.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE, METHODS = "specbench_kangaroo", "specbench_methods"
HEAVY = frozenset({"torch", "transformers", "accelerate"})  # each takes seconds to import


# Which rooms each room may import.  A room is a folder of the package.
ROOMS: dict[str, frozenset[str]] = {
    "record": frozenset(),
    "machine": frozenset({"record"}),
    "engine": frozenset({"record"}),
    "models": frozenset({"engine", "machine", "record"}),
    "stats": frozenset({"record"}),
    "report": frozenset({"record", "stats"}),
    "bench": frozenset({"engine", "machine", "models", "record"}),
    "gate": frozenset({"record", "report", "stats"}),
    "tuning": frozenset({"models", "record", "report", "bench", "stats"}),
    "training": frozenset({"engine", "machine", "models", "record", "bench"}),
    "microbench": frozenset({"engine", "machine", "models", "record", "report", "bench", "stats"}),
    "cli": frozenset(
        {
            *("engine", "gate", "machine", "microbench", "models", "record", "report", "bench"),
            *("stats", "training", "tuning"),
        }
    ),
}
LIGHT_ROOMS = ("record", "machine", "models", "stats", "report", "gate", "tuning", "cli")
MOST_ENTRIES = 14  # at the top of the package, so that a reader sees all rooms at once
KNOWS_TRANSFORMERS = {
    f"{CORE}.engine.target": "registers our attention and runs a model's layers by range",
    f"{CORE}.models.load": "loads models and tokenizers from a folder, packed weights too",
    f"{CORE}.models.convert": "reads a GGUF file with transformers' own reader",
    f"{CORE}.models.shapes": "builds a model of random weights from a config",
    f"{METHODS}.hf_generate.method": "lets transformers' own generate answer, by its own config",
    f"{CORE}.training.distil": "lets the target answer prompts in batches with its own generate",
}
LOADS_METHODS = f"{CORE}.bench.registry"  # by the package's name, as a string
NAMES_A_METHOD = {
    f"{CORE}.record.schema": {"vanilla"}
}  # BASELINE, the denominator of every speedup
MEASURE_OF_BASELINE = re.compile(r"vanilla_[a-z_]+")  # a key of JSON output, fixed by its readers
BAD_NAME = re.compile(r"(^|_)(utils?|helpers?|common|misc|legacy|old|v\d+)$")


def _sources() -> dict[str, Path]:
    """Every module of both packages by its dotted name; a package goes by its own name."""
    found = {}
    for base, package in ((ROOT, CORE), (ROOT / "methods", METHODS)):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = _sources()
CORE_MODULES = sorted(name for name in SOURCES if name.split(".")[0] == CORE)
METHOD_NAMES = sorted(
    {path.stem for path in (ROOT / "methods" / METHODS).glob("[!_]*.py")}
    | {path.parent.name for path in (ROOT / "methods" / METHODS).glob("*/method.py")}
)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    names = {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
    return isinstance(node, ast.If) and ast.unparse(node.test) in names


def reached(node: ast.AST, *, in_functions: bool) -> Iterator[ast.AST]:
    """A node and all below it that runs; without ``in_functions``, that runs at import."""
    yield node
    if is_type_checking(node):
        assert isinstance(node, ast.If)
        below: list[ast.AST] = [*node.orelse]
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not in_functions:
        below = []
    else:
        below = list(ast.iter_child_nodes(node))
    for child in below:
        yield from reached(child, in_functions=in_functions)


@cache
def imports(module: str, *, in_functions: bool) -> frozenset[str]:
    """Dotted names that a module imports; ``from a import b`` counts as a.b where that exists."""
    found: set[str] = set()
    for node in reached(tree_of(module), in_functions=in_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                pytest.fail(f"{module}:{node.lineno} imports by a relative path; write it whole")
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module} | (children & SOURCES.keys())
    return frozenset(found)


def chains(module: str) -> dict[str, tuple[str, ...]]:
    """What importing ``module`` imports, at any remove, each with the chain that leads there."""
    found: dict[str, tuple[str, ...]] = {module: (module,)}
    todo = [module]
    while todo:
        current = todo.pop(0)
        parents = {current.rpartition(".")[0]} & SOURCES.keys()  # imported before their modules
        for name in sorted(imports(current, in_functions=False) | parents):
            if name not in found:
                found[name] = (*found[current], name)
                todo += [name] if name in SOURCES else []
    return found


def strings(module: str) -> Iterator[ast.Constant]:
    """String literals, those in f-strings too, but no docstrings."""
    tree = tree_of(module)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield from [node] if isinstance(node.value, str) else []


def names_method(text: str) -> set[str]:
    """The methods that a text names as a word; our own package's name does not count."""
    rest = re.sub(r"specbench[_-]kangaroo", "", text, flags=re.IGNORECASE)
    words = set(re.findall(r"[a-z0-9]+(?:_[a-z0-9]+)*", rest.lower()))
    return {name for name in METHOD_NAMES if any(f"_{name}_" in f"_{word}_" for word in words)}


def room_of(module: str) -> str:
    """The folder that a module of the core lies in; empty for the package itself."""
    return [*module.split("."), ""][1]


def test_every_room_is_listed_and_says_what_it_may_import() -> None:
    folders = {path.parent.name for path in (ROOT / CORE).glob("*/__init__.py")}
    assert folders == ROOMS.keys(), "a room was added, renamed or removed: change ROOMS"
    for room in ROOMS:
        text = ast.get_docstring(tree_of(f"{CORE}.{room}")) or ""
        assert "mport" in text, f"{CORE}/{room}/__init__.py does not say what it must not import"
    listed = {*KNOWS_TRANSFORMERS, *NAMES_A_METHOD, LOADS_METHODS} - SOURCES.keys()
    assert not listed, f"moved or renamed, so unguarded: {listed}; fix the lists in this file"
    assert METHOD_NAMES, "no built-in method was found, so no name is guarded"


def test_the_package_can_be_seen_at_one_look() -> None:
    entries = [path for path in (ROOT / CORE).iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, (
        f"{CORE} has {len(entries)} entries: find the room that a new module belongs to"
    )


@pytest.mark.parametrize("module", CORE_MODULES)
def test_a_room_imports_only_the_rooms_below_it(module: str) -> None:
    room = room_of(module)
    if not room:
        return
    for name in imports(module, in_functions=True):
        other = room_of(name) if name.split(".")[0] == CORE else ""
        assert other in {"", room, *ROOMS[room]}, (
            f"{module} imports {name}, and {room} may import {sorted(ROOMS[room]) or 'no room'} "
            "alone: hand in what it needs, or move what both need below them"
        )


def test_rooms_have_no_circle() -> None:
    left = dict(ROOMS)
    while left:
        free = [room for room, needs in left.items() if not needs & left.keys()]
        assert free, f"these rooms import each other in a circle: {sorted(left)}"
        left = {room: needs for room, needs in left.items() if room not in free}


@pytest.mark.parametrize(
    "module", [module for module in CORE_MODULES if room_of(module) in {"", *LIGHT_ROOMS}]
)
def test_reporting_and_the_command_line_start_without_torch(module: str) -> None:
    for name, chain in chains(module).items():
        assert name.split(".")[0] not in HEAVY, (
            f"importing {module} imports {name} ({' -> '.join(chain)}), so `specbench report` and "
            "`specbench --help` would wait for it; import it inside the function that needs it"
        )


@pytest.mark.parametrize("module", CORE_MODULES)
def test_the_core_does_not_import_methods(module: str) -> None:
    taken = [name for name in imports(module, in_functions=True) if name.split(".")[0] == METHODS]
    taken += [
        f"line {text.lineno}, {text.value!r}"
        for text in strings(module)
        if METHODS in str(text.value) and module != LOADS_METHODS
    ]
    assert not taken, (
        f"{module} reaches into {METHODS} ({taken}): methods import the core, never the other way "
        "round; ask the registry for a method by the name that the user gave"
    )


@pytest.mark.parametrize("module", CORE_MODULES)
def test_the_core_names_no_method(module: str) -> None:
    allowed = NAMES_A_METHOD.get(module, set())
    for text in strings(module):
        if MEASURE_OF_BASELINE.fullmatch(str(text.value)):
            continue
        named = names_method(str(text.value)) - allowed
        assert not named, (
            f"{module}:{text.lineno} names {sorted(named)} in {text.value!r}: the core treats all "
            "methods alike, so that a new one needs no change here; move this into the method, or "
            "use schema.BASELINE where the baseline is meant"
        )


def test_transformers_stays_behind_a_few_modules() -> None:
    users = {
        module
        for module in SOURCES
        if any(name.split(".")[0] == "transformers" for name in imports(module, in_functions=True))
    }
    new, gone = sorted(users - KNOWS_TRANSFORMERS.keys()), sorted(KNOWS_TRANSFORMERS.keys() - users)
    assert not new, (
        f"{new} import transformers, whose releases break what knows them: go through Target, "
        "load_model or the tokenizer, or add the module with its reason to KNOWS_TRANSFORMERS"
    )
    assert not gone, f"{gone} no longer import transformers: take them off the list"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_is_named_after_what_it_knows(module: str) -> None:
    name = module.rpartition(".")[2]
    assert not BAD_NAME.search(name), (
        f"{module}: a name like {name!r} collects what belongs together with nothing; name it "
        "after what it knows, and replace an old version instead of keeping it beside the new one"
    )
    assert ast.get_docstring(tree_of(module)), f"{module} does not say what it knows"
