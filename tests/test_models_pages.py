"""Pages on a user's model and on published numbers: every case is there, and what a run lacks becomes a sentence."""

import dataclasses
import re

import pytest
import synthetic

from tinygemm import models, published
from tinygemm.report.base import tables
from tinygemm.report.models import page as models_page
from tinygemm.report.models import tables as projections
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict import page as predict_page
from tinygemm.report.published import page as published_page
from tinygemm.report.published import tables as literature


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    truth = synthetic.Truth(factors={"int4": 0.7, ("int4", 4096, 768): 3.0})
    return synthetic.load(
        tmp_path_factory.mktemp("run"), truth=truth, m_list=(1, 8), shapes=models.decode_shapes(), n_samples=12,
        backends=("fp16-cublas", "fp16-triton", "int4"), modes=(("graph", "cold"),), counters=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted(run):
    return costmodel.fit(run)


def test_the_folded_table_has_every_case_and_marks_the_slower_ones(run):
    cases = projections.every_projection(run, m_list=(1, 8))
    text = models_page.every_case(cases).data
    lines = [line for line in text.splitlines() if line.startswith("| ") and "K×N" not in line]
    assert len(lines) == len(cases[["model", "tp", "layer"]].drop_duplicates())
    assert text.count("**") == 2 * (cases["state"] == projections.SLOWER).sum() > 0
    assert text.count("not quantisable") == 2
    assert f"All {len(cases)} cases" in text
    assert "7392×8192, groups of 32" in text, "128 does not divide K"
    assert "4096×4096, groups" not in text


def test_advice_shows_predicted_numbers_in_italics_and_measured_ones_upright(fitted):
    here = models_page.advise(fitted, "llama-3-8b", "tab-here").data
    there = models_page.advise(fitted, "llama-3-8b", "tab-there", gpu="a10g").data
    row = next(line for line in here.splitlines() if "`o_proj`" in line)
    assert "*" not in row
    row = next(line for line in there.splitlines() if "`o_proj`" in line)
    assert len(re.findall(r"\*[\d.]+", row)) == 3
    assert "projected from the NVIDIA H200" in there


def test_speedup_and_answer_come_first_and_the_headings_name_the_baseline(fitted):
    lines = models_page.advise(fitted, "llama-3-8b", "tab-here").data.splitlines()
    headings = [cell.strip() for cell in next(line for line in lines if line.startswith("|")).strip("|").split("|")]
    row = [cell.strip() for cell in next(line for line in lines if "`o_proj`" in line).strip("|").split("|")]
    assert row[1].split("×")[0].replace(".", "").isdigit()
    assert row[2] in {"yes", "no", "tie"}
    assert all("cuBLAS" in headings[row.index(cell)] for cell in (row[1], row[4]))


def test_a_second_gpu_is_among_the_tests_only_with_the_same_kernel(tmp_path):
    asked = {"m_list": (1,), "backends": ("fp16-cublas", "int4"), "n_samples": 3, "counters": False}
    synthetic.write_run(tmp_path, gpu="a10g", **asked)
    run = synthetic.load(tmp_path, **asked)
    assert "A10G" in models_page.tested(run).data
    other = dataclasses.replace(run, provenance=run.provenance | {"kernel_code_sha256": "0" * 64, "kernel_sha256": ""})
    assert "No value" in models_page.tested(other).data


def test_advice_that_a_run_cannot_give_is_a_sentence(fitted):
    assert "No advice from this run" in models_page.advise(fitted, "qwen2.5-0.5b", "tab-x", tp=4).data
    assert "shapes of every backend that this needs" in models_page.advise(None, "llama-3-8b", "tab-x").data


def test_a_small_run_leaves_sentences(tmp_path):
    small = synthetic.load(tmp_path, m_list=(1,), shapes=((4096, 1024),), modes=(("graph", "cold"),), n_samples=5)
    table = tables.report_table(small)
    assert predict_page.model_of(small) is None
    assert "nothing to set beside" in published_page.latencies(literature.latencies(table, None, published.load())).data
    assert "in one way only" in published_page.method_moves_it(literature.by_method(table)).data


def test_every_published_value_is_in_the_folded_table_with_its_source():
    values = published.load()
    text = published_page.all_published(values).data
    for key, rows in values.groupby("source_key"):
        assert text.count(f"{{cite:p}}`{key}`") == len(rows)


def test_latencies_name_what_was_not_measured(fitted, run):
    rows = literature.latencies(tables.report_table(run), fitted, published.load())
    text = published_page.latencies(rows).data
    assert "*, predicted" in text or "*, projected" in text
    assert "Marlin: 20.3" in text
