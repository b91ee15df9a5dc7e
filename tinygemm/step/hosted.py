"""The same decode step in the model of Hugging Face transformers, as people run it: static cache, sdpa attention.

Weights, cache and inputs are those of the lean model, so both must give the same logits. INT4 layers are put in place
by `tinygemm.quantize_model(model, join=True)`.
"""

from __future__ import annotations

import dataclasses
import inspect

import torch
from torch import nn

from tinygemm.kernel.join import JOINTS
from tinygemm.kernel.linear import quantize_model
from tinygemm.kernel.quant import PackedInt4
from tinygemm.step.architecture import Architecture
from tinygemm.step.packed import GROUP_SIZE
from tinygemm.step.products import StepBackend
from tinygemm.step.weights import LM_HEAD, Weights

OWNERS = {"qkv_proj": "self_attn", "o_proj": "self_attn", "gate_up_proj": "mlp", "down_proj": "mlp"}
NORMS = ("input_layernorm", "post_attention_layernorm")
HEAD_NORMS = ("q_norm", "k_norm")


def family(arch: Architecture) -> str:
    """The family of transformers that computes what an architecture says; Mistral's equations are those of Llama."""
    if arch.qk_norm and arch.qkv_bias:
        raise NotImplementedError("no family of transformers has both norms of q and k and a bias of q, k and v")
    return "Qwen3" if arch.qk_norm else "Qwen2" if arch.qkv_bias else "Llama"


def config_of(arch: Architecture, capacity: int):
    """The configuration of the model in transformers.

    raises: NotImplementedError where the installed transformers lacks a class that the step needs
    """
    m = arch.model
    return _class(f"{family(arch)}Config")(
        vocab_size=m.vocab, hidden_size=m.hidden, intermediate_size=m.intermediate, num_hidden_layers=m.layers,
        num_attention_heads=m.heads, num_key_value_heads=m.kv_heads, head_dim=m.head_dim, rms_norm_eps=arch.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": arch.rope_theta}, tie_word_embeddings=False,
        max_position_embeddings=capacity,
    )  # fmt: skip


def _class(name: str) -> type:
    try:
        import transformers
    except ImportError:
        raise NotImplementedError("transformers is not installed (pip install transformers)") from None
    try:
        return getattr(transformers, name)
    except AttributeError:
        raise _lacks(name) from None


def _lacks(what: str) -> NotImplementedError:
    import transformers

    return NotImplementedError(f"transformers {transformers.__version__} has no {what}; those of 5.17 to 5.24 have")


class HostedModel(nn.Module):
    """A decode step of a transformers model: tokens [B] int64 and position [1] int64 -> logits [B, vocab], next tokens.

    model:  of causal language; its layers become `Block`s
    caches: a StaticCache of one layer for each
    """

    def __init__(self, model: nn.Module, caches: list):
        super().__init__()
        self.model, self.cache, self.keyword = model, caches[0], _keyword(model)
        inner = model.model
        inner.layers = nn.ModuleList(Block(*pair) for pair in zip(inner.layers, caches, strict=True))

    def compile(self, **settings) -> None:
        """Compile one layer for all, and the norm and the rotary angles; settings: of torch.compile."""
        inner = self.model.model
        run = torch.compile(run_layer, fullgraph=True, dynamic=False, **settings)
        for block in inner.layers:
            block.run = run
        for module in (inner.norm, inner.rotary_emb):
            module.compile(fullgraph=True, dynamic=False, **settings)

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.cache.layers[0].cumulative_length.copy_(position[0])  # of which the mask is made
        for block in self.model.model.layers:
            block.position = position
        others = {self.keyword: self.cache}
        logits = self.model(tokens[:, None], position_ids=position[None], use_cache=True, **others).logits[:, -1]
        return logits, logits.argmax(-1)


class Block(nn.Module):
    """A decoder layer with a cache of its own: all layers are alike, so that one compiled layer serves all.

    Every call sets the length of the cache back to the position, which costs one small kernel where nothing is
    compiled. So a step that is repeated is the same step.
    """

    def __init__(self, layer: nn.Module, cache):
        super().__init__()
        layer.self_attn.layer_idx = 0
        self.layer, self.cache, self.run, self.position = layer, cache, run_layer, None
        self.keyword = _keyword(layer)

    def forward(self, hidden_states: torch.Tensor, **others) -> torch.Tensor:
        others[self.keyword] = self.cache
        return self.run(self.layer, self.cache.layers[0].cumulative_length, self.position, hidden_states, others)


def run_layer(layer: nn.Module, length: torch.Tensor, position: torch.Tensor, hidden_states, others: dict):
    """A decoder layer at a position [1], to which the length [] of its cache is set."""
    length.copy_(position[0])
    return layer(hidden_states, **others)


def _keyword(module: nn.Module) -> str:
    """The keyword of the cache, by which releases of transformers differ."""
    known = inspect.signature(module.forward).parameters
    return next(name for name in ("cache", "past_key_values") if name in known)


def hosted_model(weights: Weights, backend: StepBackend, cache: list[tuple]) -> HostedModel:
    """The model as transformers runs it with `backend`, whose form of weights is dense or packed.

    cache:  keys and values of every layer, see weights.random_cache; steps write into them
    raises: NotImplementedError where the installed transformers lacks what the step needs
    """
    keys = cache[0][0]
    config = config_of(weights.arch, keys.shape[2])
    with torch.device("meta"):
        model = _class("AutoModelForCausalLM").from_config(config, dtype=backend.dtype, attn_implementation="sdpa")
    packed = backend.form == "packed"
    if packed:
        skip = () if backend.int4_lm_head else (LM_HEAD,)
        quantize_model(model, GROUP_SIZE, skip=skip, join=True, progress=False)
    model.load_state_dict(state_dict(weights, backend), assign=True)
    with torch.device(keys.device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its angles are no part of a state dict
    model.requires_grad_(False).eval()
    one_layer = dataclasses.replace(weights.arch, model=dataclasses.replace(weights.arch.model, layers=1))
    of_one = config_of(one_layer, keys.shape[2])
    return HostedModel(model, [_cache(of_one, *pair) for pair in cache])


def state_dict(weights: Weights, backend: StepBackend) -> dict[str, torch.Tensor]:
    """The weights under the names of transformers; they share the memory of those in `weights`."""
    arch, dtype = weights.arch, backend.dtype
    found = {"model.embed_tokens.weight": weights.embedding(dtype), "model.norm.weight": weights.norm(-1, 0, dtype)}
    for i in range(arch.model.layers):
        path = f"model.layers.{i}"
        found |= {f"{path}.{name}.weight": weights.norm(i, index, dtype) for index, name in enumerate(NORMS)}
        if arch.qk_norm:
            found |= {
                f"{path}.self_attn.{name}.weight": weights.head_norm(i, index, dtype)
                for index, name in enumerate(HEAD_NORMS)
            }
        for name in arch.projections():
            w, bias = weights.form(backend, i, name), weights.bias(i, name, dtype)
            found |= _projection(arch, f"{path}.{OWNERS[name]}", name, w, bias)
    if backend.int4_lm_head:
        return found | _packed(LM_HEAD, weights.packed(-1, LM_HEAD), None)
    return found | {f"{LM_HEAD}.weight": weights.dense_lm_head(dtype)}


def _projection(arch: Architecture, owner: str, name: str, w, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A weight and its bias: packed ones stay joined, dense ones are views of the joined one."""
    if isinstance(w, PackedInt4):
        return _packed(f"{owner}.{name}", w, bias)
    names, parts = JOINTS.get(name, (name,)), arch.parts(name)
    found = {f"{owner}.{each}.weight": part for each, part in zip(names, w.split(parts), strict=True)}
    if bias is not None:
        found |= {f"{owner}.{each}.bias": part for each, part in zip(names, bias.split(parts), strict=True)}
    return found


def _packed(path: str, w: PackedInt4, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    found = {f"{path}.qweight": w.qweight, f"{path}.scales": w.scales}
    return found if bias is None else found | {f"{path}.bias": bias}


def _cache(config, keys: torch.Tensor, values: torch.Tensor):
    """A StaticCache of one layer, with these keys and values [B, kv_heads, capacity, head_dim]."""
    cache = _class("StaticCache")(config=config, max_cache_len=keys.shape[2])
    layer = cache.layers[0]
    if not isinstance(getattr(layer, "cumulative_length", None), torch.Tensor):
        raise _lacks("StaticCache that counts its tokens in a tensor")
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    # a tensor that no compiler takes for one of fixed address: it would compile every layer by itself
    layer.cumulative_length = torch.zeros((), dtype=torch.int64, device=keys.device)
    return cache
