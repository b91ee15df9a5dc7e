"""Every claim at its bound: planted data just inside it, on it, across it and just outside, and the state of each."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report.base import bounds
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.dequantisation import claims as of_causes
from tinygemm.report.gains import claims as findings
from tinygemm.report.gains import kernel_or_bits as of_decomposition
from tinygemm.report.gains import launch_claims as launch
from tinygemm.report.kernel import claims as of_steps
from tinygemm.report.limits import claims as limiters
from tinygemm.report.models import claims as of_models
from tinygemm.report.models import tables as projections
from tinygemm.report.peers import claims as of_peers
from tinygemm.report.peers import tables as peers
from tinygemm.report.predict import claims as of_costmodel
from tinygemm.report.published import claims as literature
from tinygemm.report.regimes import claims as of_regimes
from tinygemm.report.trust import claims as evidence

NEAR = 1e-3  # relative: how far from a bound "just inside" and "just outside" are
WIDE, NARROW = (4096, 14336), (4096, 1024)


def row(low, high, K=4096, N=14336, M=1, **more):
    """One case whose interval is [low, high]; the median may lie on either side of the bound."""
    value = more.pop("value", (low + high) / 2)
    return {"name": "x", "K": K, "N": N, "M": M, "value": value, "low": low, "high": high} | more


def frame(*rows):
    return pd.DataFrame(list(rows))


def speedup_table(low, high, shape):
    one = row(low, high, *shape)
    names = {"value": "speedup_vs_fp16", "low": "speedup_vs_fp16_low", "high": "speedup_vs_fp16_high"}
    return frame(one).rename(columns=names).assign(
        case_id=f"int4/M1-K{shape[0]}-N{shape[1]}-g128/graph-cold", backend="int4", status="ok", launch="graph",
        l2_state="cold", operands="random", latency_us_p50=5.0, ideal_speedup=3.9,
    )  # fmt: skip


def grid(low, high):
    """A map of three K and three N on which one point has the planted interval and the others clearly win."""
    places = [(K, N) for K in (1024, 2048, 4096) for N in (1024, 2048, 4096)]
    rows = [row(low, high, *places[0]), *(row(2.0, 2.1, *place) for place in places[1:])]
    return frame(*rows).assign(kernel="int4", against="cuBLAS")


def shares(low, high, shape):
    return frame(row(low, high, *shape, share=(low + high) / 2, share_low=low, share_high=high)).assign(
        gain=2.0, gain_low=1.9, gain_high=2.1
    )


def gains(low, high):
    eager = {"eager": (low + high) / 2, "eager_low": low, "eager_high": high}
    return frame(row(low, high, **eager)).assign(graph=2.0, graph_low=1.9, graph_high=2.1)


def rungs(low, high, first=(2.0, 2.1)):
    """Two steps: the first gains `first`, the second has the planted interval."""
    steps = [(0, (np.nan, np.nan)), (1, first), (2, (low, high))]
    rows = [row(*ends, problem="p", step=step, label=f"step {step}", same=False) for step, ends in steps]
    names = {"value": "factor", "low": "factor_low", "high": "factor_high"}
    return frame(*rows).rename(columns=names)


def fp16_loses_by(low, high):
    """Breakdown of a kernel that loses on a narrow shape, and that without dequantisation has the planted speedup."""
    one = {"problem": "p", "M": 1, "K": NARROW[0], "N": NARROW[1], "fp16_us": 5.0, "fused_us": 10.0,
           "no_dequant_us": 4.0, "load_only_us": 3.0, "naive_us": 12.0, "dequant_share": 0.6,
           "speedup_naive_low": np.nan, "speedup_naive_high": np.nan}  # fmt: skip
    for name, ends in {
        "dequant_in_kernel_us": (5.9, 6.1), "speedup": (0.49, 0.51), "speedup_without_dequant": (low, high)
    }.items():  # fmt: skip
        one |= {name: sum(ends) / 2, f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return findings.dequantisation_decides(frame(one), frame(one))


def removals(low, high):
    """Dequantisation saves 0.30 of the time, from 0.28 to 0.32; splitting K saves the planted share."""
    rows = [row(0.28, 0.32, cause="dequantisation"), row(low, high, cause="too little parallelism")]
    return frame(*rows).assign(from_python="", removal=["dequantisation", "too little parallelism"])


def published(low, high):
    return frame(
        {"value": 2.0, "low": 1.9, "high": 2.1, "ours": (low + high) / 2, "ours_low": low, "ours_high": high,
         "backend": "x", "gpu_name": "x", "K": 1, "N": 1, "M": 1}
    )  # fmt: skip


def model_rows(low, high):
    """The state of a projection from the samples of one problem: FP16 takes 10 us in every round."""
    run = two_backends(low, high, *STUDY_SHAPES[0])
    found = projections.against_best_fp16(run)
    return of_models.never_slower(found.assign(model="m", layer="l", tp=1))


def two_backends(low, high, K, N, right="int4", left="fp16-cublas"):
    """A run in which `left` takes 10 us and `right` so much that the ends of its speedup are about low and high."""
    problem = GemmProblem(1, N, K)
    shared = {"M": 1, "N": N, "K": K, "group_size": 128, "launch": "graph", "l2_state": "cold", "status": "ok"}
    shared |= {"operands": "random", "n_samples": 30}
    times = {left: np.full(30, 10.0), right: 10.0 / np.where(np.arange(30) % 2, low, high)}
    cases = [{"case_id": f"{name}/{problem}/graph-cold", "backend": name} | shared for name in times]
    samples = pd.DataFrame(
        [(f"{name}/{problem}/graph-cold", i, t) for name, taken in times.items() for i, t in enumerate(taken)],
        columns=["case_id", "sample", "latency_us"],
    )
    return Run(frame(*cases), samples)


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that such a claim reads."""

    cases: pd.DataFrame
    samples: pd.DataFrame


def judged_rows(judge, name):
    """The claim about rows that `peers.<name>` finds in a run."""

    def judged(low, high, patch):
        patch.setattr(peers, name, lambda *arguments: frame(row(low, high)))
        return judge()

    return judged


def best_peer(low, high, patch):
    """One INT4 peer at every case of the study, its mean far above what is asked, its least case as planted."""
    places = [(*shape, M) for shape in STUDY_SHAPES for M in peers.TOKENS]
    rows = [row(*(ends := (low, high) if place == places[0] else (3.0, 3.1)), *place, problem=str(place),
                other_us=sum(ends) / 2, kind="measured") for place in places]  # fmt: skip
    rows = pd.concat([frame(*rows).assign(backend=name, other_us=lambda r: r["other_us"]) for name in peers.PEERS])
    patch.setattr(peers, "mean_over_peers", lambda run, best: {"value": 2.5, "low": 2.4, "high": 2.6})
    return of_peers.faster_than_peers(None, rows)


def mean_over_peers(low, high, patch):
    rows = [row(3.0, 3.1, *shape, M, problem=f"{shape}{M}", other_us=3.0, kind="measured")
            for shape in STUDY_SHAPES for M in peers.TOKENS]  # fmt: skip
    rows = pd.concat([frame(*rows).assign(backend=name) for name in peers.PEERS])
    patch.setattr(peers, "mean_over_peers", lambda run, best: {"value": (low + high) / 2, "low": low, "high": high})
    return of_peers.faster_than_peers(None, rows)


def of_formats(variant, bytes_ratio=1.0):
    def judged(low, high):
        rows = frame(row(low, high, variant=variant, bytes_ratio=bytes_ratio))
        if variant in of_peers.MOST_OF_FORMAT:
            return of_peers.format_costs_little(rows, variant)
        return of_peers.groups_cost_their_bytes(rows)

    return judged


# claim -> (what judges an interval, the bound, whether above it is inside, whether the bound itself is inside)
CLAIMS = {
    "at least": (lambda low, high: bounds.at_least("", frame(row(low, high)), 2.0, ""), 2.0, True, True),
    "at most": (lambda low, high: bounds.at_most("", frame(row(low, high)), 2.0, ""), 2.0, False, True),
    "A": (lambda low, high: findings.wide_helps(speedup_table(low, high, WIDE)), 1.0, True, False),
    "C, loses": (lambda low, high: findings.narrow_loses(speedup_table(low, high, NARROW)), 1.0, False, False),
    "C, cause": (fp16_loses_by, 1.0, True, False),
    "D": (lambda low, high: findings.fewer_bits_help_narrow(
        two_backends(low, high, *NARROW, left="fp16-triton")), 1.0, True, False),
    "kernel on narrow": (lambda low, high: of_decomposition.kernel_makes_narrow(shares(low, high, NARROW)),
                         0.5, True, False),
    "bits on wide": (lambda low, high: of_decomposition.bits_make_wide(shares(low, high, WIDE)), 0.5, False, False),
    "no gain to divide": (lambda low, high: of_decomposition.kernel_makes_narrow(
        shares(0.6, 0.7, NARROW).assign(gain_low=low)), 1.0, True, False),
    "cause": (lambda low, high: of_causes.dequantisation_comes_first(
        removals(low, high), "wide", of_causes.IN_GRAPH), (0.28, 0.32), False, False),
    "map": (lambda low, high: of_regimes.faster_everywhere(grid(low, high), "int4", "cuBLAS", 1), 1.0, True, False),
    "switch": (lambda low, high: of_regimes.switches_well(frame(row(low, high))), 1.1, False, False),
    "launch hides": (lambda low, high: launch.launch_hides_the_gain(gains(low, high)), 1.0, False, False),
    "host": (lambda low, high: launch.host_costs_no_more(
        frame(row(low, high, left_us=30.0, right_us=30.0))), 1.0, False, True),
    "overlap": (lambda low, high: launch.overlap_gains(frame(row(low, high, backend="int4"))), 1.0, True, True),
    "peers, least": (best_peer, 1.25, True, True),
    "peers, mean": (mean_over_peers, 1.6, True, True),
    "reads, M = 1": (judged_rows(lambda: of_peers.close_to_reads(None), "fraction_of_reads"), 0.90, True, True),
    "sixteen": (lambda low, high: of_peers.sixteen_costs_no_more(frame(row(low, high))), 1.15, False, True),
    "bfloat16": (of_formats("bfloat16"), 1.05, False, True),
    "asymmetric": (of_formats("asymmetric"), 1.10, False, True),
    "groups": (of_formats("groups of 32", 1.2), 1.10 * 1.2, False, True),
    "kept out of tuning": (judged_rows(lambda: of_peers.rule_serves_other_shapes(None), "heldout"), 1.10, False, True),
    "steps": (lambda low, high: of_steps.every_step_gains(rungs(low, high)), 1.0, True, True),
    "first step": (lambda low, high: of_steps.first_step_gains_most(rungs(low, high)), (2.0, 2.1), False, False),
    "beside others": (lambda low, high: evidence.same_beside_others(
        frame(row(low, high, backend="x", apart_us=0.1))), 1.02, False, True),
    "published": (lambda low, high: literature.at_least_published(published(low, high)), (1.9, 2.1), True, None),
    "models": (model_rows, 1.0, True, False),
}  # fmt: skip


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_turns_at_its_bound(name, monkeypatch):
    judge, bound, above, on_it = CLAIMS[name]
    lower, upper = bound if isinstance(bound, tuple) else (bound, bound)

    def state(low, high):
        patched = (monkeypatch,) if judge.__code__.co_argcount == 3 else ()
        return judge(low, high, *patched).state

    below, beyond = (lower * (1 - 2 * NEAR), lower * (1 - NEAR)), (upper * (1 + NEAR), upper * (1 + 2 * NEAR))
    inside, outside = (beyond, below) if above else (below, beyond)
    assert state(*inside) == HOLDS
    assert state(*outside) == (UNDECIDED if name == "no gain to divide" else FAILS)
    assert state(upper * (1 - NEAR), upper * (1 + 9 * NEAR)) == UNDECIDED, "the median above, the interval across"
    assert state(lower * (1 - 9 * NEAR), lower * (1 + NEAR)) == UNDECIDED, "the median below, the interval across"
    if on_it is not None:
        at = upper if above else lower
        assert state(at, at) == (HOLDS if on_it else UNDECIDED)


@pytest.mark.parametrize("way", evidence.CLAIMS)
@pytest.mark.parametrize("side", [1.05, 0.95])
def test_a_way_of_timing_matters_beyond_five_percent_on_either_side(way, side):
    """One case clearly off decides; the others are clearly near."""

    def state(low, high):
        return evidence.matters(frame(row(0.999, 1.001), row(low, high)).assign(way=way, backend="int4"), way).state

    out, in_ = (1 + NEAR, 1 - NEAR) if side > 1 else (1 - NEAR, 1 + NEAR)
    assert state(side * out, side * out) == HOLDS
    assert state(side * in_, side * in_) == FAILS
    for nearer, farther in ((in_, out**9), (in_**9, out)):  # the median on either side of the bound
        assert state(*sorted((side * nearer, side * farther))) == UNDECIDED
    assert state(side, side) == UNDECIDED


@pytest.mark.parametrize(("ratio", "expected"), [(1.049, HOLDS), (1.05, HOLDS), (1.051, FAILS)])
def test_bytes_move_once_up_to_five_percent_more(ratio, expected):
    rows = frame(row(np.nan, np.nan)).assign(backend="int4", form="ring", block_m=8, traffic_ratio=ratio)
    assert limiters.bytes_move_once(rows).state == expected


@pytest.mark.parametrize(
    ("errors", "expected"),
    [((0.10, 0.10, 0.25), HOLDS), ((0.101, 0.101, 0.25), FAILS), ((0.10, -0.10, -0.251), FAILS)],
    ids=["both on the bound", "the median beyond", "the worst beyond"],
)
def test_a_model_predicts_within_ten_percent_in_the_median_and_a_quarter_at_worst(errors, expected):
    rows = frame(*(row(1, 1, error=error, backend="int4", launch="graph") for error in errors))
    assert of_costmodel.predicts(rows).state == expected


@pytest.mark.parametrize(("hits", "expected"), [(10, HOLDS), (9, HOLDS), (8, FAILS)])
def test_a_projection_covers_nine_in_ten(hits, expected):
    rows = frame(*(row(1, 2, off=0.1, backend="x", gpu="y", stand_in="") for _ in range(10)))
    rows = rows.assign(result=[of_costmodel.HIT] * hits + ["below"] * (10 - hits))
    assert of_costmodel.projects(rows).state == of_costmodel.projects_to_runs(rows).state == expected
