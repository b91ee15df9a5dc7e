"""Advice for a model: measured where it was measured, predicted elsewhere, and the answer follows from the interval."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import synthetic
from conftest import ROOT
from test_model_config import LLAMA

from tinygemm import cli, hardware, models
from tinygemm.hardware import gpu_spec
from tinygemm.problem import GemmProblem
from tinygemm.report.base import tables
from tinygemm.report.bottleneck import tables as limiters
from tinygemm.report.models import advice, token, words
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict import terms as costterms
from tinygemm.runs import latest_run, load_run

LLAMA_3_8B = models.MODELS["llama-3-8b"]
SQUARE = (4096, 4096)  # o_proj of Llama 3 8B


def write(root, factors=None, backends=("fp16-cublas", "int4"), modes=(("graph", "cold"), ("eager", "cold")), **more):
    return synthetic.write_run(
        root, truth=synthetic.Truth(factors=factors or {}, **more), m_list=(1, 8), backends=backends, modes=modes,
        n_samples=12, counters=False,
    )  # fmt: skip


def fitted(root, factors=None, **more):
    return costmodel.fit(load_run(write(root, factors, **more)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def found(model):
    return advice.advise(model, LLAMA_3_8B)


def row(found, layer):
    return found.rows.set_index("layer").loc[layer]


# --- measured -------------------------------------------------------------------------------------------------------


def test_every_projection_and_lm_head_have_a_row(found):
    assert found.rows["layer"].tolist() == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"]
    assert found.rows["calls"].tolist() == [32, 32, 32, 32, 1]


def test_what_the_run_timed_is_measured_with_its_paired_interval(found):
    for each in found.rows.iloc[:4].itertuples():
        problem = GemmProblem(1, each.N, each.K)
        fp16, int4 = (synthetic.Truth().latency_us(name, problem) for name in ("fp16-cublas", "int4"))
        assert each.kind == "measured"
        assert each.fp16_us == pytest.approx(fp16, rel=0.03)
        assert each.int4_us == pytest.approx(int4, rel=0.03)
        assert each.speedup == pytest.approx(fp16 / int4, rel=0.01)  # paired: the drift of a round cancels
        assert each.speedup_high - each.speedup_low < 0.04 * each.speedup
        assert each.quantise == advice.YES


def test_a_projection_that_gets_slower_is_not_to_be_quantised(tmp_path):
    found = advice.advise(fitted(tmp_path, {("int4", *SQUARE): 3.0}), LLAMA_3_8B)
    assert row(found, "o_proj")["quantise"] == advice.NO
    assert row(found, "qkv_proj")["quantise"] == advice.YES
    assert found.totals["advised"] < found.totals["int4"]


def test_a_projection_whose_interval_covers_one_is_a_tie(tmp_path):
    truth, problem = synthetic.Truth(), GemmProblem(1, SQUARE[1], SQUARE[0])
    level = truth.latency_us("fp16-cublas", problem) / truth.latency_us("int4", problem)
    found = advice.advise(fitted(tmp_path, {("int4", *SQUARE): level}), LLAMA_3_8B)
    assert row(found, "o_proj")["quantise"] == advice.TIE


@pytest.mark.parametrize(
    ("fast", "slow", "answer"),
    [
        (0.998, 0.999, advice.YES),
        (1.0, 1.0, advice.TIE),
        (1.001, 1.002, advice.NO),
        (0.95, 1.001, advice.TIE),
        (0.999, 1.05, advice.TIE),
    ],
    ids=["just faster", "level", "just slower", "faster by the median alone", "slower by the median alone"],
)
def test_the_answer_is_that_of_the_whole_interval(model, fast, slow, answer):
    """Planted: FP16 takes 10 us in every round, INT4 in every other round a little less or a little more."""
    problem = GemmProblem(1, SQUARE[1], SQUARE[0])
    fp16, int4 = (f"{name}/{problem}/graph-cold" for name in ("fp16-cublas", "int4"))
    samples = model.run.samples
    planted = np.where(samples["sample"] % 2, 10 * fast, 10 * slow)
    latency = samples["latency_us"].mask(samples["case_id"] == fp16, 10.0).mask(samples["case_id"] == int4, planted)
    run = replace(model.run, samples=samples.assign(latency_us=latency))
    found = row(advice.advise(replace(model, run=run), LLAMA_3_8B), "o_proj")
    assert (found["kind"], found["quantise"]) == ("measured", answer)
    assert found["speedup_low"] == pytest.approx(1 / slow)
    assert found["speedup_high"] == pytest.approx(1 / fast)


def test_totals_are_the_calls_of_a_token(found):
    rows = found.rows
    assert found.totals["fp16"] == pytest.approx((rows["fp16_us"] * rows["calls"]).sum())
    int4 = (rows["int4_us"] * rows["calls"]).sum() + row(found, "lm_head")["fp16_us"]
    assert found.totals["int4"] == pytest.approx(int4)
    assert found.totals["advised"] == pytest.approx(int4)
    assert found.totals["speedup_low"] < found.totals["speedup"] < found.totals["speedup_high"]
    assert all(type(value) is float for value in found.totals.values())


def test_lm_head_stays_in_fp16(found):
    head = row(found, "lm_head")
    assert (head["K"], head["N"], head["quantise"], head["kind"]) == (4096, 128256, advice.KEPT, "predicted")
    assert np.isnan(head["int4_us"])
    assert "lm_head in FP16" in " ".join(advice.sentences(found))


# --- predicted ------------------------------------------------------------------------------------------------------


def test_a_gpu_that_was_not_measured_is_predicted_with_wider_bands(model, found):
    other = advice.advise(model, LLAMA_3_8B, gpu_spec("a10g"))
    assert set(other.rows["kind"]) == {"predicted"}
    for each in ("o_proj", "gate_up_proj"):
        here, there = row(found, each), row(other, each)
        assert there["fp16_us"] > here["fp16_us"]
        assert there["speedup_low"] < there["speedup"] < there["speedup_high"]
        assert there["speedup_high"] - there["speedup_low"] > here["speedup_high"] - here["speedup_low"]
    assert any("projected from the NVIDIA H200" in line for line in advice.heading(other))
    assert "A10G" in advice.heading(other)[0]


def test_shapes_that_the_run_lacks_are_predicted_on_its_own_gpu_too(model):
    found = advice.advise(model, LLAMA_3_8B, tp=8)
    assert set(found.rows["kind"]) == {"predicted"}
    assert found.rows["N"].tolist() == [768, 4096, 3584, 4096, 16032]
    truth = synthetic.Truth().latency_us("fp16-cublas", GemmProblem(1, 3584, 4096))
    assert row(found, "gate_up_proj")["fp16_us"] == pytest.approx(truth, rel=0.15)


def test_a_weight_that_no_group_divides_cannot_be_quantised_and_counts_in_fp16(model):
    found = advice.advise(model, models.MODELS["qwen2.5-72b"], tp=8)
    down = row(found, "down_proj")
    assert (down["quantise"], down["limiter"]) == (advice.CANNOT, "–")
    assert np.isnan(down["int4_us"])
    rows = found.rows
    assert found.totals["int4"] == pytest.approx((rows["int4_us"].fillna(rows["fp16_us"]) * rows["calls"]).sum())


def test_a_smaller_group_costs_bits_and_is_not_what_was_measured(model, found):
    small = advice.advise(model, LLAMA_3_8B, group_size=32)
    assert set(small.rows["group_size"].dropna()) == {32}
    assert set(small.rows["kind"]) == {"predicted"}
    assert row(small, "gate_up_proj")["int4_us"] > 1.02 * row(found, "gate_up_proj")["int4_us"]


# --- what limits ----------------------------------------------------------------------------------------------------


def test_a_small_weight_is_limited_by_its_launch_and_a_large_one_by_memory(model):
    small = advice.advise(model, models.MODELS["qwen2.5-0.5b"], tp=2)
    large = advice.advise(model, models.MODELS["llama-3-70b"])
    assert row(small, "o_proj")["limiter"] == "launch"
    assert row(large, "gate_up_proj")["limiter"] == "memory"


def test_every_term_of_the_latency_model_has_a_word(model):
    parts = costterms.parts_us(model.backends["int4"], 1, 4096, 4096, 4.125, model.spec)
    assert set(parts) == set(advice.LIMITERS)


@pytest.mark.parametrize(
    ("term", "value", "word"),
    [("serial_ns", 20.0, "serial walk"), ("weight_ps", 900.0, "dequantisation"), ("tile_ps", 900.0, "tensor cores"),
     ("start_us", 50.0, "launch"), ("efficiency", 0.02, "memory")],
)  # fmt: skip
def test_the_longest_term_is_the_limit(model, term, value, word):
    int4 = model.backends["int4"]
    slow = replace(int4, terms=replace(int4.terms, **{term: value}))
    found = advice.advise(replace(model, backends=model.backends | {"int4": slow}), LLAMA_3_8B, tp=8)
    assert row(found, "qkv_proj")["limiter"] == word


@pytest.mark.parametrize(("factor", "by_bytes"), [(1.0, False), (0.6, True)])
def test_a_measured_case_has_the_limit_that_the_chapter_on_limits_gives_it(tmp_path, factor, by_bytes):
    """Planted: gate_up at six or at nine tenths of the speed of a copy."""
    run = load_run(write(tmp_path, {"int4": factor}))
    each = row(advice.advise(costmodel.fit(run), LLAMA_3_8B), "gate_up_proj")
    rows = tables.primary(tables.report_table(run))
    rate = rows[(rows["backend"] == "int4") & (rows["M"] == 1) & (rows["N"] == 28672)]["frac_peak_bw"].item()
    assert each["kind"] == "measured"
    assert limiters.limited_by_bytes(rate) == by_bytes
    assert (each["limiter"] == "memory") == by_bytes


def test_a_measured_row_names_no_term_of_the_latency_model(tmp_path):
    slow = load_run(write(tmp_path, {"int4": 3.0}))
    rows = advice.advise(costmodel.fit(slow), LLAMA_3_8B).rows
    measured = rows[(rows["kind"] == "measured") & rows["int4_us"].notna()]
    assert len(measured) == 4
    assert set(measured["limiter"]) == {advice.NOT_MEMORY}


def test_from_python_the_host_is_the_limit(model):
    found = advice.advise(model, LLAMA_3_8B, launch="eager")
    assert row(found, "o_proj")["limiter"] == advice.HOST
    assert row(found, "o_proj")["int4_us"] == pytest.approx(synthetic.Truth().host_us, rel=0.05)
    assert row(found, "o_proj")["kind"] == "measured"


@pytest.mark.parametrize(
    ("settings", "launch"),
    [({"backends": ("fp16-cublas", "int4-static")}, "graph"), ({"modes": (("graph", "cold"),)}, "eager")],
)
def test_a_run_that_cannot_answer_says_what_it_lacks(tmp_path, settings, launch):
    with pytest.raises(ValueError, match=f"did not time .* with launch {launch}"):
        advice.advise(fitted(tmp_path, **settings), LLAMA_3_8B, launch=launch)


def test_a_degree_that_does_not_divide_is_refused(model):
    with pytest.raises(ValueError, match="does not divide the 14 heads"):
        advice.advise(model, models.MODELS["qwen2.5-0.5b"], tp=4)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write(root)
    return root


def run_command(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["advise", *(str(argument) for argument in arguments)])
    return stopped.value.code


def test_the_command_answers_in_its_first_line_and_writes_its_rows(data_root, tmp_path, capsys):
    file = tmp_path / "F.csv"
    code = run_command("--model", "llama-3-8b", "--gpu", "h200", "--data_root", data_root, "--csv", file)
    first, *_, products, rest, wrote = capsys.readouterr().out.strip().splitlines()
    assert code == 0
    assert {"llama-3-8b", "H200,"} <= set(first.split())
    assert "4 of 5" in products
    assert "estimate" in rest
    assert str(file) in wrote
    rows = pd.read_csv(file)
    assert rows["layer"].tolist() == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"]
    assert {"fp16_us", "int4_us", "speedup", "speedup_low", "limiter", "quantise", "kind"} <= set(rows.columns)


@pytest.mark.parametrize("gpu", ["h200", "b200"])
def test_the_command_prints_what_the_function_returns_as_json(data_root, capsys, gpu):
    arguments = ("--model", "Qwen/Qwen2.5-72B-Instruct", "--tp", "8", "--m", "2", "--gpu", gpu, "--json")
    assert run_command(*arguments, "--data_root", data_root) == 0
    said = json.loads(capsys.readouterr().out)
    found = token.advice(
        models.MODELS["qwen2.5-72b"], gpu_spec(gpu), 2, 8, costmodel.fit(latest_run(None, data_root)),
    )  # fmt: skip
    assert said == words.as_json(found)
    assert next(row for row in said["rows"] if row["layer"] == "down_proj")["int4_us"] is None


def test_the_command_takes_a_config_json_and_another_gpu_without_torch(data_root, tmp_path):
    config = tmp_path / "my-model" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(LLAMA), encoding="utf-8")
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from tinygemm.cli import main
main(["advise", "--model", {str(config)!r}, "--data-root", {str(data_root)!r}, *"--gpu A10G --m 2 --tp 2".split()])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert {"2", "A10G,", "my-model"} <= set(done.stdout.splitlines()[0].split())
    assert "projected from the NVIDIA H200" in done.stdout


def test_a_recorded_gpu_whose_figures_nobody_listed_is_answered_from_its_run(tmp_path, monkeypatch, capsys):
    synthetic.write_run(tmp_path, gpu="a10g", m_list=(1,), modes=(("graph", "cold"),), n_samples=5, counters=False)
    monkeypatch.delitem(hardware.GPUS, "a10g")
    for said in ("a10g", "NVIDIA A10G"):
        assert run_command("--model", "llama-3-8b", "--gpu", said, "--data_root", tmp_path) == 0
        assert "4 of 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--model", "llama-9", "--gpu", "h200"), "unknown model 'llama-9'"),
        (("--model", "llama-3-8b", "--gpu", "abacus"), "unknown GPU 'abacus'"),
        (("--model", "llama-3-8b", "--gpu", "T4"), "no cp.async"),
        (("--model", "qwen2.5-7b", "--gpu", "h200", "--tp", "8"), "does not divide the 28 heads"),
        (("--model", "nowhere/config.json", "--gpu", "h200"), "nowhere/config.json"),
        (("--model", "llama-3-8b", "--gpu", "h200", "--m", "64"), "64"),
        (("--model", "llama-3-8b", "--gpu", "h200", "--csv", "nowhere/F.csv"), "nowhere/F.csv: the folder"),
    ],
)
def test_what_cannot_be_advised_is_one_line(data_root, capsys, arguments, complaint):
    assert run_command(*arguments, "--data_root", data_root) not in (0, None)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("Error: ")
    assert complaint in said
