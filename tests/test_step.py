"""The lean model: what transformers computes, step after step; one kernel of attention; one compiled layer for all."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from ptx import emulated
from torch._dynamo.testing import CompileCounterWithBackend

from tinygemm.kernel import cut, launches
from tinygemm.kernel.quant import dequantize
from tinygemm.models import Model
from tinygemm.step import attention, build, lean, measure, packed, products, weights
from tinygemm.step.architecture import ARCHITECTURES, Architecture, architecture_named

TINY = Model("tiny", hidden=256, intermediate=512, layers=2, heads=4, kv_heads=2, head_dim=64, vocab=320, source="")
FLOAT32 = products.StepBackend("float32", lambda w: packed.dense(w, torch.float32), products.Dense, torch.float32)


@pytest.fixture
def no_interpreter(monkeypatch):
    """Products of CPU tensors by the reference path, which is quick."""
    monkeypatch.setattr(launches, "INTERPRETED", False)


@pytest.fixture(autouse=True)
def _reset():
    yield
    torch.compiler.reset()


def lean_from(transformers_model, arch: Architecture, capacity: int) -> lean.LeanModel:
    """The lean model with the weights of a transformers model, and an empty cache for two sequences."""
    m = arch.model

    def layer(theirs) -> lean.Layer:
        attn, mlp = theirs.self_attn, theirs.mlp
        joined = {
            "qkv_proj": (attn.q_proj, attn.k_proj, attn.v_proj), "o_proj": (attn.o_proj,),
            "gate_up_proj": (mlp.gate_proj, mlp.up_proj), "down_proj": (mlp.down_proj,),
        }  # fmt: skip
        dense = {}
        for name, parts in joined.items():
            bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
            dense[name] = products.Dense(torch.cat([part.weight for part in parts]), bias)
        cache = lean.Cache(*torch.zeros(2, 2, m.kv_heads, capacity, m.head_dim))
        norms = (theirs.input_layernorm.weight, theirs.post_attention_layernorm.weight)
        head_norms = (attn.q_norm.weight, attn.k_norm.weight) if arch.qk_norm else (None, None)
        return lean.Layer(dense, lean.Attention(arch, cache, *head_norms), norms, arch.norm_eps)

    inner = transformers_model.model
    head = lean.Head(products.Dense(transformers_model.lm_head.weight), inner.norm.weight, arch.norm_eps)
    layers = [layer(each) for each in inner.layers]
    return lean.LeanModel(inner.embed_tokens.weight, layers, head, lean.rotary_table(arch, capacity, "cpu"))


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_the_lean_model_computes_what_transformers_does_step_after_step(family):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(
        vocab_size=TINY.vocab, hidden_size=TINY.hidden, intermediate_size=TINY.intermediate,
        num_hidden_layers=TINY.layers, num_attention_heads=TINY.heads, num_key_value_heads=TINY.kv_heads,
        head_dim=TINY.head_dim, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and norms start out as zeros and ones, which hide mistakes
            parameter.add_(0.05 * torch.randn_like(parameter))
    arch = Architecture(TINY, 1e4, qk_norm=family == "Qwen3", qkv_bias=family == "Qwen2")
    ours = lean_from(theirs, arch, capacity=8)
    tokens = torch.randint(0, TINY.vocab, (2, 8))
    with torch.no_grad():
        expected = theirs(tokens).logits
    for position in range(8):
        logits, following = ours(tokens[:, position], torch.tensor([position]))
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-4, atol=1e-4)
        assert torch.equal(following, expected[:, position].argmax(-1))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "capacity", "position", "qk_norm", "batch"),
    [
        pytest.param(4, 2, 64, 40, False, 2, id="two shares"),
        pytest.param(8, 2, 200, 199, True, 1, id="norms, a capacity of no whole tile"),
        pytest.param(5, 1, 300, 3, False, 1, id="most shares are empty"),
        pytest.param(4, 4, 300, 0, True, 2, id="the first token"),
        pytest.param(2, 1, 24, 23, False, 1, id="one share"),
    ],
)
def test_attention_as_one_kernel_is_attention_by_the_equations(heads, kv_heads, capacity, position, qk_norm, batch):
    D = 64
    arch = Architecture(Model("any", 256, 512, 1, heads, kv_heads, D, 100, ""), 1e4, qk_norm=qk_norm)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).half()

    keys, values = random(batch, kv_heads, capacity, D), random(batch, kv_heads, capacity, D)
    keys[:, :, position:] = values[:, :, position:] = float("nan")  # what later steps will write, nobody reads
    qkv = random(batch, (heads + 2 * kv_heads) * D)
    norms = (1 + 0.2 * random(D), 1 + 0.2 * random(D)) if qk_norm else (None, None)
    rotary, at = lean.rotary_table(arch, capacity, "cpu"), torch.tensor([position])
    one = lean.Cache(keys.clone(), values.clone())
    exact = lean.Cache(keys[:, :, : position + 1].float(), values[:, :, : position + 1].float())
    expected = lean.Attention(arch, exact, *norms)(qkv.float(), at, rotary)
    found = attention.FusedAttention(arch, one, *norms)(qkv, at, rotary)
    torch.testing.assert_close(found.float(), expected, rtol=4e-3, atol=2e-3)
    torch.testing.assert_close(one.keys[:, :, position].float(), exact.keys[:, :, position], rtol=2e-3, atol=1e-3)
    assert torch.equal(one.values[:, :, position].float(), exact.values[:, :, position])
    assert torch.equal(one.keys[:, :, :position], keys[:, :, :position])


@pytest.mark.parametrize("batch", [1, 2, 16, 300])
@pytest.mark.parametrize("capacity", [1, 31, 512, 8192, 100_000])
def test_shares_cover_the_cache(batch, capacity):
    block, tokens, splits = attention.cut(batch, 8, capacity, sm_count=132)
    assert tokens % block == 0
    assert tokens * (splits - 1) < capacity <= tokens * splits
    assert splits <= attention.MAX_SPLITS


def model_of(backend: products.StepBackend, name: str = "equations", batch: int = 2, **facts) -> lean.LeanModel:
    arch = Architecture(TINY, 1e4, **facts)
    shared = weights.Weights(arch, "cpu")
    return build.lean_model(shared, backend, weights.random_cache(arch, batch, 40, backend.dtype, "cpu"), name)


DEEP = Model("deep", hidden=256, intermediate=256, layers=24, heads=4, kv_heads=2, head_dim=64, vocab=320, source="")


def change(shared, name: str, changed) -> None:
    """Put another weight in the place of one of layer 9."""
    shared.held["packed"][9, name] = changed(shared.packed(9, name))
    shared.held["float32"].pop((9, name))


def swapped_groups(w):
    return dataclasses.replace(w, scales=w.scales.flip(0))


def swapped_heads(w):
    return cut.join([cut.rows(w, 64, 128), cut.rows(w, 0, 64), cut.rows(w, 128, w.N)])


FAULTS = {  # what is done to weights, cache or position of one layer among many
    "values of two heads": lambda shared, cache, position: cache[9][1].copy_(cache[9][1].flip(1)),
    "keys of two heads": lambda shared, cache, position: cache[9][0].copy_(cache[9][0].flip(1)),
    "groups of o_proj": lambda shared, cache, position: change(shared, "o_proj", swapped_groups),
    "groups of qkv_proj": lambda shared, cache, position: change(shared, "qkv_proj", swapped_groups),
    "heads of q": lambda shared, cache, position: change(shared, "qkv_proj", swapped_heads),
    "position": lambda shared, cache, position: position.sub_(1),
}


@pytest.fixture(scope="module")
def deep():
    """The weights of a deep model, dequantised once, and its logits in float32."""
    shared = weights.Weights(Architecture(DEEP, 1e4), "cpu")
    return shared, deep_logits(shared)


def deep_logits(shared, fault=None) -> torch.Tensor:
    if fault:
        shared = dataclasses.replace(shared, held={form: dict(held) for form, held in shared.held.items()})
    cache, position = weights.random_cache(shared.arch, 2, 40, torch.float32, "cpu"), torch.tensor([39])
    if fault:
        fault(shared, cache, position)
    return build.lean_model(shared, FLOAT32, cache, "equations")(INPUTS[0], position)[0]


def off(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_stays_below_the_bound_on_the_logits(deep, dtype):
    shared, expected = deep
    model = build.reference_model(shared, weights.random_cache(shared.arch, 2, 40, dtype, "cpu"), dtype)
    assert 0 < off(model(*INPUTS)[0], expected) < measure.MAX_REL_ERR[dtype] / 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_layer_is_seen_in_the_logits(deep, fault):
    shared, expected = deep
    assert off(deep_logits(shared, FAULTS[fault]), expected) > 2 * measure.MAX_REL_ERR[torch.float16]


def test_the_residual_stream_of_a_deep_model_stays_small():
    small = Model(
        "deeper", hidden=128, intermediate=128, layers=80, heads=2, kv_heads=1, head_dim=64, vocab=64, source=""
    )
    arch = Architecture(small, 1e4, qkv_bias=True)
    model = build.reference_model(weights.Weights(arch, "cpu"), weights.random_cache(arch, 2, 40, torch.float16, "cpu"))
    seen, run_head = [], model.run_head

    def noting(head, x, delta):
        seen.append(x + delta)
        return run_head(head, x, delta)

    model.run_head = noting
    logits, _ = model(*INPUTS)
    assert logits.isfinite().all()
    assert seen[0].abs().max() < 20
    assert off(logits[0], logits[1].float()) > 1, "tokens decide about logits"


INPUTS = (torch.tensor([3, 7]), torch.tensor([39]))


@pytest.mark.parametrize("name", ["int4", "int4-serial", "int4-lm-head", "fp16-cublas"])
@pytest.mark.parametrize("facts", [{}, {"qk_norm": True, "qkv_bias": True}], ids=["llama", "norms and bias"])
def test_every_backend_computes_the_same_logits(no_interpreter, name, facts):
    exact, _ = model_of(FLOAT32, **facts)(*INPUTS)
    logits, _ = model_of(products.BACKENDS[name], **facts)(*INPUTS)
    assert (logits.float() - exact).norm() < 5e-3 * exact.norm()


def test_the_reference_is_the_model_with_each_weight_dequantised(no_interpreter):
    arch = Architecture(TINY, 1e4)
    shared = weights.Weights(arch, "cpu")
    logits, _ = build.reference_model(shared, weights.random_cache(arch, 2, 40, torch.float16, "cpu"))(*INPUTS)
    exact, _ = model_of(FLOAT32)(*INPUTS)
    assert (logits.float() - exact).norm() < 5e-3 * exact.norm()


@pytest.mark.parametrize("name", ["int4", "fp16-cublas"])
def test_one_layer_is_compiled_for_all(no_interpreter, name):
    model = model_of(products.BACKENDS[name], qk_norm=True, qkv_bias=True)
    expected, _ = model(*INPUTS)
    counter = CompileCounterWithBackend("aot_eager")
    model.compile(backend=counter)
    logits, _ = model(*INPUTS)
    assert counter.frame_count == 2, "a layer and the head"
    assert torch.equal(logits, expected)


def test_the_kernel_of_attention_can_be_compiled_around():
    arch = Architecture(TINY, 1e4)
    cache = lean.Cache(*torch.randn(2, 2, 2, 40, 64).half())
    qkv, rotary = torch.randn(2, 512).half(), lean.rotary_table(arch, 40, "cpu")
    arguments = (qkv, rotary, None, None, INPUTS[1], cache.keys, cache.values, 4, 1e-5)
    with emulated():
        torch.library.opcheck(torch.ops.tinygemm.decode_attention, arguments)


def test_a_weight_drawn_as_words_is_dequantised_piece_by_piece(monkeypatch):
    monkeypatch.setattr(packed, "DENSE_AT_ONCE", 32 * 256)
    w = packed.random_words(96, 256, "cpu", seed=1)
    whole = dequantize(w)
    assert torch.equal(packed.dense(w, torch.float16), whole)
    assert 0.5 < whole.float().std() * 256**0.5 < 2


def test_weights_differ_by_layer_and_projection_and_not_from_one_run_to_the_next():
    arch = Architecture(TINY, 1e4)
    first, second = weights.Weights(arch, "cpu"), weights.Weights(arch, "cpu")
    assert torch.equal(first.packed(0, "o_proj").qweight, second.packed(0, "o_proj").qweight)
    assert not torch.equal(first.packed(0, "o_proj").qweight, first.packed(1, "o_proj").qweight)
    assert not torch.equal(first.norm(0, 0, torch.float32), first.norm(0, 1, torch.float32))
    assert torch.equal(first.norm(0, 0, torch.float16).float(), second.norm(0, 0, torch.bfloat16).float())


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="llama-3-8b"):
        architecture_named("llama-9")


@pytest.mark.parametrize("key", ARCHITECTURES)
def test_products_of_every_model_can_be_packed(key):
    for N, K in ARCHITECTURES[key].projections().values():
        assert N % 16 == 0
        assert K % packed.GROUP_SIZE == 0


def test_a_shard_has_its_part_of_the_heads_and_refuses_what_does_not_divide():
    shard = ARCHITECTURES["llama-3-8b"].shard(2)
    assert shard.projections() == {
        "qkv_proj": (3072, 4096), "o_proj": (4096, 2048), "gate_up_proj": (14336, 4096), "down_proj": (4096, 7168),
    }  # fmt: skip
    with pytest.raises(ValueError, match="--tp 3 does not divide the 32 heads"):
        ARCHITECTURES["llama-3-8b"].shard(3)
