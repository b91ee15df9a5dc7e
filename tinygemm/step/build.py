"""The models of an architecture, put together for one backend from shared weights and a shared cache."""

from __future__ import annotations

import torch
from torch import nn

from tinygemm.step import hosted, lean
from tinygemm.step.products import Dense, Dequantised, StepBackend
from tinygemm.step.ranks import Gathered, Summed
from tinygemm.step.weights import LM_HEAD, RESIDUAL, Weights


def model_of(weights: Weights, backend: StepBackend, cache: list[tuple], host: str, attention: str) -> nn.Module:
    """The model as `backend` runs it in a host: tokens [B] and position [1] -> logits and next tokens; it can compile.

    cache: keys and values of every layer, see weights.random_cache; steps write into them
    host, attention: see cases.HOSTS
    """
    if host == "transformers":
        return hosted.hosted_model(weights, backend, cache)
    return lean_model(weights, backend, cache, attention)


def attention_class(name: str) -> type:
    if name == "equations":
        return lean.Attention
    from tinygemm.step.attention import FusedAttention

    return FusedAttention


def lean_model(weights: Weights, backend: StepBackend, cache: list[tuple], attention: str) -> lean.LeanModel:
    """The model as `backend` runs it.

    cache:     keys and values of every layer, see weights.random_cache; steps write into them
    attention: "fused" or "equations"
    """

    def product(layer: int, name: str):
        return backend.module(weights.form(backend, layer, name), weights.bias(layer, name, backend.dtype))

    lm_head = product(-1, LM_HEAD) if backend.int4_lm_head else Dense(weights.dense_lm_head(backend.dtype))
    return _assembled(weights, backend.dtype, cache, attention_class(attention), product, lm_head)


def reference_model(weights: Weights, cache: list[tuple], dtype: torch.dtype = torch.float16) -> lean.LeanModel:
    """The model by the equations, each weight dequantised when it is used: the reference of every backend."""

    def product(layer: int, name: str):
        return Dequantised(weights.packed(layer, name), weights.bias(layer, name, dtype))

    return _assembled(weights, dtype, cache, lean.Attention, product, Dense(weights.dense_lm_head(dtype)))


def _assembled(weights, dtype, cache, attention, product, lm_head) -> lean.LeanModel:
    arch = weights.share

    def layer(i: int) -> lean.Layer:
        products = {name: product(i, name) for name in arch.projections()}
        if weights.world > 1:
            products |= {name: Summed(products[name]) for name in RESIDUAL}
        head_norms = (weights.head_norm(i, index, dtype) for index in (0, 1))
        norms = (weights.norm(i, 0, dtype), weights.norm(i, 1, dtype))
        return lean.Layer(products, attention(arch, lean.Cache(*cache[i]), *head_norms), norms, arch.norm_eps)

    layers = [layer(i) for i in range(arch.model.layers)]
    if weights.world > 1:
        lm_head = Gathered(lm_head, weights.world)
    head = lean.Head(lm_head, weights.norm(-1, 0, dtype), arch.norm_eps)
    keys = cache[0][0]
    rotary = lean.rotary_table(arch, keys.shape[2], keys.device)
    return lean.LeanModel(weights.embedding(dtype), layers, head, rotary)
