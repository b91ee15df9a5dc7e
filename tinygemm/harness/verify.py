"""The check that stands before every measurement: errors against the float64 reference, in units of its RMS."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass


class MismatchError(ValueError):
    """A backend that computes something else; the message says by how much. `errors` are its Errors."""

    def __init__(self, message: str, errors: Errors):
        super().__init__(message)
        self.errors = errors


@dataclass(frozen=True)
class Tolerance:
    """Bounds of the largest and the RMS error, in units of the RMS of the reference."""

    max_err: float
    rms_err: float


@dataclass(frozen=True)
class Errors:
    """Errors in units of the RMS of the reference; None where there is no reference to compare with."""

    max_err: float | None = None
    rms_err: float | None = None


# FP16 output: half a unit in the last place is 2^-12 to 2^-11 of a value, so 3e-4 RMS. Rounding each weight to FP16
# adds 2e-4, and sums of a few products in FP16 (GEMV) about 1e-3. A wrong group, nibble or share is off by 0.1 or more.
FP16_TOLERANCE = Tolerance(max_err=2e-2, rms_err=3e-3)
# GemLite's GEMV adds more products up in FP16. Of thousands of outputs the worst was off by 0.013 to 0.0193 on an H100,
# so close to 2e-2 that the draw of x would decide. Its RMS error, at most 2.4e-3, averages over them and hardly moves
GEMLITE_TOLERANCE = Tolerance(max_err=4e-2, rms_err=FP16_TOLERANCE.rms_err)
# BF16 keeps 8 bits: x, scales, dequantised weights and output each round by up to 2^-9, together about 4e-3 RMS. The
# largest of some 1e5 outputs lies near 4.5 RMS, where one rounding alone is 9e-3
BF16_TOLERANCE = Tolerance(max_err=6e-2, rms_err=1e-2)
# one rounding to FP16 per weight: 2^-11 of weights that reach 4 times their RMS
DEQUANT_TOLERANCE = Tolerance(max_err=5e-3, rms_err=5e-4)


def check_product(bind, x, weight, packed, reference, tolerance: Tolerance) -> Errors:
    """Compare a backend's product with the reference.

    bind, weight: of the variant; the output is allocated poisoned, so that an element nobody writes is a NaN
    reference:    [M, N] float64
    returns:      Errors; raises MismatchError where they are not below the tolerance
    """
    with poisoned_memory():
        out = bind(x, weight)()
    return compare(out, reference, tolerance)


def check_own(bind, x, weight, packed, reference, tolerance: Tolerance) -> Errors:
    """Compare the product with that of the weight as this backend stores it, which stands for other values."""
    from tinygemm.kernel import quant

    return check_product(bind, x, weight, packed, quant.reference_gemm(x, weight), tolerance)


def check_one_row(bind, x, weight, packed, reference, tolerance: Tolerance) -> Errors:
    """Compare the product of activations whose rows are all the first one with that row of the reference."""
    return check_product(bind, x, weight, packed, reference[:1].expand_as(reference), tolerance)


def check_dequantised(bind, x, weight, packed, reference, tolerance: Tolerance) -> Errors:
    """Compare the dequantised weight [N, K] with quant.dequantize in float64."""
    import torch

    from tinygemm.kernel import quant

    with poisoned_memory():
        out = bind(x, weight)()
    return compare(out, quant.dequantize(packed, torch.float64), tolerance)


def check_raw(bind, x, weight, packed, reference, tolerance: Tolerance) -> Errors:
    """Compare the product without dequantisation with its own reference: the words' bits taken for the weight."""
    from tinygemm.kernel import reference

    with poisoned_memory():
        out = bind(x, weight)()
    return compare(out, x.double() @ reference.raw_weight(packed).t(), tolerance)


def check_reads(bind, x, weight, packed, reference, tolerance: Tolerance) -> Errors:
    """Prove that load_only read every word and scale: the XOR of its shares [split_k, N] is that of the stored bits."""
    import torch

    from tinygemm.kernel import reference

    shares = bind(x, weight)()
    read = shares[0]
    for share in shares[1:]:
        read = read ^ share
    if not torch.equal(read, expected := reference.load_only_reference(packed)):
        wrong = int((read != expected).sum())
        raise MismatchError(f"the checksum of what was read is wrong for {wrong} of {packed.N} rows", Errors())
    return Errors()


def check_copy(call) -> None:
    """The copy's target is its source with every bit turned."""
    import torch

    target, source = call()
    if not torch.equal(target, ~source):
        raise MismatchError("the copy is not its source with every bit turned", Errors())


def compare(out, reference, tolerance: Tolerance) -> Errors:
    """Errors of `out` in units of the RMS of `reference`; raises MismatchError unless they are below the tolerance."""
    if out.shape != reference.shape:
        raise MismatchError(f"output has shape {tuple(out.shape)}, expected {tuple(reference.shape)}", Errors())
    rms = reference.square().mean().sqrt()
    rms = rms if rms > 0 else 1.0  # zeros times zeros: whatever is written must be zero
    error = (out.double() - reference) / rms
    max_err, rms_err = float(error.abs().max()), float(error.square().mean().sqrt())
    errors = Errors(max_err, rms_err)
    if not (max_err < tolerance.max_err and rms_err < tolerance.rms_err):
        wrong = int((~(error.abs() < tolerance.max_err)).sum())
        raise MismatchError(
            f"error against float64: max {max_err:.1e}, RMS {rms_err:.1e} "
            f"(allowed below {tolerance.max_err:.0e} and {tolerance.rms_err:.0e}); "
            f"{wrong} of {error.numel()} values are outside, {int(error.isnan().sum())} are NaN",
            errors,
        )
    return errors


@contextmanager
def poisoned_memory():
    """Inside, torch hands out floating-point memory filled with NaN."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # operators that have no deterministic form are welcome here
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled
