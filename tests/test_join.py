"""Models of transformers in INT4: joined projections change no bit, and the model stays a model."""

import copy
import functools
import inspect
import io
import warnings

import pytest
import torch
from operands import assert_close

transformers = pytest.importorskip("transformers")

from tinygemm.kernel import join, launches  # noqa: E402
from tinygemm.kernel.linear import Int4Linear, quantize_model  # noqa: E402
from tinygemm.kernel.quant import dequantize  # noqa: E402
from tinygemm.kernel.reordered import layer_of  # noqa: E402

SIZES = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {  # its config, and what it has beside the sizes
    "Llama": ("LlamaConfig", {"attention_bias": True}),
    "Mistral": ("MistralConfig", {}),
    "Qwen2": ("Qwen2Config", {}),
    "Qwen3": ("Qwen3Config", {}),
    "Gemma": ("GemmaConfig", {}),
    "Gemma2": ("Gemma2Config", {}),
    "Gemma3": ("Gemma3TextConfig", {}),
}
JOINED = [f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.qkv_proj", "mlp.gate_up_proj")]
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch):
    monkeypatch.setattr(launches, "INTERPRETED", False)
    with torch.no_grad():
        yield
    torch.compiler.reset()


@functools.cache
def made(family: str, dtype=torch.float16) -> torch.nn.Module:
    name, more = FAMILIES[family]
    config = getattr(transformers, name)(**SIZES, **more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    return model


def float_model(family="Llama", dtype=torch.float16):
    return copy.deepcopy(made(family, dtype))


def int4_model(family="Llama", join=False, dtype=torch.float16):
    model = float_model(family, dtype)
    quantize_model(model, 32, symmetric=False, join=join)
    return model


def logits(model, tokens=TOKENS):
    return model(tokens).logits


def layers(model) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, Int4Linear)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_joined_model_computes_the_same_bits(family, dtype):
    apart, joined = int4_model(family, dtype=dtype), int4_model(family, join=True, dtype=dtype)
    assert set(JOINED) < set(layers(joined))
    assert len(layers(joined)) == len(layers(apart)) - 6
    assert joined.model.layers[1].self_attn.qkv_proj.parts == (128, 64, 64)
    assert torch.equal(logits(joined), logits(apart))


def test_a_model_in_int4_computes_what_it_would_with_its_weights_rounded():
    model, rounded = int4_model(join=True), float_model()
    apart = int4_model()
    for path in layers(apart):
        rounded.get_submodule(path).weight.copy_(dequantize(apart.get_submodule(path).weight))
    expected = logits(rounded.double()).view(10, -1)
    assert_close(logits(model).view(10, -1), expected, max_err=2e-2, rms_err=5e-3)


def test_a_family_that_is_joined_from_the_start_has_nothing_to_join():
    config = transformers.Phi3Config(**SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_model(model, join=True)
    assert set(JOINED) < set(layers(model))
    assert type(model.model.layers[0].mlp).__name__ == "Phi3MLP"


def test_a_decode_step_of_a_joined_model_compiles_into_one_graph():
    model = int4_model("Qwen3", join=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(decoded(model, compiled), decoded(model, model))


def decoded(model, step):
    """The logits of two tokens that follow the prompt, over a static cache."""
    known = inspect.signature(type(model).forward).parameters
    name = "cache" if "cache" in known else "past_key_values"  # by the version of transformers
    cache = {name: transformers.StaticCache(config=model.config, max_cache_len=16), "use_cache": True}
    out = [model(TOKENS, **cache).logits[:, -1:]]
    for position in (5, 6):
        out.append(step(out[-1].argmax(-1), position_ids=torch.tensor([[position]]), **cache).logits)
    return torch.cat(out, 1)


def test_a_joined_block_is_exported():
    model = int4_model(join=True)
    mlp, attention = model.model.layers[0].mlp, model.model.layers[0].self_attn
    x = torch.randn(2, 5, 128).half()
    turns = model.model.rotary_emb(x, torch.arange(5)[None])
    for module, arguments in ((mlp, (x,)), (attention, (x, turns, None))):
        program = torch.export.export(module, arguments)
        calls = [node for node in program.graph.nodes if node.target is torch.ops.tinygemm.gemm.default]
        assert len(calls) == 2, "the joined product, and the one behind it"
        for out, expected in zip(program.module()(*arguments), module(*arguments), strict=True):
            assert expected is None or torch.equal(out, expected)


def test_a_joined_model_generates_with_a_static_cache():
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    options |= {"disable_compile": True, "attention_mask": torch.ones_like(TOKENS)}
    joined, apart = (int4_model(join=join).generate(TOKENS, **options) for join in (True, False))
    assert joined.shape == (2, 11)
    assert torch.equal(joined, apart)


def test_copies_and_pickles_are_models_of_their_own(tmp_path):
    model = int4_model(join=True)
    expected = logits(model)
    torch.save(model, tmp_path / "model.pt")
    others = [copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)]
    model.model.layers[0].self_attn.qkv_proj.scales.zero_()
    for other in others:
        assert torch.equal(logits(other), expected)
        assert other.model.layers[0].self_attn.qkv_proj.parts == (128, 64, 64)


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
def test_a_file_of_safetensors_restores_a_model(joined, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, other = int4_model(join=joined), float_model()
    safetensors.save_model(model, tmp_path / "model.safetensors")
    for parameter in other.parameters():
        parameter.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_model(other, 32, symmetric=False, join=joined)
    assert not torch.equal(logits(other), logits(model))
    safetensors.load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
def test_a_model_without_values_gets_layers_without_values_to_be_loaded(joined):
    model = int4_model(join=joined)
    with torch.device("meta"):
        other = transformers.AutoModelForCausalLM.from_config(model.config, dtype=torch.float16).eval()
    quantize_model(other, 32, symmetric=False, join=joined)
    assert all(tensor.is_meta for tensor in other.state_dict().values())
    other.load_state_dict(model.state_dict(), assign=True)
    other.model.rotary_emb = model.model.rotary_emb  # its buffers are in no state dict
    assert torch.equal(logits(other), logits(model))


def test_a_weight_that_an_embedding_shares_stays_and_is_named():
    model = float_model()
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.warns(UserWarning, match=r"share their weight .*: lm_head$"):
        replaced = quantize_model(model, skip=())
    assert "lm_head" not in replaced
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_accelerate_spreads_a_model_before_or_after_it_is_quantised(when, joined):
    accelerate = pytest.importorskip("accelerate")
    expected, model = logits(int4_model()), float_model()
    spread = functools.partial(accelerate.dispatch_model, device_map={"": "cpu"}, force_hooks=True)
    if when == "before":
        spread(model)
    with warnings.catch_warnings(record=True) as said:
        quantize_model(model, 32, symmetric=False, join=joined)
    if when == "after":
        spread(model)
    attention = model.model.layers[0].self_attn
    apart = when == "before" or not joined
    assert hasattr(attention.q_proj if apart else attention.qkv_proj, "_hf_hook")
    assert any("not joined" in str(each.message) for each in said) == (apart and joined)
    assert torch.equal(logits(model), expected)


def test_a_weight_that_accelerate_keeps_elsewhere_is_refused_by_name():
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(float_model(), execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^model\.layers\.0\.self_attn\.q_proj: .*accelerate"):
        quantize_model(model)
    assert not layers(model)


# --- what stays apart -------------------------------------------------------------------------------------------------


def hooked(model):
    model.model.layers[0].self_attn.k_proj.register_forward_hook(lambda layer, inputs, y: y * 2)


def without_bias(model):
    model.model.layers[0].self_attn.v_proj.bias = None


def narrow(model):
    model.model.layers[0].self_attn.q_proj = torch.nn.Linear(128, 136).half()


def replaced(model):
    attention = model.model.layers[0].self_attn
    attention.forward = attention.forward


def of_a_user(model):
    attention = model.model.layers[0].self_attn
    attention.__class__ = type("Attention", (type(attention),), {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hooked, "hooks"),
        (without_bias, "biases"),
        (narrow, "multiple of 16"),
        (replaced, "forward"),
        (of_a_user, "Attention"),
    ],
)
def test_projections_that_cannot_be_joined_stay_apart_and_the_reason_is_said(change, reason):
    model = float_model()
    change(model)
    with pytest.warns(UserWarning, match=rf"not joined, as .*{reason}.*: model\.layers\.0\.self_attn\.qkv_proj$"):
        quantize_model(model, join=True)
    found = set(layers(model))
    assert "model.layers.0.self_attn.q_proj" in found
    assert set(JOINED[1:]) < found


def test_what_is_skipped_is_not_joined():
    model = float_model()
    quantize_model(model, skip=("k_proj", "lm_head"), join=True)
    assert {JOINED[1], JOINED[3], "model.layers.0.self_attn.q_proj"} < set(layers(model))


def test_a_failure_leaves_the_model_as_it_was(monkeypatch):
    model, calls = float_model(), []
    before, expected = dict(model.named_modules()), logits(model)
    kinds = [type(module) for module in model.modules()]
    original = join.cut.join

    def out_of_memory(parts):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("no more")
        return original(parts)

    monkeypatch.setattr(join.cut, "join", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        quantize_model(model, join=True)
    assert dict(model.named_modules()) == before
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(logits(model), expected)


def test_a_model_that_is_in_int4_already_can_be_joined_and_a_failure_leaves_its_values(monkeypatch):
    model = int4_model()
    expected = logits(model)
    original = join.Int4Linear.from_packed
    calls = []

    def out_of_memory(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("no more")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(join.Int4Linear, "from_packed", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            join.join_projections(model)
    assert torch.equal(logits(model), expected)
    assert join.join_projections(model) == JOINED
    assert torch.equal(logits(model), expected)
    assert join.join_projections(model) == []


def test_a_projection_of_another_input_is_an_error_and_no_wrong_result():
    module = int4_model(join=True).model.layers[0].mlp

    class Normed(module.original):
        def forward(self, x):
            return self.down_proj(self.gate_proj(x) * self.up_proj(x + 1))

    module.__class__ = join._class_of(Normed, "gate_up_proj")
    with pytest.raises(RuntimeError, match="another input"):
        module(torch.randn(1, 128).half())


@pytest.mark.parametrize(("progress", "terminal"), [(True, True), (True, False), (False, True)])
def test_a_bar_is_shown_on_a_terminal_only(progress, terminal, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", stream)
    quantize_model(float_model(), 32, progress=progress)
    assert ("14/14" in stream.getvalue()) == (progress and terminal)


def reordered(model, *names, seed):
    """The projections of the first layer as GPTQ's act-order leaves them: columns in another order."""
    attention = model.model.layers[0].self_attn
    order = torch.randperm(128, generator=torch.Generator().manual_seed(seed))
    for name in names:
        part = getattr(attention, name)
        setattr(attention, name, layer_of(part.weight, part.bias, order))


def test_projections_in_one_order_of_columns_are_joined_bit_for_bit():
    model = int4_model()
    reordered(model, "q_proj", "k_proj", "v_proj", seed=1)
    expected = logits(model)
    assert not torch.equal(expected, logits(int4_model()))
    assert join.join_projections(model) == JOINED
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(copy.deepcopy(model)), expected)


@pytest.mark.parametrize("others", [{"k_proj": 2, "v_proj": 1}, {"v_proj": 1}])
def test_projections_in_several_orders_of_columns_stay_apart(others):
    model = int4_model()
    reordered(model, "q_proj", seed=1)
    for name, seed in others.items():
        reordered(model, name, seed=seed)
    expected = logits(model)
    with pytest.warns(UserWarning, match=r"order of their columns: model\.layers\.0\.self_attn\.qkv_proj"):
        assert join.join_projections(model) == JOINED[1:]
    assert torch.equal(logits(model), expected)
