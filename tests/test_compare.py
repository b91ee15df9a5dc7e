"""Two runs side by side: planted ratios come back, planted differences of claims are named, gaps become sentences.

The A10G of these tests is synthetic, and its name says so: nobody measured it.
"""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import synthetic
from test_cli import refuse, succeed

from tinygemm.problem import GemmProblem
from tinygemm.report.compare import figures, page, words
from tinygemm.report.compare import tables as compared
from tinygemm.runs import load_run

NAME = "synthetic A10G"
SLOW = synthetic.Truth(copy_gb_s=500.0, empty_us=1.5, factors={"int4": 4.0}, noise=1e-3, drift=0.0)
FAST = synthetic.Truth(noise=1e-3, drift=0.0)
BACKENDS = ("fp16-cublas", "fp16-triton", "int4-static", "int4", "int4-no-dequant", "int4-load-only")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of runs: an H200, and an A10G whose tuned kernel is slowed down so that claims change."""
    root = tmp_path_factory.mktemp("data")
    asked = {"backends": BACKENDS, "m_list": (1,), "modes": (("graph", "cold"), ("eager", "cold")), "counters": False}
    asked["n_samples"] = 12
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synthetic.GPUS, "a10g", synthetic.GPUS["a10g"] | {"name": NAME})
        synthetic.write_run(root, gpu="a10g", truth=SLOW, **asked)
    synthetic.write_run(root, truth=FAST, **asked | {"backends": (*BACKENDS, "aten-int4mm")})
    return root


@pytest.fixture(scope="module")
def runs(data):
    return {path.parent.name: load_run(path) for path in data.glob("*/*")}


@pytest.fixture(scope="module")
def cases(runs):
    return compared.shared_cases(runs["a10g"], runs["h200"])


@pytest.fixture(scope="module")
def found(runs):
    return compared.verdicts(runs["a10g"], runs["h200"]).set_index("key")


def test_ratio_of_a_case_is_the_planted_one_and_its_interval_covers_it(cases):
    rows = cases[(cases["launch"] == "graph") & cases["backend"].isin(BACKENDS)]
    truth = []
    for row in rows.itertuples():
        problem = GemmProblem(row.M, row.N, row.K)
        truth.append(FAST.latency_us(row.backend, problem) / SLOW.latency_us(row.backend, problem))
    assert rows["ratio"].tolist() == pytest.approx(truth, rel=5e-3)
    assert (rows["ratio_low"] < rows["ratio"]).all()
    assert (rows["ratio"] < rows["ratio_high"]).all()
    assert rows["ratio"].between(rows["ratio_low"], rows["ratio_high"]).all()
    assert pd.Series(truth, rows.index).between(rows["ratio_low"], rows["ratio_high"]).mean() > 0.85


def test_a_spread_between_runs_widens_every_interval(runs, cases):
    wider = compared.shared_cases(runs["a10g"], runs["h200"], spread=0.02)
    assert (wider["ratio_high"] / wider["ratio_low"]).min() > 1.04
    assert (wider["ratio_high"] > cases["ratio_high"]).all()


def test_spread_between_two_runs_of_a_gpu_is_found(tmp_path):
    """Planted: each case moves by a factor of its own, of 3 % standard deviation between the runs."""
    import numpy as np

    random = np.random.default_rng(1)
    asked = {"backends": BACKENDS, "m_list": (1, 8), "modes": (("graph", "cold"),), "counters": False}
    for minute in ("2026-11-23T1000Z", "2026-11-24T1000Z"):
        factors = {
            (backend, K, N): float(np.exp(0.03 * random.standard_normal()))
            for backend in BACKENDS
            for K, N in synthetic.REPORT_SHAPES
        }
        path = synthetic.write_run(
            tmp_path, truth=synthetic.Truth(factors=factors, noise=1e-3, drift=0.0), minute=minute, **asked
        )
    assert compared.spread_of_runs(load_run(path)) == pytest.approx(0.03, rel=0.5)
    assert pd.isna(compared.spread_of_runs(load_run(next(iter(sorted(tmp_path.glob("*/*")))))))


def test_speedups_stand_beside_each_other(runs, cases):
    rows = compared.primary(cases).set_index(["backend", "K", "N"])
    problem = GemmProblem(1, 1024, 4096)
    for side, truth in (("a", SLOW), ("b", FAST)):
        expected = truth.latency_us("fp16-cublas", problem) / truth.latency_us("int4", problem)
        assert rows.loc[("int4", 4096, 1024), f"{side}_speedup"] == pytest.approx(expected, rel=5e-3)


def test_claims_that_the_two_gpus_decide_differently_are_named(runs, found):
    changed = found[found["outcome"] == compared.CHANGED]
    assert len(changed)
    assert (changed["a_state"] != changed["b_state"]).all()
    narrow = compared.speedups([runs["h200"], runs["a10g"]])
    assert narrow.groupby("name")["speedup"].min()[NAME] < 1 < narrow.groupby("name")["speedup"].min()["NVIDIA H200"]


def test_page_of_a_synthetic_a10g_has_its_tables_cards_and_figure(runs, found):
    run = runs["a10g"]
    others = compared.newest_others(run)
    assert [other.gpu["key"] for other in others] == ["h200"]
    shown = page.sections(run, others).data
    assert shown.count(NAME) > 5
    for row in found[found["outcome"] == compared.CHANGED].itertuples():
        assert f"{{admonition}} {row.claim}" in shown
        assert row.a_sentence in shown
        assert row.b_sentence in shown
    rows = compared.primary(compared.shared_cases(run, others[0]))
    assert len(rows) >= 8
    for value in rows["a_us"]:
        assert f"{value:.2f}" in shown
    assert NAME in figures.several_gpus(compared.speedups([run, *others])).get_label()


def test_takeaway_has_the_gain_on_every_gpu_and_says_whose_kernel_is_older(runs):
    run, other = runs["a10g"], runs["h200"]
    rows = compared.speedups([run, other])
    told = page.takeaway(run, [other]).data
    for name, of in rows.groupby("name"):
        assert f"{of['speedup'].min():.1f} to {of['speedup'].max():.1f}× on the {name.removeprefix('NVIDIA ')}" in told
    assert "older" not in told
    changed = other.provenance | {"kernel_code_sha256": "0" * 64, "kernel_sha256": "0" * 64}
    for run_id, age in (("2000-01-01T0000Z-abc", "older"), ("2999-01-01T0000Z-abc", "newer")):
        aged = dataclasses.replace(other, provenance=changed, path=other.path.with_name(run_id))
        assert f"kernel of the H200 run is {age}" in page.takeaway(run, [aged]).data


def test_one_gpu_alone_is_a_sentence(runs, tmp_path):
    alone = synthetic.load(tmp_path, m_list=(1,), n_samples=3, backends=("fp16-cublas",), counters=False)
    assert compared.newest_others(alone) == []
    assert "one GPU" in page.sections(alone, []).data
    assert "one GPU" in page.figure(alone, []).data


def test_what_only_one_run_timed_and_an_older_schema_are_said(runs, cases):
    old = dataclasses.replace(runs["h200"], provenance=runs["h200"].provenance | {"schema_version": 1})
    said = " ".join(words.summary(runs["a10g"], old, cases))
    assert "Only NVIDIA H200 timed" in said
    assert "older schema" in said
    assert "older schema" not in " ".join(words.summary(runs["a10g"], runs["h200"], cases))


def test_runs_without_a_common_case_are_told_apart_in_a_sentence(runs, tmp_path):
    other = synthetic.load(
        tmp_path, m_list=(2,), shapes=((1024, 1024),), backends=("fp16-cublas",), modes=(("eager", "hot"),),
        counters=False, n_samples=3,
    )  # fmt: skip
    products = dataclasses.replace(other, cases=other.cases[other.cases["M"] > 0])
    shared = compared.shared_cases(runs["a10g"], products)
    assert shared.empty
    assert "no timed case in common" in words.summary(runs["a10g"], products, shared)[0]
    assert "no timed case in common" in page.sections(runs["a10g"], [products]).data


def test_command_prints_both_and_writes_every_shared_case(data, runs, cases, tmp_path, capsys):
    file = tmp_path / "both.csv"
    succeed("compare", runs["a10g"].path, runs["h200"].path, "--csv", file)
    said = capsys.readouterr().out
    assert runs["a10g"].run_id in said
    assert NAME in said
    written = pd.read_csv(file)
    assert written["case_id"].tolist() == cases["case_id"].tolist()
    assert written["ratio"].tolist() == pytest.approx(cases["ratio"].tolist())


def test_what_is_no_run_is_named(data, runs, tmp_path, capsys):
    assert "rtx-4090" in refuse(capsys, "compare", "rtx-4090", runs["h200"].path)
    assert str(tmp_path) in refuse(capsys, "compare", runs["h200"].path, tmp_path)
