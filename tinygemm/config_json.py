"""The decoder's part of a config.json, whatever its keys are called and wherever they stand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

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
ALSO = {  # the type of the decoder where a file does not name it, or names it by another name
    "RefinedWebModel": "falcon", "RefinedWeb": "falcon", "llama4": "llama4_text", "gemma3": "gemma3_text",
    "gemma4": "gemma4_text", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text", "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text", "qwen3_vl": "qwen3_vl_text", "qwen3_vl_moe": "qwen3_vl_moe_text",
}  # fmt: skip


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


def object_in(path: Path) -> dict:
    """The JSON object of a file; raises ValueError naming the file where it holds none, OSError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object with keys such as hidden_size")
    return values


def decoder_in(path: Path, values: dict) -> Config:
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
