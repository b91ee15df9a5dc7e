"""From a recorded run to the tables of the report: DataFrame in, DataFrame out, every join validated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from tinygemm.backends import CEILING, PART, of_family
from tinygemm.digest import kernel_digest, same_kernels
from tinygemm.report.base.intervals import (
    difference_of_medians,
    interval_table,
    median,
    ratio_of_medians,
    sample_matrix,
)
from tinygemm.report.limits.counters import summarize_counters
from tinygemm.runs import Run

BASELINE = "fp16-cublas"
IDEALS = of_family(CEILING)
NO_PRODUCT = of_family(CEILING, PART)  # timed beside the products, never compared with them
GROUP = ["problem", "launch", "l2_state", "operands"]  # backends of one group were timed in the same rounds
SHAPE = ["M", "K", "N"]
GROUP_SIZE = 128  # of the decode cases; other sizes are a suite of their own
LAUNCH_CONFIG = ["form", "block_m", "block_n", "block_k", "split_k", "num_warps", "num_stages", "max_registers"]
LATENCY = ["latency_us_p50", "latency_us_low", "latency_us_high"]


def report_table(run) -> pd.DataFrame:
    """One row per case of a run, with everything the figures draw: `summarize`, `ideals` and `speedups` joined.

    run:     runs.Run, or anything with its `cases` and `samples`
    returns: the columns of cases, then problem, latency_us_p50, _low, _high, achieved_gb_s, tflop_s, frac_peak_bw,
             floor_us, frac_floor, ideal_speedup, speedup_vs_fp16, _low, _high; of a Run also gpu and run_id, which
             captions name
    """
    table = ideals(summarize(run.cases, run.samples))
    speedup = speedups(run.cases, run.samples).rename(columns=lambda name: name.replace("speedup", "speedup_vs_fp16"))
    table = table.merge(speedup, on="case_id", how="left", validate="one_to_one")
    return table.assign(**origin(run))


def only(run: Run, keep: pd.Series) -> Run:
    """A run with some of its cases: what takes every case apart is quicker on the few that a question is about.

    keep: one boolean per row of run.cases
    """
    cases = run.cases[keep]
    kept = {name: getattr(run, name) for name in ("samples", "counters")}
    kept = {name: rows[rows["case_id"].isin(cases["case_id"])] for name, rows in kept.items()}
    return dataclasses.replace(run, cases=cases, **kept)


def suite(run: Run, name: str) -> Run:
    """The cases that one suite of the run's plan asked for, with copy and empty node.

    returns: the whole run where its provenance knows no such suite, as in runs of the first schema
    """
    parts = [part for part in run.provenance["parameters"].get("suites", []) if part["name"] == name]
    if not parts:
        return run
    cases = run.cases.assign(problem=problem_of(run.cases))
    ideal = cases["backend"].isin(IDEALS)
    keep = pd.Series(False, index=cases.index)
    for part in parts:
        shapes = [(g, *s.split(",")) for g, text in part["problems"].items() for s in text.split(";")]
        asked = cases["problem"].isin([f"M{M}-K{K}-N{N}-g{g}" for g, M, K, N in shapes])
        asked &= cases["backend"].isin(part["backends"]) & (cases["operands"] == part["operands"])
        modes = (cases["launch"] + "-" + cases["l2_state"]).isin(["-".join(mode) for mode in part["modes"]])
        keep |= (asked | ideal) & modes
    return only(run, keep)


def primary(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the primary number: timed as a CUDA graph with a cold L2 and random operands.

    Of a product that was timed at several group sizes, the one at the run's usual size: one row per backend, M, K, N.
    """
    rows = table[(table["status"] == "ok") & in_mode(table)]
    size = problem_of(rows).str.extract(r"-g(-?\d+)$", expand=False)
    usual = size == (size.mode().iloc[0] if size.notna().any() else None)
    several = rows[["backend", *SHAPE]].assign(size=size).groupby(["backend", *SHAPE])["size"].transform("nunique") > 1
    return rows[usual | ~several]


def usual(table: pd.DataFrame) -> pd.DataFrame:
    """The timed rows on random data, with a scale per 128 weights where they are quantised.

    There is one per backend, problem and mode, so a table by K, N and M has one number in each place.
    """
    ok = (table["status"] == "ok") & (table["operands"] == "random")
    return table[ok & table["group_size"].isin((0, GROUP_SIZE))]


def at_shapes(table: pd.DataFrame, shapes) -> np.ndarray:
    """The rows of one of these (K, N), as a mask."""
    return pd.MultiIndex.from_frame(table[["K", "N"]]).isin(list(shapes))


def in_mode(table: pd.DataFrame, launch: str = "graph", l2_state: str = "cold") -> pd.Series:
    """The rows timed in this launch mode and cache state, on random operands, as a mask."""
    return (table["launch"] == launch) & (table["l2_state"] == l2_state) & (table["operands"] == "random")


def summarize(cases: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """One row per case: the median latency with its 95 % bootstrap interval, and the rates that follow from it.

    cases, samples: as in cases.csv and samples.csv
    returns:        cases in their order, plus problem (the middle of case_id), latency_us_p50, _low, _high,
                    achieved_gb_s (1e9 bytes/s), tflop_s, frac_peak_bw (of the copy bandwidth of this run);
                    NaN for a case without samples
    raises:         ValueError naming a case whose samples are not the n_samples it claims
    """
    matrix = sample_matrix(cases, samples)
    quantiles = interval_table(matrix.index.to_frame(index=False, name="case_id"), matrix, median, ["case_id"])
    quantiles = quantiles.rename(columns={"value": LATENCY[0], "low": LATENCY[1], "high": LATENCY[2]})
    table = cases.merge(quantiles, on="case_id", how="left", validate="one_to_one")
    seconds = table["latency_us_p50"] * 1e-6
    table = table.assign(
        problem=problem_of(table),
        achieved_gb_s=table["bytes_min"] / seconds / 1e9,
        tflop_s=table["flops"] / seconds / 1e12,
    )
    return table.assign(frac_peak_bw=table["achieved_gb_s"] / copy_bandwidth_gb_s(table))


def ideals(table: pd.DataFrame) -> pd.DataFrame:
    """Add the ideal beside every measurement.

    table:   summarize()
    returns: plus floor_us = bytes_min / copy bandwidth + one empty graph node, both of this run;
             frac_floor = floor_us / latency, 1 at the floor; ideal_speedup = bytes of FP16 / bytes of this case
    """
    fp16_bytes = table.loc[table["backend"] == BASELINE, [*GROUP, "bytes_min"]]
    fp16_bytes = fp16_bytes.rename(columns={"bytes_min": "fp16_bytes"})
    table = table.merge(fp16_bytes, on=GROUP, how="left", validate="many_to_one")
    product = ~table["backend"].isin(NO_PRODUCT)
    floor = (table["bytes_min"] / (copy_bandwidth_gb_s(table) * 1e3) + empty_node_us(table)).where(product)
    return table.assign(
        floor_us=floor,
        frac_floor=floor / table["latency_us_p50"],
        ideal_speedup=(table["fp16_bytes"] / table["bytes_min"]).where(product),
    ).drop(columns="fp16_bytes")


def copy_bandwidth_gb_s(table: pd.DataFrame) -> float:
    """Bandwidth of the run's device-to-device copy, read and written bytes, in 1e9 bytes/s; NaN if not measured."""
    return float(table.loc[(table["backend"] == "copy") & (table["launch"] == "graph"), "achieved_gb_s"].max())


def empty_node_us(table: pd.DataFrame, launch: str = "graph") -> float:
    """Time of one empty node of a CUDA graph in the run, launched so or "primed"; NaN if not measured."""
    return float(table.loc[(table["backend"] == "empty-node") & (table["launch"] == launch), "latency_us_p50"].min())


def speedups(cases: pd.DataFrame, samples: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """The speedup of each case over the baseline of its group, measured in the same rounds.

    returns: case_id, speedup, speedup_low, speedup_high: ratio of medians with its paired 95 % interval;
             no row for a case that was not timed, or whose baseline was not
    """
    timed = _timed(cases)
    base = timed.loc[timed["backend"] == baseline, [*GROUP, "case_id"]].rename(columns={"case_id": "baseline"})
    products = timed[~timed["backend"].isin(NO_PRODUCT)]
    pairs = products.merge(base, on=GROUP, validate="many_to_one")[["baseline", "case_id"]]
    result = interval_table(pairs, sample_matrix(cases, samples), ratio_of_medians, ["baseline", "case_id"])
    names = {"value": "speedup", "low": "speedup_low", "high": "speedup_high"}
    return result.drop(columns="baseline").rename(columns=names)


def breakdown(run, fused: str = "int4", launch: str = "graph", l2_state: str = "cold") -> pd.DataFrame:
    """The parts of the time of a fused INT4 kernel, one row per problem.

    `int4-no-dequant` is the tuned kernel with the dequantisation left out, so fused - no-dequant is what dequantisation
    costs inside it; where the instructions hide behind the loads, that is nothing, or less than nothing. It is the
    number to hold against a loss, not the time of a dequantisation kernel on its own, which also writes the FP16 weight
    to memory. `int4-load-only` reads the same bytes and computes nothing at all: the floor of both.

    returns: problem, M, K, N, then in us: fp16_us, fused_us, no_dequant_us, naive_us (the tuned kernel, dequantising
             the naive way), load_only_us, dequant_only_us (to memory, no product), dequant_fp16_us (to memory, then
             FP16), dequant_in_kernel_us with _low and _high, dequant_share, and speedup, speedup_without_dequant and
             speedup_naive over FP16, each with _low and _high; NaN for a missing part
    """
    cases, samples = run.cases, run.samples
    names = {
        BASELINE: "fp16_us",
        fused: "fused_us",
        "int4-no-dequant": "no_dequant_us",
        "int4-naive-dequant": "naive_us",
        "int4-load-only": "load_only_us",
        "dequant-only": "dequant_only_us",
        "dequant-fp16": "dequant_fp16_us",
    }
    chosen = cases[in_mode(cases, launch, l2_state) & cases["backend"].isin(names)]
    medians = summarize(chosen, samples[samples["case_id"].isin(chosen["case_id"])])
    wide = medians.pivot(index="problem", columns="backend", values="latency_us_p50")
    wide = wide.reindex(columns=list(names)).rename(columns=names).reset_index()
    shapes = medians[["problem", *SHAPE]].drop_duplicates()
    result = shapes.merge(wide, on="problem", validate="one_to_one")
    parts = {
        "dequant_in_kernel_us": (fused, "int4-no-dequant", difference_of_medians),
        "speedup": (BASELINE, fused, ratio_of_medians),
        "speedup_without_dequant": (BASELINE, "int4-no-dequant", ratio_of_medians),
        "speedup_naive": (BASELINE, "int4-naive-dequant", ratio_of_medians),
    }
    for name, (left, right, statistic) in parts.items():
        part = paired(chosen, samples, left, right, statistic)[["problem", "value", "low", "high"]]
        part = part.rename(columns={"value": name, "low": f"{name}_low", "high": f"{name}_high"})
        result = result.merge(part, on="problem", how="left", validate="one_to_one")
    return result.assign(dequant_share=result["dequant_in_kernel_us"] / result["fused_us"])


def paired(
    cases: pd.DataFrame, samples: pd.DataFrame, left: str, right: str, statistic=ratio_of_medians
) -> pd.DataFrame:
    """A statistic of two backends wherever both were timed in the same rounds.

    left, right: backends
    returns:     problem, launch, l2_state, operands, M, K, N, value, low, high
    """
    timed = _timed(cases)
    sides = [timed.loc[timed["backend"] == backend, [*GROUP, *SHAPE, "case_id"]] for backend in (left, right)]
    pairs = sides[0].merge(sides[1].drop(columns=SHAPE), on=GROUP, suffixes=("_left", "_right"), validate="one_to_one")
    operands = ["case_id_left", "case_id_right"]
    return interval_table(pairs, sample_matrix(cases, samples), statistic, operands).drop(columns=operands)


def counters_table(run) -> pd.DataFrame:
    """The counters of a run, one row per profiled case, beside what was timed without a profiler.

    returns: the columns of report_table(run), then those of summarize_counters, and
             traffic_ratio = bytes read and written in DRAM / bytes_min (1 = nothing read twice)
    raises:  ValueError naming a profiled case that cases.csv does not have
    """
    counters = summarize_counters(run.counters)
    if unknown := sorted(set(counters["case_id"]) - set(run.cases["case_id"])):
        raise ValueError(f"counters.csv has {unknown[0]!r}, which is not a case of cases.csv")
    problem = problem_of(run.cases)
    beside = problem.isin(problem[run.cases["case_id"].isin(counters["case_id"])]) | run.cases["backend"].isin(
        NO_PRODUCT
    )
    table = report_table(only(run, beside)).merge(counters, on="case_id", validate="one_to_one")
    moved = table.get("dram_read_bytes", np.nan) + table.get("dram_write_bytes", 0)
    return table.assign(traffic_ratio=moved / table["bytes_min"])


def problem_of(table: pd.DataFrame) -> pd.Series:
    """The problem of each case as its case_id writes it: `M1-K4096-N1024-g128`, or the word of a copy or empty node."""
    return table["case_id"].str.split("/").str[1]


def kernels(run) -> str:
    """The kernels of this checkout compared with those that were measured, in words that follow "the kernels are"."""
    if run.provenance.get("kernel_sha256") is None:
        return "those of the run's commit; this checkout may have others"
    return "those of this checkout" if has_todays_kernels(run) else "those of the run's commit; they changed since"


def has_todays_kernels(run) -> bool:
    """Tell whether the kernels that a run timed are known to be those of this checkout."""
    return same_kernels(run.provenance.get("kernel_sha256"), kernel_digest(run.gpu["key"]))


def origin(run) -> dict[str, str]:
    """The source of the numbers of a recorded run; nothing for cases that were only timed."""
    return {"gpu": run.gpu["name"], "run_id": run.run_id} if isinstance(run, Run) else {}


def _timed(cases: pd.DataFrame) -> pd.DataFrame:
    return cases[cases["status"] == "ok"].assign(problem=problem_of(cases))
