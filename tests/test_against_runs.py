"""A projection beside the run of another GPU: whose runs count, of which code, and when the claim holds."""

import dataclasses

import pytest
import synthetic

from tinygemm.hardware import gpu_spec
from tinygemm.problem import REPORT_SHAPES
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.predict import against_published, against_runs
from tinygemm.report.predict import claims as judge
from tinygemm.report.predict import model as costmodel

BACKENDS = ("fp16-cublas", "int4", "int4-static", "aten-int4mm")


def load(root, gpu="h200", minute="2026-11-23T1412Z", **settings):
    settings = {"m_list": (1, 8), "shapes": REPORT_SHAPES, "backends": BACKENDS, "n_samples": 5} | settings
    return synthetic.load(root, gpu=gpu, minute=minute, counters=False, modes=(("graph", "cold"),), **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def model(run):
    return costmodel.fit(run)


def test_the_newest_run_of_every_other_gpu_counts(run):
    root = run.path.parent.parent
    few = {"shapes": REPORT_SHAPES[:1]}
    load(root, "a10g", "2026-11-21T1000Z", **few)
    newest = load(root, "a10g", "2026-11-22T1000Z", **few)
    load(root, "h200", "2026-11-24T1000Z", **few)
    load(root, "a10g", "2026-11-25T1000Z", dirty=True, **few)
    assert [other.run_id for other in against_runs.other_gpus(run)] == [newest.run_id]


def as_projected(model, run, other):
    """The other run as if its GPU took exactly as long as projected."""
    rows = against_runs.compare(model, run, [other]).set_index(["backend", "M", "K", "N"])
    keys = other.cases[["backend", "M", "K", "N"]].itertuples(index=False, name=None)
    factors = {case: 1 + rows["off"].get(key, 0.0) for case, key in zip(other.cases["case_id"], keys, strict=True)}
    samples = other.samples.assign(latency_us=other.samples["latency_us"] * other.samples["case_id"].map(factors))
    return dataclasses.replace(other, samples=samples)


def test_the_claim_holds_where_the_other_gpu_takes_as_long_as_projected_and_not_twice_as_long(model, run, tmp_path):
    other = as_projected(model, run, load(tmp_path, "a10g"))
    compared = against_runs.compare(model, run, [other])
    assert compared["off"].abs().max() < 0.01
    assert judge.projects_to_runs(compared).state == HOLDS
    slower = dataclasses.replace(other, samples=other.samples.assign(latency_us=3 * other.samples["latency_us"]))
    compared = against_runs.compare(model, run, [slower])
    verdict = judge.projects_to_runs(compared)
    assert verdict.state == FAILS
    assert verdict.numbers["median_off"] == pytest.approx(2 / 3, rel=0.01)
    scores = against_published.scores(compared, ("gpu", "backend")).set_index("backend")
    assert (scores["hits"] < scores["cases"]).all()
    assert set(compared["gpu"]) == {gpu_spec("a10g").name}


def test_only_code_that_is_the_same_in_both_runs_counts(model, run, tmp_path):
    other = load(tmp_path, "a10g")
    assert set(against_runs.compare(model, run, [other])["backend"]) == set(BACKENDS)
    changed = dataclasses.replace(other, provenance=other.provenance | {"kernel_code_sha256": "of other kernels"})
    assert set(against_runs.compare(model, run, [changed])["backend"]) == {"fp16-cublas", "aten-int4mm"}
    unknown = {name: value for name, value in other.provenance.items() if not name.startswith("kernel_")}
    both = [dataclasses.replace(each, provenance=unknown | {"gpu": each.gpu}) for each in (run, other)]
    assert set(against_runs.compare(model, both[0], both[1:])["backend"]) == {"fp16-cublas", "aten-int4mm"}


def test_a_weight_that_no_group_fits_is_projected_in_fp16(model, run, tmp_path):
    """K = 448, as of a model on several GPUs: FP16 is timed there."""
    other = load(tmp_path, "a10g")
    odd = (other.cases["backend"] == "fp16-cublas") & (other.cases["K"] == 4096) & (other.cases["N"] == 512)
    other = dataclasses.replace(other, cases=other.cases.assign(K=other.cases["K"].mask(odd, 448)))
    rows = against_runs.compare(model, run, [other])
    assert len(rows[rows["K"] == 448]) == odd.sum() > 0


def test_without_another_run_nothing_is_claimed(model, run):
    assert judge.projects_to_runs(against_runs.compare(model, run, [])).state == UNDECIDED
