"""The product where no kernel runs: on a CPU it is the reference path, rounded once to the dtype of x."""

import pytest
import torch
from operands import make_operands, poison_allocations

from tinygemm.kernel import gemm as product
from tinygemm.kernel import launches
from tinygemm.kernel.gemm import gemm
from tinygemm.kernel.linear import Int4Linear
from tinygemm.kernel.quant import pack

ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch):
    """A user's process without a GPU: nothing emulates kernels."""
    monkeypatch.setattr(launches, "INTERPRETED", False)
    poison_allocations(monkeypatch)
    with torch.no_grad():
        yield
    torch.compiler.reset()


def packed(operands):
    return pack(operands.codes, operands.scales, operands.zeros, operands.group_size)


def assert_rounded(y, reference):
    """At most half a unit in the last place away, and what float32 sums lose."""
    bound = ROUNDING[y.dtype] * reference.abs() + 1e-6
    assert ((y.double() - reference).abs() <= bound).all()


@pytest.mark.parametrize("at_once", [1, 2**12, 2**22], ids=["tile by tile", "some tiles", "whole"])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("group_size", "symmetric"), [(32, False), (128, True), (-1, True), (-1, False)])
def test_a_product_is_the_float64_one_rounded_once(group_size, symmetric, dtype, at_once, monkeypatch):
    monkeypatch.setattr(product, "DEQUANTISED_AT_ONCE", at_once)
    operands = make_operands(6, 72, 256, group_size, symmetric)  # half a tile of rows is left over
    y = gemm(operands.x.to(dtype).view(2, 3, 256), packed(operands))
    assert (y.shape, y.dtype) == ((2, 3, 72), dtype)
    operands = type(operands)(operands.x.to(dtype), *list(vars(operands).values())[1:])
    assert_rounded(y.view(6, 72), operands.reference())


def test_a_product_never_holds_the_whole_weight_in_float32(monkeypatch):
    sizes = []
    dequantize = product.dequantize
    monkeypatch.setattr(product, "DEQUANTISED_AT_ONCE", 64 * 256)
    monkeypatch.setattr(product, "dequantize", lambda w, dtype: sizes.append(w.N * w.K) or dequantize(w, dtype))
    operands = make_operands(1, 200, 256)
    assert_rounded(gemm(operands.x, packed(operands)), operands.reference())
    assert max(sizes) <= 64 * 256
    assert sum(sizes) == 200 * 256


@pytest.mark.parametrize("shape", [(0, 256), (2, 0, 256)])
def test_no_rows_give_none(shape):
    operands = make_operands(1, 40, 256)
    y = gemm(operands.x.new_zeros(shape), packed(operands))
    assert (y.shape, y.dtype) == ((*shape[:-1], 40), torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
def test_what_a_gpu_refuses_is_refused_with_what_to_do(dtype):
    operands = make_operands(2, 40, 256)
    for call in (gemm, lambda x, w: Int4Linear.from_packed(w)(x)):
        with pytest.raises(TypeError, match=rf"x must be float16 or bfloat16, got {dtype}; cast x, .*\.half\(\)"):
            call(operands.x.to(dtype), packed(operands))


@pytest.fixture
def layer():
    operands = make_operands(1, 40, 256, 64, symmetric=False)
    return Int4Linear.from_packed(packed(operands), torch.arange(40).half())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_layer_compiles_into_one_graph_and_computes_the_same(backend, layer):
    compiled = torch.compile(lambda x: layer(2 * x).relu(), fullgraph=True, backend=backend)
    for rows in (1, 3, 5):
        x = make_operands(rows, 40, 256).x
        assert torch.equal(compiled(x), layer(2 * x).relu())


def test_a_layer_is_exported_with_any_number_of_rows(layer, tmp_path):
    x = make_operands(6, 40, 256).x
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("M", min=1)},))
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    for rows in (1, 2, 6):
        assert torch.equal(loaded(x[:rows]), layer(x[:rows]))
