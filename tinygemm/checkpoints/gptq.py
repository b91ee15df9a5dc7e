"""GPTQ, as AutoGPTQ and GPTQModel write it.

qweight [K / 8, N] int32   eight neighbours in K per word, the first in the lowest bits
qzeros  [K / group, N / 8] int32   eight neighbours in N per word; `gptq` (v1) stores each zero minus one
scales  [K / group, N]
g_idx   [K] int32   the group of each input: not sorted after quantisation in the order of activations
"""

from __future__ import annotations

import torch

from tinygemm.checkpoints.files import StoredLayer
from tinygemm.checkpoints.integers import FLOATS, LayerWeight, layer_weight, nibbles

MARK = "qweight"
PARTS = ("qweight", "qzeros", "scales", "g_idx")
FORMATS = ("gptq", "gptq_v2")


def check(settings: dict) -> None:
    """Raise a ValueError for what the config says and this reader does not read."""
    stored = _format(settings)
    if stored not in FORMATS:
        raise ValueError(f"checkpoint_format must be one of {FORMATS}, got {stored!r}")
    if settings.get("is_marlin_format"):
        raise ValueError("is_marlin_format is set: the weights are laid out for one kernel; only gptq is read")
    for name, each in {"": settings, **_overrides(settings)}.items():
        bits = each.get("bits", 4 if name else None)
        if bits != 4:
            where = f"dynamic[{name!r}].bits" if name else "bits"
            raise ValueError(f"{where} must be 4, got {bits!r}")


def read(layer: StoredLayer, settings: dict) -> LayerWeight:
    words = layer.tensor("qweight", (torch.int32,), (None, None))
    N = words.shape[1]
    scales = layer.tensor("scales", FLOATS, (None, N))
    zeros = nibbles(layer.tensor("qzeros", (torch.int32,), (len(scales), -(-N // 8))))[:, :N]
    if _format(settings) == "gptq":
        if bool((zeros == 15).any()):
            raise layer.error("qzeros", "has a 15, which programs read as 0 or as 16 in this format; gptq_v2 has none")
        zeros = zeros + 1
    sizes = {each.get("group_size", -1) for each in (settings, *_overrides(settings).values())} - {None}
    return layer_weight(layer, nibbles(words.t()), ("scales", scales), zeros, sizes, "g_idx")


def _format(settings: dict) -> str:
    return settings.get("checkpoint_format") or settings.get("format") or "gptq"


def _overrides(settings: dict) -> dict[str, dict]:
    """Settings of some layers, by a pattern of their names; a pattern that starts with -: names layers left alone."""
    chosen = {name: each for name, each in (settings.get("dynamic") or {}).items() if not name.startswith("-:")}
    return {name: {"group_size": settings.get("group_size", -1)} | each for name, each in chosen.items()}
