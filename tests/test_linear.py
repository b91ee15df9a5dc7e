"""Int4Linear in a model: what it computes, how it is stored and moved, and which layers quantize_model replaces."""

import copy
import re
import warnings

import pytest
import torch
from operands import assert_close, poison_allocations
from ptx import emulated
from torch import nn
from torch.nn.utils import prune

from tinygemm.kernel.linear import Int4Linear, quantize_model
from tinygemm.kernel.quant import dequantize, quantize


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    poison_allocations(monkeypatch)
    with emulated(), torch.no_grad():
        yield


class Block(nn.Module):
    """The parts of a transformer's block that matter: attention, a gated MLP, norms and residuals."""

    def __init__(self, width: int, hidden: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv_proj, self.o_proj = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)
        self.up_proj, self.gate_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, h):
        batch, tokens, width = h.shape
        q, k, v = self.qkv_proj(self.norm(h)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.o_proj(attended.transpose(1, 2).reshape(batch, tokens, width))
        gated = nn.functional.silu(self.gate_proj(self.mlp_norm(h))) * self.up_proj(self.mlp_norm(h))
        return h + self.down_proj(gated)


class Model(nn.Module):
    def __init__(self, layers: int = 2, width: int = 128, hidden: int = 256, words: int = 50):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Block(width, hidden) for _ in range(layers))
        self.lm_head = nn.Linear(width, words, bias=False)

    def forward(self, tokens):
        h = self.embed(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.lm_head(h)


PROJECTIONS = ["qkv_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().half().eval()


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_a_layer_computes_its_quantised_weight_and_bias(bias, symmetric):
    torch.manual_seed(1)
    linear = nn.Linear(256, 40, bias).half()
    layer = Int4Linear.from_linear(linear, 64, symmetric)
    x = torch.randn(2, 3, 256).half()
    weight = dequantize(quantize(linear.weight, 64, symmetric), torch.float64)
    expected = x.double() @ weight.T + (linear.bias.double() if bias else 0)
    y = layer(x)
    assert y.shape == (2, 3, 40)
    assert_close(y.view(6, 40), expected.view(6, 40))


def test_a_model_computes_what_it_would_with_its_weights_rounded(model):
    rounded = copy.deepcopy(model).double()
    for path, module in rounded.named_modules():
        if isinstance(module, nn.Linear) and path != "lm_head":
            module.weight.copy_(dequantize(quantize(model.get_submodule(path).weight), torch.float64))
    names = quantize_model(model)
    assert names == [f"layers.{i}.{name}" for i in range(2) for name in PROJECTIONS]
    assert_close(model(TOKENS).view(10, 50), rounded(TOKENS).view(10, 50), max_err=2e-2, rms_err=5e-3)


def test_names_and_paths_to_skip_stay_as_they_are(model):
    replaced = quantize_model(model, 32, skip=("lm_head", "o_proj", "layers.1.up_proj"))
    assert "layers.1.up_proj" not in replaced
    assert type(model.layers[1].up_proj) is type(model.layers[0].o_proj) is type(model.lm_head) is nn.Linear
    assert type(model.layers[0].up_proj) is Int4Linear
    assert quantize_model(Model().half(), skip=())[-1] == "lm_head"


def test_a_name_given_as_a_string_is_one_name(model):
    model.head, model.lm = nn.Linear(128, 16).half(), nn.Linear(128, 16).half()
    assert {"head", "lm"} < set(quantize_model(model, skip="lm_head")), "both are parts of the word"


@pytest.mark.parametrize(("skip", "kept"), [("layers.1", 1), (["layers"], 2), (["ModuleList"], None)])
def test_what_a_skipped_module_contains_is_skipped_and_an_unknown_name_is_an_error(skip, kept, model):
    if kept is None:
        with pytest.raises(ValueError, match="skip names no module of the model: 'ModuleList'"):
            quantize_model(model, skip=skip)
    else:
        replaced = quantize_model(model, skip=skip)
        assert replaced == [f"layers.{i}.{name}" for i in range(2 - kept) for name in PROJECTIONS] + ["lm_head"]


@pytest.mark.parametrize("skip", [None, 3, [nn.Linear]])
def test_skip_holds_names(skip, model):
    with pytest.raises(TypeError, match="skip must be names of modules"):
        quantize_model(model, skip=skip)


def test_a_layer_used_in_two_places_stays_one_layer(model):
    model.layers[1].o_proj = model.layers[0].o_proj
    quantize_model(model)
    assert model.layers[1].o_proj is model.layers[0].o_proj
    assert type(model.layers[1].o_proj) is Int4Linear


REFUSED = {  # a layer that cannot be quantised, and what is said of it
    "K no multiple of the group": (lambda: nn.Linear(200, 128).half(), "K=200 must be divisible by group_size=128"),
    "float64": (lambda: nn.Linear(256, 128).double(), "weight must be float16, bfloat16 or float32"),
    "without values": (lambda: nn.Linear(256, 128, device="meta"), "weight is on the meta device"),
    "not finite": (lambda: filled(torch.nan), "NaN or infinite"),
    "too large for float16": (lambda: filled(1e6).float(), "a group's scale is"),
    "forward replaced": (lambda: patched("forward", lambda x: x), "its forward was replaced"),
    "hooked by accelerate": (lambda: patched("_hf_hook", object()), "its forward was replaced"),
    "weight_norm of the bias": (lambda: nn.utils.weight_norm(nn.Linear(256, 128), "bias"), "its bias is made anew"),
    "pruned bias": (
        lambda: prune.l1_unstructured(nn.Linear(256, 128), "bias", 0.5),
        "its bias is made anew by a hook",
    ),
    "bias without values": (
        lambda: with_bias(torch.zeros(128, device="meta")),
        "bias must be on the device of qweight",
    ),
    "bias of one number": (lambda: with_bias(torch.zeros(1)), "bias must have shape [128], got [1]"),
    "sparse weight": (lambda: sparse(), "weight must be dense"),
    "weight_norm": (lambda: nn.utils.weight_norm(nn.Linear(256, 128)), "its weight is made anew by a hook"),
}


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Plain(nn.Linear):
    """A subclass that computes what nn.Linear does."""


def with_bias(bias):
    linear = nn.Linear(256, 128)
    linear.bias = nn.Parameter(bias)
    return linear


def sparse():
    linear = nn.Linear(256, 128)
    linear.weight = nn.Parameter(linear.weight.to_sparse())
    return linear


def filled(value):
    linear = nn.Linear(256, 128)
    linear.weight.fill_(value)
    return linear


def patched(name, value):
    linear = nn.Linear(256, 128).half()
    setattr(linear, name, value)
    return linear


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_that_cannot_be_quantised_is_named_by_its_path_and_nothing_is_changed(case, model):
    make, message = REFUSED[case]
    model.layers[1].down_proj = make()
    with pytest.raises(ValueError, match=rf"^layers\.1\.down_proj: .*{re.escape(message)}"):
        quantize_model(model)
    assert not any(isinstance(module, Int4Linear) for module in model.modules())
    quantize_model(model, skip=("lm_head", "layers.1.down_proj"))


def test_a_subclass_with_a_forward_of_its_own_is_refused_and_a_plain_one_is_not():
    with pytest.raises(ValueError, match="Doubled has a forward of its own"):
        Int4Linear.from_linear(Doubled(128, 16))
    with pytest.raises(TypeError, match=r"linear must be an nn\.Linear, got Conv1d"):
        Int4Linear.from_linear(nn.Conv1d(128, 16, 1))
    plain, x = Plain(128, 16).half(), torch.randn(2, 128).half()
    expected = x.double() @ dequantize(quantize(plain.weight), torch.float64).T + plain.bias.double()
    assert_close(Int4Linear.from_linear(plain)(x), expected)


@pytest.mark.parametrize(("count", "more"), [(2, ""), (7, " and 2 more")])
def test_linear_layers_that_stay_because_they_are_subclasses_are_named(count, more):
    model = nn.Sequential(nn.Linear(256, 128).half(), *(Plain(128, 16) for _ in range(count)), Plain(128, 16))
    with pytest.warns(UserWarning, match=f"subclasses.* {', '.join(map(str, range(1, min(count, 5) + 1)))}{more}$"):
        assert quantize_model(model, skip=[str(count + 1)]) == ["0"]


class Refusing(nn.Module):
    """A parent that takes one more layer and then no other."""

    def __init__(self, *layers):
        super().__init__()
        for name, layer in zip("abc", layers, strict=True):
            self.add_module(name, layer)

    def __setattr__(self, name, value):
        if name == "b" and isinstance(value, Int4Linear):
            raise RuntimeError("not this one")
        super().__setattr__(name, value)


def test_a_parent_that_refuses_a_layer_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(128, 128), Refusing(*(nn.Linear(128, 128) for _ in range(3)))).half()
    before, calls = dict(model.named_modules()), []
    handle = model[0].register_forward_hook(lambda *arguments: calls.append(1))
    with pytest.raises(RuntimeError, match="not this one"):
        quantize_model(model)
    assert dict(model.named_modules()) == before
    handle.remove()
    model[0](torch.ones(1, 128).half())
    assert not calls


def test_an_error_of_the_machine_keeps_its_type_and_names_the_layer(model, monkeypatch):
    def out_of_memory(weight, *arguments, **keywords):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr("tinygemm.kernel.linear.quantize", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError) as error:
        quantize_model(model)
    assert "layers.0.qkv_proj" in error.value.__notes__[0]


def test_a_model_of_which_nothing_is_quantised_is_an_error(model):
    with pytest.raises(ValueError, match=r"no nn\.Linear to quantise"):
        quantize_model(nn.Sequential(nn.Embedding(10, 128), nn.LayerNorm(128)))
    quantize_model(model)
    with pytest.raises(ValueError, match=re.escape("outside skip=['lm_head']")):
        quantize_model(model)


class Experts(nn.Module):
    """Weights of experts in one tensor, as newer models keep them: no nn.Linear."""

    def __init__(self, count):
        super().__init__()
        self.fused = nn.Parameter(torch.zeros(count, 128, 128).half())


@pytest.mark.parametrize(("experts", "share"), [(1, None), (2, "67%"), (9, "90%")])
def test_a_model_that_is_mostly_left_as_it_is_says_so(experts, share):
    """One layer of 128 x 128 is quantised beside that many experts of the same size; half and half says nothing."""
    model = nn.ModuleDict({"projection": nn.Linear(128, 128).half(), "experts": Experts(experts)})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert quantize_model(model) == ["projection"]
    assert [share in str(each.message) and "experts.fused" in str(each.message) for each in said] == [True] * bool(
        share
    )


def test_a_float32_model_is_told_that_it_wants_half():
    model, x = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 16)), torch.randn(1, 128)
    with pytest.warns(UserWarning, match=r"1 was float32 .*\.half\(\)"):
        quantize_model(model)
    with pytest.raises(TypeError, match=r"x must be float16 or bfloat16, got torch\.float32"):
        model(x)
    assert model.half()(x.half()).dtype == torch.float16


def test_the_rule_reaches_every_layer(model):
    signed, absmax = copy.deepcopy(model), copy.deepcopy(model)
    quantize_model(signed)
    quantize_model(absmax, rule="absmax")
    for each, rule in ((signed, "full-range"), (absmax, "absmax")):
        weight = model.layers[0].up_proj.weight
        assert torch.equal(each.layers[0].up_proj.scales, quantize(weight, rule=rule).scales)
    assert (signed.layers[0].up_proj.scales < 0).any()
    assert (absmax.layers[0].up_proj.scales > 0).all()


def test_a_search_reaches_every_layer(model):
    for symmetric in (True, False):
        searched = copy.deepcopy(model)
        quantize_model(searched, symmetric=symmetric, search=True)
        w = quantize(model.layers[0].up_proj.weight, symmetric=symmetric, search=True)
        layer = searched.layers[0].up_proj
        assert torch.equal(layer.scales, w.scales)
        assert torch.equal(layer.qweight, w.qweight)
        assert not torch.equal(w.scales, quantize(model.layers[0].up_proj.weight, symmetric=symmetric).scales)


# --- what a layer does beside its product ----------------------------------------------------------------------------


def test_hooks_of_the_forward_move_along_and_can_still_be_removed():
    linear = nn.Linear(128, 32).half()
    calls = []
    handles = [
        linear.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,)),
        linear.register_forward_pre_hook(
            lambda layer, args, kwargs: calls.append("pre") or (args, {}), with_kwargs=True
        ),
        linear.register_forward_hook(lambda layer, args, kwargs, out: out + len(kwargs), with_kwargs=True),
        linear.register_forward_hook(lambda layer, args, out: calls.append("always"), always_call=True),
    ]
    plain = Int4Linear.from_linear(copy.deepcopy(linear))
    model = nn.Sequential(linear)
    quantize_model(model)
    x = torch.randn(2, 128).half()
    doubled = model(x)
    assert calls == ["pre", "always"]
    with pytest.raises(ValueError, match="K=128"):
        model(x[:, :64])
    assert calls == ["pre", "always", "pre", "always"], "the last hook is called after a failure, too"
    for handle in handles:
        handle.remove()
    assert torch.equal(model(2 * x), doubled)
    assert len(calls) == 4
    assert torch.equal(plain(x), doubled), "a copy has hooks of its own"


def test_hooks_added_later_belong_to_one_layer():
    linear, x = nn.Linear(128, 32).half(), torch.randn(2, 128).half()
    calls = []
    early = linear.register_forward_hook(lambda *arguments: calls.append("early"))
    one, other = Int4Linear.from_linear(linear), Int4Linear.from_linear(linear)
    one.register_forward_hook(lambda *arguments: calls.append("one"))
    linear.register_forward_hook(lambda *arguments: calls.append("float"))
    for layer, heard in ((one, ["early", "one"]), (other, ["early"]), (linear, ["early", "float"])):
        calls.clear()
        layer(x)
        assert calls == heard
    model = nn.Sequential(linear)
    quantize_model(model)
    model[0].register_forward_hook(lambda *arguments: calls.append("model"))
    early.remove()
    for layer, heard in ((model[0], ["float", "model"]), (linear, ["early", "float"])):
        calls.clear()
        layer(x)
        assert calls == heard


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_is_in_the_mode_of_the_one_it_replaces(training):
    assert Int4Linear.from_linear(nn.Linear(128, 16).train(training)).training is training


@pytest.mark.parametrize("layers", [0, 2], ids=["layer", "encoder"])
@pytest.mark.parametrize("mask", [False, True], ids=["no-mask", "padding"])
def test_an_encoder_of_torch_works_although_its_fast_path_wants_tensors(layers, mask):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
    model = (nn.TransformerEncoder(model, layers, enable_nested_tensor=True) if layers else model).half().eval()
    expected = copy.deepcopy(model).float()
    replaced = quantize_model(model)
    for path in replaced:
        expected.get_submodule(path).weight.copy_(dequantize(model.get_submodule(path).weight, torch.float32))
    x = torch.randn(2, 5, 128).half()
    padding = {"src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])} if mask else {}
    kept = slice(0, 3)
    y = model(x, **padding)[:, kept].reshape(-1, 128)
    assert_close(y, expected(x.float(), **padding)[:, kept].reshape(-1, 128).double(), max_err=2e-2, rms_err=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_under_autocast_a_layer_computes_in_the_dtype_that_a_linear_layer_would(x_dtype, dtype):
    linear = nn.Linear(128, 32)
    layer, x = Int4Linear.from_linear(linear), torch.randn(2, 128).to(x_dtype)
    with torch.autocast("cpu", dtype):
        assert layer(x).dtype == linear(x).dtype == dtype
        assert torch.equal(layer(x), layer(x.to(dtype)))
    if x_dtype != torch.float32:
        assert layer(x).dtype == x_dtype


@pytest.mark.parametrize("shape", [(0, 128), (2, 0, 128)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_without_rows_gives_none(bias, shape):
    linear = nn.Linear(128, 32, bias).half()
    x = torch.zeros(shape).half()
    y = Int4Linear.from_linear(linear)(x)
    assert (y.shape, y.dtype) == (linear(x).shape, torch.float16)


def test_a_layer_of_a_trained_weight_can_be_copied():
    with torch.enable_grad():
        layer = Int4Linear.from_packed(quantize(nn.Linear(256, 40).weight))
        copy.deepcopy(layer)
        assert not layer(torch.randn(2, 256).half()).requires_grad


def test_a_single_linear_layer_cannot_be_replaced_in_place():
    with pytest.raises(ValueError, match=r"use Int4Linear\.from_linear"):
        quantize_model(nn.Linear(128, 16))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
def test_a_state_dict_restores_the_layer_bit_for_bit(symmetric, tmp_path):
    layer = Int4Linear.from_linear(nn.Linear(256, 40).half(), 64, symmetric)
    names = ["qweight", "scales"] + ([] if symmetric else ["zeros"]) + ["bias"]
    assert list(layer.state_dict()) == names
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = Int4Linear(256, 40, group_size=64, symmetric=symmetric)
    x = torch.randn(2, 256).half()
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(torch.load(tmp_path / "layer.pt"))
    assert torch.equal(other(x), layer(x))


LOADED = {  # what a state dict holds instead of a tensor of the same name
    "scales in float32": ("scales", torch.Tensor.float),
    "scales in bfloat16": ("scales", torch.Tensor.bfloat16),
    "codes in float16": ("qweight", torch.Tensor.half),
    "codes in int64": ("qweight", torch.Tensor.long),
    "zeros in int32": ("zeros", torch.Tensor.int),
    "fewer codes": ("qweight", lambda tensor: tensor[:2]),
    "scales transposed": ("scales", torch.Tensor.t),
}


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
@pytest.mark.parametrize("case", LOADED)
def test_a_state_dict_of_other_dtypes_or_shapes_is_refused_by_name(case, assign):
    name, change = LOADED[case]
    model, x = nn.Sequential(Int4Linear.from_linear(nn.Linear(256, 40).half(), 64, False)), torch.randn(2, 256).half()
    before = model(x)
    state = {f"0.{name}": change(model[0].state_dict()[name])}
    with pytest.raises(RuntimeError, match=rf"0\.{name}"):
        model.load_state_dict(state, strict=False, assign=assign)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("name", ["qweight", "scales", "zeros"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_of_other_strides_are_laid_out_when_they_are_assigned(name, device):
    layer, x = Int4Linear.from_linear(nn.Linear(256, 40).half(), 64, False), torch.randn(2, 256).half()
    state = layer.state_dict()
    state[name] = nn.Parameter(state[name].mT.contiguous().mT, requires_grad=False)  # as a loader may hand it over
    other = Int4Linear(256, 40, group_size=64, symmetric=False, device=device)
    other.load_state_dict(state, assign=True)
    assert torch.equal(other(x), layer(x))


ASSIGNED = {
    "fewer codes": ("qweight", lambda tensor: tensor[:2]),
    "codes in float": ("qweight", torch.Tensor.float),
    "scales strided": ("scales", lambda tensor: tensor.t().contiguous().t()),
    "scales in bfloat16": ("scales", torch.Tensor.bfloat16),
    "scales elsewhere": ("scales", lambda tensor: tensor.to("meta")),
    "zeros in int32": ("zeros", torch.Tensor.int),
}


@pytest.mark.parametrize("case", ASSIGNED)
def test_a_buffer_that_was_replaced_by_another_kind_is_refused_by_name(case):
    name, change = ASSIGNED[case]
    layer, x = Int4Linear.from_linear(nn.Linear(256, 40).half(), 64, False), torch.randn(2, 256).half()
    layer(x)
    setattr(layer, name, change(getattr(layer, name)))
    with pytest.raises(ValueError, match=f"^{name} must be"):
        layer(x)


SWAPPED = {  # what becomes the `.data` of a buffer, and whether the layer can still be right
    "codes strided": ("qweight", lambda tensor: tensor.mT.contiguous().mT, False),
    "codes in int64": ("qweight", torch.Tensor.long, False),
    "scales strided": ("scales", lambda tensor: tensor.t().contiguous().t(), False),
    "scales in bfloat16": ("scales", torch.Tensor.bfloat16, False),
    "zeros in int32": ("zeros", torch.Tensor.int, False),
    "bias of two rows": ("bias", lambda tensor: tensor.repeat(2, 1), False),
    "other scales": ("scales", lambda tensor: tensor / 2, True),
}


@pytest.mark.parametrize("case", SWAPPED)
def test_a_swap_of_the_data_of_a_buffer_is_seen(case):
    name, change, fits = SWAPPED[case]
    layer, x = Int4Linear.from_linear(nn.Linear(256, 40).half(), 64, False), torch.randn(2, 256).half()
    layer(x)
    buffer = getattr(layer, name)
    buffer.data = change(buffer.data)
    if fits:
        assert_close(layer(x), x.double() @ dequantize(layer.weight, torch.float64).T + layer.bias.double())
    else:
        with pytest.raises(ValueError, match=f"^{name} must"):
            layer(x)


@pytest.mark.parametrize("bias", [torch.zeros(1), torch.zeros(2, 40), torch.zeros(40, device="meta")])
def test_a_bias_that_would_broadcast_or_has_no_values_is_refused(bias):
    w, x = quantize(torch.randn(40, 256)), torch.randn(2, 256).half()
    with pytest.raises(ValueError, match=r"^bias must"):
        Int4Linear.from_packed(w, bias)
    layer = Int4Linear.from_packed(w, torch.zeros(40))
    layer(x)
    layer.bias = bias
    with pytest.raises(ValueError, match=r"^bias must"):
        layer(x)


def test_a_bias_that_was_not_loaded_is_no_zero():
    state = Int4Linear.from_linear(nn.Linear(256, 40).half()).state_dict()
    del state["bias"]
    layer = Int4Linear(256, 40, device="meta")
    layer.load_state_dict(state, strict=False, assign=True)
    with pytest.raises(ValueError, match="bias must be on the device of qweight"):
        layer(torch.randn(2, 256).half())


VALUES = {  # a value that `pack` refuses
    "zeros": ("zeros", 16, "zeros must lie in 0..15, got 16"),
    "NaN": ("scales", torch.nan, "a group's scale is nan"),
    "infinite": ("scales", torch.inf, "a group's scale is inf"),
    "beyond the limit": ("scales", 9000.0, "a group's scale is 9000"),
}


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
@pytest.mark.parametrize("case", VALUES)
def test_values_that_pack_refuses_are_not_loaded(case, assign):
    name, value, message = VALUES[case]
    model, x = nn.Sequential(Int4Linear.from_linear(nn.Linear(256, 40).half(), 64, False)), torch.randn(2, 256).half()
    before = model(x)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state[f"0.{name}"][1, 3] = value
    with pytest.raises(RuntimeError, match=rf"0\.{name} .*{message.removeprefix('zeros ')}"):
        model.load_state_dict(state, assign=assign)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_state_dict_of_the_other_kind_of_groups_is_refused(symmetric, strict):
    model = nn.Sequential(Int4Linear(256, 40, symmetric=symmetric))
    other = nn.Sequential(Int4Linear.from_linear(nn.Linear(256, 40).half(), symmetric=not symmetric))
    with pytest.raises(RuntimeError, match=rf"0\.zeros .*symmetric={not symmetric}"):
        model.load_state_dict(other.state_dict(), strict=strict)
    assert not model[0].scales.any(), "nothing was loaded"


def test_a_memory_format_leaves_the_codes_as_they_lie():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), Int4Linear.from_linear(nn.Linear(256, 40).half()))
    x = torch.randn(2, 256).half()
    before = model[1](x)
    model.to(memory_format=torch.channels_last)
    assert torch.equal(model[1](x), before)
    assert not model[0].weight.is_contiguous(), "the convolution has the format"


SIZES = {
    "no group": ({"group_size": 0}, "group_size must be one of"),
    "unknown group": ({"group_size": 48}, "group_size must be one of"),
    "group in float": ({"group_size": 128.0}, "group_size must be one of"),
    "no multiple of the group": ({"in_features": 200}, "in_features=200 must be divisible by group_size=128"),
    "no inputs": ({"in_features": 0}, "in_features must be a positive integer, got 0"),
    "no outputs": ({"out_features": 0}, "out_features must be a positive integer, got 0"),
    "outputs in float": ({"out_features": 8.0}, "out_features must be a positive integer, got 8.0"),
    "neither": ({"symmetric": None}, "symmetric must be True or False, got None"),
}


@pytest.mark.parametrize("case", SIZES)
def test_a_layer_of_impossible_size_is_refused_by_name(case):
    change, message = SIZES[case]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        Int4Linear(**{"in_features": 256, "out_features": 8} | change)


def test_a_copy_and_a_pickle_are_layers_of_their_own(tmp_path):
    layer = Int4Linear.from_linear(nn.Linear(256, 40).half())
    x = torch.randn(2, 256).half()
    y = layer(x)
    torch.save(layer, tmp_path / "layer.pt")
    for other in (copy.deepcopy(layer), torch.load(tmp_path / "layer.pt", weights_only=False)):
        assert torch.equal(other(x), y)
        layer.scales.zero_()
        assert torch.equal(other(x), y)
        layer.scales.copy_(other.scales)


@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.float, nn.Module.half])
def test_casting_the_model_changes_no_bit_of_the_weight(cast):
    layer = Int4Linear.from_linear(nn.Linear(256, 40).half())
    before = [tensor.clone() for tensor in layer.weight.tensors()]
    cast(nn.Sequential(layer))
    assert all(torch.equal(*pair) for pair in zip(before, layer.weight.tensors(), strict=True))
    assert [tensor.dtype for tensor in layer.weight.tensors()] == [torch.int32, torch.float16]


def test_moving_the_layer_moves_the_weight_that_it_uses():
    layer = Int4Linear.from_linear(nn.Linear(256, 40).half())
    layer(torch.randn(2, 256).half())
    assert layer.weight is layer.weight, "not made again for every call"
    layer.to("meta")
    assert {tensor.device.type for tensor in (*layer.weight.tensors(), layer.bias)} == {"meta"}


def test_the_representation_says_what_the_layer_is():
    layer = Int4Linear(256, 40, bias=False, group_size=64, symmetric=False)
    assert repr(layer) == (
        "Int4Linear(in_features=256, out_features=40, bias=False, group_size=64, symmetric=False)"
    )  # fmt: skip
