"""The cost read from machine code: against kernels whose cost is known, and NVIDIA's occupancy calculator."""

import pytest
import torch
import triton
import triton.language as tl

from tinygemm.hardware import gpu_spec
from tinygemm.harness.static_cost import (
    Launch,
    compile_launch,
    count,
    ctas_per_sm,
    launch_cost,
    main_loop,
    parse_sass,
    record_launches,
)

pytestmark = pytest.mark.aot


@triton.jit
def kernel_dot(out_ptr, x_ptr, w_ptr, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    offs_m, offs_n, offs_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        x = tl.load(x_ptr + offs_m[:, None] * K + k + offs_k[None, :])
        w = tl.load(w_ptr + offs_n[None, :] * K + k + offs_k[:, None])
        acc = tl.dot(x, w, acc)
    tl.store(out_ptr + offs_m[:, None] * BLOCK_N + offs_n[None, :], acc.to(tl.float16))


@triton.jit
def kernel_declares(out_ptr):
    address = tl.inline_asm_elementwise(
        "{ .shared .align 16 .b8 memory[2048]; mov.u32 $0, memory; }", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )
    tl.store(out_ptr, address)


HALF = torch.float16
DOT = {"out_ptr": HALF, "x_ptr": HALF, "w_ptr": HALF, "K": 4096, "BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64}


def dot_launch(options=(), **arguments):
    return Launch(kernel_dot, (1,), DOT | arguments, {"num_warps": 4, "num_stages": 3} | dict(options))


def dot_cost(gpu, options=(), **arguments):
    return launch_cost(dot_launch(options, **arguments), gpu_spec(gpu))


@pytest.mark.parametrize("gpu", ["a10g", "h200"])
def test_the_main_loop_of_a_plain_gemm_has_the_instructions_its_tile_needs(gpu):
    cost = dot_cost(gpu)
    assert cost.loop_count("HMMA", "16816") == 64 * 64 * 16 // (16 * 8 * 16) // 4  # mma.m16n8k16, spread over 4 warps
    bytes_loaded = 16 * cost.loop_count("LDGSTS", "128")
    assert bytes_loaded == 2 * (16 * 64 + 64 * 64) // 128  # fp16 tiles of x and w, spread over 128 threads
    assert cost.shared_bytes == 2 * (16 * 64 + 64 * 64) * 2  # two tiles in flight with three stages
    assert cost.spills == 0
    assert 32 <= cost.registers <= 80
    assert cost.warps_per_sm == 4 * cost.ctas_per_sm > 0


@pytest.mark.parametrize("gpu", ["a10g", "h200"])
def test_shared_memory_that_a_kernel_declares_itself_counts(gpu):
    """Triton's metadata do not know of it; what the system keeps of each CTA is not the kernel's."""
    cost = launch_cost(Launch(kernel_declares, (1,), {"out_ptr": torch.int32}, {"num_warps": 1}), gpu_spec(gpu))
    assert cost.shared_bytes == 2048


def test_a_kernel_without_enough_registers_is_seen_to_spill():
    cost = dot_cost("a10g", {"maxnreg": 32}, BLOCK_N=256)
    assert cost.registers <= 32
    assert cost.spills > 0


def test_an_argument_that_is_not_a_multiple_of_16_loses_the_wide_loads():
    """Alignment of the integers decides the width of a load, so a launch must be compiled with its own values."""
    cost = dot_cost("a10g", K=4100)
    assert count(cost.body, "LDGSTS", "128") == 0
    assert dot_cost("a10g").loop_count("LDGSTS", "128") > 0


@triton.jit(do_not_specialize=["step"])
def kernel_steps(out_ptr, n, step):
    tl.store(out_ptr + n * step, 1.0)


def test_integers_are_specialised_as_a_launch_would():
    """1 becomes a constant, multiples of 16 are known as such, unless the kernel says do_not_specialize."""

    def arguments_of(n, step):
        launch = Launch(kernel_steps, (1,), {"out_ptr": torch.float32, "n": n, "step": step}, {})
        lines = compile_launch(launch, 86).asm["ttir"].splitlines()
        return next(line for line in lines if "func public" in line)

    assert "%n" not in arguments_of(1, 1)
    assert "%step" in arguments_of(1, 1)
    assert arguments_of(32, 32).count("tt.divisibility = 16") == 2, "the pointer and n"
    assert arguments_of(33, 32).count("tt.divisibility = 16") == 1


def test_launches_are_recorded_with_their_arguments_and_not_run():
    half = {"dtype": HALF, "device": "meta"}
    out, x, w = torch.empty(16, 64, **half), torch.empty(16, 4096, **half), torch.empty(64, 4096, **half)

    def call():
        kernel_dot[(3, 2)](out, x, w, 4096, BLOCK_M=16, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=3)

    (launch,) = record_launches(call)
    assert launch.kernel is kernel_dot
    assert launch.grid == (3, 2)
    assert launch.arguments == DOT
    assert launch.options == {"num_warps": 4, "num_stages": 3}


def test_arguments_must_be_those_of_the_kernel():
    with pytest.raises(ValueError, match=r"kernel_dot: arguments unknown or missing: KK$"):
        compile_launch(dot_launch(KK=1), 86)


def test_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        record_launches(lambda: None)


# registers per thread, warps, shared bytes: CTAs per SM by cuda_occupancy.h for 8.6 (1536 threads, 100 KiB) and 9.0
NVIDIA_CALCULATOR = [
    ((16, 1, 0), 16, 32),
    ((40, 1, 0), 16, 32),
    ((56, 4, 20736), 4, 9),
    ((127, 4, 24832), 3, 4),
    ((128, 4, 0), 4, 4),
    ((168, 4, 0), 3, 3),
    ((255, 8, 0), 1, 1),
    ((96, 2, 33792), 2, 6),
    ((64, 8, 65536), 1, 3),
    ((32, 16, 0), 3, 4),
    ((24, 2, 99328), 1, 2),
    ((255, 16, 0), 0, 0),
]


@pytest.mark.parametrize(("resources", "on_a10g", "on_h200"), NVIDIA_CALCULATOR)
def test_occupancy_equals_nvidias_calculator(resources, on_a10g, on_h200):
    assert ctas_per_sm(gpu_spec("a10g"), *resources) == on_a10g
    assert ctas_per_sm(gpu_spec("h200"), *resources) == on_h200


def test_the_main_loop_is_the_longest_innermost_one():
    listing = """
.L_x_0:
        /*0000*/                   MOV R1, R2 ;
.L_x_1:
        /*0010*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0020*/              @!PT LDS RZ, [RZ] ;
        /*0030*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0050*/                   NOP ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
        /*0070*/               @P1 BRA `(.L_x_0) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3);
"""
    instructions, labels = parse_sass(listing)
    assert [i.opcode for i in main_loop(instructions, labels)] == ["IADD3", "LDG.E.128.CONSTANT", "BRA"]
