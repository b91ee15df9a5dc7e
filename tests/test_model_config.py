"""Every config.json that people have is read to the shape, or refused in one sentence that names the file."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygemm import families
from tinygemm.config_json import ALSO
from tinygemm.model_config import from_config, model_named, quantised
from tinygemm.models import MODELS, TENSOR_PARALLEL, Quantised, possible_degrees, projections, side_of

# name, config, shapes of its weights on one GPU as `layer=K,Nxexperts` (from the models' own files), or the number of
# weights in its blocks (counted by transformers 5.24 in the model that its class of configuration makes by default)
with open(Path(__file__).parent / "data" / "model_configs.csv", encoding="utf-8", newline="") as file:
    FACTS = list(csv.DictReader(file))
BY_NAME = {fact["name"]: json.loads(fact["config"]) for fact in FACTS}
LLAMA = BY_NAME["Llama-3.1-8B"]
MISTRAL = LLAMA | {"model_type": "mistral", "vocab_size": 32768, "head_dim": None}
QWEN = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
GEMMA = {
    "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
}  # fmt: skip
PHI = {
    "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    def write(values, name="some-model", file="config.json"):
        path = folder / name.replace("/", "-") / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
        return path

    return write


def stored(model, tp=1):
    return sum(
        layer.K * layer.N * weight.layers * weight.experts
        for layer, weight in zip(projections(model, tp), model.weights, strict=True)
    )


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact["name"])
def test_every_kind_of_config_is_right_to_the_shape(config, fact):
    model = from_config(config(fact["config"], fact["name"]))
    found = {
        layer.layer: (layer.K, layer.N, weight.experts)
        for layer, weight in zip(projections(model), model.weights, strict=True)
    }
    for shape in filter(None, fact["shapes"].split(";")):
        name, _, size = shape.partition("=")
        sides, _, experts = size.partition("x")
        assert found[name] == (*(int(side) for side in sides.split(",")), int(experts or 1)), name
    if fact["weights"]:
        assert stored(model) == int(fact["weights"])


def test_enough_kinds_are_read():
    assert len({json.loads(fact["config"])["model_type"] for fact in FACTS}) >= 60
    assert len([fact for fact in FACTS if fact["shapes"]]) >= 40


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact["name"])
def test_gpus_hold_every_weight_between_them(config, fact):
    model = from_config(config(fact["config"], fact["name"]))
    assert 1 in possible_degrees(model)
    for tp in possible_degrees(model, TENSOR_PARALLEL[1:]):
        assert stored(model) <= tp * stored(model, tp) <= tp * stored(model)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (LLAMA, "llama-3-8b"),
        (MISTRAL, "mistral-7b"),
        (QWEN, "qwen2.5-0.5b"),
        (GEMMA, "gemma-2-9b"),
        (PHI, "phi-3-mini"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_of_each_family_describes_the_model_of_the_table(config, values, key):
    read, known = model_named(str(config(values, key))), MODELS[key]
    numbers = ("key", "hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim", "vocab", "tied")
    assert [getattr(read, name) for name in numbers] == [getattr(known, name) for name in numbers]
    assert read.source == "config.json"
    assert read.weights == known.weights
    assert side_of(read.cache) == side_of(known.cache)
    assert projections(read, 2) == projections(known, 2)


def test_a_folder_a_file_under_any_name_and_a_known_name_in_any_case_are_models(config):
    path = config(LLAMA, "a-folder")
    for said in (path, path.parent, f"{path.parent}/"):
        assert from_config(said).key == model_named(str(said)).key == "a-folder"
    assert model_named(str(config(LLAMA, "a-folder", "mine.json"))).key == "mine"
    assert model_named(str(config(LLAMA, "a-folder", "mine.txt"))).key == "mine"
    assert model_named("META-LLAMA/Meta-Llama-3-8B") is model_named("Llama-3-8B") is MODELS["llama-3-8b"]


def test_missing_kv_heads_are_as_many_as_heads(config):
    assert from_config(config({k: v for k, v in PHI.items() if k != "num_key_value_heads"})).kv_heads == 32


@given(st.sets(st.sampled_from(["head_dim", "num_key_value_heads", "tie_word_embeddings", "quantization_config"])))
def test_null_is_as_good_as_missing(config, keys):
    whole = BY_NAME["Llama-2-7B without num_key_value_heads"]
    assert from_config(config(whole | dict.fromkeys(keys))) == from_config(config(whole))


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.integers() | st.text(max_size=3) | st.none(), max_size=4))
def test_keys_that_nobody_knows_change_nothing(config, more):
    more = {key: value for key, value in more.items() if key not in LLAMA}
    assert from_config(config(more | LLAMA)) == from_config(config(LLAMA))


@pytest.mark.parametrize("outer", ["mistral3", "gemma3", "qwen3_vl", "some-thing-new"])
def test_a_nested_decoder_is_read_like_the_same_one_alone(config, outer):
    nested = {"model_type": outer, "text_config": MISTRAL, "vision_config": {"hidden_size": 7, "num_hidden_layers": 1}}
    assert from_config(config(nested)) == from_config(config(MISTRAL))
    assert from_config(config({"thinker_config": nested})) == from_config(config(MISTRAL))


def test_a_nested_decoder_may_leave_out_what_its_class_has(config):
    read = from_config(config({"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}))
    assert (read.hidden, read.layers, read.heads, read.vocab) == (4096, 32, 32, 32064)
    with pytest.raises(ValueError, match="num_attention_heads"):
        from_config(config({"model_type": "llama", "vocab_size": 32064}))


@pytest.mark.parametrize(
    ("name", "used", "shared"),
    [("Mixtral-8x7B", 2, None), ("Qwen3-30B-A3B", 8, None), ("DeepSeek-V3", 8, 2048), ("Llama-4-Scout", 1, 8192)],
)
def test_a_token_goes_to_its_experts_and_to_those_that_all_share(config, name, used, shared):
    model = from_config(config(BY_NAME[name], name))
    weights = {weight.layer: weight for weight in model.weights}
    experts = weights["experts.down_proj"]
    assert experts.used == used
    assert experts.calls() == experts.layers * used
    assert (side_of(weights["shared.down_proj"].K) if "shared.down_proj" in weights else None) == shared


@pytest.mark.parametrize(
    ("name", "dense", "sparse"),
    [("DeepSeek-V3", 3, 58), ("Kimi-K2", 1, 60), ("Llama-4-Maverick", 24, 24), ("Gemma-4-26B-A4B", 30, 30)],
)
def test_blocks_with_experts_are_told_from_dense_ones(config, name, dense, sparse):
    weights = {weight.layer: weight.layers for weight in from_config(config(BY_NAME[name], name)).weights}
    assert (weights["down_proj"], weights["experts.down_proj"]) == (dense, sparse)


@given(st.lists(st.sampled_from(["dense", "sparse"]), min_size=4, max_size=4))
def test_blocks_with_experts_may_be_listed_one_by_one(config, kinds):
    values = BY_NAME["Qwen3-30B-A3B"] | {"num_hidden_layers": 4, "mlp_layer_types": kinds}
    weights = {weight.layer: weight.layers for weight in from_config(config(values)).weights}
    assert weights.get("experts.down_proj", 0) == kinds.count("sparse")
    assert weights.get("down_proj", 0) == kinds.count("dense")
    flags = values | {"mlp_layer_types": None, "moe_layer_freq": [int(kind == "sparse") for kind in kinds]}
    assert from_config(config(flags)).weights == from_config(config(values)).weights


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("Llama-3.1-8B", 2 * 32 * 8 * 128),
        ("DeepSeek-V3", 61 * (512 + 64)),
        ("Qwen3.5-27B", 2 * 16 * 4 * 256),  # only every fourth block keeps tokens
        ("Gemma-4-31B", 2 * 50 * 16 * 256 + 10 * 4 * 512),  # K is V in the blocks that see everything
        ("Falcon-7B", 2 * 32 * 64),
    ],
)
def test_a_token_adds_to_the_cache_what_its_blocks_keep(config, name, numbers):
    assert side_of(from_config(config(BY_NAME[name], name)).cache) == numbers


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, Quantised("gptq", 4, 128)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "gemm"}, Quantised("awq", 4, 64)),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, Quantised("gptq", 4, None)),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": True}}},
            },
            Quantised("compressed-tensors", 4, 32),
        ),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, Quantised("fp8", 8, None)),
        ({"quant_method": "mxfp4", "modules_to_not_convert": []}, Quantised("mxfp4", 4, 32)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Quantised("bitsandbytes", 4, None)),
        (
            {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
            Quantised("hqq", 4, 64),
        ),
        ({"bits": 4}, Quantised("unnamed", 4, None)),
        ({}, None),
        ("gptq", None),
        (None, None),
    ],
)
def test_bits_and_group_size_of_a_quantised_checkpoint_are_read(config, said, read):
    values = LLAMA | {"quantization_config": said}
    assert quantised(values) == from_config(config(values)).stored_as == read
    assert from_config(config({"model_type": "mistral3", "text_config": MISTRAL} | values)).stored_as == read


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_size": None}, "config.json: hidden_size must be a positive integer, got None"),
        ({"num_hidden_layers": "32"}, "config.json: num_hidden_layers must be a positive integer, got '32'"),
        ({"intermediate_size": True}, "config.json: intermediate_size"),
        ({"intermediate_size": None}, "config.json: intermediate_size_mlp|config.json: intermediate_size"),
        ({"model_type": None}, "config.json: model_type is None"),
        ({"model_type": "lama"}, "config.json: model_type is 'lama'.*llama"),
        ({"model_type": ["llama"]}, "config.json: model_type"),
        ({"num_attention_heads": 30, "num_key_value_heads": 30}, "config.json: head_dim is missing"),
        ({"num_key_value_heads": 5}, "config.json: num_key_value_heads=5 does not divide"),
        ({"num_local_experts": 8}, "config.json: num_experts_per_tok"),
        ({"num_local_experts": 8, "num_experts_per_tok": 9}, "config.json: 9 experts per token"),
        ({"model_type": "gemma4_text", "hidden_size_per_layer_input": 256}, "config.json: inputs per layer"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_by_file_and_key(config, change, match):
    with pytest.raises(ValueError, match=match) as refused:
        from_config(config(LLAMA | change))
    assert "\n" not in str(refused.value)


REFUSED = [kind for kinds in families.REFUSED.values() for kind in kinds.split()]


@pytest.mark.parametrize("kind", [*REFUSED, "nemotron_of_next_year", "diffusion"])
def test_a_family_that_is_not_described_is_refused_in_one_sentence(config, kind):
    with pytest.raises(ValueError, match=r"config\.json: model_type") as refused:
        from_config(config(LLAMA | {"model_type": kind}))
    assert repr(kind) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_family_is_both_read_and_refused():
    assert not set(REFUSED) & set(families.FAMILIES)
    assert set(ALSO.values()) <= set(families.FAMILIES)


@pytest.mark.parametrize(
    ("text", "match"), [("{", "config.json: not JSON"), ("[]", "config.json: expected a JSON object")]
)
def test_a_file_that_is_no_object_is_refused(config, text, match):
    with pytest.raises(ValueError, match=match):
        from_config(config(text))


def test_a_folder_without_a_config_and_a_missing_file_are_named(tmp_path):
    for said in (tmp_path, tmp_path / "x.json"):
        with pytest.raises(OSError, match=r"(config|x)\.json"):
            model_named(str(said))


def test_an_unknown_model_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"unknown model 'llama-9'.*llama-3-8b.*config\.json"):
        model_named("llama-9")
