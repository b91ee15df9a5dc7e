"""A whole step of a model: its parts add up, its memory is counted by hand, and the words follow from the numbers."""

import json
import math
from dataclasses import asdict, replace

import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from tinygemm import models
from tinygemm.hardware import GPUS
from tinygemm.model_config import from_config
from tinygemm.models import Quantised, projections
from tinygemm.problem import GemmProblem
from tinygemm.report.models import token, words
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict import projection as extrapolate

LLAMA, H200, A10G = models.MODELS["llama-3-8b"], GPUS["h200"], GPUS["a10g"]
BACKENDS = ("fp16-cublas", "int4", "aten-int4mm")


def fitted(folder, factors=None, backends=BACKENDS):
    truth = synthetic.Truth(factors=factors or {})
    modes = (("graph", "cold"),)
    return costmodel.fit(
        synthetic.load(folder, truth=truth, m_list=(1, 8), backends=backends, modes=modes, n_samples=12, counters=False)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def here(model):
    return token.advice(LLAMA, None, 1, 1, model)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixtral") / "config.json"
    values = {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "vocab_size": 32000, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64},
    }  # fmt: skip
    path.write_text(json.dumps(values), encoding="utf-8")
    return from_config(path)


# --- the step -------------------------------------------------------------------------------------------------------


def test_a_step_is_its_products_and_the_rest(here):
    totals = here.products.totals
    assert here.fp16_us == pytest.approx(totals["fp16"] + here.rest.us)
    assert here.int4_us == pytest.approx(totals["advised"] + here.rest.us)
    assert here.speedup == pytest.approx(here.fp16_us / here.int4_us)
    assert here.speedup_low < here.speedup < here.speedup_high < totals["speedup_high"] * 1.001


@pytest.mark.parametrize(
    ("gpu", "slower", "factor"), [("h200", 1, 2), ("a10g", 8, 8**0.5), ("l4", 16, 4), ("b200", 0.6, 2)]
)
def test_an_estimated_rest_lies_between_as_long_everywhere_and_as_slow_as_the_memory(gpu, slower, factor):
    rest = token.rest_of(LLAMA, GPUS[gpu])
    assert not rest.measured
    assert rest.us == pytest.approx(830 * slower**0.5)
    assert rest.factor == pytest.approx(factor)
    assert rest.us / rest.factor <= 830 * min(1, slower) * 1.001
    assert rest.us * rest.factor >= 830 * max(1, slower) * 0.999
    assert token.rest_of(replace(LLAMA, layers=80), GPUS[gpu]).us == pytest.approx(rest.us * 80 / 32)


def test_the_step_that_the_rest_is_taken_from_comes_out_again(model):
    lean = token.LEAN
    assert token.rest_of(LLAMA, GPUS[lean.gpu]).us + lean.products_us + lean.lm_head_us == lean.total_us


def test_a_measured_rest_takes_the_place_of_the_estimate_and_narrows_the_interval(model, here):
    found = token.advice(LLAMA, None, 1, 1, model, rest_us=here.rest.us)
    assert found.rest.measured
    assert found.int4_us == pytest.approx(here.int4_us)
    assert found.speedup_high - found.speedup_low < here.speedup_high - here.speedup_low
    assert not any("estimate" in line for line in [*words.caveats(found), *words.facts(found).values()])


ratios = st.floats(1.0, 4.0)


@given(fp16=st.floats(10, 1e5), low=ratios, wider=st.floats(1.0, 1.5), rest=st.floats(1, 1e5), factor=st.floats(1, 4))
def test_the_interval_of_a_step_lies_between_nothing_gained_and_that_of_its_products(fp16, low, wider, rest, factor):
    totals = {"fp16": fp16, "speedup": low * wider**0.5, "speedup_low": low, "speedup_high": low * wider}
    middle, least, most = token.step_speedup(totals, token.Rest(rest, factor, ""))
    slack = 1e-9
    assert 1 - slack <= least <= middle + slack
    assert middle - slack <= most <= totals["speedup_high"] + slack
    assert math.isclose(middle, (fp16 + rest) / (fp16 / totals["speedup"] + rest))


def test_tokens_per_second_count_the_tokens_of_a_step(model):
    found = token.advice(LLAMA, None, 8, 1, model)
    assert words.as_json(found)["step"]["tokens_per_s"] == pytest.approx(8e6 / found.int4_us)


# --- memory ---------------------------------------------------------------------------------------------------------


def test_the_memory_of_llama_3_8b_is_counted_by_hand():
    blocks = 32 * (4096 * 6144 + 4096 * 4096 + 4096 * 28672 + 14336 * 4096)
    tables = 2 * 128256 * 4096 * 2
    memory = token.memory_of(LLAMA, A10G)
    assert memory.fp16 == blocks * 2 + tables
    assert memory.scales == blocks / 128 * 2
    assert memory.int4 == blocks / 2 + blocks / 128 * 2 + tables
    assert memory.cache == 2 * 32 * 8 * 128 * 2
    assert memory.context_fp16 == int((0.9 * 24e9 - memory.fp16) // memory.cache)
    assert memory.context_int4 > memory.context_fp16


@given(
    model=st.sampled_from(list(models.MODELS.values())), gpu=st.sampled_from(list(GPUS.values())),
    group=st.sampled_from(models.MODEL_GROUP_SIZES), data=st.data(),
)  # fmt: skip
def test_int4_takes_less_smaller_groups_more_and_several_gpus_share(model, gpu, group, data):
    tp = data.draw(st.sampled_from(models.possible_degrees(model)))
    memory, whole = token.memory_of(model, gpu, tp, group), token.memory_of(model, gpu, 1, group)
    assert memory.int4 < memory.fp16 <= whole.fp16 <= memory.fp16 * tp
    assert token.memory_of(model, gpu, tp, 32).int4 >= memory.int4
    assert memory.context_int4 >= memory.context_fp16 >= -1
    assert whole.cache <= memory.cache * tp
    if memory.context_fp16 >= 0:
        assert memory.fp16 + memory.context_fp16 * memory.cache <= memory.usable


def test_a_tied_embedding_is_stored_once():
    tied = replace(LLAMA, tied=True)
    saved = token.memory_of(LLAMA, A10G).fp16 - token.memory_of(tied, A10G).fp16
    assert saved == 128256 * 4096 * 2


def test_experts_are_stored_all_and_multiplied_few(model, mixture):
    found = token.advice(mixture, H200, 1, 1, model)
    rows = found.products.rows.set_index("layer")
    assert rows.loc["experts.down_proj", "calls"] == 32 * 2
    assert found.memory.fp16 > 8 * 32 * 3 * 14336 * 4096 * 2
    many = token.advice(mixture, H200, 8, 1, model).products.rows.set_index("layer")
    assert many.loc["experts.down_proj", ["calls", "tokens"]].tolist() == [32 * 8, 2]
    assert many.loc["qkv_proj", ["calls", "tokens"]].tolist() == [32, 8]


# --- other ways to go -----------------------------------------------------------------------------------------------


def test_k_and_v_alone_are_measured_where_they_were_timed(here):
    two, one = here.kv.to_dict("records")
    assert (two["K"], two["N"], two["calls"]) == (4096, 1024, 64)
    assert (one["K"], one["N"], one["calls"]) == (4096, 2048, 32)
    truth = synthetic.Truth()
    fp16, int4 = (truth.latency_us(name, GemmProblem(1, 1024, 4096)) for name in ("fp16-cublas", "int4"))
    assert two["gain_us"] == pytest.approx(64 * (fp16 - int4), rel=0.1)


def test_a_model_of_latent_attention_has_no_k_and_v_alone(model):
    weights = (models.Weight("q_proj", 512, 512, 2), models.Weight("kv_a_proj", 512, 128, 2))
    found = token.advice(replace(LLAMA, blocks=weights), H200, 1, 1, model)
    assert found.kv.empty
    assert words.as_json(found)["kv"] == []


@pytest.mark.parametrize(("factor", "as_good"), [(0.9, True), (1.5, False)])
def test_another_kernel_does_as_well_if_it_takes_no_longer(tmp_path, factor, as_good):
    """Planted: aten takes less than ours at every shape, or half as long again."""
    level = {
        ("aten-int4mm", each.K, each.N): factor
        * synthetic.Truth().latency_us("int4", GemmProblem(1, each.N, each.K))
        / synthetic.Truth().latency_us("aten-int4mm", GemmProblem(1, each.N, each.K))
        for each in projections(LLAMA)
    }
    rival = token.advice(LLAMA, None, 1, 1, fitted(tmp_path, level)).rival
    assert rival.backend == "aten-int4mm"
    assert rival.ratio == pytest.approx(factor, rel=0.05)
    assert rival.as_good == as_good
    assert rival.low <= rival.ratio <= rival.high


def test_elsewhere_a_rival_is_predicted_with_a_band_and_without_one_nothing_is_said(model):
    rival = token.advice(LLAMA, A10G, 1, 1, model).rival
    assert rival.low < rival.ratio < rival.high
    alone = replace(model, backends={name: model.backends[name] for name in token.COMPARED})
    found = token.advice(LLAMA, A10G, 1, 1, alone)
    assert found.rival is None
    assert "other kernel" not in words.facts(found)
    assert words.as_json(found)["rival"] is None


def test_a_checkpoint_in_smaller_groups_is_advised_on_in_those(model, mixture):
    rows = token.advice(mixture, H200, 1, 1, model).products.rows
    assert set(rows["group_size"].dropna()) == {64}
    assert token.group_size_of(replace(mixture, stored_as=Quantised("fp8", 8, 64)), 128) == 128
    assert token.group_size_of(replace(mixture, stored_as=Quantised("awq", 4, 16)), 128) == 128


def test_a_gpu_without_asynchronous_copies_is_refused(model):
    with pytest.raises(ValueError, match=r"T4 has no cp\.async"):
        token.advice(LLAMA, GPUS["t4"], 1, 1, model)


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "word"), [(1.01, 2, "Yes"), (0.99, 1.2, "Open"), (0.5, 0.99, "No"), (1.0, 1.0, "No")]
)
def test_the_first_word_follows_from_the_interval(here, low, high, word):
    said = words.answer(replace(here, speedup_low=low, speedup_high=high))
    assert said.startswith(f"{word}: ")
    assert "\n" not in said


def test_weights_that_do_not_fit_are_in_the_answer(model):
    small, large = (token.advice(models.MODELS[key], A10G, 1, 1, model) for key in ("llama-3-8b", "llama-3-70b"))
    assert small.memory.context_int4 > 0 > large.memory.context_int4
    assert "fit" in words.answer(large)
    assert "fit" not in words.answer(small)


def test_caveats_are_three_lines_at_most_and_name_what_is_special(model, mixture, here):
    assert len(words.caveats(here)) == 2
    said = words.caveats(token.advice(mixture, A10G, 1, 1, model))
    assert len(said) == 3
    assert "xperts" in said[2]
    assert "awq" in said[2]
    assert "groups of 64" in said[2]


def test_json_has_plain_values_only(model, mixture):
    said = words.as_json(token.advice(mixture, A10G, 2, 2, model))
    assert json.loads(json.dumps(said, allow_nan=False)) == said


# --- a port ---------------------------------------------------------------------------------------------------------


def ported_us(about: dict, M, K, N, bits, gpu: dict, run: dict) -> float:
    """The device time of a call on another GPU in numbers and operators alone, as another language would have it."""
    slower = run["clock_mhz"] / gpu["boost_clock_mhz"]
    bandwidth = gpu["dram_gb_s"] * (1 - 0.125 * gpu["inline_ecc"]) * about["efficiency"] * 1e3
    start = (about["start_us"] + about["token_us"] * M) * slower
    if about["overlaps"] and gpu["compute_capability"][0] < 9:
        start += run["overlap_us"] * slower
    walked, tail = (K**-8 + about["longest_k"] ** -8) ** (-1 / 8), 1.0
    if about["cut"]:
        programs = math.ceil(N / about["cut"][0]) * about["cut"][1]
        walked, tail = K / about["cut"][1], math.ceil(programs / gpu["sm_count"]) * gpu["sm_count"] / programs
    tiles = math.ceil(M / about["block_m"]) if about["block_m"] else M / 8
    work = K * N * tail / gpu["sm_count"] * 1e-6 * slower
    terms = (
        about["serial_ns"] * 1e-3 * walked * slower,
        (K * N * bits / 8 + 2 * M * (K + N)) / bandwidth,
        about["weight_ps"] * work,
        about["tile_ps"] * tiles * work,
    )
    return start + sum(term ** about["overlap"] for term in terms) ** (1 / about["overlap"])


@pytest.mark.parametrize("gpu", ["a10g", "rtx-4090", "b200", "h100-pcie"])
def test_a_port_of_the_latency_model_needs_these_coefficients_and_no_more(model, gpu):
    spec = GPUS[gpu]
    for name in token.COMPARED:
        side = model.backends[name]
        about = asdict(side.terms) | {
            "cut": side.cut,
            "block_m": side.block_m,
            "overlaps": name in extrapolate.DEPENDENT,
        }
        problems = [
            GemmProblem(M, each.N, each.K, each.group_size)
            for M in (1, 4, 16)
            for each in projections(models.MODELS["qwen2.5-7b"], 2, 64)
        ]
        predicted = costmodel.predict(model, problems, spec, (name,), ("graph",))["latency_us"]
        run = {"clock_mhz": model.clock_mhz, "overlap_us": model.overlap_us}
        for problem, value in zip(problems, predicted, strict=True):
            bits = side.bits if side.bits >= 16 else 4 + (side.bits - 4) * 128 / problem.group_size
            ported = ported_us(about, problem.M, problem.K, problem.N, bits, asdict(spec), run)
            assert ported == pytest.approx(value, rel=1e-9)
