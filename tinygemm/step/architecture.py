"""The models whose decode step is measured: their shapes, and the few facts beside shapes that a step needs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tinygemm.models import MODELS, Model

TILE_N, TILE_K = 16, 128  # of a packed weight, see kernel/quant.py, which needs torch


@dataclass(frozen=True)
class Architecture:
    """A transformer of the Llama family: what `lean` needs to run it.

    model:      its shapes
    rope_theta: base of the rotary frequencies
    norm_eps:   added to the mean square by every RMSNorm
    qk_norm:    an RMSNorm over each head of q and k, before rotary (Qwen3)
    qkv_bias:   q, k and v have a bias (Qwen2.5)
    """

    model: Model
    rope_theta: float
    norm_eps: float = 1e-5
    qk_norm: bool = False
    qkv_bias: bool = False

    @property
    def qkv_features(self) -> int:
        return (self.model.heads + 2 * self.model.kv_heads) * self.model.head_dim

    def projections(self) -> dict[str, tuple[int, int]]:
        """The products of one layer in their order: name -> (N, K)."""
        m = self.model
        return {
            "qkv_proj": (self.qkv_features, m.hidden),
            "o_proj": (m.hidden, m.heads * m.head_dim),
            "gate_up_proj": (2 * m.intermediate, m.hidden),
            "down_proj": (m.hidden, m.intermediate),
        }

    def parts(self, name: str) -> tuple[int, ...]:
        """The output features of the projections that were joined into one: of q, k and v, say."""
        m = self.model
        if name == "qkv_proj":
            return m.heads * m.head_dim, m.kv_heads * m.head_dim, m.kv_heads * m.head_dim
        if name == "gate_up_proj":
            return m.intermediate, m.intermediate
        return (m.vocab if name == "lm_head" else m.hidden,)

    def shard(self, tp: int) -> Architecture:
        """The part that one of `tp` GPUs holds: its share of the heads and of the feed-forward layer.

        raises: ValueError naming the size that tp does not divide, into whole tiles where it is one of a weight
        """
        m = self.model
        units = {"heads": 1, "kv_heads": 1, "intermediate": TILE_K, "vocab": TILE_N}
        for name, unit in units.items():
            if tp > 1 and getattr(m, name) % (tp * unit):
                tiles = f" into multiples of {unit}" if unit > 1 else ""
                raise ValueError(f"--tp {tp} does not divide the {getattr(m, name)} {name} of {m.key}{tiles}")
        if tp > 1 and m.heads * m.head_dim % (tp * TILE_K):
            raise ValueError(
                f"--tp {tp} does not divide the {m.heads} heads of {m.key}, {m.head_dim} features each, into multiples "
                f"of {TILE_K}"
            )
        parts = {name: getattr(m, name) // tp for name in ("heads", "kv_heads", "intermediate")}
        return dataclasses.replace(self, model=dataclasses.replace(m, **parts))


_SOURCE = "huggingface.co/Qwen/"
_LACKING = {  # of tinygemm.models.MODELS
    "qwen3-0.6b": Model("qwen3-0.6b", 1024, 3072, 28, 16, 8, 128, 151936, _SOURCE + "Qwen3-0.6B"),
    "qwen3-8b": Model("qwen3-8b", 4096, 12288, 36, 32, 8, 128, 151936, _SOURCE + "Qwen3-8B"),
    "qwen2.5-32b": Model("qwen2.5-32b", 5120, 27648, 64, 40, 8, 128, 152064, _SOURCE + "Qwen2.5-32B"),
}


def _architecture(key: str, rope_theta: float, norm_eps: float = 1e-5, **others) -> Architecture:
    return Architecture(MODELS.get(key) or _LACKING[key], rope_theta, norm_eps, **others)


ARCHITECTURES = {
    each.model.key: each
    for each in (
        _architecture("llama-3-8b", 5e5),
        _architecture("qwen3-0.6b", 1e6, 1e-6, qk_norm=True),
        _architecture("qwen3-8b", 1e6, 1e-6, qk_norm=True),
        _architecture("qwen2.5-32b", 1e6, qkv_bias=True),
        _architecture("llama-3-70b", 5e5),
        _architecture("mistral-7b", 1e6),
    )
}


def architecture_named(name: str) -> Architecture:
    """The architecture of a model; raises ValueError listing the known ones."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise ValueError(f"unknown model {name!r}; a decode step knows {', '.join(ARCHITECTURES)}") from None
