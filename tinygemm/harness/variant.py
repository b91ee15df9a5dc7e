"""A backend: the ways to run it, what it needs, how its weight is stored, and how it is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinygemm.harness import verify
from tinygemm.harness.verify import FP16_TOLERANCE, Tolerance
from tinygemm.kernel.configs import LaunchConfig
from tinygemm.problem import GemmProblem


@dataclass(frozen=True)
class Variant:
    """One way to run a backend on one problem.

    source: recorded as config_source: where the launch config, or the choice between variants, comes from; no two
            variants of a backend share it
    layout: name of the layout in which the weight is stored; equal names share copies
    build:  PackedInt4 -> the weight in that layout
    bind:   (x, weight) -> a function of no arguments that computes the product; what a user would set up once
            (workspace, quantisation state) is set up here, outside the timed call
    config: LaunchConfig of our own kernels, None for others
    kernel: what the kernels of a package that compiles for itself depend on, so that a sweep compiles equal ones once,
            ahead; None where nothing is compiled, or `config` tells
    """

    source: str
    layout: str
    build: Callable
    bind: Callable
    config: LaunchConfig | None = None
    kernel: tuple | None = None


@dataclass(frozen=True)
class Backend:
    """An entry of the registry.

    unsupported_reason: (problem, symmetric) -> None, or one sentence that says what is missing
    variants:           (problem, gpu key, symmetric) -> list of Variant; of those that are right, the fastest with a
                        cold L2 is measured; raises ValueError where no launch config fits
    bits_per_weight:    (problem, symmetric) -> stored bits, scales and zeros included
    dtype:              type of x and out
    tolerance:          bounds of the error against the float64 reference
    check:              (bind, x, weight, packed, reference, tolerance) -> verify.Errors; raises verify.MismatchError
    quantised:          False: group_size is recorded as 0
    flops, bytes_min:   of a problem, where they are not those of the product
    """

    name: str
    unsupported_reason: Callable[[GemmProblem, bool], str | None]
    variants: Callable[[GemmProblem, str, bool], list[Variant]]
    bits_per_weight: Callable[[GemmProblem, bool], float]
    dtype: str = "float16"
    tolerance: Tolerance = FP16_TOLERANCE
    check: Callable = verify.check_product
    quantised: bool = True
    flops: Callable[[GemmProblem], int] = lambda problem: problem.flops
    bytes_min: Callable[[GemmProblem, float], int] = lambda problem, bits: problem.bytes_min(bits)


@dataclass(frozen=True)
class Ceiling:
    """Something timed that is no product: what the memory or the launch alone costs.

    word:      stands in the case id where a problem would
    make:      () -> a function of no arguments
    check:     raises verify.MismatchError
    bytes_min: bytes read and written by one call
    min_calls: calls in one sample
    """

    name: str
    word: str
    make: Callable[[], Callable]
    check: Callable[[Callable], None]
    bytes_min: int
    min_calls: int
