"""Text and tables of the chapter on peers and targets: every case in a table, with quoted times marked."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from tinygemm.report.base import claims, style
from tinygemm.report.base.page import lacks, table
from tinygemm.report.base.words import interval_texts, shape_names
from tinygemm.report.bottleneck import claims as bottleneck_claims
from tinygemm.report.bottleneck import tables as limiters
from tinygemm.report.peers import tables as peers

SLOW = 1.1  # times as long as the case it is compared with: what the chapter asks to be explained


def contest(rows: pd.DataFrame) -> pd.DataFrame:
    """All cases of peers.contest, one row per problem: shape, M, int4_us, one column of text per other kernel, best
    (name of the best peer), value and interval (best peer / int4)."""
    best = peers.best_peers(rows)
    others = [backend for backend in (*peers.PEERS, peers.CONTEXT) if backend in set(rows["backend"])]
    texts = rows.assign(text=[_time(row) for _, row in rows.iterrows()])
    wide = texts.pivot(index="problem", columns="backend", values="text").reindex(best["problem"])
    result = best.assign(
        shape=shape_names(best),
        best=best["backend"].map(style.name),
        interval=interval_texts(best),
    )
    return result.assign(**{name: wide[name].fillna("–").to_numpy() for name in others})


def quoted(rows: pd.DataFrame) -> Markdown | None:
    """The meaning of a quoted time, for a run that has any; None, of which a notebook shows nothing, without one.

    rows: peers.contest(run)
    """
    names = sorted(set(rows.loc[rows["kind"] == "quoted", "backend"])) if len(rows) else []
    if not names:
        return None
    return Markdown(
        f"The times of {', '.join(map(style.name, names))} are quoted: an earlier measurement on the same kind of GPU "
        "(`data/earlier/` in the repository), made before runs were recorded, in the same rotation but other rounds, "
        "without samples. Where M lies between two quoted values, the shorter of the two times stands for it, so the "
        "comparison errs against our kernel. A quoted time has no interval, and its mark is hollow."
    )


def contest_columns(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Columns of `contest` for pages.table: those kernels that were timed or quoted."""
    others = [backend for backend in (*peers.PEERS, peers.CONTEXT) if backend in set(rows["backend"])]
    columns = {"shape": ("K×N", ""), "M": ("M", ".0f"), "int4_us": ("tuned, µs", ".2f")}
    columns |= {name: (f"{style.name(name).removeprefix('INT4, ')}, µs", "") for name in others}
    return columns | {"value": ("best peer / tuned", ".2f"), "interval": ("95 % interval", "")}


def reads(run) -> pd.DataFrame:
    """One row per shape and M: shape, then for each kind of reads the kernel's time, theirs, and the share reached."""
    parts = []
    for name, backend in {"overlap": peers.OVERLAPPING, "serial": peers.SERIAL}.items():
        rows = peers.fraction_of_reads(run, backend).set_index(["M", "K", "N"])
        parts.append(rows[["left_us", "right_us", "value"]].add_prefix(f"{name}_"))
    both = pd.concat(parts, axis=1).sort_index().reset_index()
    return both.assign(shape=shape_names(both))


def beyond_reads(run, tokens: tuple[int, ...] = (1, 8)) -> Markdown:
    """By how much the kernel exceeds its reads, and what its counters say where it was profiled: a paragraph per M."""
    profiled = limiters.readings(run)
    told = []
    for M in tokens:
        if found := peers.beyond_reads(run, M):
            told.append(
                f"At M = {M} a call takes {found['least_us']:.1f} to {found['most_us']:.1f} µs longer than its reads, "
                f"which take {found['reads_least_us']:.1f} to {found['reads_most_us']:.1f} µs. Over the "
                f"{found['n']:.0f} shapes, by least squares, it takes {found['fixed_us']:.1f} µs and "
                f"{found['times']:.2f} times its reads."
            )
            verdict = bottleneck_claims.latency_limits(profiled, M=M)
            if verdict.state != claims.UNDECIDED or verdict.numbers:
                told[-1] += f" By its counters, {verdict.sentence[0].lower()}{verdict.sentence[1:]}"
    return Markdown("\n\n".join(told)) if told else lacks("tuned reads of three weights or more")


def machine_code(run) -> Markdown:
    """Other formats and M = 16 in their machine code, and whether those in which fewer warps fit are the slow ones."""
    rows = peers.machine_code(run, limiters.static_file(run.gpu["key"]))
    if rows.empty:
        return Markdown("*The launch configs of this run have no static counts.*")
    marks = rows["fewer_warps"].map({True: "fewer", False: ""})
    body = table(
        rows.assign(shape=shape_names(rows), few=marks),
        {
            "variant": ("Format", ""),
            "shape": ("K×N", ""),
            "M": ("M", ".0f"),
            "latency_us": ("µs", ".2f"),
            "ratio": ("time ratio", ".2f"),
            "per_weight": ("instructions per weight", ".2f"),
            "registers": ("registers", ".0f"),
            "warps_per_sm": ("warps that fit into an SM", ".0f"),
            "few": ("fewer", ""),
        },
        name="tab-machine-code",
        caption="What the compiled kernel takes in other formats, and at M = 16, against float16 with symmetric groups "
        "of 128 (M = 16: against M = 8)",
    )
    plain = rows["variant"] == "float16"
    kinds = {"Of other formats": rows[~plain], "Of M = 16": rows[plain & (rows["M"] == 16)]}
    counts = [
        f"{kind}, fewer warps fit in {len(few)} cases, {int((few['ratio'] > SLOW).sum())} of them more than {SLOW:g} "
        f"times as long; as many or more in {len(rest)}, {int((rest['ratio'] > SLOW).sum())} of them."
        for kind, part in kinds.items()
        for few, rest in [(part[part["fewer_warps"]], part[~part["fewer_warps"]])]
        if len(part)
    ]
    sentence = " ".join([*counts, "The ratio is of times: groups of 64 and 32, and zeros, are more bytes as well."])
    return Markdown(f"{body.data}\n\n{sentence}")


def sixteen(run) -> pd.DataFrame:
    """The time of M = 16 beyond M = 8, as it is and with one row of activations, where both were timed: shape, right_us
    (M = 8), left_us (M = 16) and interval (of their ratio), and the last three of rows alike with `alike_` before."""
    rows, alike = (ratio_rows(peers.sixteen_over_eight(run, name)) for name in ("int4", "int4-one-row"))
    alike = alike[["K", "N", "right_us", "left_us", "interval"]]
    alike = alike.rename(columns={name: f"alike_{name}" for name in ("right_us", "left_us", "interval")})
    return rows.merge(alike, on=["K", "N"])


def ratio_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a comparison with their shape, and their interval in words."""
    shape = shape_names(rows)
    return rows.assign(shape=shape, interval=interval_texts(rows))


def _time(row: pd.Series) -> str:
    return f"{row['other_us']:.2f}" if row["kind"] == "measured" else f"*{row['other_us']:.2f}* (quoted)"
