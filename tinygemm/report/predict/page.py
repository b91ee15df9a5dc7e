"""Text and tables of the chapter on the latency model: its terms, projections to other GPUs, and their tables."""

from __future__ import annotations

from operator import attrgetter

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from tinygemm import published
from tinygemm.hardware import GPUS, GpuSpec, gpu_spec
from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report.base import style
from tinygemm.report.base.page import folded, lacks
from tinygemm.report.base.tables import BASELINE, SHAPE, primary
from tinygemm.report.base.words import bracket, shape_name, shape_names
from tinygemm.report.predict import against_published, against_runs, figures
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict import projection as extrapolate
from tinygemm.report.predict.claims import WORST_ERROR
from tinygemm.report.predict.model import MEASURED, PREDICTED, CostModel
from tinygemm.report.predict.terms import META

PROJECTED = "projected"
UNITS = {
    "start_us": "start (µs)", "token_us": "token (µs)", "serial_ns": "serial (ns)", "longest_k": "longest (K)",
    "weight_ps": "weight (ps)", "tile_ps": "tile (ps)", "overlap": "p", "host_us": "host (µs)", "gap_us": "gap (µs)",
    "l2_share": "L2 share",
}  # fmt: skip
ERRORS = {
    "name": ("backend", ""), "launch": ("launch", ""), "cases": ("cases", ",.0f"), "median": ("median error", ".1%"),
    "worst": ("worst", ".0%"), "within_10": ("within 10 %", ".0%"), "within_25": ("within 25 %", ".0%"),
}  # fmt: skip
ASSUMPTIONS = {
    "assumption": ("assumed of", ""), "value": ("value", ""), "span": ("may be off by", ""), "why": ("why", ""),
}  # fmt: skip
RUNS = {
    "gpu": ("GPU", ""), "name": ("backend", ""), "cases": ("cases", ",.0f"), "hits": ("hits", ",.0f"),
    "median_off": ("median off", ".1%"), "worst_off": ("worst off", ".0%"), "band": ("band, high / low", ".1f"),
}  # fmt: skip
HITS = {
    "source_key": ("source", ""), "gpu": ("GPU", ""), "name": ("published", ""), "against": ("projected", ""),
    "cases": ("values", ",.0f"), "hits": ("hits", ",.0f"), "median_off": ("median off", ".0%"),
    "band": ("band, high / low", ".1f"),
}  # fmt: skip
SPECS = {
    "name": ("GPU", ""), "sm_count": ("SMs", ".0f"), "dram_gb_s": ("DRAM (GB/s)", ",.0f"),
    "clock_mhz": ("boost (MHz)", ",.0f"), "l2_mib": ("L2 (MiB)", ".0f"), "ecc": ("ECC", ""), "source": ("source", ""),
}  # fmt: skip
SHOWN_FIRST = "a10g"
DRAWN = (  # one of each kind: a GPU left out is near one of these in bandwidth and SMs
    "a10g", "l4", "a10", "l40s", "rtx-3090", "rtx-4090", "rtx-5090", "a100-pcie-40gb", "a100-sxm4-80gb",
    "h100-80gb-hbm3", "h200", "b200",
)  # fmt: skip
IN_TABLE = (BASELINE, "dequant-fp16", "int4-static", "int4", "aten-int4mm")


def model_of(run) -> CostModel | None:
    """The model of a run; None where the run timed too few shapes for one."""
    try:
        return costmodel.fit(run)
    except ValueError:
        return None


def no_model() -> Markdown:
    """The sentence in place of the model, for a run that does not allow it."""
    return Markdown(f"*This run did not time {costmodel.MIN_SHAPES} shapes of every backend that this needs.*")


def compared(model: CostModel | None) -> pd.DataFrame:
    """against_published.compare(model, published.load()); no rows without a model."""
    values = published.load()
    return against_published.compare(model, values) if model else values.head(0).assign(stand_in="", off=0.0, result="")


def elsewhere(model: CostModel | None, run) -> pd.DataFrame:
    """against_runs.compare with the runs of other GPUs beside this one; no rows without a model."""
    if model is None:
        return pd.DataFrame(columns=["gpu", "backend", "off", "result"])
    return against_runs.compare(model, run, against_runs.other_gpus(run))


def no_other_run() -> Markdown:
    """The sentence in place of the comparison with other runs, where there are none."""
    return Markdown("*No run of another GPU with the same libraries or kernels is recorded beside this one.*")


def other_gpu(model: CostModel | None) -> str:
    """The GPU that the page projects to first: an A10G, or where that was measured, an L4."""
    return SHOWN_FIRST if model is None or model.spec.key != SHOWN_FIRST else "l4"


def facts(model: CostModel | None, left_out: pd.DataFrame) -> dict:
    """Numbers for the prose: counts of cases and shapes, of fitted backends, the covered share, the bandwidth share."""
    graph = left_out[left_out["launch"] == "graph"]
    efficiency = next(iter(model.backends.values())).terms.efficiency if model else np.nan
    return {
        "cases": len(graph),
        "shapes": len(graph[["K", "N"]].drop_duplicates()),
        "backends": len(model.backends) if model else 0,
        "covered": costmodel.COVERED,
        "efficiency": efficiency,
        "overlap_us": model.overlap_us if model else np.nan,
        "other": GPUS[other_gpu(model)].name,
    }


def meanings() -> pd.DataFrame:
    """The meaning of the fitted terms: term, unit, meaning."""
    return pd.DataFrame([(name, about["unit"], about["meaning"]) for name, about in META.items()],
                        columns=["term", "unit", "meaning"])  # fmt: skip


def terms(model: CostModel) -> pd.DataFrame:
    """Every fitted term: name of the backend, then one column per term; NaN for a term that a backend does not have."""
    wide = costmodel.terms_table(model).pivot(index="backend", columns="term", values="value")
    wide = wide.reindex(index=list(model.backends), columns=list(META)).reset_index()
    return wide.assign(name=wide["backend"].map(style.name))


def errors(left_out: pd.DataFrame) -> pd.DataFrame:
    """One row per backend: name, cases, then median, worst and the share within 10 and 25 %, for graph and eager."""
    rows = left_out.assign(size=left_out["error"].abs())
    groups = rows.groupby(["backend", "launch"])["size"]
    table = pd.DataFrame({
        "cases": groups.size(),
        "median": groups.median(),
        "worst": groups.max(),
        "within_10": groups.agg(_share_within_10),
        "within_25": groups.agg(_share_within_25),
    }).reset_index()  # fmt: skip
    order = {backend: i for i, backend in enumerate(style.in_order(table["backend"]))}
    table = table.sort_values(["launch", "backend"], key=_place(order), ascending=True)
    return table.assign(name=table["backend"].map(style.name))


def configs_of_misses(run, left_out: pd.DataFrame, backend: str = "int4") -> Markdown:
    """The cases that the model misses by more than 25 %, and the share of them in untuned launch configs.

    left_out: costmodel.leave_one_out(run)
    """
    keys = ["backend", "launch", *SHAPE]
    source = primary(run.cases).drop_duplicates(keys)[[*keys, "config_source"]]
    rows = left_out[left_out["backend"] == backend].merge(source, on=keys)
    if rows.empty:
        return lacks(f"{style.name(backend)} at shapes enough to leave one out")
    missed, by_rule = rows[rows["error"].abs() > WORST_ERROR], rows["config_source"] == "rule"
    told = f"Of {style.name(backend)}, {len(missed)} of {len(rows)} cases in graphs are missed by more than "
    told += f"{WORST_ERROR:.0%}"
    if len(missed):
        told += (
            f", {(missed['error'] < 0).sum()} of them predicted too short. Of the {len(missed)}, "
            f"{(missed['config_source'] == 'rule').sum()} ran in a launch config of the rule for untuned shapes, as "
            f"did {by_rule.mean():.0%} of all. "
            "The model knows how many programs a config makes, but not whether it suits the shape"
        )
    return Markdown(f"{told}.")


def speedups(model: CostModel | None, table: pd.DataFrame, M: int = 1, shapes=STUDY_SHAPES) -> pd.DataFrame:
    """INT4 over FP16 on DRAWN GPUs: measured on the run's own where timed, projected on the others.

    table:   tables.report_table(run)
    returns: gpu, gpu_key, M, K, N, speedup, low, high, fp16_us, int4_us, kind (measured, predicted, projected), base
             (name of the run's GPU), run_id; no rows where the model lacks one of the two
    """
    columns = ["gpu", "gpu_key", *SHAPE, "speedup", "low", "high", "fp16_us", "int4_us", "kind"]
    if model is None or not {BASELINE, "int4"} <= set(model.backends):
        return pd.DataFrame(columns=columns)
    others = [GPUS[key] for key in DRAWN if key != model.spec.key]
    others.sort(key=_a10g_first)
    rows = pd.concat([_on(model, spec, M, shapes) for spec in (model.spec, *others)], ignore_index=True)
    timed = primary(table)
    sides = {name: timed[(timed["backend"] == name) & (timed["M"] == M)] for name in (BASELINE, "int4")}
    own = sides["int4"].merge(sides[BASELINE], on=["K", "N"], suffixes=("", "_fp16"))
    for row in own.itertuples():
        here = (rows["gpu_key"] == model.spec.key) & (rows["K"] == row.K) & (rows["N"] == row.N)
        values = [row.speedup_vs_fp16, row.speedup_vs_fp16_low, row.speedup_vs_fp16_high, row.latency_us_p50_fp16]
        names = ["speedup", "low", "high", "fp16_us", "int4_us", "kind"]
        rows.loc[here, names] = [*values, row.latency_us_p50, MEASURED]
    return rows[columns].assign(base=model.spec.name, run_id=model.run_id)


def latencies(model: CostModel, M: int = 1, shapes=STUDY_SHAPES) -> pd.DataFrame:
    """FP16 and INT4 on a GPU that was not measured: name, launch, then per shape value and band as text, in italics."""
    problems = [GemmProblem(M, N, K) for K, N in shapes]
    wanted = [name for name in IN_TABLE if name in model.backends]
    rows = costmodel.predict(model, problems, GPUS[other_gpu(model)], wanted)
    rows = rows.assign(
        name=rows["backend"].map(style.name),
        shape=shape_names(rows),
        text=[f"*{row.latency_us:.3g}*{bracket(row.low_us, row.high_us, '.3g')}" for row in rows.itertuples()],
    )
    wide = rows.pivot(index=["name", "launch"], columns="shape", values="text").reset_index()
    return wide.sort_values(["launch", "name"], key=_place({style.name(name): i for i, name in enumerate(wanted)}))


def assumptions(model: CostModel) -> pd.DataFrame:
    """extrapolate.assumptions of the GPU shown first, its factors as one text: assumption, value, span, why."""
    rows = extrapolate.assumptions(model, GPUS[other_gpu(model)])
    return rows.assign(span=[f"× {low:.2f} to {high:.2f}" for low, high in zip(rows["low"], rows["high"], strict=True)])


def hits(scored: pd.DataFrame) -> pd.DataFrame:
    """Scores with names: source, gpu, name, against (what was projected), cases, hits, offs.

    scored: against_published.scores
    """
    if "stand_in" in scored:
        against = scored["stand_in"].map(style.name).where(scored["stand_in"] != "", "the same")
        scored = scored.assign(against=against, gpu=scored["gpu"].map(gpu_spec).map(attrgetter("name")))
    return scored.assign(name=scored["backend"].map(style.name), gpu=scored["gpu"].str.removeprefix("NVIDIA "))


def specs() -> pd.DataFrame:
    """The published figures of every known GPU: name, sm_count, dram_gb_s, clock_mhz, l2_mib, ecc, source."""
    rows = [
        (spec.name, spec.sm_count, spec.dram_gb_s, spec.boost_clock_mhz, spec.l2_bytes / 2**20,
         "inline" if spec.inline_ecc else "–", spec.source)
        for spec in GPUS.values()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["name", "sm_count", "dram_gb_s", "clock_mhz", "l2_mib", "ecc", "source"])


def _on(model: CostModel, spec: GpuSpec, M: int, shapes) -> pd.DataFrame:
    K, N = (np.array([shape[i] for shape in shapes]) for i in (0, 1))
    dims = {"M": np.full(len(K), M), "K": K, "N": N}
    fp16, int4 = model.backends[BASELINE], model.backends["int4"]
    ratio, low, high = extrapolate.ratio_band(model, fp16, int4, dims, (fp16.bits, int4.bits), "graph", spec)
    times = [extrapolate.band(model, side, dims, side.bits, "graph", spec)[0] for side in (fp16, int4)]
    kind = PREDICTED if spec.key == model.spec.key else PROJECTED
    values = {"speedup": ratio, "low": low, "high": high, "fp16_us": times[0], "int4_us": times[1], "kind": kind}
    return pd.DataFrame(dims | values | {"gpu": spec.name, "gpu_key": spec.key})


def _a10g_first(spec: GpuSpec) -> tuple:
    return spec.key != SHOWN_FIRST, spec.dram_gb_s


def _place(order: dict):
    """A sort key: launch modes backwards (graph first), everything else by the given order."""

    def key(values: pd.Series) -> pd.Series:
        return values.map({"graph": 0, "eager": 1} if values.name == "launch" else order)

    return key


def _share_within_10(sizes: pd.Series) -> float:
    return float((sizes <= 0.10).mean())


def _share_within_25(sizes: pd.Series) -> float:
    return float((sizes <= 0.25).mean())


def left_out_figure(left_out: pd.DataFrame) -> Figure | Markdown:
    """Predicted against measured, each shape left out of its fit."""
    return figures.predicted_vs_measured(left_out) if len(left_out) else no_model()


def error_table(left_out: pd.DataFrame) -> Markdown:
    """The error of every backend at shapes left out of the fit, folded."""
    caption = "Error at shapes left out of the fit, as a CUDA graph and from Python"
    return folded("Error at shapes left out, by backend", errors(left_out), ERRORS, "tab-left-out", caption)


def terms_figure(model: CostModel | None) -> Figure | Markdown:
    """The fitted terms over N."""
    return figures.terms_vs_n(model) if model else no_model()


def term_tables(model: CostModel | None) -> Markdown:
    """The meaning of the terms, and every fitted one, folded."""
    about = {"term": ("term", ""), "unit": ("unit", ""), "meaning": ("meaning", "")}
    shown = folded("What the terms mean", meanings(), about, "tab-meanings", "The fitted terms and what they mean").data
    if model is None:
        return Markdown(f"{shown}\n\n{no_model().data}")
    columns = {"name": ("backend", "")} | {term: (heading, ".3g") for term, heading in UNITS.items()}
    caption = "Every term; what the run leaves open stays at its prior"
    return Markdown(f"{shown}\n\n{folded('Every term', terms(model), columns, 'tab-model-terms', caption).data}")


def projected(speedups: pd.DataFrame) -> Figure | Markdown:
    """The speedup on every known GPU: measured where timed, projected elsewhere."""
    return figures.projected_speedups(speedups) if len(speedups) else no_model()


def projected_table(model: CostModel | None, shapes=STUDY_SHAPES) -> Markdown:
    """Projected latencies on the GPU shown first, folded."""
    if model is None:
        return no_model()
    names = [shape_name((K, N)) for K, N in shapes]
    columns = {"name": ("backend", ""), "launch": ("launch", "")} | {name: (f"{name} (µs)", "") for name in names}
    caption = f"Projected to the {GPUS[other_gpu(model)].name}, not measured: latency at M = 1, its band in brackets"
    return folded("Projected latencies", latencies(model, shapes=shapes), columns, "tab-projected", caption)


def assumption_table(model: CostModel | None) -> Markdown:
    """Assumptions of a projection, folded."""
    if model is None:
        return no_model()
    caption = "What a projection takes for granted, and how far each may be off"
    return folded("What a projection takes for granted", assumptions(model), ASSUMPTIONS, "tab-assumptions", caption)


def runs_table(elsewhere: pd.DataFrame) -> Markdown:
    """Projections against runs of other GPUs."""
    if elsewhere.empty:
        return no_other_run()
    rows = hits(against_published.scores(elsewhere, ("gpu", "backend")))
    return folded(
        "Projections against runs", rows, RUNS, "tab-runs-elsewhere", "Projections against runs of other GPUs"
    )


def published_figure(compared: pd.DataFrame) -> Figure | Markdown:
    """Projected over published values, for backends that the run timed."""
    own = compared[compared["stand_in"] == ""]
    return figures.published_vs_projected(own) if len(own) else no_model()


def published_table(compared: pd.DataFrame) -> Markdown:
    """Projections against published values, folded."""
    rows = hits(against_published.scores(compared))
    return folded(
        "Projections against published values", rows, HITS, "tab-hits", "Projections against published values"
    )


def gpu_table() -> Markdown:
    """The published figures of every known GPU, folded."""
    caption = "The published figures that projections rest on; inline ECC takes bandwidth from the data"
    return folded("The GPUs", specs(), SPECS, "tab-gpus", caption)
