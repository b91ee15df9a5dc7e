"""Text and tables of the chapter on launching."""

from __future__ import annotations

import math

import pandas as pd
from IPython.display import Markdown

from tinygemm.report.base import host as hosts
from tinygemm.report.base import style
from tinygemm.report.base.page import folded
from tinygemm.report.base.tables import empty_node_us
from tinygemm.report.base.words import interval_texts, shape_name, shape_names
from tinygemm.report.gains import launch

HOST = {
    "name": ("Backend", ""),
    "host_us": ("from Python, µs", ".1f"),
    "interval": ("95 % interval", ""),
    "device_us": ("in a graph, µs", ".1f"),
}
OVERLAPS = {
    "name": ("Backend", ""),
    "shape": ("K×N", ""),
    "left_us": ("one after the other, µs", ".2f"),
    "right_us": ("overlapping, µs", ".2f"),
    "value": ("ratio", ".2f"),
    "interval": ("95 % interval", ""),
}
CHAIN = {
    "shape": ("K×N", ""),
    "fp16-cublas_bytes_us": ("FP16 bytes, µs", ".2f"),
    "fp16-cublas_beside_us": ("beside, µs", ".2f"),
    "int4_bytes_us": ("INT4 bytes, µs", ".2f"),
    "int4_beside_us": ("beside, µs", ".2f"),
    "int4-serial_beside_us": ("beside, no overlap, µs", ".2f"),
}


def host_bound(table: pd.DataFrame, K: int = 4096) -> Markdown:
    """Up to which N the host sets the time of an eager call, for FP16 and for the tuned kernel."""
    sentences = []
    for backend in ("fp16-cublas", "int4"):
        found = launch.host_bound(table, backend, K=K)
        if not found:
            continue
        name, host, last = style.name(backend), found["host_us"], found["last_bound_N"]
        if math.isnan(last):
            where = "the device needs less at no N measured"
        elif math.isnan(found["first_free_N"]):
            where = f"the device needs less up to N = {last:.0f}, and clearly longer at no N measured"
        else:
            where = (
                f"the device needs less up to N = {last:.0f}, and clearly longer from N = {found['first_free_N']:.0f}"
            )
        sentences.append(f"{name} takes {host:.1f} µs at the narrowest N of a steady host; {where}.")
    return Markdown(" ".join(sentences) or f"*This run did not time K = {K} from Python and as a graph.*")


def steadiness(table: pd.DataFrame) -> Markdown:
    """The speed of the host in every group, by a kernel whose work on the host is always the same."""
    rows = hosts.steadiness(table)
    if len(rows) < 2:
        return Markdown("*This run did not time `int4-load-only` from Python in several groups.*")
    slow = rows[rows["slow"]].sort_values("ratio", ascending=False)
    told = (
        f"Times from Python depend on how fast the host was while their group was timed, and no interval contains "
        f"that. `int4-load-only` asks the same of the host at every shape: its calls took "
        f"{rows['latency_us'].median():.1f} µs in the median of {len(rows)} groups, and "
        f"{rows['latency_us'].min():.1f} to {rows['latency_us'].max():.1f} µs in all."
    )
    if len(slow):
        shapes = [f"{shape_name((row.K, row.N))}, M = {row.M}" for row in slow.itertuples()]
        told += (
            f" In {len(slow)} it took more than {hosts.SLOW:g} times the median, so every time from Python of these "
        )
        told += (
            f"groups is of a slow host, and none of them stands in a card, a table or a figure: {'; '.join(shapes)}."
        )
    return Markdown(told)


def host(table: pd.DataFrame) -> pd.DataFrame:
    """launch.host_costs with names, cheapest first."""
    rows = launch.host_costs(table).sort_values("host_us")
    interval = interval_texts(rows, ".1f", ("host_us_low", "host_us_high"))
    return rows.assign(name=rows["backend"].map(style.name), interval=interval)


def primed(table: pd.DataFrame) -> Markdown:
    """The time of an empty node, and its time after a dependent launch.

    table: report_table of the whole run
    """
    settled, after = (empty_node_us(table, launch) for launch in ("graph", "primed"))
    if math.isnan(after):
        return Markdown("*This run did not time an empty node after a dependent launch.*")
    return Markdown(
        f"An empty node takes {settled:.2f} µs in the settled state, and {after:.2f} µs where kernels with the "
        "attribute of dependent launch were launched before each round, though its graph holds the same nodes and none "
        "of them has the attribute."
    )


def overlaps(run) -> pd.DataFrame:
    """launch.overlaps with names and shapes."""
    rows = launch.overlaps(run)
    shape = shape_names(rows)
    return rows.assign(name=rows["backend"].map(style.name), shape=shape, interval=interval_texts(rows))


def token(step: pd.DataFrame) -> Markdown:
    """The time of all products of a token, eager and in graphs."""
    if step.empty:
        return Markdown("*This run did not time every projection of the step.*")
    total = step.iloc[-1]
    fp16, int4 = (
        [total[f"{backend}_{mode}"] / 1e3 for mode in ("eager", "graph")] for backend in ("fp16-cublas", "int4")
    )
    graphs = f"{fp16[1]:.2f} ms in FP16 and {int4[1]:.2f} ms in INT4 in graphs"
    if math.isnan(fp16[0] + int4[0]):
        shapes = ", ".join(step.loc[step["int4_eager"].isna() & (step["shape"] != "–"), "shape"])
        return Markdown(
            f"So a token's products take {graphs}. From Python there is no sum: the host was slow at {shapes}."
        )
    return Markdown(f"So a token's products take {graphs}, and {fp16[0]:.2f} ms and {int4[0]:.2f} ms from Python.")


def host_table(table: pd.DataFrame) -> Markdown:
    """The cost of a call on the host with each backend, folded."""
    caption = "One call at the smallest weight that was timed on a steady host"
    return folded("What a call costs the host", host(table), HOST, "tab-host", caption)


def chain_table(table: pd.DataFrame) -> Markdown:
    """A call in a row of calls: its bytes, and what it takes besides."""
    rows = launch.chain(table)
    caption = "One call in a row at M = 1: its bytes at the copy bandwidth of this run, and what it takes besides"
    return folded("A call in a row: bytes, and the rest", rows, CHAIN, "tab-chain", caption)


def overlap_table(run) -> Markdown:
    """Every kernel that was timed with and without overlap, folded."""
    caption = "The tuned kernel, and the weight-read bound, without and with overlap, M = 1"
    return folded("Without and with overlap, every shape", overlaps(run), OVERLAPS, "tab-overlap-all", caption)
