"""The plan of a sweep: its suites, the groups they fall into, and the parameters they are made of."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from tinygemm import models
from tinygemm.harness import suites
from tinygemm.harness.plan import Group, SweepPlan, groups
from tinygemm.harness.suites import GRID_REP, NAMES, REP, REPORT_BACKENDS, Suite
from tinygemm.problem import DECODE_M, REPORT_SHAPES, STUDY_SHAPES, GemmProblem
from tinygemm.report.dequantisation import tables as causes

SMALL = (GemmProblem(1, 32, 128), GemmProblem(2, 32, 128), GemmProblem(1, 64, 128))
REPORT = SweepPlan.from_parameters()
GROUPS = groups(REPORT)
IDS = [case_id for group in GROUPS for case_id in group.case_ids]


def ids_of(plan: SweepPlan) -> set[str]:
    return {case_id for group in groups(plan) for case_id in group.case_ids}


# --- the report's plan ----------------------------------------------------------------------------------------------


def test_every_case_stands_in_exactly_one_group_however_many_suites_want_it():
    assert len(IDS) == len(set(IDS))
    keys = [(group.word, group.launch, group.l2_state, group.operands) for group in GROUPS]
    assert len(keys) == len(set(keys))
    apart = {name: ids_of(SweepPlan.from_parameters(suites=name)) for name in NAMES}
    assert set(IDS) == set().union(*apart.values())
    assert sum(map(len, apart.values())) > len(IDS), "no two suites share a case: the union is not tested"
    assert all(apart.values())


@pytest.mark.parametrize(("K", "N"), REPORT_SHAPES)
@pytest.mark.parametrize("M", DECODE_M)
def test_decode_times_the_reports_contenders_in_graphs_eagerly_and_hot(K, N, M):
    problem = GemmProblem(M, N, K)
    hosts = [name for name in REPORT_BACKENDS if name not in (*suites.GUESTS, *suites.IDEALS)]
    for mode in ("graph-cold", "graph-hot", "eager-cold"):
        assert {f"{name}/{problem}/{mode}" for name in hosts} <= set(IDS)
    assert f"int4/{problem}/eager-hot" not in IDS
    guests = {f"{name}/{problem}/graph-cold" for name in suites.GUESTS}
    invited = (K, N) in STUDY_SHAPES and M in suites.GUEST_M
    assert guests <= set(IDS) if invited else not guests & set(IDS)


@pytest.mark.parametrize(
    "case_id",
    [
        "copy/1GiB/graph-cold",
        "empty-node/empty/graph-cold",
        "fp16-triton/M4-K448-N896-g64/graph-cold",
        "int4-static/M8-K28672-N57344-g128/graph-cold",
        "int4-fused/M256-K4096-N14336-g128/graph-cold",
        "int4-naive-dequant/M1-K14336-N4096-g128/eager-cold",
        "int4-more-split/M1-K4096-N512-g128/graph-cold",
        "int4/M8-K14336-N4096-g-1/graph-cold",
        "int4-bf16/M8-K4096-N1024-g128/graph-cold",
        "int4-one-row/M16-K14336-N4096-g128/graph-cold",
        "int4-searched/M1-K5120-N13824-g128/graph-cold",
        "int4/M1-K4096-N4096-g128/graph-warm",
        "fp16-cublas/M1-K4096-N4096-g128/do_bench-cold",
        "int4/M1-K4096-N1024-g128/primed-cold",
        "empty-node/empty/primed-cold",
        "int4/M1-K4096-N4096-g128/graph-cold-zeros",
        "int4-step-lop3/M8-K4096-N4096-g128/graph-cold",
    ],
)
def test_each_suite_asks_its_question(case_id):
    assert case_id in IDS


def test_the_causes_are_timed_with_every_backend_that_their_removals_compare():
    compared = {backend for ends in (causes.CAUSES | causes.LEFTOVERS).values() for backend, _ in ends}
    compared |= set(causes.SAME_FORM.values())
    (suite,) = (suite for suite in REPORT.suites if suite.name == "causes")
    assert compared <= set(suite.backends)
    assert {(launch, "cold") for ends in causes.FROM_PYTHON.values() for _, launch in ends} <= set(suite.modes)
    assert set(STUDY_SHAPES) <= {(problem.K, problem.N) for problem in suite.problems}


def test_every_projection_of_the_model_table_is_timed():
    timed = {(g.problem.K, g.problem.N, g.problem.group_size) for g in GROUPS if g.problem and "int4" in g.backends}
    assert set(models.decode_shapes()) <= timed


def test_the_regimes_are_a_grid_of_at_least_eight_by_eight():
    for M in (1, 8):
        grid = {(g.problem.K, g.problem.N) for g in GROUPS if g.problem and g.problem.M == M and g.operands == "random"}
        assert {(K, N) for K in suites.REGIME_K for N in suites.REGIME_N} <= grid
    for axis in (suites.REGIME_K, suites.REGIME_N):
        assert len(axis) >= 8
        assert max(b / a for a, b in itertools.pairwise(axis)) <= 2


def test_shapes_kept_out_of_tuning_are_in_no_table_of_configs_and_no_other_suite():
    from tinygemm.kernel import configs

    tuned = {(row["K"], row["N"]) for row in configs.table("h200")[0]}
    others = {shape[:2] for shape in models.decode_shapes()} | set(REPORT_SHAPES) | tuned
    assert len(set(suites.HELD_OUT_SHAPES)) == 20
    assert not set(suites.HELD_OUT_SHAPES) & others


def test_equal_weights_stand_side_by_side_and_so_do_equal_problems():
    for of in (lambda group: group.weight, lambda group: (group.problem, group.operands)):
        keys = [of(group) for group in GROUPS if group.problem]
        assert len(list(itertools.groupby(keys))) == len(set(keys))
    assert [(g.word, g.launch) for g in GROUPS if not g.problem] == [
        ("1GiB", "graph"), ("1GiB", "primed"), ("empty", "graph"), ("empty", "primed")
    ]  # fmt: skip
    assert not any(group.problem for group in GROUPS[:4])


def test_a_group_takes_the_most_samples_that_any_of_its_suites_wants():
    rep = {(group.word, group.launch, group.l2_state): group.rep for group in GROUPS if group.operands == "random"}
    assert rep["M1-K4096-N4096-g128", "graph", "cold"] == REP, "decode and the grids both want it"
    assert rep["M1-K3072-N4096-g128", "graph", "cold"] == GRID_REP
    assert Counter(group.rep for group in groups(SweepPlan.from_parameters(rep=3))).keys() == {3}


def test_the_report_is_measured_in_minutes():
    """By a rough clock of an H200: a fixed cost per case, 25 us to capture a call, 30 us to launch one from Python, and
    the calls themselves. For the plan of the first recorded run, which took 150 s, it reads 120 to 180 s."""
    first = SweepPlan(
        tuple(GemmProblem(M, N, K) for K, N in REPORT_SHAPES for M in DECODE_M),
        backends=("fp16-cublas", "fp16-triton", "dequant-fp16", "dequant-only", "int4-static", "int4", "int4-serial",
                  "int4-no-dequant", "int4-load-only", "aten-int4mm"),
        launches=("graph", "eager"), l2_states=("cold", "hot"),
    )  # fmt: skip
    assert 120 < estimated_s(groups(first)) < 180
    assert estimated_s(GROUPS) < 400, "with the counters, eight minutes are the limit"


def estimated_s(todo) -> float:
    """Guests are left out: how long their packages tune is theirs."""
    seconds = 0.0
    products = (group for group in todo if group.problem)
    for (K, N, *_), of_weight in itertools.groupby(products, lambda group: group.weight):
        seconds += 0.15 + 1.5e-9 * K * N
        for group, name in [(each, name) for each in of_weight for name in each.backends]:
            weight_bytes = (2 if name.startswith("fp16") else 0.5) * K * N
            rotates = group.launch == "graph" and group.l2_state != "hot"
            calls = max(50, 512e6 / weight_bytes) if rotates else 50
            call_s = max(3e-6 + weight_bytes / 4e12, 30e-6 if group.launch == "eager" else 0)
            captures = {"fp16-cublas": 3, "aten-int4mm": 4, "int4-searched": 60, "int4-serial": 3, "int4-no-split": 4}
            captures = captures.get(name, 1)
            capture_s = 0 if group.launch == "eager" else captures * (25e-6 * calls + 0.004)
            seconds += 0.045 + capture_s + (group.rep + 3) * calls * call_s if name not in suites.GUESTS else 0
    return seconds


# --- plans of one's own ---------------------------------------------------------------------------------------------


def test_a_sweep_of_the_users_own_measures_what_was_asked_and_nothing_else():
    plan = SweepPlan(SMALL, backends=("int4", "copy"), launches=("graph", "eager"), l2_states=("cold", "hot"), rep=5)
    assert len(ids_of(plan)) == len(SMALL) * 4 + 1
    assert {group.rep for group in groups(plan)} == {5}
    more = SweepPlan(SMALL, backends=("int4",), suites=(Suite("x", SMALL[:1], ("fp16-cublas",), rep=9),))
    assert groups(more)[0] == Group(SMALL[0], str(SMALL[0]), "graph", "cold", ("int4", "fp16-cublas"), 25)


def test_a_plan_is_built_from_notebook_parameters():
    plan = SweepPlan.from_parameters(
        "1, 8", "4096,1024;4096,4096", 64, "fp16-cublas, int4", "decode", rep=5, warmup=0, counters=False
    )
    (decode,) = plan.suites
    assert decode.problems == tuple(GemmProblem(M, N, 4096, 64) for N in (1024, 4096) for M in (1, 8))
    assert decode.backends == ("fp16-cublas", "int4")
    assert (decode.rep, plan.warmup, plan.counters) == (5, 0, False)


def test_suites_are_chosen_by_name_and_all_by_none():
    assert SweepPlan.from_parameters(suites=",".join(NAMES)) == REPORT
    plan = SweepPlan.from_parameters(suites="method, heldout")
    assert {suite.name for suite in plan.suites} == {"method", "heldout"}


@pytest.mark.parametrize(
    ("parameters", "profiled"),
    [
        ({}, [(1, *shape) for shape in STUDY_SHAPES] + [(M, 4096, 14336) for M in (8, 16, 64, 256)]),
        ({"m_list": "8,2", "shapes": "4096,512;4096,1024;4096,14336", "suites": "decode"},
         [(2, 4096, 1024), (2, 4096, 14336), (8, 4096, 14336)]),
        ({"m_list": "8,2", "shapes": "128,64;256,64;512,64", "suites": "decode"}, [(2, 128, 64), (2, 512, 64)]),
    ],
)  # fmt: skip
def test_what_is_profiled_is_the_reports_choice_or_the_ends_of_the_range(parameters, profiled):
    plan = SweepPlan.from_parameters(**parameters)
    assert [(p.M, p.K, p.N) for p in plan.counter_problems] == profiled
    for problem, name in itertools.product(plan.counter_problems, plan.counter_backends):
        assert f"{name}/{problem}/graph-cold" in ids_of(plan), "only what was timed is profiled"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"m_list": "1,x"}, "m_list must be positive integers separated by commas, got '1,x'"),
        ({"m_list": "0"}, "m_list must be positive integers"),
        ({"shapes": "4096"}, "shapes: '4096' is not K,N"),
        ({"shapes": "4096,1024,1"}, "is not K,N"),
        ({"shapes": ";"}, r"shapes must be K,N;K,N;\.\.\."),
        ({"group_size": 100}, "group_size must be one of"),
        ({"shapes": "4100,1024"}, "K=4100 must be divisible by group_size=128"),
        ({"backends": "fp16-cublas,int5"}, "unknown backend int5; known: fp16-cublas"),
        ({"suites": "decode,model"}, "unknown suite model; known: decode, models, regimes"),
        ({"suites": ","}, "suites is empty: choose from decode"),
        ({"rep": 0}, "rep must be an integer of at least 1, got 0"),
        ({"rep": "many"}, "rep must be an integer"),
        ({"warmup": -1}, "warmup must be an integer of at least 0"),
        ({"repeat": 3}, "unknown parameter repeat; known: m_list"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_by_name(parameters, message):
    with pytest.raises(ValueError, match=message):
        SweepPlan.from_parameters(**parameters)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problems": ()}, "problems is empty"),
        ({"backends": ()}, "backends is empty: choose from fp16-cublas"),
        ({"launches": ()}, "launches must be some of graph, primed, eager, do_bench, got none"),
        ({"launches": ("graphs",)}, "launches must be some of graph, primed, eager, do_bench, got graphs"),
        ({"l2_states": ("tepid",)}, "l2_states must be some of cold, warm, hot, got tepid"),
        ({"counter_backends": ("int5",)}, "unknown backend int5"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_by_field(settings, message):
    with pytest.raises(ValueError, match=message):
        SweepPlan(**({"problems": SMALL} | settings))


def test_operands_of_a_suite_are_of_a_known_kind():
    with pytest.raises(ValueError, match="operands must be one of random, zeros, got 'ones'"):
        Suite("x", SMALL, ("int4",), operands="ones")


def test_the_parameters_of_a_plan_tell_every_plan_from_every_other():
    plans = [
        SweepPlan(SMALL), SweepPlan(SMALL, rep=9), SweepPlan(SMALL, seed=1), SweepPlan(SMALL, symmetric=False),
        SweepPlan(SMALL, launches=("eager",)), SweepPlan(SMALL[:1]), SweepPlan(SMALL, backends=("int4",)),
        SweepPlan(problems=(GemmProblem(1, 32, 128, 64),)), SweepPlan(problems=(GemmProblem(1, 32, 128, -1),)),
        REPORT, SweepPlan.from_parameters(rep=9), SweepPlan.from_parameters(suites="decode"),
    ]  # fmt: skip
    assert len({str(plan.parameters()) for plan in plans}) == len(plans)
