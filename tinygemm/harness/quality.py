"""Error that rounding to 4 bits makes in random weights, by rule, group size and distribution: `tinygemm quality`.

The packed format has the rules of `quantize`; the others are computed here, for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import pandas as pd
import torch

from tinygemm.kernel.quant import dequantize, quantize
from tinygemm.problem import GROUP_SIZES
from tinygemm.runs import DATA_ROOT

FILE = DATA_ROOT / "quality" / "rules.csv"
COLUMNS = (
    "rule", "scale", "symmetric", "group_size", "distribution", "error_percent", "output_error_percent", "N", "K",
    "seed",
)  # fmt: skip
N, K, M, SEED = 128, 4096, 64, 0
STEPS, EXPONENT, BETA, GROWTH = 20, 0.7, 10.0, 1.01  # of the half-quadratic rule, as its authors set them


@dataclass(frozen=True)
class Rule:
    """A way to round a weight to 4 bits.

    scale:     the scale of a group, in words
    symmetric: True where a group has no zero of its own
    rounded:   (weight [N, K] float32, group size) -> the weight [N, K] that its codes stand for, float32
    zero_bits: of a group's zero, as stored
    """

    scale: str
    symmetric: bool
    rounded: Callable[[torch.Tensor, int], torch.Tensor]
    zero_bits: int = 0

    def bits_per_weight(self, group: int) -> float:
        """Bits of a code, and of the float16 scale and zero that `group` weights share."""
        return 4 + (16 + self.zero_bits) / group


def _product(symmetric: bool, rule: str = "full-range", search: bool = False):
    def rounded(weight: torch.Tensor, group_size: int) -> torch.Tensor:
        return dequantize(quantize(weight, group_size, symmetric, rule=rule, search=search), torch.float32)

    return rounded


def _groups(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """[N, K] -> [N, K / group_size, group_size]"""
    return weight.reshape(len(weight), -1, weight.shape[1] if group_size == -1 else group_size)


def _absmax_over(divisor: float):
    def rounded(weight: torch.Tensor, group_size: int) -> torch.Tensor:
        groups = _groups(weight, group_size)
        scales = (groups.abs().amax(-1, keepdim=True) / divisor).half().float()
        return ((groups / scales).round().clamp(-8, 7) * scales).view_as(weight)

    return rounded


def _half_quadratic(integer: bool):
    """The zero of least error in the norm of exponent 0.7, by half-quadratic splitting (Badri and Shaji, 2023).

    The scale stays that of the range. In turn, the error is shrunk towards a sparse one, and the zero is set to the
    mean that the codes and what is left of the weights ask for.
    integer: round the zero to a code, as the packed format stores it
    """

    def rounded(weight: torch.Tensor, group_size: int) -> torch.Tensor:
        groups = _groups(weight, group_size)
        low, high = groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True).clamp_min(0)
        scales = ((high - low) / 15).half().float().clamp_min(2.0**-24)
        zeros, beta = -low / scales, BETA
        for _ in range(STEPS):
            codes = (groups / scales + zeros).round_().clamp_(0, 15)
            error = groups - (codes - zeros) * scales
            size = error.abs()
            sparse = error.sign() * (size - size.pow(EXPONENT - 1) / beta).clamp_min_(0)
            zeros = (codes - (groups - sparse) / scales).mean(-1, keepdim=True)
            beta *= GROWTH
        if integer:
            zeros = zeros.round().clamp(0, 15)
        codes = (groups / scales + zeros).round_().clamp_(0, 15)
        return ((codes - zeros) * scales).view_as(weight)

    return rounded


RULES = {
    "absmax": Rule("largest magnitude / 7", True, _product(True, "absmax")),
    "absmax/7.5": Rule("largest magnitude / 7.5", True, _absmax_over(7.5)),
    "absmax/8": Rule("largest magnitude / 8", True, _absmax_over(8)),
    "full-range": Rule("weight of largest magnitude / -8", True, _product(True)),
    "searched": Rule("of least squared error, of either sign", True, _product(True, search=True)),
    "min-max": Rule("range / 15, with a zero point", False, _product(False), 8),
    "min-max searched": Rule("of least squared error, with a zero point", False, _product(False, search=True), 8),
    "half-quadratic": Rule("range / 15, with a float16 zero point", False, _half_quadratic(False), 16),
    "half-quadratic integer": Rule("the same, its zero point rounded to a code", False, _half_quadratic(True), 8),
}


def distributions(seed: int = SEED) -> dict[str, torch.Tensor]:
    """Random weights [128, 4096] float32, by the name of their distribution."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(N, K, generator=generator)

    def student(degrees: int) -> torch.Tensor:
        return normal() / (reduce(torch.add, (normal().square() for _ in range(degrees))) / degrees).sqrt()

    uniform = torch.rand(N, K, generator=generator) - 0.5
    outliers = torch.where(torch.rand(N, K, generator=generator) < 1e-3, 10.0, 1.0)
    return {
        "gauss": normal(),
        "laplace": -uniform.sign() * torch.log1p(-2 * uniform.abs()),
        "t5": student(5),
        "t3": student(3),
        "outliers": normal() * outliers,
        "uniform": uniform,
        "shifted": normal() + 0.5,
    }


def error_percents(rule: str, group_size: int, weight: torch.Tensor) -> tuple[float, float]:
    """The loss by a rule of a weight [N, K], and of its product with Gaussian activations [64, K]: norms in percent."""
    lost = RULES[rule].rounded(weight, group_size) - weight
    x = torch.randn(M, weight.shape[1], generator=torch.Generator().manual_seed(SEED + 1))
    return percent(lost, weight), percent(x @ lost.t(), x @ weight.t())


def percent(error: torch.Tensor, exact: torch.Tensor) -> float:
    """Frobenius norm of an error in percent of the norm of what is exact."""
    return 100 * (error.double().norm() / exact.double().norm()).item()


def write(file: Path = FILE) -> None:
    """Compute every cell and write the table."""
    weights = distributions()
    rows = []
    for name, rule in RULES.items():
        for group_size in GROUP_SIZES:
            for distribution, weight in weights.items():
                errors = (f"{error:.2f}" for error in error_percents(name, group_size, weight))
                rows.append([name, rule.scale, rule.symmetric, group_size, distribution, *errors, N, K, SEED])
    pd.DataFrame(rows, columns=COLUMNS).to_csv(file, index=False, lineterminator="\n")
