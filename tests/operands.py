"""Test data in which every index matters, and how far a result may lie from the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Operands:
    """A GEMM by its parts, before anything is packed.

    x:      [M, K]                float16
    codes:  [N, K]                uint8, all of 0..15 occur
    scales: [K // group_size, N]  float16, all different from neighbour to neighbour
    zeros:  [K // group_size, N]  uint8 in 0..15, all different from neighbour to neighbour; None: every zero is 8
    """

    x: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    group_size: int

    def reference(self) -> torch.Tensor:
        """[M, N] float64, straight from the definition; nothing of the product's code takes part."""
        M, K = self.x.shape
        groups, N = self.scales.shape
        zeros = torch.full((groups, N), 8) if self.zeros is None else self.zeros
        out = torch.zeros(M, N, dtype=torch.float64)
        for g, part in enumerate(torch.arange(K).chunk(groups)):
            weight = (self.codes[:, part].double() - zeros[g, :, None].double()) * self.scales[g, :, None].double()
            out += self.x[:, part].double() @ weight.T
        return out


def make_operands(M: int, N: int, K: int, group_size: int = 128, symmetric: bool = True, seed: int = 0) -> Operands:
    """Operands whose product is of order one."""
    generator = torch.Generator().manual_seed(seed)
    groups = 1 if group_size == -1 else K // group_size
    g, n = torch.meshgrid(torch.arange(groups), torch.arange(N), indexing="ij")
    # neighbours in g and in n differ, and so do all that lie less than a whole period apart
    scales = (0.5 + ((5 * g + 7 * n) % 23) / 23) * K**-0.5 / 4
    zeros = ((3 * g + 5 * n + 1) % 16).to(torch.uint8)
    codes = torch.randint(0, 16, (N, K), generator=generator, dtype=torch.uint8)
    codes.flatten()[:16] = torch.arange(16)
    x = torch.randn(M, K, generator=generator).half()
    return Operands(x, codes, scales.half(), None if symmetric else zeros, group_size)


def assert_close(out: torch.Tensor, reference: torch.Tensor, max_err: float = 4e-3, rms_err: float = 1e-3) -> None:
    """Bounds the worst and the RMS error, both in units of the RMS of the reference; NaN fails."""
    assert out.shape == reference.shape, f"shape {tuple(out.shape)}, expected {tuple(reference.shape)}"
    error = (out.double() - reference) / reference.square().mean().sqrt()
    worst, rms = error.abs().max().item(), error.square().mean().sqrt().item()
    assert worst < max_err, (
        f"max error {worst:.1e} of the reference's RMS at {divmod(int(error.abs().argmax()), out.shape[-1])}"
    )
    assert rms < rms_err, f"RMS error {rms:.1e} of the reference's RMS"


def poison_allocations(monkeypatch) -> None:
    """From here on new tensors hold NaN, or a large number where they hold integers: what nobody writes shows."""
    allocate_with(monkeypatch, lambda new: new.fill_(torch.nan if new.is_floating_point() else 0x5A))


def allocate_with(monkeypatch, change) -> None:
    """From here on `torch.empty` and `Tensor.new_empty` return change(what they would return)."""
    with torch.device("cpu"):  # torch notes here, once, which functions take a device: the true `empty`
        torch.zeros(())
    for owner, name in ((torch, "empty"), (torch.Tensor, "new_empty")):
        original = getattr(owner, name)
        changed = lambda *args, original=original, **kwargs: change(original(*args, **kwargs))  # noqa: E731
        monkeypatch.setattr(owner, name, changed)
