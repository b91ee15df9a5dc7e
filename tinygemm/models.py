"""The transformers whose projections are measured: public architectures, cut by tensor parallelism."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tinygemm.problem import Layer

TENSOR_PARALLEL = (1, 2, 4, 8)
MODEL_GROUP_SIZES = (128, 64, 32)  # in order of preference: fewer scales, fewer bytes


@dataclass(frozen=True)
class Model:
    """A decoder-only transformer by its published config.json.

    hidden, intermediate: features of the residual stream and of the gated feed-forward layer
    layers:               transformer blocks, each with the four projections of `projections`
    heads, kv_heads:      query heads, and key/value heads that they share
    head_dim:             features of one head
    vocab:                rows of the output matrix (lm_head)
    source:               where the figures stand
    """

    key: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    source: str


MODELS = {
    model.key: model
    for model in (
        Model("llama-3-8b", 4096, 14336, 32, 32, 8, 128, 128256, "huggingface.co/meta-llama/Meta-Llama-3-8B"),
        Model("llama-3-70b", 8192, 28672, 80, 64, 8, 128, 128256, "huggingface.co/meta-llama/Meta-Llama-3-70B"),
        Model("qwen2.5-0.5b", 896, 4864, 24, 14, 2, 64, 151936, "huggingface.co/Qwen/Qwen2.5-0.5B"),
        Model("qwen2.5-7b", 3584, 18944, 28, 28, 4, 128, 152064, "huggingface.co/Qwen/Qwen2.5-7B"),
        Model("qwen2.5-72b", 8192, 29568, 80, 64, 8, 128, 152064, "huggingface.co/Qwen/Qwen2.5-72B"),
        Model("mistral-7b", 4096, 14336, 32, 32, 8, 128, 32768, "huggingface.co/mistralai/Mistral-7B-v0.3"),
        Model("gemma-2-9b", 3584, 14336, 42, 16, 8, 256, 256000, "huggingface.co/google/gemma-2-9b"),
        Model("phi-3-mini", 3072, 8192, 32, 32, 32, 96, 32064, "huggingface.co/microsoft/Phi-3-mini-4k-instruct"),
    )
}
# of config.json: architectures whose blocks hold exactly the four projections below
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3")


def model_named(name: str) -> Model:
    """A model of the table, or the one that a config.json describes; raises ValueError listing the known names."""
    if name.endswith(".json"):
        return from_config(name)
    try:
        return MODELS[name]
    except KeyError:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}, or a path to a config.json") from None


def projections(model: Model, tp: int = 1, group_size: int = 128) -> tuple[Layer, ...]:
    """The four weights of one block that one GPU multiplies by, fused as inference engines fuse them.

    model:      the architecture
    tp:         tensor-parallel degree: qkv_proj and gate_up_proj are cut along N, o_proj and down_proj along K;
                KV heads are repeated where there are fewer of them than GPUs
    group_size: largest wanted; each layer gets the largest of 128, 64, 32 up to it that divides its K,
                and None where none does: this weight cannot be quantised in groups
    raises:     ValueError naming the degree and what it does not divide
    source:     Shoeybi et al. 2019, Megatron-LM, section 3
    """
    _check_degree(model, tp)
    kv_heads = max(model.kv_heads // tp, 1)
    attention = model.heads // tp * model.head_dim
    feed_forward = model.intermediate // tp
    shapes = (
        ("qkv_proj", model.hidden, attention + 2 * kv_heads * model.head_dim),
        ("o_proj", attention, model.hidden),
        ("gate_up_proj", model.hidden, 2 * feed_forward),
        ("down_proj", feed_forward, model.hidden),
    )
    return tuple(Layer(model.key, layer, K, N, group_size_for(K, group_size)) for layer, K, N in shapes)


def group_size_for(K: int, largest: int = 128) -> int | None:
    """The largest of 128, 64, 32 that is at most `largest` and divides K, or None: not quantisable in groups."""
    return next((size for size in MODEL_GROUP_SIZES if size <= largest and K % size == 0), None)


def possible_degrees(model: Model, tps: tuple[int, ...] = TENSOR_PARALLEL) -> tuple[int, ...]:
    """Those of the tensor-parallel degrees that divide the model."""
    return tuple(tp for tp in tps if not _obstacle(model, tp))


def decode_shapes(tps: tuple[int, ...] = TENSOR_PARALLEL) -> tuple[tuple[int, int, int], ...]:
    """Every distinct (K, N, group_size) of all models, sorted: quantisable projections at possible degrees."""
    layers = (
        layer for model in MODELS.values() for tp in possible_degrees(model, tps) for layer in projections(model, tp)
    )
    return tuple(sorted({(layer.K, layer.N, layer.group_size) for layer in layers if layer.group_size is not None}))


def from_config(path: str | Path) -> Model:
    """Read a Hugging Face config.json of the Llama, Mistral, Qwen, Gemma or Phi-3 family.

    path:    the file; the model is named after its folder
    returns: the architecture; missing num_key_value_heads = num_attention_heads, missing head_dim = hidden / heads
    raises:  ValueError naming the file and the key, OSError where it cannot be read
    """
    path = Path(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object with keys such as hidden_size")
    if config.get("model_type") not in MODEL_TYPES:
        raise ValueError(f"{path}: model_type is {config.get('model_type')!r}; supported: {', '.join(MODEL_TYPES)}")
    heads = _count(config, "num_attention_heads", path)
    hidden = _count(config, "hidden_size", path)
    if config.get("head_dim") is None and hidden % heads:
        raise ValueError(f"{path}: head_dim is missing and num_attention_heads={heads} does not divide {hidden}")
    kv_heads = _count(config, "num_key_value_heads", path, default=heads)
    if heads % kv_heads:
        raise ValueError(f"{path}: num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}")
    return Model(
        key=path.resolve().parent.name or path.stem,
        hidden=hidden,
        intermediate=_count(config, "intermediate_size", path),
        layers=_count(config, "num_hidden_layers", path),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_count(config, "head_dim", path, default=hidden // heads),
        vocab=_count(config, "vocab_size", path),
        source=path.name,
    )


def _check_degree(model: Model, tp: int) -> None:
    if obstacle := _obstacle(model, tp):
        possible = ", ".join(str(each) for each in possible_degrees(model))
        raise ValueError(f"tensor-parallel degree {tp} {obstacle} of {model.key}; possible: {possible}")


def _obstacle(model: Model, tp: int) -> str | None:
    """The reason why `tp` GPUs cannot share a block, as the end of a sentence, or None."""
    if type(tp) is not int or tp < 1:
        return "is not a positive integer, so it does not divide the heads"
    if model.heads % tp:
        return f"does not divide the {model.heads} heads"
    if model.kv_heads % tp and tp % model.kv_heads:
        return f"neither divides nor is a multiple of the {model.kv_heads} KV heads"
    if model.intermediate % tp:
        return f"does not divide the {model.intermediate} intermediate features"
    return None


def _count(config: dict, key: str, path: Path, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise ValueError(f"{path}: {key} must be a positive integer, got {value!r}")
    return value
