"""Recorded data: the dictionary is the schema, every run is whole and clean, and none names a machine or a user."""

import dataclasses
import json
import re

import pytest
import synthetic

from tinygemm import dictionary
from tinygemm.hardware import GPUS
from tinygemm.report import tables
from tinygemm.runs import DATA_ROOT, STATUS, TABLES, RunError, load_run, recorded_runs

RUNS = recorded_runs()
# a path with folders, an address, a UUID, a name of a host or its user
GIVES_AWAY = {
    "a path": re.compile(r"(?<![\w.<>-])/(?:home|root|work|opt|usr|tmp|mnt|var|etc|srv)\b|[A-Za-z]:\\|~/"),
    "a UUID": re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\bGPU-[0-9a-f]{8}", re.I),
    "a user at a host": re.compile(r"\b[\w.]+@[\w.-]+\b"),
    "an address": re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b(?!\.)"),
}


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
    assert dictionary.README.read_text() == dictionary.render(), hint


def test_the_dictionary_has_every_column_in_order_with_its_unit_and_meaning():
    text = dictionary.render()
    for file, row_type in TABLES.items():
        section = text.split(f"## {file}\n")[1].split("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        fields = dataclasses.fields(row_type)
        expected = [f"| `{f.name}` | {f.metadata['unit']} | {f.metadata['meaning']} |" for f in fields]
        assert rows == expected
        assert all(f.metadata["meaning"] for f in fields)


def test_the_dictionary_knows_every_key_of_the_provenance(tmp_path):
    provenance = json.loads(
        (synthetic.write_run(tmp_path, m_list=(1,), shapes=[(4096, 1024)]) / "provenance.json").read_text()
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
        run = load_run(path)
        assert run.provenance["files"].keys() >= {"cases.csv", "samples.csv"}

    def test_its_folder_is_its_gpu_and_run_id(self, path):
        provenance = load_run(path).provenance
        assert (provenance["gpu"]["key"], provenance["run_id"]) == (path.parent.name, path.name)
        assert path.name.endswith(provenance["commit"][:7])

    def test_it_names_no_host_user_or_path(self, path):
        for text in strings(json.loads((path / "provenance.json").read_text())):
            assert not given_away(text), text
        for file in path.rglob("*.csv"):
            for number, line in enumerate(file.read_text().splitlines(), 1):
                assert not {"a path", "a UUID", "a user at a host"} & set(given_away(line)), (
                    f"{file.name}:{number}: {line}"
                )

    def test_every_case_was_verified_before_it_was_timed(self, path):
        cases = load_run(path).cases
        timed = cases[cases["status"] == "ok"]
        products = timed[~timed["backend"].isin([*tables.NO_PRODUCT, "int4-load-only"])]
        assert products["max_err"].notna().all()
        assert (cases.loc[cases["status"] != "ok", "n_samples"] == 0).all()
        assert (cases.loc[cases["status"] != "ok", "message"] != "").all()

    def test_it_holds_its_own_ideals(self, path):
        run = load_run(path)
        table = tables.report_table(run)
        assert tables.copy_bandwidth_gb_s(table) > 0
        assert tables.empty_node_us(table) > 0
        rows = tables.primary(table)
        # reading alone runs a little faster than copying, which also writes
        products = rows[~rows["backend"].isin([*tables.NO_PRODUCT, "int4-load-only"])]
        assert (products["frac_floor"].dropna() < 1.1).all()
        # reads that wait for no x overlap from call to call, so only the memory itself bounds them
        assert (rows["achieved_gb_s"].dropna() < GPUS[run.gpu["key"]].dram_gb_s).all()


def test_only_runs_and_the_dictionary_lie_in_data():
    known = {path.parent.name for path in RUNS} | {"published", "static", "earlier", "README.md"}
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
    assert not {"a path", "a UUID", "a user at a host"} & set(given_away(text))


def test_a_changed_file_is_noticed(tmp_path):
    path = synthetic.write_run(tmp_path, m_list=(1,), shapes=[(4096, 1024)])
    load_run(path)
    with (path / "samples.csv").open("a") as stream:
        stream.write("x,0,1.0\n")
    with pytest.raises(RunError, match="sha256"):
        load_run(path)
