"""A config.json as checkpoints have it, read into a model: names of fields, families of blocks, formats of weights."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tinygemm.models import (
    MODELS,
    Model,
    Quantised,
    Side,
    Span,
    Weight,
    attention_weights,
    gated_weights,
    known_model,
)

# what each number is called in a config.json; the first that is given counts
FIELDS = {
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "kv_n_heads"),
    "head_dim": ("head_dim", "kv_channels"),
    "intermediate": (
        "intermediate_size_mlp", "intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim",
    ),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "used": ("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k", "top_k_experts"),
    "expert_width": ("moe_intermediate_size", "intermediate_size", "ffn_hidden_size"),
    "shared": ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"),
    "shared_width": (
        "shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size",
    ),
    "dense_first": ("first_k_dense_replace", "moe_layer_start_index"),
    "sparse_step": ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval"),
}  # fmt: skip
SECTIONS = ("attn_config", "ffn_config")  # objects inside a config.json whose keys count as its own
NESTED = (
    "text_config",
    "language_config",
    "llm_config",
    "thinker_config",
)  # where models that also see or hear keep it
# what a nested section may leave out because the class of its type has it
UNSAID = {
    "llama": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "mistral": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000,
    },
    "gemma3_text": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
TIED = ("gemma", "gemma2", "gemma3_text", "gemma4_text", "cohere", "cohere2", "gpt2", "falcon", "bloom", "mpt", "opt")


@dataclass(frozen=True)
class Config:
    """The part of a config.json that describes the decoder, and the file's name for errors."""

    path: Path
    values: dict

    @property
    def kind(self) -> str:
        """The type of its decoder, as FAMILIES spells it."""
        return _kind(self.values)

    def given(self, name: str):
        """The value of a key that is there and not null, or None."""
        return self.values.get(name)

    def count(self, name: str, default: int | None = None) -> int:
        """A positive integer, by a name of FIELDS or the key itself; raises ValueError naming file and key."""
        keys = FIELDS.get(name, (name,))
        key = next((key for key in keys if self.given(key) is not None), keys[0])
        value = self.given(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or value < 1:
            raise ValueError(f"{self.path}: {key} must be a positive integer, got {value!r}")
        return value

    def number(self, name: str) -> int:
        """Like `count`, but 0 where the key is missing, null or 0."""
        keys = FIELDS.get(name, (name,))
        return self.count(name) if any(self.given(key) for key in keys) else 0

    def refuse(self, why: str):
        raise ValueError(f"{self.path}: {why}")


# --- attention ------------------------------------------------------------------------------------------------------


def grouped_query(config: Config, model: Model) -> tuple[tuple[Weight, ...], Side]:
    """The weights of grouped-query attention in every block, and what it caches (empty: K and V of every block)."""
    return attention_weights(model), ()


def latent(config: Config, model: Model) -> tuple[tuple[Weight, ...], Side]:
    """Multi-head latent attention as of DeepSeek-V2: x and the cache are projected down, then up to every head."""
    rope, nope = config.count("qk_rope_head_dim"), config.count("qk_nope_head_dim")
    value, kv_rank = config.count("v_head_dim", model.hidden // model.heads), config.count("kv_lora_rank")
    query_rank, n = config.number("q_lora_rank"), model.layers
    query, key_value, out = (
        (Span(model.heads, width, "heads"),) for width in (nope + rope, nope + value, value)
    )  # fmt: skip
    if query_rank:
        queries = (Weight("q_a_proj", model.hidden, query_rank, n), Weight("q_b_proj", query_rank, query, n))
    else:
        queries = (Weight("q_proj", model.hidden, query, n),)
    weights = (
        *queries,
        Weight("kv_a_proj", model.hidden, kv_rank + rope, n),
        Weight("kv_b_proj", kv_rank, key_value, n),
        Weight("o_proj", out, model.hidden, n),
    )
    if keys := config.number("index_n_heads"):  # picks the tokens that attention looks at
        width = config.count("index_head_dim")
        weights += (
            Weight("indexer.q_proj", query_rank or model.hidden, keys * width, n),
            Weight("indexer.k_proj", model.hidden, width, n),
        )
    return weights, (kv_rank + rope) * n


def partly_linear(config: Config, model: Model) -> tuple[tuple[Weight, ...], Side]:
    """Gated attention in every fourth block or so, linear attention, which caches no tokens, in the others."""
    full = _blocks_of(config, "full_attention", model.layers // config.count("full_attention_interval", 4))
    gates = 1 if config.given("attn_output_gate") is False else 2
    keys = Span(config.count("linear_num_key_heads"), 2 * config.count("linear_key_head_dim"), "linear key heads")
    values = config.count("linear_num_value_heads"), config.count("linear_value_head_dim")
    with_gate, out = (Span(values[0], width * values[1], "linear value heads") for width in (2, 1))
    weights = (
        *attention_weights(model, full, gates),
        Weight("linear.in_proj", model.hidden, (keys, with_gate), model.layers - full),
        Weight("linear.out_proj", (out,), model.hidden, model.layers - full),
    )
    return weights, (Span(model.kv_heads, 2 * model.head_dim * full, "KV heads", repeated=True),)


def two_widths(config: Config, model: Model) -> tuple[tuple[Weight, ...], Side]:
    """Attention of Gemma 4: blocks with a sliding window, and some with wider heads that see everything."""
    if config.number("hidden_size_per_layer_input") or config.number("num_kv_shared_layers"):
        config.refuse("inputs per layer or KV caches shared between layers (gemma4 E models) are not described here")
    full = _blocks_of(config, "full_attention", model.layers // 6)
    wide = replace(
        model,
        head_dim=config.count("global_head_dim", model.head_dim),
        kv_heads=config.count("num_global_key_value_heads", model.kv_heads),
    )
    same = bool(config.given("attention_k_eq_v"))  # then K is V, too, and one matrix makes both
    kv = wide.head_dim * (1 if same else 2)
    qkv, out = attention_weights(wide, full)
    weights = (
        *attention_weights(model, model.layers - full),
        replace(qkv, layer="global.qkv_proj", N=(qkv.N[0], Span(wide.kv_heads, kv, "global KV heads", repeated=True))),
        replace(out, layer="global.o_proj"),
    )
    return weights, (
        Span(model.kv_heads, 2 * model.head_dim * (model.layers - full), "KV heads", repeated=True),
        Span(wide.kv_heads, kv * full, "global KV heads", repeated=True),
    )


# --- feed-forward ---------------------------------------------------------------------------------------------------


def gated(config: Config, model: Model) -> tuple[Weight, ...]:
    """A gated feed-forward layer in every block, or experts in as many as the config says."""
    experts = config.number("experts")
    sparse = _sparse_blocks(config, model.layers) if experts > 1 else 0
    weights = ()
    if sparse < model.layers:
        weights += gated_weights(model.hidden, config.count("intermediate"), model.layers - sparse)
    if sparse:
        weights += _experts(config, model.hidden, sparse, experts)
    return weights


def gated_beside_experts(config: Config, model: Model) -> tuple[Weight, ...]:
    """A gated feed-forward layer in every block, with experts beside it where the config has them."""
    weights = gated_weights(model.hidden, config.count("intermediate"), model.layers)
    if not config.given("enable_moe_block"):
        return weights
    width, experts, used = (config.count(name) for name in ("expert_width", "experts", "used"))
    return (*weights, *gated_weights(model.hidden, width, model.layers, "experts.", experts, used))


def plain(config: Config, model: Model) -> tuple[Weight, ...]:
    """A feed-forward layer without a gate, four times as wide as the residual stream unless the config says else."""
    wide = (Span(model.intermediate, 1, "intermediate features"),)
    return (
        Weight("up_proj", model.hidden, wide, model.layers),
        Weight("down_proj", wide, model.hidden, model.layers),
    )


def _experts(config: Config, hidden: int, layers: int, experts: int) -> tuple[Weight, ...]:
    """The experts of the sparse blocks, and beside them those that every token goes through, as one."""
    width, used = _expert_width(config), config.count("used")
    if used > experts:
        config.refuse(f"{used} experts per token are more than the {experts} that there are")
    weights = gated_weights(hidden, width, layers, "experts.", experts, used)
    shared = config.number("shared_width") or config.number("shared") * width
    if not shared:
        return weights
    return (*weights, *gated_weights(hidden, shared, layers, "shared."))


def _expert_width(config: Config) -> int:
    width = config.given("moe_intermediate_size")
    return width[0] if isinstance(width, list) and len(set(width)) == 1 else config.count("expert_width")


def _sparse_blocks(config: Config, layers: int) -> int:
    """Blocks with experts: listed one by one, or every so many, or all behind the first few."""
    if isinstance(kinds := config.given("mlp_layer_types"), list):
        return kinds.count("sparse")
    if isinstance(listed := config.given("moe_layers"), list):
        return len(listed)
    if isinstance(flags := config.given("moe_layer_freq"), list):
        return sum(map(bool, flags))
    dense = set(range(config.number("dense_first"))) | set(config.given("mlp_only_layers") or ())
    step = config.count("sparse_step", 1)
    return sum((block + 1) % step == 0 and block not in dense for block in range(layers))


def _blocks_of(config: Config, kind: str, default: int) -> int:
    kinds = config.given("layer_types")
    return kinds.count(kind) if isinstance(kinds, list) else default


# --- families -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """The parts that a block is made of; `fixed`: fields that every config of the family stands for, said or not."""

    attention: Callable = grouped_query
    feed_forward: Callable = gated
    fixed: dict = field(default_factory=dict)


def _families() -> dict[str, Family]:
    """model_type -> family."""
    gated_types = (
        "llama mistral ministral ministral3 mixtral qwen2 qwen3 qwen2_moe qwen3_moe qwen3_vl_text qwen3_vl_moe_text "
        "qwen2_vl_text qwen2_5_vl_text gemma gemma2 gemma3_text vaultgemma phi3 phimoe mimo granite granitemoe "
        "granitemoeshared olmo olmo2 olmo3 olmoe cohere cohere2 glm glm4 glm4_moe glm4v_text glm4v_moe_text smollm3 "
        "exaone exaone4 internlm internlm2 internlm3 baichuan stablelm seed_oss helium hunyuan_v1_dense hunyuan_v1_moe "
        "ernie4_5 ernie4_5_moe gpt_oss minimax_m2 dots1 deepseek bailing_moe minicpm aquila xverse yi orion dbrx "
        "chatglm solar_open"
    )
    plain_types = "gpt2 gptj gpt_neo gpt_neox codegen opt bloom phi persimmon starcoder2 nemotron arcee apertus"
    latent_types = "deepseek_v2 deepseek_v3 deepseek_v32 kimi_k2 glm_moe_dsa glm4_moe_lite minicpm3"
    linear_types = "qwen3_next qwen3_5_text qwen3_5_moe_text"
    return {
        **dict.fromkeys(gated_types.split(), Family()),
        **dict.fromkeys(plain_types.split(), Family(feed_forward=plain)),
        **dict.fromkeys(latent_types.split(), Family(latent)),
        **dict.fromkeys(linear_types.split(), Family(partly_linear)),
        **dict.fromkeys(("llama4_text",), Family(fixed={"n_shared_experts": 1})),
        **dict.fromkeys(("gemma4_text",), Family(two_widths, gated_beside_experts)),
        **dict.fromkeys(("falcon", "mpt", "gpt_bigcode"), Family(feed_forward=plain)),
    }


FAMILIES = _families()
ALSO = {  # the type of the decoder where a file does not name it, or names it by another name
    "RefinedWebModel": "falcon", "RefinedWeb": "falcon", "llama4": "llama4_text", "gemma3": "gemma3_text",
    "gemma4": "gemma4_text", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text", "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text", "qwen3_vl": "qwen3_vl_text", "qwen3_vl_moe": "qwen3_vl_moe_text",
}  # fmt: skip
REFUSED = {
    "is an encoder, or an encoder and a decoder, and its blocks are not those of a decoder alone": (
        "bert roberta modernbert t5 mt5 bart whisper pegasus clip siglip vit"
    ),
    "has state-space or recurrent blocks, whose weights are not described here": (
        "mamba mamba2 falcon_mamba rwkv jamba bamba zamba zamba2 falcon_h1 nemotron_h recurrent_gemma lfm2 lfm2_moe "
        "granitemoehybrid kimi_linear minimax bailing_hybrid xlstm olmo_hybrid plamo2"
    ),
    "has blocks that differ from one another (block_configs)": "nemotron-nas deci",
    "has inputs per layer and blocks in parallel, which are not described here": "gemma3n gemma3n_text",
    "has blocks of cross-attention to an image, which are not described here": "mllama mllama_text_model",
    "has two attentions a block and experts that do nothing, which are not described here": "longcat_flash",
    "has attention over compressed caches, which is not described here": "deepseek_v4",
}  # reason -> types


# --- reading --------------------------------------------------------------------------------------------------------


def model_named(name: str) -> Model:
    """A model of the table, or the one that a config.json describes.

    name:   a key such as `llama-3-8b`, or `meta-llama/Meta-Llama-3-8B`, in any case; a folder with a config.json, or
            such a file under any name
    raises: ValueError listing the known names, or saying why a file cannot be used; OSError where it cannot be read
    """
    if known := known_model(name):
        return known
    if name.endswith(".json") or Path(name).exists():
        return from_config(name)
    raise ValueError(
        f"unknown model {name!r}; known: {', '.join(MODELS)}, or a path to a config.json or to the folder of one"
    )


def from_config(path: str | Path) -> Model:
    """Read the config.json of a checkpoint: of a decoder alone, or of one inside a model that also sees or hears.

    path:    the file or its folder; the model is named after the folder, or after the file if that is named otherwise
    returns: the architecture; missing num_key_value_heads = num_attention_heads, missing head_dim = hidden / heads
    raises:  ValueError naming the file and the key, OSError where it cannot be read
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    top = _object(path)
    config = _decoder(path, top)
    family = _family(config)
    config = replace(config, values=config.values | family.fixed)
    model = _outline(config)
    attention, cached = family.attention(config, model)
    return replace(
        model,
        blocks=(*attention, *family.feed_forward(config, model)),
        cached=cached,
        stored_as=quantised(top) or quantised(config.values),
    )


def quantised(values: dict) -> Quantised | None:
    """The format of the weights by a config's `quantization_config`; None where it has none."""
    said = values.get("quantization_config") or values.get("compression_config")
    if not said or not isinstance(said, dict):
        return None
    method = str(said.get("quant_method") or said.get("quant_type") or "unnamed")
    inner = _weights_of(said)
    bits = _first(inner, "bits", "w_bit", "num_bits", "nbits") or BITS.get(method) or _flagged(said)
    group = _first(inner, "group_size", "q_group_size") or (32 if method == "mxfp4" else None)
    return Quantised(method, bits, group)


BITS = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4, "bitnet": 2}


def _weights_of(said: dict) -> dict:
    """Where a format keeps bits and group size: at the top, or in a group of layers, or under a name of its own."""
    groups = said.get("config_groups")
    first = next(iter(groups.values()), {}) if isinstance(groups, dict) else {}
    places = (said, first.get("weights"), (said.get("quant_config") or {}).get("weight_quant_params"))
    return {key: value for place in places if isinstance(place, dict) for key, value in place.items()}


def _first(values: dict, *keys: str) -> int | None:
    return next((values[key] for key in keys if type(values.get(key)) is int and values[key] > 0), None)


def _flagged(said: dict) -> int | None:
    return 4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else None


def _object(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object with keys such as hidden_size")
    return values


def _decoder(path: Path, values: dict) -> Config:
    """The decoder's own section, with what it leaves to its class, and sections inside it laid flat."""
    top = values
    while inner := next((values[name] for name in NESTED if isinstance(values.get(name), dict)), None):
        values = {key: values[key] for key in ("tie_word_embeddings", "model_type") if key in values} | inner
    if values is not top:
        unsaid = UNSAID.get(_kind(values), {})
        values = unsaid | {key: value for key, value in values.items() if value is not None}
    for name in SECTIONS:
        if isinstance(inner := values.get(name), dict):
            values = {key: value for key, value in inner.items() if key != "model_type"} | values
    return Config(path, values)


def _kind(values: dict) -> str:
    said = str(values.get("model_type"))
    return ALSO.get(said, said)


def _family(config: Config) -> Family:
    kind, said = config.kind, config.given("model_type")
    if why := next((why for why, kinds in REFUSED.items() if kind in kinds.split()), None):
        config.refuse(f"model_type {said!r} {why}")
    if kind not in FAMILIES:
        close = difflib.get_close_matches(kind, FAMILIES, 3, 0.4) or ["llama", "qwen3", "mixtral"]
        config.refuse(
            f"model_type is {said!r}, whose blocks are not described here; "
            f"{len(FAMILIES)} types are, such as {', '.join(close)}"
        )
    return FAMILIES[kind]


def _outline(config: Config) -> Model:
    """The numbers that every model has."""
    heads, hidden = config.count("heads"), config.count("hidden")
    if config.given("head_dim") is None and config.given("kv_lora_rank") is None and hidden % heads:
        config.refuse(f"head_dim is missing and num_attention_heads={heads} does not divide {hidden}")
    kv_heads = config.count("kv_heads", heads)
    if _one_kv_head(config):
        kv_heads = 1
    if heads % kv_heads:
        config.refuse(f"num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}")
    tied = config.given("tie_word_embeddings")
    folder, stem = config.path.resolve().parent.name, config.path.stem
    return Model(
        key=folder if stem == "config" and folder else stem,
        hidden=hidden,
        intermediate=_intermediate(config, hidden),
        layers=config.count("layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.count("head_dim", hidden // heads),
        vocab=config.count("vocab"),
        source=config.path.name,
        tied=config.kind in TIED if tied is None else bool(tied),
    )


def _one_kv_head(config: Config) -> bool:
    """Falcon and GPT-BigCode say so by a flag, which counts unless their newer blocks name the number."""
    if config.given("new_decoder_architecture"):
        return False
    return bool(config.given("multi_query")) or config.given("attn_type") == "multiquery_attention"


def _intermediate(config: Config, hidden: int) -> int:
    """The width of a dense feed-forward layer; four times the residual stream in families that leave it unsaid."""
    if FAMILIES[config.kind].feed_forward is plain:
        return config.count("intermediate", hidden * config.count("expansion_ratio", 4))
    return config.count("intermediate", _expert_width(config) if config.number("experts") else None)
