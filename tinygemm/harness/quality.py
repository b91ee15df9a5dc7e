"""Error of each rule for the scale of a group: `python -m tinygemm.harness.quality` writes data/quality/rules.csv."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import torch

from tinygemm.kernel.quant import dequantize, quantize
from tinygemm.runs import DATA_ROOT

FILE = DATA_ROOT / "quality" / "rules.csv"
COLUMNS = ("rule", "scale", "distribution", "error_percent", "N", "K", "group_size", "seed")
N, K, GROUP, SEED = 512, 4096, 128, 0
SHRUNK = torch.linspace(1, 0.2, 65).tolist()  # what a search tries, in units of absmax / 7


def distributions(seed: int = SEED) -> dict[str, torch.Tensor]:
    """Random weights [512, 4096] float32, by the name of their distribution."""
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


def _product(symmetric: bool, rule: str = "full-range") -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda weight: dequantize(quantize(weight, GROUP, symmetric, rule=rule), torch.float32)


def _by_scale(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Groups [..., group] rounded to the codes -8..7, each with its scale [...]."""
    scales = scales.half().float().unsqueeze(-1)
    return (weight / scales).round().clamp(-8, 7) * scales


def _absmax_over(divisor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def rounded(weight: torch.Tensor) -> torch.Tensor:
        groups = weight.view(N, -1, GROUP)
        return _by_scale(groups, groups.abs().amax(-1) / divisor).view(N, K)

    return rounded


def _searched(*signs: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Try scales of these signs for every group, and keep the one of least squared error."""

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        groups = weight.view(N, -1, GROUP)
        unit = groups.abs().amax(-1) / 7
        best, least = groups, torch.full_like(unit, torch.inf)
        for factor in (sign * shrunk for shrunk in SHRUNK for sign in signs):
            tried = _by_scale(groups, factor * unit)
            error = (tried - groups).square().sum(-1)
            best = torch.where((error < least).unsqueeze(-1), tried, best)
            least = torch.minimum(error, least)
        return best.view(N, K)

    return rounded


# name -> (the scale in words, a function from a weight [N, K] to the weight that its codes stand for)
RULES = {
    "absmax": ("largest magnitude / 7", _product(True, "absmax")),
    "absmax/7.5": ("largest magnitude / 7.5", _absmax_over(7.5)),
    "absmax/8": ("largest magnitude / 8", _absmax_over(8)),
    "full-range": ("weight of largest magnitude / -8", _product(True)),
    "searched": ("of least squared error, positive", _searched(1)),
    "searched-signed": ("of least squared error, of either sign", _searched(1, -1)),
    "min-max": ("range / 15, with a zero point", _product(False)),
}


def error_percent(rule: str, weight: torch.Tensor) -> float:
    """Frobenius norm of the error that a rule makes in a weight [512, 4096], in percent of the norm of the weight."""
    lost = RULES[rule][1](weight).double() - weight.double()
    return 100 * (lost.norm() / weight.double().norm()).item()


def write(file: Path = FILE) -> None:
    """Compute every cell and write the table."""
    weights = distributions()
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for rule, (scale, _) in RULES.items():
            for name, weight in weights.items():
                writer.writerow([rule, scale, name, f"{error_percent(rule, weight):.2f}", N, K, GROUP, SEED])


if __name__ == "__main__":
    write()
