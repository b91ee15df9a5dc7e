"""Recorded data: the dictionary is the schema, every run is whole and clean, and none names a machine or a user."""

import dataclasses
import functools
import json
import re

import pytest
import synthetic

from tinygemm import dictionary, published
from tinygemm.hardware import GPUS
from tinygemm.report.base import tables
from tinygemm.runs import DATA_ROOT, STATUS, TABLES, RunError, load_run, recorded_runs

RUNS = recorded_runs()
loaded = functools.cache(load_run)  # each once, whatever is asked of it
READ_ONLY = ("int4-load-only", "int4-load-only-serial")  # compute nothing that could be compared
# a path with folders, an address, a UUID, a name of a host or its user
GIVES_AWAY = {
    "a path": re.compile(r"(?<![\w.<>-])/(?:home|root|work|opt|usr|tmp|mnt|var|etc|srv)\b|[A-Za-z]:\\|~/"),
    "a UUID": re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\bGPU-[0-9a-f]{8}", re.I),
    "a user at a host": re.compile(r"[\w.]@[\w.-]"),
    "an address": re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b(?!\.)"),
}
# version numbers look like addresses
IN_TABLES = ("a path", "a UUID", "a user at a host")


def strings(value):
    """Every string and key inside a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def given_away(text: str) -> list[str]:
    return [what for what, pattern in GIVES_AWAY.items() if pattern.search(text)]


# --- the dictionary -------------------------------------------------------------------------------------------------


def test_the_data_dictionary_is_generated_from_the_schema():
    hint = "run `python -m tinygemm.dictionary`"
    assert dictionary.README.read_text(encoding="utf-8") == dictionary.render(), hint


def test_the_dictionary_has_every_column_in_order_with_its_unit_and_meaning():
    text = dictionary.render()
    for file, row_type in (*TABLES.items(), ("published/", published.Quoted)):
        section = text.split(f"## {file}\n")[1].split("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        fields = dataclasses.fields(row_type)
        expected = [f"| `{f.name}` | {f.metadata['unit']} | {f.metadata['meaning']} |" for f in fields]
        assert rows == expected
        assert all(f.metadata["meaning"] for f in fields)


def test_the_dictionary_knows_every_key_of_the_provenance(tmp_path):
    provenance = json.loads(
        (synthetic.write_run(tmp_path, m_list=(1,), shapes=[(4096, 1024)]) / "provenance.json").read_text(
            encoding="utf-8"
        )
    )
    section = dictionary.render().split("## provenance.json")[1]
    named = set(re.findall(r"`(\w+)`", section.split("\n## ")[0]))
    assert set(provenance) == named


def test_the_dictionary_names_every_status():
    meaning = next(f.metadata["meaning"] for f in dataclasses.fields(TABLES["cases.csv"]) if f.name == "status")
    assert all(status in meaning for status in STATUS)


# --- the recorded runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
class TestRecordedRun:
    def test_it_loads_and_every_file_has_its_sha256(self, path):
        run = loaded(path)
        assert run.provenance["files"].keys() >= {"cases.csv", "samples.csv"}

    def test_its_folder_is_its_gpu_and_run_id(self, path):
        provenance = loaded(path).provenance
        assert (provenance["gpu"]["key"], provenance["run_id"]) == (path.parent.name, path.name)
        assert path.name.endswith(provenance["commit"][:7])

    def test_it_names_no_host_user_or_path(self, path):
        for text in strings(json.loads((path / "provenance.json").read_text(encoding="utf-8"))):
            assert not given_away(text), text
        for file in path.rglob("*.csv"):
            found = {GIVES_AWAY[what].search(file.read_text(encoding="utf-8")) for what in IN_TABLES}
            assert found == {None}, file.name

    def test_every_case_was_verified_before_it_was_timed(self, path):
        cases = loaded(path).cases
        timed = cases[cases["status"] == "ok"]
        products = timed[~timed["backend"].isin([*tables.NO_PRODUCT, *READ_ONLY])]
        assert products["max_err"].notna().all()
        assert (cases.loc[cases["status"] != "ok", "n_samples"] == 0).all()
        assert (cases.loc[cases["status"] != "ok", "message"] != "").all()

    def test_it_holds_its_own_ideals(self, path):
        run = loaded(path)
        rows = run.cases[tables.in_mode(run.cases) | run.cases["backend"].isin(tables.IDEALS)]
        table = tables.summarize(rows, run.samples)
        assert tables.copy_bandwidth_gb_s(table) > 0
        assert tables.empty_node_us(table) > 0
        rows = tables.primary(table)
        # reading alone runs a little faster than copying, which also writes; an empty node is no part of the bound, for
        # calls that overlap need not pay it
        products = rows[~rows["backend"].isin([*tables.NO_PRODUCT, *READ_ONLY])]
        assert (products["achieved_gb_s"].dropna() < 1.1 * tables.copy_bandwidth_gb_s(table)).all()
        # reads that wait for no x overlap from call to call, so only the memory itself bounds them
        assert (rows["achieved_gb_s"].dropna() < GPUS[run.gpu["key"]].dram_gb_s).all()


# --- published values -----------------------------------------------------------------------------------------------


def test_published_values_load_and_every_source_is_in_the_bibliography():
    values = published.load()
    assert list(values.columns) == published.COLUMNS
    assert {file.stem for file in published.FOLDER.glob("*.csv")} == set(values["source_key"])
    assert values["digitised"].dtype == bool
    assert values["digitised"].any()
    assert not values["digitised"].all()


def test_published_speedups_agree_with_the_latencies_beside_them():
    values = published.load()
    latency = values[values["quantity"] == "latency_us"].set_index(["source_key", "gpu", "M", "K", "N", "backend"])[
        "value"
    ]
    checked = 0
    for row in values[values["quantity"] == "speedup"].itertuples():
        key = (row.source_key, row.gpu, row.M, row.K, row.N)
        if {(*key, row.backend), (*key, "fp16-cublas")} <= set(latency.index):
            assert latency[(*key, "fp16-cublas")] / latency[(*key, row.backend)] == pytest.approx(row.value, rel=0.02)
            checked += 1
    assert checked > 5


def test_published_speedups_stay_below_what_sixteen_bits_over_four_allow():
    values = published.load()
    assert values.loc[values["quantity"] == "speedup", "value"].between(0, 4).all()
    assert values.loc[values["quantity"].str.startswith("frac_"), "value"].between(0, 1).all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"value": "fast"}, r"some2026\.csv:2: value must be a positive number, got 'fast'"),
        ({"value": "-1"}, "value must be a positive number"),
        ({"value": "nan"}, "value must be a positive number"),
        ({"K": "4096.5"}, "K must be a positive integer"),
        ({"digitised": "perhaps"}, "digitised must be yes or no"),
        ({"quantity": "tokens_per_s"}, "quantity must be one of speedup, latency_us"),
        ({"method": ""}, "method must be given"),
        ({"source_key": "other2026"}, "source_key must be the name of the file, some2026"),
        ({"note": "a,b"}, "expected 11 cells, got 12"),
    ],
)
def test_a_published_value_that_is_not_as_it_should_be_is_refused_by_file_and_line(tmp_path, change, complaint):
    good = {"source_key": "some2026", "gpu": "h100", "M": "1", "K": "4096", "N": "4096", "backend": "marlin",
            "quantity": "speedup", "value": "2.5", "digitised": "yes", "method": "wall clock", "note": ""}  # fmt: skip
    bibliography = tmp_path / "references.bib"
    bibliography.write_text("@misc{some2026,\n  title = {Some}\n}\n", encoding="utf-8")
    file = tmp_path / "some2026.csv"
    file.write_text(f"{','.join(good)}\n{','.join(good.values())}\n", encoding="utf-8")
    assert published.load(tmp_path, bibliography)["value"].tolist() == [2.5]
    file.write_text(f"{','.join(good)}\n{','.join((good | change).values())}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        published.load(tmp_path, bibliography)


def test_a_source_without_an_entry_in_the_bibliography_is_refused(tmp_path):
    bibliography = tmp_path / "references.bib"
    bibliography.write_text("@misc{another2026,\n  title = {Another}\n}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must be a key of book/references"):
        published.load(references=bibliography)


def test_a_value_that_is_quoted_twice_is_refused(tmp_path):
    file = published.FOLDER / "tileops1874.csv"
    lines = file.read_text(encoding="utf-8").splitlines()
    (tmp_path / file.name).write_text("\n".join([*lines, lines[-1]]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is listed twice"):
        published.load(tmp_path)


def test_only_runs_and_the_dictionary_lie_in_data():
    known = {path.parent.name for path in RUNS} | {
        "published",
        "static",
        "earlier",
        "checks",
        "quality",
        "steps",
        "README.md",
    }
    known |= {"equivalent.csv"}
    found = {path.name for path in DATA_ROOT.iterdir() if not any(path.glob("*.partial"))}
    assert found <= known


# --- the checks themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "/home/ada/tinygemm/data",
        "command: python /srv/run.py",
        "C:\\Users\\ada",
        "GPU-5b6f3c1e-0000-1111-2222-333344445555",
        "ada@cluster-07",
        "10.0.3.17",
    ],
)
def test_the_check_for_private_facts_sees(text):
    assert given_away(text)


@pytest.mark.parametrize(
    "text",
    ["NVIDIA H200", "2.11.0+cu130", "int4/M1-K4096-N14336-g128/graph-cold", "2025.3.1.0", "580.159.03",
     "copy/1GiB/graph-cold", "tinygemm record -f notebooks/params/h200.yaml", "2026-11-23T14:12:05Z"],
)  # fmt: skip
def test_the_check_for_private_facts_lets_measurements_pass(text):
    assert not {*IN_TABLES} & set(given_away(text))


def test_a_changed_file_is_noticed(tmp_path):
    path = synthetic.write_run(tmp_path, m_list=(1,), shapes=[(4096, 1024)])
    load_run(path)
    with (path / "samples.csv").open("a", encoding="utf-8") as stream:
        stream.write("x,0,1.0\n")
    with pytest.raises(RunError, match="sha256"):
        load_run(path)
