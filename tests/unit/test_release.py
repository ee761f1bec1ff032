"""What the user gets who installs a release: built, unpacked, installed and run outside the clone.

The environment is clean but for the dependencies, which are those of the running one: a path file
leads to them, so that nothing is downloaded and torch is not installed a second time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import specbench_kangaroo
from tests.unit.test_method_readme import blocks

ROOT = Path(__file__).parents[2]
PACKAGES = {"specbench_kangaroo": ROOT, "specbench_methods": ROOT / "methods"}
PATIENCE_S = 300
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHON = "Programming Language :: Python :: 3."
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


def run(*command: str | Path, at: Path, **environment: str) -> str:
    """Standard output of a command that must succeed, without what leads to the checkout."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    child = subprocess.run(
        [str(word) for word in command],
        cwd=at,
        env=inherited | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    told = f"{' '.join(map(str, command))} failed:\n{child.stdout}{child.stderr}"
    assert child.returncode == 0, told
    return child.stdout


def build(source: Path, folder: Path, *targets: str) -> None:
    wanted = [word for target in targets for word in ("--target", target)]
    run(sys.executable, "-m", "hatchling", "build", "--directory", folder, *wanted, at=source)


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources(base: Path, *folders: str) -> set[str]:
    """Files of a checkout by their path below ``base``, without what Python leaves behind."""
    found = [path for folder in folders for path in (base / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(base)) for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout."""
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, folder, "sdist", "wheel")
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist as the user unpacks it."""
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(only(built, "*.tar.gz"), folder)
    return only(folder, "*")


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of an environment with the wheel and the plug-in package of methods/README.md."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    site = only(folder, "lib/python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    plugin = tmp_path_factory.mktemp("plugin")
    for language, name in (("python", "repeat_last.py"), ("toml", "pyproject.toml")):
        (block,) = blocks(language, "As a package of your own")
        (plugin / name).write_text(block.text, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    # The dependencies' folder may hold an installed copy of this very version.
    pip += ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    run(*pip, only(built, "*.whl"), plugin, at=plugin)
    return folder / "bin"


def test_the_wheel_holds_both_packages_and_nothing_else(built: Path) -> None:
    names = names_in(only(built, "*.whl"))
    information = f"specbench_kangaroo-{specbench_kangaroo.__version__}.dist-info"
    packaged = {name for name in names if not name.startswith(information)}
    wanted = set().union(*(sources(base, package) for package, base in PACKAGES.items()))
    assert packaged == wanted, (
        f"missing in the wheel: {sorted(wanted - packaged)}; "
        f"no part of a package: {sorted(packaged - wanted)}"
    )
    for name in (
        "specbench_kangaroo/py.typed",
        "specbench_methods/py.typed",
        "specbench_kangaroo/bench/builtin_questions.jsonl",
        "specbench_kangaroo/report/templates/report.html.j2",
        "specbench_methods/weights/smollm2-135m/kangaroo.safetensors",
        f"{information}/licenses/LICENSE",
        f"{information}/entry_points.txt",
    ):
        assert name in names, f"an installed copy lacks {name}"


def test_the_sdist_holds_what_building_and_testing_need(unpacked: Path) -> None:
    folders = ("specbench_kangaroo", "methods", "tests", "docs", "results/reference")
    packed, wanted = sources(unpacked, *folders), sources(ROOT, *folders)
    assert packed == wanted, f"missing: {sorted(wanted - packed)}, new: {sorted(packed - wanted)}"
    top = "CHANGELOG.md CITATION.cff CONTRIBUTING.md LICENSE Makefile README.md constraints.txt"
    needed = (*top.split(), "pyproject.toml", "notebooks/analysis.ipynb")
    missing = [name for name in needed if not (unpacked / name).is_file()]
    assert not missing, f"the user who unpacks the sdist lacks {missing}"


def test_a_wheel_from_the_sdist_is_the_same_wheel(built: Path, unpacked: Path) -> None:
    build(unpacked, unpacked / "dist", "wheel")
    ours, theirs = only(built, "*.whl"), only(unpacked, "dist/*.whl")
    assert names_in(theirs) == names_in(ours), "who builds from the sdist gets another package"


def test_tests_run_from_the_sdist(unpacked: Path) -> None:
    names = ("test_questions.py", "test_method_readme.py")
    files = [f"tests/unit/{name}" for name in names]
    run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files, at=unpacked)


def test_the_installed_command_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    find = "import sys, importlib.util as u; [print(u.find_spec(n).origin) for n in sys.argv[1:]]"
    found = run(installed / "python", "-c", find, *PACKAGES, "repeat_last", at=tmp_path)
    for path in found.splitlines():
        assert Path(path).is_relative_to(installed.parent), f"imported from {path}"
    specbench = installed / "specbench"
    version = run(specbench, "--version", at=tmp_path)
    assert version == f"specbench-kangaroo {specbench_kangaroo.__version__}\n"
    assert "Usage: specbench" in run(specbench, "--help", at=tmp_path)
    lines = run(specbench, "list", "questions", "--questions", "builtin", at=tmp_path).splitlines()
    assert len(lines) == 49, "the built-in questions and a line that counts them"


def test_the_installed_command_lists_methods_and_a_plug_in(installed: Path, tmp_path: Path) -> None:
    shown = run(installed / "specbench", "list", "methods", at=tmp_path)
    assert re.search("^kangaroo: ", shown, re.MULTILINE), shown
    assert "repeat_last: Guess that the last token comes again." in shown.splitlines()
    assert "repeat_last.times=1" in shown


def test_the_installed_command_writes_a_page_with_its_template(
    installed: Path, tmp_path: Path
) -> None:
    golden = ROOT / "tests" / "unit" / "golden" / "run"
    page = tmp_path / "page.html"
    flags = ("--format", "html", "--output", page)
    run(installed / "specbench", "report", golden, *flags, at=tmp_path)
    assert "<table" in page.read_text(encoding="utf-8")


def test_python_versions_are_those_that_ci_tests() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    named = [c.removeprefix(PYTHON) for c in PROJECT["classifiers"] if c.startswith(PYTHON)]
    assert [f"3.{minor}" for minor in named] == tested, "classifiers and CI name other versions"
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert all(version in allowed for version in tested)
    assert "3.10" not in allowed, "the code needs tomllib and StrEnum"


def test_the_citation_file_is_complete() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == specbench_kangaroo.__version__
    assert citation["license"] == PROJECT["license"]
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year", "url"} <= reference.keys(), reference
        people = reference["authors"]
        assert all({"given-names", "family-names"} <= person.keys() for person in people), people
        numbers = {item["value"] for item in reference.get("identifiers", ())}
        assert all(value.removeprefix("arXiv:") in reference["url"] for value in numbers)


def test_every_paper_that_the_documents_name_can_be_cited() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = set(ARXIV.findall("".join(page.read_text(encoding="utf-8") for page in pages)))
    cited = set(ARXIV.findall((ROOT / "CITATION.cff").read_text(encoding="utf-8")))
    assert len(named) > 1, "the documents name no paper but Kangaroo's"
    assert named <= cited, f"CITATION.cff lacks {sorted(named - cited)}"
    assert {"2404.18911", "2401.07851"} <= cited, "Kangaroo and Spec-Bench"
