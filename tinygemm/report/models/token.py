"""One decode step of a model on a GPU, products and all: its time, its memory, and other ways to go; plain numbers.

`advice` is a pure function of its arguments. The command prints what it returns, and a page that ports the arithmetic
can be held against it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tinygemm.hardware import GPUS, GpuSpec
from tinygemm.models import MODEL_GROUP_SIZES, Model, projections, side_of
from tinygemm.problem import GemmProblem
from tinygemm.report.base.tables import BASELINE
from tinygemm.report.models.advice import INT4, Advice, advise, compared
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict import projection as extrapolate

COMPARED = (BASELINE, INT4)
RIVALS = ("aten-int4mm", "marlin", "gemlite", "humming")  # INT4 kernels of others that a run may have timed
USABLE = 0.9  # share of the memory that engines give to weights and cache
ROUGH = 2.0  # an estimate of the rest of a step may be off by this factor at least
FP16_BYTES = SCALE_BYTES = 2
INT4_BYTES = 0.5


@dataclass(frozen=True)
class MeasuredStep:
    """A whole decode step that somebody timed, in us: all of it, its INT4 products, lm_head in FP16."""

    gpu: str
    layers: int
    context: int
    total_us: float
    products_us: float
    lm_head_us: float
    source: str

    @property
    def rest_us(self) -> float:
        """Attention, norms, rotary, activations, and gaps between kernels."""
        return self.total_us - self.products_us - self.lm_head_us


LEAN = MeasuredStep(
    "h200", 32, 512, 2400, 1320, 250,
    "measured outside this repository on an H200: Llama 3 8B, lean and compiled, one token, context 512",
)  # fmt: skip


@dataclass(frozen=True)
class Rest:
    """The time of a step beside its products, in us.

    factor: by which it may be larger or smaller; 1 where it was measured
    source: where it was measured, or what it is scaled from
    """

    us: float
    factor: float
    source: str

    @property
    def measured(self) -> bool:
        """Known, not estimated."""
        return self.factor == 1


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    fp16, int4:           weights, embedding and lm_head; int4: every weight that groups divide, with its scales
    scales:               of the scales in `int4`
    usable:               of the GPU's memory, for weights and cache
    cache:                that one token of context adds
    context_fp16, _int4:  tokens of context, of all sequences together, that fit beside the weights; -1: not even those
    """

    fp16: float
    int4: float
    scales: float
    usable: float
    cache: float
    context_fp16: int
    context_int4: int


@dataclass(frozen=True)
class Rival:
    """Another INT4 kernel in the place of ours: its time over ours for all quantised products, with the band."""

    backend: str
    ratio: float
    low: float
    high: float

    @property
    def as_good(self) -> bool:
        """The band covers that it takes no longer."""
        return self.low <= 1


@dataclass(frozen=True)
class TokenAdvice:
    """The result of `advice`.

    products: the projections one by one, and their totals
    rest:     of the step
    fp16_us, int4_us:             one step; int4: with the advised projections in INT4
    speedup, speedup_low, _high:  of a step; the ends take every projection, and an estimated rest, at one end
    memory:   of one GPU
    kv:       k_proj and v_proj alone, as two products and as one: layer, K, N, calls, tokens, fp16_us, int4_us,
              speedup, speedup_low, speedup_high, kind, gain_us (of a step); no rows where the model has none
    rival:    the fastest other INT4 kernel of the run; None: it timed none
    """

    products: Advice
    rest: Rest
    fp16_us: float
    int4_us: float
    speedup: float
    speedup_low: float
    speedup_high: float
    memory: Memory
    kv: pd.DataFrame
    rival: Rival | None


def advice(
    model: Model, gpu: GpuSpec | None, M: int, tp: int, fitted: costmodel.CostModel, group_size: int = 128,
    launch: str = "graph", rest_us: float | None = None,
) -> TokenAdvice:  # fmt: skip
    """Advise on a decode step of a model.

    gpu:        None: the one of the run
    M, tp:      tokens in flight, each of a sequence of its own; GPUs that share the model
    fitted:     costmodel.fit(run)
    group_size: largest wanted; of a checkpoint with 4 bits, its own where that is smaller
    launch:     "graph" or "eager"
    rest_us:    the measured rest of a step, where there is one; None: scaled from LEAN
    raises:     ValueError as `advise`
    """
    gpu = gpu or fitted.spec
    group_size = group_size_of(model, group_size)
    products = advise(fitted, model, gpu, M, tp, group_size, launch)
    rest = rest_of(model, gpu) if rest_us is None else Rest(float(rest_us), 1.0, "measured")
    speedup, low, high = step_speedup(products.totals, rest)
    return TokenAdvice(
        products, rest, products.totals["fp16"] + rest.us, products.totals["advised"] + rest.us, speedup, low, high,
        memory_of(model, gpu, tp, group_size), _kv(model, gpu, M, tp, fitted, group_size, launch),
        _rival(products, gpu, fitted, launch),
    )  # fmt: skip


def group_size_of(model: Model, wanted: int) -> int:
    """The group size to go by: that of a checkpoint which is in INT4 already, if it is one of ours and smaller."""
    stored = model.stored_as
    own = stored.group_size if stored and stored.bits == 4 else None
    return min(wanted, own) if own in MODEL_GROUP_SIZES else wanted


def rest_of(model: Model, gpu: GpuSpec, step: MeasuredStep = LEAN) -> Rest:
    """The rest of a step, scaled from a measured one by layers, and by the square root of the memory's bandwidth.

    Of the measured rest, the bytes of the cache are a small part: most of it are small kernels that wait for one
    another. So it lies between as long on every GPU and as much longer as the memory is slower; taken is the middle of
    the two, and the factor reaches both.
    """
    slower = (GPUS[step.gpu].dram_gb_s / gpu.dram_gb_s) ** 0.5
    factor = max(ROUGH, slower, 1 / slower)
    return Rest(step.rest_us * model.layers / step.layers * slower, factor, step.source)


def step_speedup(totals: dict[str, float], rest: Rest) -> tuple[float, float, float]:
    """Speedup of a step, its low and its high end, from the totals of its products: (F + R) / (F / S + R)."""
    fp16 = totals["fp16"]

    def of(products: float, rest_us: float) -> float:
        return (fp16 + rest_us) / (fp16 / products + rest_us)

    ends = [
        of(totals[f"speedup_{end}"], rest_us)
        for end in ("low", "high")
        for rest_us in (rest.us / rest.factor, rest.us * rest.factor)
    ]
    return of(totals["speedup"], rest.us), min(ends), max(ends)


def memory_of(model: Model, gpu: GpuSpec, tp: int = 1, group_size: int = 128) -> Memory:
    """Bytes of weights and cache on one of `tp` GPUs; lm_head and embedding stay in FP16."""
    layers = list(zip(model.weights, projections(model, tp, group_size), strict=True))
    stored = [(each.K * each.N * weight.layers * weight.experts, each.group_size) for weight, each in layers]
    tables = -(-model.vocab // tp) * model.hidden * (1 if model.tied else 2) * FP16_BYTES
    scales = sum(count / size * SCALE_BYTES for count, size in stored if size)
    fp16 = tables + sum(count * FP16_BYTES for count, _ in stored)
    int4 = tables + scales + sum(count * (INT4_BYTES if size else FP16_BYTES) for count, size in stored)
    cache, usable = side_of(model.cache, tp) * FP16_BYTES, gpu.memory_gb * 1e9 * USABLE

    def context(weights: float) -> int:
        return int((usable - weights) // cache) if weights <= usable else -1

    return Memory(float(fp16), float(int4), float(scales), usable, float(cache), context(fp16), context(int4))


def _kv(model: Model, gpu: GpuSpec, M: int, tp: int, fitted, group_size: int, launch: str) -> pd.DataFrame:
    weight = next((weight for weight in model.weights if weight.layer == "qkv_proj"), None)
    columns = ["layer", "K", "N", "calls", "tokens", "group_size"]
    if weight is None:
        return pd.DataFrame(columns=columns)
    K, both = weight.K, weight.N[1].size(tp)
    size = next(each.group_size for each in projections(model, tp, group_size) if each.layer == "qkv_proj")
    if size is None:
        return pd.DataFrame(columns=columns)
    rows = [("k_proj, v_proj", K, both // 2, 2 * weight.layers, M, size), ("kv_proj", K, both, weight.layers, M, size)]
    problems = [GemmProblem(M, N, K, size) for _, _, N, *_ in rows]
    table = pd.concat([pd.DataFrame(rows, columns=columns), compared(fitted, problems, gpu, launch)], axis=1)
    return table.assign(gain_us=table["calls"] * (table["fp16_us"] - table["int4_us"]))


def _rival(products: Advice, gpu: GpuSpec, fitted: costmodel.CostModel, launch: str) -> Rival | None:
    rows = products.rows[products.rows["int4_us"].notna()]
    able = [name for name in RIVALS if launch in getattr(fitted.backends.get(name), "spread", {})]
    if rows.empty or not able:
        return None
    return min((_against(name, rows, gpu, fitted, launch) for name in able), key=lambda rival: rival.ratio)


def _against(name: str, rows: pd.DataFrame, gpu: GpuSpec, fitted: costmodel.CostModel, launch: str) -> Rival:
    """A rival's time over ours, summed over the products: each ratio is measured, or predicted with its band."""
    problems = [GemmProblem(row.tokens, row.N, row.K, int(row.group_size)) for row in rows.itertuples()]
    shapes = {axis: np.array([getattr(problem, axis) for problem in problems]) for axis in ("M", "K", "N")}
    sides = [fitted.backends[each] for each in (name, INT4)]
    bits = [np.array([costmodel.bits_at(side.bits, problem) for problem in problems]) for side in sides]
    middle, low, high = extrapolate.ratio_band(fitted, *sides, shapes, bits, launch, gpu)
    theirs = costmodel.predict(fitted, problems, gpu, (name,), (launch,))
    known = (theirs["kind"] == costmodel.MEASURED).to_numpy() & (rows["kind"] == costmodel.MEASURED).to_numpy()
    ours = rows["int4_us"].to_numpy()
    ratio = theirs["latency_us"].to_numpy() / ours
    weight = ours * rows["calls"].to_numpy()
    ends = [np.where(known, ratio, ratio * end / middle) for end in (low, high)]
    return Rival(name, *(float((each * weight).sum() / weight.sum()) for each in (ratio, *ends)))
