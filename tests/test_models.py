"""Model table: projections are those of the published files, cut as engines cut them, and every refusal says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygemm import models
from tinygemm.models import MODELS, Model, Span, Weight, decode_shapes, projections
from tinygemm.problem import LLAMA_3_8B, GemmProblem


def shapes(model, tp=1):
    return {layer.layer: (layer.K, layer.N, layer.group_size) for layer in projections(model, tp)}


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
    for name in (model.key, model.key.upper(), model.source.partition("/")[2]):
        assert models.known_model(name) is model
    assert model.source.startswith("huggingface.co/")
    assert model.heads % model.kv_heads == 0


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("google/gemma-2-9b-it", "gemma-2-9b"),
        ("Meta-Llama-3-70B-Instruct", "llama-3-70b"),
        ("microsoft/Phi-3-mini-128k-instruct", "phi-3-mini"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", None),
        ("someone/llama-3-8b", None),
        ("llama", None),
        ("", None),
    ],
)
def test_a_name_on_a_hub_is_that_of_the_same_shapes_and_no_other(name, key):
    assert models.known_model(name) is MODELS.get(key)


# --- experts --------------------------------------------------------------------------------------------------------


@given(experts=st.integers(1, 256), used=st.integers(1, 8), layers=st.integers(1, 80), M=st.integers(1, 16))
def test_the_products_of_a_step_hold_every_token_of_every_expert(experts, used, layers, M):
    weight = Weight("w", 64, 64, layers, experts, min(used, experts))
    calls, tokens = weight.calls(M), weight.tokens(M)
    assert calls <= layers * experts
    assert calls * tokens >= layers * M * weight.used > calls * (tokens - 1)
    if experts == 1:
        assert (calls, tokens) == (layers, M)
    if experts >= M * weight.used:
        assert (calls, tokens) == (layers * M * weight.used, 1)


@given(count=st.integers(1, 64), width=st.integers(1, 256), tp=st.integers(1, 16), repeated=st.booleans())
def test_units_are_cut_evenly_repeated_or_refused(count, width, tp, repeated):
    span = Span(count, width, "units", repeated)
    if span.obstacle(tp):
        assert count % tp
        assert not (repeated and tp % count == 0)
    else:
        assert span.size(tp) * tp == width * max(count, tp if repeated else count)


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
