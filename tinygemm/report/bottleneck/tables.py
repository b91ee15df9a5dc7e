"""The limit of a kernel, by a stated rule from its counters; and its instructions, counted statically and executed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from tinygemm.metrics import COLUMNS
from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base.tables import LAUNCH_CONFIG, counters_table, primary
from tinygemm.runs import DATA_ROOT

# Nsight Compute's own rules (section SpeedOfLight): below 60 % of peak neither compute nor memory limits a kernel.
BOUND = 0.60
MARGIN = 0.02  # counters of a few calls have no interval: nearer than this to the line, the answer is not sure
COPY_FRACTION = 2 / 3  # of the speed of a copy, which is below the datasheet's: near BOUND of the latter
REREAD = 1.2  # times the least bytes: of a call that moves more, the least says nothing about its rate
FEW_PROGRAMS = 0.9  # programs / SMs: a few idle SMs do not explain an idle DRAM
FEW_WARPS = 0.25  # of those an SM can hold: with less than 4 of 16 per scheduler, waits are hardly hidden
WARP = 32

# what a column of the table is read from, by ncu's name of the metric
BUSY = {
    "dram": r"^dram__throughput\.avg\.pct|dram_throughput\.avg\.pct",
    "l2": r"^lts__(t_)?throughput\.avg\.pct",
    "sm": r"^sm__throughput\.avg\.pct",
    "tensor": r"pipe_tensor\w*\.avg\.pct",
    "issue": r"issue_active\.avg\.pct",
    "warps": r"warps_active\.avg\.pct",
}
OCCUPANCY = r"maximum_warps_per_active_cycle_pct"  # what registers and shared memory leave room for
STALL = re.compile(r"stalled?_(\w+?)_per_(?:warp|issue)_active")
PIPE = re.compile(r"^sm(?:sp)?__(?:inst_executed_pipe|sass_thread_inst_executed_op)_(\w+?)(?:_pred_on)?\.sum$")
EXECUTED = "smsp__inst_executed.sum"
GRID = "launch__grid_size"

UNITS = {"dram": "DRAM", "l2": "L2", "sm": "SM"}  # whichever of them is busiest is asked first
PASSED_ON = 0.10  # what comes from DRAM passes L2, so L2 is a limit of its own only where it is this much busier
STALLS = {
    "long_scoreboard": "waiting for memory",
    "short_scoreboard": "waiting for shared memory",
    "barrier": "waiting at a barrier",
    "membar": "waiting for its writes to be seen",
    "wait": "waiting out fixed latencies",
    "math_pipe_throttle": "queueing for arithmetic",
    "mio_throttle": "queueing for shared memory",
    "lg_throttle": "queueing for loads",
    "tex_throttle": "queueing for loads",
    "drain": "draining its stores",
    "no_instruction": "fetching instructions",
    "no_instructions": "fetching instructions",
    "branch_resolving": "resolving branches",
    "dispatch_stall": "dispatching",
    "imc_miss": "fetching constants",
    "sleeping": "sleeping",
    "gmma": "waiting for the tensor cores",
}
NOT_A_STALL = ("selected", "not_selected")  # a warp that issues, and one that could: neither waits
ROUTE = "dequantise"  # the form of a call that writes the weight out as FP16 first: two kernels, none of them fused
STATIC = ["backend", "M", "K", "N", "group_size", *LAUNCH_CONFIG]  # what a row of the static counts is of


def limiter(busy: dict[str, float], stalls: dict[str, float] | None = None, programs_per_sm: float = np.nan) -> str:
    """Name what limits a kernel.

    1. Of DRAM, L2 and SM the busiest limits it, if it is busy for at least 60 %; DRAM in place of an L2 that is hardly
       busier than it. If it is the SM: its tensor cores or its issue slots, if they are, too.
    2. Otherwise latency does: because there are fewer than 0.9 programs for each SM, or else for the reason for which
       its warps wait most. It is said to have few warps where less than a quarter of those that fit are resident.

    busy:            dram, l2, sm, tensor, issue, warps in 0..1, as far as they were read (NaN or absent: not)
    stalls:          reason, as ncu names it -> share of the warps' time in 0..1
    programs_per_sm: programs launched / SMs; NaN where it is not known
    """
    busy = {name: value for name, value in busy.items() if not pd.isna(value)}
    units = _askable(busy)
    if not units:
        return "not known"
    top = max(units, key=units.get)
    if units[top] >= BOUND:
        inside = {"tensor cores": busy.get("tensor", 0), "issue slots": busy.get("issue", 0)}
        deepest = max(inside, key=inside.get)
        return deepest if top == "sm" and inside[deepest] >= BOUND else UNITS[top]
    waits = {reason: share for reason, share in (stalls or {}).items() if reason not in NOT_A_STALL and share > 0}
    if programs_per_sm < FEW_PROGRAMS:
        why = "fewer programs than SMs"
    elif waits:
        longest = max(waits, key=waits.get)
        why = STALLS.get(longest, longest.replace("_", " "))
    else:
        why = ""
    few = "few warps" if busy.get("warps", 1) < FEW_WARPS else ""
    return "latency" + (f": {', '.join(filter(None, (why, few)))}" if why or few else "")


def is_sure(busy: dict[str, float]) -> bool:
    """Tell whether the part of the answer before the colon would stand if each counter were off by two points."""
    known = {name: value for name, value in busy.items() if not pd.isna(value)}
    if abs(known.get("l2", np.nan) - known.get("dram", np.nan) - PASSED_ON) < MARGIN and known["l2"] >= BOUND:
        return False
    units = sorted(_askable(known).values(), reverse=True)
    if not units or abs(units[0] - BOUND) < MARGIN:
        return False
    return units[0] < BOUND or len(units) == 1 or units[0] - units[1] >= MARGIN


def limited_by_bytes(rate: float) -> bool:
    """Tell whether its bytes take most of the time of a call among others: the one rule for calls in a row.

    rate: of the speed of a copy in the same run, in 0..1
    """
    return rate >= COPY_FRACTION


def in_a_row(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """`readings` beside what the clock says of the same case among calls in a row.

    table:   tables.report_table(run)
    returns: plus rate (of the speed of a copy; NaN where not timed, or where the profiler saw more than REREAD times
             the least bytes, which the rate counts) and row_limiter ("memory", "not memory", "" without a rate)
    """
    timed = primary(table)[["case_id", "frac_peak_bw"]].rename(columns={"frac_peak_bw": "rate"})
    rows = rows.merge(timed, on="case_id", how="left", validate="one_to_one")
    rows["rate"] = rows["rate"].where(~(rows["traffic_ratio"] > REREAD))
    words = ["" if pd.isna(rate) else "memory" if limited_by_bytes(rate) else "not memory" for rate in rows["rate"]]
    return rows.assign(row_limiter=words)


def readings(run) -> pd.DataFrame:
    """Every profiled case with what its counters say, in the order of the study's shapes, then M.

    returns: the columns of tables.counters_table, then dram, l2, sm, tensor, issue, warps, occupancy (at most), all in
             0..1, NaN where not collected; programs_per_sm; per_weight (thread instructions executed per weight);
             stall_<reason> (shares that add up to 1); pipe_<name> (thread instructions per weight); limiter, sure
    """
    if run.counters.empty:
        return pd.DataFrame()
    rows = counters_table(run)
    named = {column: NCU_NAMES.get(column, column) for column in rows.columns}
    for name, pattern in (BUSY | {"occupancy": OCCUPANCY}).items():
        found = [column for column, metric in named.items() if re.search(pattern, metric)]
        rows[name] = rows[found].bfill(axis=1).iloc[:, 0].astype(float) if found else np.nan
    weights = rows["K"] * rows["N"]
    executed = next((column for column, metric in named.items() if metric == EXECUTED), None)
    rows["per_weight"] = WARP * rows[executed] / weights if executed else np.nan
    rows = rows.assign(**_stall_shares(rows, named), **_pipes(rows, named, weights))
    rows["programs_per_sm"] = _programs(rows, named) / run.gpu["sm_count"]
    stalls = [column for column in rows if column.startswith("stall_")]
    found = [
        (limiter(row[list(BUSY)], _reasons(row[stalls]), row["programs_per_sm"]), is_sure(row[list(UNITS)]))
        for _, row in rows.iterrows()
    ]
    rows = rows.assign(limiter=[name for name, _ in found], sure=[sure for _, sure in found])
    place = {shape: i for i, shape in enumerate(STUDY_SHAPES)}
    order = [place.get(shape, len(place)) for shape in zip(rows["K"], rows["N"], strict=True)]
    rank = {name: i for i, name in enumerate(("fp16-cublas", "int4-static", "int4"))}
    rows = rows.assign(order=order, rank=rows["backend"].map(rank).fillna(len(rank)))
    return (
        rows.sort_values(["M", "order", "rank"], kind="stable").drop(columns=["order", "rank"]).reset_index(drop=True)
    )


def marked(rows: pd.DataFrame) -> pd.Series:
    """The limit of each row of `readings`, with (?) where its counters nearly say otherwise: no claim rests on it."""
    unit, colon, why = (rows["limiter"].str.partition(":")[i] for i in range(3))
    return unit + rows["sure"].map({True: "", False: " (?)"}) + colon + why


def static_file(gpu_key: str, root: Path = DATA_ROOT) -> Path:
    """The file in which `tinygemm static-cost` keeps the counts of a GPU."""
    return root / "static" / f"{gpu_key}.csv"


def with_static(rows: pd.DataFrame, file: Path) -> pd.DataFrame:
    """`readings` beside the instructions counted in the compiled kernel of the same launch config.

    returns: plus static_low, static_high (thread instructions per weight: the main loop alone; everything executed once
             besides), agrees (True, False, or missing where one of the two is); NaN without a row of that config
    """
    if not file.is_file() or rows.empty:
        return rows.assign(static_low=np.nan, static_high=np.nan, agrees=None)
    rows = static_counts(rows, file, {"per_weight": "static_low", "per_weight_high": "static_high"})
    between = (rows["per_weight"] >= (1 - MARGIN) * rows["static_low"]) & (
        rows["per_weight"] <= (1 + MARGIN) * rows["static_high"]
    )
    return rows.assign(
        agrees=between.astype(object).where(rows["per_weight"].notna() & rows["static_low"].notna(), None)
    )


def static_counts(rows: pd.DataFrame, file: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Cases beside what was counted in the compiled kernel of the very same launch config; NaN without a row of it.

    columns: of the file -> their names here
    """
    static = pd.read_csv(file).rename(columns=columns)
    # runs of the first schema do not know the limit of registers
    keys = [name for name in STATIC if name != "max_registers" or rows[name].notna().any()]
    static = static[[*keys, *columns.values()]].drop_duplicates(keys)
    return rows.merge(static, on=keys, how="left", validate="many_to_one")


def _askable(busy: dict[str, float]) -> dict[str, float]:
    """The units that can be named as the limit, with how busy they are; not an L2 that passes on what DRAM sends."""
    units = {name: busy[name] for name in UNITS if name in busy}
    if "dram" in units and units.get("l2", 0) - units["dram"] < PASSED_ON:
        units.pop("l2", None)
    return units


NCU_NAMES = {column: metric for metric, column in COLUMNS.items()}


def _reasons(shares: pd.Series) -> dict[str, float]:
    return {name.removeprefix("stall_"): share for name, share in shares.items() if not pd.isna(share)}


def _stall_shares(rows: pd.DataFrame, named: dict[str, str]) -> dict[str, pd.Series]:
    """stall_<reason>: of the time of a resident warp, the share that it spends so."""
    found = {column: match[1] for column, metric in named.items() if (match := STALL.search(metric))}
    total = rows[list(found)].sum(axis=1).where(lambda total: total > 0)
    return {f"stall_{reason}": rows[column] / total for column, reason in found.items()}


def _pipes(rows: pd.DataFrame, named: dict[str, str], weights: pd.Series) -> dict[str, pd.Series]:
    """pipe_<name>: thread instructions per weight; ncu counts a pipe's in warps, an operation's in threads."""
    found = {column: match[1] for column, metric in named.items() if (match := PIPE.match(metric))}
    threads = {column: 1 if "thread" in named[column] else WARP for column in found}
    return {f"pipe_{name}": threads[column] * rows[column] / weights for column, name in found.items()}


def _programs(rows: pd.DataFrame, named: dict[str, str]) -> pd.Series:
    """Programs of one call: as ncu counted them, or from the launch config; NaN where neither is known."""
    counted = next((column for column, metric in named.items() if metric == GRID), None)
    tiles = np.ceil(rows["N"] / rows["block_n"]) * np.ceil(rows["M"] / rows["block_m"]) * rows["split_k"]
    return rows[counted].fillna(tiles) if counted else tiles
