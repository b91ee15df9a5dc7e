"""Our own format: the buffers of an Int4Linear, as `tinygemm convert` writes them.

    qweight, scales, zeros (where asymmetric), bias   as in Int4Linear
    order   [K] int32   where the columns are not in their own order: see `LayerWeight`

The config gives the version of the format, and for each layer what an Int4Linear is made with.
"""

from __future__ import annotations

import torch

from tinygemm.checkpoints.files import StoredLayer
from tinygemm.checkpoints.integers import LayerWeight
from tinygemm.kernel.quant import PackedInt4, check_values

MARK = "qweight"
PARTS = ("qweight", "scales", "zeros", "order")
METHOD = "tinygemm"
VERSION = 1


def check(settings: dict) -> None:
    """Raise a ValueError for what the config says and this reader does not read."""
    if settings.get("version") != VERSION:
        raise ValueError(f"version must be {VERSION}, got {settings.get('version')!r}")
    if not isinstance(settings.get("layers"), dict):
        raise ValueError("layers must describe each packed layer")


def settings_of(weights: dict[str, dict]) -> dict:
    """The quantization_config of a checkpoint; weights: by the path of a layer, what `described` says of it."""
    return {"quant_method": METHOD, "version": VERSION, "bits": 4, "layers": weights}


def described(w: PackedInt4) -> dict:
    return {"in_features": w.K, "out_features": w.N, "group_size": w.group_size, "symmetric": w.zeros is None}


def tensors(weight: LayerWeight) -> dict[str, torch.Tensor]:
    """The stored parts of a weight, by name."""
    order = None if weight.order is None else weight.order.int()
    w = weight.packed
    parts = {"qweight": w.qweight, "scales": w.scales, "zeros": w.zeros, "order": order}
    return {name: tensor for name, tensor in parts.items() if tensor is not None}


def read(layer: StoredLayer, settings: dict) -> LayerWeight:
    made = settings["layers"].get(layer.path)
    keys = {"in_features", "out_features", "group_size", "symmetric"}
    if not isinstance(made, dict) or made.keys() != keys:
        raise layer.error("qweight", f"must be described in quantization_config.layers by {sorted(keys)}, got {made}")
    N, K = made["out_features"], made["in_features"]
    qweight = layer.tensor("qweight", (torch.int32,), (None, None, None, None))
    scales = layer.tensor("scales", (torch.float16,), (None, N))
    zeros = None if made["symmetric"] else layer.tensor("zeros", (torch.uint8,), tuple(scales.shape))
    try:
        packed = PackedInt4(qweight, scales, zeros, N, K, made["group_size"])
        check_values(scales, zeros)
    except (TypeError, ValueError) as error:
        raise layer.error("qweight", f"cannot be used: {error}") from None
    return LayerWeight(packed, _order(layer, K) if "order" in layer else None)


def _order(layer: StoredLayer, K: int) -> torch.Tensor:
    order = layer.tensor("order", (torch.int32,), (K,)).long()
    if not torch.equal(order.sort().values, torch.arange(K, device=order.device)):
        raise layer.error("order", f"must hold each of the {K} columns once")
    return order
