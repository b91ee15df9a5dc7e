"""The format `pack-quantized` of compressed-tensors, as LLM Compressor writes it.

weight_packed     [N, K / 8] int32   eight neighbours in K per word, the first in the lowest bits, each plus 8
weight_scale      [N, groups]        one group: a channel
weight_zero_point [N / 8, groups] int32   eight neighbours in N per word, each plus 8; absent where symmetric.
                  Older files store [N, groups] int8
weight_shape      [2]   N, K
weight_g_idx      [K]   the group of each input, where they were quantised in the order of activations
"""

from __future__ import annotations

import torch

from tinygemm.checkpoints.files import StoredLayer
from tinygemm.checkpoints.integers import FLOATS, INTEGERS, LayerWeight, layer_weight, nibbles

MARK = "weight_packed"
PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
FORMAT = "pack-quantized"
STRATEGIES = ("group", "channel")


def check(settings: dict) -> None:
    """Raise a ValueError for what the config says and this reader does not read."""
    if settings.get("format") != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}, got {settings.get('format')!r}")
    if (settings.get("transform_config") or {}).get("config_groups"):
        raise ValueError("transform_config must be empty: the model would need its transforms, too")
    sparsity = (settings.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise ValueError(f"sparsity_config.format must be 'dense', got {sparsity!r}")
    schemes = settings.get("config_groups") or {}
    if not schemes:
        raise ValueError("config_groups must describe the weights, and there are none")
    for name, scheme in schemes.items():
        if scheme.get("input_activations"):
            raise ValueError(f"config_groups.{name}.input_activations are quantised; only weights may be")
        weights = scheme.get("weights") or {}
        wanted = {"num_bits": (4,), "type": ("int",), "strategy": STRATEGIES}
        for key, values in wanted.items():
            if weights.get(key) not in values:
                raise ValueError(f"config_groups.{name}.weights.{key} must be {values[0]!r}, got {weights.get(key)!r}")
        if scheme.get("format") not in (None, FORMAT):
            raise ValueError(f"config_groups.{name}.format must be {FORMAT!r}, got {scheme['format']!r}")


def read(layer: StoredLayer, settings: dict) -> LayerWeight:
    shape = layer.tensor("weight_shape", INTEGERS, (2,))
    N, K = shape.tolist()
    words = layer.tensor("weight_packed", (torch.int32,), (N, -(-K // 8)))
    scales = layer.tensor("weight_scale", FLOATS, (N, None)).t()
    sizes = {scheme["weights"].get("group_size") or -1 for scheme in settings["config_groups"].values()}
    codes = nibbles(words)[:, :K]
    return layer_weight(layer, codes, ("weight_scale", scales), _zeros(layer, N, len(scales)), sizes, "weight_g_idx")


def _zeros(layer: StoredLayer, N: int, groups: int) -> torch.Tensor | None:
    part = "weight_zero_point"
    if part not in layer:
        return None
    points = layer.tensor(part, (torch.int32, torch.int8), (None, groups))
    if points.dtype == torch.int8:
        return (layer.tensor(part, (torch.int8,), (N, groups)) + 8).to(torch.uint8).t()
    return nibbles(layer.tensor(part, (torch.int32,), (-(-N // 8), groups)).t())[:, :N]
