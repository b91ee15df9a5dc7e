"""Model table: projections are those of the published files, cut as engines cut them, and every refusal says why."""

import json

import pytest

from tinygemm import models
from tinygemm.models import MODELS, Model, decode_shapes, from_config, projections
from tinygemm.problem import LLAMA_3_8B, GemmProblem

# a config.json in the style of each family, as the hub has them; keys that nobody reads left in on purpose
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "rope_theta": 500000.0, "torch_dtype": "bfloat16",
}  # fmt: skip
GEMMA = {
    "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
}  # fmt: skip
QWEN = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
PHI = {
    "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
}  # fmt: skip
MISTRAL = LLAMA | {"model_type": "mistral", "vocab_size": 32768, "head_dim": None}


def shapes(model, tp=1):
    return {layer.layer: (layer.K, layer.N, layer.group_size) for layer in projections(model, tp)}


@pytest.fixture
def config(tmp_path):
    def write(values, name="some-model"):
        path = tmp_path / name / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
        return path

    return write


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_projections_of_llama_3_8b():
    assert shapes(MODELS["llama-3-8b"]) == {
        "qkv_proj": (4096, 6144, 128),
        "o_proj": (4096, 4096, 128),
        "gate_up_proj": (4096, 28672, 128),
        "down_proj": (14336, 4096, 128),
    }


def test_heads_wider_than_the_residual_stream_count():
    assert shapes(MODELS["gemma-2-9b"])["qkv_proj"] == (3584, (16 + 2 * 8) * 256, 128)
    assert shapes(MODELS["gemma-2-9b"])["o_proj"] == (16 * 256, 3584, 128)


def test_the_named_layers_of_the_report_agree_with_the_table():
    model = MODELS["llama-3-8b"]
    fused = {layer.layer: (layer.K, layer.N) for layer in projections(model)}
    separate = {
        "q_proj": (model.hidden, model.heads * model.head_dim),
        "kv_proj": (model.hidden, model.kv_heads * model.head_dim),
        "up_proj": (model.hidden, model.intermediate),
    }
    for layer in LLAMA_3_8B:
        assert (layer.K, layer.N) == (fused | separate)[layer.layer]


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.key)
def test_a_model_is_named_by_its_key_and_says_where_its_figures_stand(model):
    assert models.model_named(model.key) is model
    assert model.source.startswith("huggingface.co/")
    assert model.heads % model.kv_heads == 0


def test_an_unknown_model_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"unknown model 'llama-9'.*llama-3-8b.*config\.json"):
        models.model_named("llama-9")


# --- tensor parallelism ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.key)
def test_gpus_share_all_weights_and_repeat_only_kv_heads(model):
    whole = sum(layer.K * layer.N for layer in projections(model))
    for tp in models.possible_degrees(model):
        repeated = 2 * max(tp - model.kv_heads, 0) * model.head_dim * model.hidden
        assert tp * sum(layer.K * layer.N for layer in projections(model, tp)) == whole + repeated


def test_columns_are_cut_along_n_and_rows_along_k():
    assert shapes(MODELS["llama-3-8b"], 8) == {
        "qkv_proj": (4096, 768, 128),
        "o_proj": (512, 4096, 128),
        "gate_up_proj": (4096, 3584, 128),
        "down_proj": (1792, 4096, 128),
    }


def test_kv_heads_are_repeated_where_there_are_fewer_than_gpus():
    assert shapes(MODELS["qwen2.5-7b"], 4)["qkv_proj"][1] == (7 + 2) * 128
    four_kv_heads = Model("some", 4096, 8192, 2, 32, 4, 128, 1000, "")
    assert shapes(four_kv_heads, 8)["qkv_proj"][1] == (4 + 2) * 128


@pytest.mark.parametrize(
    ("key", "tp", "match"),
    [
        ("qwen2.5-0.5b", 4, r"degree 4 does not divide the 14 heads of qwen2\.5-0\.5b; possible: 1, 2"),
        ("qwen2.5-7b", 8, r"degree 8 does not divide the 28 heads"),
        ("llama-3-8b", 0, r"degree 0 is not a positive integer"),
        ("llama-3-8b", 3, r"degree 3 does not divide the 32 heads"),
    ],
)
def test_a_degree_that_does_not_divide_is_refused(key, tp, match):
    with pytest.raises(ValueError, match=match):
        projections(MODELS[key], tp)


def test_a_degree_must_fit_kv_heads_and_the_feed_forward_layer_too():
    with pytest.raises(ValueError, match="neither divides nor is a multiple of the 3 KV heads"):
        projections(Model("some", 512, 1024, 1, 12, 3, 64, 100, ""), 2)
    with pytest.raises(ValueError, match="does not divide the 1023 intermediate features"):
        projections(Model("some", 512, 1023, 1, 8, 8, 64, 100, ""), 2)


# --- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "size"), [(4096, 128), (448, 64), (7392, 32), (3696, None)])
def test_a_layer_gets_the_largest_group_that_divides_k(K, size):
    assert models.group_size_for(K) == size


def test_a_smaller_wanted_group_is_the_limit():
    assert {layer.group_size for layer in projections(MODELS["llama-3-8b"], 1, 64)} == {64}


def test_a_weight_that_no_group_divides_is_none_and_not_measured():
    assert shapes(MODELS["qwen2.5-72b"], 8)["down_proj"] == (3696, 8192, None)
    assert not [shape for shape in decode_shapes() if shape[0] == 3696]


def test_decode_shapes_are_distinct_sorted_problems_of_possible_degrees():
    found = decode_shapes()
    assert list(found) == sorted(set(found))
    for K, N, group_size in found:
        GemmProblem(1, N, K, group_size)
    assert set(decode_shapes((1,))) < set(found)
    wanted = {
        (layer.K, layer.N, layer.group_size) for tp in (1, 2) for layer in projections(MODELS["qwen2.5-0.5b"], tp)
    }
    assert wanted <= set(found)


# --- config.json ----------------------------------------------------------------------------------------------------


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
    path = config(values, key)
    read = models.model_named(str(path))
    known = MODELS[key]
    assert read == Model(
        key, known.hidden, known.intermediate, known.layers, known.heads, known.kv_heads, known.head_dim, known.vocab,
        "config.json",
    )  # fmt: skip
    assert projections(read, 2) == projections(known, 2)


def test_missing_kv_heads_are_as_many_as_heads(config):
    assert from_config(config({k: v for k, v in PHI.items() if k != "num_key_value_heads"})).kv_heads == 32


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_size": None}, "config.json: hidden_size must be a positive integer, got None"),
        ({"num_hidden_layers": "32"}, "config.json: num_hidden_layers must be a positive integer, got '32'"),
        ({"intermediate_size": True}, "config.json: intermediate_size"),
        ({"model_type": "mixtral"}, "config.json: model_type is 'mixtral'; supported: llama"),
        ({"model_type": None}, "config.json: model_type is None"),
        ({"num_attention_heads": 30, "num_key_value_heads": 30}, "config.json: head_dim is missing"),
        ({"num_key_value_heads": 5}, "config.json: num_key_value_heads=5 does not divide"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_by_file_and_key(config, change, match):
    with pytest.raises(ValueError, match=match):
        from_config(config(LLAMA | change))


@pytest.mark.parametrize(
    ("text", "match"), [("{", "config.json: not JSON"), ("[]", "config.json: expected a JSON object")]
)
def test_a_file_that_is_no_object_is_refused(config, text, match):
    with pytest.raises(ValueError, match=match):
        from_config(config(text))
