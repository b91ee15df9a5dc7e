"""From the rows of Nsight Compute to one row per profiled case: kernels of a call combined by what a metric is."""

from __future__ import annotations

import pandas as pd

from tinygemm.metrics import COLUMNS

TIME_TO_US = {"nsecond": 1e-3, "ns": 1e-3, "usecond": 1, "us": 1, "msecond": 1e3, "ms": 1e3, "second": 1e6, "s": 1e6}
BYTES = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}


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
    name = metric.map(COLUMNS).fillna(metric)
    for unit_of, known in (name == "counter_us", TIME_TO_US), (name.str.endswith("_bytes"), BYTES):
        if (strange := counters[unit_of & ~unit.isin(known)]).size:
            row = strange.iloc[0]
            raise ValueError(f"{row['case_id']}: {row['metric']} is in {row['unit']!r}; known: {', '.join(known)}")
    factor = unit.map(TIME_TO_US | BYTES | {"%": 0.01}).fillna(1.0)
    return {"name": name, "value": counters["value"].astype("float64") * factor, "adds": metric.str.endswith(".sum")}
