"""The product under real use on a GPU: streams, graphs, failures, other devices, huge tensors, torch.compile.

What two calls could share (workspaces, counters, memory that was freed) is provoked to be shared at the wrong time.
"""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from operands import assert_close

from tinygemm.hardware import cuda_unavailable_reason
from tinygemm.kernel import launch, workspace
from tinygemm.kernel.configs import M_BUCKETS, STATIC, LaunchConfig
from tinygemm.kernel.gemm import fused_gemm, gemm
from tinygemm.kernel.linear import Int4Linear
from tinygemm.kernel.quant import PackedInt4, dequantize, pack, random_packed, reference_gemm
from tinygemm.kernel.triton import pipelined, splitk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(cuda_unavailable_reason()), reason=str(cuda_unavailable_reason())),
]

SPLITK = LaunchConfig("splitk", block_m=8, block_n=32, block_k=1024, split_k=4, num_warps=4, num_stages=1)
RING = LaunchConfig("ring", block_m=8, block_n=32, block_k=512, split_k=4, num_warps=4, num_stages=3)
GIB = 2**30


def activations(M, K, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(M, K, generator=generator, device="cuda", dtype=torch.float16)


def needs_memory(gibibytes):
    free = torch.cuda.mem_get_info()[0] if not cuda_unavailable_reason() else 0
    return pytest.mark.skipif(free < gibibytes * GIB, reason=f"needs {gibibytes} GiB of GPU memory")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Every test starts without plans and workspaces, and gives its memory back."""
    monkeypatch.setattr(launch, "_plans", {})
    monkeypatch.setattr(workspace, "_stream_workspaces", {})
    yield
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def test_this_triton_has_a_short_way_and_it_gives_the_same_bits():
    w, x = random_packed(4096, 4096, symmetric=False, device="cuda"), activations(3, 4096)
    for config in (SPLITK, replace(SPLITK, split_k=1), RING, STATIC, None):
        before = len(launch._plans)
        ordinary = gemm(x, w, config)
        assert len(launch._plans) == before + 1, "this version of Triton is launched the slow way"
        assert torch.equal(gemm(x, w, config), ordinary)
        assert_close(ordinary, reference_gemm(x, w))


@pytest.mark.parametrize("config", [SPLITK, RING], ids=lambda config: config.form)
def test_a_known_call_allocates_its_output_and_waits_for_nothing(config):
    w, x = random_packed(4096, 4096, device="cuda"), activations(1, 4096)
    gemm(x, w, config)
    count = "allocation.all.allocated"
    before = torch.cuda.memory_stats()[count]
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = [gemm(x, w, config) for _ in range(10)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()[count] == before + len(outputs)


def test_streams_whose_workspaces_grow_do_not_disturb_each_other():
    """Each stream's calls ask for more and more room while the other's are still running."""
    streams = [torch.cuda.Stream() for _ in range(3)]
    weights = [random_packed(N, 4096, device="cuda", seed=N) for N in (256, 1024, 4096, 8192, 512)]
    configs = [
        replace(form, split_k=split_k) for form, split_k in zip((SPLITK, RING) * 3, (2, 3, 4, 4, 4), strict=False)
    ]
    x = activations(8, 4096)
    expected = [gemm(x, w, config) for w, config in zip(weights, configs, strict=True)]
    torch.cuda.synchronize()
    results = []
    for _ in range(30):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append([gemm(x, w, config) for w, config in zip(weights, configs, strict=True)])
    torch.cuda.synchronize()
    assert len(workspace._stream_workspaces) >= len(streams)
    for outputs in results:
        assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("config", [SPLITK, RING], ids=lambda config: config.form)
def test_an_eager_call_on_each_stream_while_a_graph_is_replayed_on_a_third(config):
    weights = [random_packed(4096, 4096, device="cuda", seed=seed) for seed in range(3)]
    x = activations(4, 4096)
    expected = [gemm(x, w, config) for w in weights]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [gemm(x, weights[2], config) for _ in range(10)]
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    eager = [[], []]
    for _ in range(50):
        with torch.cuda.stream(streams[2]):
            graph.replay()
        for mine, stream, w in zip(eager, streams, weights, strict=False):
            with torch.cuda.stream(stream):
                mine.append(gemm(x, w, config))
    torch.cuda.synchronize()
    for outputs, right in zip([*eager, captured], expected, strict=True):
        assert all(torch.equal(out, right) for out in outputs)


@pytest.mark.parametrize("config", [SPLITK, RING], ids=lambda config: config.form)
def test_overlapping_calls_of_a_chain_see_the_results_of_the_one_before(config):
    """In a graph, where the host is no brake. Of two pieces of memory each holds what a call wrote two calls ago."""
    K = 4096
    shift = (8 + torch.eye(K).roll(1, 0)).to(torch.uint8)  # y[n] = x[n - 1]
    w = pack(shift, torch.ones(K // 128, K, dtype=torch.float16), None).to("cuda")
    start = torch.randint(-1000, 1000, (1, K), device="cuda").half()
    gemm(start, w, config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x = start
        for _ in range(200):
            x = gemm(x, w, config)
    for _ in range(5):
        graph.replay()
        assert torch.equal(x, start.roll(200))


FIRST_CALL = """
import torch
from tinygemm.kernel.configs import LaunchConfig
from tinygemm.kernel.gemm import gemm
from tinygemm.kernel.quant import random_packed, reference_gemm
config = LaunchConfig("splitk", block_m=8, block_n=32, block_k=1024, split_k=4, num_warps=4, num_stages=1)
w, x = random_packed(2048, 4096, device="cuda"), torch.randn(2, 4096, device="cuda").half()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    out = gemm(x, w, config)
for _ in range(3):
    x.copy_(torch.randn(2, 4096))
    out.fill_(torch.nan)
    graph.replay()
    reference = reference_gemm(x, w)
    assert (out - reference).abs().max() < 0.02 * reference.square().mean().sqrt()
    eager = gemm(x, w, config)
    assert torch.equal(eager, out)
"""


def test_the_first_call_of_a_process_may_be_a_captured_one():
    done = subprocess.run([sys.executable, "-c", FIRST_CALL], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_a_graph_outlives_what_was_called_before_and_after_it():
    """A replay long after the capture finds its own counters and partial sums, whatever was freed in between."""
    w, x = random_packed(4096, 4096, device="cuda"), activations(4, 4096)
    expected = gemm(x, w, SPLITK)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gemm(x, w, SPLITK)
    for N in (1024, 8192, 2048):
        gemm(activations(8, 4096), random_packed(N, 4096, device="cuda"), SPLITK)
        torch.cuda.empty_cache()
        torch.full((GIB // 4,), torch.nan, device="cuda")
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, expected)


def test_the_memory_of_a_freed_weight_may_hold_the_next_one():
    """The same addresses, other contents: nothing remembered about a call may be tied to either."""
    x = activations(1, 4096)
    addresses = set()
    for seed in range(20):
        w = random_packed(1024, 4096, device="cuda", seed=seed)
        addresses.add(w.qweight.data_ptr())
        assert_close(gemm(x, w, SPLITK), reference_gemm(x, w))
        del w
    assert len(addresses) < 20, "no address came back, so nothing was tested"


FAILURES = {
    "launch": RuntimeError("Triton Error [CUDA]: planted"),
    "out of memory": torch.OutOfMemoryError("planted"),
    "interrupt": KeyboardInterrupt(),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_call_that_failed_leaves_the_next_ones_right(failure, monkeypatch):
    w, x = random_packed(4096, 4096, device="cuda"), activations(2, 4096)
    expected = gemm(x, w, SPLITK)

    def fails(*args, **kwargs):
        raise FAILURES[failure]

    ((key, plan),) = launch._plans.items()
    with monkeypatch.context() as patch:
        if failure == "out of memory":
            patch.setattr(torch.Tensor, "new_empty", fails)
        else:
            patch.setitem(launch._plans, key, plan._replace(launch=fails))
        with pytest.raises(type(FAILURES[failure])):
            gemm(x, w, SPLITK)
    for _ in range(3):
        assert torch.equal(gemm(x, w, SPLITK), expected)


def test_a_real_lack_of_memory_leaves_the_next_calls_right():
    w, x = random_packed(4096, 4096, device="cuda"), activations(2, 4096)
    expected = gemm(x, w, SPLITK)
    with pytest.raises(torch.OutOfMemoryError):
        gemm(x[:1].expand(2**26, 4096), w, STATIC)  # half a terabyte of output
    torch.cuda.empty_cache()
    assert torch.equal(gemm(x, w, SPLITK), expected)


@pytest.mark.skipif(not cuda_unavailable_reason() and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_gpu_are_multiplied_there():
    first, second = (random_packed(4096, 4096, device=f"cuda:{index}", seed=index) for index in (0, 1))
    x = activations(2, 4096)
    for _ in range(3):
        for w in (first, second):
            mine = x.to(w.device)
            for config in (SPLITK, RING, None):
                out = gemm(mine, w, config)
                assert out.device == w.device
                assert_close(out, reference_gemm(mine, w))
    assert torch.cuda.current_device() == 0


def huge_weight(N, K):
    """A packed weight straight from random words: packing it from codes would take many times its memory."""
    words = torch.empty(N // 16, K // 128, 16, 16, dtype=torch.int32, device="cuda")
    for part in words.chunk(16):
        part.random_(-(2**31), 2**31 - 1)
    scales = (0.5 + torch.rand(K // 128, N, device="cuda")).half() * (K**-0.5 / 4)
    return PackedInt4(words, scales.half(), None, N, K, 128)


def rows_of(w, tiles):
    """The weight that consists of some tiles of 16 rows of another, and those rows."""
    rows = (tiles[:, None] * 16 + torch.arange(16, device="cuda")).flatten()
    part = PackedInt4(w.qweight[tiles].clone(), w.scales[:, rows].contiguous(), None, len(rows), w.K, w.group_size)
    return part, rows


@needs_memory(24)
@pytest.mark.parametrize("config", [SPLITK, RING, STATIC], ids=lambda config: config.form)
def test_a_weight_of_more_than_two_to_the_31_words(config):
    N, K = 2**20 + 64, 2**14
    w = huge_weight(N, K)
    assert w.qweight.numel() > 2**31
    x = activations(2, K)
    tiles = torch.tensor([0, 1, N // 32, N // 16 - 2, N // 16 - 1], device="cuda")
    part, rows = rows_of(w, tiles)
    assert_close(gemm(x, w, config)[:, rows], reference_gemm(x, part))
    assert_close(gemm(x, w, config)[:, rows], reference_gemm(x, part))


@needs_memory(16)
@pytest.mark.parametrize("apart", [2**30 + 8, 2**31 + 16], ids=["in-all", "each"])
@pytest.mark.parametrize("config", [SPLITK, RING, STATIC], ids=lambda config: config.form)
def test_rows_of_x_more_than_two_to_the_31_elements_apart(config, apart):
    """From the first to the last, where the stride itself has 32 bits, and from each to the next."""
    K = 4096
    w = random_packed(1024, K, device="cuda")
    buffer = torch.empty(2 * apart + K, dtype=torch.float16, device="cuda")
    x = buffer.as_strided((3, K), (apart, 1))
    x.copy_(activations(3, K))
    for _ in range(2):
        assert_close(gemm(x, w, config), reference_gemm(x, w))


ONE_BLOCK = [replace(config, block_k=128, num_warps=1, split_k=1) for config in (SPLITK, RING)]


@needs_memory(24)
@pytest.mark.parametrize("config", [*ONE_BLOCK, STATIC, None])
def test_an_output_of_more_than_two_to_the_31_elements(config):
    N, K, M = 2**20, 128, 2**11 + 20
    w = random_packed(N, K, device="cuda")
    x = activations(M, K)
    out = gemm(x, w, config)
    assert out.numel() > 2**31
    rows = torch.tensor([0, 1, M // 2, M - 20, M - 1], device="cuda")
    columns = torch.tensor([0, 31, N // 2, N - 1], device="cuda")
    part, kept = rows_of(w, columns // 16)
    assert_close(out[rows][:, kept], reference_gemm(x[rows], part))


def test_any_number_of_tokens_is_right_and_compiles_no_more_than_the_buckets():
    w, device = random_packed(1536, 2048, device="cuda"), torch.cuda.current_device()
    fused = (splitk.kernel_gemm_packed_int4_splitk, pipelined.kernel_gemm_packed_int4_pipelined)
    caches = [kernel.device_caches[device][0] for kernel in fused]
    before = sum(map(len, caches))
    generator = torch.Generator().manual_seed(0)
    for M in [*torch.randint(1, 100, (40,), generator=generator).tolist(), *range(1, 18)]:
        x = activations(M, 2048, seed=M)
        assert_close(fused_gemm(x, w), reference_gemm(x, w))
        assert_close(gemm(x, w), reference_gemm(x, w), max_err=2e-2, rms_err=3e-3)
    assert sum(map(len, caches)) - before <= len(M_BUCKETS)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_layer_computes_the_same(mode):
    torch.compiler.reset()
    layer = Int4Linear.from_packed(random_packed(4096, 4096, device="cuda"), torch.randn(4096, device="cuda").half())
    compiled = torch.compile(lambda x: torch.relu(layer(x)), fullgraph=True, mode=mode)
    weight = dequantize(layer.weight, torch.float64)
    with torch.inference_mode():
        for seed in range(4):
            x = activations(2, 4096, seed)
            expected = torch.relu(x.double() @ weight.t() + layer.bias.double())
            assert_close(compiled(x).clone(), expected)
    torch.compiler.reset()
