"""A config.json as checkpoints have it, read into a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tinygemm.config_json import Config, decoder_in, object_in
from tinygemm.families import FAMILIES, expert_width, family_of, plain
from tinygemm.models import MODELS, Model, Quantised, known_model

# families whose lm_head is the embedding unless the config says else
TIED = ("gemma", "gemma2", "gemma3_text", "gemma4_text", "cohere", "cohere2", "gpt2", "falcon", "bloom", "mpt", "opt")
BITS = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4, "bitnet": 2}  # of formats that have but one


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
    top = object_in(path)
    config = decoder_in(path, top)
    family = family_of(config)
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


def _weights_of(said: dict) -> dict:
    """The place of bits and group size in a format: at the top, or in a group of layers, or under a name of its own."""
    groups = said.get("config_groups")
    first = next(iter(groups.values()), {}) if isinstance(groups, dict) else {}
    places = (said, first.get("weights"), (said.get("quant_config") or {}).get("weight_quant_params"))
    return {key: value for place in places if isinstance(place, dict) for key, value in place.items()}


def _first(values: dict, *keys: str) -> int | None:
    return next((values[key] for key in keys if type(values.get(key)) is int and values[key] > 0), None)


def _flagged(said: dict) -> int | None:
    return 4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else None


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
    return config.count("intermediate", expert_width(config) if config.number("experts") else None)
