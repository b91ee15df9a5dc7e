"""The tuned kernel against the other INT4 kernels, against reading its bytes alone, and against its own variants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tinygemm.backends import PEER, of_family, with_serial
from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base.contrasts import compare, geometric_mean, medians, primary_cases
from tinygemm.report.base.intervals import sample_matrix
from tinygemm.report.base.tables import GROUP_SIZE, SHAPE, at_shapes, problem_of
from tinygemm.report.limits.tables import static_counts
from tinygemm.runs import DATA_ROOT

LATER = ("humming", "humming-serial")  # the first recorded runs did not ask for them
CONTEXT = "bitsandbytes-nf4"  # four bits, but another format: shown beside the peers, never one of them
PEERS = tuple(name for name in of_family(PEER) if name != CONTEXT)
# reads -> what is held against them: both overlap the call before them, or neither does
READS = {"int4-load-only": "int4", "int4-load-only-serial": "int4-serial"}
OVERLAPPING, SERIAL = READS
TOKENS = (1, 2, 4, 8)
PROBLEM = ["problem", *SHAPE]
QUOTED = DATA_ROOT / "earlier" / "marlin-h200.csv"  # measured before runs were recorded


def contest(run, quoted: Path | None = QUOTED, ours: str = "int4") -> pd.DataFrame:
    """`int4` against the others at the projections of the earlier study, M 1 to 8: one row per problem and backend.

    quoted:  Marlin's times of an earlier measurement, which stand where the run has the GPU they are of and no Marlin
    ours:    what stands for `int4`, as int4_us: `int4-serial` overlaps the call before it no more than they do
    returns: problem, M, K, N, backend, other_us, int4_us, value (other / int4), low, high, kind ("measured" or
             "quoted": without an interval), left_id, right_id, overlaps (the other starts before the call before it
             has finished)
    """
    return _contest(run, quoted, ours).pipe(lambda rows: rows.assign(overlaps=rows["backend"].isin(with_serial())))


def held_against(ours: str = "int4") -> tuple[str, ...]:
    """The peers that `contest` lists: those that overlap beside a kernel of ours that does, else their twins."""
    pairs = with_serial()
    left_out = pairs if ours in pairs.values() else pairs.values()
    return tuple(peer for peer in PEERS if peer not in left_out)


def _contest(run, quoted: Path | None, ours: str) -> pd.DataFrame:
    cases = _study(run)
    rows = [
        compare(run, _of(cases, name), _of(cases, ours), PROBLEM).assign(backend=name, kind="measured")
        for name in (*held_against(ours), CONTEXT)
    ]
    names = {"left_us": "other_us", "right_us": "int4_us"}
    rows = pd.concat([part for part in rows if len(part)] or rows[:1], ignore_index=True).rename(columns=names)
    if quoted is None or "marlin" in set(rows["backend"]) or not quoted.is_file():
        return rows
    table = pd.read_csv(quoted)
    return _with_quoted(rows, table[table["gpu"] == run.gpu["key"]])


def best_peers(rows: pd.DataFrame) -> pd.DataFrame:
    """The fastest INT4 peer of each problem: rows of `contest`, in the order of the study, then by M."""
    rows = rows[rows["backend"].isin(PEERS)].reset_index(drop=True)
    rows = rows.loc[rows.groupby("problem", sort=False)["other_us"].idxmin()]
    place = [STUDY_SHAPES.index(shape) for shape in zip(rows["K"], rows["N"], strict=True)]
    return rows.assign(place=place).sort_values(["place", "M"]).drop(columns="place").reset_index(drop=True)


def mean_over_peers(run, best: pd.DataFrame) -> dict[str, float]:
    """The geometric mean of best peer / int4 over `best_peers`: value, low, high.

    A quoted time has no samples and enters as a constant, so the interval is that of what was measured.
    """
    is_quoted = best["kind"] == "quoted"
    left = best["left_id"].where(~is_quoted, "quoted/" + best["problem"])
    measured = run.cases[run.cases["case_id"].isin({*left, *best["right_id"]})]
    matrix = sample_matrix(measured, run.samples)
    quoted = pd.Series(best["other_us"].to_numpy(), index=left)[is_quoted.to_numpy()]
    constant = pd.DataFrame(dict.fromkeys(matrix.columns, quoted), index=quoted.index)
    return geometric_mean(pd.DataFrame({"left_id": left, "right_id": best["right_id"]}), pd.concat([matrix, constant]))


def fraction_of_reads(run, reads: str = OVERLAPPING) -> pd.DataFrame:
    """The share of the weight-read bound that the tuned kernel reaches.

    returns: problem, M, K, N, value = reads / READS[reads], low, high, left_us (reads), right_us (kernel); every
             problem at the group size of the peers for whose weight the reads were tuned
    """
    cases = _primary(run)
    readers = _of(cases, reads)
    tuned = readers[readers["config_source"] != "rule"]  # at one M: a config that reads no x serves every other
    readers = readers[at_shapes(readers, set(zip(tuned["K"], tuned["N"], strict=True)))]
    rows = compare(run, readers, _of(cases, READS[reads]), PROBLEM)
    return rows.sort_values(["M", "K", "N"]).reset_index(drop=True)


def sixteen_over_eight(run, backend: str = "int4") -> pd.DataFrame:
    """Latency at M = 16 divided by that at M = 8: K, N, value, low, high, left_us (M = 16), right_us (M = 8).

    backend: `int4`, or `int4-one-row`, which has the same instructions and the traffic of one row of activations
    """
    cases = _of(_primary(run), backend)
    return compare(run, cases[cases["M"] == 16], cases[cases["M"] == 8], ["K", "N"])


def formats(run) -> pd.DataFrame:
    """Latency of the kernel in other formats divided by that in FP16 with symmetric groups of 128.

    returns: variant (bfloat16, asymmetric, groups of 32, groups of 64, one group per row), M, K, N, value, low, high,
             bytes_ratio: how many times the bytes must move
    """
    primary = primary_cases(run.cases)
    base = _of(_primary(run), "int4")
    variants = {name: _of(_primary(run), backend) for name, backend in VARIANTS.items()}
    of_group = {f"groups of {size}" if size > 0 else "one group per row": size for size in (32, 64, -1)}
    int4 = _of(primary, "int4")
    variants |= {name: int4[int4["group_size"] == size] for name, size in of_group.items()}
    moved = pd.concat([base, *variants.values()]).drop_duplicates("case_id").set_index("case_id")["bytes_min"]
    rows = [compare(run, cases, base, SHAPE).assign(variant=name) for name, cases in variants.items()]
    rows = pd.concat([part for part in rows if len(part)] or rows[:1], ignore_index=True)
    return rows.assign(bytes_ratio=rows["left_id"].map(moved) / rows["right_id"].map(moved))


def machine_code(run, file: Path) -> pd.DataFrame:
    """Other formats and M = 16 at the study's projections: how long they take, and what their machine code says.

    file:    limiters.static_file of the run's GPU
    returns: variant ("float16" for FP16 activations and symmetric groups of 128), M, K, N, latency_us, ratio (to
             float16 at the same M, of M = 16 to M = 8), per_weight (instructions of the main loop), registers,
             warps_per_sm (that fit), fewer_warps (than in the case it is divided by); cases of the very launch config
             that was compiled
    """
    formats = {(backend, GROUP_SIZE): variant for variant, backend in VARIANTS.items()}
    formats |= {("int4", GROUP_SIZE): "float16"} | {("int4", size): f"groups of {size}" for size in (64, 32)}
    cases = primary_cases(run.cases)
    cases = cases[at_shapes(cases, STUDY_SHAPES) & cases["backend"].isin({backend for backend, _ in formats})]
    columns = ["per_weight", "registers", "warps_per_sm"]
    if not file.is_file():
        cases = cases.head(0).assign(**dict.fromkeys(columns, float("nan")))
    else:
        cases = static_counts(cases, file, dict(zip(columns, columns, strict=True)))
    rows = cases.dropna(subset=columns)
    rows["variant"] = [formats.get(key) for key in zip(rows["backend"], rows["group_size"], strict=True)]
    rows["latency_us"] = rows["case_id"].map(medians(run, rows))
    rows["base_m"] = rows["M"].where(rows["M"] != 16, 8)
    base = rows[rows["variant"] == "float16"][["M", "K", "N", "latency_us", "warps_per_sm"]]
    rows = rows.merge(base.rename(columns={"M": "base_m"}), on=["base_m", "K", "N"], suffixes=("", "_base"))
    rows = rows.assign(
        ratio=rows["latency_us"] / rows["latency_us_base"], fewer_warps=rows["warps_per_sm"] < rows["warps_per_sm_base"]
    )
    kept = ["variant", "M", "K", "N", "latency_us", "ratio", *columns, "fewer_warps"]
    return rows[rows["variant"].notna()][kept].sort_values(["K", "N", "M", "ratio"]).reset_index(drop=True)


def beyond_reads(run, M: int = 1) -> dict[str, float]:
    """The fit of the kernel's time to that of its reads over the shapes of a run at one M, calls overlapping.

    returns: n shapes; least_us and most_us, by which the kernel exceeds its reads; reads_least_us and reads_most_us;
             fixed_us and times of the line kernel = fixed_us + times * reads by least squares; empty for fewer than 3
    """
    rows = fraction_of_reads(run)
    rows = rows[rows["M"] == M]
    if len(rows) < 3:
        return {}
    reads, beyond = rows["left_us"], rows["right_us"] - rows["left_us"]
    times, fixed_us = np.polyfit(reads, rows["right_us"], 1)
    found = {"n": len(rows), "least_us": beyond.min(), "most_us": beyond.max(), "fixed_us": fixed_us, "times": times}
    found |= {"reads_least_us": reads.min(), "reads_most_us": reads.max()}
    return {name: float(value) for name, value in found.items()}


def heldout(run) -> pd.DataFrame:
    """Latency of `int4` divided by that of the fastest candidate for the very shape, on shapes kept out of tuning:
    problem, M, K, N, value, low, high."""
    cases = _primary(run)
    return compare(run, _of(cases, "int4"), _of(cases, "int4-searched"), PROBLEM)


VARIANTS = {"bfloat16": "int4-bf16", "asymmetric": "int4-asymmetric"}


def _primary(run) -> pd.DataFrame:
    """The primary cases at the group size of the peers, which FP16 cases of the same problems carry in their id."""
    cases = primary_cases(run.cases)
    cases = cases.assign(problem=problem_of(cases))
    return cases[cases["problem"].str.endswith(f"-g{GROUP_SIZE}")]


def _study(run) -> pd.DataFrame:
    cases = _primary(run)
    shapes = at_shapes(cases, STUDY_SHAPES)
    return cases[shapes & cases["M"].isin(TOKENS)]


def _of(cases: pd.DataFrame, backend: str) -> pd.DataFrame:
    return cases[cases["backend"] == backend]


def _with_quoted(rows: pd.DataFrame, quoted: pd.DataFrame) -> pd.DataFrame:
    """Quoted times beside the measured ones. Where M lies between two quoted values, the shorter of the two times
    stands for it, so that the comparison errs against `int4`."""
    found = []
    for row in rows.drop_duplicates("problem")[[*PROBLEM, "int4_us", "right_id"]].to_dict("records"):
        times = quoted[(quoted["K"] == row["K"]) & (quoted["N"] == row["N"])]
        at = times[times["M"] == row["M"]]
        between = times["M"].min() < row["M"] < times["M"].max()
        if len(at) or between:
            best = (at if len(at) else times)["value"].min()
            known = {"backend": "marlin", "kind": "quoted", "other_us": best, "value": best / row["int4_us"]}
            found.append(row | known | {"left_id": None, "low": np.nan, "high": np.nan})
    return pd.concat([rows, pd.DataFrame(found)], ignore_index=True) if found else rows
