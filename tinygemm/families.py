"""The families of decoders: from the numbers of a config.json to the weights of its blocks."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tinygemm.config_json import Config
from tinygemm.models import Model, Side, Span, Weight, attention_weights, gated_weights

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
    width, used = expert_width(config), config.count("used")
    if used > experts:
        config.refuse(f"{used} experts per token are more than the {experts} that there are")
    weights = gated_weights(hidden, width, layers, "experts.", experts, used)
    shared = config.number("shared_width") or config.number("shared") * width
    if not shared:
        return weights
    return (*weights, *gated_weights(hidden, shared, layers, "shared."))


def expert_width(config: Config) -> int:
    """Features inside one expert."""
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


def family_of(config: Config) -> Family:
    """The family of a config's decoder; raises ValueError saying why where there is none."""
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
