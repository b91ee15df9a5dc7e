"""The decode step in the model of transformers: the logits of the lean model, from the same weights and cache."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest
import torch
from test_step import FLOAT32, INPUTS, TINY, off
from test_step_suite import TINY as SMALL
from test_step_suite import bench
from torch._dynamo.testing import CompileCounterWithBackend

from tinygemm.harness import registry
from tinygemm.harness.variant import Ceiling
from tinygemm.kernel import launches
from tinygemm.kernel.linear import Int4Linear
from tinygemm.step import build, cases, hosted, measure, products, suite, weights
from tinygemm.step.architecture import ARCHITECTURES, Architecture
from tinygemm.step.cases import StepCase

transformers = pytest.importorskip("transformers")

FACTS = {"Llama": {}, "Qwen3": {"qk_norm": True}, "Qwen2": {"qkv_bias": True}}
BACKENDS = {"float32": FLOAT32} | {name: products.BACKENDS[name] for name in cases.BACKENDS_OF["transformers"]}


@pytest.fixture(autouse=True)
def _reference_path(monkeypatch):
    """Products of CPU tensors by the reference path, which is quick."""
    monkeypatch.setattr(launches, "INTERPRETED", False)
    yield
    torch.compiler.reset()


def weights_of(layers: int = 2, **facts) -> weights.Weights:
    return weights.Weights(Architecture(dataclasses.replace(TINY, layers=layers), 1e4, **facts), "cpu")


def cache_of(shared: weights.Weights, dtype: torch.dtype) -> list[tuple]:
    return weights.random_cache(shared.arch, 2, 40, dtype, "cpu")


def hosted_of(shared: weights.Weights, backend: products.StepBackend) -> hosted.HostedModel:
    return hosted.hosted_model(shared, backend, cache_of(shared, backend.dtype))


@pytest.fixture(scope="module", params=FACTS)
def shared(request):
    """The weights of a model of each family, and its logits by the equations in float32."""
    found = weights_of(**FACTS[request.param])
    return found, build.lean_model(found, FLOAT32, cache_of(found, torch.float32), "equations")(*INPUTS)[0]


@pytest.mark.parametrize("name", BACKENDS)
def test_both_hosts_compute_the_same_logits(shared, name):
    backend = BACKENDS[name]
    logits, tokens = hosted_of(shared[0], backend)(*INPUTS)
    assert logits.dtype == backend.dtype
    assert off(logits, shared[1]) < (1e-5 if name == "float32" else 5e-3)
    assert torch.equal(tokens, shared[1].argmax(-1))


def test_a_step_that_is_repeated_is_the_same_step_and_takes_the_new_token_in():
    shared = weights_of()
    cache = cache_of(shared, torch.float32)
    lean = build.lean_model(shared, FLOAT32, cache_of(shared, torch.float32), "equations")
    model = hosted.hosted_model(shared, FLOAT32, cache)
    lean(*INPUTS)
    first, second = model(*INPUTS)[0], model(*INPUTS)[0]
    assert torch.equal(first, second)
    for (keys, values), layer in zip(cache, lean.layers, strict=True):
        torch.testing.assert_close(keys, layer.attention.cache.keys)
        torch.testing.assert_close(values, layer.attention.cache.values)
    earlier = model(INPUTS[0], torch.tensor([20]))[0]
    assert off(earlier, first) > 0.1
    assert off(earlier, lean(INPUTS[0], torch.tensor([20]))[0]) < 1e-5


@pytest.mark.parametrize(("family", "name"), [("Llama", "int4"), ("Qwen3", "int4-lm-head"), ("Qwen2", "fp16-cublas")])
def test_one_layer_is_compiled_for_all(family, name):
    model = hosted_of(weights_of(layers=3, **FACTS[family]), BACKENDS[name])
    expected, _ = model(*INPUTS)
    counter = CompileCounterWithBackend("eager")
    model.compile(backend=counter)
    assert torch.equal(model(*INPUTS)[0], expected)
    assert counter.frame_count == 3, "a layer, the last norm and the rotary angles"


@pytest.mark.parametrize("name", cases.BACKENDS_OF["transformers"])
def test_the_model_is_what_the_recipe_makes_and_holds_no_weight_twice(name):
    shared = weights_of(qkv_bias=True)
    model = hosted_of(shared, BACKENDS[name])
    kinds = {path.rpartition(".")[2]: type(module) for path, module in model.named_modules()}
    joined = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    if name == "fp16-cublas":
        assert not {"qkv_proj", "gate_up_proj"} & set(kinds)
    else:
        assert {each for each, kind in kinds.items() if kind is Int4Linear} - {"lm_head"} == joined
    assert (kinds["lm_head"] is Int4Linear) == (name == "int4-lm-head")
    held = {
        tensor.untyped_storage().data_ptr()
        for form in shared.held.values()
        for each in form.values()
        for tensor in (each.tensors() if hasattr(each, "tensors") else (each,))
        if tensor is not None
    }
    large = [t for t in (*model.parameters(), *model.buffers()) if t.numel() > 2 * TINY.hidden * TINY.hidden / 64]
    assert large
    assert all(tensor.untyped_storage().data_ptr() in held for tensor in large)


# --- in the suite -----------------------------------------------------------------------------------------------------


@pytest.fixture
def _suite(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture(SMALL, 1e4))
    monkeypatch.setattr(measure, "WARMUP", 0)
    monkeypatch.setattr(measure, "gc", types.SimpleNamespace(collect=int))  # slow, and no GPU's memory waits for it
    copy = Ceiling("copy", "1GiB", lambda: lambda: None, lambda call: None, 2 * 2**30, 10)
    monkeypatch.setitem(registry.CEILINGS, "copy", copy)


def case(backend: str, host: str = "transformers") -> StepCase:
    return StepCase("tiny", backend, 2, 8, host, "equations" if host == "lean" else "", compiled=False)


@pytest.mark.usefixtures("_suite")
def test_a_case_of_transformers_is_checked_and_timed_beside_its_own_library():
    wanted = [case("fp16-cublas"), case("int4"), case("int4", "lean")]
    rows = suite.run(bench(rep=1), wanted)
    assert [(row.status, row.host, row.attention) for row in rows.steps[1:]] == [
        ("ok", "transformers", "sdpa"), ("ok", "transformers", "sdpa"), ("ok", "lean", "equations"),
    ]  # fmt: skip
    assert all(0 < row.rel_err < 0.01 and row.argmax_agreement == 1 for row in rows.steps[1:])
    assert rows.steps[2].case_id == "tiny/b2/c8/transformers/int4/eager"
    beside = {sample.case_id: sample.fp16_us for sample in rows.samples}
    assert beside[wanted[0].case_id] is None
    assert beside[wanted[1].case_id] is not None


@pytest.mark.usefixtures("_suite")
@pytest.mark.parametrize("lacking", ["StaticCache", "LlamaConfig", "cumulative_length"])
def test_a_transformers_without_what_is_needed_is_named_in_an_unsupported_row(monkeypatch, lacking):
    names = {"StaticCache", "LlamaConfig", "AutoModelForCausalLM"} - {lacking}
    older = types.SimpleNamespace(__version__="4.1", **{name: getattr(transformers, name) for name in names})
    if lacking == "cumulative_length":
        older.StaticCache = lambda **settings: types.SimpleNamespace(layers=[object()])
    monkeypatch.setitem(sys.modules, "transformers", older)
    ((failed, samples),) = measure.measure(bench(), case("int4"))
    assert (failed.status, "transformers 4.1" in failed.message) == ("unsupported", True)
    assert not samples


@pytest.mark.usefixtures("_suite")
def test_without_transformers_its_cases_are_unsupported(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    ((failed, _),) = measure.measure(bench(), case("int4"))
    assert (failed.status, "not installed" in failed.message) == ("unsupported", True)


def test_the_matrix_has_the_hosts_side_by_side():
    found = cases.matrix()
    theirs = [each for each in found if each.host == "transformers"]
    assert len(theirs) == 10
    at = found.index(theirs[0])
    assert found[at : at + 10] == theirs
    assert all(each.host == "lean" for each in found[:20])
    assert {each.baseline for each in theirs} <= set(theirs)
    for each in theirs:
        if each.backend in ("fp16-cublas", "int4"):
            assert StepCase(each.model, each.backend, each.batch, each.context) in found


def test_the_copies_that_transformers_makes_of_the_cache_are_part_of_the_memory():
    lean, theirs = (
        cases.needed_bytes(StepCase("llama-3-8b", "int4", 16, 8192, host)) for host in ("lean", "transformers")
    )
    assert theirs - lean == 2 * 2 * 16 * 32 * 8192 * 128 * 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "gemlite"}, "host transformers has no backend 'gemlite'; it has fp16-cublas"),
        ({"attention": "fused"}, "host transformers has no attention 'fused'; it has sdpa"),
        ({"host": "vllm"}, "unknown host 'vllm'; known: lean, transformers"),
    ],
)
def test_what_a_host_has_not_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        StepCase(
            **({"model": "llama-3-8b", "backend": "int4", "batch": 1, "context": 8, "host": "transformers"} | settings)
        )
