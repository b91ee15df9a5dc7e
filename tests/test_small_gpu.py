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
from tinygemm.kernel.reference import ablated_gemm, fp16_gemm, load_only, load_only_reference, raw_weight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(cuda_unavailable_reason()), reason=str(cuda_unavailable_reason())),
]

SPLITK = LaunchConfig("splitk", block_m=8, block_n=32, block_k=512, split_k=3, num_warps=2, num_stages=1)
RING = LaunchConfig("ring", block_m=4, block_n=32, block_k=256, split_k=2, num_warps=2, num_stages=3)
CONFIGS = {
    "splitk": SPLITK,
    "one share": replace(SPLITK, split_k=1),
    "empty shares": replace(SPLITK, split_k=16),
    "sixteen tokens": replace(SPLITK, block_m=16),
    "ring": RING,
    "ring, one share": replace(RING, split_k=1),
    "ring, empty shares": replace(RING, split_k=16),
    "ring, one token": replace(RING, block_m=1),
    "long ring": replace(RING, num_stages=9),
    "static": STATIC,
    "selected": None,
}


@pytest.mark.parametrize(("N", "K", "group_size"), [(100, 640, 32), (128, 1024, 128), (33, 1000, -1)])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("form", CONFIGS)
def test_small_products(form, symmetric, N, K, group_size):
    if "ring" in form:  # it has no masks
        N, K = 32 * (N // 32), 128 * (K // 128)
    operands = make_operands(1 if form == "ring, one token" else 11, N, K, group_size, symmetric)
    w = pack(operands.codes, operands.scales, operands.zeros, group_size).to("cuda")
    x = operands.x.cuda()
    for _ in range(3):  # Triton's own way, then the short one
        assert_close(gemm(x, w, CONFIGS[form]).cpu(), operands.reference())


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("form", ["splitk", "ring", "static", "selected"])
def test_small_products_of_bfloat16(form, symmetric):
    operands = make_operands(3, 96, 640, 64, symmetric)
    w = pack(operands.codes, operands.scales, operands.zeros, 64).to("cuda")
    x = operands.x.bfloat16()
    reference = replace(operands, x=x).reference()
    for _ in range(3):
        out = gemm(x.cuda(), w, CONFIGS[form])
        assert out.dtype == torch.bfloat16
        assert_close(out.cpu(), reference, max_err=8 * 4e-3, rms_err=8e-3)


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
    raw = operands.x.double() @ raw_weight(w).T
    for config in (SPLITK, RING):
        assert_close(ablated_gemm(operands.x.cuda(), w.to("cuda"), config, "none").cpu(), raw)
        assert_close(ablated_gemm(operands.x.cuda(), w.to("cuda"), config, "naive").cpu(), operands.reference())
    summed = ablated_gemm(operands.x.cuda(), w.to("cuda"), SPLITK, dependent_launch=False, add_warps=False)
    assert_close(summed.cpu(), operands.reference())
    weight = dequantize(w)
    expected = operands.x.double() @ weight.double().T
    assert_close(fp16_gemm(operands.x.cuda(), weight.cuda(), SPLITK).cpu(), expected)


@pytest.mark.parametrize("config", [SPLITK, RING], ids=lambda config: config.form)
def test_small_products_on_two_streams(config):
    operands = make_operands(4, 96, 640)
    w, x = pack(operands.codes, operands.scales, None).to("cuda"), operands.x.cuda()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    outputs = []
    for _ in range(4):
        for stream in streams:
            with torch.cuda.stream(stream):
                outputs.append(gemm(x, w, config))
    torch.cuda.synchronize()
    for out in outputs:
        assert_close(out.cpu(), operands.reference())


@pytest.mark.skipif(
    os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1",
    reason="torch captures nothing without its caching allocator",
)
@pytest.mark.parametrize("config", [SPLITK, RING], ids=lambda config: config.form)
def test_a_small_graph(config):
    operands = make_operands(4, 96, 640)
    w, x = pack(operands.codes, operands.scales, None).to("cuda"), operands.x.cuda()
    gemm(x, w, config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [gemm(x, w, config) for _ in range(3)]
    for _ in range(2):
        graph.replay()
    for out in outputs:
        assert_close(out.cpu(), operands.reference())
