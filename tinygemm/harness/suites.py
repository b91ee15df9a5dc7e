"""The suites of a recorded run: each is a question, with the shapes, backends and modes that answer it."""

from __future__ import annotations

from dataclasses import dataclass

from tinygemm import models, runs
from tinygemm.backends import CEILING, PEER, of_family
from tinygemm.harness import registry
from tinygemm.problem import DECODE_M, REPORT_SHAPES, STUDY_SHAPES, WIDE, GemmProblem

NAMES = ("decode", "models", "regimes", "crossover", "causes", "formats", "heldout", "method", "ladder")
IDEALS = of_family(CEILING)
REPORT_BACKENDS = (
    "fp16-cublas",
    "fp16-triton",
    "fp16-triton-serial",
    "dequant-fp16",
    "dequant-only",
    "int4-static",
    "int4",
    "int4-serial",
    "int4-no-dequant",
    "int4-load-only",
    "int4-load-only-serial",
    "aten-int4mm",
    "gemlite",
    "bitsandbytes-nf4",
    "marlin",
    "humming",
    "humming-serial",
    *IDEALS,
)
# other people's packages: how they launch and cache is theirs, and tuning them takes long
GUESTS = tuple(name for name in of_family(PEER) if name != "aten-int4mm")  # which comes with PyTorch
# Not at 16: there a round of 15 backends at 4096x1024, 237 calls each, crashed in the driver's graph launch where
# Humming was among them (H200, driver 580.159); rounds of 14 did not. The cause is not known.
GUEST_M = (1, 2, 4, 8)

REP, GRID_REP = 25, 9  # samples per case where a ratio is the claim, and where a trend over a grid is
PRIMARY = (("graph", "cold"),)
BOTH_LAUNCHES = (("graph", "cold"), ("eager", "cold"))
DECODE_MODES = (("graph", "cold"), ("graph", "hot"), ("eager", "cold"))

MODEL_M = (1, 2, 4, 8, 16)
GRID_M = (1, 8)
CROSSOVER_M = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# about evenly spaced on a log scale; every shape of the causes and most of the report are among them
REGIME_K = (1024, 2048, 3072, 4096, 7168, 10240, 14336, 28672)
REGIME_N = (256, 512, 1024, 2048, 4096, 8192, 14336, 28672, 57344)
CAUSES_SHAPES = (
    *((4096, N) for N in (512, 1024, 2048, 4096, 8192, 14336)),
    *((K, 4096) for K in (1024, 2048, 7168, 14336)),
)
# projections of public models outside the table of models.py, and no shape of the report: never part of a tuning
HELD_OUT_SHAPES = (
    *((2560, 2560), (2560, 10240), (10240, 2560)),  # OPT-2.7B
    *((2560, 6912), (6912, 2560)),  # StableLM-3B
    *((5120, 13824), (5120, 15360), (13824, 5120)),  # LLaMA-13B
    *((6144, 6144), (6144, 18432), (6144, 24576), (24576, 6144)),  # GPT-NeoX-20B
    *((6656, 6656), (6656, 17920), (17920, 6656)),  # LLaMA-30B
    *((7168, 1024), (7168, 7168), (7168, 20480), (20480, 7168)),  # Yi-34B
    (8192, 22528),  # Command R
)
# each step of the way from the simple kernel to the tuned one, and the weight-read bound
LADDER_BACKENDS = (
    "fp16-cublas", "int4-static", "int4-step-naive", "int4-step-lop3", "int4-step-early", "int4-splitk", "int4",
    "int4-load-only", "int4-load-only-serial",
)  # fmt: skip

COUNTER_M = (8, 16, 64, 256)  # profiled at the wide projection, beside M = 1 everywhere
COUNTER_BACKENDS = ("fp16-cublas", "int4-static", "int4")
COUNTER_PROBLEMS = tuple(
    GemmProblem(M, N, K) for M, (K, N) in (*((1, shape) for shape in STUDY_SHAPES), *((M, WIDE) for M in COUNTER_M))
)


@dataclass(frozen=True)
class Suite:
    """Every backend at every problem in every mode.

    backends: names from registry.BACKENDS and registry.CEILINGS
    modes:    pairs of runs.LAUNCHES and runs.L2_STATES
    operands: one of runs.OPERANDS
    rep:      samples per case, at least
    raises:   ValueError naming the field
    """

    name: str
    problems: tuple[GemmProblem, ...]
    backends: tuple[str, ...]
    modes: tuple[tuple[str, str], ...] = PRIMARY
    operands: str = "random"
    rep: int = GRID_REP

    def __post_init__(self):
        known = registry.known_names()
        if not self.problems:
            raise ValueError("problems is empty: a sweep needs at least one")
        if unknown := sorted(set(self.backends) - set(known)):
            raise ValueError(f"unknown backend {', '.join(unknown)}; known: {', '.join(known)}")
        if not self.backends:
            raise ValueError(f"backends is empty: choose from {', '.join(known)}")
        if self.operands not in runs.OPERANDS:
            raise ValueError(f"operands must be one of {', '.join(runs.OPERANDS)}, got {self.operands!r}")
        if type(self.rep) is not int or self.rep < 1:
            raise ValueError(f"rep must be an integer of at least 1, got {self.rep!r}")
        for position, (name, allowed) in enumerate((("launches", runs.LAUNCHES), ("l2_states", runs.L2_STATES))):
            values = [mode[position] for mode in self.modes]
            if not values or not set(values) <= set(allowed):
                raise ValueError(f"{name} must be some of {', '.join(allowed)}, got {', '.join(values) or 'none'}")


def chosen(names: tuple[str, ...], decode: tuple[Suite, ...], rep: int = REP) -> tuple[Suite, ...]:
    """The suites of these names; one name may stand for several that are timed in different ways.

    decode: what `decode` stands for, see `decode_suites`
    rep:    of the grids, where it is lower than theirs
    raises: ValueError for a name that is none
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"unknown suite {', '.join(unknown)}; known: {', '.join(NAMES)}")
    if not names:
        raise ValueError(f"suites is empty: choose from {', '.join(NAMES)}")
    every = decode + _grids(min(rep, GRID_REP) if type(rep) is int else rep)
    return tuple(suite for suite in every if suite.name in names)


def decode_suites(
    tokens: tuple[int, ...] = DECODE_M,
    shapes: tuple[tuple[int, int], ...] = REPORT_SHAPES,
    group_size: int = 128,
    backends: tuple[str, ...] = REPORT_BACKENDS,
    rep: int = REP,
) -> tuple[Suite, ...]:
    """The suite that the findings rest on: every backend at the report's shapes, guests at the study's shapes only."""
    guests = tuple(name for name in backends if name in GUESTS)
    hosts = tuple(name for name in backends if name not in GUESTS)
    known = [shape for shape in shapes if shape in STUDY_SHAPES] or list(shapes)
    parts = []
    if hosts or not guests:
        parts.append(Suite("decode", _problems(shapes, tokens, group_size), hosts, DECODE_MODES, rep=rep))
    if guests:
        few = tuple(M for M in tokens if M in GUEST_M) or tokens
        parts.append(Suite("decode", _problems(known, few, group_size), guests, rep=rep))
    return tuple(parts)


def _grids(rep: int) -> tuple[Suite, ...]:
    """Every suite but `decode`."""
    grid = [(K, N) for K in REGIME_K for N in REGIME_N]
    formats = [GemmProblem(M, N, K, size) for K, N in STUDY_SHAPES for M in GRID_M for size in (32, 64, 128, -1)]
    in_models = [GemmProblem(M, N, K, size) for K, N, size in models.decode_shapes() for M in MODEL_M]
    products = [
        Suite("models", tuple(in_models), ("fp16-cublas", "fp16-triton", "int4")),
        Suite("regimes", _problems(grid, GRID_M), ("fp16-cublas", "fp16-triton", "int4", "int4-static")),
        Suite(
            "crossover", _problems(STUDY_SHAPES, CROSSOVER_M), ("fp16-cublas", "dequant-fp16", "int4-fused", "int4")
        ),
        # profiled at many tokens, and only what was timed is profiled
        Suite("crossover", _problems([WIDE], [M for M in COUNTER_M if M not in DECODE_M]), ("int4-static",)),
        Suite(
            "causes",
            _problems(CAUSES_SHAPES, (1,)),
            (
                "fp16-cublas", "int4-static", "int4", "int4-splitk", "int4-no-dequant", "int4-naive-dequant",
                "int4-no-split", "int4-more-split", "int4-load-only",
            ),
            BOTH_LAUNCHES,
        ),
        Suite("formats", tuple(formats), ("int4",)),
        Suite("formats", _problems(STUDY_SHAPES, GRID_M), ("int4", "int4-bf16", "int4-asymmetric")),
        Suite("formats", _problems(STUDY_SHAPES, (8, 16)), ("int4", "int4-one-row")),
        Suite("heldout", _problems(HELD_OUT_SHAPES, GRID_M), ("int4", "int4-searched")),
        Suite(
            "method",
            _problems(STUDY_SHAPES, (1,)),
            ("fp16-cublas", "int4"),
            (("graph", "cold"), ("primed", "cold"), ("graph", "warm"), ("graph", "hot"), ("do_bench", "cold")),
        ),
        Suite("method", _problems(STUDY_SHAPES, (1,)), ("fp16-cublas", "int4"), operands="zeros"),
        Suite("ladder", _problems(STUDY_SHAPES, GRID_M), LADDER_BACKENDS),
    ]  # fmt: skip
    return tuple(Suite(s.name, s.problems, (*s.backends, *IDEALS), s.modes, s.operands, rep) for s in products)


def _problems(shapes, tokens, group_size: int = 128) -> tuple[GemmProblem, ...]:
    return tuple(GemmProblem(M, N, K, group_size) for K, N in shapes for M in tokens)
