"""Runs: what is written comes back, what was changed is refused, and a killed run loses only the group in flight."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from tinygemm import runs
from tinygemm.problem import GemmProblem
from tinygemm.rows import columns_of
from tinygemm.runs import Case, Counter, RunError, RunWriter, Sample, case_id, load_run, read_table

GPU = {"key": "h200", "name": "NVIDIA H200", "power_limit_w": 700.0}
PARAMETERS = {"problems": {"128": "1,4096,1024"}, "backends": ("fp16-cublas", "int4"), "rep": 3}
CLEAN = ("3fa9c1e" + "0" * 33, False)


@pytest.fixture(autouse=True)
def _clean_tree(monkeypatch):
    monkeypatch.setattr(runs, "git_state", lambda: CLEAN)
    monkeypatch.setattr(runs, "software_versions", lambda: {"python": "3.12.3"})


def group(N: int, n_samples: int = 3) -> tuple[list[Case], list[Sample]]:
    """Two contenders at one problem: rows with floats, empty cells and a message with a comma in it."""
    problem = GemmProblem(1, N, 4096)
    timed = Case(
        case_id=case_id("int4", problem, "graph", "cold"), backend="int4", model="llama-3-8b", layer="kv_proj",
        M=1, N=N, K=4096, group_size=128, dtype="float16", bits_per_weight=4.125,
        l2_state="cold", launch="graph", status="ok",
        form="splitk", block_m=16, block_n=64, block_k=256, split_k=8, num_warps=2, num_stages=3, config_source="table",
        n_calls=50, n_copies=8, n_samples=n_samples, max_err=1.5e-3, rms_err=3.1e-4, flops=problem.flops,
        bytes_min=problem.bytes_min(4.125), sm_clock_mhz=1980.0, power_w=None,
    )  # fmt: skip
    other = replace(
        timed, case_id=case_id("marlin", problem, "graph", "cold"), backend="marlin", status="unsupported", n_samples=0,
        message='marlin is "missing", install it', max_err=None, rms_err=None, block_m=None,
    )  # fmt: skip
    return [timed, other], [Sample(timed.case_id, i, 4.25 + 0.125 * i) for i in range(n_samples)]


def write(root: Path, counters: bool = False) -> Path:
    writer = RunWriter.create(GPU, PARAMETERS, "tinygemm record", root)
    for N in (1024, 4096):
        writer.append(*group(N))
    if counters:
        target = case_id("int4", GemmProblem(1, 1024, 4096), "graph", "cold")
        row = Counter(target, 0, 0, "kernel", "gpu__time_duration.sum", 13504.0, "nsecond")
        writer.write_counters([row], {"int4.csv": '"ID"\n'})
    return writer.finish()


# --- round trip -----------------------------------------------------------------------------------------------------


def test_a_run_comes_back_as_it_was_written(tmp_path):
    run = load_run(write(tmp_path, counters=True))
    cases, samples = ([row for N in (1024, 4096) for row in group(N)[i]] for i in (0, 1))
    for row, case in zip(run.cases.to_dict("records"), cases, strict=True):
        assert {k: None if pd.isna(v) else v for k, v in row.items()} == asdict(case)
    assert [Sample(**row) for row in run.samples.to_dict("records")] == samples
    assert run.counters["value"].tolist() == [13504.0]
    assert run.gpu == GPU
    assert run.provenance["parameters"]["rep"] == 3
    assert (run.path / "ncu" / "int4.csv").is_file()


def test_columns_have_the_type_their_field_declares(tmp_path):
    run = load_run(write(tmp_path))
    for field in fields(Case):
        kind = run.cases[field.name].dtype.kind
        assert kind == {"int": "i", "str": kind}.get(field.type, "f"), field.name
    assert run.cases["message"].tolist()[0] == ""
    assert run.counters.columns.tolist() == columns_of(Counter)


def test_the_run_id_says_when_and_which_commit(tmp_path):
    path = write(tmp_path)
    assert path.parent == tmp_path / "h200"
    minute, commit = path.name.split("Z-")
    assert abs(datetime.now(UTC) - datetime.strptime(minute + "+0000", "%Y-%m-%dT%H%M%z")) < timedelta(minutes=2)
    assert commit == "3fa9c1e"


def test_provenance_lists_every_file_with_its_hash_and_rows(tmp_path):
    path = write(tmp_path, counters=True)
    files = json.loads((path / "provenance.json").read_text(encoding="utf-8"))["files"]
    assert {name: entry.get("rows") for name, entry in files.items()} == {
        "cases.csv": 4, "samples.csv": 6, "counters.csv": 1, "ncu/int4.csv": None,
    }  # fmt: skip
    assert files["cases.csv"]["sha256"] == runs.sha256(path / "cases.csv")


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cases.csv", "samples.csv", "counters.csv", "ncu/int4.csv"])
def test_a_changed_file_is_refused_by_name(tmp_path, name):
    path = write(tmp_path, counters=True)
    (path / name).write_text((path / name).read_text(encoding="utf-8").replace("4", "5", 1) + " ", encoding="utf-8")
    with pytest.raises(RunError, match=f"{name} differs from what the run wrote"):
        load_run(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    path = write(tmp_path)
    (path / "samples.csv").unlink()
    with pytest.raises(RunError, match=r"samples.csv is missing; provenance.json lists it"):
        load_run(path)


def test_an_added_file_is_refused_by_name(tmp_path):
    path = write(tmp_path)
    (path / "counters.csv").write_text(",".join(columns_of(Counter)) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"counters.csv not listed"):
        load_run(path)


def test_a_row_count_that_differs_is_refused(tmp_path):
    path = write(tmp_path)
    provenance = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
    provenance["files"]["samples.csv"]["rows"] = 7
    (path / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    with pytest.raises(RunError, match=r"samples.csv: 6 rows, provenance.json says 7"):
        load_run(path)


def test_a_dirty_run_is_refused_unless_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "git_state", lambda: (CLEAN[0], True))
    path = write(tmp_path)
    assert path.name.endswith("-dirty")
    with pytest.raises(RunError, match="uncommitted changes"):
        load_run(path)
    assert len(load_run(path, allow_dirty=True).cases) == 4
    with pytest.raises(RunError, match="no recorded run of h200"):
        runs.latest_run("h200", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"provenance.json:1: not JSON"),
        ('{"schema_version": 1,\n "run_id": }', r"provenance.json:2: not JSON"),
        ('{"run_id": "\udce9"}', r"provenance.json: not UTF-8"),
        ('{"schema_version": 99}', r"schema version 99, this code reads 1"),
        ("[1]", r"schema version None"),
        ('{"schema_version": 1}', r"commit, dirty, gpu, parameters, run_id missing"),
    ],
)
def test_a_provenance_that_cannot_be_read_is_refused(tmp_path, text, message):
    path = write(tmp_path)
    (path / "provenance.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(RunError, match=message):
        load_run(path)


def test_an_unfinished_run_is_refused_with_the_way_to_finish_it(tmp_path):
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    with pytest.raises(RunError, match=r"tinygemm record --resume .*\.partial"):
        load_run(writer.path)
    writer.path.rename(tmp_path / "renamed")
    with pytest.raises(RunError, match="unfinished"):
        load_run(tmp_path / "renamed")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("case_id,sample,latency_us", "case_id,latency_us,sample", r"samples.csv:1: columns are case_id, latency_us"),
        ("sample,latency_us", "sample", r"samples.csv"),
        (",1,4.375", ",1,fast", r"samples.csv:3: latency_us must be float, got 'fast'"),
        (",1,4.375", ",1.5,4.375", r"samples.csv:3: sample must be int, got '1.5'"),
        (",2,4.5", ",2", r"samples.csv:4: latency_us must be float, got ''"),
        (",2,4.5", ",2,4.5,9", r"samples.csv:4: not a readable CSV: expected 3 cells, got 4"),
        (",0,4.25", ",0,4.25,9", r"samples.csv:2: not a readable CSV: expected 3 cells, got 4"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_line(tmp_path, old, new, message):
    file = write(tmp_path) / "samples.csv"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(RunError, match=message):
        read_table(file)


def test_an_empty_table_is_refused(tmp_path):
    (tmp_path / "cases.csv").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match=r"cases.csv: not a readable CSV"):
        read_table(tmp_path / "cases.csv")


def test_a_run_of_the_first_schema_is_read_with_what_came_later_filled_in(tmp_path):
    """Version 1 knew random operands only, and had no column that said so."""
    path = write(tmp_path)
    whole = load_run(path)
    whole.cases.drop(columns=["operands", "max_registers"]).to_csv(path / "cases.csv", index=False)
    provenance = json.loads((path / "provenance.json").read_text(encoding="utf-8")) | {"schema_version": 1}
    provenance["files"]["cases.csv"]["sha256"] = runs.sha256(path / "cases.csv")
    (path / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    pd.testing.assert_frame_equal(load_run(path).cases, whole.cases)
    assert set(whole.cases["operands"]) == {"random"}
    (path / "provenance.json").write_text(json.dumps(provenance | {"schema_version": 2}), encoding="utf-8")
    with pytest.raises(RunError, match=r"cases.csv:1: columns are .*; expected .*operands"):
        load_run(path)


def test_an_unfinished_run_of_the_first_schema_is_not_gone_on_with(tmp_path):
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    provenance = json.loads((writer.path / "provenance.json").read_text(encoding="utf-8")) | {"schema_version": 1}
    (writer.path / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    with pytest.raises(RunError, match="cannot be resumed: its schema_version was 1"):
        RunWriter.resume(writer.path, GPU, PARAMETERS)
    assert RunWriter.unfinished("h200", PARAMETERS, tmp_path) is None


def test_operands_that_are_not_random_stand_in_the_case_id():
    problem = GemmProblem(1, 1024, 4096)
    assert case_id("int4", problem, "graph", "cold") == "int4/M1-K4096-N1024-g128/graph-cold"
    assert case_id("int4", problem, "graph", "cold", "zeros") == "int4/M1-K4096-N1024-g128/graph-cold-zeros"


# --- which run ------------------------------------------------------------------------------------------------------


def test_the_newest_run_of_the_gpu_that_was_asked_for_is_found(tmp_path):
    first = write(tmp_path)
    second = first.rename(first.with_name("2001-01-01T0000Z-3fa9c1e"))
    third = write(tmp_path)
    RunWriter.create({"key": "a10g"}, PARAMETERS, "", tmp_path)
    assert runs.recorded_runs(root=tmp_path) == [second, third]
    assert runs.latest_run("h200", tmp_path).path == third
    with pytest.raises(RunError, match=r"no recorded run of a10g .*recorded: h200.*tinygemm record"):
        runs.latest_run("a10g", tmp_path)


def test_two_runs_started_at_once_never_share_a_folder(tmp_path):
    def start(_):
        try:
            return RunWriter.create(GPU, PARAMETERS, "", tmp_path).path
        except RunError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(start, range(8)))
    made = [result for result in results if isinstance(result, Path)]
    assert len(made) == len(set(made)) == len(list(tmp_path.glob("h200/*")))
    assert all("exists; resume it" in str(result) for result in results if result not in made)


def test_a_run_is_not_started_over_a_finished_one(tmp_path, monkeypatch):
    class Noon:
        @staticmethod
        def now(zone):
            return datetime(2026, 11, 23, 12, tzinfo=zone)

    monkeypatch.setattr(runs, "datetime", Noon)
    finished = write(tmp_path)
    with pytest.raises(RunError, match=r"2026-11-23T1200Z-3fa9c1e exists; wait a minute"):
        RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    assert list(tmp_path.glob("h200/*")) == [finished]


# --- resume ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_one_that_was_never_stopped(tmp_path):
    whole = load_run(write(tmp_path / "whole"))
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path / "stopped")
    writer.append(*group(1024))
    writer = RunWriter.resume(writer.path, GPU, PARAMETERS)
    assert writer.done() == {case.case_id for case in group(1024)[0]}
    writer.append(*group(4096))
    resumed = load_run(writer.finish())
    pd.testing.assert_frame_equal(resumed.cases, whole.cases)
    pd.testing.assert_frame_equal(resumed.samples, whole.samples)


@pytest.mark.parametrize("cut", range(0, 900, 61))
def test_a_run_torn_at_any_byte_resumes_with_whole_groups_only(tmp_path, cut):
    """Files as a power cut leaves them: samples are written before cases, and either may end anywhere."""
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    writer.append(*group(1024))
    kept = {name: (writer.path / name).read_bytes() for name in ("samples.csv", "cases.csv")}
    writer.append(*group(4096))
    added = [(name, (writer.path / name).read_bytes()[len(old) :]) for name, old in kept.items()]
    for name, new in added:
        (writer.path / name).write_bytes(kept[name] + new[:cut])
        cut = max(0, cut - len(new))

    writer = RunWriter.resume(writer.path, GPU, PARAMETERS)
    done = writer.done()
    assert {case.case_id for case in group(1024)[0]} <= done
    writer.drop(done & {case.case_id for case in group(4096)[0]})
    writer.append(*group(4096))
    run = load_run(writer.finish())
    assert run.cases["case_id"].tolist() == [case.case_id for N in (1024, 4096) for case in group(N)[0]]
    assert len(run.samples) == 6


def test_a_run_torn_within_a_character_resumes(tmp_path):
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    writer.append(*group(1024))
    cases = writer.path / "cases.csv"
    whole = cases.read_bytes()
    cases.write_bytes(whole + "int4,µ".encode()[:-1])
    assert RunWriter.resume(writer.path, GPU, PARAMETERS).done() == {case.case_id for case in group(1024)[0]}
    assert cases.read_bytes() == whole


def test_samples_are_on_disk_before_the_cases_that_claim_them(tmp_path, monkeypatch):
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    order = []
    monkeypatch.setattr(RunWriter, "_append_rows", lambda self, name, rows, row_type: order.append(name))
    writer.append(*group(1024))
    assert order == ["samples.csv", "cases.csv"]


@pytest.mark.parametrize("cut", [0, 5, 40])
def test_a_run_torn_in_its_very_first_line_resumes(tmp_path, cut):
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    writer.append(*group(1024))
    (writer.path / "cases.csv").unlink()
    (writer.path / "samples.csv").write_bytes((writer.path / "samples.csv").read_bytes()[:cut])
    writer = RunWriter.resume(writer.path, GPU, PARAMETERS)
    assert writer.done() == set()
    writer.append(*group(1024))
    assert len(load_run(writer.finish()).samples) == 3


def test_a_run_killed_while_it_is_sealed_can_be_sealed_again(tmp_path, monkeypatch):
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    writer.append(*group(1024))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.finish()
    assert runs.recorded_runs(root=tmp_path) == []
    assert len(load_run(RunWriter.resume(writer.path, GPU, PARAMETERS).finish()).cases) == 2


@pytest.mark.parametrize(
    ("gpu", "parameters", "state", "what"),
    [
        ({**GPU, "key": "a10g"}, PARAMETERS, CLEAN, "gpu"),
        (GPU, {**PARAMETERS, "rep": 4}, CLEAN, "parameters"),
        (GPU, PARAMETERS, ("1" * 40, False), "commit"),
        (GPU, PARAMETERS, (CLEAN[0], True), "dirty"),
    ],
)
def test_a_run_is_resumed_only_on_equal_terms(tmp_path, monkeypatch, gpu, parameters, state, what):
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    monkeypatch.setattr(runs, "git_state", lambda: state)
    with pytest.raises(RunError, match=f"cannot be resumed: its {what} was"):
        RunWriter.resume(writer.path, gpu, parameters)


def test_only_an_unfinished_run_can_be_resumed(tmp_path):
    with pytest.raises(RunError, match="not an unfinished run"):
        RunWriter.resume(write(tmp_path), GPU, PARAMETERS)
    with pytest.raises(RunError, match="not an unfinished run"):
        RunWriter.resume(tmp_path / "nowhere.partial", GPU, PARAMETERS)


def test_the_unfinished_run_of_equal_terms_is_found(tmp_path, monkeypatch):
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    assert RunWriter.unfinished("h200", PARAMETERS, tmp_path) == writer.path
    assert RunWriter.unfinished("a10g", PARAMETERS, tmp_path) is None
    assert RunWriter.unfinished("h200", {**PARAMETERS, "rep": 9}, tmp_path) is None
    monkeypatch.setattr(runs, "git_state", lambda: ("1" * 40, False))
    assert RunWriter.unfinished("h200", PARAMETERS, tmp_path) is None


def test_an_unfinished_run_of_a_dirty_tree_is_not_found_by_itself(tmp_path, monkeypatch):
    """The uncommitted changes may be others by now."""
    monkeypatch.setattr(runs, "git_state", lambda: (CLEAN[0], True))
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    assert RunWriter.unfinished("h200", PARAMETERS, tmp_path) is None
    assert RunWriter.resume(writer.path, GPU, PARAMETERS).path == writer.path


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_runs
from tinygemm import runs
runs.git_state = lambda: test_runs.CLEAN
writer = runs.RunWriter.create(test_runs.GPU, test_runs.PARAMETERS, "", Path({root!r}))
for i in range(100000):
    writer.append(*test_runs.group(512 + i))
    print(i, flush=True)
"""


def test_a_process_killed_in_the_middle_of_writing_loses_at_most_one_group(tmp_path):
    code = KILLED.format(tests=str(Path(__file__).parent), root=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, encoding="utf-8")
    told = [int(process.stdout.readline()) for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    told += [int(line) for line in process.stdout.read().split()]
    process.wait()

    (partial,) = tmp_path.glob("h200/*.partial")
    writer = RunWriter.resume(partial, GPU, PARAMETERS)
    done = writer.done()
    for i in told:
        assert {case.case_id for case in group(512 + i)[0]} <= done
    assert len(done) <= 2 * (len(told) + 1)
    assert len(load_run(writer.finish()).samples) == 3 * (len(done) // 2)


# --- sealing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", ["lose", "double"])
def test_a_run_whose_samples_are_not_what_it_claims_is_not_sealed(tmp_path, spoil):
    writer = RunWriter.create(GPU, PARAMETERS, "", tmp_path)
    cases, samples = group(1024)
    writer.append(cases if spoil == "lose" else cases * 2, samples[:-1] if spoil == "lose" else samples)
    with pytest.raises(RunError, match="cannot be sealed"):
        writer.finish()
    assert runs.recorded_runs(root=tmp_path) == []


# --- provenance of the code -----------------------------------------------------------------------------------------


def test_git_state_tells_code_that_changed_from_data_that_was_recorded(tmp_path, monkeypatch):
    monkeypatch.undo()
    checkout = tmp_path / "checkout"
    (checkout / "tinygemm").mkdir(parents=True)
    monkeypatch.setattr(runs, "__file__", str(checkout / "tinygemm" / "runs.py"))
    assert runs.git_state() == ("unknown", True)

    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.run(
            ["git", "-C", checkout, *identity, *arguments], check=True, capture_output=True, encoding="utf-8"
        )

    git("init", "-q")
    (checkout / "tinygemm" / "runs.py").write_text("1\n", encoding="utf-8")
    git("add", ".")
    git("commit", "-qm", "first")
    assert runs.git_state() == (git("rev-parse", "HEAD").stdout.strip(), False)
    (checkout / "data" / "h200").mkdir(parents=True)
    (checkout / "data" / "h200" / "cases.csv").write_text("x\n", encoding="utf-8")
    assert runs.git_state()[1] is False
    (checkout / "tinygemm" / "new.py").write_text("2\n", encoding="utf-8")
    assert runs.git_state()[1] is True


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("tinygemm record -f /home/ada/gemm/params.yaml", "tinygemm record -f params.yaml"),
        ("==PROF== Connected to process 7 (/usr/bin/python3.12)", "==PROF== Connected to process 7 (python3.12)"),
        ("1/2 of 4096/128, see https://example.org/a/b", "1/2 of 4096/128, see https://example.org/a/b"),
    ],
)
def test_folders_of_the_machine_are_cut_off(text, kept):
    assert runs.without_folders(text) == kept
