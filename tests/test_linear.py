"""Int4Linear in a model: what it computes, how it is stored and moved, and which layers quantize_model replaces."""

import copy
import re

import pytest
import torch
from operands import assert_close, poison_allocations
from ptx import emulated
from torch import nn

from tinygemm.kernel.linear import Int4Linear, quantize_model
from tinygemm.kernel.quant import dequantize, quantize


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    poison_allocations(monkeypatch)
    with emulated(), torch.no_grad():
        yield


class Block(nn.Module):
    """What matters of a transformer's block: attention, a gated MLP, norms and residuals."""

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


def test_a_layer_that_cannot_be_quantised_is_named_and_nothing_is_changed(model):
    model.layers[1].down_proj = nn.Linear(200, 128).half()
    with pytest.raises(ValueError, match=re.escape("layers.1.down_proj: K=200 must be divisible by group_size=128")):
        quantize_model(model)
    assert not any(isinstance(module, Int4Linear) for module in model.modules())


def test_a_layer_used_in_two_places_stays_one_layer(model):
    model.layers[1].o_proj = model.layers[0].o_proj
    quantize_model(model)
    assert model.layers[1].o_proj is model.layers[0].o_proj
    assert type(model.layers[1].o_proj) is Int4Linear


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
