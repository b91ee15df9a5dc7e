"""The answer of the first screen, from one run: numbers and words that the index page and README.md share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tinygemm import published
from tinygemm.hardware import gpu_spec
from tinygemm.problem import STUDY_SHAPES, WIDE, GemmProblem
from tinygemm.report.answer import tables as one_token
from tinygemm.report.base import tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.base.tables import BASELINE, at_shapes
from tinygemm.report.base.words import bracket, shape_name, span
from tinygemm.report.dequantisation import claims as dequantisation_claims
from tinygemm.report.dequantisation.tables import REGIMES
from tinygemm.report.gains import claims as gains_claims
from tinygemm.report.limits.tables import limited_by_bytes
from tinygemm.report.models import advice
from tinygemm.report.models.token import RIVALS
from tinygemm.report.peers import choice
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict import projection as extrapolate
from tinygemm.report.trust import ways

CASE_GPU = "a10g"  # the GPU of the earlier study
COMMAND = f"tinygemm advise --model {one_token.MODEL.key} --gpu {CASE_GPU} --m 1"
KV = GemmProblem(1, 1024, 4096)
ALIKE = 0.10  # kernels whose projections differ by less are worth the same to a user
LEVEL = 0.05  # speedups nearer to 1 are no gain and no loss: runs differ by almost as much
LITTLE = 0.05  # a share of a token that is hardly worth the work
LATER = 32  # tokens in flight at which readers ask whether it still pays
MANY = 4  # tokens at which the published kernels of SIMILAR_GPU lie apart
PUBLISHED_NAMES = {"awq": "AWQ", "marlin": "Marlin", "aten-int4mm": "PyTorch", "exllamav2": "ExLlamaV2"}
SIMILAR_GPU = "a10"  # the chip and memory of CASE_GPU, of which others published speedups at several M
STATE = {HOLDS: "Yes", FAILS: "No", UNDECIDED: "Open"}


@dataclass(frozen=True)
class Case:
    """One model on one GPU: Llama-3-8B on an A10G, one token in flight.

    advice:        advice.advise of it, projected where the run is of another GPU
    kv:            speedup, low, high of the KV projection, and the time saved by quantising nothing else: saved_ms of
                   a token, and its share of one
    peer:          time of the fastest other INT4 kernel over ours: least and most of the projections; () if unknown
    overlaps:      the GPU has programmatic dependent launch
    peer_name:     that kernel
    """

    advice: advice.Advice
    kv: dict[str, float]
    peer: tuple[float, ...]
    overlaps: bool
    peer_name: str = "aten-int4mm"

    @property
    def projected(self) -> bool:
        return self.advice.gpu != self.advice.run_gpu


@dataclass(frozen=True)
class Answer:
    """The result of `of_run`.

    conditions: of the measurement, in one sentence
    token:      one_token.times
    gains:      one_token.gains
    m_pays:     up to how many tokens in flight INT4 pays, and the largest M that was timed: one_token.most_tokens
    case:       None where the run timed too few shapes for a projection
    findings:   claim, finding, why: one row per finding of the earlier study
    ways:       ways(run)
    """

    gpu: str
    conditions: str
    token: pd.DataFrame
    gains: pd.Series
    m_pays: tuple[float, int]
    case: Case | None
    findings: pd.DataFrame
    ways: pd.DataFrame


def of_run(run) -> Answer:
    """Everything that the first screen says of a run."""
    cases, fitted = run.cases, _fit(run)
    cold = (cases["launch"] == "graph") & (cases["l2_state"] == "cold")
    few = tables.only(run, cold & (cases["M"].isin((0, 1)) | at_shapes(cases, STUDY_SHAPES)))
    table, causes = tables.report_table(few), dequantisation_claims.of_run(run)
    gains = one_token.gains(table)
    return Answer(
        run.gpu["name"], _conditions(run), one_token.times(run, table, fitted), gains, one_token.most_tokens(gains),
        _case(fitted), findings(gains_claims.of_run(run), causes), ways.spans(ways.speedups(run)),
    )  # fmt: skip


def findings(found: dict[str, Verdict], causes: dict[str, Verdict]) -> pd.DataFrame:
    """The three findings of the earlier study: claim, finding and why, of the tuned kernel.

    found: verdicts.of_run(run)        causes: verdicts.causes.of_run(run)
    """
    shift = found["B"]
    rows = [
        ("A. INT4 helps wide FFN projections.", _speedups(found["A"]), _bytes_decide(shift.numbers)),
        ("B. With INT4 the bottleneck shifts away from memory.", f"{STATE[shift.state]}.", _profiled(shift.numbers)),
        ("C. INT4 loses on narrow projections, to dequantisation.", _speedups(found["C"]),
         _narrow(found, causes)),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["claim", "finding", "why"])


# --- words ----------------------------------------------------------------------------------------------------------


def sentence(found: Answer) -> str:
    """The answer per token: whether INT4 pays off, by how much, and up to how many tokens in flight."""
    rows = found.token.set_index("backend")
    if not {BASELINE, "int4"} <= set(rows.index):
        return "**Open.** This run did not time FP16 and INT4 at the linear layers of Llama 3 8B."
    speedup, ms = rows["speedup"], rows["ms"]
    serial = f", or {_times(speedup['int4-serial'])} where calls cannot overlap" if "int4-serial" in rows.index else ""
    predicted = "" if rows.loc[[BASELINE, "int4"], "predicted"].sum() == 0 else ", partly predicted"
    return (
        f"**{_lead(speedup['int4'], *found.m_pays, found.gpu)}** The linear layers of one token of Llama 3 8B take "
        f"{ms['int4']:.1f} ms there in INT4 and {ms[BASELINE]:.1f} ms in FP16{predicted}: INT4 is "
        f"**{_times(speedup['int4'])}** as fast{serial}. {_later(found)}{_head(rows['head_ms'][BASELINE])} The "
        "accuracy of a large model is not measured here."
    )


def terms() -> str:
    """The terms that the sentence takes for granted."""
    return (
        "FP16 means cuBLAS, which models use today. *Tokens in flight*, M, share one read of the weights. Calls "
        "*overlap* when one requests its weights while the one before runs."
    )


def case_title(case: Case) -> str:
    return f"Llama 3 8B on an {_short(case.advice.gpu)}, one token in flight: {_kind(case).upper()}"


def case_lines(case: Case) -> list[str]:
    """The case in short sentences, the most important first."""
    totals, rows = case.advice.totals, case.advice.rows.dropna(subset=["speedup"])
    each = ", ".join(f"{row.layer.removesuffix('_proj')} {row.speedup:.1f}×" for row in rows.itertuples())
    kv = case.kv
    bits = KV.int4_bits_per_weight()
    lines = [
        f"The linear layers of a token take **{totals['advised'] / 1e3:.1f} ms instead of {totals['fp16'] / 1e3:.1f} "
        f"ms: {totals['speedup']:.1f}×**{bracket(totals['speedup_low'], totals['speedup_high'], '.1f')}.",
        f"By projection: {each.replace('gate_up', 'gate and up')}.",
        f"Only the K and V projections in INT4 (this is not the KV cache): {_worth(kv['share'])}. They would be "
        f"{kv['speedup']:.1f}× as fast{bracket(kv['low'], kv['high'], '.1f')} and save {kv['saved_ms']:.1f} ms, "
        f"{kv['share']:.0%} of a token.",
        f"Memory of the weights, embedding included: {one_token.weight_gb(bits=bits):.1f} GB instead of "
        f"{one_token.weight_gb():.1f} GB.",
        f"{'Calls can overlap on this GPU.' if case.overlaps else 'Calls cannot overlap on this GPU.'} {_peer(case)}",
    ]
    if case.projected:
        lines.append(_trust(case))
    return lines


def case_in_short(case: Case) -> str:
    """The case in two sentences."""
    totals, kv = case.advice.totals, case.kv
    bits = KV.int4_bits_per_weight()
    told = [
        f"Llama 3 8B on an {_short(case.advice.gpu)}, one token, {_kind(case)}: {totals['fp16'] / 1e3:.1f} ms → "
        f"{totals['advised'] / 1e3:.1f} ms, {totals['speedup']:.1f}×"
        f"{bracket(totals['speedup_low'], totals['speedup_high'], '.1f')}, weights {one_token.weight_gb():.1f} GB → "
        f"{one_token.weight_gb(bits=bits):.1f} GB.",
        f"Only the K and V projections: {_worth(kv['share'])}, {kv['share']:.0%} of a token.",
    ]
    return " ".join(told)


def beyond() -> str:
    """The most tokens that a projection is made for."""
    return f"Beyond {costmodel.MAX_M} tokens in flight nothing is projected."


def caveats_in_short(found: Answer) -> str:
    """The least and the most that any way to time or compare the kernels gives; empty for a run of one way only."""
    if len(found.ways) < 2:
        return ""
    ends = found.ways.loc[[found.ways["low"].idxmin(), found.ways["high"].idxmax()]]
    least, most = (f"{value:.1f}× ({way_name(row)})" for value, row in
                   zip((ends["low"].iloc[0], ends["high"].iloc[1]), ends.itertuples(), strict=True))  # fmt: skip
    return f"Timed in {len(found.ways)} ways, single projections gain {least} to {most} at one token."


def of_study() -> str:
    """The projections that every way is about."""
    return f"at {', '.join(map(shape_name, STUDY_SHAPES[:-1]))} and {shape_name(STUDY_SHAPES[-1])}"


def way_name(row) -> str:
    """A row of `ways` in words, with the projections that it lacks."""
    return f"{row.way}; without {row.missing}" if row.missing else row.way


def way_span(row) -> str:
    """The least and the largest speedup of a row of `ways`."""
    return span(pd.Series([row.low, row.high]), ".1f", "×").replace(" to ", "× to ")


def findings_in_short(found: Answer) -> str:
    told = [f"{row.claim.rstrip('.')}: **{row.finding.rstrip('.')}**" for row in found.findings.itertuples()]
    return f"An earlier study's findings, tested again. {'. '.join(told)}."


# --- numbers --------------------------------------------------------------------------------------------------------


def _fit(run) -> costmodel.CostModel | None:
    """The latency model of the kernels that the answer names; None where the run timed too few shapes for one."""
    try:
        return costmodel.fit(run, backends=tuple(dict.fromkeys((*one_token.BACKENDS, *RIVALS))))
    except ValueError:
        return None


def _case(fitted: costmodel.CostModel | None) -> Case | None:
    spec = gpu_spec(CASE_GPU)
    try:
        found = advice.advise(fitted, one_token.MODEL, spec) if fitted else None
    except ValueError:
        return None
    if found is None:
        return None
    latency = costmodel.predict(fitted, [KV], spec, (BASELINE, "int4"), ("graph",))["latency_us"]
    band = advice.bands(fitted, [KV], spec, "graph").iloc[0]
    saved = one_token.UNFUSED[KV.K, KV.N] * one_token.MODEL.layers * (latency.iloc[0] - latency.iloc[1])
    kv = {"speedup": latency.iloc[0] / latency.iloc[1], "low": band["speedup_low"], "high": band["speedup_high"]}
    kv |= {"saved_ms": saved / 1e3, "share": saved / found.totals["fp16"]}
    overlaps = spec.compute_capability >= extrapolate.DEPENDENT_LAUNCH
    peers = {name: _peer_range(name, fitted, found, spec) for name in RIVALS}
    known = [name for name in RIVALS if peers[name]] or ["aten-int4mm"]
    best = min(known, key=lambda name: sum(peers[name]))
    return Case(found, {name: float(value) for name, value in kv.items()}, peers[best], overlaps, best)


def _peer_range(name: str, fitted: costmodel.CostModel, found: advice.Advice, spec) -> tuple[float, ...]:
    if "graph" not in getattr(fitted.backends.get(name), "spread", {}):
        return ()
    rows = found.rows.dropna(subset=["int4_us"])
    problems = [GemmProblem(1, row.N, row.K, int(row.group_size)) for row in rows.itertuples()]
    theirs = costmodel.predict(fitted, problems, spec, (name,), ("graph",))["latency_us"].to_numpy()
    ratios = theirs / rows["int4_us"].to_numpy()
    return float(ratios.min()), float(ratios.max())


def _conditions(run) -> str:
    return (
        f"Measured on an {run.gpu['name']}: CUDA graph, weights not in L2, FP16 activations, one scale per 128 "
        f"weights; run `{run.run_id}`, whose kernels are {tables.kernels(run)}."
    )


def _lead(speedup: float, m_pays: float, m_most: int, gpu: str) -> str:
    if abs(speedup - 1) < LEVEL:
        return f"Hardly: one token takes as long on an {gpu}."
    if speedup < 1:
        return f"No, not at one token in flight on an {gpu}."
    if np.isnan(m_pays):
        tokens = "at one token in flight"
    elif np.isinf(m_pays):
        tokens = f"at up to {m_most} tokens in flight, the most that were timed,"
    else:
        tokens = f"up to about {one_token.about(m_pays)} tokens in flight"
    return f"Yes, {tokens} with our kernel on an {gpu}."


def _head(head_ms: float) -> str:
    """The part of lm_head in both times."""
    if np.isnan(head_ms):
        return "Neither holds `lm_head`."
    return f"Both include `lm_head` in FP16: {head_ms:.2f} ms, a prediction."


def _later(found: Answer) -> str:
    """The speedup at LATER tokens in flight; empty where the run did not time them."""
    if LATER not in found.gains.index:
        return ""
    gain = found.gains[LATER]
    return f"At {LATER} tokens in flight the layers are {'still ' if gain > 1 else ''}{_times(gain)} as fast. "


def _times(speedup: float) -> str:
    return f"{speedup:.1f} times"


def _kind(case: Case) -> str:
    return "projected" if case.projected else "measured"


def _short(gpu: str) -> str:
    return gpu.removeprefix("NVIDIA ")


def _peer(case: Case) -> str:
    if not case.peer:
        return ""
    least, most = case.peer
    ratio = (
        f"{least - 1:.0%} to {most - 1:.0%} longer than ours"
        if least > 1
        else f"{least:.2f} to {most:.2f} times our time"
    )
    alike = max(abs(least - 1), abs(most - 1)) < ALIKE
    takes = "is projected to take" if case.projected else "takes"
    told = f"The fastest other INT4 kernel, {choice.plain_name(case.peer_name)}, {takes} {ratio}"
    return f"{told}: at one token it would do as well. {_with_more_tokens()}" if alike else f"{told}."


def _with_more_tokens() -> str:
    """The spread of published kernels at more tokens, on a GPU like that of the case."""
    rows = published.load()
    rows = rows[
        (rows["gpu"] == SIMILAR_GPU) & (rows["quantity"] == "speedup") & ~rows["method"].str.contains("base clock")
    ]
    rows = rows[rows["M"] == MANY].sort_values("value")
    if len(rows) < 2:
        return ""
    worst, best = rows.iloc[0], rows.iloc[-1]
    told = [f"{PUBLISHED_NAMES.get(row['backend'], row['backend'])} {row['value']:.2f}×" for row in (worst, best)]
    return (
        f"With more tokens kernels differ widely: published on an {_short(gpu_spec(SIMILAR_GPU).name)} at M = {MANY}, "
        f"{' and '.join(told)}."
    )


def _worth(share: float) -> str:
    """The verdict on a saved share of a token: is it worth the work?"""
    if share <= 0:
        return "not worth it"
    return "hardly worth it" if share < LITTLE else "worth it"


def _trust(case: Case) -> str:
    """The trust in a case on a GPU that was not timed."""
    there = _short(case.advice.gpu)
    return (
        f"Projected from the {_short(case.advice.run_gpu)}; launch configs on an {there} are predicted, too, and the "
        "ranges include that uncertainty."
    )


def _speedups(verdict: Verdict) -> str:
    numbers = verdict.numbers
    if "worst_speedup" not in numbers:
        return f"{STATE[verdict.state]}."
    low, high = (_x(numbers[f"{end}_speedup"]) for end in ("worst", "best"))
    return f"{STATE[verdict.state]}: {low if low == high else f'{low} to {high}'}."


def _x(speedup: float) -> str:
    return f"{speedup:.1f}×" if speedup >= 1 else f"{speedup:.2f}×"


def _bytes_decide(numbers: dict[str, float]) -> str:
    """The evidence of calls in a row about the wide projection."""
    if "int4_rate" not in numbers:
        return ""
    sets = "set" if limited_by_bytes(numbers["int4_rate"]) else "do not set"
    return (
        f"At {_shape(WIDE)} calls in a row read at {numbers['int4_rate']:.0%} of the speed of a copy: the bytes {sets} "
        "the time."
    )


def _profiled(numbers: dict[str, float]) -> str:
    """The evidence of calls in a row about the bottleneck, and the counters of one call alone beside it."""
    told = []
    if "int4_rate" in numbers:
        limited = {"FP16": limited_by_bytes(numbers["fp16_rate"]), "INT4": limited_by_bytes(numbers["int4_rate"])}
        names = [name for name, yes in limited.items() if yes]
        told.append(f"At {_shape(WIDE)} in a row, the bytes limit {' and '.join(names) if names else 'neither'}.")
    if "fp16_dram" in numbers:
        alone = f"FP16 keeps DRAM {numbers['fp16_dram']:.0%} busy, INT4 {numbers['int4_dram']:.0%}"
        told.append(f"A profiler runs one call of {_shape(WIDE)} alone: there {alone}.")
    return " ".join(told)


def _narrow(found: dict[str, Verdict], causes: dict[str, Verdict]) -> str:
    """The costs of dequantisation and of one warp at the narrow projection, and where dequantisation costs most."""
    numbers, told = causes["cause_narrow_graph"].numbers, []
    if numbers:
        own = numbers.get("own_value", np.nan)
        ours = "" if np.isnan(own) else f"our dequantisation is {max(own, 0):.0%} of the time; "
        told.append(
            f"At {_shape(REGIMES['narrow'])}, in a graph, {ours}in the naive form it is "
            f"{numbers['dequantisation_value']:.0%}. Splitting K over warps and programs saves "
            f"{numbers['too_little_parallelism_value']:.0%} of the time of one warp."
        )
    if found["C_loses_static"].state == HOLDS:
        told.append("A simple kernel does lose: it walks K alone.")
    elsewhere = [name for name in REGIMES if name != "narrow" and causes[f"cause_{name}_graph"].state == HOLDS]
    for name in elsewhere:
        share = causes[f"cause_{name}_graph"].numbers["dequantisation_value"]
        told.append(f"At {_shape(REGIMES[name])} naive dequantisation is the largest cost: {share:.0%}.")
    return " ".join(told)


def _shape(shape: tuple[int, int]) -> str:
    return "×".join(map(str, shape))
