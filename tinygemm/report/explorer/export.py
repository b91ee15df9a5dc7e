"""Coefficients, models, GPUs and measured points: all that the explorer needs to answer as `tinygemm advise` does."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd

from tinygemm.families import FAMILIES, gated, grouped_query
from tinygemm.hardware import GPUS
from tinygemm.model_config import TIED
from tinygemm.models import MODEL_GROUP_SIZES, MODELS, TENSOR_PARALLEL, Side, Weight, possible_degrees
from tinygemm.report.base import style, tables
from tinygemm.report.base.tables import BASELINE, SHAPE
from tinygemm.report.compare.tables import newest_others
from tinygemm.report.limits.tables import COPY_FRACTION
from tinygemm.report.models import token
from tinygemm.report.models.advice import INT4, LIMITERS
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict import projection as extrapolate
from tinygemm.report.predict.terms import ECC_SHARE, SHARPNESS
from tinygemm.runs import Run

DIGITS = 10  # significant, of a measured number
CASE = ("llama-3-8b", ("a10g", "h200"))  # what the page answers before anybody asks


def models_of_runs(run: Run) -> dict[str, costmodel.CostModel]:
    """The latency model of a run, and then of the newest run of each other GPU that is recorded beside it.

    GPUs without published figures are left out, but for that of `run`.
    """
    runs = [run, *(other for other in newest_others(run) if other.gpu["key"] in GPUS)]
    backends = (*token.COMPARED, *token.RIVALS)
    return {each.gpu["key"]: costmodel.fit(each, backends=backends) for each in runs}


def coefficients(fitted: dict[str, costmodel.CostModel]) -> dict:
    """Everything that the arithmetic of the explorer reads, as plain values for JSON.

    fitted: models_of_runs(); a GPU that has none is answered from the first
    """
    return {
        "runs": {key: _run(model) for key, model in fitted.items()},
        "default_run": next(iter(fitted)),
        "gpus": {key: _gpu(spec) for key, spec in GPUS.items() if not spec.obstacle},
        "models": {key: _model(model) for key, model in MODELS.items()},
        "assumptions": {run: _assumptions(model) for run, model in fitted.items()},
        "families": [
            kind
            for kind, family in FAMILIES.items()
            if family.attention is grouped_query and family.feed_forward is gated and not family.fixed
        ],
        "names": {name: style.name(name) for name in token.RIVALS},
        "tied": TIED,
        "rules": {
            "group_sizes": MODEL_GROUP_SIZES, "degrees": TENSOR_PARALLEL, "ecc_share": ECC_SHARE,
            "sharpness": SHARPNESS, "limiters": LIMITERS, "copy_fraction": COPY_FRACTION, "usable": token.USABLE,
            "rough": token.ROUGH, "rest_us": token.LEAN.rest_us, "rest_layers": token.LEAN.layers,
            "rest_gb_s": GPUS[token.LEAN.gpu].dram_gb_s, "rest_source": token.LEAN.source,
            "rivals": token.RIVALS, "most_tokens": costmodel.MAX_M,
        },
    }  # fmt: skip


def _run(model: costmodel.CostModel) -> dict:
    copy = costmodel.copy_gb_s(model.run)
    return {
        "run_id": model.run_id, "gpu": model.spec.key, "name": model.spec.name, "clock_mhz": model.clock_mhz,
        "overlap_us": model.overlap_us, "copy_gb_s": None if pd.isna(copy) else copy,
        "backends": {
            name: asdict(side.terms)
            | {
                "bits": side.bits, "block_m": side.block_m, "cut": side.cut, "spread": side.spread,
                "overlaps": name in extrapolate.DEPENDENT,
            }
            for name, side in model.backends.items()
        },
        "single": _single(model),
        "pairs": _pairs(model.run),
    }  # fmt: skip


def _single(model: costmodel.CostModel) -> dict[str, float]:
    """Measured medians in us: "backend launch M K N" -> latency."""
    rows = model.observations[model.observations["backend"].isin(model.backends)]
    return {f"{row.backend} {row.launch} {row.M} {row.K} {row.N}": _short(row.latency_us) for row in rows.itertuples()}


def _pairs(run) -> dict[str, list[float]]:
    """FP16 and INT4 of a product timed in the same rounds: "launch M K N group" -> fp16_us, int4_us, speedup, ends."""
    cases = run.cases
    wanted = (cases["status"] == "ok") & (cases["l2_state"] == "cold") & (cases["operands"] == "random")
    wanted &= cases["backend"].isin((BASELINE, INT4)) & cases["launch"].isin(costmodel.LAUNCHES)
    cases = cases[wanted & cases["M"].between(1, costmodel.MAX_M)]
    samples = run.samples[run.samples["case_id"].isin(cases["case_id"])]
    latency = samples.groupby("case_id")["latency_us"].median()
    cases = cases.assign(us=cases["case_id"].map(latency), problem=tables.problem_of(cases))
    on = ["problem", "launch"]
    ours = cases[cases["backend"] == INT4].merge(tables.speedups(cases, samples), on="case_id")
    both = ours.merge(cases.loc[cases["backend"] == BASELINE, [*on, "us"]], on=on, suffixes=("", "_fp16"))
    columns = ["us_fp16", "us", "speedup", "speedup_low", "speedup_high"]
    return {
        f"{row.launch} {row.M} {row.K} {row.N} {row.group_size}": [_short(getattr(row, name)) for name in columns]
        for row in both[["launch", *SHAPE, "group_size", *columns]].itertuples()
    }


def _gpu(spec) -> dict:
    return {
        "name": spec.name, "major": spec.compute_capability[0], "sm_count": spec.sm_count, "memory_gb": spec.memory_gb,
        "dram_gb_s": spec.dram_gb_s, "boost_clock_mhz": spec.boost_clock_mhz, "inline_ecc": spec.inline_ecc,
        "l2_bytes": spec.l2_bytes,
    }  # fmt: skip


def _model(model) -> dict:
    return {
        "hidden": model.hidden, "layers": model.layers, "vocab": model.vocab, "tied": model.tied,
        "weights": [_weight(weight) for weight in model.weights], "cache": _side(model.cache),
        "degrees": possible_degrees(model),
    }  # fmt: skip


def _weight(weight: Weight) -> dict:
    sides = {"K": _side(weight.K), "N": _side(weight.N)}
    return {"layer": weight.layer, "layers": weight.layers, "experts": weight.experts, "used": weight.used} | sides


def _side(side: Side):
    """A number that every GPU holds, or [count, width, repeated] of each span that GPUs share."""
    return side if isinstance(side, int) else [[span.count, span.width, span.repeated] for span in side]


def _assumptions(model: costmodel.CostModel) -> dict[str, dict[str, list[float]]]:
    """GPU -> knob -> the factors between which an assumption about it lies."""
    return {
        key: {each.knob: [each.low, each.high] for each in extrapolate.assumed(model, spec)}
        for key, spec in GPUS.items()
        if not spec.obstacle
    }


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
