"""The weight of one problem in every layout that a backend reads, and the copies that timed calls rotate over."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinygemm.harness import timing

if TYPE_CHECKING:
    from tinygemm.kernel.quant import PackedInt4

ALIGNMENT = 256  # bytes; copies start as aligned as a tensor of their own, so that every copy runs the same kernel


@dataclass(frozen=True)
class Weights:
    """One weight in the layouts that backends ask for; a layout built once serves every token count and launch mode.

    packed:   PackedInt4, the weight every backend multiplies with
    l2_bytes: size of the GPU's L2, which decides how many copies make it cold
    built:    layout name -> copies built so far
    """

    packed: PackedInt4
    l2_bytes: int
    built: dict[str, list] = field(default_factory=dict)

    def copies(self, layout: str, build: Callable, l2_state: str) -> list:
        """The weight in one layout, as often as a cold or hot rotation needs it.

        layout: its name; backends that share a name share the copies
        build:  PackedInt4 -> the weight in that layout (tensor, tuple of tensors, dataclass or module)
        """
        copies = self.built.get(layout) or [build(self.packed)]
        needed = timing.copies_needed(stored_bytes(copies[0]), self.l2_bytes, l2_state)
        if needed > len(copies):
            copies = replicate(copies[0], needed)
        self.built[layout] = copies
        return copies[:needed]


def stored_bytes(weight) -> int:
    """Bytes of all tensors of a weight in any layout."""
    return sum(tensor.nbytes for tensor in _tensors(weight))


def replicate(weight, n: int) -> list:
    """n copies of a weight in any layout; copies of a tensor are cut from one allocation, so tiny ones stay cheap."""
    import torch

    if isinstance(weight, torch.Tensor):
        return _tensor_copies(weight, n)
    if isinstance(weight, tuple):
        return list(zip(*(replicate(part, n) for part in weight), strict=True))
    if dataclasses.is_dataclass(weight) and not isinstance(weight, type):
        parts = {f.name: getattr(weight, f.name) for f in dataclasses.fields(weight)}
        copies = {k: _tensor_copies(v, n) for k, v in parts.items() if isinstance(v, torch.Tensor)}
        return [dataclasses.replace(weight, **{k: tensors[i] for k, tensors in copies.items()}) for i in range(n)]
    return [weight, *(copy.deepcopy(weight) for _ in range(n - 1))]


def _tensor_copies(tensor, n: int) -> list:
    import torch

    stride = -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT // tensor.element_size()
    buffer = torch.empty(n, stride, dtype=tensor.dtype, device=tensor.device)
    copies = [buffer[i, : tensor.numel()].view(tensor.shape) for i in range(n)]
    for each in copies:
        each.copy_(tensor)
    return copies


def _tensors(weight):
    import torch

    if isinstance(weight, torch.Tensor):
        yield weight
    elif isinstance(weight, tuple):
        for part in weight:
            yield from _tensors(part)
    elif isinstance(weight, torch.nn.Module):
        yield from weight.parameters()
        yield from weight.buffers()
    elif dataclasses.is_dataclass(weight):
        yield from (v for f in dataclasses.fields(weight) if isinstance(v := getattr(weight, f.name), torch.Tensor))
    else:
        raise TypeError(f"cannot copy a weight of type {type(weight).__name__}")
