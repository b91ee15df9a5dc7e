"""The chapter on launching: what the host hides, from where on it does not, and what a step pays."""

import dataclasses

import pytest
import synthetic
from derived import also, primary, slowed

from tinygemm.problem import REPORT_SHAPES, STUDY_SHAPES, GemmProblem
from tinygemm.report.base import host, tables
from tinygemm.report.base.bounds import NAMED
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.gains import launch, launch_claims, launch_page

BACKENDS = ("fp16-cublas", "int4", "int4-serial", "aten-int4mm")
MODES = (("graph", "cold"), ("eager", "cold"))


def load(root, shapes=REPORT_SHAPES, modes=MODES, **truth):
    truth = synthetic.Truth(**({"noise": 0.002, "drift": 0.0} | truth))
    return synthetic.load(root, m_list=(1,), shapes=shapes, backends=BACKENDS, modes=modes, truth=truth, counters=False)


def judge(run):
    return launch_claims.of_launch(run, tables.report_table(run))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A host that needs 14 us: longer than every INT4 call but the widest, shorter than the wide FP16 ones."""
    return load(tmp_path_factory.mktemp("run"))


def eager_slower(run, backend, factor):
    mine = run.cases["backend"].eq(backend) & run.cases["launch"].eq("eager")
    slow = run.samples["case_id"].isin(run.cases.loc[mine, "case_id"])
    latency = run.samples["latency_us"].where(~slow, factor * run.samples["latency_us"])
    return dataclasses.replace(run, samples=run.samples.assign(latency_us=latency))


# --- the gain -------------------------------------------------------------------------------------------------------


def test_gains_are_the_speedups_of_both_modes(run):
    rows = launch.gains(tables.report_table(run))
    assert len(rows) == len(REPORT_SHAPES)
    truth, problem = synthetic.Truth(), GemmProblem(1, 14336, 4096)
    row = rows[(rows["K"] == 4096) & (rows["N"] == 14336)].iloc[0]
    for mode in ("graph", "eager"):
        planted = [truth.latency_us(backend, problem, mode) for backend in ("fp16-cublas", "int4")]
        assert row[mode] == pytest.approx(planted[0] / planted[1], rel=0.01)


def test_launch_hides_the_gain_where_python_makes_int4_the_slower_one(run, tmp_path):
    assert judge(run)["hides"].state == FAILS, "with a fast host the wide shapes keep their gain"
    hidden = judge(eager_slower(run, "int4", 10))["hides"]
    assert hidden.state == HOLDS
    assert hidden.numbers["n_hidden"] == len(REPORT_SHAPES)
    graphs = load(tmp_path, shapes=STUDY_SHAPES, modes=(("graph", "cold"),))
    assert judge(graphs)["hides"].state == UNDECIDED


def test_the_least_gain_stands_first_where_a_sentence_cannot_name_all(run):
    rows = launch.gains(tables.report_table(run))
    rows = rows.assign(eager=[1.2 + 0.1 * i for i in range(len(rows))], eager_low=1.1, eager_high=3.0)
    said = launch_claims.launch_hides_the_gain(rows).sentence
    assert len(rows) > NAMED
    assert f"{1.2:.2f}×" in said
    assert f"{rows['eager'].max():.2f}× from Python" not in said


# --- the host -------------------------------------------------------------------------------------------------------


def test_the_host_bounds_int4_up_to_the_planted_n(run):
    truth = synthetic.Truth()
    found = launch.host_bound(tables.report_table(run))
    assert found["host_us"] == pytest.approx(truth.host_us, rel=0.01)
    device = {N: truth.latency_us("int4", GemmProblem(1, N, 4096)) for K, N in REPORT_SHAPES if K == 4096}
    assert found["last_bound_N"] == max(N for N, us in device.items() if us < truth.host_us)
    assert found["first_free_N"] == min(N for N, us in device.items() if us >= truth.host_us)


def test_a_slow_host_bounds_every_call_and_the_page_says_so(tmp_path):
    slow = load(tmp_path, host_us=400.0)
    found = launch.host_bound(tables.report_table(slow))
    assert found["first_free_N"] != found["first_free_N"]
    assert "and clearly longer at no N measured" in launch_page.host_bound(tables.report_table(slow)).data


def test_a_call_as_long_as_the_host_takes_is_neither_bound_by_it_nor_free_of_it(run):
    """Planted: the widest call takes what the host does at the narrowest."""
    table = tables.report_table(run)
    host = table[(table["backend"] == "int4") & (table["launch"] == "eager") & (table["N"] == 512)].iloc[0]
    ends = ["latency_us_low", "latency_us_p50", "latency_us_high"]
    wide = (table["N"] == 28672) & (table["launch"] == "graph") & (table["backend"] == "int4")
    table.loc[wide, ends] = host[ends].to_numpy()
    found = launch.host_bound(table)
    assert found["last_bound_N"] < 28672
    assert found["first_free_N"] != 28672


def test_host_costs_are_taken_where_the_device_has_least_to_do(run):
    rows = launch.host_costs(tables.report_table(run)).set_index("backend")
    assert set(rows["N"]) == {512}
    assert rows.loc["aten-int4mm", "host_us"] == pytest.approx(14, rel=0.01)
    assert rows.loc["int4", "device_us"] < rows.loc["int4", "host_us"]


@pytest.mark.parametrize(("factor", "state"), [(0.8, HOLDS), (1.2, FAILS), (1.0, UNDECIDED)])
def test_the_host_cost_is_judged_against_pytorchs_kernel(run, factor, state):
    verdict = judge(eager_slower(run, "int4", factor))["host"]
    assert verdict.state == state
    assert verdict.numbers["value"] == pytest.approx(factor, rel=0.01)


# --- the device -----------------------------------------------------------------------------------------------------


def test_a_step_is_the_sum_of_its_projections(run):
    step = launch.decode_step(tables.report_table(run)).set_index("projection")
    truth = synthetic.Truth()
    planted = sum(truth.latency_us("int4", GemmProblem(1, N, K)) for K, N in launch.STEP.values())
    assert step.loc["one layer", "int4_graph"] == pytest.approx(planted, rel=0.01)
    assert step.loc["32 layers", "int4_graph"] == pytest.approx(32 * planted, rel=0.01)
    assert f"{0.032 * step.loc['one layer', 'int4_graph']:.2f} ms in INT4 in graphs" in launch_page.token(step).data


def test_a_run_without_a_projection_of_the_step_has_no_step(tmp_path):
    step = launch.decode_step(tables.report_table(load(tmp_path, shapes=STUDY_SHAPES)))
    assert step.empty
    assert "did not time" in launch_page.token(step).data


def test_a_chain_splits_a_call_into_its_bytes_and_the_rest(run):
    rows = launch.chain(tables.report_table(run)).set_index(["K", "N"])
    truth, problem = synthetic.Truth(), GemmProblem(1, 14336, 4096)
    moved = problem.bytes_min(problem.int4_bits_per_weight()) / (truth.copy_gb_s * 1e3)
    row = rows.loc[(4096, 14336)]
    assert row["int4_bytes_us"] == pytest.approx(moved, rel=0.01)
    assert row["int4_beside_us"] == pytest.approx(truth.latency_us("int4", problem) - moved, rel=0.02)


@pytest.mark.parametrize(("factor", "state"), [(1.1, HOLDS), (0.95, FAILS)])
def test_overlap_gains_only_where_the_serial_call_is_slower(run, factor, state):
    without = tables.only(run, run.cases["backend"] != "int4-serial")
    both = also(without, primary(without, "int4"), factor, backend="int4-serial")
    assert judge(both)["overlap"].state == state
    assert judge(without)["overlap"].state == UNDECIDED


def test_overlap_of_bare_reads_is_shown_beside_that_of_the_kernel(run):
    reads = also(run, primary(run, "int4"), 0.5, backend="int4-load-only")
    assert set(launch.overlaps(reads)["backend"]) == {"int4"}
    both = also(reads, primary(reads, "int4-load-only"), 1.2, backend="int4-load-only-serial")
    rows = launch.overlaps(both)
    assert rows.loc[rows["backend"] == "int4-load-only", "value"].to_list() == pytest.approx([1.2] * 9, rel=0.01)


def test_a_slow_host_is_seen_by_a_kernel_that_asks_the_same_of_it_at_every_shape(tmp_path):
    """Planted: in one group the host took 1.6 times as long; where the device sets the time, nothing is said."""
    truth = synthetic.Truth(noise=0.002, drift=0.0, host_us=14.0)
    run = synthetic.load(
        tmp_path, truth=truth, m_list=(1,), shapes=REPORT_SHAPES, backends=("fp16-cublas", "int4-load-only"),
        modes=MODES, counters=False,
    )  # fmt: skip
    steady = launch_page.steadiness(tables.report_table(run)).data
    assert "slow host" not in steady
    slow = (run.cases["launch"] == "eager") & (run.cases["N"] == 4096) & (run.cases["K"] == 4096)
    table = tables.report_table(slowed(run, slow, 1.6))
    rows = host.steadiness(table)
    assert (rows["ratio"] > 1.5).sum() == 1
    assert not {28672} & set(rows["N"]), "there the device sets the time"
    assert "4096×4096, M = 1" in launch_page.steadiness(table).data
    bare = tables.only(run, run.cases["backend"] == "fp16-cublas")
    assert "did not time" in launch_page.steadiness(tables.report_table(bare)).data
