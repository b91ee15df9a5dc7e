"""Scale and zero of each group of a weight: by a rule in closed form, or the best of a search."""

from __future__ import annotations

from collections.abc import Iterator

import torch

SYMMETRIC_ZERO = 8
LARGEST = torch.finfo(torch.float16).max
SMALLEST_SCALE = 2.0**-24  # the smallest float16 above zero, a subnormal one
PARTS = torch.linspace(1, 0.4, 25).tolist()  # of a group's range, for a search; finer steps find hardly more
SEARCHED_AT_ONCE = 2**19  # weights: 2 MiB in float32, which caches hold


def closed_form(groups: torch.Tensor, symmetric: bool, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of each group by a rule.

    groups:  [rows, groups, length] float32
    rule:    as in `quantize`
    returns: scales and zeros, both [rows, groups] float32; the scales are float16 values
    """
    return _spanning(*groups.aminmax(dim=-1), symmetric, rule)


def least_error(groups: torch.Tensor, symmetric: bool, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of each group that lose least in squared error, of those whose codes span a part of its range.

    A symmetric scale is tried with both signs; an asymmetric group is clipped at both ends or at one. The scale of the
    rule is tried first, so no group loses more than by it.
    Arguments and results are those of `closed_form`.
    """
    rows = max(1, SEARCHED_AT_ONCE // groups[0].numel())
    found = [_search(block, symmetric, rule) for block in groups.split(rows)]
    scales, zeros = (torch.cat(parts) for parts in zip(*found, strict=True))
    return scales, zeros


def codes(groups: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The nearest codes of groups [..., length]: 0 to 15, in float32; scales and zeros are [...]."""
    return (groups / scales.unsqueeze(-1)).add_(zeros.unsqueeze(-1)).round_().clamp_(0, 15)


def squared_error(groups: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The loss by the nearest codes: [...] for groups [..., length]."""
    lost = codes(groups, scales, zeros).sub_(zeros.unsqueeze(-1)).mul_(scales.unsqueeze(-1)).sub_(groups)
    return torch.linalg.vecdot(lost, lost)


def _spanning(low: torch.Tensor, high: torch.Tensor, symmetric: bool, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of groups whose weights lie in [low, high]."""
    if not symmetric:
        low, high = low.clamp_max(0), high.clamp_min(0)
        scales = (high - low) / 15
    elif rule == "absmax":
        scales = torch.maximum(-low, high) / 7
    else:
        scales = torch.where(high > -low, high, low) / -8
    scales = scales.half().float()
    scales.masked_fill_(scales == 0, SMALLEST_SCALE)  # a group of zeros still gets a scale to divide by
    # a subnormal scale may be rounded down so far that the zero of a one-sided group would lie beyond the codes
    zeros = torch.full_like(scales, SYMMETRIC_ZERO) if symmetric else (-low / scales).round().clamp(0, 15)
    return scales, zeros


def _search(groups: torch.Tensor, symmetric: bool, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = groups.aminmax(dim=-1)
    scales, zeros = _spanning(low, high, symmetric, rule)
    least = squared_error(groups, scales, zeros)
    for tried, points in _candidates(low, high, symmetric, rule):
        error = squared_error(groups, tried, points)
        better = (error < least) & (tried.abs() * torch.maximum(points, 15 - points) <= LARGEST)
        least = torch.where(better, error, least)
        scales, zeros = torch.where(better, tried, scales), torch.where(better, points, zeros)
    return scales, zeros


def _candidates(low, high, symmetric: bool, rule: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scales and zeros whose codes span a part of [low, high]: of either sign, or clipped at both ends or at one."""
    for part in PARTS:
        scales, zeros = _spanning(part * low, part * high, symmetric, rule)
        yield scales, zeros
        if symmetric:
            yield -scales, zeros
        else:
            yield scales, (-low / scales).round().clamp(0, 15)
            yield scales, (15 - high / scales).round().clamp(0, 15)
