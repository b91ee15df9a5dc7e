"""The lean model: one decode step of a Llama, Mistral, Qwen2.5 or Qwen3, in the form in which compilers fuse it best.

One token per sequence, B sequences of one length. Linear layers are handed in, so the same model runs every backend.
Sums of the residual stream are left to the norm that follows: a layer takes (x, delta) and returns (x, delta), and
`x + delta` and RMSNorm are one kernel.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tinygemm.step.architecture import Architecture


def rotary_table(arch: Architecture, capacity: int, device) -> torch.Tensor:
    """cos and sin of every position: [2, capacity, head_dim] float32; source: Su et al. 2021, RoFormer."""
    D = arch.model.head_dim
    frequencies = arch.rope_theta ** -(torch.arange(0, D, 2, device=device, dtype=torch.float64) / D)
    angles = torch.outer(torch.arange(capacity, device=device, dtype=torch.float64), frequencies).repeat(1, 2)
    return torch.stack([angles.cos(), angles.sin()]).float()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., features] over the root of its mean square, times weight [features]; computed in float32."""
    x32 = x.float()
    return weight * (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, heads, head_dim], each head turned by the angles of its position: cos, sin [1, head_dim]."""
    x32 = x.float()
    first, second = x32.chunk(2, -1)
    return (x32 * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


class Cache(nn.Module):
    """Keys and values of one layer, [B, kv_heads, capacity, head_dim] each."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)


class Attention(nn.Module):
    """Grouped-query attention of one token over a static cache, written as equations: any device, any dtype.

    qkv:      [B, (heads + 2 kv_heads) * head_dim], q, k and v side by side
    position: [1] int64 of the new token; the cache holds the tokens before it, and takes it in
    rotary:   [2, capacity, head_dim], see rotary_table
    returns:  [B, heads * head_dim]
    """

    def __init__(self, arch: Architecture, cache: Cache, q_norm: torch.Tensor | None, k_norm: torch.Tensor | None):
        super().__init__()
        self.arch, self.cache = arch, cache
        self.register_buffer("q_norm", q_norm)
        self.register_buffer("k_norm", k_norm)

    def forward(self, qkv: torch.Tensor, position: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        m, eps, keys, values = self.arch.model, self.arch.norm_eps, self.cache.keys, self.cache.values
        q, k, v = qkv.view(-1, m.heads + 2 * m.kv_heads, m.head_dim).split([m.heads, m.kv_heads, m.kv_heads], 1)
        if self.arch.qk_norm:
            q, k = rms_norm(q, self.q_norm, eps), rms_norm(k, self.k_norm, eps)
        cos, sin = rotary[:, position]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        keys.index_copy_(2, position, k.unsqueeze(2))
        values.index_copy_(2, position, v.unsqueeze(2))
        q = q.view(-1, m.kv_heads, m.heads // m.kv_heads, m.head_dim)
        scores = q @ keys.transpose(2, 3)  # [B, kv_heads, heads / kv_heads, capacity]
        later = torch.arange(keys.shape[2], device=keys.device) > position
        scores = (scores.float() * m.head_dim**-0.5).masked_fill(later, -torch.inf)
        return (scores.softmax(-1).to(values.dtype) @ values).view(-1, m.heads * m.head_dim)


class Layer(nn.Module):
    """One transformer block.

    products:  qkv_proj, o_proj, gate_up_proj and down_proj as modules: [B, K] -> [B, N]
    attention: Attention, or a module that computes the same
    norms:     weights [hidden] of the norms before attention and before the feed-forward layer
    """

    def __init__(
        self,
        products: dict[str, nn.Module],
        attention: nn.Module,
        norms: tuple[torch.Tensor, torch.Tensor],
        norm_eps: float,
    ):
        super().__init__()
        self.products, self.attention, self.norm_eps = nn.ModuleDict(products), attention, norm_eps
        self.register_buffer("input_norm", norms[0])
        self.register_buffer("post_attention_norm", norms[1])

    def forward(self, x, delta, position, rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """x, delta: [B, hidden], whose sum is the input; returns the two whose sum is the output."""
        x = x + delta
        qkv = self.products["qkv_proj"](rms_norm(x, self.input_norm, self.norm_eps))
        x = x + self.products["o_proj"](self.attention(qkv, position, rotary))
        gate_up = self.products["gate_up_proj"](rms_norm(x, self.post_attention_norm, self.norm_eps))
        gate, up = gate_up.chunk(2, -1)
        return x, self.products["down_proj"](F.silu(gate) * up)


class Head(nn.Module):
    """The end of a step: final norm, lm_head and argmax."""

    def __init__(self, lm_head: nn.Module, norm: torch.Tensor, norm_eps: float):
        super().__init__()
        self.lm_head, self.norm_eps = lm_head, norm_eps
        self.register_buffer("norm", norm)

    def forward(self, x, delta) -> tuple[torch.Tensor, torch.Tensor]:
        """x, delta: [B, hidden]; returns logits [B, vocab] and the next token of each sequence, [B] int64."""
        logits = self.lm_head(rms_norm(x + delta, self.norm, self.norm_eps))
        return logits, logits.argmax(-1)


class LeanModel(nn.Module):
    """A decode step: tokens [B] int64 and position [1] int64 -> logits [B, vocab] and next tokens [B].

    `compile` compiles one layer for all: their code is the same, and their weights are inputs of it.
    """

    def __init__(self, embedding: torch.Tensor, layers: list[Layer], head: Head, rotary: torch.Tensor):
        super().__init__()
        self.layers, self.head = nn.ModuleList(layers), head
        self.register_buffer("embedding", embedding)
        self.register_buffer("rotary", rotary)
        self.run_layer, self.run_head = Layer.forward, Head.forward

    def compile(self, **settings) -> None:
        """Compile a layer and the head, each as one graph; settings: of torch.compile."""
        self.run_layer = torch.compile(Layer.forward, fullgraph=True, dynamic=False, **settings)
        self.run_head = torch.compile(Head.forward, fullgraph=True, dynamic=False, **settings)

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.embedding(tokens, self.embedding)
        delta = torch.zeros_like(x)
        for layer in self.layers:
            x, delta = self.run_layer(layer, x, delta, position, self.rotary)
        return self.run_head(self.head, x, delta)
