"""A sweep: which groups, in which order, what lands on disk, and that a killed one goes on where it stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from fake_gpu import GPU, FakeClock, fake_backend

from tinygemm import runs
from tinygemm.harness import choose, ncu, registry, sweep, timing
from tinygemm.harness.plan import Group, SweepPlan, groups
from tinygemm.harness.suites import Suite
from tinygemm.kernel import quant
from tinygemm.problem import GemmProblem
from tinygemm.rows import columns_of
from tinygemm.runs import RunError, load_run

SMALL = (GemmProblem(1, 32, 128), GemmProblem(2, 32, 128), GemmProblem(1, 64, 128))
CLEAN = ("3fa9c1e" + "0" * 33, False)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def lab(monkeypatch, clock):
    """A machine whose GPU is the fake one: `fast` takes 4 us, `slow` 12, and ceilings that cost nothing to make."""
    install(monkeypatch.setattr, clock)
    return clock


def install(replace, clock: FakeClock) -> None:
    fakes = [fake_backend("slow", clock, 12.0, quantised=False), fake_backend("fast", clock, 4.0)]
    replace(registry, "BACKENDS", {backend.name: backend for backend in fakes})
    ceiling = registry.Ceiling("copy", "1GiB", lambda: lambda: clock.spend(500.0), lambda call: None, 2**31, 10)
    replace(registry, "CEILINGS", {"copy": ceiling})
    replace(sweep, "bench_of_this_gpu", lambda plan, gpu: choose.Bench(plan, gpu, clock, "cpu", registry.BACKENDS))
    replace(sweep.hardware, "snapshot", lambda: GPU)
    replace(timing, "MIN_COLD_BYTES", 0)
    replace(runs, "git_state", lambda: CLEAN)
    replace(runs, "software_versions", lambda: {})


def small_plan(**settings) -> SweepPlan:
    defaults = {
        "problems": SMALL, "backends": ("slow", "fast", "copy"), "launches": ("graph", "eager"),
        "l2_states": ("cold", "hot"), "rep": 3, "warmup": 1, "counters": False,
        "counter_backends": ("slow", "fast"), "counter_problems": (SMALL[0],),
    }  # fmt: skip
    return SweepPlan(**(defaults | settings))


# --- what a group measures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["NVIDIA H200 MIG 1g.18gb", "NVIDIA Graphics Device", "NVIDIA GeForce RTX 5070"])
def test_a_gpu_whose_peaks_are_not_known_is_recorded_under_its_own_key_and_told_so(lab, tmp_path, monkeypatch, name):
    key = sweep.hardware.gpu_key(name, (9, 0))
    monkeypatch.setattr(sweep.hardware, "snapshot", lambda: GPU | {"key": key, "name": name})
    said = []
    run = load_run(sweep.record(small_plan(), tmp_path, say=said.append))
    assert run.path.parent.name == run.gpu["key"] == key != "h200"
    assert (run.cases["status"] == "ok").all()
    assert any("peaks" in text and name in text for text in said)


def test_a_recorded_run_holds_every_case_with_its_samples(lab, tmp_path):
    path = sweep.record(small_plan(), tmp_path, command="tinygemm record -f /home/ada/p.yaml", say=lambda text: None)
    run = load_run(path)
    assert run.cases["case_id"].tolist() == [i for group in groups(small_plan()) for i in group.case_ids]
    assert (run.cases["status"] == "ok").all()
    medians = run.samples.merge(run.cases).groupby("backend")["latency_us"].median()
    assert medians.to_dict() == {"slow": 12.0, "fast": 4.0, "copy": 500.0}
    assert (run.samples.groupby("case_id").size() == 3).all()
    assert run.provenance["command"] == "tinygemm record -f p.yaml"
    (own,) = run.provenance["parameters"]["suites"]
    assert own["problems"] == {"128": "1,128,32;2,128,32;1,128,64"}


def test_a_case_says_what_was_measured_and_how(lab, tmp_path):
    lab.readings = [timing.Reading(1980.0, 3201.0, None, 41.0)]
    cases = load_run(sweep.record(small_plan(), tmp_path, say=lambda text: None)).cases.set_index("case_id")
    case = cases.loc["fast/M2-K128-N32-g128/graph-cold"]
    packed_bytes = 128 * 32 // 2 + 2 * 32  # the words and the scales
    assert (case["M"], case["N"], case["K"], case["group_size"], case["dtype"]) == (2, 32, 128, 128, "float16")
    assert (case["n_samples"], case["n_calls"]) == (3, 50)
    assert case["n_copies"] == max(2, -(-5 * GPU["l2_bytes"] // packed_bytes))
    assert 0 < case["rms_err"] < case["max_err"] < 2e-2
    assert (case["sm_clock_mhz"], case["mem_clock_mhz"], case["temp_c"]) == (1980, 3201, 41)
    assert pd.isna(case["power_w"])
    assert case["flops"] == 2 * 2 * 32 * 128
    assert cases.loc["fast/M2-K128-N32-g128/graph-hot", "n_copies"] == 1
    assert cases.loc["slow/M2-K128-N32-g128/graph-cold", "group_size"] == 0
    copy = cases.loc["copy/1GiB/graph-cold"]
    assert (copy["M"], copy["flops"], copy["bytes_min"], copy["n_calls"]) == (0, 0, 2**31, 10)


def test_suites_are_measured_together_and_every_case_keeps_its_own_terms(lab, tmp_path):
    """One group of two suites, zeros beside random operands, and do_bench, in one run."""
    suites = (
        Suite("a", SMALL[:1], ("slow",), rep=3),
        Suite("b", SMALL[:1], ("fast",), rep=5),
        Suite("c", SMALL[:1], ("slow", "fast"), operands="zeros", rep=2),
        Suite("d", SMALL[:1], ("slow", "fast"), (("do_bench", "cold"), ("graph", "warm")), rep=2),
    )
    plan = small_plan(problems=(), suites=suites, warmup=1)
    run = load_run(sweep.record(plan, tmp_path, say=lambda text: None))
    assert (run.cases["status"] == "ok").all(), run.cases["message"].tolist()
    cases = run.cases.set_index("case_id")
    samples = {mode: cases.loc[f"slow/{SMALL[0]}/{mode}", "n_samples"] for mode in ("graph-cold", "graph-cold-zeros")}
    assert samples == {"graph-cold": 5, "graph-cold-zeros": 2}
    assert cases.groupby("operands").size().to_dict() == {"random": 6, "zeros": 2}
    assert (cases.loc[cases["operands"] == "zeros", "max_err"] == 0).all()
    assert (cases.loc[cases["operands"] == "random", "max_err"] > 0).all()
    do_bench = cases[cases["launch"] == "do_bench"]
    assert set(do_bench["n_samples"]) == {8}, "as many as the contender with the fewest"
    assert set(do_bench["n_calls"]) == set(do_bench["n_copies"]) == {1}
    packed_bytes = 128 * 32 // 2 + 2 * 32
    assert cases.loc[f"fast/{SMALL[0]}/graph-warm", "n_copies"] == max(2, -(-1.5 * GPU["l2_bytes"] // packed_bytes))
    medians = run.samples.groupby("case_id")["latency_us"].median()
    assert medians[f"slow/{SMALL[0]}/do_bench-cold"] == 14.0


@pytest.mark.parametrize("primes", [True, False])
def test_graphs_after_a_dependent_launch_are_timed_where_there_is_one(lab, tmp_path, primes):
    lab.primes = primes
    plan = small_plan(problems=SMALL[:1], launches=("primed",), l2_states=("cold",))
    run = load_run(sweep.record(plan, tmp_path, say=lambda text: None))
    status = {launch: set(cases["status"]) for launch, cases in run.cases.groupby("launch")}
    assert status == {"graph": {"ok"}, "primed": {"ok" if primes else "unsupported"}}
    assert set(run.cases.loc[run.cases["launch"] == "graph", "backend"]) == {"copy"}, "the ideal of the primary number"
    primed = run.cases[run.cases["launch"] == "primed"]
    assert set(primed["backend"]) == {"slow", "fast", "copy"}
    assert primed["message"].str.contains("no dependent launch").all() != primes
    assert {entry[4] for entry in lab.log if entry[0] == "round"} == ({False, True} if primes else {False})


def test_a_backend_is_verified_only_where_a_group_wants_it(lab, monkeypatch):
    checked = []
    check = choose._check
    monkeypatch.setattr(choose, "_check", lambda *a: checked.append((a[1].name, str(a[3].problem))) or check(*a))
    suites = (Suite("a", SMALL[:1], ("slow",)), Suite("b", SMALL[1:2], ("fast",)))
    plan = small_plan(problems=(), suites=suites, warmup=0)
    list(sweep.measure(sweep.bench_of_this_gpu(plan, GPU), groups(plan)))
    assert checked == [("slow", str(SMALL[0])), ("fast", str(SMALL[1]))]


def test_launch_modes_differ_in_what_is_captured(lab):
    list(
        sweep.measure(
            sweep.bench_of_this_gpu(small_plan(launches=("eager",)), GPU), groups(small_plan(launches=("eager",)))
        )
    )
    assert not [entry for entry in lab.log if entry[0] == "capture"]
    assert {entry[2] for entry in lab.log if entry[0] == "round"} == {False}


@pytest.mark.parametrize(("launches", "chosen"), [(("primed", "eager"), "graph"), (("eager",), "eager")])
def test_variants_race_as_they_will_be_timed(lab, monkeypatch, launches, chosen):
    trials = []
    ready = choose._ready
    monkeypatch.setattr(choose, "_ready", lambda *a: trials.append(a[2].launch) or ready(*a))
    plan = small_plan(problems=SMALL[:1], launches=launches)
    list(sweep.measure(sweep.bench_of_this_gpu(plan, GPU), groups(plan)))
    assert trials == [chosen] * 2


def test_graphs_are_forgotten_before_every_group_that_captures_new_ones(lab, monkeypatch):
    """Otherwise a long sweep uses up the counters of captured split-K calls, and its later cases get slower."""
    monkeypatch.setattr(registry, "forget_graphs", lambda: lab.log.append(("forget",)))
    plan = small_plan(backends=("slow", "fast"))
    list(sweep.measure(sweep.bench_of_this_gpu(plan, GPU), groups(plan)))
    kinds = [entry[0] for entry in lab.log if entry[0] in ("forget", "capture")]
    assert kinds == (["forget", "capture", "capture"] * 2 + ["forget"] * 2) * 3


def test_a_weight_is_made_once_for_all_token_counts_and_modes(lab, monkeypatch):
    made = []
    original = registry.operands
    monkeypatch.setattr(
        registry, "operands", lambda problem, *rest: made.append((problem.K, problem.N)) or original(problem, *rest)
    )
    list(sweep.measure(sweep.bench_of_this_gpu(small_plan(), GPU), groups(small_plan())))
    assert made == [(128, 32), (128, 64)]


def test_contenders_are_verified_before_any_of_them_is_timed(lab, monkeypatch):
    order = []
    check = registry.BACKENDS["fast"].check
    for name in ("slow", "fast"):
        object.__setattr__(
            registry.BACKENDS[name], "check", lambda *a, name=name: order.append(f"check {name}") or check(*a)
        )
    interleave = timing.interleave
    monkeypatch.setattr(timing, "interleave", lambda *a: order.append("time") or interleave(*a))
    todo = groups(small_plan(problems=SMALL[:1], backends=("slow", "fast")))
    list(sweep.measure(sweep.bench_of_this_gpu(small_plan(), GPU), todo))
    assert order == ["check slow"] * 2 + ["check fast"] * 2 + ["time"] * 4


def test_a_mismatch_is_recorded_with_its_error_and_without_samples(lab, tmp_path):
    wrong = fake_backend("fast", lab, product=lambda x, w: torch.zeros(x.shape[0], w.N))
    registry.BACKENDS["fast"] = wrong
    run = load_run(sweep.record(small_plan(), tmp_path, say=lambda text: None))
    bad = run.cases[run.cases["backend"] == "fast"]
    assert set(bad["status"]) == {"mismatch"}
    assert (bad["max_err"] > 1).all()
    assert bad["message"].str.contains("error against float64").all()
    assert not run.samples["case_id"].str.startswith("fast").any()
    assert (run.cases.loc[run.cases["backend"] == "slow", "n_samples"] == 3).all()


def test_a_variant_that_is_left_out_is_recorded_with_the_case_that_was_timed(lab, tmp_path):
    """How many variants a backend had to choose from is part of how it was measured."""

    def failing(error):
        def product(x, w):
            raise error

        return product

    (good,) = registry.BACKENDS["fast"].variants(SMALL[0], "h200")
    wrong = {
        "zeros": lambda x, w: torch.zeros(x.shape[0], w.N),
        "ptxas": failing(RuntimeError("ptxas failed on /tmp/x/k.ptx\nand more")),
    }
    bad = [
        fake_backend("fast", lab, product=wrong[name], variants=(name,)).variants(SMALL[0], "h200") for name in wrong
    ]
    ways = [good, *bad[0], *bad[1]]
    registry.BACKENDS["fast"] = fake_backend("fast", lab, 4.0, variants=())
    object.__setattr__(registry.BACKENDS["fast"], "variants", lambda *_: ways)
    cases = load_run(sweep.record(small_plan(), tmp_path, say=lambda text: None)).cases
    fast = cases[cases["backend"] == "fast"]
    assert (fast["status"] == "ok").all()
    for message in fast["message"]:
        first, last = message.split("; ptxas: ")
        assert first.startswith("left out: zeros: error against float64: max ")
        assert last == "RuntimeError: ptxas failed on k.ptx"
        assert len(message) < 2 * choose.REASON_LENGTH + 40
    assert (cases.loc[cases["backend"] != "fast", "message"] == "").all()


def test_a_recorded_run_cannot_skip_verification(lab, tmp_path):
    with pytest.raises(ValueError, match="verifies every case"):
        sweep.record(small_plan(verify=False), tmp_path)
    assert not list(tmp_path.iterdir())


def test_bench_times_what_is_not_verified_and_records_nothing(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "DATA_ROOT", tmp_path)
    cases, samples = sweep.bench(small_plan(verify=False))
    assert cases.columns.tolist() == columns_of(runs.Case)
    assert (cases["status"] == "ok").all()
    assert cases["max_err"].isna().all()
    assert len(samples) == 3 * len(cases)
    assert not list(tmp_path.iterdir())


def test_a_contender_that_fails_when_it_is_prepared_leaves_the_others_alone(lab):
    def capture(calls):
        lab.log.append(("capture", len(calls)))
        if len([entry for entry in lab.log if entry[0] == "capture"]) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return lambda: [call() for call in calls]

    object.__setattr__(lab, "capture", capture)
    plan = small_plan(problems=SMALL[:1], backends=("slow", "fast"), launches=("graph",), l2_states=("cold",))
    ((cases, samples),) = sweep.measure(sweep.bench_of_this_gpu(plan, GPU), groups(plan))
    assert [case.status for case in cases] == ["ok", "out_of_memory"]
    assert cases[1].max_err is not None, "it was verified before it ran out of memory"
    assert {sample.case_id for sample in samples} == {cases[0].case_id}


def test_a_failure_while_timing_is_the_whole_groups(lab):
    def time_round(runs, **_):
        raise RuntimeError("launch failed")

    object.__setattr__(lab, "time_round", time_round)
    plan = small_plan(problems=SMALL[:1], backends=("slow", "fast"), launches=("graph",), l2_states=("cold",))
    ((cases, samples),) = sweep.measure(sweep.bench_of_this_gpu(plan, GPU), groups(plan))
    assert [case.status for case in cases] == ["error", "error"]
    assert cases[0].message == "while timing the group: RuntimeError: launch failed"
    assert samples == []


# --- stopped and gone on with ---------------------------------------------------------------------------------------


def break_after(clock: FakeClock, rounds: int) -> None:
    """The context is lost in some round: every later call raises."""
    original = clock.time_round

    def time_round(*arguments, **settings):
        if sum(entry[0] == "round" for entry in clock.log) == rounds:
            clock.broken = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return original(*arguments, **settings)

    object.__setattr__(clock, "time_round", time_round)


def test_a_lost_context_leaves_a_run_that_can_be_finished(lab, tmp_path, monkeypatch):
    whole = load_run(sweep.record(small_plan(), tmp_path / "whole", say=lambda text: None))
    said = []
    fresh = FakeClock()
    break_after(fresh, 22)
    install(monkeypatch.setattr, fresh)
    with pytest.raises(sweep.SweepStoppedError, match="illegal memory access"):
        sweep.record(small_plan(), tmp_path / "stopped", say=said.append)
    (partial,) = tmp_path.glob("stopped/h200/*.partial")
    assert said[-1] == f"stopped; go on with: tinygemm record --resume {partial}"
    assert len(runs.read_table(partial / "cases.csv")) == 9

    install(monkeypatch.setattr, again := FakeClock())
    run = load_run(sweep.record(small_plan(), tmp_path / "stopped", resume=partial, say=lambda text: None))
    assert sum(entry[0] == "round" for entry in again.log) == 4 * (13 - 5)
    pd.testing.assert_frame_equal(run.cases, whole.cases)
    pd.testing.assert_frame_equal(run.samples, whole.samples)


def test_a_group_that_is_only_partly_on_disk_is_measured_again_as_a_whole(lab, tmp_path):
    writer = runs.RunWriter.create(GPU, small_plan().parameters(), "", tmp_path)
    for rows in sweep.measure(sweep.bench_of_this_gpu(small_plan(), GPU), groups(small_plan())[:3]):
        writer.append(*rows)
    lines = (writer.path / "cases.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (writer.path / "cases.csv").write_text("".join(lines[:-1]), encoding="utf-8")
    writer = runs.RunWriter.resume(writer.path, GPU, small_plan().parameters())
    todo = sweep.unfinished_groups(small_plan(), writer)
    assert todo == groups(small_plan())[2:]
    assert writer.done() == {case_id for group in groups(small_plan())[:2] for case_id in group.case_ids}


def test_another_plan_is_not_mixed_into_a_run(lab, tmp_path):
    writer = runs.RunWriter.create(GPU, small_plan().parameters(), "", tmp_path)
    with pytest.raises(RunError, match="cannot be resumed: its parameters was"):
        sweep.record(small_plan(rep=4), tmp_path, resume=writer.path, say=lambda text: None)


KILLED = """
import os, sys, time
sys.path.insert(0, {tests!r})
import test_sweep
from fake_gpu import FakeClock
from tinygemm.harness import sweep
clock = FakeClock()
test_sweep.install(setattr, clock)
original = clock.time_round
def slow(*a, **k):
    print("round", flush=True)
    time.sleep(0.02)
    return original(*a, **k)
object.__setattr__(clock, "time_round", slow)
sweep.record(test_sweep.small_plan(), __import__("pathlib").Path({root!r}), say=lambda text: None)
"""


def test_a_process_that_is_killed_loses_only_the_group_in_flight(lab, tmp_path):
    code = KILLED.format(tests=str(Path(__file__).parent), root=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    )
    for _ in range(4 * 7 + 2):  # rounds of seven groups, and half of the eighth
        assert process.stdout.readline() == "round\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    (partial,) = tmp_path.glob("h200/*.partial")
    done = runs.RunWriter.resume(partial, GPU, small_plan().parameters()).done()
    assert done >= {case_id for group in groups(small_plan())[:7] for case_id in group.case_ids}
    run = load_run(sweep.record(small_plan(), tmp_path, resume=partial, say=lambda text: None))
    assert run.cases["case_id"].tolist() == [i for group in groups(small_plan()) for i in group.case_ids]
    assert (run.samples.groupby("case_id").size() == 3).all()


# --- counters of a run ----------------------------------------------------------------------------------------------


def test_counters_are_taken_of_the_cases_that_were_timed(lab, tmp_path, monkeypatch):
    registry.BACKENDS["slow"] = fake_backend("slow", lab, product=lambda x, w: torch.zeros(x.shape[0], w.N))
    asked = []

    def collect(targets, say):
        asked.extend(targets)
        rows = [runs.Counter(t.case_id, 0, 0, "k", "gpu__time_duration.sum", 5.0, "nsecond") for t in targets]
        return rows, {"fast.csv": "raw"}

    monkeypatch.setattr(ncu, "collect", collect)
    run = load_run(sweep.record(small_plan(counters=True), tmp_path, say=lambda text: None))
    assert [target.case_id for target in asked] == ["fast/M1-K128-N32-g128/graph-cold"]
    assert run.counters["case_id"].tolist() == ["fast/M1-K128-N32-g128/graph-cold"]
    assert (run.path / "ncu" / "fast.csv").read_text(encoding="utf-8") == "raw"


@pytest.mark.parametrize("error", [ncu.CountersUnavailableError, ncu.CounterFileError])
def test_a_run_whose_counters_fail_is_kept_and_says_so(lab, tmp_path, monkeypatch, error):
    def collect(targets, say):
        raise error(ncu.PERMISSION_HELP)

    monkeypatch.setattr(ncu, "collect", collect)
    said = []
    run = load_run(sweep.record(small_plan(counters=True), tmp_path, say=said.append))
    assert run.counters.empty
    assert len(run.cases) == 25
    assert "NVreg_RestrictProfilingToAdminUsers=0" in said[-1]


def test_a_group_names_its_cases_after_its_problem():
    group = Group(SMALL[0], str(SMALL[0]), "eager", "hot", ("fp16-cublas", "int4"))
    assert group.case_ids == ["fp16-cublas/M1-K128-N32-g128/eager-hot", "int4/M1-K128-N32-g128/eager-hot"]


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_small_sweep_on_the_gpu_is_recorded_and_reads_back(tmp_path):
    problems = (GemmProblem(1, 1024, 4096), GemmProblem(4, 1024, 4096))
    backends = ("fp16-cublas", "int4-static", "int4", "aten-int4mm", "copy", "empty-node")
    plan = SweepPlan(problems, backends=backends, launches=("graph", "eager"), rep=5, warmup=2, counters=False)
    run = load_run(sweep.record(plan, tmp_path), allow_dirty=True)
    unmeasured = run.cases[run.cases["status"] != "ok"]
    assert unmeasured.empty, unmeasured[["case_id", "status", "message"]].to_string()
    medians = run.samples.groupby("case_id")["latency_us"].median()
    for problem in problems:
        fp16, int4 = (medians[runs.case_id(name, problem, "graph", "cold")] for name in ("fp16-cublas", "int4"))
        assert int4 < fp16
        assert medians[runs.case_id("int4", problem, "eager", "cold")] > int4
    assert 0.1 < medians["empty-node/empty/graph-cold"] < 5
    assert run.cases["sm_clock_mhz"].dropna().between(300, 3000).all()


@pytest.mark.gpu
def test_captured_calls_never_run_out_of_counters(tmp_path):
    """A split-K call whose counters must be zeroed in the graph carries one node more; no sweep may get there."""
    from tinygemm.kernel import workspace

    problems, backends = (GemmProblem(1, 512, 4096),), ("int4-more-split",)
    plan = SweepPlan(problems, backends=backends, launches=("graph",), rep=2, warmup=0, counters=False)
    bench = sweep.bench_of_this_gpu(plan, sweep.hardware.snapshot())
    for _ in sweep.measure(bench, groups(plan) * 40):
        (pool,) = workspace._pools.values()
        assert pool[0].numel() > workspace.POOL_COUNTERS // 2


# --- what the calls of a sample read --------------------------------------------------------------------------------


class AddressClock(FakeClock):
    """Notes for every run that it times the addresses of the weights that its calls got, in order."""

    def time_round(self, runs, **settings):
        def noted(run):
            def timed():
                self.touched = []
                run()
                self.addresses.append(self.touched)

            return timed

        return super().time_round([noted(run) for run in runs], **settings)


@pytest.fixture
def addresses(monkeypatch):
    """measure(launch, l2_state, variants) -> for each run that was timed, the addresses that its calls read."""

    def measure(launch, l2_state, variants=("",)):
        clock = AddressClock()
        clock.addresses, clock.touched = [], []
        install(monkeypatch.setattr, clock)

        def product(x, weight):
            clock.touched.append(weight.qweight.data_ptr())
            return (x.double() @ quant.dequantize(weight, torch.float64).t()).to(x.dtype)

        one = fake_backend("one", clock, dict.fromkeys(variants, 3.0), product, variants)
        monkeypatch.setattr(registry, "BACKENDS", {"one": one})
        plan = small_plan(problems=SMALL[:1], backends=("one",), launches=(launch,), l2_states=(l2_state,),
                          counter_backends=())  # fmt: skip
        cases = [case for found, _ in sweep.measure(sweep.bench_of_this_gpu(plan, GPU), groups(plan)) for case in found]
        assert [case.status for case in cases] == ["ok"]
        assert cases[0].n_copies == COPIES[l2_state]
        return clock.addresses

    return measure


COPIES = {"cold": 3, "warm": 2, "hot": 1}  # of 2,112 bytes beside an L2 of 1,000


@pytest.mark.parametrize("l2_state", COPIES)
@pytest.mark.parametrize("launch", ["graph", "primed"])
@pytest.mark.parametrize("variants", [("",), ("a", "b")], ids=["one variant", "variants raced"])
def test_the_calls_of_a_graph_read_all_copies_equally_often(addresses, launch, l2_state, variants):
    runs = addresses(launch, l2_state, variants)
    races, timed = runs[:-4], runs[-4:]  # one warm-up and three samples; the race between variants is always cold
    assert bool(races) == (len(variants) > 1)
    for reads, copies in [(each, COPIES["cold"]) for each in races] + [(each, COPIES[l2_state]) for each in timed]:
        often = [reads.count(address) for address in set(reads)]
        assert len(often) == copies
        assert max(often) - min(often) <= 1


def test_eager_calls_read_all_copies_in_turn(addresses):
    reads = [address for run in addresses("eager", "cold") for address in run]
    assert len(set(reads)) == COPIES["cold"]
    assert reads == (reads[: COPIES["cold"]] * len(reads))[: len(reads)]
