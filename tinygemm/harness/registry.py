"""The registry of backends: every way to compute the product, and what is timed beside it that is no product."""

from __future__ import annotations

import dataclasses

from tinygemm.harness import ours, peers, verify
from tinygemm.harness.variant import Backend, Ceiling
from tinygemm.problem import GemmProblem

COPY_BYTES = 2**30


def operands(problem: GemmProblem, symmetric: bool, device: str, seed: int):
    """The random weight of a problem, the same for every M: PackedInt4 [N, K] on `device`."""
    from tinygemm.kernel import quant

    return quant.random_packed(problem.N, problem.K, problem.group_size, symmetric=symmetric, device=device, seed=seed)


def activations(problem: GemmProblem, device: str, seed: int):
    """Random x [M, K] float16 of order one; the weights are scaled so that the output is of order one, too."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(problem.M, problem.K, dtype=torch.float16, device=device, generator=generator)


def zeroed(packed):
    """A weight of the same layout in which every bit of words, scales and zeros is 0."""
    import torch

    parts = {f.name: getattr(packed, f.name) for f in dataclasses.fields(packed)}
    tensors = {name: torch.zeros_like(part) for name, part in parts.items() if isinstance(part, torch.Tensor)}
    return dataclasses.replace(packed, **tensors)


def _any_problem(problem, symmetric):
    return None


def _few_tokens(problem, symmetric):
    return None if problem.M <= 8 else f"the ring serves up to 8 tokens, this is M={problem.M}"


def _symmetric_only(problem, symmetric):
    return None if symmetric else "int4-load-only reads symmetric weights only"


def _int4_bits(problem, symmetric):
    return problem.int4_bits_per_weight(symmetric)


def _asymmetric_bits(problem, symmetric):
    return problem.int4_bits_per_weight(symmetric=False)


def _dequant_bytes(problem, bits):
    return round(problem.N * problem.K * bits / 8) + 2 * problem.N * problem.K


def _fp16_bits(problem, symmetric):
    return 16.0


def _no_flops(problem):
    return 0


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("fp16-cublas", _any_problem, ours.cublas_variants, _fp16_bits, quantised=False),
        Backend("fp16-triton", _any_problem, ours.fp16_triton_variants(True), _fp16_bits, quantised=False),
        Backend("fp16-triton-serial", _any_problem, ours.fp16_triton_variants(False), _fp16_bits, quantised=False),
        Backend("dequant-fp16", _any_problem, ours.dequant_fp16_variants, _int4_bits),
        Backend("int4-static", _any_problem, ours.kernel_variants("static"), _int4_bits),
        Backend("int4-splitk", _any_problem, ours.kernel_variants("splitk"), _int4_bits),
        Backend("int4-ring", _few_tokens, ours.kernel_variants("ring"), _int4_bits),
        Backend("int4", _any_problem, ours.selected_variants, _int4_bits),
        Backend("int4-serial", _any_problem, ours.serial_variants, _int4_bits),
        Backend("int4-fused", _any_problem, ours.fused_variants, _int4_bits),
        Backend("int4-searched", _any_problem, ours.searched_variants, _int4_bits),
        Backend("int4-no-split", _any_problem, ours.no_split_variants, _int4_bits),
        Backend("int4-more-split", _any_problem, ours.more_split_variants, _int4_bits),
        Backend("int4-naive-dequant", _any_problem, ours.ablation_variants("naive"), _int4_bits),
        Backend("int4-no-dequant", _any_problem, ours.ablation_variants("none"), _int4_bits, check=verify.check_raw),
        # the way from the simple kernel to the tuned one, each step with what those before it have
        Backend("int4-step-naive", _any_problem, ours.ablation_variants("naive", False, False, "splitk"), _int4_bits),
        Backend("int4-step-lop3", _any_problem, ours.ablation_variants("fast", False, False, "splitk"), _int4_bits),
        Backend("int4-step-early", _any_problem, ours.ablation_variants("fast", True, False, "splitk"), _int4_bits),
        Backend(
            "int4-bf16",
            _any_problem,
            ours.bf16_variants,
            _int4_bits,
            dtype="bfloat16",
            tolerance=verify.BF16_TOLERANCE,
        ),
        Backend("int4-asymmetric", _any_problem, ours.asymmetric_variants, _asymmetric_bits, check=verify.check_own),
        Backend("int4-one-row", _any_problem, ours.one_row_variants, _int4_bits, check=verify.check_one_row),
        Backend("int4-load-only", _symmetric_only, ours.load_only_variants(True), _int4_bits, check=verify.check_reads),
        Backend(
            "int4-load-only-serial",
            _symmetric_only,
            ours.load_only_variants(False),
            _int4_bits,
            check=verify.check_reads,
        ),
        Backend(
            "dequant-only",
            _any_problem,
            ours.dequant_variants,
            _int4_bits,
            tolerance=verify.DEQUANT_TOLERANCE,
            check=verify.check_dequantised,
            flops=_no_flops,
            bytes_min=_dequant_bytes,
        ),
        Backend(
            "aten-int4mm",
            peers.aten_unsupported,
            peers.aten_variants,
            peers.aten_bits,
            dtype="bfloat16",
            tolerance=verify.BF16_TOLERANCE,
        ),
        Backend(
            "gemlite",
            peers.gemlite_unsupported,
            peers.gemlite_variants,
            _int4_bits,
            tolerance=verify.GEMLITE_TOLERANCE,
        ),
        Backend("bitsandbytes-nf4", peers.nf4_unsupported, peers.nf4_variants, peers.nf4_bits, check=peers.check_nf4),
        Backend("marlin", peers.marlin_unsupported, peers.marlin_variants, _int4_bits),
        Backend("humming", peers.humming_unsupported, peers.humming_variants(overlap=True), _int4_bits),
        Backend("humming-serial", peers.humming_unsupported, peers.humming_variants(overlap=False), _int4_bits),
    )
}


# --- what is no product ---------------------------------------------------------------------------------------------


def _make_copy():
    """A kernel that reads and writes every byte; a plain copy in a graph runs on the copy engine, which is slower."""
    import torch

    source = torch.randint(-(2**31), 2**31 - 1, (COPY_BYTES // 4,), dtype=torch.int32, device="cuda")
    target = torch.zeros_like(source)

    def call():
        return torch.bitwise_not(source, out=target), source

    return call


def _make_empty_node():
    from tinygemm.kernel import reference

    return reference.empty_kernel


CEILINGS = {
    ceiling.name: ceiling
    for ceiling in (
        Ceiling("copy", "1GiB", _make_copy, verify.check_copy, 2 * COPY_BYTES, 10),
        Ceiling("empty-node", "empty", _make_empty_node, lambda call: call(), 0, 200),
    )
}


def known_names() -> list[str]:
    return [*BACKENDS, *CEILINGS]


def forget_graphs() -> None:
    """Tell our kernels that no CUDA graph captured so far will be replayed again.

    A captured split-K call keeps its arrival counters for good, out of a pool that a whole sweep would use up. Calls
    captured after that would be timed with one node more, which zeroes their counters.
    """
    from tinygemm.kernel import workspace

    workspace.forget_captured_counters()
