"""The transformers whose projections are measured or asked about, and their weights as tensor parallelism cuts them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tinygemm.problem import Layer

TENSOR_PARALLEL = (1, 2, 4, 8)
MODEL_GROUP_SIZES = (128, 64, 32)  # in order of preference: fewer scales, fewer bytes
VARIANT = re.compile(r"-(instruct|it|chat|base|hf|\d+k)\b")  # parts of a name that leave every shape as it is


@dataclass(frozen=True)
class Span:
    """Features of a weight that GPUs share: `count` units, such as heads, of `width` features.

    what:     the units in the words of an error
    repeated: where there are fewer units than GPUs, several GPUs hold the same unit
    """

    count: int
    width: int
    what: str
    repeated: bool = False

    def size(self, tp: int = 1) -> int:
        """Features on one of `tp` GPUs."""
        return max(self.count // tp, 1) * self.width

    def obstacle(self, tp: int) -> str | None:
        """The end of a sentence on a degree that does not cut these units, or None."""
        if self.count % tp == 0 or (self.repeated and tp % self.count == 0):
            return None
        verb = "neither divides nor is a multiple of" if self.repeated else "does not divide"
        return f"{verb} the {self.count} {self.what}"


Side = int | tuple[Span, ...]  # an int: every GPU holds all of it


@dataclass(frozen=True)
class Weight:
    """One kind of weight in the blocks of a model, `weight[N, K]`, before it is cut.

    layer:   its name
    K, N:    input and output features
    layers:  blocks that hold it
    experts: weights of this kind that a block stores
    used:    experts of a block that one token is multiplied by
    """

    layer: str
    K: Side
    N: Side
    layers: int
    experts: int = 1
    used: int = 1

    def calls(self, M: int = 1) -> int:
        """Products in one step of M tokens, as if each token went to experts of its own as long as there are any."""
        return self.layers * min(self.experts, M * self.used)

    def tokens(self, M: int = 1) -> int:
        """Rows of x in each of these products: M, or an expert's even share of the M tokens, rounded up."""
        return -(-M * self.used // min(self.experts, M * self.used))

    @property
    def spans(self) -> tuple[Span, ...]:
        """All units that GPUs share."""
        return tuple(span for side in (self.K, self.N) if not isinstance(side, int) for span in side)


@dataclass(frozen=True)
class Quantised:
    """The format in which a checkpoint stores its weights; bits per weight, weights per scale; None: unsaid."""

    method: str
    bits: int | None = None
    group_size: int | None = None


@dataclass(frozen=True)
class Model:
    """A decoder-only transformer by its published config.json.

    hidden, intermediate: features of the residual stream and of the feed-forward layer (of an expert, if all are)
    layers:               transformer blocks
    heads, kv_heads:      query heads, and key/value heads that they share
    head_dim:             features of one head
    vocab:                rows of the output matrix (lm_head)
    source:               where the figures stand
    tied:                 lm_head and the embedding are one matrix
    blocks:               the weights of the blocks; empty: the four of a gated dense block
    cached:               numbers that one token adds to the KV cache of all blocks; empty: K and V of every block
    stored_as:            the format of a quantised checkpoint; None: 16-bit floats
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
    tied: bool = False
    blocks: tuple[Weight, ...] = ()
    cached: Side = ()
    stored_as: Quantised | None = None

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every kind of weight that the blocks multiply by, fused as inference engines fuse them."""
        return self.blocks or (*attention_weights(self), *gated_weights(self.hidden, self.intermediate, self.layers))

    @property
    def cache(self) -> Side:
        """Numbers that one token adds to the KV cache of all blocks, a sliding window's as if it had no end."""
        return self.cached or (Span(self.kv_heads, 2 * self.head_dim * self.layers, "KV heads", repeated=True),)


def attention_weights(model: Model, layers: int | None = None, query: int = 1) -> tuple[Weight, Weight]:
    """qkv_proj and o_proj of grouped-query attention; `query`: 2 where every query head has a gate of its size."""
    layers = model.layers if layers is None else layers
    heads, kv = model.head_dim, Span(model.kv_heads, 2 * model.head_dim, "KV heads", repeated=True)
    return (
        Weight("qkv_proj", model.hidden, (Span(model.heads, query * heads, "heads"), kv), layers),
        Weight("o_proj", (Span(model.heads, heads, "heads"),), model.hidden, layers),
    )


def gated_weights(hidden: int, width: int, layers: int, prefix: str = "", experts=1, used=1) -> tuple[Weight, Weight]:
    """gate_up_proj and down_proj of a gated feed-forward layer, or of its experts."""
    one = Span(width, 1, "intermediate features")
    return (
        Weight(f"{prefix}gate_up_proj", hidden, (one, one), layers, experts, used),
        Weight(f"{prefix}down_proj", (one,), hidden, layers, experts, used),
    )


MODELS = {
    model.key: model
    for model in (
        Model("llama-3-8b", 4096, 14336, 32, 32, 8, 128, 128256, "huggingface.co/meta-llama/Meta-Llama-3-8B"),
        Model("llama-3-70b", 8192, 28672, 80, 64, 8, 128, 128256, "huggingface.co/meta-llama/Meta-Llama-3-70B"),
        Model("qwen2.5-0.5b", 896, 4864, 24, 14, 2, 64, 151936, "huggingface.co/Qwen/Qwen2.5-0.5B", True),
        Model("qwen2.5-7b", 3584, 18944, 28, 28, 4, 128, 152064, "huggingface.co/Qwen/Qwen2.5-7B"),
        Model("qwen2.5-72b", 8192, 29568, 80, 64, 8, 128, 152064, "huggingface.co/Qwen/Qwen2.5-72B"),
        Model("mistral-7b", 4096, 14336, 32, 32, 8, 128, 32768, "huggingface.co/mistralai/Mistral-7B-v0.3"),
        Model("gemma-2-9b", 3584, 14336, 42, 16, 8, 256, 256000, "huggingface.co/google/gemma-2-9b", True),
        Model("phi-3-mini", 3072, 8192, 32, 32, 32, 96, 32064, "huggingface.co/microsoft/Phi-3-mini-4k-instruct"),
    )
}


def _plain(name: str) -> str:
    return VARIANT.sub("", name.lower())


# every name of a model: its key, and that on its hub with and without whose it is
NAMES = {
    name: model
    for model in MODELS.values()
    for hub in [_plain(model.source.partition("/")[2])]
    for name in (model.key, hub, hub.partition("/")[2])
}


def known_model(name: str) -> Model | None:
    """The model of the table that a key stands for, or a name such as `Qwen/Qwen2.5-7B-Instruct`; None: no such model.

    name: in any case; what only training changes (`-instruct`, `-chat`) is left out of it
    """
    return NAMES.get(_plain(name.strip("/")))


def projections(model: Model, tp: int = 1, group_size: int = 128) -> tuple[Layer, ...]:
    """The weights of `model.weights` as one GPU multiplies by them, in the same order.

    model:      the architecture
    tp:         tensor-parallel degree: qkv_proj and gate_up_proj are cut along N, o_proj and down_proj along K;
                KV heads are repeated where there are fewer of them than GPUs
    group_size: largest wanted; each layer gets the largest of 128, 64, 32 up to it that divides its K,
                and None where none does: this weight cannot be quantised in groups
    raises:     ValueError naming the degree and what it does not divide
    source:     Shoeybi et al. 2019, Megatron-LM, section 3
    """
    _check_degree(model, tp)
    shapes = ((weight.layer, side_of(weight.K, tp), side_of(weight.N, tp)) for weight in model.weights)
    return tuple(Layer(model.key, layer, K, N, group_size_for(K, group_size)) for layer, K, N in shapes)


def side_of(side: Side, tp: int = 1) -> int:
    """Features of one side of a weight that one of `tp` GPUs holds."""
    return side if isinstance(side, int) else sum(span.size(tp) for span in side)


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


def _check_degree(model: Model, tp: int) -> None:
    if obstacle := _obstacle(model, tp):
        possible = ", ".join(str(each) for each in possible_degrees(model))
        raise ValueError(f"tensor-parallel degree {tp} {obstacle} of {model.key}; possible: {possible}")


def _obstacle(model: Model, tp: int) -> str | None:
    """The reason why `tp` GPUs cannot share a block, as the end of a sentence, or None."""
    if type(tp) is not int or tp < 1:
        return "is not a positive integer, so it does not divide the heads"
    return next((why for weight in model.weights for span in weight.spans if (why := span.obstacle(tp))), None)
