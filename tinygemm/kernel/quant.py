"""What the bits of a packed INT4 weight mean: quantise, pack, unpack, dequantise, and the float64 reference.

The format. `qweight[N / 16, K / 128, 16, 16]` int32: one tile is 16 output features x 128 inputs, 1 KiB in one piece,
so any tiling of a kernel reads whole cache lines, and the same bytes serve every GPU and launch config. Word j of a
row holds eight codes:

    k = 32 p + 2 j + h  (p = 0..3, h = 0..1)   at bits 4 (p + 4 h) .. 4 (p + 4 h) + 3

so `word & 0x000f000f` holds the codes of k = 2j and 2j + 1 in the low bits of its two halves: a pair of neighbours in
k, where one fp16x2 instruction turns both into numbers. N is padded to 16 and K to 128; padding is never stored to
the output nor multiplied with anything but zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tinygemm.problem import GROUP_SIZES

TILE_N, TILE_K, WORDS = 16, 128, 16
SYMMETRIC_ZERO = 8
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, eq=False)
class PackedInt4:
    """A quantised weight of logical shape [N, K]: `weight = (code - zero) * scale`.

    qweight:    [ceil(N / 16), ceil(K / 128), 16, 16]  int32, eight codes each (see the module)
    scales:     [K // group_size, N]                   float16
    zeros:      [K // group_size, N]                   uint8 in 0..15, or None: symmetric, every zero is 8
    group_size: weights along K that share a scale; -1 is the whole K
    """

    qweight: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    N: int
    K: int
    group_size: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.N, self.K

    @property
    def device(self) -> torch.device:
        return self.qweight.device

    @property
    def group_length(self) -> int:
        """Weights along K that share a scale, in elements."""
        return self.K if self.group_size == -1 else self.group_size

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, scales and zeros, padding included."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / (self.N * self.K)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(t for t in (self.qweight, self.scales, self.zeros) if t is not None)

    def to(self, device) -> PackedInt4:
        return self._map(lambda tensor: tensor.to(device))

    def clone(self) -> PackedInt4:
        return self._map(torch.clone)

    def _map(self, function) -> PackedInt4:
        zeros = None if self.zeros is None else function(self.zeros)
        return replace(self, qweight=function(self.qweight), scales=function(self.scales), zeros=zeros)


def quantize(weight: torch.Tensor, group_size: int = 128, symmetric: bool = True) -> PackedInt4:
    """Round a weight to 4 bits, group by group along K.

    weight:     [N, K]  float16, bfloat16 or float32; finite
    group_size: 32, 64, 128, or -1 for one group per output feature; must divide K
    symmetric:  True: scale = absmax / 7, zero = 8; False: the codes 0..15 span [min, max] of each group, zero included
    returns:    PackedInt4 on the device of `weight`; the error of a weight is at most half its group's scale
                (plus the rounding of the scale to float16)
    raises:     TypeError or ValueError naming the constraint
    """
    if weight.dtype not in FLOAT_DTYPES:
        raise TypeError(f"weight must be float16, bfloat16 or float32, got {weight.dtype}")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"weight must be a non-empty [N, K] matrix, got shape {tuple(weight.shape)}")
    _check_group(weight.shape[1], group_size)
    if not torch.isfinite(weight).all():
        raise ValueError("weight has NaN or infinite values; INT4 codes cannot represent them")

    N, K = weight.shape
    groups = weight.float().reshape(N, -1, K if group_size == -1 else group_size)  # [N, groups, group]
    tiny = torch.finfo(torch.float16).tiny  # a group of zeros still gets a scale to divide by
    if symmetric:
        scales = (groups.abs().amax(-1) / 7).half().clamp_min(tiny)  # [N, groups]
        zeros = torch.full_like(scales, SYMMETRIC_ZERO)
    else:
        low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
        scales = ((high - low) / 15).half().clamp_min(tiny)
        zeros = (-low / scales.float()).round().clamp(0, 15)
    if torch.isinf(scales).any():
        raise ValueError("a group's scale overflows float16; weights must stay below about 458,000 in magnitude")
    codes = (groups / scales.float().unsqueeze(-1) + zeros.float().unsqueeze(-1)).round().clamp(0, 15)
    return pack(
        codes.to(torch.uint8).reshape(N, K),
        scales.t().contiguous(),
        None if symmetric else zeros.to(torch.uint8).t().contiguous(),
        group_size,
    )


def pack(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, group_size: int = 128) -> PackedInt4:
    """Pack codes that somebody else's quantiser made.

    codes:  [N, K]                uint8 in 0..15
    scales: [K // group_size, N]  float16
    zeros:  [K // group_size, N]  uint8 in 0..15, or None for symmetric (zero = 8)
    raises: TypeError or ValueError naming the tensor and the constraint
    """
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise TypeError(f"codes must be uint8 [N, K], got {codes.dtype} with shape {tuple(codes.shape)}")
    N, K = codes.shape
    _check_group(K, group_size)
    groups = 1 if group_size == -1 else K // group_size
    for name, tensor, dtype in (("scales", scales, torch.float16), ("zeros", zeros, torch.uint8)):
        if tensor is not None and (tensor.dtype != dtype or tuple(tensor.shape) != (groups, N)):
            raise ValueError(
                f"{name} must be {dtype} [{groups}, {N}] (K // group_size, N), got {tensor.dtype} {tuple(tensor.shape)}"
            )
        if tensor is not None and tensor.device != codes.device:
            raise ValueError(f"{name} must be on the device of codes, {codes.device}, got {tensor.device}")
    for name, tensor in (("codes", codes), ("zeros", zeros)):
        if tensor is not None and (tensor > 15).any():
            raise ValueError(f"{name} must lie in 0..15, got {int(tensor.max())}")

    padded = torch.full(_padded(N, K), SYMMETRIC_ZERO, dtype=torch.uint8, device=codes.device)
    padded[:N, :K] = codes
    n_tiles, k_tiles = padded.shape[0] // TILE_N, padded.shape[1] // TILE_K
    tiles = padded.view(n_tiles, TILE_N, k_tiles, 4, WORDS, 2)  # [n, row, k, p, j, h]
    tiles = tiles.permute(0, 2, 1, 4, 3, 5)  # [n, k, row, j, p, h]
    words = torch.zeros(tiles.shape[:4], dtype=torch.int32, device=codes.device)
    for p in range(4):
        for h in range(2):
            words |= tiles[..., p, h].int() << _bit(p, h)
    scales = scales.contiguous()
    return PackedInt4(words, scales, None if zeros is None else zeros.contiguous(), N, K, group_size)


def unpack(w: PackedInt4) -> torch.Tensor:
    """The codes of a packed weight: [N, K] uint8 in 0..15."""
    planes = [[(w.qweight >> _bit(p, h)) & 0xF for h in range(2)] for p in range(4)]
    codes = torch.stack([torch.stack(pair, -1) for pair in planes], -3)  # [n, k, row, p, j, h]
    n_tiles, k_tiles = w.qweight.shape[:2]
    codes = codes.permute(0, 2, 1, 3, 4, 5).reshape(n_tiles * TILE_N, k_tiles * TILE_K)
    return codes[: w.N, : w.K].to(torch.uint8).contiguous()


def dequantize(w: PackedInt4, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """The weight that the codes stand for: [N, K] of `dtype`, computed in float32 (float64 for float64)."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    scales = w.scales.to(exact).repeat_interleave(w.group_length, 0).t()  # [N, K]
    zeros = SYMMETRIC_ZERO if w.zeros is None else w.zeros.to(exact).repeat_interleave(w.group_length, 0).t()
    return ((unpack(w).to(exact) - zeros) * scales).to(dtype)


def reference_gemm(x: torch.Tensor, w: PackedInt4) -> torch.Tensor:
    """The product that every kernel is compared with: x [M, K], returns [M, N] float64."""
    return x.double() @ dequantize(w, torch.float64).t()


def random_packed(
    N: int, K: int, group_size: int = 128, symmetric: bool = True, device="cpu", seed: int = 0
) -> PackedInt4:
    """A weight in which every index matters: random codes over 0..15; scales and zeros differ by group and column."""
    _check_group(K, group_size)
    generator = torch.Generator(device).manual_seed(seed)
    groups = 1 if group_size == -1 else K // group_size
    codes = torch.randint(0, 16, (N, K), dtype=torch.uint8, device=device, generator=generator)
    spread = torch.rand(groups, N, device=device, generator=generator)
    scales = ((0.5 + spread) * K**-0.5 / 4).half()  # outputs of order one for x of order one
    zeros = None
    if not symmetric:
        zeros = torch.randint(0, 16, (groups, N), dtype=torch.uint8, device=device, generator=generator)
    return pack(codes, scales, zeros, group_size)


def _bit(p: int, h: int) -> int:
    """Lowest bit of the code of k = 32 p + 2 j + h in word j."""
    return 4 * (p + 4 * h)


def _padded(N: int, K: int) -> tuple[int, int]:
    return -(-N // TILE_N) * TILE_N, -(-K // TILE_K) * TILE_K


def _check_group(K: int, group_size: int) -> None:
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size must be one of {GROUP_SIZES}, got {group_size!r}")
    if group_size != -1 and K % group_size:
        raise ValueError(f"K={K} must be divisible by group_size={group_size}")
