"""The bits of a packed INT4 weight and their meaning: quantise, pack, unpack, dequantise, and the float64 reference.

The format. `qweight[N / 16, K / 128, 16, 16]` int32: one tile is 16 output features x 128 inputs, 1 KiB in one piece.
So any tiling of a kernel reads whole cache lines, and the same bytes serve every GPU and launch config. Word j of a
row holds eight codes:

    k = 32 p + 2 j + h  (p = 0..3, h = 0..1)   at bits 4 (p + 4 h) .. 4 (p + 4 h) + 3

so `word & 0x000f000f` holds the codes of k = 2j and 2j + 1 in the low bits of its two halves: a pair of neighbours in
k, where one fp16x2 instruction turns both into numbers. N is padded to 16 and K to 128; padding is never stored to
the output nor multiplied with anything but zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tinygemm.kernel.scales import LARGEST, SYMMETRIC_ZERO, closed_form, least_error
from tinygemm.kernel.scales import codes as nearest_codes
from tinygemm.problem import GROUP_SIZES

TILE_N, TILE_K, WORDS = 16, 128, 16
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
RULES = ("full-range", "absmax")  # of the scale of a symmetric group
ROUNDED_AT_ONCE = 2**24  # weights: 64 MiB in float32


@dataclass(frozen=True, eq=False)
class PackedInt4:
    """A quantised weight of logical shape [N, K]: `weight = (code - zero) * scale`.

    qweight:    [ceil(N / 16), ceil(K / 128), 16, 16]  int32, eight codes each (see the module)
    scales:     [K // group_size, N]                   float16, of either sign
    zeros:      [K // group_size, N]                   uint8 in 0..15, or None: symmetric, every zero is 8
    group_size: weights along K that share a scale; -1 is the whole K

    All tensors are contiguous and on one device. They are checked when the weight is made, and products rely on it:
    values may change in place, but a tensor whose `.data` is swapped needs a new PackedInt4 (Int4Linear makes one).

    raises: TypeError or ValueError naming the tensor and what was expected: kernels read the bytes without a look
    """

    qweight: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    N: int
    K: int
    group_size: int

    def __post_init__(self):
        N, K = self.N, self.K
        if N < 1 or K < 1:
            raise ValueError(f"N and K must be positive, got N={N} K={K}")
        check_group(K, self.group_size)
        per_group = (K // self.group_length, N)
        _check_tensor("qweight", self.qweight, torch.int32, (-(-N // TILE_N), -(-K // TILE_K), TILE_N, WORDS))
        device = self.qweight.device
        _check_tensor("scales", self.scales, torch.float16, per_group, device)
        if self.zeros is not None:
            _check_tensor("zeros", self.zeros, torch.uint8, per_group, device)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Refuse to be a tensor, in words; torch asks for this method before it hands a weight to its own kernels."""
        raise TypeError(
            f"{getattr(function, '__name__', function)} takes no PackedInt4: multiply with tinygemm.gemm(x, w), "
            "or turn it into a tensor with tinygemm.dequantize(w)"
        )

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

    def to(self, device: torch.device | str | int) -> PackedInt4:
        """The weight on another device. It only moves: codes and scales have no other dtype."""
        if not isinstance(device, (torch.device, str, int)):
            raise TypeError(
                f"device must be a device, got {device!r}: a packed weight only moves, its codes stay int32 and its "
                "scales float16"
            )
        return self._map(lambda tensor: tensor.to(device))

    def clone(self) -> PackedInt4:
        return self._map(torch.clone)

    def _map(self, function) -> PackedInt4:
        zeros = None if self.zeros is None else function(self.zeros)
        return replace(self, qweight=function(self.qweight), scales=function(self.scales), zeros=zeros)


@torch.no_grad()
def quantize(
    weight: torch.Tensor,
    group_size: int = 128,
    symmetric: bool = True,
    *,
    rule: str = "full-range",
    search: bool = False,
) -> PackedInt4:
    """Round a weight to 4 bits, group by group along K.

    weight:     [N, K]  float16, bfloat16 or float32; finite
    group_size: 32, 64, 128, or -1 for one group per output feature; must divide K
    symmetric:  True: zero = 8, and `rule` says which scale; False: the codes 0..15 span [min, max] of each group, zero
                included
    rule:       "full-range": the weight of largest magnitude becomes code 0, so scale = that weight / -8, of either
                sign; "absmax": scale = absmax / 7, which never uses code 0. Without effect on asymmetric weights
    search:     True: per group, clip the range of the rule by up to 60 % and keep what loses least in squared error; a
                symmetric scale is tried with both signs. No group loses more than without. It takes some ten times as
                long: data/quality/model.csv has errors and seconds
    returns:    PackedInt4 on the device of `weight`; it holds on to nothing of `weight`, no gradient either
    raises:     TypeError or ValueError naming the constraint

    Without a search, the error of a weight is at most half its group's scale. With "full-range" it may reach one scale,
    for weights that are opposite in sign to the largest one and beyond 7.5 scales. On top comes the rounding of the
    scale to float16, times the distance of the code from its zero: 2**-11 of the scale, or 2**-25 where it is subnormal
    (below 6.1e-5). A standard deviation of 1e-6 loses little by that; weights below 2**-25 (3e-8) become zero.

    The largest weight is 65,504 by "full-range" and about 57,300 by "absmax". Asymmetric it is about 65,490 in a group
    of one sign, and 61,420 in one that reaches as far on both sides. See `pack` for the limit of a scale.
    """
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"weight must be a tensor, got {type(weight).__name__}")
    if weight.layout is not torch.strided:
        raise TypeError(f"weight must be dense, got {weight.layout}; call weight.to_dense()")
    check_symmetric(symmetric)
    if search not in (True, False):
        raise TypeError(f"search must be True or False, got {search!r}")
    weight = weight.detach()
    if weight.dtype not in FLOAT_DTYPES:
        raise TypeError(f"weight must be float16, bfloat16 or float32, got {weight.dtype}")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"weight must be a non-empty [N, K] matrix, got shape {tuple(weight.shape)}")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {rule!r}")
    K = weight.shape[1]
    check_group(K, group_size)
    if weight.is_meta:
        raise ValueError("weight is on the meta device, so it has no values; load it before it is quantised")
    if not torch.isfinite(weight).all():
        raise ValueError("weight has NaN or infinite values; INT4 codes cannot represent them")

    blocks = weight.split(max(1, ROUNDED_AT_ONCE // K))  # in float32 a whole weight would take several times its memory
    rounded = [_round(rows, K if group_size == -1 else group_size, symmetric, rule, search) for rows in blocks]
    codes, scales, zeros = (torch.cat(parts) for parts in zip(*rounded, strict=True))
    return pack(codes, scales.t(), None if symmetric else zeros.t(), group_size)


def _round(rows: torch.Tensor, group: int, symmetric: bool, rule: str, search: bool) -> tuple[torch.Tensor, ...]:
    """Rows of a weight -> codes uint8 [rows, K], scales float16 [rows, groups], zeros uint8 [rows, groups]."""
    groups = rows.float().reshape(len(rows), -1, group)
    scales, zeros = (least_error if search else closed_form)(groups, symmetric, rule)
    codes = nearest_codes(groups, scales, zeros)
    return codes.to(torch.uint8).view(rows.shape), scales.half(), zeros.to(torch.uint8)


def pack(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, group_size: int = 128) -> PackedInt4:
    """Pack codes that somebody else's quantiser made.

    codes:  [N, K]                uint8 in 0..15
    scales: [K // group_size, N]  float16, of either sign; at most 65504 / max(zero, 15 - zero) in magnitude (8188 where
            symmetric): whatever its codes, a group's weights then fit float16, in which kernels compute them
    zeros:  [K // group_size, N]  uint8 in 0..15, or None for symmetric (zero = 8)
    raises: TypeError or ValueError naming the tensor and the constraint
    """
    for name, tensor in (("codes", codes), ("scales", scales), ("zeros", zeros)):
        if not isinstance(tensor, torch.Tensor) and (name != "zeros" or tensor is not None):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise TypeError(f"codes must be uint8 [N, K], got {codes.dtype} with shape {tuple(codes.shape)}")
    N, K = codes.shape
    check_group(K, group_size)
    groups = 1 if group_size == -1 else K // group_size
    for name, tensor, dtype in (("scales", scales, torch.float16), ("zeros", zeros, torch.uint8)):
        if tensor is not None and (tensor.dtype != dtype or tuple(tensor.shape) != (groups, N)):
            raise ValueError(
                f"{name} must be {dtype} [{groups}, {N}] (K // group_size, N), got {tensor.dtype} {tuple(tensor.shape)}"
            )
        if tensor is not None and tensor.device != codes.device:
            raise ValueError(f"{name} must be on the device of codes, {codes.device}, got {tensor.device}")
    if codes.is_meta:
        raise ValueError("codes are on the meta device, so they have no values; load them before they are packed")
    _check_codes("codes", codes)
    scales = scales.detach()
    check_values(scales, zeros)

    padded = torch.full(_padded(N, K), SYMMETRIC_ZERO, dtype=torch.uint8, device=codes.device)
    padded[:N, :K] = codes
    n_tiles, k_tiles = padded.shape[0] // TILE_N, padded.shape[1] // TILE_K
    tiles = padded.view(n_tiles, TILE_N, k_tiles, 4, WORDS, 2)  # [n, row, k, p, j, h]
    tiles = tiles.permute(0, 2, 1, 4, 3, 5)  # [n, k, row, j, p, h]
    words = torch.zeros(tiles.shape[:4], dtype=torch.int32, device=codes.device)
    for p in range(4):
        for h in range(2):
            words |= tiles[..., p, h].int() << _bit(p, h)
    return PackedInt4(words, scales.contiguous(), None if zeros is None else zeros.contiguous(), N, K, group_size)


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
    check_group(K, group_size)
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


def _check_tensor(name: str, tensor, dtype: torch.dtype, shape: tuple[int, ...], device=None) -> None:
    """Raise where a kernel would read other bytes than those of a contiguous tensor of this dtype and shape."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype != dtype or tensor.shape != shape:
        raise ValueError(f"{name} must be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}; call {name}.contiguous()")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on the device of qweight, {device}, got {tensor.device}")


def _check_codes(name: str, codes: torch.Tensor) -> None:
    if (codes > 15).any():
        raise ValueError(f"{name} must lie in 0..15, got {int(codes.max())}")


def check_values(scales: torch.Tensor, zeros: torch.Tensor | None) -> None:
    """Raise a ValueError where a zero is none of the codes, a scale is NaN, or a weight could lie beyond float16.

    scales, zeros: [K // group_size, N] as in PackedInt4
    """
    if zeros is not None:
        _check_codes("zeros", zeros)
    reach = torch.full_like(scales, SYMMETRIC_ZERO) if zeros is None else torch.maximum(zeros, 15 - zeros)
    within = scales.float().abs() * reach.float() <= LARGEST
    if not within.all():
        scale, distance = scales[~within][0].item(), int(reach[~within][0])
        raise ValueError(
            f"scales beyond their limit: a group's scale is {scale:g}, and its limit is 65504 / {distance} = "
            f"{LARGEST / distance:.0f}: beyond it weights of the group would not fit float16"
        )


def check_group(K: int, group_size: int, name: str = "K") -> None:
    """Raise a ValueError where K weights are not made of groups of a size that kernels know; `name` is that of K."""
    if group_size not in GROUP_SIZES or isinstance(group_size, float):
        raise ValueError(f"group_size must be one of {GROUP_SIZES}, got {group_size!r}")
    if group_size != -1 and K % group_size:
        raise ValueError(f"{name}={K} must be divisible by group_size={group_size}")


def check_symmetric(symmetric: bool) -> None:
    if symmetric not in (True, False):
        raise TypeError(f"symmetric must be True or False, got {symmetric!r}")
