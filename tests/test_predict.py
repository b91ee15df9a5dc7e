"""Predictions on the pages: published values beside them, the command, the chapter's figures and tables."""

import dataclasses

import matplotlib as mpl
import pandas as pd
import planted
import pytest
import synthetic
from test_cli import succeed, without_torch

from tinygemm import published
from tinygemm.report.base import tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.predict import against_published
from tinygemm.report.predict import claims as judge
from tinygemm.report.predict import figures as predict_figures
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict import page as predict

WALL = "wall clock of queued calls"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return synthetic.load(tmp_path_factory.mktemp("data"), m_list=(1, 8), n_samples=7, counters=False)


@pytest.fixture(scope="module")
def model():
    return costmodel.fit(planted.table(), planted.H200)


def quoted(backend="fp16-cublas", quantity="latency_us", value=100.0, gpu="a10g", method="CUPTI", M=1, digitised=False):
    return {
        "source_key": "somebody", "gpu": gpu, "M": M, "K": 4096, "N": 14336, "backend": backend, "quantity": quantity,
        "value": value, "digitised": digitised, "method": method, "note": "",
    }  # fmt: skip


def compared(model, *rows):
    return against_published.compare(model, pd.DataFrame(rows, columns=published.COLUMNS))


# --- against published values ---------------------------------------------------------------------------------------


def test_a_published_value_within_the_band_is_a_hit_and_one_beyond_it_a_miss(model):
    guess = compared(model, quoted())["predicted"][0]
    results = compared(model, *(quoted(value=share * guess) for share in (1.0, 0.5, 2.0)))["result"]
    assert list(results) == ["hit", "miss", "miss"]


def test_a_value_read_off_a_figure_is_given_its_reading_error(model):
    high = compared(model, quoted("int4", "speedup", 3.0))["high"][0]
    rows = [quoted("int4", "speedup", high + 0.03, digitised=digitised) for digitised in (False, True)]
    assert list(compared(model, *rows)["result"]) == ["miss", "hit"]


def test_a_kernel_that_was_not_timed_is_stood_in_for_and_said_so(model):
    table = compared(
        model, quoted("marlin", "speedup", 3.0), quoted("int4", "speedup", 3.0), quoted("awq", "speedup", 3.0)
    )
    assert list(table["backend"]) == ["marlin", "int4"]
    assert list(table["stand_in"]) == ["int4", ""]
    assert table["predicted"].nunique() == 1


@pytest.mark.parametrize(
    ("method", "other", "shorter"),
    [("CUPTI", "CUPTI; ECC off", True), ("CUPTI; locked at base clock", "CUPTI", True), ("CUPTI", WALL, False)],
)
def test_the_gpu_is_taken_as_the_source_had_it_set(model, method, other, shorter):
    one, two = compared(model, quoted(gpu="a10", method=method), quoted(gpu="a10", method=other))["predicted"]
    assert (two < one) == shorter
    assert two != one


def test_values_that_the_model_cannot_speak_about_are_left_out(model):
    rows = quoted(M=64), quoted(gpu="mi300x"), quoted(quantity="frac_dram", value=0.9), quoted("awq")
    assert compared(model, *rows).empty
    without_fp16 = dataclasses.replace(model, backends={"int4": model.backends["int4"]})
    assert list(compared(without_fp16, quoted("int4", "speedup", 3.0), quoted("int4"))["quantity"]) == ["latency_us"]


def test_the_claim_about_projections_follows_the_hits(model):
    guess = compared(model, quoted())["predicted"][0]
    good, bad = quoted(value=guess), quoted(value=3 * guess)
    assert judge.projects(compared(model, *[good] * 9, bad)).state == HOLDS
    verdict = judge.projects(compared(model, *[good] * 8, bad, bad))
    assert verdict.state == FAILS
    assert "8 lie within" in verdict.sentence
    assert "-67%" in verdict.sentence
    assert judge.projects(compared(model, *[good] * 4)).state == UNDECIDED
    stood_in = compared(model, *[quoted("marlin", "speedup", 99.0)] * 9)
    assert judge.projects(stood_in).state == UNDECIDED, "a stand-in is not scored"


def test_values_of_the_gpu_that_was_measured_are_not_called_projections(model):
    table = compared(model, quoted(gpu="h200"), quoted(gpu="a10g"))
    assert list(table["gpu"]) == ["a10g"]
    (band,) = against_published.scores(table)["band"]
    assert band == pytest.approx(table["high"][0] / table["low"][0])


def test_every_published_value_of_a_timed_backend_is_compared(run):
    values = published.load()
    table = against_published.compare(costmodel.fit(run), values)
    timed = values[(values["backend"] == "aten-int4mm") & (values["quantity"] == "speedup")]
    assert (table["backend"] == "aten-int4mm").sum() == len(timed) > 0
    scored = against_published.scores(table)
    assert scored["cases"].sum() == len(table)
    assert (scored["hits"] <= scored["cases"]).all()


# --- the command ----------------------------------------------------------------------------------------------------


def test_predict_needs_no_torch_and_marks_what_was_measured(run, tmp_path):
    file = tmp_path / "out.csv"
    shapes = ("--shape_list", "1,4096,512;2,4096,512;1,4096,14336", "--backend", "fp16-cublas,int4,marlin")
    done = without_torch(("predict", "--gpu", "H200", *shapes, "--csv", file, "--data_root", run.path.parent.parent))
    assert done.returncode == 0, done.stderr
    assert "8 rows measured, 4 predicted" in done.stdout
    assert "not in that run at enough shapes: marlin" in done.stderr
    table = pd.read_csv(file)
    assert list(table.columns) == ["M", "K", "N", "backend", "launch", "latency_us", "low_us", "high_us", "kind"]
    assert set(table.loc[table["M"] == 2, "kind"]) == {"predicted"}
    assert set(table.loc[table["M"] == 1, "kind"]) == {"measured"}
    assert (table["low_us"] <= table["high_us"]).all()


def test_predict_of_a_gpu_that_was_never_recorded_is_projected_from_the_newest_run(run, tmp_path, capsys):
    settings = ["--csv", tmp_path / "out.csv", "--data_root", run.path.parent.parent, "--launch", "graph"]
    succeed("predict", "--gpu", "l4", *settings)
    said = capsys.readouterr().out
    assert f"NVIDIA L4 was not measured: 0 rows measured, 28 predicted, projected from run {run.run_id}" in said
    assert set(pd.read_csv(tmp_path / "out.csv")["kind"]) == {"predicted"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--gpu", "h1000"), "unknown GPU 'h1000'; known: h100-"),
        (("--gpu", "t4"), "Tesla T4 has no cp.async"),
        (("--gpu", "l4", "--shape_list", "1,4096"), "shape '1,4096' is not M,K,N"),
        (("--gpu", "l4", "--shape_list", "64,4096,4096"), "the model describes decode, M of 1 to 16"),
        (("--gpu", "l4", "--backend", "int3"), "unknown backend int3; known: fp16-cublas"),
        (("--gpu", "l4", "--data_root", "/nowhere"), "no recorded run of any GPU"),
    ],
)
def test_predict_refuses_in_one_line(run, tmp_path, capsys, arguments, complaint):
    from tinygemm import cli

    root = () if "--data_root" in arguments else ("--data_root", str(run.path.parent.parent))
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", "--csv", str(tmp_path / "out.csv"), *arguments, *root])
    assert stop.value.code == 1
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_a_recorded_gpu_whose_figures_nobody_listed_is_answered_from_its_run(tmp_path, monkeypatch):
    from tinygemm import cli, hardware

    run = synthetic.load(tmp_path, gpu="a10g", m_list=(1,), modes=(("graph", "cold"),), n_samples=5, counters=False)
    monkeypatch.delitem(hardware.GPUS, "a10g")
    for more in ((), ("--run", str(run.path))):
        arguments = ("--gpu", "NVIDIA A10G", "--csv", str(tmp_path / "out.csv"), "--data_root", str(tmp_path))
        with pytest.raises(SystemExit) as stop:
            cli.main(["predict", *arguments, *more, "--shape_list", "1,4096,4096", "--launch", "graph"])
        assert stop.value.code == 0
        assert "measured" in set(pd.read_csv(tmp_path / "out.csv")["kind"])
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", "--gpu", "quadro-x", "--csv", str(tmp_path / "out.csv"), "--run", str(run.path)])
    assert stop.value.code == 1, "of a GPU that is neither known nor the run's"


# --- the chapter ----------------------------------------------------------------------------------------------------


def test_projected_bars_are_hatched_and_hollow_and_measured_ones_filled(run):
    rows = predict.speedups(costmodel.fit(run), tables.report_table(run))
    assert dict(rows.groupby("gpu_key")["kind"].first()) == {
        key: "measured" if key == "h200" else "projected" for key in rows["gpu_key"]
    }
    fig = predict_figures.projected_speedups(rows)
    for ax in fig.axes:
        labels = [text.get_text() for text in ax.get_yticklabels()]
        for label, bar in zip(labels, ax.patches, strict=True):
            hollow = bar.get_facecolor() == mpl.colors.to_rgba("white")
            assert (bool(bar.get_hatch()), hollow) == ((False, False) if label == "H200" else (True, True)), label


def test_the_measured_speedup_of_the_run_is_shown_as_it_was_measured(run):
    table = tables.report_table(run)
    rows = predict.speedups(costmodel.fit(run), table)
    shown = rows[(rows["gpu_key"] == "h200") & (rows["K"] == 4096) & (rows["N"] == 1024)].iloc[0]
    timed = tables.primary(table)
    timed = timed[(timed["backend"] == "int4") & (timed["M"] == 1) & (timed["K"] == 4096) & (timed["N"] == 1024)].iloc[
        0
    ]
    assert shown["speedup"] == timed["speedup_vs_fp16"]
    assert shown["int4_us"] == timed["latency_us_p50"]


def test_every_figure_and_table_of_the_chapter_can_be_made_from_any_run(run):
    model, left_out = costmodel.fit(run), costmodel.leave_one_out(run)
    assert len(predict_figures.predicted_vs_measured(left_out).axes) == 1
    assert len(predict_figures.terms_vs_n(model).axes) == 3
    table = predict.compared(model)
    assert predict_figures.published_vs_projected(table[table["stand_in"] == ""]).axes
    assert len(predict.terms(model)) == len(model.backends)
    assert len(predict.errors(left_out)) == 2 * len(model.backends)
    assert predict.latencies(model)["4096×1024"].str.fullmatch(r"\*\S+\*( \(\S+ to \S+\))?").all()
    assert len(predict.assumptions(model)) > 5
    assert set(predict.hits(against_published.scores(table))["against"]) >= {"the same"}


def test_misses_are_counted_with_their_direction_and_the_configs_they_ran_in(run):
    keys = ["backend", "launch", "M", "K", "N"]
    cases = run.cases[(run.cases["backend"] == "int4") & (run.cases["launch"] == "graph")]
    cases = cases[cases["l2_state"] == "cold"].sort_values("case_id").reset_index(drop=True)
    left_out = cases[keys].assign(error=[-0.3, -0.3, 0.3, *[0.0] * (len(cases) - 3)])
    sources = dict(zip(cases["case_id"], ["rule", "table"] * len(cases), strict=False))
    cases = run.cases.assign(config_source=run.cases["case_id"].map(sources).fillna(run.cases["config_source"]))
    told = predict.configs_of_misses(dataclasses.replace(run, cases=cases), left_out).data
    assert f"3 of {len(left_out)} cases in graphs are missed by more than 25%, 2 of them predicted too short" in told
    assert "Of the 3, 2 ran in a launch config of the rule" in told
    assert "0 of" in predict.configs_of_misses(run, left_out.assign(error=0.1)).data
    assert "not" in predict.configs_of_misses(run, left_out.head(0)).data


def test_a_run_of_one_shape_says_that_there_is_no_model(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1,), shapes=((4096, 1024),), n_samples=3)
    assert predict.model_of(run) is None
    assert "did not time 4 shapes" in predict.no_model().data
    assert predict.compared(None).empty
    assert predict.speedups(None, tables.report_table(run)).empty
    assert predict.facts(None, costmodel.leave_one_out(run))["cases"] == 0
