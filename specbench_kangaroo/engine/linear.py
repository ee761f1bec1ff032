"""Matrix products with weights laid out for few rows; the LM head is one of them.

On a CPU a float32 product of 1..16 rows by a weight matrix is bound by reading the weights, so 8
rows should cost what one costs.  The BLAS kernels behind ``torch.nn.functional.linear`` are far
from that (on two cores of a 2023 server 8 rows took 1.4 times one row, and 3 rows 2.3 times);
oneDNN's kernels over blocked weights reach it and read one row twice as fast; in bfloat16 they take
two thirds of the plain product's time for 1 to 4 rows and of float32's packed one.  For one row
alone the plain product is a third faster on other processors: there it is taken, or the baseline,
which has no other passes, would be slow and flatter everybody.  All entries run on the same
products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.nn import functional

from specbench_kangaroo.engine.families import home, is_plain
from specbench_kangaroo.record.errors import UsageError

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}  # of sums of 64 terms up to 1
_ROWS_HINT = 8
_FEW_ROWS = 32
_BLOCK = 256
# More than caches of a core hold, as in a pass every weight comes from memory.
_TIMED_SIZE, _TIMED_WEIGHTS, _SWEEPS = 1024, 16, 7
_CLEARLY = 0.9  # of the packed time: two kernels that are about equal are not told apart by chance


class Linear:
    """``x @ weight.T (+ bias) (+ residual)`` for few rows, prepacked where that is known to work.

    Args:
        weight: (N, K).
        bias: (N,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._bias = bias
        self._packed = can_prepack(weight.device.type, weight.dtype)
        self._weight = _pack(weight) if self._packed else weight
        # Kept beside the packed one: a second copy, unless the model holds this very tensor.
        keeps = not self._packed or one_row_is_plain(weight.dtype)
        self._plain = weight if keeps else None

    def __call__(self, rows: Tensor) -> Tensor:
        """(T, K) -> (T, N)."""
        plain = self._plain_for(rows)
        if plain is not None:
            return functional.linear(rows, plain, self._bias)
        return _by_blocks(
            lambda block: _linear(block, self._weight, self._bias, "none", [], ""), rows
        )

    def add_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """``residual + self(rows)``, both (T, N), in one kernel where there is one."""
        plain = self._plain_for(rows)
        if plain is not None:
            return residual + functional.linear(rows, plain, self._bias)
        return _by_blocks(
            lambda block, rest: _linear_binary(block, rest, self._weight, self._bias, "add"),
            rows,
            residual,
        )

    def _plain_for(self, rows: Tensor) -> Tensor | None:
        """The weight (N, K) for a plain product of these rows; None: the packed one is quicker."""
        return self._plain if not self._packed or len(rows) == 1 else None


@cache
def can_prepack(device: str, dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed product exists here and gives the plain product's result.

    These operators are the ones that torch's own compiler emits; as they are not public, a small
    product is compared once instead of trusting their names.
    """
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device != "cpu" or dtype not in _TOLERANCE or not onednn:
        return False
    rows = torch.linspace(-1, 1, 3 * 64).view(3, 64).to(dtype)
    weight = torch.linspace(-1, 1, 32 * 64).cos().view(32, 64).to(dtype)
    wanted = functional.linear(rows, weight)
    try:
        packed = _pack(weight)
        plain = _linear(rows, packed, None, "none", [], "")
        summed = _linear_binary(rows, wanted, packed, None, "add")
    except (AttributeError, RuntimeError):
        return False
    atol = _TOLERANCE[dtype]
    return all(
        torch.allclose(found, expected, atol=atol)
        for found, expected in ((plain, wanted), (summed, 2 * wanted))
    )


@cache
def one_row_is_plain(dtype: torch.dtype) -> bool:
    """Whether one row by a plain weight is clearly faster here than by a packed one; CPU only.

    Timed once a process, in about 0.1 s: it differs between processors by a third either way.
    """
    size = (_TIMED_SIZE, _TIMED_SIZE)
    plain = [torch.full(size, 0.5, dtype=dtype) for _ in range(_TIMED_WEIGHTS)]
    packed = [_pack(weight) for weight in plain]
    row = torch.ones(1, _TIMED_SIZE, dtype=dtype)
    plain_s, packed_s = [], []
    for _ in range(_SWEEPS):
        start_s = time.perf_counter()
        for weight in plain:
            functional.linear(row, weight)
        between_s = time.perf_counter()
        for weight in packed:
            _linear(row, weight, None, "none", [], "")
        plain_s.append(between_s - start_s)
        packed_s.append(time.perf_counter() - between_s)
    return min(plain_s) < _CLEARLY * min(packed_s)


def _by_blocks(product: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """A product of many rows in few sizes: oneDNN keeps memory for every number of rows it met.

    Left alone, each new prompt length would cost megabytes that never come back.
    """
    count = len(inputs[0])
    if count <= _FEW_ROWS:
        return product(*inputs)
    parts = []
    for start in range(0, count, _BLOCK):
        block = [rows[start : start + _BLOCK] for rows in inputs]
        padding = (0, 0, 0, -len(block[0]) % _FEW_ROWS)
        padded = [functional.pad(rows, padding) for rows in block]
        parts.append(product(*padded)[: len(block[0])])
    return torch.cat(parts)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
    return packed


def _linear(*arguments: object) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(*arguments)
    return product


def _linear_binary(*arguments: object) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(*arguments)
    return product


class LmHead:
    """Logits (T, V) of normed final states (T, H), capped where the family caps them (Gemma 2).

    A head that is quantised or offloaded runs as its module, hooks included; any other one by a
    product that is made for few rows.
    """

    def __init__(self, module: Any, config: Any) -> None:
        self._config = config
        self.device = home(module)
        self.vocab_size: int = getattr(module, "out_features", None) or len(module.weight)
        self._product: Any = module
        if is_plain(module):
            bias = None if module.bias is None else module.bias.detach()
            self._product = Linear(module.weight.detach(), bias)

    def __call__(self, normed: Tensor) -> Tensor:
        """(T, H) on any device -> (T, V) on the head's."""
        logits: Tensor = self._product(normed.to(self.device))
        return capped(logits, self._config)


def matrix_of(module: Any, device: torch.device) -> Tensor:
    """A head's weight (V, H) on ``device``; one that is offloaded is loaded for good.

    Raises:
        UsageError: the head is quantised.
    """
    if type(module) is not nn.Linear or not module.weight.is_floating_point():
        raise UsageError(
            f"the target's LM head is quantised ({type(module).__name__}), and this draft shares "
            "its matrix: use a model whose lm_head is left in full precision"
        )
    with align_module_device(module):
        return module.weight.detach().to(device)


def capped(logits: Tensor, config: Any) -> Tensor:
    """Logits as the family's own forward pass leaves them: Gemma 2 bounds them smoothly."""
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
