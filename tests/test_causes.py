"""Finding C decided: each planted cause is found by its removal, and the verdicts flip."""

import pytest
import synthetic

from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.dequantisation import claims as verdicts
from tinygemm.report.dequantisation import page as dequantisation_page
from tinygemm.report.dequantisation import tables as causes

NARROW, _, WIDE, TALL = STUDY_SHAPES
EXPERIMENT = (
    "int4-static", "int4", "int4-no-dequant", "int4-naive-dequant", "int4-no-split", "int4-more-split",
    "int4-load-only",
)  # fmt: skip
SWEEP = [*((4096, N) for N in (512, 1024, 2048, 4096, 14336)), *((K, 4096) for K in (1024, 2048, 8192, 14336))]
MODES = (("graph", "cold"), ("eager", "cold"))


@pytest.fixture
def load(tmp_path):
    def load(factors=None, shapes=STUDY_SHAPES, backends=EXPERIMENT, modes=MODES, **truth):
        truth = synthetic.Truth(factors=factors or {}, **truth)
        return synthetic.load(
            tmp_path, truth=truth, m_list=(1,), shapes=shapes, backends=backends, modes=modes, counters=False
        )

    return load


def saved(run, removal, shape):
    rows = causes.removals(run).set_index(["removal", "K", "N"])
    return rows.loc[(removal, *shape)]


# --- removals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removal", [*causes.CAUSES, *causes.LEFTOVERS])
def test_a_removal_saves_the_planted_share_within_its_interval(load, removal):
    run, truth = load(), synthetic.Truth()
    (left, with_it), (right, without) = (causes.CAUSES | causes.LEFTOVERS)[removal]
    for K, N in STUDY_SHAPES:
        problem = GemmProblem(1, N, K)
        planted = 1 - truth.latency_us(right, problem, without) / truth.latency_us(left, problem, with_it)
        row = saved(run, removal, (K, N))
        assert row["value"] == pytest.approx(planted, abs=0.015)
        assert row["low"] <= row["value"] <= row["high"]


@pytest.mark.parametrize("launch", ["graph", "eager"])
def test_the_split_is_judged_within_one_form_where_that_was_timed(load, launch):
    """`int4-no-split` is of the split-K form: what another form gains is not the split's."""
    truth = synthetic.Truth(factors={"int4": 0.5}, host_us=1.0)  # from Python, too, the kernel is what takes the time
    run = load(backends=(*EXPERIMENT, "int4-splitk"), factors=truth.factors, host_us=truth.host_us)
    removal = "too little parallelism" + (", from Python" if launch == "eager" else "")
    for K, N in STUDY_SHAPES:
        problem = GemmProblem(1, N, K)
        planted, other = (
            1 - truth.latency_us(backend, problem, launch) / truth.latency_us("int4-no-split", problem, launch)
            for backend in ("int4-splitk", "int4")
        )
        assert saved(run, removal, (K, N))["value"] == pytest.approx(planted, abs=0.015)
        assert other > planted + 0.05, "the other form would be seen"


@pytest.mark.parametrize("cause", [*causes.FROM_PYTHON])
def test_called_from_python_a_removal_is_timed_from_python(load, cause):
    """At the narrow shape the host sets both times, so what the kernel saves in a graph is not seen."""
    run, truth = load(), synthetic.Truth()
    rows = causes.removals(run)
    (left, with_it), (right, without) = causes.FROM_PYTHON[cause]
    assert with_it == without == "eager"
    for K, N in STUDY_SHAPES:
        problem = GemmProblem(1, N, K)
        planted = 1 - truth.latency_us(right, problem, "eager") / truth.latency_us(left, problem, "eager")
        (row,) = rows[(rows["from_python"] == cause) & (rows["K"] == K) & (rows["N"] == N)].to_dict("records")
        assert row["value"] == pytest.approx(planted, abs=0.015)
    (narrow,) = rows[(rows["from_python"] == cause) & (rows["N"] == NARROW[1])].to_dict("records")
    assert narrow["value"] < 0.05 < saved(run, cause, NARROW)["value"]
    assert "from Python" not in set(rows["cause"]), "the figures draw the removals in a graph"


def test_what_gets_slower_saves_less_than_nothing(load):
    assert saved(load(), "K split over twice the programs", NARROW)["high"] < 0


# --- the verdict could go any way -----------------------------------------------------------------------------------

# what is planted at the narrow shape, and the answer called from Python and in a graph
PLANTED = {
    "launch": ({}, FAILS, "it is the launch", FAILS, "it is too little parallelism"),
    "parallelism": ({("int4-no-split", *NARROW): 12.0}, FAILS, "too little", FAILS, "too little parallelism"),
    "dequantisation": ({("int4-naive-dequant", *NARROW): 20.0}, HOLDS, "it is dequantisation", HOLDS, "dequantisation"),
    "dequantisation in a graph": (
        {("int4-naive-dequant", *NARROW): 2.0}, FAILS, "it is the launch", HOLDS, "it is dequantisation",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("factors", "called", "answer", "in_graph", "graph_answer"), PLANTED.values(), ids=PLANTED)
def test_the_answer_follows_the_planted_cause(load, factors, called, answer, in_graph, graph_answer):
    found = verdicts.of_run(load(factors))
    eager, graph = found["cause_narrow"], found["cause_narrow_graph"]
    assert (eager.state, graph.state) == (called, in_graph)
    assert answer in eager.sentence
    assert graph_answer in graph.sentence
    card = dequantisation_page.card("narrow", found).data
    assert eager.sentence in card
    assert graph.sentence in card


def test_every_regime_has_its_own_answer(load):
    found = verdicts.of_run(load({("int4-no-split", *WIDE): 0.8, ("int4-naive-dequant", *WIDE): 3.0}))
    assert found["cause_wide"].state == HOLDS
    assert found["cause_tall_graph"].state == FAILS
    assert found["cause_wide"].numbers["dequantisation_value"] > found["cause_wide"].numbers["launch_high"]


def test_no_removal_that_saves_time_decides_nothing(load):
    truth, problem = synthetic.Truth(), GemmProblem(1, NARROW[1], NARROW[0])
    level = {
        ("int4-no-split", *NARROW): 0.9
        * truth.latency_us("int4", problem)
        / truth.latency_us("int4-no-split", problem),
        ("int4-naive-dequant", *NARROW): 0.7,
    }
    verdict = verdicts.of_run(load(level))["cause_narrow_graph"]
    assert verdict.state == UNDECIDED
    assert "no removal certainly saves time" in verdict.sentence


def test_two_causes_that_save_the_same_cannot_be_told_apart(load):
    truth, problem = synthetic.Truth(noise=0.05), GemmProblem(1, NARROW[1], NARROW[0])
    dequant = truth.latency_us("int4-naive-dequant", problem) / truth.latency_us("int4-no-dequant", problem)
    split = truth.latency_us("int4-no-split", problem) / truth.latency_us("int4", problem)
    verdict = verdicts.of_run(load({("int4-naive-dequant", *NARROW): split / dequant}, noise=0.05))[
        "cause_narrow_graph"
    ]
    assert verdict.state == UNDECIDED
    assert "cannot be told apart" in verdict.sentence


@pytest.mark.parametrize(
    ("missing", "word"), [("int4-naive-dequant", "dequantisation"), ("int4-no-split", "parallelism")]
)
def test_a_cause_that_was_not_varied_is_named_and_decides_nothing(load, missing, word):
    run = load(backends=[backend for backend in EXPERIMENT if backend != missing])
    verdict = verdicts.of_run(run)["cause_narrow"]
    assert verdict.state == UNDECIDED
    assert "did not vary" in verdict.sentence
    assert word in verdict.sentence


# --- how the kernels were launched -----------------------------------------------------------------------------------


def test_programs_walk_the_part_of_k_that_their_split_leaves(load):
    table = causes.programs(load()).set_index(["backend", "K", "N"])
    assert table.loc[("int4-no-split", *TALL), "k_per_program"] == 14336
    assert table.loc[("int4", *TALL), "k_per_program"] == 14336 / 4
    assert table.loc[("int4-more-split", *TALL), "k_per_program"] == 14336 / 8
    assert table.loc[("int4", *TALL), "steps"] == 14336 / 4 / 128
    assert table.loc[("int4", *WIDE), "programs"] == 14336 / 128 * 4
    assert table.loc[("int4", *WIDE), "programs_per_sm"] == pytest.approx(448 / 132)


# --- what a page shows ----------------------------------------------------------------------------------------------


def test_the_tables_of_a_run_without_the_experiment_are_empty(load):
    run = load(backends=("int4-static", "int4", "int4-no-dequant"))
    rows = causes.removals(run)
    assert set(rows["removal"]) == {"launch", "the lop3 dequantisation"}
    assert dequantisation_page.savings(rows).empty
    assert dequantisation_page.splits(run).empty


def test_the_table_of_savings_has_every_shape_of_the_sweep(load):
    shown = dequantisation_page.savings(causes.removals(load(shapes=SWEEP)))
    assert len(shown) == len(SWEEP)
    assert shown.notna().all(axis=None)


def test_the_first_paragraph_names_where_dequantisation_is_the_largest_cost(load):
    found = verdicts.of_run(load({("int4-naive-dequant", *WIDE): 3.0}))
    told = dequantisation_page.largest(found).data
    wide, narrow = ("×".join(map(str, shape)) for shape in (WIDE, NARROW))
    assert (found["cause_wide_graph"].state, found["cause_narrow_graph"].state) == (HOLDS, FAILS)
    assert told.index(wide) < told.index(narrow)
