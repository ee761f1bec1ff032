"""A pretended accelerator: tensors that say they are elsewhere, and complain as a GPU's would.

What runs here meets the rules of a second device without having one: tensors of two devices do
not mix, and reading a value on the host is counted, as on a GPU it waits for all that was launched.
Values are computed on the CPU, so that they can be compared.  The device's name is ``meta``, the
one name whose tensors torch can pass around without a driver; no meta kernel is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

FAR = torch.device("meta")
_CPU = torch.device("cpu")
# On a GPU too, indices may lie on the host, and a copy is what brings tensors across.
_INDEXED = {"aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}
_COPIES = {"aten::copy_", "aten::_to_copy"}
_FROM_DATA = (torch.tensor, torch.as_tensor)
_BY_INDEX = (Tensor.__getitem__, Tensor.__setitem__)


class FarTensor(Tensor):
    """A tensor that says it is on ``FAR`` and keeps its values in ``near``."""

    near: Tensor
    is_meta = False  # by its name it would be; it has values

    @staticmethod
    def __new__(cls, near: Tensor) -> FarTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=FAR,
        )
        made.near = near
        return made  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{func} on a far tensor outside of far_device()")

    def tolist(self) -> Any:  # not an operator, so that no mode sees it
        return self.cpu().tolist()


class Reads:
    """How often the host has read a value from the device."""

    def __init__(self) -> None:
        self.count = 0


class _Operators(TorchDispatchMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        found = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        far = [leaf for leaf in found if isinstance(leaf, FarTensor)]
        name = func.name()
        _refuse_mixture(name, found)
        devices = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
        goes_far = FAR in devices if devices else bool(far)
        if name == "aten::copy_":
            goes_far = isinstance(args[0], FarTensor)
        result = func(*_near(args), **_near(kwargs))
        if far and (name == "aten::_local_scalar_dense" or not goes_far):
            self._reads.count += 1
            return result
        if not goes_far:
            return result
        known = {id(tensor.near): tensor for tensor in far}  # operations in place return their own
        return tree_map_only(
            Tensor, lambda made: known[id(made)] if id(made) in known else _far(made), result
        )


class _FromData(TorchFunctionMode):
    """Tensors from Python lists, which torch makes below the operators: by value and as indices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FROM_DATA and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(device)
        if func in _BY_INDEX and isinstance(args[0], FarTensor):
            tensor, index, *rest = args
            return func(tensor, _indices(index), *rest)
        return func(*args, **kwargs)


def _indices(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_indices(part) for part in index)
    return torch.tensor(index, dtype=torch.int64) if isinstance(index, list) else index


@contextmanager
def far_device() -> Iterator[Reads]:
    """Within it, ``FAR`` is a device; yields the count of host reads."""
    reads = Reads()
    with _FromData(), _Operators(reads):
        yield reads


def move(module: nn.Module) -> nn.Module:
    """Put a module's parameters and buffers on the far device, tied ones still tied."""
    moved: dict[int, Tensor] = {}  # by parameter: a tied one is met twice
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) not in moved:
                far = nn.Parameter(_far(parameter.data.clone()), requires_grad=False)
                moved[id(parameter)] = moved[id(far)] = far
            part._parameters[name] = None if parameter is None else moved[id(parameter)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else _far(buffer.clone())
    return module


def _refuse_mixture(name: str, found: list[Tensor]) -> None:
    far = [tensor for tensor in found if isinstance(tensor, FarTensor)]
    near = [tensor for tensor in found if not isinstance(tensor, FarTensor) and tensor.dim()]
    indexed = name in _INDEXED and isinstance(found[0], FarTensor)
    if far and near and not indexed and name not in _COPIES:
        shapes = [list(tensor.shape) for tensor in near]
        raise AssertionError(
            f"{name} mixes tensors of the device with tensors of the host, of shapes {shapes}: "
            "on a GPU this fails"
        )


def _near(tree: Any) -> Any:
    """The same operation on the host."""
    values = tree_map_only(FarTensor, lambda tensor: tensor.near, tree)
    return tree_map_only(torch.device, lambda _: _CPU, values)


def _far(near: Tensor) -> FarTensor:
    with torch.inference_mode(False):  # a wrapper needs a version counter, whatever it wraps
        return FarTensor(near)
