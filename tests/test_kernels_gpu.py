"""The same comparisons as test_kernels.py on a real GPU, at real sizes, and what only a GPU can get wrong.

Outputs and workspaces are poisoned before every call: what a kernel does not write stays NaN.
"""

from dataclasses import replace

import pytest
import torch
from operands import allocate_with, assert_close, make_operands, poison_allocations

from tinygemm.hardware import cuda_unavailable_reason
from tinygemm.kernel import workspace
from tinygemm.kernel.configs import FORMS, STATIC, LaunchConfig, select
from tinygemm.kernel.gemm import dequantize_fp16, gemm
from tinygemm.kernel.quant import dequantize, pack, quantize, random_packed, reference_gemm, unpack
from tinygemm.kernel.reference import ablated_gemm, empty_kernel, fp16_gemm, load_only, load_only_reference, raw_weight
from tinygemm.problem import REPORT_SHAPES, GemmProblem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(cuda_unavailable_reason()), reason=str(cuda_unavailable_reason())),
]

SPLITK = LaunchConfig("splitk", block_m=8, block_n=32, block_k=1024, split_k=4, num_warps=4, num_stages=1)
RING = LaunchConfig("ring", block_m=4, block_n=32, block_k=512, split_k=4, num_warps=4, num_stages=3)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison_allocations(monkeypatch)
    monkeypatch.setattr(workspace, "_stream_workspaces", {})  # what other tests left in theirs is not poison


def name(parameter):
    return getattr(parameter, "form", None)


def check(M, N, K, group_size, symmetric, config, seed=0, dtype=torch.float16):
    operands = make_operands(M, N, K, group_size, symmetric, seed)
    w = pack(operands.codes, operands.scales, operands.zeros, group_size).to("cuda")
    x = operands.x.to(dtype)
    out = gemm(x.cuda(), w, config)
    assert out.dtype == dtype
    coarser = 8 if dtype == torch.bfloat16 else 1  # 8 bits instead of 11
    assert_close(out.cpu(), replace(operands, x=x).reference(), max_err=coarser * 4e-3, rms_err=coarser * 1e-3)


def activations(M, K):
    return torch.randn(M, K, generator=torch.Generator("cuda").manual_seed(M), device="cuda", dtype=torch.float16)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(("K", "N"), REPORT_SHAPES)
def test_the_selected_kernel_at_every_shape_of_the_report(K, N, symmetric):
    """Against float64 on the GPU, for every number of tokens."""
    from tinygemm.hardware import live_gpu_key

    w = random_packed(N, K, symmetric=symmetric, device="cuda", seed=1)
    for M in (1, 2, 3, 4, 5, 8, 15, 16, 33):
        x = activations(M, K)
        reference = reference_gemm(x, w)
        assert_close(gemm(x, w), reference)
        for form in FORMS:
            try:
                config, _ = select(GemmProblem(M, N, K), live_gpu_key(), form)
            except ValueError:  # a table need not have every form, and the ring does not serve every M
                continue
            assert_close(gemm(x, w, config), reference)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(
    ("config", "group_size"),
    [(config, group_size) for config in (STATIC, SPLITK, RING) for group_size in (32, 64, 128, -1)],
    ids=name,
)
def test_every_form_serves_every_group_size_and_zero_mode(config, group_size, symmetric):
    check(3, 1024, 2048, group_size, symmetric, config)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("config", [STATIC, SPLITK, RING, None], ids=name)
def test_bfloat16_activations(config, group_size, symmetric):
    check(3, 1024, 2048, group_size, symmetric, config, dtype=torch.bfloat16)


@pytest.mark.parametrize("config", [SPLITK, RING], ids=name)
def test_the_yardsticks_of_dequantisation_compute_what_they_claim(config):
    w, x = random_packed(4096, 4096, device="cuda"), activations(4, 4096)
    for dependent_launch in (True, False):
        for _ in range(2):
            assert_close(ablated_gemm(x, w, config, "naive", dependent_launch), reference_gemm(x, w))
            assert_close(ablated_gemm(x, w, config, "none", dependent_launch), x.double() @ raw_weight(w).T)
    assert_close(ablated_gemm(x, w, SPLITK, add_warps=False), reference_gemm(x, w))


@pytest.mark.parametrize("block_m", [1, 2, 4, 8])
@pytest.mark.parametrize("stages", [1, 2, 5, 40])
def test_a_ring_of_any_length(stages, block_m):
    """The longest one asked for does not fit and is shortened; K has blocks for some warps one more than for others."""
    check(block_m, 256, 128 * 37, 128, False, replace(RING, block_m=block_m, num_stages=stages))


@pytest.mark.parametrize(("N", "K", "group_size"), [(1, 128, 128), (15, 160, 32), (1000, 1120, 32), (333, 4032, 64)])
@pytest.mark.parametrize("M", [1, 7, 16])
def test_shapes_that_fill_no_tile(M, N, K, group_size):
    check(M, N, K, group_size, False, None, seed=2)


@pytest.mark.parametrize("K", [33, 96, 130, 4097])
@pytest.mark.parametrize("config", [STATIC, SPLITK, None], ids=name)
def test_one_group_of_any_length(config, K):
    check(1, 200, K, -1, False, config)


@pytest.mark.parametrize("split_k", [1, 2, 3, 5, 7, 16, 40])
@pytest.mark.parametrize("config", [SPLITK, RING, replace(SPLITK, block_m=16)], ids=name)
def test_split_k_gives_the_same_bits_every_time(config, split_k):
    """Shares are added in fixed order whoever arrives last; counters left behind by one call would spoil the next."""
    w = random_packed(2016 if config.form == "ring" else 2000, 4096, symmetric=False, device="cuda")
    x = activations(config.block_m, 4096)
    config = replace(config, split_k=split_k)
    first = gemm(x, w, config)
    assert_close(first, reference_gemm(x, w))
    for _ in range(200):
        assert torch.equal(gemm(x, w, config), first)


@pytest.mark.parametrize("config", [SPLITK, RING], ids=name)
def test_sums_left_by_the_call_before_are_never_added(config):
    """Calls in turn share a workspace: a share that is counted before it is written would be the other weight's."""
    config = replace(config, split_k=8)
    weights = [random_packed(4096, 4096, device="cuda", seed=seed) for seed in (1, 2)]
    x = activations(config.block_m, 4096)
    expected = [gemm(x, w, config) for w in weights]
    for w, right in zip(weights, expected, strict=True):
        assert_close(right, reference_gemm(x, w))
    outputs = [gemm(x, weights[call % 2], config) for call in range(400)]
    assert all(torch.equal(out, expected[call % 2]) for call, out in enumerate(outputs))


@pytest.mark.parametrize("config", [SPLITK, RING], ids=name)
def test_calls_on_two_streams_do_not_disturb_each_other(config):
    config = replace(config, split_k=8)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    weights = [random_packed(4096, 4096, device="cuda", seed=seed) for seed in (1, 2)]
    x = activations(1, 4096)
    expected = [gemm(x, w, config) for w in weights]
    torch.cuda.synchronize()
    results = [[], []]
    for _ in range(100):
        for stream, w, outputs in zip(streams, weights, results, strict=True):
            with torch.cuda.stream(stream):
                outputs.append(gemm(x, w, config))
    torch.cuda.synchronize()
    for outputs, right in zip(results, expected, strict=True):
        assert all(torch.equal(out, right) for out in outputs)


@pytest.mark.parametrize("config", [STATIC, SPLITK, RING], ids=name)
def test_a_cuda_graph_replays_the_call_on_new_activations(config):
    w = random_packed(4096, 4096, device="cuda")
    x = activations(1, 4096)
    gemm(x, w, config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gemm(x, w, config)
    for seed in range(5):
        x.copy_(activations(1, 4096) * (seed + 1))
        out.fill_(torch.nan)
        graph.replay()
        assert_close(out, reference_gemm(x, w))


def test_fifty_thousand_captured_launches_take_no_node_more_and_two_graphs_run_side_by_side(monkeypatch):
    """Calls of one capture share counters; each graph has its own, so that replays on two streams cannot mix them."""
    zeroed = []
    zeros = workspace._zeros

    def noted(count, device):
        zeroed.append(torch.cuda.is_current_stream_capturing())
        return zeros(count, device)

    monkeypatch.setattr(workspace, "_zeros", noted)
    config = replace(SPLITK, split_k=4)
    weights = [random_packed(64, 4096, device="cuda", seed=seed) for seed in (1, 2)]
    x = activations(1, 4096)
    expected = [gemm(x, w, config) for w in weights]
    graphs, outputs = [], []
    for w in weights:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(25_000):
                out = gemm(x, w, config)
        graphs.append(graph)
        outputs.append(out)
    assert not any(zeroed), "a graph zeroes counters itself"
    streams = [torch.cuda.Stream() for _ in graphs]
    torch.cuda.synchronize()
    for _ in range(3):
        for out in outputs:
            out.fill_(torch.nan)
        torch.cuda.synchronize()
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))


def test_two_graphs_replayed_at_once_do_not_share_counters():
    """Each graph has its own counters, so graphs may overlap with each other and with eager calls."""
    config = replace(SPLITK, split_k=8)
    weights = [random_packed(4096, 4096, device="cuda", seed=seed) for seed in (1, 2, 3)]
    x = activations(4, 4096)
    expected = [gemm(x, w, config) for w in weights]
    graphs, outputs = [], []
    for w in weights[:2]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs.append([gemm(x, w, config) for _ in range(20)])
        graphs.append(graph)
    streams = [torch.cuda.Stream() for _ in graphs]
    torch.cuda.synchronize()
    eager = []
    for _ in range(20):
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        eager.append(gemm(x, weights[2], config))
    torch.cuda.synchronize()
    for outs, right in zip([*outputs, eager], expected, strict=True):
        assert all(torch.equal(out, right) for out in outs)


@pytest.mark.parametrize("config", [STATIC, SPLITK, RING], ids=name)
def test_a_chain_of_calls_sees_the_results_of_the_one_before(config):
    """A dependent launch starts early: it must not read x before the kernel that writes it has finished."""
    K = 4096
    shift = (8 + torch.eye(K).roll(1, 0)).to(torch.uint8)  # y[n] = x[n - 1]: memory used before holds other numbers
    w = pack(shift, torch.ones(K // 128, K, dtype=torch.float16), None).to("cuda")
    start = torch.randint(-1000, 1000, (1, K), device="cuda").half()
    x = start
    for _ in range(200):
        x = gemm(x, w, config)
    assert torch.equal(x, start.roll(200))


@pytest.mark.parametrize("config", [STATIC, SPLITK, RING], ids=name)
def test_a_weight_written_just_before_the_call_is_the_one_that_is_used(config):
    """A dependent launch may ask for weights early: not before the kernel that writes them has finished."""
    sources = [random_packed(4096, 4096, device="cuda", seed=seed) for seed in (1, 2)]
    other = random_packed(256, 4096, device="cuda", seed=3)
    w = sources[0].clone()
    x = activations(1, 4096)
    expected = [gemm(x, source, config) for source in sources]
    torch.cuda.synchronize()
    for call in range(200):
        for mine, theirs in zip(w.tensors(), sources[call % 2].tensors(), strict=True):
            mine.copy_(theirs)
        if call % 3 == 0:
            gemm(x, other, config)  # a launch in between lets the next one start while the copy still runs
        assert torch.equal(gemm(x, w, config), expected[call % 2])


@pytest.mark.parametrize("exponent", [-10, -7, 11])
@pytest.mark.parametrize("config", [STATIC, SPLITK, RING], ids=name)
def test_accuracy_does_not_depend_on_the_size_of_the_activations(config, exponent):
    operands = make_operands(1, 512, 4096, symmetric=False)
    scales = operands.scales * 2.0 ** -max(0, exponent)
    operands = replace(operands, x=operands.x * 2.0**exponent, scales=scales)
    w = pack(operands.codes, operands.scales, operands.zeros).to("cuda")
    assert_close(gemm(operands.x.cuda(), w, config).cpu(), operands.reference())


@pytest.mark.parametrize("config", [STATIC, SPLITK, RING], ids=name)
def test_x_may_start_anywhere(config):
    operands = make_operands(1, 64, 512)
    buffer = torch.full((600,), torch.nan, dtype=torch.float16, device="cuda")
    buffer[1:513] = operands.x[0]
    w = pack(operands.codes, operands.scales, None).to("cuda")
    assert_close(gemm(buffer[1:513].view(1, 512), w, config).cpu(), operands.reference())


@pytest.mark.parametrize("config", [STATIC, SPLITK, RING], ids=name)
def test_nothing_around_the_output_is_written(config, monkeypatch):
    """The output and the workspace are cut out of larger allocations, whose edges stay NaN."""
    N, edge = 992 if config.form == "ring" else 1001, 4096
    w = random_packed(N, 2048, device="cuda")
    x = activations(1, 2048)
    arenas = []

    def inside_an_arena(new):
        size = new.numel()
        arenas.append((torch.full((size + 2 * edge,), torch.nan, dtype=new.dtype, device=new.device), size))
        return arenas[-1][0][edge : edge + size].view(new.shape)

    with monkeypatch.context() as patch:
        allocate_with(patch, inside_an_arena)
        outputs = [gemm(x, w, config) for _ in range(2)]  # the second one by the short way
    for out in outputs:
        assert_close(out, reference_gemm(x, w))
    assert len(arenas) == 2 + (config.split_k > 1), "the workspace is kept"
    for arena, size in arenas:
        assert arena[:edge].isnan().all()
        assert arena[edge : edge + size].isfinite().all()
        assert arena[edge + size :].isnan().all()


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_the_dequantised_weight_equals_the_reference_bit_for_bit(group_size, symmetric):
    w = random_packed(1000, 1024, group_size, symmetric, device="cuda")
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(dequantize_fp16(w, dtype), dequantize(w, dtype))


@pytest.mark.parametrize("group_size", [64, 128, -1])
def test_load_only_reads_every_word_and_scale_once(group_size):
    w = random_packed(4096, 4096, group_size, device="cuda")
    shares = load_only(w, SPLITK)
    total = shares[0]
    for share in shares[1:]:
        total = total ^ share
    assert torch.equal(total, load_only_reference(w))


@pytest.mark.parametrize(("M", "N", "K"), [(1, 1024, 4096), (8, 1000, 4100), (5, 4096, 14336)])
def test_the_fp16_twin_computes_the_same_product(M, N, K):
    x = activations(M, K)
    weight = torch.randn(N, K, device="cuda", dtype=torch.float16) * K**-0.5
    assert_close(fp16_gemm(x, weight, SPLITK), x.double() @ weight.double().T)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
def test_quantising_on_the_gpu_gives_the_same_weight_as_on_the_cpu(symmetric):
    weight = torch.randn(300, 1024, generator=torch.Generator().manual_seed(0))
    here, there = quantize(weight, 128, symmetric), quantize(weight.cuda(), 128, symmetric)
    assert torch.equal(unpack(here), unpack(there).cpu())
    assert torch.equal(here.qweight, there.qweight.cpu())
    assert torch.equal(here.scales, there.scales.cpu())


def test_x_and_w_on_two_devices_are_refused():
    with pytest.raises(ValueError, match="x is on cpu and w on cuda:0"):
        gemm(torch.ones(1, 128).half(), random_packed(16, 128, device="cuda"))


def test_the_empty_kernel_runs():
    empty_kernel()
    torch.cuda.synchronize()
