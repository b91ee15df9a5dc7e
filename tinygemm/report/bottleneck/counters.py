"""From the rows of Nsight Compute to one row per profiled case: kernels of a call combined by what a metric is."""

from __future__ import annotations

import pandas as pd

TIME_TO_US = {"nsecond": 1e-3, "ns": 1e-3, "usecond": 1, "us": 1, "msecond": 1e3, "ms": 1e3, "second": 1e6, "s": 1e6}
BYTES = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}
PIPES = ("alu", "fma", "fp16", "lsu", "tensor", "uniform", "xu")
STALL_REASONS = (
    "long_scoreboard", "short_scoreboard", "barrier", "membar", "wait", "mio_throttle", "lg_throttle",
    "math_pipe_throttle", "not_selected", "selected", "branch_resolving", "dispatch_stall", "drain", "no_instruction",
    "imc_miss",
)  # fmt: skip
COUNTER_COLUMNS = {
    "gpu__time_duration.sum": "counter_us",
    "dram__bytes_read.sum": "dram_read_bytes",
    "dram__bytes_write.sum": "dram_write_bytes",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "frac_dram",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "frac_dram",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "frac_sm",
    "sm__issue_active.avg.pct_of_peak_sustained_elapsed": "frac_issue",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "frac_issue",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "frac_warps",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "frac_l2",
    "lts__t_sector_hit_rate.pct": "l2_hit_rate",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "frac_tensor",
    "sm__maximum_warps_per_active_cycle_pct": "occupancy_limit",
    "launch__grid_size": "programs",
    "launch__registers_per_thread": "registers",
    "smsp__inst_executed.sum": "instructions",
    **{f"sm__inst_executed_pipe_{pipe}.sum": f"instructions_{pipe}" for pipe in PIPES},
    **{f"smsp__average_warps_issue_stalled_{why}_per_issue_active.ratio": f"stalled_{why}" for why in STALL_REASONS},
}


def summarize_counters(counters: pd.DataFrame) -> pd.DataFrame:
    """One row per profiled case: kernels of a call combined, then the median over its calls.

    Time, bytes and counts of the kernels of one call add up; percentages and other ratios are weighted by duration.

    counters: as in counters.csv
    returns:  case_id, n_kernels (of one call), counter_us (never a latency: a profiler slows and flushes),
              dram_read_bytes, frac_dram, frac_l2, l2_hit_rate, frac_sm, frac_tensor (of active time), frac_issue,
              frac_warps (achieved occupancy), occupancy_limit (theoretical), all 0..1; programs, registers (a thread);
              instructions and instructions_<pipe> in warps; stalled_<reason>: warps that wait so per issue; as far as
              they were collected, and every other metric under ncu's name
    raises:   ValueError naming a case whose call has several kernels but not the duration of each to weight what does
              not add up, or whose time or bytes are in a unit that is not known here
    """
    rows = counters.assign(**_base_units(counters))
    kernel = ["case_id", "call", "launch", "kernel_name"]
    duration = rows.loc[rows["name"] == "counter_us", [*kernel, "value"]].rename(columns={"value": "duration"})
    rows = rows.merge(duration, on=kernel, how="left", validate="many_to_one")
    kernels = rows.groupby(["case_id", "call"])["launch"].transform("nunique")
    if (lacking := rows[rows["duration"].isna() & (kernels > 1) & ~rows["adds"]]).size:
        raise ValueError(
            f"{lacking['case_id'].iloc[0]}: a call of several kernels needs gpu__time_duration.sum of each, "
            f"to weight their percentages; {lacking['kernel_name'].iloc[0]} has none"
        )
    weight = rows["duration"].fillna(1.0)
    rows = rows.assign(kernels=kernels, weight=weight, product=rows["value"] * weight)
    keys = ["case_id", "call", "name"]
    calls = rows.groupby(keys, sort=False).agg(
        total=("value", "sum"), product=("product", "sum"), weight=("weight", "sum"), adds=("adds", "first")
    )
    calls["value"] = calls["total"].where(calls["adds"], calls["product"] / calls["weight"])
    result = calls.groupby(["case_id", "name"], sort=False)["value"].median().unstack("name").rename_axis(columns=None)
    result.insert(0, "n_kernels", rows.groupby("case_id")["kernels"].max())
    return result.reset_index()


def _base_units(counters: pd.DataFrame) -> dict[str, pd.Series]:
    """Each row's short name, value in us, bytes or 0..1, and whether it adds up over the kernels of a call."""
    unit, metric = counters["unit"].astype("str"), counters["metric"]
    name = metric.map(COUNTER_COLUMNS).fillna(metric)
    for unit_of, known in (name == "counter_us", TIME_TO_US), (name.str.endswith("_bytes"), BYTES):
        if (strange := counters[unit_of & ~unit.isin(known)]).size:
            row = strange.iloc[0]
            raise ValueError(f"{row['case_id']}: {row['metric']} is in {row['unit']!r}; known: {', '.join(known)}")
    factor = unit.map(TIME_TO_US | BYTES | {"%": 0.01}).fillna(1.0)
    return {"name": name, "value": counters["value"].astype("float64") * factor, "adds": metric.str.endswith(".sum")}
