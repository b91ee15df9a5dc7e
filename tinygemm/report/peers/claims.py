"""The targets of the tuned kernel, each as a claim about a run: against its peers, its reads, and its own variants."""

from __future__ import annotations

import pandas as pd

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base.bounds import at_least, at_most, case_name, listed, named
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.base.words import bracket, shape_names
from tinygemm.report.peers import tables as peers

MEAN_OVER_PEERS, LEAST_OVER_PEERS = 1.6, 1.25
LEAST_OF_READS = {1: 0.90, 8: 0.85}
MOST_SIXTEEN_OVER_EIGHT = 1.15
SERIAL = "int4-serial"  # overlaps the call before it no more than most peers do
ONE_ROW = ", both with the activation traffic of one token"
MOST_OF_FORMAT = {"bfloat16": 1.05, "asymmetric": 1.10}
MOST_OVER_BYTES = 1.10  # other group sizes, beyond the bytes that their scales add
MOST_OVER_SEARCHED = 1.10


def of_peers(run) -> dict[str, Verdict]:
    """Every verdict of the chapter: peers, peers_serial, reads_1, reads_8, reads_serial_1, reads_serial_8, sixteen,
    one_row, bfloat16, asymmetric, groups, heldout."""
    formats = named(peers.formats(run))
    found = {
        "peers": faster_than_peers(run, peers.contest(run)),
        "peers_serial": faster_than_peers(run, peers.contest(run, ours=SERIAL), ", without its overlap,", SERIAL),
    }
    for M in LEAST_OF_READS:
        found |= {f"reads_{M}": close_to_reads(run, M), f"reads_serial_{M}": close_to_reads(run, M, peers.SERIAL)}
    found["sixteen"] = sixteen_costs_no_more(peers.sixteen_over_eight(run))
    found["one_row"] = sixteen_costs_no_more(peers.sixteen_over_eight(run, "int4-one-row"), ONE_ROW)
    found |= {variant: format_costs_little(formats, variant) for variant in MOST_OF_FORMAT}
    return found | {"groups": groups_cost_their_bytes(formats), "heldout": rule_serves_other_shapes(run)}


def faster_than_peers(run, rows: pd.DataFrame, how: str = "", ours: str = "int4") -> Verdict:
    """Against the fastest INT4 peer of each of the 16 cases: 1.6 times in the geometric mean, no case under 1.25.

    rows: peers.contest; where a peer that the run asked for is missing, the claim can fail, but it cannot hold
    how:  what is particular about the kernel that stands for ours
    ours: its name
    """
    best = peers.best_peers(rows)
    claim = (
        f"The tuned kernel{how} is {MEAN_OVER_PEERS:g}× as fast as the best INT4 peer in the geometric mean over the "
        f"four projections at M = {', '.join(map(str, peers.TOKENS))}, and nowhere under {LEAST_OVER_PEERS:g}×"
    )
    if best.empty:
        return Verdict(claim, UNDECIDED, "This run timed no other INT4 kernel beside this one.", {})
    mean = peers.mean_over_peers(run, best)
    least = at_least(claim, named(best), LEAST_OVER_PEERS, "")
    cases = len(STUDY_SHAPES) * len(peers.TOKENS)
    timed = rows["backend"].value_counts()
    few = [peer for peer in peers.held_against(ours) if timed.get(peer, 0) < cases]
    later = [peer for peer in few if peer in peers.LATER and peer not in set(run.cases["backend"])]
    absent = [f"{peer} ({timed.get(peer, 0)})" for peer in few if peer not in later]
    if mean["high"] < MEAN_OVER_PEERS or least.state == FAILS:
        state = FAILS
    else:
        sure = mean["low"] >= MEAN_OVER_PEERS and least.state == HOLDS and not absent
        state = HOLDS if sure else UNDECIDED
    row = best.loc[best["value"].idxmin()]
    sentence = (
        f"The geometric mean over {len(best)} cases is {mean['value']:.2f}×"
        f"{bracket(mean['low'], mean['high'])}, "
        f"the least {row['value']:.2f}× at {case_name(row)}, against {row['backend']}."
    )
    below = best[best["high"].fillna(best["value"]) < LEAST_OVER_PEERS].sort_values("value")
    if len(below):
        told = [f"{r['value']:.2f}× at {case_name(r)} ({r['backend']})" for _, r in below.iterrows()]
        sentence += f" Under {LEAST_OVER_PEERS:g}×: {listed(told)}."
    if quoted := int((best["kind"] == "quoted").sum()):
        sentence += f" In {quoted} of the cases the best peer is Marlin by its quoted time, not by this run."
    if absent:
        sentence += f" Not timed in all {cases} cases: {', '.join(absent)}."
    if later:
        sentence += f" The run did not ask for {listed(later)}."
    numbers = {"mean": mean["value"], "mean_low": mean["low"], "mean_high": mean["high"], "least": row["value"]}
    numbers |= {"n": len(best), "n_quoted": quoted}
    return Verdict(claim, state, sentence, {name: float(value) for name, value in numbers.items()})


def close_to_reads(run, M: int = 1, reads: str = peers.OVERLAPPING) -> Verdict:
    """At one M and every shape of the run, the kernel reaches its share of the speed of reading the bytes alone."""
    bound = LEAST_OF_READS[M]
    how = {
        peers.OVERLAPPING: "reading its bytes alone, calls overlapping",
        peers.SERIAL: "reading its bytes alone, one call after the other",
    }[reads]
    claim = f"At M = {M} the tuned kernel reaches {bound:.0%} of the speed of {how}"
    rows = peers.fraction_of_reads(run, reads)
    return at_least(
        claim,
        named(rows[rows["M"] == M]),
        bound,
        f"This run did not time `{reads}`, tuned for the weight, and `{peers.READS[reads]}` at M = {M}.",
    )


def sixteen_costs_no_more(rows: pd.DataFrame, how: str = "") -> Verdict:
    """rows: peers.sixteen_over_eight; how: what the claim and the sentence add about both calls"""
    claim = f"M = 16 takes at most {MOST_SIXTEEN_OVER_EIGHT:g} times as long as M = 8{how}"
    names = list(shape_names(rows))
    return at_most(
        claim, rows.assign(name=names), MOST_SIXTEEN_OVER_EIGHT, f"This run did not time M = 8 and M = 16{how}."
    )


def format_costs_little(rows: pd.DataFrame, variant: str) -> Verdict:
    """rows: peers.formats with a name"""
    bound, usual = MOST_OF_FORMAT[variant], {"bfloat16": "float16", "asymmetric": "symmetric"}[variant]
    claim = f"With {variant} {'activations' if variant == 'bfloat16' else 'weights'} a call takes at most {bound:g} "
    claim += f"times as long as with {usual}"
    return at_most(claim, rows[rows["variant"] == variant], bound, f"This run did not time {variant} operands.")


def groups_cost_their_bytes(rows: pd.DataFrame) -> Verdict:
    """Other group sizes than 128 take at most 10 % longer than the bytes of their scales explain.

    rows: peers.formats with a name
    """
    claim = f"Other group sizes take at most {MOST_OVER_BYTES:g} times as long as groups of 128, per byte"
    rows = rows[~rows["variant"].isin(list(MOST_OF_FORMAT))]
    rows = rows.assign(**{end: rows[end] / rows["bytes_ratio"] for end in ("value", "low", "high")})
    rows = rows.assign(name=[f"{row['name']}, {row['variant']}" for _, row in rows.iterrows()])
    return at_most(claim, rows, MOST_OVER_BYTES, "This run did not time other group sizes.")


def rule_serves_other_shapes(run) -> Verdict:
    """On shapes kept out of tuning, the config that the library selects is within 10 % of the best config raced."""
    claim = "On shapes kept out of tuning, a call takes at most "
    claim += f"{MOST_OVER_SEARCHED:g} times as long as with the best config raced"
    return at_most(claim, named(peers.heldout(run)), MOST_OVER_SEARCHED, "This run has no shapes kept out of tuning.")
