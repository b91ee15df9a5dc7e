"""The regime map: planted speedups come out at their K and N, the crossover at its M, and both verdicts flip."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import synthetic

from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report.base import tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.regimes import claims as verdicts
from tinygemm.report.regimes import figures as regimes_figures
from tinygemm.report.regimes import page as regimes_page
from tinygemm.report.regimes import tables as regimes

HEIGHTS, WIDTHS = (1024, 4096, 14336, 28672), (256, 1024, 4096, 14336)
GRID = [(K, N) for K in HEIGHTS for N in WIDTHS]
ON_GRID = ("fp16-cublas", "fp16-triton", "int4", "int4-static")
MANY = (1, 8, 16, 32, 64, 128, 256)
PATHS = ("fp16-cublas", "dequant-fp16", "int4-fused", "int4")
MODES = (("graph", "cold"),)


@pytest.fixture
def load(tmp_path):
    def load(factors=None, shapes=GRID, backends=ON_GRID, m_list=(1,), **kwargs):
        truth = synthetic.Truth(factors=factors or {})
        return synthetic.load(
            tmp_path,
            truth=truth,
            m_list=m_list,
            shapes=shapes,
            backends=backends,
            modes=MODES,
            counters=False,
            **kwargs,
        )

    return load


# --- the map --------------------------------------------------------------------------------------------------------


def test_a_point_of_the_map_is_the_planted_speedup(load):
    rows, truth = regimes.grid(regimes.speedups(load()), 1), synthetic.Truth()
    rows = rows.set_index(["kernel", "against", "K", "N"])
    for (K, N), kernel in ((shape, kernel) for shape in GRID for kernel in regimes.KERNELS):
        times = {b: truth.latency_us(b, GemmProblem(1, N, K)) for b in ON_GRID}
        over_cublas, over_best = rows.loc[(kernel, "cuBLAS", K, N)], rows.loc[(kernel, "best FP16", K, N)]
        assert over_cublas["value"] == pytest.approx(times["fp16-cublas"] / times[kernel], rel=0.02)
        best = min(times["fp16-cublas"], times["fp16-triton"])
        assert over_best["value"] == pytest.approx(best / times[kernel], rel=0.02)
        assert over_best["low"] <= over_best["value"] <= over_best["high"]


def test_the_best_fp16_is_chosen_point_by_point(load):
    rows = regimes.speedups(load({("fp16-triton", 4096, 4096): 9.0}))
    wide = rows.pivot_table(index=["kernel", "K", "N"], columns="against", values="value")
    spoilt = wide.loc[("int4", 4096, 4096)]
    assert spoilt["best FP16"] == spoilt["cuBLAS"]
    assert (wide["best FP16"] <= wide["cuBLAS"] + 1e-12).all()
    assert (wide["best FP16"] < wide["cuBLAS"]).any()


def test_shapes_off_the_grid_do_not_tear_holes_into_the_map(load):
    many = [(3072, N) for N in WIDTHS]  # a K with as many N as the grid, but not with both kernels
    models = ([(896, 128), (3584, 18944), (2560, 4096), *many], (1,), ON_GRID[:3], MODES)
    rows = regimes.grid(regimes.speedups(load(suites=(models,))), 1)
    assert set(zip(rows["K"], rows["N"], strict=True)) == set(GRID)


def test_one_k_is_no_map(load):
    rows = regimes.speedups(load(shapes=[(4096, N) for N in WIDTHS]))
    assert len(rows)
    assert regimes.grid(rows, 1).empty
    assert not regimes_page.has_map(rows)
    assert "did not time" in regimes_page.best_map(rows).data


def test_reclaimed_is_what_the_simple_kernel_loses_and_the_tuned_one_wins(load):
    slow = {("int4", 28672, 256): 30.0}
    rows = regimes.grid(regimes.speedups(load(slow)), 1)
    counts = regimes.reclaimed(rows).set_index("against").loc["cuBLAS"]
    truth = synthetic.Truth()
    won = {kernel: {(K, N) for K, N in GRID if truth.latency_us(kernel, GemmProblem(1, N, K))
                    < truth.latency_us("fp16-cublas", GemmProblem(1, N, K))} for kernel in regimes.KERNELS}  # fmt: skip
    won["int4"] -= {(28672, 256)}
    assert counts["points"] == len(GRID)
    assert counts["simple_wins"] == len(won["int4-static"])
    assert counts["tuned_wins"] == len(won["int4"])
    assert counts["reclaimed"] == len(won["int4"] - won["int4-static"]) > 0
    assert counts["lost"] == 1


def test_the_map_is_white_at_break_even_and_blue_and_orange_beside_it():
    from tinygemm.report.regimes.figures import DIVERGING

    assert DIVERGING(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.01)
    loss, gain = DIVERGING(0.25)[:3], DIVERGING(0.75)[:3]
    assert loss[0] > loss[2]
    assert gain[2] > gain[0]
    # told apart without colour: the ends are darker than the middle
    assert max(np.dot(DIVERGING(end)[:3], (0.299, 0.587, 0.114)) for end in (0.0, 1.0)) < 0.35


def test_the_cells_of_the_map_are_the_speedups(load):
    rows = regimes.speedups(load())
    (mesh,) = [c for c in regimes_page.best_map(rows).axes[0].collections if isinstance(c, mpl.collections.QuadMesh)]
    at = rows[(rows["kernel"] == "int4") & (rows["against"] == "best FP16") & (rows["M"] == 1)]
    expected = at.pivot(index="K", columns="N", values="value").to_numpy()
    np.testing.assert_allclose(2 ** np.asarray(mesh.get_array()).reshape(expected.shape), expected)


def test_every_number_of_the_map_stands_out_from_its_cell(load):
    lost = {("int4", K, N): 2.0 ** (i / 4) for i, (K, N) in enumerate(GRID)}
    ax = regimes_page.best_map(regimes.speedups(load(lost))).axes[0]
    (mesh,) = [c for c in ax.collections if isinstance(c, mpl.collections.QuadMesh)]
    cells = np.asarray(mesh.get_array()).reshape(len(HEIGHTS), len(WIDTHS))
    assert len(ax.texts) == cells.size
    for text in ax.texts:
        x, y = (int(place) for place in text.get_position())
        ground, ink = (luminance(colour) + 0.05 for colour in (mesh.to_rgba(cells[y, x]), text.get_color()))
        assert max(ground, ink) / min(ground, ink) >= 4
    assert [label.get_text() for label in ax.get_xticklabels()] == ["256", "1k", "4k", "14k"]


def luminance(colour) -> float:
    """Relative luminance of a colour, by the power that approximates sRGB."""
    return float(np.array(mpl.colors.to_rgb(colour)) ** 2.2 @ [0.2126, 0.7152, 0.0722])


def test_the_least_point_of_the_map_has_its_shape_its_ratio_and_whether_it_was_searched(load):
    run = load({("int4", 4096, 1024): 9.0})
    rows = regimes.speedups(run)
    value = rows.set_index(["kernel", "against", "K", "N"]).loc[("int4", "best FP16", 4096, 1024), "value"]
    mine = run.cases["backend"] == "int4"
    for source, word in (("table", "(searched"), ("rule", "not searched")):
        run.cases.loc[mine, "config_source"] = source
        told = regimes_page.least_point(run, rows)["least"]
        assert told.startswith("4096×1024, ")
        assert word in told
        assert f"{value:.2f}×" in told
    assert regimes_page.least_point(run, rows.iloc[:0]) == {"least": "no point"}


def test_the_prose_quotes_the_first_and_the_last_stop(load):
    tokens = regimes.by_tokens(tables.report_table(load(shapes=STUDY_SHAPES, backends=PATHS, m_list=MANY)))
    found, quoted = regimes.crossings(tokens)["m_fp16"], regimes_page.stops(tokens)
    assert (quoted["least"], quoted["most"]) == (found.min(), found.max())
    assert quoted["least"] < quoted["most"]


# --- the crossover --------------------------------------------------------------------------------------------------


def test_the_crossing_is_where_the_planted_curves_meet(load):
    rows = regimes.by_tokens(tables.report_table(load(shapes=STUDY_SHAPES, backends=PATHS, m_list=MANY)))
    found, truth = regimes.crossings(rows).set_index(["K", "N"]), synthetic.Truth()
    for K, N in STUDY_SHAPES:
        at = round(found.loc[(K, N), "m_dequant"])
        fused, dequant = (
            truth.latency_us(backend, GemmProblem(at, N, K)) for backend in ("int4-fused", "dequant-fp16")
        )
        assert fused == pytest.approx(dequant, rel=0.1)
        assert found.loc[(K, N), "m_fp16"] < at


def test_a_kernel_that_never_stops_paying_has_no_crossing(load):
    run = load({"int4-fused": 0.01}, shapes=STUDY_SHAPES[:1], backends=PATHS, m_list=MANY)
    rows = regimes.by_tokens(tables.report_table(run))
    assert regimes.crossings(rows)[["m_dequant", "m_fp16"]].isna().all(axis=None)
    assert set(regimes_page.crossings(rows)["dequant"]) == {"none up to 256"}
    assert regimes_figures.crossover(rows).axes[0].get_title(loc="left").endswith("no crossing")


def test_a_run_of_decode_alone_has_no_crossover(load):
    run = load(shapes=STUDY_SHAPES, backends=("fp16-cublas", "dequant-fp16", "int4"))
    assert regimes.by_tokens(tables.report_table(run)).empty
    assert regimes.selection(run).empty
    assert regimes.crossings(regimes.by_tokens(tables.report_table(run))).empty
    assert verdicts.of_run(run)["switch"].state == UNDECIDED


@pytest.mark.parametrize(("factor", "state", "words"), [
    (1.0, HOLDS, "stays within that"), (1.3, FAILS, "misses that"), (1.0999, UNDECIDED, "cannot be told"),
])  # fmt: skip
def test_the_choice_is_held_against_the_better_path(load, factor, state, words):
    run = load({("int4", *STUDY_SHAPES[2]): factor}, shapes=STUDY_SHAPES, backends=PATHS, m_list=MANY)
    verdict = verdicts.of_run(run)["switch"]
    assert verdict.state == state
    assert words in verdict.sentence
    assert verdict.numbers["worst_value"] == pytest.approx(factor, rel=0.02)


# --- everywhere -----------------------------------------------------------------------------------------------------


def test_faster_everywhere_falls_by_one_clear_loss(load):
    found = verdicts.of_run(load())
    assert found["map_M1"].state == HOLDS
    assert f"faster at {len(GRID)} of {len(GRID)} points and slower at 0" in found["map_M1"].sentence
    assert found["map_M1_static"].state == FAILS
    assert found["map_M8"].state == UNDECIDED


def test_one_slow_point_is_named(load):
    verdict = verdicts.of_run(load({("int4", 4096, 1024): 3.0}))["map_M1"]
    assert verdict.state == FAILS
    assert verdict.numbers["losses"] == 1
    assert "at 4096×1024" in verdict.sentence


def test_every_point_is_in_the_table(load):
    rows = regimes.speedups(load())
    shown = regimes_page.points(rows, 1)
    assert len(shown) == len(GRID)
    assert shown[list(regimes_page.point_columns())].notna().all(axis=None)
    assert set(regimes_page.reclaimed(rows, (1,))["against"]) == set(regimes.AGAINST)


def test_another_group_size_of_a_shape_does_not_count_twice(load):
    run = load()
    other = run.cases.assign(case_id=run.cases["case_id"].str.replace("-g128", "-g64"), group_size=64)
    samples = run.samples.assign(case_id=run.samples["case_id"].str.replace("-g128", "-g64"))
    products = other["case_id"].str.contains("-g64")
    both = dataclasses.replace(
        run, cases=pd.concat([run.cases, other[products]], ignore_index=True),
        samples=pd.concat([run.samples, samples[samples["case_id"].str.contains("-g64")]], ignore_index=True),
    )  # fmt: skip
    assert len(regimes.grid(regimes.speedups(both), 1)) == len(regimes.grid(regimes.speedups(run), 1))
