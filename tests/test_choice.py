"""The kernel to use on a GPU: the nearest peer, the planted ratio with and without overlap, and what was timed."""

import pytest
import synthetic
from derived import also, primary

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import tables
from tinygemm.report.peers import choice
from tinygemm.report.peers import page as peers_page
from tinygemm.report.peers.tables import contest


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return synthetic.load(
        tmp_path_factory.mktemp("run"), m_list=(1, 8), shapes=STUDY_SHAPES, backends=("fp16-cublas", "int4"),
        modes=(("graph", "cold"),), truth=synthetic.Truth(drift=0.0, noise=0.001), counters=False,
    )  # fmt: skip


def with_kernels(run, **factors):
    """Other kernels, and ours without overlap, that take `factor` times as long as the tuned kernel."""
    for name, factor in factors.items():
        run = also(run, primary(run, "int4"), factor, backend=name.replace("_", "-"))
    return run


def test_the_nearest_kernel_has_the_planted_ratio_with_and_without_overlap(plain):
    run = with_kernels(plain, aten_int4mm=1.8, gemlite=1.5, bitsandbytes_nf4=1.1, int4_serial=1.2)
    rows = choice.nearest(run)
    assert set(rows["backend"]) == {"gemlite"}, "another format is never the next best"
    assert rows["M"].tolist() == [1, 8, 1, 8]
    assert rows["value"].tolist() == pytest.approx([1.5, 1.5, 1.25, 1.25], rel=0.01)
    told = choice.advice(run, rows)
    assert "our kernel.**" in told
    assert "At one token the next best, GemLite, takes 1.50× our time, or 1.25× where calls cannot overlap." in told
    assert "Timed against PyTorch, GemLite" in told


def test_a_peer_that_overlaps_is_one_kernel_with_and_without_it(plain):
    run = with_kernels(plain, humming=1.3, humming_serial=1.8, int4_serial=1.2)
    rows = choice.nearest(run, tokens=(1,))
    assert rows["backend"].tolist() == ["humming", "humming-serial"]
    assert rows["value"].tolist() == pytest.approx([1.3, 1.5], rel=0.01)
    told = choice.advice(run, rows)
    assert "the next best, Humming, takes 1.30× our time, or 1.50× where calls cannot overlap" in told
    assert told.count("Humming") == 2
    assert choice.lead(rows).endswith("timed here.")


def test_a_spread_between_runs_widens_the_interval(plain):
    run = with_kernels(plain, gemlite=1.5)
    narrow, wide = (choice.nearest(run, spread, (1,)).iloc[0] for spread in (0.0, 0.02))
    assert narrow["high"] / narrow["low"] < 1.01
    assert wide["low"] == pytest.approx(1.5 / 1.057, rel=0.01)
    assert wide["high"] == pytest.approx(1.5 * 1.057, rel=0.01)
    assert "1.50× (1.42 to 1.59)" in choice.ratios(choice.nearest(run, 0.02, (1,)))


@pytest.mark.parametrize(
    ("factors", "best"),
    [({"marlin": 0.8}, "Marlin"), ({"marlin": 1.1, "int4_serial": 1.2}, "our kernel or Marlin"),
     ({"marlin": 1.1, "int4_serial": 1.05}, "our kernel")],
)  # fmt: skip
def test_the_best_kernel_is_whichever_is_fastest(plain, factors, best):
    rows = choice.nearest(with_kernels(plain, **factors))
    assert choice.best(rows) == best
    assert best in peers_page.takeaway(with_kernels(plain, **factors)).data
    assert (best == "our kernel") == choice.lead(rows).startswith("Our kernel")


def test_takeaway_and_list_give_one_interval_to_one_number(plain, monkeypatch):
    run = with_kernels(plain, gemlite=1.5)
    monkeypatch.setattr(choice, "newest_others", lambda of: [])
    monkeypatch.setattr(choice, "spread_of_runs", lambda of: 0.02)
    for told in (peers_page.takeaway(run).data, *choice.of_gpus(run)):
        assert "1.50× (1.42 to 1.59)" in told


def test_only_peers_that_were_timed_are_said_to_be_searched(plain):
    run = with_kernels(plain, gemlite=1.5, humming=1.3)
    cases = run.cases
    gemlite = cases["backend"] == "gemlite"
    cases.loc[gemlite, ["status", "message"]] = ["unsupported", "gemlite is not installed (pip install gemlite)"]
    humming = cases["backend"] == "humming"
    cases.loc[humming, "config_source"] = [f"tile={i % 2}" for i in range(humming.sum())]
    here, absent = peers_page.searches(run, contest(run)).data.split("Not timed here: ")
    assert "Humming the fastest" in here
    assert "GemLite" not in here
    assert "GemLite (not installed)" in absent
    assert "Humming" not in absent


def test_a_kernel_that_lacks_a_projection_is_not_ranked_and_none_is_a_sentence(plain):
    narrow = primary(plain, "int4") & (plain.cases["N"] == 1024)
    run = also(plain, narrow, 0.5, backend="marlin")
    assert choice.nearest(run).empty
    assert "no other INT4 kernel" in choice.advice(run, choice.nearest(run))
    assert "no other INT4 kernel" in choice.lead(choice.nearest(run))


def test_every_recorded_gpu_has_its_line_and_an_older_kernel_is_called_so(tmp_path, monkeypatch):
    asked = {"m_list": (1,), "shapes": STUDY_SHAPES, "backends": ("fp16-cublas", "int4", "aten-int4mm"),
             "modes": (("graph", "cold"),), "n_samples": 6, "counters": False}  # fmt: skip
    synthetic.write_run(tmp_path, gpu="a10g", **asked)
    run = synthetic.load(tmp_path, minute="2026-11-24T1412Z", **asked)
    monkeypatch.setattr(tables, "has_todays_kernels", lambda each: each is run)
    here, there = choice.of_gpus(run)
    assert here.startswith(f"**{run.gpu['name'].removeprefix('NVIDIA ')}")
    assert there.startswith("**A10G")
    assert ("older kernel" in here, "older kernel" in there) == (False, True)
