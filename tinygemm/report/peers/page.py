"""Text and tables of the chapter on peers and targets: every case in a table, with quoted times marked."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from tinygemm.backends import with_serial
from tinygemm.report.base import claims, style
from tinygemm.report.base import page as shared
from tinygemm.report.base.bounds import case_name, listed
from tinygemm.report.base.page import dropdown, folded, lacks, table
from tinygemm.report.base.words import bracket, interval_texts, shape_names
from tinygemm.report.limits import claims as limits_claims
from tinygemm.report.limits import tables as limiters
from tinygemm.report.peers import choice, figures
from tinygemm.report.peers import tables as peers

READS = {
    "shape": ("K×N", ""),
    "M": ("M", ".0f"),
    "overlap_right_us": ("tuned, overlapping, µs", ".2f"),
    "overlap_left_us": ("reads, µs", ".2f"),
    "overlap_value": ("reached", ".0%"),
    "serial_right_us": ("tuned, one by one, µs", ".2f"),
    "serial_left_us": ("reads, µs", ".2f"),
    "serial_value": ("reached", ".0%"),
}
SIXTEEN = {
    "shape": ("K×N", ""),
    "right_us": ("M = 8, µs", ".2f"),
    "left_us": ("M = 16, µs", ".2f"),
    "interval": ("ratio", ""),
    "alike_right_us": ("M = 8, rows alike, µs", ".2f"),
    "alike_left_us": ("M = 16, rows alike, µs", ".2f"),
    "alike_interval": ("ratio of rows alike", ""),
}
FORMATS = {
    "variant": ("Format", ""),
    "shape": ("K×N", ""),
    "M": ("M", ".0f"),
    "left_us": ("µs", ".2f"),
    "right_us": ("FP16, symmetric, 128, µs", ".2f"),
    "value": ("time ratio", ".2f"),
    "interval": ("95 % interval", ""),
    "bytes_ratio": ("byte ratio", ".2f"),
}
HELDOUT = {
    "shape": ("K×N", ""),
    "M": ("M", ".0f"),
    "left_us": ("by the rule, µs", ".2f"),
    "right_us": ("searched, µs", ".2f"),
    "value": ("ratio", ".2f"),
    "interval": ("95 % interval", ""),
}
SEARCHES = {
    "aten-int4mm": "the fastest of its packings",
    "humming": "the fastest of several settings",
    "gemlite": "the configs that its authors ship for this GPU",
    "marlin": "the better of its two tiles",
}  # of a peer that ran in one setting everywhere, that is said instead
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
    names = (
        [choice.plain_name(name) for name in sorted(set(rows.loc[rows["kind"] == "quoted", "backend"]))]
        if len(rows)
        else []
    )
    if not names:
        return None
    whose = f"{names[0]}'s times" if len(names) == 1 else f"The times of {' and '.join(names)}"
    return Markdown(
        f"{whose} are quoted: an earlier measurement on the same kind of GPU "
        "(`data/earlier/` in the repository), made before runs were recorded, in the same rotation but other rounds, "
        "without samples. Where M lies between two quoted values, the shorter of the two times stands for it, so the "
        "comparison errs against our kernel. A quoted time has no interval, and its mark is hollow."
    )


def contest_columns(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Columns of `contest` for pages.table: those kernels that were timed or quoted."""
    others = [backend for backend in (*peers.PEERS, peers.CONTEXT) if backend in set(rows["backend"])]
    columns = {"shape": ("K×N", ""), "M": ("M", ".0f"), "int4_us": ("tuned, µs", ".2f")}
    columns |= {name: (f"{style.name(name).removeprefix('INT4, ')}{_overlap(name)}, µs", "") for name in others}
    return columns | {"value": ("best peer / tuned", ".2f"), "interval": ("95 % interval", "")}


def _overlap(backend: str) -> str:
    return ", overlapping" if backend in with_serial() else ""


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
            verdict = limits_claims.latency_limits(profiled, M=M)
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
    return Markdown(f"{sentence}\n\n{dropdown('Machine code of other formats', body).data}")


def sixteen(run) -> pd.DataFrame:
    """The time of M = 16 beyond M = 8, as it is and with one row of activations, where both were timed.

    returns: shape, right_us (M = 8), left_us (M = 16), interval (their ratio with its own); the last three with rows
             alike, too, under names that begin with `alike_`
    """
    rows, alike = (ratio_rows(peers.sixteen_over_eight(run, name)) for name in ("int4", "int4-one-row"))
    rows, alike = (
        each.assign(interval=[f"{row.value:.2f}{bracket(row.low, row.high)}" for row in each.itertuples()])
        for each in (rows, alike)
    )
    alike = alike[["K", "N", "right_us", "left_us", "interval"]]
    alike = alike.rename(columns={name: f"alike_{name}" for name in ("right_us", "left_us", "interval")})
    return rows.merge(alike, on=["K", "N"])


def ratio_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a comparison with their shape, and their interval in words."""
    shape = shape_names(rows)
    return rows.assign(shape=shape, interval=interval_texts(rows))


def _time(row: pd.Series) -> str:
    return f"{row['other_us']:.2f}" if row["kind"] == "measured" else f"*{row['other_us']:.2f}* (quoted)"


def takeaway(run) -> Markdown:
    """The kernel to use on this GPU, and its lead over the next one."""
    rows = choice.nearest(run, choice.spread_of_all(run), tokens=(1,))
    if rows.empty:
        return shared.takeaway("This run timed no other INT4 kernel beside ours.")
    return shared.takeaway(f"Use {choice.best(rows)}. {choice.ratios(rows)} Newer and better tuned peers come closer.")


def on_each_gpu(run, tokens: tuple[int, ...] = choice.TOKENS) -> Markdown:
    """The kernel to use on every GPU that was measured, as a list. tokens: M to name"""
    return Markdown("\n".join(f"* {told}" for told in choice.of_gpus(run, tokens)))


def times(run, rows: pd.DataFrame, origin: pd.DataFrame) -> Figure | Markdown:
    """The time of every other INT4 kernel divided by ours.

    rows: peers.contest(run)        origin: report_table(run), for the GPU and the run
    """
    if rows.empty:
        return lacks("another INT4 kernel")
    return figures.peer_times(rows, peers.mean_over_peers(run, peers.best_peers(rows)), origin)


def every_case(rows: pd.DataFrame) -> Markdown:
    """All cases against all peers, folded."""
    caption = "Latency per call; the last columns compare the best INT4 peer of the case with the tuned kernel"
    return folded("All cases against all peers", contest(rows), contest_columns(rows), "tab-peers", caption)


def one_token(rows: pd.DataFrame, M: int = 1) -> Markdown:
    """The four projections at one token: every kernel's time.

    rows: peers.contest(run)
    """
    few = rows[rows["M"] == M]
    if few.empty:
        return lacks("another INT4 kernel at M = 1")
    columns = {name: of for name, of in contest_columns(few).items() if name not in ("M", "interval")}
    return table(contest(few), columns, "tab-peers-1", "Time of one call in µs, M = 1, ours with overlap")


def searches(run, rows: pd.DataFrame) -> Markdown:
    """The way in which each peer that this run timed was configured, and the peers that it did not time.

    rows: peers.contest(run)
    """
    asked = (*peers.held_against(), peers.CONTEXT)
    settings = run.cases[run.cases["status"] == "ok"].groupby("backend")["config_source"].nunique()
    timed = [name for name in asked if name in settings.index]
    if not timed:
        return lacks("another INT4 kernel")
    told = [
        f"{choice.plain_name(name)} {SEARCHES[name] if settings[name] > 1 and name in SEARCHES else 'one setting'}"
        for name in timed
    ]
    sentences = [
        f"The search of each peer, for each shape and M: {', '.join(told)}. Ours were searched among some hundred "
        "configs per shape, once. All that this run timed share the rounds and the weights."
    ]
    if absent := [_absent(run, rows, name) for name in asked if name not in timed]:
        sentences.append(f"Not timed here: {', '.join(absent)}.")
    return Markdown(" ".join(sentences))


def _absent(run, rows: pd.DataFrame, name: str) -> str:
    """A peer that was not timed, with what the run says of it."""
    messages = run.cases.loc[run.cases["backend"] == name, "message"].astype(str)
    notes = ["not installed"] if messages.str.contains("not installed").any() else []
    if name in set(rows.loc[rows["kind"] == "quoted", "backend"]):
        notes.append("quoted below")
    return choice.plain_name(name) + (f" ({', '.join(notes)})" if notes else "")


def odd_ones(rows: pd.DataFrame, least: float = 2.5) -> Markdown | None:
    """The cases in which a peer is far slower than the fastest one; None, of which a notebook shows nothing.

    rows: peers.contest(run)
    """
    others = rows[rows["backend"].isin(peers.PEERS)]
    if others.empty:
        return None
    fastest = others.groupby("problem")["other_us"].transform("min")
    odd = others[others["other_us"] > least * fastest].sort_values("other_us", ascending=False)
    if odd.empty:
        return None
    names = odd["backend"].map(choice.plain_name) + odd["kind"].map({"quoted": " (quoted)"}).fillna("")
    times = zip(names, odd["other_us"], map(case_name, (row for _, row in odd.iterrows())), strict=True)
    told = [f"{name} {time:.1f} µs at {case}" for name, time, case in times]
    who = "One peer takes" if odd["backend"].nunique() == 1 else "Some peers take"
    more = f", and in {len(told) - 4} more" if len(told) > 4 else ""
    return Markdown(f"{who} more than {least:g} times as long as the fastest one: {listed(told[:4])}{more}.")


def reads_figure(run, origin: pd.DataFrame) -> Figure | Markdown:
    """The share of the weight-read bound that the tuned kernel reaches."""
    by_reads = {name: peers.fraction_of_reads(run, name) for name in peers.READS}
    if not any(map(len, by_reads.values())):
        return lacks("the weight-read bound")
    return figures.fraction_of_reads(by_reads, origin)


def reads_table(run) -> Markdown:
    """The tuned kernel and the weight-read bound, folded."""
    caption = "The tuned kernel and the weight-read bound; reached is the time of the reads over that of the kernel"
    return folded("The kernel and the weight-read bound", reads(run), READS, "tab-reads", caption)


def sixteen_table(run) -> Markdown:
    """The time of 16 tokens beyond that of 8, and with one row of activations."""
    rows = sixteen(run)
    if rows.empty:
        return lacks("16 tokens beside 8, and with one row of activations")
    caption = "Time of 16 tokens beside 8, and with all rows of the activations one row in memory"
    return table(rows, SIXTEEN, "tab-sixteen", caption)


def format_table(run) -> Markdown:
    """The tuned kernel in other formats, folded."""
    caption = "The tuned kernel in other formats, against FP16 activations and symmetric groups of 128"
    return folded("Other formats", ratio_rows(peers.formats(run)), FORMATS, "tab-formats", caption)


def heldout_table(run) -> Markdown:
    """Shapes kept out of tuning, folded."""
    caption = "The config that the library selects against the best config raced, on shapes kept out of tuning"
    return folded("Shapes kept out of tuning", ratio_rows(peers.heldout(run)), HELDOUT, "tab-heldout", caption)
