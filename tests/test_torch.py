"""The product inside torch: compiled, exported, traced, in inference mode, and without a gradient."""

import pytest
import torch
from operands import assert_close, make_operands
from ptx import emulated
from torch.fx.experimental.proxy_tensor import make_fx

from tinygemm.kernel.gemm import gemm
from tinygemm.kernel.linear import Int4Linear
from tinygemm.kernel.quant import pack, quantize

K, N = 256, 40


@pytest.fixture(autouse=True)
def interpreter():
    with emulated():
        yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def operands():
    return make_operands(6, N, K, 64, symmetric=False)


@pytest.fixture(scope="module")
def w(operands):
    return pack(operands.codes, operands.scales, operands.zeros, 64)


def operator_calls(graph) -> int:
    return sum(node.target in (torch.ops.tinygemm.gemm, torch.ops.tinygemm.gemm.default) for node in graph.nodes)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
def test_the_operator_keeps_the_contract_of_torch(symmetric):
    operands = make_operands(2, N, K, 64, symmetric)
    w = pack(operands.codes, operands.scales, operands.zeros, 64)
    for x in (operands.x, operands.x.view(1, 2, K), operands.x[0]):
        torch.library.opcheck(torch.ops.tinygemm.gemm, (x, w.qweight, w.scales, w.zeros, N, K, 64))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_compiled_function_is_one_graph_and_computes_the_same(backend, operands, w):
    compiled = torch.compile(lambda x: gemm(2 * x, w) + 1, fullgraph=True, backend=backend)
    assert_close(compiled(operands.x) - 1, 2 * operands.reference(), max_err=1e-2, rms_err=2e-3)
    assert torch.equal(compiled(operands.x), gemm(2 * operands.x, w) + 1)


def test_the_weight_may_be_an_argument_of_the_compiled_function(operands, w):
    compiled = torch.compile(gemm, fullgraph=True, backend="aot_eager")
    other = pack(operands.codes.flip(0), operands.scales, operands.zeros, 64)
    assert torch.equal(compiled(operands.x, w), gemm(operands.x, w))
    assert torch.equal(compiled(operands.x, other), gemm(operands.x, other))


def test_another_number_of_tokens_is_compiled_once_more_and_never_again(operands, w):
    """The first change of M makes it a symbol; all further ones are served by that graph."""
    graphs = []

    def remember(graph_module, _):
        graphs.append(graph_module)
        return graph_module.forward

    compiled = torch.compile(lambda x: gemm(x, w), fullgraph=True, backend=remember)
    for M in (1, 2, 3, 4, 5, 6, 3, 2):
        assert torch.equal(compiled(operands.x[:M]), gemm(operands.x[:M], w))
    assert len(graphs) <= 3  # M = 1 is a case of its own in torch
    assert all(operator_calls(graph.graph) == 1 for graph in graphs)


def test_a_layer_is_exported_with_any_number_of_tokens(operands, w, tmp_path):
    layer = Int4Linear.from_packed(w, torch.arange(N).half())
    layer(operands.x)
    program = torch.export.export(layer, (operands.x,), dynamic_shapes=({0: torch.export.Dim("M", min=1)},))
    assert operator_calls(program.graph) == 1
    assert set(program.state_dict) == {"qweight", "scales", "zeros", "bias"}
    assert not program.constants
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    for M in (1, 2, 6):
        assert torch.equal(loaded(operands.x[:M]), layer(operands.x[:M]))


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_tracer_sees_the_operator_and_not_what_it_is_made_of(operands, w):
    traced = make_fx(lambda x: gemm(x, w))(operands.x)
    assert operator_calls(traced.graph) == 1
    other = operands.x.flip(0)
    assert torch.equal(traced(other), gemm(other, w))
    scripted = torch.jit.trace(lambda x: gemm(x, w), operands.x, check_trace=False)
    assert torch.equal(scripted(other), gemm(other, w))


def test_a_fake_tensor_has_the_shape_and_type_of_the_product(operands, w):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = gemm(mode.from_tensor(operands.x.view(2, 3, K)), w)
    assert out.shape == (2, 3, N)
    assert out.dtype == torch.float16


def test_inference_mode_computes_the_same(operands, w):
    expected = gemm(operands.x, w)
    with torch.inference_mode():
        assert torch.equal(gemm(operands.x, w), expected)
        assert torch.equal(gemm(operands.x.clone(), w), expected), "an inference tensor"


def test_a_gradient_is_refused_in_words_and_no_grad_is_enough(operands, w):
    x = operands.x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"gemm has no backward: call it under torch\.inference_mode"):
        gemm(x, w)
    with torch.no_grad():
        assert torch.equal(gemm(x, w), gemm(operands.x, w))
    assert torch.equal(gemm(x.detach(), w), gemm(operands.x, w))


def test_an_eager_call_does_not_go_through_the_dispatcher(operands, w):
    """The operator costs host time, and only tracers need it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    called = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function)
            return function(*args, **(kwargs or {}))

    with Record():
        gemm(operands.x, w)
    assert torch.ops.tinygemm.gemm.default in called, "where somebody listens, the operator is what they hear"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        gemm(operands.x, w)
    assert "tinygemm::gemm" not in {event.name for event in profile.events()}


def test_a_config_cannot_be_forced_while_torch_traces(operands, w):
    from tinygemm.kernel.configs import STATIC

    with pytest.raises(ValueError, match="config cannot be forced while torch traces"):
        make_fx(lambda x: gemm(x, w, STATIC))(operands.x)


# --- transforms and tracers that are not torch.compile ---------------------------------------------------------------


@pytest.fixture
def layer(w):
    return Int4Linear.from_packed(w, torch.arange(N).half())


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_batch_of_vmap_is_more_rows(dim, layer, operands):
    x = operands.x.view(3, 2, K)
    batched = x.movedim(0, dim).contiguous()  # at 2, K has a stride
    assert torch.equal(torch.vmap(layer, in_dims=dim)(batched), layer(x))
    assert torch.equal(torch.vmap(torch.vmap(layer))(x), layer(x)), "nested"


def test_vmap_over_packed_weights_is_refused_in_words(operands, w):
    def product(qweight):
        return torch.ops.tinygemm.gemm(operands.x, qweight, w.scales, w.zeros, N, K, 64)

    with pytest.raises(ValueError, match="vmap can batch x only"):
        torch.vmap(product)(torch.stack([w.qweight] * 2))


def test_symbolic_tracing_records_the_operator(layer, operands):
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(layer, torch.nn.ReLU()))
    assert operator_calls(traced.graph) == 1
    assert torch.equal(traced(operands.x), layer(operands.x).relu())
    layer.scales.mul_(2)
    assert torch.equal(traced(operands.x), layer(operands.x).relu()), "it reads the layer's buffers"
    layer.scales.mul_(0.5)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_scripting_is_refused_in_words(layer):
    for module in (layer, torch.nn.Sequential(layer)):
        with pytest.raises(TypeError, match="Int4Linear cannot be scripted"):
            torch.jit.script(module)


def test_a_derivative_forwards_is_refused_in_words_like_one_backwards(layer, operands):
    from torch.autograd import forward_ad

    x = operands.x
    with pytest.raises(RuntimeError, match="gemm has no backward"):
        torch.func.jvp(layer, (x,), (x,))
    with pytest.raises(RuntimeError, match="gemm has no backward"):
        torch.func.grad(lambda x: layer(x).sum())(x)
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match="gemm has no backward"):
            layer(forward_ad.make_dual(x, x))
        assert torch.equal(layer(x), layer(x.clone())), "what has no tangent is computed"


def test_a_layer_of_a_trained_weight_compiles_outside_no_grad(operands):
    """Nothing of the packed weight asks for a gradient."""
    layer = Int4Linear.from_packed(quantize(torch.nn.Linear(K, N).weight))
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(operands.x), layer(operands.x))


def test_autocast_is_part_of_what_is_compiled(layer, operands):
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(compiled(operands.x.float()), layer(operands.x.float()))
        assert compiled(operands.x.float()).dtype == torch.bfloat16


def test_an_exported_layer_refuses_buffers_that_it_would_misread(layer, operands):
    """A program may be given other tensors than it was exported with."""
    program = torch.export.export(layer, (operands.x,)).module()
    program.scales = program.scales.t().contiguous().t()
    with pytest.raises(ValueError, match="scales must be contiguous"):
        program(operands.x)
