"""Figures: they draw what the table says, legibly, in the same colours everywhere, as the same bytes every time."""

import itertools
import re
from importlib import import_module

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import synthetic
from conftest import ROOT
from derived import counted
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from tinygemm import published
from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.answer import figures as answer_figures
from tinygemm.report.answer import tables as one_token
from tinygemm.report.base import style, tables
from tinygemm.report.compare import figures as compare_figures
from tinygemm.report.compare import tables as compared
from tinygemm.report.dequantisation import figures as dequantisation_figures
from tinygemm.report.dequantisation import tables as causes
from tinygemm.report.gains import figures as gains_figures
from tinygemm.report.gains import ladder, ladder_figures, launch_figures, timeline_figures
from tinygemm.report.kernel import figures as kernel_figures
from tinygemm.report.kernel import fragment_figures
from tinygemm.report.kernel import tables as steps
from tinygemm.report.limits import figures as limits_figures
from tinygemm.report.limits import tables as limiters
from tinygemm.report.limits.counters import summarize_counters
from tinygemm.report.models import figures as models_figures
from tinygemm.report.models import tables as projections
from tinygemm.report.peers import figures as peers_figures
from tinygemm.report.peers import tables as peers
from tinygemm.report.predict import figures as predict_figures
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict import page as predict
from tinygemm.report.published import figures as published_figures
from tinygemm.report.published import tables as literature
from tinygemm.report.regimes import figures as regimes_figures
from tinygemm.report.regimes import page as regimes_page
from tinygemm.report.regimes import tables as regimes
from tinygemm.report.token import figures as token_figures
from tinygemm.report.token import page as token_page
from tinygemm.report.trust import figures as trust_figures
from tinygemm.report.trust import tables as evidence
from tinygemm.report.trust import ways


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    suites = (synthetic.CAUSES, synthetic.REGIMES, synthetic.CROSSOVER, synthetic.LADDER)
    return synthetic.load(tmp_path_factory.mktemp("run"), m_list=(1, 8), suites=suites)


@pytest.fixture(scope="module")
def table(run):
    return tables.report_table(run)


REPORT = ROOT / "tinygemm" / "report"
FIGURE_MODULES = [*REPORT.glob("*/*figures.py")]
DRAW = {
    "one_token": lambda run, table: answer_figures.one_token(one_token.times(run, table, costmodel.fit(run))),
    "speedup_vs_n": lambda run, table: gains_figures.speedup_vs_n(table),
    "decode_latency": lambda run, table: gains_figures.decode_latency(table),
    "decode_latency at M = 8": lambda run, table: gains_figures.decode_latency(table, M=8),
    "frac_of_floor": lambda run, table: gains_figures.frac_of_floor(table),
    "percent_of_peak": lambda run, table: limits_figures.percent_of_peak(tables.counters_table(run)),
    "dequant_breakdown": lambda run, table: dequantisation_figures.dequant_breakdown(table),
    "three_steps": lambda run, table: ladder_figures.three_steps(ladder.three_steps(run)),
    "timeline": lambda run, table: timeline_figures.timeline(timeline_figures.lanes(table)),
    "word_to_fragment": lambda run, table: fragment_figures.word_to_fragment(),
    "time_against_bytes": lambda run, table: token_figures.time_against_bytes(table),
    "whole_step": lambda run, table: token_figures.whole_step(
        pd.DataFrame(
            {
                "backend": ["fp16-cublas", "int4", "int4-lm-head", "aten-int4mm"],
                "batch": 1,
                "context": 512,
                "ms": [4.9, 2.4, 2.1, 2.9],
                "product": [0.8, 0.6, 0.55, None],
                "attention": [0.1, 0.2, 0.2, None],
                "rest": [0.1, 0.2, 0.25, None],
            }
        ).assign(**tables.origin(run))
    ),
    "layers_only": lambda run, table: token_figures.layers_only(token_page.by_projection(run, table)),
    "ways": lambda run, table: trust_figures.ways(ways.speedups(run)),
    "cause_removed": lambda run, table: dequantisation_figures.cause_removed(causes.removals(run)),
    "cause_along": lambda run, table: dequantisation_figures.cause_along(causes.removals(run)),
    "best_map": lambda run, table: regimes_page.best_map(regimes.speedups(run)),
    "crossover": lambda run, table: regimes_figures.crossover(regimes.by_tokens(table)),
    "never_slower": lambda run, table: models_figures.never_slower(projections.every_projection(run)),
    "published_speedups": lambda run, table: published_figures.published_speedups(
        literature.beside(table, costmodel.fit(run), published.load())
    ),
    "predicted_vs_measured": lambda run, table: predict_figures.predicted_vs_measured(costmodel.leave_one_out(run)),
    "terms_vs_n": lambda run, table: predict_figures.terms_vs_n(costmodel.fit(run)),
    "projected_speedups": lambda run, table: predict_figures.projected_speedups(
        predict.speedups(costmodel.fit(run), table)
    ),
    "published_vs_projected": lambda run, table: predict_figures.published_vs_projected(
        predict.compared(costmodel.fit(run))
    ),
    "several_gpus": lambda run, table: compare_figures.several_gpus(compared.speedups([run])),
    "limits": lambda run, table: limits_figures.limits(limiters.readings(run)),
    "stalls": lambda run, table: limits_figures.stalls(limiters.readings(counted(run, STALLS))),
    "instruction_mix": lambda run, table: limits_figures.instruction_mix(counts(run)),
    "launch_gain": lambda run, table: launch_figures.launch_gain(table),
    "host_floor": lambda run, table: launch_figures.host_floor(table),
    "peer_times": lambda run, table: draw_peers(run, table),
    "fraction_of_reads": lambda run, table: peers_figures.fraction_of_reads(
        {name: peers.fraction_of_reads(run, name) for name in peers.READS}, table
    ),
    "ladder": lambda run, table: kernel_figures.ladder(steps.rungs(run)),
    "method_errors": lambda run, table: draw_errors(run, table),
    "run_to_run": lambda run, table: trust_figures.run_to_run(evidence.agreement(run, run), run, run),
}
OF_NO_RUN = ("word_to_fragment",)
WAIT = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
REASONS = ("selected", "not_selected", "long_scoreboard", "short_scoreboard", "barrier", "wait", "math_pipe_throttle")
STALLS = {
    backend: {WAIT.format(reason): (1.0 + i, "") for i, reason in enumerate(REASONS)}
    for backend in ("fp16-cublas", "int4-static", "int4")
}


def counts(run):
    """Readings with instructions, executed and in machine code."""
    pipes = {f"smsp__inst_executed_pipe_{pipe}.sum": (1e6, "inst") for pipe in ("alu", "fma", "lsu")}
    executed = pipes | {"smsp__inst_executed.sum": (4e6, "inst")}
    rows = limiters.readings(counted(run, {"int4": executed, "int4-static": executed}))
    return rows.assign(static_low=rows["per_weight"], static_high=1.2 * rows["per_weight"])


def draw_peers(run, table):
    rows = peers.contest(run)
    return peers_figures.peer_times(rows, peers.mean_over_peers(run, peers.best_peers(rows)), table)


def draw_errors(run, table):
    rows, again = evidence.errors(run), evidence.halves(run)
    return trust_figures.method_errors(evidence.mean_errors(run, rows), rows, {"second half / first": again}, table)


# a GPU with a ninth of the bandwidth, on which the tuned kernel loses at the narrow shape
SLOW = synthetic.Truth(copy_gb_s=480, empty_us=1.4, host_us=22, factors={"int4": 0.95, ("int4", 4096, 1024): 2.6})


@pytest.fixture(scope="module")
def slow_run(tmp_path_factory):
    modes = (("graph", "cold"),)
    return synthetic.load(tmp_path_factory.mktemp("slow"), gpu="a10g", truth=SLOW, m_list=(1, 8), modes=modes)


@pytest.fixture(scope="module", params=[*DRAW, "a10g decode_latency", "a10g time_against_bytes"])
def drawn(request, run, table) -> Figure:
    if request.param.startswith("a10g "):
        run = request.getfixturevalue("slow_run")
        return DRAW[request.param.split()[1]](run, tables.report_table(run))
    return DRAW[request.param](run, table)


@pytest.fixture(scope="module")
def placed(drawn):
    return texts(drawn)


def texts(fig: Figure) -> list[tuple[str, mpl.transforms.Bbox]]:
    """Every level or upright text that shows, with its place in pixels."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    outside = set()
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not (low <= tick.get_loc() <= high and tick.get_visible()):
                outside |= {tick.label1, tick.label2}
    found = [text for text in fig.findobj(Text) if text.get_text().strip() and text.get_visible()]
    shown = [text for text in found if text not in outside and text.get_rotation() in (0, 90)]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in shown]


def test_every_figure_of_every_chapter_is_drawn_here():
    modules = [import_module(f"tinygemm.report.{path.parent.name}.{path.stem}") for path in FIGURE_MODULES]
    drawn_by = {name for module in modules for name, value in vars(module).items() if hasattr(value, "__wrapped__")}
    assert {name.split()[0] for name in DRAW} == {name for name in drawn_by if not name.startswith("_")}


def test_no_two_texts_overlap_and_none_leaves_the_figure(drawn, placed):
    assert len(placed) > 8
    for text, box in placed:
        assert box.x0 >= -1, f"{text!r} is cut off"
        assert box.y0 >= -1, f"{text!r} is cut off"
        assert box.x1 <= drawn.bbox.width + 1, f"{text!r} is cut off"
        assert box.y1 <= drawn.bbox.height + 1, f"{text!r} is cut off"
    for (one, a), (other, b) in itertools.combinations(placed, 2):
        inner = (min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))
        assert min(inner) < 2, f"{one!r} and {other!r} overlap by {inner} pixels"


def test_every_figure_says_where_its_numbers_come_from(request, placed, run):
    if request.node.callspec.params["drawn"] in OF_NO_RUN:
        pytest.skip("it shows a layout, and no number of a run")
    if "a10g" in request.node.name:
        run = request.getfixturevalue("slow_run")
    text = " ".join(text for text, _ in placed).replace(style.NO_BREAK, " ")
    assert run.gpu["name"] in text
    assert run.run_id in text


def test_every_axis_has_a_name(request, drawn):
    if request.node.callspec.params["drawn"] in OF_NO_RUN:
        pytest.skip("it shows a layout, and has no axes")
    assert any(ax.get_xlabel() for ax in drawn.axes)
    assert all(
        ax.get_ylabel() or ax.get_title(loc="left") or ax.yaxis.get_ticklabels()[0].get_text() for ax in drawn.axes
    )


def test_text_is_at_least_seven_pixels_high_on_a_phone(drawn):
    scale = 375 / drawn.get_figwidth() / 72
    sizes = {text.get_fontsize() for text in drawn.findobj(Text) if text.get_text().strip() and text.get_visible()}
    assert min(sizes) * scale > 6.5


def test_saving_twice_gives_the_same_svg_without_a_date(drawn, tmp_path):
    one, other = (style.save(drawn, tmp_path / f"{i}.svg") for i in range(2))
    assert one.read_bytes() == other.read_bytes()
    assert b"<dc:date>" not in one.read_bytes()


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_drawing_twice_gives_the_same_bytes(table, tmp_path, ending):
    one, other = (style.save(gains_figures.decode_latency(table), tmp_path / f"{i}.{ending}") for i in range(2))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "plot.svgz"])
def test_other_endings_are_refused_and_nothing_is_written(table, tmp_path, name):
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        style.save(gains_figures.decode_latency(table), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_every_figure_says_in_words_what_it_shows(drawn):
    alt = drawn.get_label()
    assert len(alt) >= 40
    assert "nan" not in alt.lower().split()
    assert re.search(r"\d", alt)


def test_alt_text_of_a_figure_follows_its_data_and_reaches_the_output_of_a_notebook(table):
    fast = gains_figures.decode_latency(table.assign(latency_us_p50=table["latency_us_p50"] / 2))
    assert fast.get_label() != gains_figures.decode_latency(table).get_label()
    _, metadata = fast._repr_mimebundle_()
    assert metadata["image/svg+xml"]["alt"] == fast.get_label()


def test_figures_are_not_kept_open(run, table):
    import matplotlib.pyplot as plt

    gains_figures.decode_latency(table)
    assert plt.get_fignums() == []


# --- what is drawn --------------------------------------------------------------------------------------------------


def bars(fig: Figure) -> dict[str, list[float]]:
    """Heights of the vertical bars by colour."""
    found = {}
    for ax in fig.axes:
        for container in ax.containers:
            if isinstance(container, BarContainer):
                for bar in container:
                    found.setdefault(mpl.colors.to_hex(bar.get_facecolor()), []).append(bar.get_height())
    return found


def primary(table, backend, M=1):
    rows = tables.primary(table)
    rows = rows[(rows["backend"] == backend) & (rows["M"] == M)].set_index(["K", "N"])
    return rows.loc[list(STUDY_SHAPES)]


def test_bars_of_one_token_are_its_times_with_lm_head_on_top_and_the_bytes_as_a_line(run, table):
    rows = one_token.times(run, table, costmodel.fit(run))
    (ax,) = answer_figures.one_token(rows).axes
    drawn = {mpl.colors.to_hex(bar.get_facecolor()): bar.get_width() for bar in ax.patches}
    for row in rows.itertuples():
        assert drawn[style.colour(row.backend).lower()] == pytest.approx(row.layers_ms)
    assert drawn["#e4e6e8"] == pytest.approx(rows["head_ms"].iloc[0])
    ends = [segment[0, 0] for lines in ax.collections for segment in lines.get_segments()]
    assert ends == pytest.approx(rows["floor_ms"].tolist())


def test_a_bar_that_was_not_timed_is_called_predicted(run, table):
    rows = one_token.times(run, table, costmodel.fit(run))
    rows = rows.assign(predicted=rows["predicted"].mask(rows["backend"] == "int4-serial", 4))
    (ax,) = answer_figures.one_token(rows).axes
    assert sum("predicted" in text.get_text() for text in ax.texts) == 1


def test_latency_bars_are_medians_with_their_floor(table):
    fig = gains_figures.decode_latency(table)
    np.testing.assert_allclose(bars(fig)[style.colour("int4").lower()], primary(table, "int4")["latency_us_p50"])
    floors = [seg for c in fig.axes[0].collections for seg in c.get_segments() if np.ptp(seg[:, 1]) == 0]
    heights = {round(float(seg[0, 1]), 6) for seg in floors}
    assert {round(value, 6) for value in primary(table, "int4")["floor_us"]} <= heights


def test_speedup_lines_pass_through_the_table(table):
    fig = gains_figures.speedup_vs_n(table)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["M = 1", "M = 8"]
    rows = tables.primary(table)
    rows = rows[(rows["backend"] == "int4") & (rows["K"] == 4096) & (rows["M"] == 8)].sort_values("N")
    colour = style.colour("int4").lower()
    (line,) = [ln for ln in fig.axes[1].lines if ln.get_marker() == "o" and mpl.colors.to_hex(ln.get_color()) == colour]
    np.testing.assert_array_equal(line.get_xdata(), rows["N"])
    np.testing.assert_allclose(line.get_ydata().astype(float), rows["speedup_vs_fp16"])


def test_speedup_against_n_stays_at_the_k_of_the_study(tmp_path):
    shapes = [(4096, 1024), (4096, 4096), *((3072, N) for N in (512, 1024, 2048, 4096))]
    run = synthetic.load(tmp_path, m_list=(1,), shapes=shapes, backends=("fp16-cublas", "int4"))
    (text,) = [
        text
        for text, _ in texts(gains_figures.speedup_vs_n(tables.report_table(run)))
        if "K\N{NO-BREAK SPACE}=" in text
    ]
    assert "K\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}4096" in text


def test_breakdown_shows_the_tuned_kernel_above_its_twins(table):
    narrow = dequantisation_figures.dequant_breakdown(table).axes[0]
    widths = [
        bar.get_width() for container in narrow.containers if isinstance(container, BarContainer) for bar in container
    ]
    shown = ("int4", "int4-no-dequant", "int4-load-only")
    expected = [float(primary(table, backend).loc[STUDY_SHAPES[0], "latency_us_p50"]) for backend in shown]
    assert widths[-3:] == pytest.approx(expected)


def test_the_csv_of_a_breakdown_is_drawn_like_the_run(run, table, tmp_path):
    tables.breakdown(run).to_csv(tmp_path / "breakdown.csv", index=False)
    read = dequantisation_figures.dequant_breakdown(pd.read_csv(tmp_path / "breakdown.csv"))
    labels = {
        text for text, _ in texts(dequantisation_figures.dequant_breakdown(table)) if text.replace(".", "").isdigit()
    }
    drawn = {text for text, _ in texts(read) if text.replace(".", "").isdigit()}
    assert drawn <= labels
    assert len(labels - drawn) <= 2, "only the simple kernel, which a breakdown does not time, is missing"


def test_counters_without_a_shape_are_one_panel(run):
    one = run.counters[run.counters["case_id"].str.contains("M1-K4096-N14336")]
    rows = summarize_counters(one)
    rows = rows.assign(backend=rows["case_id"].str.split("/").str[0]).drop(columns="case_id")
    assert len(limits_figures.percent_of_peak(rows).axes) == 1


def test_other_shapes_than_those_of_the_study_are_drawn(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1,), shapes=[(2048, 2048), (2048, 8192)])
    table = tables.report_table(run)
    fig = gains_figures.decode_latency(table)
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == ["2048×2048", "2048×8192"]
    assert gains_figures.speedup_vs_n(table).axes
    assert len(dequantisation_figures.dequant_breakdown(table).axes) == 2


@pytest.mark.parametrize(
    ("draw", "column"),
    [
        (gains_figures.speedup_vs_n, "speedup_vs_fp16_low"),
        (gains_figures.decode_latency, "latency_us_p50"),
        (dequantisation_figures.dequant_breakdown, "latency_us_high"),
        (token_figures.time_against_bytes, "bytes_min"),
    ],
)
def test_a_missing_column_is_named(table, draw, column):
    with pytest.raises(ValueError, match=rf"{draw.__name__} needs the columns? .*{column}"):
        draw(table.drop(columns=column))


def test_missing_counters_are_named(run):
    with pytest.raises(ValueError, match="percent_of_peak needs the columns frac_sm"):
        limits_figures.percent_of_peak(tables.counters_table(run).drop(columns="frac_sm"))


@pytest.mark.parametrize("draw", [gains_figures.decode_latency, dequantisation_figures.dequant_breakdown])
def test_a_table_without_the_cases_says_what_was_looked_for(table, draw):
    with pytest.raises(ValueError, match="M = 3"):
        draw(table, M=3)


def test_an_empty_table_is_refused(table):
    with pytest.raises(ValueError, match="no rows"):
        gains_figures.decode_latency(table.iloc[:0])


def test_the_map_of_projections_shows_every_case_and_frames_the_slower_ones(tmp_path):
    truth = synthetic.Truth(factors={"int4": 0.7, ("int4", 4096, 4096): 3.0})
    run = synthetic.load(tmp_path, truth=truth, m_list=(1, 8), backends=("fp16-cublas", "fp16-triton", "int4"))
    rows = projections.every_projection(run)
    patches = models_figures.never_slower(rows).axes[0].patches
    assert len(patches) == len(rows)
    framed = [patch for patch in patches if patch.get_linewidth() > 1]
    assert len(framed) == (rows["state"] == projections.SLOWER).sum() > 0
    known = [patch for patch in patches if mpl.colors.to_hex(patch.get_facecolor()) != "#eceeef"]
    assert len(known) == rows["speedup"].notna().sum()


def test_text_of_a_saved_figure_is_text(table, tmp_path):
    svg = style.save(gains_figures.decode_latency(table), tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert "latency (µs)" in svg
    assert "<text" in svg


def test_dots_against_bytes_lie_at_their_bytes_and_times_and_the_floor_is_their_sum(table):
    (ax,) = token_figures.time_against_bytes(table).axes
    rows = tables.primary(table)
    rows = rows[(rows["backend"] == "int4") & (rows["M"] == 1)]
    colour = style.colour("int4").lower()
    (dots,) = [ln for ln in ax.lines if ln.get_marker() == "o" and mpl.colors.to_hex(ln.get_color()) == colour]
    np.testing.assert_allclose(dots.get_xdata(), rows["bytes_min"] / 1e6)
    np.testing.assert_allclose(dots.get_ydata(), rows["latency_us_p50"])
    x, y = ax.lines[0].get_data()
    floor = x * 1e3 / tables.copy_bandwidth_gb_s(table) + tables.empty_node_us(table)
    np.testing.assert_allclose(y, floor)


def test_every_way_of_timing_has_a_dot_per_projection(run):
    rows = ways.speedups(run)
    (ax,) = trust_figures.ways(rows).axes
    dots = [float(line.get_xdata()[0]) for line in ax.lines if len(line.get_xdata()) == 1]
    assert sorted(dots) == pytest.approx(sorted(rows["speedup"]))


def test_cells_of_the_map_hold_the_speedup_against_the_faster_fp16_kernel(run):
    rows = regimes.grid(regimes.speedups(run), 1)
    rows = rows[(rows["kernel"] == "int4") & (rows["against"] == "best FP16")]
    texts = [text.get_text() for text in regimes_page.best_map(regimes.speedups(run)).axes[0].texts]
    assert sorted(texts) == sorted(f"{value:.1f}" for value in rows["value"])
