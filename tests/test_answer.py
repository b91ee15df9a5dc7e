"""The first screen: one token, the reader's case, findings and caveats have the planted numbers and follow the run."""

from dataclasses import replace

import numpy as np
import pytest
import synthetic

from tinygemm import models, published
from tinygemm.kernel import configs
from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report import readme
from tinygemm.report.answer import figures as answer_figures
from tinygemm.report.answer import page as answer_page
from tinygemm.report.answer import tables as one_token
from tinygemm.report.answer import words as answer
from tinygemm.report.base import tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.dequantisation.claims import of_run as of_causes
from tinygemm.report.dequantisation.tables import REGIMES
from tinygemm.report.predict import model as costmodel
from tinygemm.report.trust import ways

LLAMA = models.MODELS["llama-3-8b"]
MODES = (("graph", "cold"), ("primed", "cold"), ("graph", "hot"), ("do_bench", "cold"), ("eager", "cold"))
QUIET = {"noise": 0.001, "drift": 0.0}


def load(root, factors=None, **more):
    settings = {
        "m_list": (1,),
        "modes": MODES,
        "n_samples": 5,
        "counters": False,
        "suites": (synthetic.CROSSOVER,),
    } | more
    return synthetic.load(root, truth=synthetic.Truth(factors=factors or {}, **QUIET), **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load(tmp_path_factory.mktemp("run"), suites=(synthetic.CROSSOVER, synthetic.CAUSES))


@pytest.fixture(scope="module")
def table(run):
    return tables.report_table(run)


@pytest.fixture(scope="module")
def fitted(run):
    return costmodel.fit(run, backends=one_token.BACKENDS)


@pytest.fixture(scope="module")
def found(run):
    return answer.of_run(run)


def truth_us(backend, K, N, M=1, launch="graph"):
    return synthetic.Truth().latency_us(backend, GemmProblem(M, N, K), launch)


# --- one token ------------------------------------------------------------------------------------------------------


def test_a_token_is_the_sum_of_its_calls(run, table):
    rows = one_token.times(run, table, None).set_index("backend")
    for backend in one_token.BACKENDS:
        layers = LLAMA.layers * sum(truth_us(backend, each.K, each.N) for each in models.projections(LLAMA)) / 1e3
        assert rows.loc[backend, "layers_ms"] == pytest.approx(layers, rel=0.005)
        assert rows.loc[backend, "ms"] == rows.loc[backend, "layers_ms"], "lm_head is not known without a model"
    assert rows["head_ms"].isna().all()
    assert rows.loc["int4", "speedup"] == pytest.approx(rows.loc["fp16-cublas", "ms"] / rows.loc["int4", "ms"])


def test_lm_head_is_predicted_once_and_is_part_of_every_bar(run, table, fitted):
    rows = one_token.times(run, table, fitted)
    assert rows["head_ms"].unique() == pytest.approx(
        [truth_us("fp16-cublas", LLAMA.hidden, LLAMA.vocab) / 1e3], rel=0.1
    )
    assert rows["ms"].tolist() == pytest.approx((rows["layers_ms"] + rows["head_ms"]).tolist())
    assert (rows["predicted"] == 0).all()


def test_the_ideal_of_a_token_is_its_bytes_at_the_speed_of_the_copy(run, table, fitted):
    rows = one_token.times(run, table, fitted).set_index("backend")
    weights = LLAMA.layers * sum(each.K * each.N for each in models.projections(LLAMA))
    head = LLAMA.hidden * LLAMA.vocab * 2
    for backend, bits in (("fp16-cublas", 16), ("int4", 4.125)):
        floor = (weights * bits / 8 + head) / synthetic.Truth().copy_gb_s / 1e6
        assert rows.loc[backend, "floor_ms"] == pytest.approx(floor, rel=0.005)


def test_a_projection_that_was_not_timed_is_predicted_and_counted(run, fitted):
    wide = (run.cases["backend"] == "int4") & (run.cases["N"] == 28672)
    without = tables.only(run, ~wide)
    rows = one_token.times(without, tables.report_table(without), fitted).set_index("backend")
    whole = one_token.times(run, tables.report_table(run), fitted).set_index("backend")
    assert rows["predicted"].to_dict() == dict.fromkeys(one_token.BACKENDS, 0) | {"int4": 1}
    assert rows.loc["int4", "layers_ms"] == pytest.approx(whole.loc["int4", "layers_ms"], rel=0.1)
    assert "int4" not in set(one_token.times(without, tables.report_table(without), None)["backend"])


def test_the_most_tokens_are_where_a_token_takes_as_long_in_fp16(table):
    gains = one_token.gains(table)
    most, timed = one_token.most_tokens(gains)

    def gain(M):
        sums = [
            sum(calls * truth_us(backend, K, N, M) for (K, N), calls in one_token.UNFUSED.items())
            for backend in ("fp16-cublas", "int4-fused")
        ]
        return sums[0] / sums[1]

    assert timed == 256
    assert gains[32] == pytest.approx(gain(32), rel=0.01)
    assert gain(np.floor(most / 1.15).astype(int).item()) > 1 > gain(np.ceil(most * 1.15).astype(int).item())


def test_without_an_end_or_without_the_measurement_the_most_tokens_say_so(tmp_path, run):
    fast = load(tmp_path, {"int4-fused": 0.01})
    assert one_token.most_tokens(one_token.gains(tables.report_table(fast))) == (np.inf, 256)
    few = one_token.gains(tables.report_table(tables.only(run, run.cases["M"] == 1)))
    assert few.empty
    assert np.isnan(one_token.most_tokens(few)[0])


def test_whether_it_pays_at_32_tokens_is_a_number(found):
    assert f"At 32 tokens in flight the layers are still {found.gains[32]:.1f} times as fast" in answer.sentence(found)
    slow = replace(found, gains=found.gains * 0 + 0.75)
    assert "At 32 tokens in flight the layers are 0.8 times as fast" in answer.sentence(slow)
    assert "32" not in answer.sentence(replace(found, gains=found.gains.drop(32)))


def test_the_unfused_layers_are_those_of_the_model():
    fused = sum(each.K * each.N for each in models.projections(LLAMA))
    assert sum(K * N * calls for (K, N), calls in one_token.UNFUSED.items()) == fused


def test_memory_of_the_weights_counts_lm_head_and_embedding_in_fp16():
    assert one_token.weight_gb() == pytest.approx(8.03e9 * 2 / 1e9, rel=1e-3)  # 8.03 billion parameters
    assert one_token.weight_gb(bits=4.125) == pytest.approx((6.98e9 * 4.125 / 8 + 1.0507e9 * 2) / 1e9, rel=1e-3)


# --- the case, the caveats, the findings ----------------------------------------------------------------------------


def test_the_case_is_the_advice_for_an_a10g_and_kv_is_a_part_of_it(found, fitted):
    case = found.case
    assert case.projected
    assert not case.overlaps
    assert case.advice.gpu == "NVIDIA A10G"
    times = costmodel.predict(fitted, [answer.KV], answer.gpu_spec("a10g"), ("fp16-cublas", "int4"), ("graph",))
    fp16, int4 = times["latency_us"]
    assert case.kv["saved_ms"] == pytest.approx(64 * (fp16 - int4) / 1e3)
    assert case.kv["share"] == pytest.approx(64 * (fp16 - int4) / case.advice.totals["fp16"])
    assert case.kv["speedup"] == pytest.approx(fp16 / int4)
    assert case.kv["low"] < case.kv["speedup"] < case.kv["high"]
    assert "PROJECTED" in answer.case_title(case)


def test_on_the_gpu_of_the_case_it_is_measured(tmp_path):
    here = load(tmp_path, gpu="a10g", suites=())
    case = answer.of_run(here).case
    assert not case.projected
    assert "MEASURED" in answer.case_title(case)
    assert set(case.advice.rows["kind"][:4]) == {"measured"}


@pytest.mark.parametrize(
    ("peer", "alike"), [((1.02, 1.08), True), ((0.95, 1.05), True), ((1.2, 1.4), False), ((), False)]
)
def test_any_kernel_will_do_only_where_the_projections_say_so(found, peer, alike):
    case = answer.Case(found.case.advice, found.case.kv, peer, False)
    assert ("do as well" in " ".join(answer.case_lines(case))) == alike


PLANTED_WAYS = [
    ("fp16-cublas", "int4", "graph", "cold"), ("fp16-cublas", "int4-serial", "graph", "cold"),
    ("fp16-cublas", "int4", "primed", "cold"), ("fp16-cublas", "int4", "graph", "hot"),
    ("fp16-cublas", "int4", "do_bench", "cold"), ("fp16-cublas", "int4", "eager", "cold"),
    ("best", "int4", "graph", "cold"),
]  # fmt: skip


def planted_speedups(fp16, backend, launch, l2_state):
    names = ("fp16-cublas", "fp16-triton") if fp16 == "best" else (fp16,)
    truth = synthetic.Truth().latency_us
    problems = [GemmProblem(1, N, K) for K, N in STUDY_SHAPES]
    return [
        min(truth(name, each, launch, l2_state) for name in names) / truth(backend, each, launch, l2_state)
        for each in problems
    ]


def test_every_way_has_the_planted_range_of_all_projections(run):
    rows = ways.spans(ways.speedups(run))
    planted = [planted_speedups(*way) for way in PLANTED_WAYS]
    assert rows["low"].tolist() == pytest.approx([min(each) for each in planted], rel=0.005)
    assert rows["high"].tolist() == pytest.approx([max(each) for each in planted], rel=0.005)
    assert (rows["missing"] == "").all()


def test_a_way_names_the_projection_it_lacks_and_goes_where_half_are_missing(run):
    serial = run.cases["backend"] == "int4-serial"
    of_three = ways.spans(ways.speedups(tables.only(run, ~(serial & (run.cases["N"] == 1024)))))
    row = of_three[of_three["missing"] != ""].iloc[0]
    planted = [gain for (_, N), gain in zip(STUDY_SHAPES, planted_speedups(*PLANTED_WAYS[1]), strict=True) if N != 1024]
    assert len(of_three) == len(PLANTED_WAYS)
    assert row["missing"] == "4096×1024"
    assert [row["low"], row["high"]] == pytest.approx([min(planted), max(planted)], rel=0.005)
    of_two = ways.spans(
        ways.speedups(tables.only(run, ~(serial & (run.cases["K"] == 4096) & run.cases["N"].isin((1024, 4096)))))
    )
    assert len(of_two) == len(PLANTED_WAYS) - 1


def test_times_from_python_of_a_slow_host_are_in_no_way(run):
    slow = run.cases[(run.cases["launch"] == "eager") & (run.cases["M"] == 1) & (run.cases["N"] == 1024)]
    late = run.samples["case_id"].isin(slow["case_id"])
    samples = run.samples.assign(latency_us=run.samples["latency_us"].where(~late, 3 * run.samples["latency_us"]))
    missing = ways.spans(ways.speedups(replace(run, samples=samples))).set_index("way")["missing"]
    assert missing[missing != ""].to_dict() == {"launched one by one from Python": "4096×1024"}


@pytest.mark.parametrize("state", [HOLDS, FAILS, UNDECIDED])
def test_the_finding_follows_the_state_of_its_verdict(state):
    verdicts = {name: Verdict("", state, "", {}) for name in ("A", "B", "C", "C_cause", "C_loses_static")}
    causes = {f"cause_{regime}_graph": Verdict("", UNDECIDED, "", {}) for regime in REGIMES}
    rows = answer.findings(verdicts, causes)
    assert rows["finding"].tolist() == [f"{answer.STATE[state]}."] * 3


def test_findings_quote_the_run(found):
    text = " ".join(found.findings.to_numpy().flatten())
    wide = [truth_us("fp16-cublas", 4096, N) / truth_us("int4", 4096, N) for N in (8192, 14336, 28672)]
    assert f"Yes: {min(wide):.1f}× to {max(wide):.1f}×." in text
    assert "No: " in text


def test_costs_at_the_narrow_projection_are_all_of_that_projection(run, found):
    why = found.findings["why"].iloc[2]
    naive, none, ours = (truth_us(name, 4096, 1024) for name in ("int4-naive-dequant", "int4-no-dequant", "int4"))
    numbers = of_causes(run)["cause_narrow_graph"].numbers
    assert numbers["dequantisation_value"] == pytest.approx(1 - none / naive, abs=0.005)
    assert numbers["own_value"] == pytest.approx(1 - none / ours, abs=0.005)
    for name in ("own_value", "dequantisation_value", "too_little_parallelism_value"):
        assert f"{max(numbers[name], 0):.0%}" in why
    assert "4096×512" not in why


def test_the_projection_where_naive_dequantisation_costs_most_is_named():
    verdicts = {name: Verdict("", UNDECIDED, "", {}) for name in ("A", "B", "C", "C_cause", "C_loses_static")}
    causes = {f"cause_{regime}_graph": Verdict("", FAILS, "", {}) for regime in REGIMES}
    assert "4096×14336" not in answer.findings(verdicts, causes)["why"].iloc[2]
    causes["cause_wide_graph"] = Verdict("", HOLDS, "", {"dequantisation_value": 0.37})
    why = answer.findings(verdicts, causes)["why"].iloc[2]
    assert "4096×14336" in why
    assert "37%" in why


def test_findings_name_the_projection_whose_bytes_they_are_about(found):
    verdicts = {name: Verdict("", FAILS, "", {}) for name in ("A", "C", "C_cause", "C_loses_static")}
    verdicts["B"] = Verdict("", FAILS, "", {"fp16_rate": 0.9, "int4_rate": 0.5, "fp16_dram": 0.8, "int4_dram": 0.4})
    causes = {f"cause_{regime}_graph": Verdict("", FAILS, "", {}) for regime in REGIMES}
    why = answer.findings(verdicts, causes)["why"]
    assert all("4096×14336" in told for told in why[:2])


@pytest.mark.parametrize(("share", "worth"), [(-0.01, "not worth it"), (0.03, "hardly"), (0.2, "worth it")])
def test_kv_alone_is_worth_what_it_saves_of_a_token(found, share, worth):
    case = replace(found.case, kv=found.case.kv | {"share": share})
    for told in (" ".join(answer.case_lines(case)), answer.case_in_short(case)):
        assert worth in told
        assert f"{share:.0%} of a token" in told
    assert ("hardly" in answer.case_in_short(case)) == (worth == "hardly")


def test_what_is_said_of_published_kernels_at_more_tokens_is_published(found):
    told = " ".join(answer.case_lines(replace(found.case, peer=(1.02, 1.08))))
    quoted = published.load()
    quoted = quoted[(quoted["gpu"] == "a10") & (quoted["M"] == 4) & (quoted["quantity"] == "speedup")]
    quoted = quoted[~quoted["method"].str.contains("base clock")]["value"]
    assert f"{quoted.min():.2f}×" in told
    assert f"{quoted.max():.2f}×" in told


def test_a_projected_case_says_that_launch_configs_are_predicted_which_they_are(found):
    assert configs.table("a10g")[1] == "predicted", "they are searched now: mend the sentence on how far to trust"
    assert "predicted" in " ".join(answer.case_lines(found.case))
    measured = replace(found.case, advice=replace(found.case.advice, run_gpu=found.case.advice.gpu))
    assert "predicted" not in " ".join(answer.case_lines(measured))


# --- the words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speedup", "m_pays", "lead"),
    [(3.2, (47.1, 256), "Yes, up to about 45 tokens"), (3.2, (5.2, 256), "Yes, up to about 5 tokens"),
     (3.2, (np.inf, 256), "Yes, at up to 256 tokens"), (3.2, (np.nan, 0), "Yes, at one token"),
     (1.02, (47.1, 256), "Hardly"), (0.98, (np.nan, 0), "Hardly"), (0.5, (np.nan, 0), "No, not at one token")],
)  # fmt: skip
def test_the_sentence_says_yes_no_or_hardly_as_the_run_does(found, speedup, m_pays, lead):
    token = found.token.assign(speedup=found.token["speedup"].mask(found.token["backend"] == "int4", speedup))
    said = answer.sentence(replace(found, token=token, m_pays=m_pays))
    assert said.startswith(f"**{lead}")
    assert f"**{speedup:.1f} times**" in said
    for row in token[token["backend"].isin(["fp16-cublas", "int4"])].itertuples():
        assert f"{row.ms:.1f} ms" in said


def test_the_sentence_leaves_out_what_the_run_lacks_and_marks_what_it_predicts(found):
    token = found.token[found.token["backend"] != "int4-serial"]
    assert "cannot overlap" not in answer.sentence(replace(found, token=token))
    assert "partly predicted" in answer.sentence(replace(found, token=token.assign(predicted=1)))
    assert "partly predicted" not in answer.sentence(found)


def test_the_sentence_says_what_of_it_is_lm_head(found):
    said = answer.sentence(replace(found, token=found.token.assign(head_ms=0.42)))
    assert "0.42 ms" in said.split("`lm_head`")[1]
    assert " ms" not in answer.sentence(replace(found, token=found.token.assign(head_ms=np.nan))).split("lm_head")[1]


def test_the_page_and_the_readme_say_the_same(found):
    readme_says = readme.first_screen(found, "", ["**GPU: a kernel.**"])
    assert answer.sentence(found) in answer_page.sentence(found).data
    assert answer.sentence(found) in readme_says
    assert "* **GPU: a kernel.**" in readme_says
    for row in found.ways.itertuples():
        assert answer.way_span(row) in answer_page.ways(found).data
    for end in (found.ways["low"].min(), found.ways["high"].max()):
        assert f"{end:.1f}×" in readme_says


def test_a_run_that_timed_little_leaves_sentences(tmp_path):
    small = synthetic.load(tmp_path, m_list=(1,), shapes=((4096, 1024),), modes=(("graph", "cold"),), n_samples=5)
    shown = answer.of_run(small)
    assert shown.case is None
    assert shown.token.empty
    assert "did not time" in answer.sentence(shown)
    assert "did not time" in answer_page.ways(shown).data
    assert "did not time" in answer_page.case(shown).data
    assert len(shown.findings) == 3
    assert small.run_id in answer_page.conditions(shown, small).data
    assert small.run_id in readme.first_screen(shown, "", [])


def test_bars_without_a_model_have_no_lm_head(run, table):
    rows = one_token.times(run, table, None)
    assert len(answer_figures.one_token(rows).axes[0].patches) == len(rows)


def test_the_command_of_the_case_is_one_that_answers():
    from tinygemm.cli import commands

    name, *options = answer.COMMAND.split()[1:]
    known = {spelling for option in commands.commands[name].params for spelling in option.opts}
    assert set(options[::2]) <= known
    assert options[1] in models.MODELS
