"""Peers and targets: every verdict is given by a planted answer and flipped by the opposite one."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import synthetic
from derived import also, primary, slowed

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.limits import tables as limiters
from tinygemm.report.peers import claims as peers_claims
from tinygemm.report.peers import page as peers_page
from tinygemm.report.peers import tables as peers

BACKENDS = ("fp16-cublas", "int4", "int4-load-only")
MODES = (("graph", "cold"),)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without peers, of which the tests make what they need: every ratio below is to its `int4`."""
    return synthetic.load(
        tmp_path_factory.mktemp("run"), m_list=(1, 2, 4, 8, 16), shapes=STUDY_SHAPES, backends=BACKENDS, modes=MODES,
        truth=synthetic.Truth(drift=0.0, noise=0.001), counters=False,
    )  # fmt: skip


def with_peers(run, **factors):
    """Peers that take `factor` times as long as the tuned kernel."""
    for name, factor in ({"aten_int4mm": 2.0, "gemlite": 2.2, "marlin": 2.4} | factors).items():
        run = also(run, primary(run, "int4"), factor, backend=name.replace("_", "-"))
    return run


def verdict_of(run, key):
    return peers_claims.of_peers(run)[key]


def test_the_kernel_wins_where_every_best_peer_is_clearly_slower(plain):
    verdict = verdict_of(with_peers(plain), "peers")
    assert verdict.state == HOLDS
    assert verdict.numbers["mean"] == pytest.approx(2.0, rel=0.01)
    assert verdict.numbers["n"] == 16


def test_a_mean_below_the_target_refutes(plain):
    assert verdict_of(with_peers(plain, aten_int4mm=1.5), "peers").state == FAILS


def test_one_case_below_its_target_refutes_and_is_named(plain):
    run = with_peers(plain)
    run = slowed(run, run.cases["case_id"].eq("aten-int4mm/M2-K4096-N1024-g128/graph-cold"), 0.55)
    verdict = verdict_of(run, "peers")
    assert verdict.numbers["mean"] > 1.6
    assert verdict.state == FAILS
    assert "1.10× at 4096×1024, M = 2 (aten-int4mm)" in verdict.sentence


def test_without_overlap_the_serial_kernel_stands_for_ours(plain):
    """Planted: the serial kernel takes 1.4 times as long, so every peer is that much nearer."""
    run = with_peers(plain)
    run = also(run, primary(run, "int4"), 1.4, backend="int4-serial")
    verdict = verdict_of(run, "peers_serial")
    assert verdict.numbers["mean"] == pytest.approx(2.0 / 1.4, rel=0.01)
    assert verdict.state == FAILS
    assert "without its overlap" in verdict.claim
    assert verdict_of(run, "peers").state == HOLDS
    assert verdict_of(with_peers(plain), "peers_serial").state == UNDECIDED


def test_without_a_contender_the_claim_cannot_hold_but_it_can_fail(plain):
    run = also(plain, primary(plain, "int4"), 2.0, backend="aten-int4mm")
    rows = peers.contest(run, quoted=None)
    verdict = peers_claims.faster_than_peers(run, rows)
    assert verdict.state == UNDECIDED
    assert "all 16 cases: gemlite (0), marlin (0)" in verdict.sentence
    run = also(plain, primary(plain, "int4"), 1.2, backend="aten-int4mm")
    assert peers_claims.faster_than_peers(run, peers.contest(run, quoted=None)).state == FAILS
    assert verdict_of(plain, "peers").state == UNDECIDED


def test_a_quoted_time_stands_only_where_the_peer_was_not_measured_on_that_gpu(plain, tmp_path):
    file = tmp_path / "marlin.csv"
    quoted = [("h200", M, K, N, value) for K, N in STUDY_SHAPES for M, value in ((1, 5.0), (8, 4.0))]
    pd.DataFrame(quoted, columns=["gpu", "M", "K", "N", "value"]).to_csv(file, index=False)
    run = also(plain, primary(plain, "int4"), 2.0, backend="aten-int4mm")
    rows = peers.contest(run, file)
    marlin = rows[rows["backend"] == "marlin"]
    assert len(marlin) == 16
    assert set(marlin["kind"]) == {"quoted"}
    assert marlin[["low", "high"]].isna().all(axis=None)
    between = marlin.set_index("M")["other_us"]
    assert set(between[1]) == {5.0}
    assert set(between[2]) == {4.0}, "between two quoted values the shorter stands, against us"
    measured = peers.contest(with_peers(plain), file)
    assert set(measured["kind"]) == {"measured"}
    assert peers.contest(run, None)["backend"].unique().tolist() == ["aten-int4mm"]


def test_the_best_peer_is_the_fastest_and_the_mean_is_over_the_best(plain):
    run = with_peers(plain, gemlite=1.8)
    run = also(run, primary(run, "int4"), 0.5, backend="bitsandbytes-nf4")
    rows = peers.contest(run)
    best = peers.best_peers(rows)
    assert set(best["backend"]) == {"gemlite"}, "another format is never the best peer"
    assert len(best) == 16
    assert peers.mean_over_peers(run, best)["value"] == pytest.approx(1.8, rel=0.01)


def test_a_peer_that_overlaps_stands_beside_ours_that_does_and_its_twin_beside_ours_that_does_not(plain):
    run = with_peers(plain, humming=1.5, humming_serial=1.7)
    run = also(run, primary(run, "int4"), 1.1, backend="int4-serial")
    for ours, name, mean in (("int4", "humming", 1.5), ("int4-serial", "humming-serial", 1.7 / 1.1)):
        rows = peers.contest(run, ours=ours)
        best = peers.best_peers(rows)
        assert set(best["backend"]) == {name}
        assert peers.mean_over_peers(run, best)["value"] == pytest.approx(mean, rel=0.01)
        assert set(rows.loc[rows["overlaps"], "backend"]) == ({"humming"} if ours == "int4" else set())
    columns = peers_page.contest_columns(peers.contest(run))
    assert "overlapping" in columns["humming"][0]
    assert not any("overlapping" in title for name, (title, _) in columns.items() if name != "humming")


def test_a_run_that_asked_for_humming_in_vain_decides_nothing_and_an_older_one_says_so(plain):
    older = verdict_of(with_peers(plain), "peers")
    assert older.state == HOLDS
    assert "did not ask for humming" in older.sentence
    run = with_peers(plain, humming=3.0)
    failed = run.cases["backend"].eq("humming") & run.cases["M"].eq(8)
    run = dataclasses.replace(run, cases=run.cases.assign(status=run.cases["status"].mask(failed, "unsupported")))
    verdict = verdict_of(run, "peers")
    assert verdict.state == UNDECIDED
    assert "humming (12)" in verdict.sentence


def test_the_quoted_file_of_the_project_is_whole():
    table = pd.read_csv(peers.QUOTED)
    assert set(zip(table["K"], table["N"], strict=True)) == set(STUDY_SHAPES)
    assert set(table["M"]) == {1, 8}
    assert (table["value"] > 0).all()
    assert table[["method", "note"]].notna().all(axis=None)


@pytest.mark.parametrize(("factor", "state"), [(1.05, HOLDS), (1.25, FAILS), (1 / 0.9, UNDECIDED)])
def test_the_share_of_reading_alone_is_judged_on_every_shape(plain, factor, state):
    """At M = 1 nine tenths of the speed are asked for, so a kernel may take 1.11 times as long."""
    run = also(plain, primary(plain, "int4"), 1 / factor, backend="int4-load-only-serial")
    run = also(run, primary(run, "int4"), 1.0, backend="int4-serial")
    verdict = verdict_of(run, "reads_serial_1")
    assert verdict.state == state
    assert verdict.numbers["n"] == 4


def test_reads_in_a_config_that_was_tuned_for_another_weight_are_no_ceiling(plain):
    of_a_rule = primary(plain, "int4-load-only") & (plain.cases["N"] == 1024)
    source = plain.cases["config_source"].mask(of_a_rule, "rule")
    run = dataclasses.replace(plain, cases=plain.cases.assign(config_source=source))
    assert verdict_of(run, "reads_1").numbers["n"] == verdict_of(plain, "reads_1").numbers["n"] - 1
    assert 1024 not in set(peers.fraction_of_reads(run)["N"])


def test_what_the_kernel_takes_beyond_its_reads_is_a_fixed_time_and_a_factor(plain):
    """Planted: 1.25 times the reads, and nothing fixed."""
    reads = tables.only(plain, plain.cases["backend"] != "int4")
    run = also(reads, primary(reads, "int4-load-only"), 1.25, backend="int4")
    found = peers.beyond_reads(run, 1)
    assert found["n"] == 4
    assert found["times"] == pytest.approx(1.25, rel=0.01)
    assert abs(found["fixed_us"]) < 0.1
    assert found["least_us"] == pytest.approx(found["reads_least_us"] / 4, rel=0.02)
    text = peers_page.beyond_reads(run, (1,)).data
    assert "it takes" in text
    assert "1.25 times its reads" in text
    assert peers.beyond_reads(tables.only(run, run.cases["K"] != 4096), 1) == {}
    assert "did not time" in peers_page.beyond_reads(reads).data


def test_a_slow_format_is_shown_beside_its_machine_code(plain, tmp_path, monkeypatch):
    """Planted: bfloat16 takes 1.3 times as long, and half the warps fit; M = 16 is compiled as M = 8 is."""
    run = also(plain, primary(plain, "int4"), 1.3, backend="int4-bf16")
    compiled = run.cases[run.cases["backend"].isin(["int4", "int4-bf16"])]
    counts = compiled[limiters.STATIC].drop_duplicates().assign(per_weight=2.0, registers=128, warps_per_sm=16)
    counts["warps_per_sm"] = counts["warps_per_sm"].mask(counts["backend"] == "int4-bf16", 8)
    counts.to_csv(tmp_path / "counts.csv", index=False)
    rows = peers.machine_code(run, tmp_path / "counts.csv").set_index(["variant", "M", "K", "N"])
    slow = rows.loc[("bfloat16", 8, 4096, 1024)]
    assert slow["ratio"] == pytest.approx(1.3, rel=0.01)
    assert slow["fewer_warps"]
    assert not rows.loc["float16"]["fewer_warps"].any()
    sixteen = rows.loc[("float16", 16, 4096, 1024)]
    assert sixteen["ratio"] == pytest.approx(sixteen["latency_us"] / rows.loc[("float16", 8, 4096, 1024)]["latency_us"])
    assert peers.machine_code(run, tmp_path / "absent.csv").empty
    monkeypatch.setattr(limiters, "static_file", lambda key: tmp_path / "counts.csv")
    slow = rows[rows["ratio"] > 1.1]
    assert set(slow.index.get_level_values("variant")) == {"bfloat16"}
    said = peers_page.machine_code(run).data
    assert (
        f"Of other formats, fewer warps fit in {len(slow)} cases, {len(slow)} of them more than 1.1 times as long; "
        "as many or more in 0, 0 of them. Of M = 16, fewer warps fit in 0 cases, 0 of them"
    ) in said
    monkeypatch.undo()
    assert "no static counts" in peers_page.machine_code(run_of_nowhere(run)).data


def run_of_nowhere(run):
    """The run as of a GPU that nobody has compiled for."""
    return dataclasses.replace(run, provenance=run.provenance | {"gpu": run.gpu | {"key": "nowhere"}})


def test_the_share_of_reading_alone_is_not_asked_of_runs_without_it(plain):
    assert verdict_of(plain, "reads_serial_1").state == UNDECIDED
    assert verdict_of(plain, "reads_1").state == FAILS, "planted: 1.3 times the time of the reads"


def test_sixteen_tokens_cost_no_more_than_eight_where_they_do_not(plain):
    assert verdict_of(plain, "sixteen").state == HOLDS
    at = primary(plain, "int4") & (plain.cases["M"] == 16) & (plain.cases["K"] == 14336)
    verdict = verdict_of(slowed(plain, at, 1.4), "sixteen")
    assert verdict.state == FAILS
    assert "14336×4096" in verdict.sentence


@pytest.mark.parametrize(("factor", "state"), [(1.0, HOLDS), (1.3, FAILS)])
def test_what_the_traffic_of_activations_costs_at_sixteen_tokens(plain, factor, state):
    """Planted: M = 16 takes 1.4 times as long as M = 8, and with one row of activations `factor` times as long."""
    untimed = verdict_of(plain, "one_row")
    assert untimed.state == UNDECIDED
    assert untimed.sentence.endswith("M = 8 and M = 16, both with the activation traffic of one token.")
    assert peers_page.sixteen(plain).empty
    eight, at = (primary(plain, "int4") & (plain.cases["M"] == M) for M in (8, 16))
    run = also(slowed(plain, at, 1.4), eight, backend="int4-one-row")
    at = primary(run, "int4") & (run.cases["M"] == 16)
    run = also(run, at, factor / 1.4, backend="int4-one-row")
    assert verdict_of(run, "sixteen").state == FAILS
    assert verdict_of(run, "one_row").state == state
    table = peers_page.sixteen(run)
    assert list(table["shape"]) == [f"{K}×{N}" for K, N in sorted(STUDY_SHAPES)]
    np.testing.assert_allclose(table["left_us"] / table["alike_left_us"], 1.4 / factor, rtol=0.01)
    np.testing.assert_allclose(table["right_us"], table["alike_right_us"], rtol=0.01)


@pytest.mark.parametrize(("factor", "state"), [(1.02, HOLDS), (1.2, FAILS)])
@pytest.mark.parametrize(("variant", "backend"), [("bfloat16", "int4-bf16"), ("asymmetric", "int4-asymmetric")])
def test_a_format_may_cost_a_little(plain, variant, backend, factor, state):
    run = also(plain, primary(plain, "int4"), factor, backend=backend)
    assert verdict_of(run, variant).state == state
    assert verdict_of(plain, variant).state == UNDECIDED


@pytest.mark.parametrize(("factor", "state"), [(1.15, HOLDS), (1.4, FAILS)])
def test_other_group_sizes_may_cost_their_bytes(plain, factor, state):
    """Groups of 32 read 4.5 bits per weight instead of 4.125, a ratio of 1.09."""
    moved = (plain.cases["bytes_min"] * 4.5 / 4.125)[primary(plain, "int4")].round().astype(int)
    run = also(plain, primary(plain, "int4"), factor, group_size=32, bytes_min=moved)
    assert verdict_of(run, "groups").state == state
    assert set(peers.formats(run)["variant"]) == {"groups of 32"}
    np.testing.assert_allclose(peers.formats(run)["bytes_ratio"], 4.5 / 4.125, rtol=1e-3)


@pytest.mark.parametrize(("factor", "state"), [(0.97, HOLDS), (0.8, FAILS)])
def test_the_rule_is_judged_against_the_best_candidate(plain, factor, state):
    run = also(plain, primary(plain, "int4"), factor, backend="int4-searched")
    assert verdict_of(run, "heldout").state == state
    assert verdict_of(plain, "heldout").state == UNDECIDED


def test_the_page_shows_every_case_and_marks_what_is_quoted(plain):
    rows = peers.contest(also(plain, primary(plain, "int4"), 2.0, backend="aten-int4mm"))
    table = peers_page.contest(rows)
    assert len(table) == 16
    assert table["marlin"].str.contains("quoted").all()
    assert not table["aten-int4mm"].str.contains("quoted").any()
    assert "Marlin" in peers_page.quoted(rows).data
    assert peers_page.quoted(rows[rows["kind"] == "measured"]) is None, "what was measured is not called quoted"
    reads = peers_page.reads(plain)
    assert reads["serial_value"].isna().all()
    assert reads["overlap_value"].notna().all()
