"""The random weights of a model: packed INT4 that all backends share, each in the form that it reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tinygemm.kernel.parallel import shard
from tinygemm.kernel.quant import PackedInt4
from tinygemm.step.architecture import Architecture
from tinygemm.step.packed import dense, random_words
from tinygemm.step.products import StepBackend

LM_HEAD = "lm_head"
# what these add to the residual stream is small in deep models, here as in trained ones: the stream stays of order one
RESIDUAL = ("o_proj", "down_proj")


@dataclass
class Weights:
    """The weights of one model on one device; a form is built once and kept until it is dropped.

    arch: the whole model; rank, world: the share of it that is held, of a model drawn as a whole
    held: form -> (layer, projection) -> the weight in that form; lm_head has layer -1
    """

    arch: Architecture
    device: str
    seed: int = 0
    rank: int = 0
    world: int = 1
    held: dict[str, dict] = field(default_factory=dict)

    def packed(self, layer: int, name: str) -> PackedInt4:
        held = self.held.setdefault("packed", {})
        if (layer, name) not in held:
            names = [*self.arch.projections(), LM_HEAD]
            N, K = (self.arch.projections() | {LM_HEAD: (self.arch.model.vocab, self.arch.model.hidden)})[name]
            seed = (self.seed * 1000 + layer + 1) * len(names) + names.index(name)
            size = (2 * self.arch.model.layers) ** -0.5 if name in RESIDUAL else 1.0
            held[layer, name] = self._share(name, random_words(N, K, self.device, seed, size))
        return held[layer, name]

    @property
    def share(self) -> Architecture:
        """The part of the model that is held."""
        return self.arch.shard(self.world)

    def _share(self, name: str, whole: PackedInt4) -> PackedInt4:
        if self.world == 1:
            return whole
        if name in RESIDUAL:
            return shard(whole, 1, self.rank, self.world)
        return shard(whole, 0, self.rank, self.world, self.arch.parts(name))

    def form(self, backend: StepBackend, layer: int, name: str):
        """A weight as the backend stores it."""
        packed = self.packed(layer, name)
        held = self.held.setdefault(backend.form, {})
        if (layer, name) not in held:
            held[layer, name] = backend.build(packed)
        return held[layer, name]

    def dense_lm_head(self, dtype: torch.dtype) -> torch.Tensor:
        """lm_head [vocab, hidden] in 16 or 32 bits: the packed one dequantised, so that logits are comparable."""
        return self._tensor(f"lm_head {dtype}", lambda: dense(self.packed(-1, LM_HEAD), dtype))

    def embedding(self, dtype: torch.dtype) -> torch.Tensor:
        m = self.arch.model
        return self._tensor(f"embedding {dtype}", lambda: self._random((m.vocab, m.hidden), -1, 1.0).to(dtype))

    def norm(self, layer: int, index: int, dtype: torch.dtype) -> torch.Tensor:
        """The weight [hidden] of a norm of a layer (0: before attention, 1: after it); layer -1: the last norm."""
        return self._random((self.arch.model.hidden,), 10 * layer + index, 0.1, 1.0).to(dtype)

    def head_norm(self, layer: int, index: int, dtype: torch.dtype) -> torch.Tensor | None:
        """The weight [head_dim] of the norm of q (0) or k (1), where the model has them."""
        if not self.arch.qk_norm:
            return None
        return self._random((self.arch.model.head_dim,), 10 * layer + 2 + index, 0.1, 1.0).to(dtype)

    def bias(self, layer: int, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        """The bias [N] of a projection, where the model has one."""
        if name != "qkv_proj" or not self.arch.qkv_bias:
            return None
        whole = self._random((self.arch.qkv_features,), 10 * layer + 4, 0.1).to(dtype)
        return torch.cat([part.chunk(self.world)[self.rank] for part in whole.split(self.arch.parts(name))])

    def drop_all_but(self, forms: set[str]) -> None:
        """Let go of the weights in other forms; packed ones, embedding and lm_head stay."""
        self.held = {form: held for form, held in self.held.items() if form in forms | {"packed", ""}}

    def _tensor(self, name: str, make) -> torch.Tensor:
        held = self.held.setdefault("", {})
        if name not in held:
            held[name] = make()
        return held[name]

    def _random(self, shape: tuple[int, ...], seed: int, scale: float, mean: float = 0.0) -> torch.Tensor:
        """Gaussian values that float16 and bfloat16 both hold exactly."""
        generator = torch.Generator(self.device).manual_seed(1_000_003 + self.seed + 7 * seed + 70)
        random = torch.randn(shape, dtype=torch.float16, device=self.device, generator=generator)
        return (mean + scale * random).bfloat16()


def random_cache(
    arch: Architecture, batch: int, capacity: int, dtype: torch.dtype, device, rank: int = 0, world: int = 1
) -> list[tuple]:
    """Keys and values of every layer, [batch, kv_heads / world, capacity, head_dim] each; the same in every dtype."""
    m = arch.model
    generator = torch.Generator(device).manual_seed(5)

    def random() -> torch.Tensor:
        shape = (batch, m.kv_heads, capacity, m.head_dim)
        whole = torch.randn(shape, dtype=torch.bfloat16, device=device, generator=generator)
        return whole.chunk(world, 1)[rank].to(dtype, memory_format=torch.contiguous_format)

    return [(random(), random()) for _ in range(m.layers)]
