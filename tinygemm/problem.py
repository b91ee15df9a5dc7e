"""The skinny GEMMs of LLM decode: one problem, its cost, and the named shapes of real models."""

from __future__ import annotations

from dataclasses import dataclass

GROUP_SIZES = (32, 64, 128, -1)


@dataclass(frozen=True, order=True)
class GemmProblem:
    """`out[M, N] = x[M, K] @ weight[N, K].T` with a weight quantised along K in groups.

    M:          tokens in flight (1 in single-stream decode)
    N, K:       output and input features of the projection
    group_size: weights along K that share one scale: 32, 64, 128, or -1 for the whole K
    raises:     ValueError naming the dimension and the constraint it breaks
    """

    M: int
    N: int
    K: int
    group_size: int = 128

    def __post_init__(self):
        for name in ("M", "N", "K"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size must be one of {GROUP_SIZES}, got {self.group_size!r}")
        if self.K % self.group_length:
            raise ValueError(f"K={self.K} must be divisible by group_size={self.group_size}")

    @property
    def group_length(self) -> int:
        """Weights along K that share one scale, in elements."""
        return self.K if self.group_size == -1 else self.group_size

    @property
    def flops(self) -> int:
        """Floating-point operations of the product: one multiply and one add per weight and token."""
        return 2 * self.M * self.N * self.K

    def int4_bits_per_weight(self, symmetric: bool = True) -> float:
        """Stored bits per weight: 4, plus one FP16 scale (and one 8-bit zero if asymmetric) per group."""
        return 4 + (16 if symmetric else 24) / self.group_length

    def bytes_min(self, bits_per_weight: float) -> int:
        """Least DRAM traffic in bytes: the stored weight and 16-bit `x` read once, 16-bit `out` written once."""
        weight_bytes = round(self.N * self.K * bits_per_weight / 8)
        return weight_bytes + 2 * self.M * (self.K + self.N)

    def __str__(self) -> str:
        return f"M{self.M}-K{self.K}-N{self.N}-g{self.group_size}"


@dataclass(frozen=True)
class Layer:
    """A projection of a published model: `weight[N, K]`, and the groups it can be quantised in (None: in none)."""

    model: str
    layer: str
    K: int
    N: int
    group_size: int | None = 128


# fused and separate projections of models.MODELS["llama-3-8b"]; tests/test_models.py compares the two
LLAMA_3_8B = (
    Layer("llama-3-8b", "kv_proj", 4096, 1024),
    Layer("llama-3-8b", "q_proj", 4096, 4096),
    Layer("llama-3-8b", "qkv_proj", 4096, 6144),
    Layer("llama-3-8b", "up_proj", 4096, 14336),
    Layer("llama-3-8b", "gate_up_proj", 4096, 28672),
    Layer("llama-3-8b", "down_proj", 14336, 4096),
)
LAYER_OF_SHAPE = {(layer.K, layer.N): layer for layer in LLAMA_3_8B}

DECODE_M = (1, 2, 4, 8, 16)
# the four projections of the earlier study, as (K, N): narrow, square, wide, tall
STUDY_SHAPES = ((4096, 1024), (4096, 4096), (4096, 14336), (14336, 4096))
NARROW, SQUARE, WIDE, TALL = STUDY_SHAPES
N_SWEEP = (512, 1024, 2048, 4096, 6144, 8192, 14336, 28672)
REPORT_SHAPES = tuple(dict.fromkeys([*((4096, n) for n in N_SWEEP), *STUDY_SHAPES]))


def parse_shape_list(text: str, group_size: int = 128) -> list[GemmProblem]:
    """Read problems written as `M,K,N;M,K,N;...`.

    text:    semicolon-separated triples of positive integers; spaces and a trailing semicolon are allowed
    returns: the problems, in order, without repeats
    raises:  ValueError naming the item that is not `M,K,N`
    """
    problems = []
    for item in filter(None, (part.strip() for part in text.split(";"))):
        fields = item.split(",")
        try:
            M, K, N = (int(field) for field in fields)
        except ValueError:
            raise ValueError(f"shape {item!r} is not M,K,N (three integers separated by commas)") from None
        try:
            problems.append(GemmProblem(M, N, K, group_size))
        except ValueError as error:
            raise ValueError(f"shape {item!r}: {error}") from None
    if not problems:
        raise ValueError("the shape list is empty; expected M,K,N;M,K,N;...")
    return list(dict.fromkeys(problems))
