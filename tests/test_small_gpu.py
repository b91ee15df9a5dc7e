"""Small cases of every kernel, which compute-sanitizer can watch access by access: see tests/sanitize.py.

Nothing is poisoned here, so that a read of memory that nobody wrote is one; references are computed on the CPU.
"""

import os
from dataclasses import replace

import pytest
import torch
from operands import assert_close, make_operands

from tinygemm.hardware import cuda_unavailable_reason
from tinygemm.kernel.configs import STATIC, LaunchConfig
from tinygemm.kernel.gemm import dequantize_fp16, gemm
from tinygemm.kernel.quant import dequantize, pack
from tinygemm.kernel.twins import fp16_gemm, load_only, load_only_reference, raw_gemm, raw_weight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(cuda_unavailable_reason()), reason=str(cuda_unavailable_reason())),
]

SPLITK = LaunchConfig("splitk", block_m=8, block_n=32, block_k=512, split_k=3, num_warps=2, num_stages=1)
GEMV = LaunchConfig("gemv", block_m=1, block_n=32, block_k=256, split_k=2, num_warps=4, num_stages=2)
CONFIGS = {
    "splitk": SPLITK,
    "one share": replace(SPLITK, split_k=1),
    "empty shares": replace(SPLITK, split_k=16),
    "sixteen tokens": replace(SPLITK, block_m=16),
    "gemv": GEMV,
    "static": STATIC,
    "selected": None,
}


@pytest.mark.parametrize(("N", "K", "group_size"), [(100, 640, 32), (128, 1024, 128), (33, 1000, -1)])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("form", CONFIGS)
def test_small_products(form, symmetric, N, K, group_size):
    if form == "gemv" and group_size == 32:
        pytest.skip("the gemv serves groups of 128 and the whole K")
    operands = make_operands(1 if form == "gemv" else 11, N, K, group_size, symmetric)
    w = pack(operands.codes, operands.scales, operands.zeros, group_size).to("cuda")
    x = operands.x.cuda()
    for _ in range(3):  # Triton's own way, then the short one
        assert_close(gemm(x, w, CONFIGS[form]).cpu(), operands.reference())


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
def test_small_dequantisation(symmetric):
    operands = make_operands(1, 100, 640, 64, symmetric)
    w = pack(operands.codes, operands.scales, operands.zeros, 64)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(dequantize_fp16(w.to("cuda"), dtype).cpu(), dequantize(w, dtype))


def test_small_yardsticks():
    operands = make_operands(3, 128, 1024)
    w = pack(operands.codes, operands.scales, None)
    shares = load_only(w.to("cuda"), SPLITK).cpu()
    assert torch.equal(shares[0] ^ shares[1] ^ shares[2], load_only_reference(w))
    assert_close(raw_gemm(operands.x.cuda(), w.to("cuda"), SPLITK).cpu(), operands.x.double() @ raw_weight(w).T)
    weight = dequantize(w)
    expected = operands.x.double() @ weight.double().T
    assert_close(fp16_gemm(operands.x.cuda(), weight.cuda(), SPLITK).cpu(), expected)


def test_small_products_on_two_streams():
    operands = make_operands(4, 100, 640)
    w, x = pack(operands.codes, operands.scales, None).to("cuda"), operands.x.cuda()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    outputs = []
    for _ in range(4):
        for stream in streams:
            with torch.cuda.stream(stream):
                outputs.append(gemm(x, w, SPLITK))
    torch.cuda.synchronize()
    for out in outputs:
        assert_close(out.cpu(), operands.reference())


@pytest.mark.skipif(
    os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1",
    reason="torch captures nothing without its caching allocator",
)
def test_a_small_graph():
    operands = make_operands(4, 100, 640)
    w, x = pack(operands.codes, operands.scales, None).to("cuda"), operands.x.cuda()
    gemm(x, w, SPLITK)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [gemm(x, w, SPLITK) for _ in range(3)]
    for _ in range(2):
        graph.replay()
    for out in outputs:
        assert_close(out.cpu(), operands.reference())
