"""The sources of a speedup: the path from FP16 to INT4 as factors, each the effect of one change."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base import contrasts
from tinygemm.report.base.intervals import log_share
from tinygemm.report.base.tables import BASELINE, origin

# step -> (from, to), each (backend, launch); neighbours on the path differ in one thing
PATH = {
    "launch": ((BASELINE, "eager"), (BASELINE, "graph")),
    "kernel": ((BASELINE, "graph"), ("fp16-triton", "graph")),
    "weight-read bound": (("fp16-triton", "graph"), ("int4-load-only", "graph")),
    "multiply, wait": (("int4-load-only", "graph"), ("int4-no-dequant", "graph")),
    "dequantise": (("int4-no-dequant", "graph"), ("int4", "graph")),
}
# several steps taken at once, and the same path over the serial weight-read bound
BESIDE = {
    "dequantise, multiply": (("int4-load-only", "graph"), ("int4", "graph")),
    "weight-read bound, serial": (("fp16-triton", "graph"), ("int4-load-only-serial", "graph")),
    "multiply, wait, serial": (("int4-load-only-serial", "graph"), ("int4-no-dequant", "graph")),
    "dequantise, multiply, serial": (("int4-load-only-serial", "graph"), ("int4", "graph")),
    "fewer bits": (("fp16-triton", "graph"), ("int4", "graph")),
    "launch of INT4": (("int4", "eager"), ("int4", "graph")),
    "eager total": ((BASELINE, "eager"), ("int4", "eager")),
    "total": ((BASELINE, "graph"), ("int4", "graph")),
    "total with launch": ((BASELINE, "eager"), ("int4", "graph")),
}


def steps(run) -> pd.DataFrame:
    """Every step of the path from FP16 to INT4, and the totals, one row per problem and step.

    value = time before / time after, so that a step above 1 makes the product faster, and steps multiply to totals.

    returns: problem, M, K, N, step, left_us, right_us (medians before and after), value, low, high (paired 95 %
             interval; across launch modes independent), gpu, run_id; no row for a step of which an end was not timed
    """
    return contrasts.changes(run, contrasts.timed(run), PATH | BESIDE, "step").assign(**origin(run))


def path(rows: pd.DataFrame) -> pd.DataFrame:
    """The steps of one problem in their order, from the first FP16 time to INT4 in a graph.

    The path leads over the reads that do not overlap, where the run timed them. It has no launch step where no eager
    call was timed. Multiplying and dequantising are one step where the kernel without dequantisation was not timed.
    It is empty where the path has another gap.

    rows:    those of one problem in steps(run)
    returns: plus the column `label`
    """
    there = rows.drop_duplicates("step").set_index("step", drop=False)
    bound = ", serial" if "weight-read bound, serial" in there.index else ""
    apart = [f"multiply, wait{bound}", "dequantise"]
    together = [f"dequantise, multiply{bound}"]
    wanted = ["launch", "kernel", f"weight-read bound{bound}", *(apart if set(apart) <= set(there.index) else together)]
    wanted = wanted if "launch" in there.index else wanted[1:]
    if not set(wanted) <= set(there.index):
        return there.iloc[:0].assign(label=[])
    return there.loc[wanted].assign(label=[step.removesuffix(", serial") for step in wanted])


# the three steps of the figure in both orders; without a serial FP16 kernel, kernel and overlap come as one step
SERIAL_FP16 = ("fp16-triton-serial", "graph")
BITS_LAST = {
    "kernel": ((BASELINE, "graph"), SERIAL_FP16),
    "overlap": (SERIAL_FP16, ("fp16-triton", "graph")),
    "kernel and overlap": ((BASELINE, "graph"), ("fp16-triton", "graph")),
    "bits": (("fp16-triton", "graph"), ("int4", "graph")),
}
OVERLAP_LAST = {
    "kernel and bits": ((BASELINE, "graph"), ("int4-serial", "graph")),
    "overlap": (("int4-serial", "graph"), ("int4", "graph")),
}
ORDERS = {"bits last": BITS_LAST, "overlap last": OVERLAP_LAST}


def three_steps(run, M: int = 1) -> pd.DataFrame:
    """Kernel, overlap and bits as the steps from the library's FP16 to INT4, in two orders, both in graphs.

    returns: order (of ORDERS), step, problem, M, K, N, left_us, right_us, value (their ratio), low, high, gpu, run_id;
             the steps of one problem and order join; no rows for an order of which an end was not timed
    """
    cases, found = contrasts.timed(run, M), []
    for order, ends in ORDERS.items():
        rows = contrasts.changes(run, cases, ends, "step")
        for _, of in rows.groupby("problem", sort=False):
            names = set(of["step"])
            apart = [step for step in ends if step != "kernel and overlap"]
            chosen = apart if set(apart) <= names else [step for step in ends if step not in ("kernel", "overlap")]
            if set(chosen) <= names and (order == "bits last" or chosen == list(ends)):
                found.append(of.set_index("step").loc[chosen].reset_index().assign(order=order))
    columns = ["order", "step", "problem", "M", "K", "N", "left_us", "right_us", "value", "low", "high"]
    return pd.concat(found or [pd.DataFrame(columns=columns)], ignore_index=True).assign(**origin(run))


def shares(run, M: int = 1) -> pd.DataFrame:
    """The kernel's part of the gain over cuBLAS, one row per problem; the rest is that of fewer bits.

    share = log(cuBLAS / our FP16) / log(cuBLAS / INT4): above 1/2 the kernel is the larger factor of the two; below 0
    our FP16 kernel is slower than cuBLAS, above 1 fewer bits lose. A share of a gain that may be none is not a number
    to read: `gain_low` says whether there is one.

    returns: problem, M, K, N, share with _low and _high, gain (cuBLAS / INT4) with _low and _high
    """
    ends = {"cublas": (BASELINE, "graph"), "twin": ("fp16-triton", "graph"), "int4": ("int4", "graph")}
    rows = contrasts.pairs(contrasts.timed(run, M), ends)
    gain = contrasts.contrast(run, rows, ["cublas", "int4"])
    share = contrasts.contrast(run, rows, list(ends), log_share)
    both = {f"{name}{end}": of[column] for name, of in (("share", share), ("gain", gain))
            for end, column in (("", "value"), ("_low", "low"), ("_high", "high"))}  # fmt: skip
    return gain[["problem", "M", "K", "N"]].assign(**both)
