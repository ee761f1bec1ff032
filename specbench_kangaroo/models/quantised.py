"""Models whose weights are stored packed: which package computes with them, if it is here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from specbench_kangaroo.record.errors import UsageError

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("optimum", "gptqmodel"),
}
"""What has to be installed for each method; module and distribution have the same name.

transformers knows more methods and says itself what they lack."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How a folder's weights are packed, and the dtype that they are computed in."""

    method: str
    dtype: str | None  # as the config names it


def quantisation_of(folder: Path) -> Quantisation | None:
    """What ``config.json`` says; None for weights that are stored as they are.

    Raises:
        UsageError: a package is missing, or transformers does not know the method; nothing has
            been loaded by then.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # loading says what is wrong with it
    found = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(found, dict):
        return None
    method = str(found.get("quant_method", "bitsandbytes"))  # old bitsandbytes files name none
    _check_packages(folder, method)
    _check_known(folder, {**found, "quant_method": method})
    return Quantisation(method, config.get("dtype") or config.get("torch_dtype"))


def _check_packages(folder: Path, method: str) -> None:
    missing = [name for name in PACKAGES.get(method, ()) if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{folder} holds {method} weights, and {' and '.join(missing)} to compute with them "
            f"{'is' if len(missing) == 1 else 'are'} not installed: pip install {' '.join(missing)}"
        )


def _check_known(folder: Path, settings: Mapping[str, Any]) -> None:
    # transformers only warns, and would take packed numbers for weights.
    from transformers.quantizers.auto import (  # noqa: PLC0415
        AUTO_QUANTIZATION_CONFIG_MAPPING,
        AutoHfQuantizer,
    )

    from specbench_kangaroo.models.convert import quiet_transformers  # noqa: PLC0415

    with quiet_transformers():
        known = AutoHfQuantizer.supports_quant_method(dict(settings))
    if not known:
        raise UsageError(
            f"{folder} holds {settings['quant_method']} weights, which transformers cannot load; "
            f"it knows {', '.join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))}"
        )
