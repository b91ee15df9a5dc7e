"""The command line: the original study's options work, and bad input is one line on stderr, nothing half-written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import synthetic

from tinygemm import cli, hardware, runs
from tinygemm.problem import STUDY_SHAPES
from tinygemm.report import bench_csv as bench_csv_reader
from tinygemm.report.base import tables
from tinygemm.rows import columns_of

ROOT = Path(__file__).parent.parent
NCU = Path(__file__).parent / "data" / "ncu"
SHAPES = "1,4096,1024;1,4096,14336"


def succeed(*arguments) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert stopped.value.code == 0


def refuse(capsys, *arguments) -> str:
    """The one line that a command says when it refuses; exit code not zero, no traceback."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert stopped.value.code not in (0, None)
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("Error: "), said
    assert not any("Traceback" in line for line in said)
    return said[-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.load_run(synthetic.write_run(tmp_path_factory.mktemp("data"), m_list=(1, 8), n_samples=5))


@pytest.fixture
def bench_csv(run, tmp_path):
    file = tmp_path / "bench.csv"
    tables.report_table(run).to_csv(file, index=False)
    return file


@pytest.fixture
def breakdown_csv(run, tmp_path):
    file = tmp_path / "breakdown.csv"
    tables.breakdown(run).to_csv(file, index=False)
    return file


@pytest.fixture
def gpu(monkeypatch, run):
    """A machine with an H200 on which every sweep measures what the synthetic run measured; the plans are kept."""
    from tinygemm.harness import sweep

    plans = []

    def bench(plan):
        plans.append(plan)
        chosen = run.cases[
            run.cases["backend"].isin(plan.backends)
            & run.cases["launch"].isin(plan.launches)
            & run.cases["l2_state"].isin(plan.l2_states)
            & tables.problem_of(run.cases).isin([*map(str, plan.problems), "1GiB", "empty"])
        ]
        return chosen.reset_index(drop=True), run.samples[run.samples["case_id"].isin(chosen["case_id"])]

    monkeypatch.setattr(hardware, "cuda_unavailable_reason", lambda: None)
    monkeypatch.setattr(hardware, "live_gpu_key", lambda: "h200")
    monkeypatch.setattr(sweep, "bench", bench)
    return plans


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(hardware, "cuda_unavailable_reason", lambda: "torch sees no CUDA GPU in this machine")


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "",
        "bench",
        "record",
        "breakdown",
        "tune",
        "profile",
        "counters",
        "advise",
        "convert",
        "predict",
        "plot",
        "plot decode",
    ],
)
def test_every_command_explains_itself(command, capsys):
    succeed(*command.split(), "--help")
    assert "Usage: tinygemm" in capsys.readouterr().out


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from tinygemm.cli import main
main({arguments!r})
"""


def without_torch(*arguments):
    code = WITHOUT_TORCH.format(arguments=[str(argument) for argument in arguments])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=ROOT)


def test_help_plots_and_the_ncu_command_need_no_torch(bench_csv, breakdown_csv, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for arguments in (
        ("--help",),
        ("plot", "decode", "--csv", bench_csv, "--out_dir", out),
        ("plot", "breakdown", "--csv", breakdown_csv, "--out", out / "c.svg"),
        (
            "plot",
            "peak-compute",
            "--fp16_csv",
            NCU / "long_fp16.csv",
            "--int4_csv",
            NCU / "wide_int4.csv",
            "--out",
            out / "b.png",
        ),
        ("counters", "--out_dir", out, "--dry_run"),
    ):
        done = without_torch(*arguments)
        assert done.returncode == 0, done.stderr
    assert {file.name for file in out.iterdir()} == {"speedup_vs_n.png", "decode_latency.png", "c.svg", "b.png"}


def test_a_measurement_without_torch_says_how_to_get_it(tmp_path):
    done = without_torch("bench", "--csv", tmp_path / "b.csv")
    assert done.returncode == 1
    assert re.fullmatch(r"Error: .*torch is not installed \(pip install -e '\.\[kernel\]'\)\n", done.stderr)


# --- measuring ------------------------------------------------------------------------------------------------------


def test_bench_takes_the_options_of_the_original_study(gpu, tmp_path, capsys):
    file = tmp_path / "F.csv"
    succeed("bench", "--shape_list", SHAPES, "--csv", file, "--rep", 7, "--warmup", 2, "--skip_correctness")
    (plan,) = gpu
    assert [str(problem) for problem in plan.problems] == ["M1-K4096-N1024-g128", "M1-K4096-N14336-g128"]
    assert (plan.rep, plan.warmup, plan.verify) == (7, 2, False)
    assert {"fp16-cublas", "dequant-fp16", "int4"} <= set(plan.backends)
    table = pd.read_csv(file)
    columns = {"latency_us_p50", "latency_us_low", "latency_us_high", "speedup_vs_fp16"}
    assert columns | set(columns_of(runs.Case)) <= set(table.columns)
    assert len(table) == 3 * 2 + 2
    assert (table.loc[table["backend"] == "fp16-cublas", "speedup_vs_fp16"] == 1).all()
    assert "int4" in capsys.readouterr().out


def test_bench_verifies_unless_told_not_to(gpu, tmp_path):
    succeed("bench", "--shape_list", SHAPES, "--csv", tmp_path / "F.csv")
    assert gpu[0].verify
    assert (gpu[0].launches, gpu[0].l2_states) == (("graph",), ("cold",))


def test_hyphens_and_underscores_are_one_option(gpu, tmp_path):
    succeed("bench", "--shape-list", SHAPES, "--csv", tmp_path / "F.csv", "--skip-correctness", "--group-size", "64")
    assert {problem.group_size for problem in gpu[0].problems} == {64}


def test_what_bench_writes_can_be_plotted(gpu, tmp_path):
    file = tmp_path / "F.csv"
    succeed("bench", "--shape_list", SHAPES + ";8,4096,1024;8,4096,14336", "--csv", file)
    succeed("plot", "decode", "--csv", file, "--out_dir", tmp_path / "D", "--format", "svg")
    assert {p.name for p in (tmp_path / "D").iterdir()} == {"speedup_vs_n.svg", "decode_latency.svg"}


def test_what_breakdown_writes_can_be_plotted(gpu, tmp_path):
    file = tmp_path / "C.csv"
    succeed("breakdown", "--shape_list", SHAPES, "--csv", file)
    assert {"dequant_only_us", "fused_us", "load_only_us", "dequant_in_kernel_us"} <= set(pd.read_csv(file).columns)
    succeed("plot", "breakdown", "--csv", file, "--out", tmp_path / "C.svg")
    assert (tmp_path / "C.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_a_wrong_kernel_makes_bench_fail_after_it_has_written_what_is_right(gpu, tmp_path, capsys, monkeypatch):
    from tinygemm.harness import sweep

    bench = sweep.bench

    def with_mismatch(plan):
        cases, samples = bench(plan)
        bad = cases["backend"] == "int4"
        cases.loc[bad, ["status", "message", "n_samples"]] = "mismatch", "error against float64: max 3", 0
        return cases, samples[~samples["case_id"].isin(cases.loc[bad, "case_id"])]

    monkeypatch.setattr(sweep, "bench", with_mismatch)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--shape_list", SHAPES, "--csv", str(tmp_path / "F.csv")])
    assert stopped.value.code == 1
    assert "int4/M1-K4096-N1024-g128/graph-cold: mismatch: error against float64" in capsys.readouterr().err
    assert (tmp_path / "F.csv").is_file()


CLEAN = ("3fa9c1e" + "0" * 33, False)


def test_record_reads_a_parameter_file_and_tells_where_the_run_is(gpu, tmp_path, capsys, monkeypatch):
    from tinygemm.harness import sweep

    asked = []
    monkeypatch.setattr(runs, "git_state", lambda: CLEAN)
    monkeypatch.setattr(sweep, "record", lambda *a, **k: asked.append((a, k)) or tmp_path / "h200" / "run")
    (tmp_path / "p.yaml").write_text(
        'source: live\ngpu: h200\nm_list: "1,4"\nshapes: "4096,1024"\nbackends: int4\nsuites: decode\nrep: 9\n',
        encoding="utf-8",
    )
    succeed("record", "-f", tmp_path / "p.yaml", "--data_root", tmp_path)
    ((plan, root), settings) = asked[0]
    assert root == tmp_path
    (decode,) = plan.suites
    assert [problem.M for problem in decode.problems] == [1, 4]
    assert decode.rep == 9
    assert settings["resume"] is None
    assert str(tmp_path / "h200" / "run") in capsys.readouterr().out
    succeed("record", "-f", tmp_path / "p.yaml", "--resume", tmp_path / "x.partial")
    assert asked[1][1]["resume"] == tmp_path / "x.partial"


def test_record_goes_on_with_an_unfinished_run_of_equal_terms_unless_told_to_start_anew(gpu, tmp_path, monkeypatch):
    from tinygemm.harness import sweep

    asked = []
    monkeypatch.setattr(runs, "git_state", lambda: CLEAN)
    monkeypatch.setattr(sweep, "record", lambda *a, **k: asked.append(k["resume"]) or tmp_path)
    unfinished = runs.RunWriter.create(
        {"key": "h200"}, sweep.SweepPlan.from_parameters(rep=9).parameters(), "", tmp_path
    )
    for text in ("rep: 9\n", "rep: 8\n"):
        (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
        succeed("record", "-f", tmp_path / "p.yaml", "--data_root", tmp_path)
    (tmp_path / "p.yaml").write_text("rep: 9\n", encoding="utf-8")
    succeed("record", "-f", tmp_path / "p.yaml", "--data_root", tmp_path, "--new")
    assert asked == [unfinished.path, None, None]


def test_record_measures_the_suites_that_are_named(gpu, tmp_path, monkeypatch, capsys):
    from tinygemm.harness import sweep

    asked = []
    monkeypatch.setattr(runs, "git_state", lambda: CLEAN)
    monkeypatch.setattr(sweep, "record", lambda plan, *a, **k: asked.append(plan) or tmp_path)
    (tmp_path / "p.yaml").write_text("suites: decode\n", encoding="utf-8")
    succeed("record", "-f", tmp_path / "p.yaml", "--suites", "heldout,method", "--data_root", tmp_path)
    assert {suite.name for suite in asked[0].suites} == {"heldout", "method"}
    told = refuse(capsys, "record", "--suites", "decode,modles", "--data_root", tmp_path)
    assert "unknown suite modles; known: decode, models" in told


def test_record_refuses_uncommitted_code_before_it_measures_anything(gpu, tmp_path, monkeypatch, capsys):
    from tinygemm.harness import sweep

    asked = []
    monkeypatch.setattr(runs, "git_state", lambda: (CLEAN[0], True))
    monkeypatch.setattr(sweep, "record", lambda *a, **k: asked.append(a) or tmp_path)
    told = refuse(capsys, "record", "--data_root", tmp_path)
    assert "uncommitted changes, so the run could not be traced; commit them or pass --allow_dirty" in told
    assert asked == []
    succeed("record", "--data_root", tmp_path, "--allow_dirty")
    assert len(asked) == 1


def test_bench_times_as_others_do_where_it_is_told_to(gpu, tmp_path):
    file = tmp_path / "F.csv"
    succeed("bench", "--shape_list", SHAPES, "--csv", file, "--launch", "do_bench", "--l2_state", "warm")
    assert (gpu[0].launches, gpu[0].l2_states) == (("do_bench",), ("warm",))


def test_tune_writes_a_table_that_says_how_it_was_made(gpu, tmp_path, monkeypatch):
    from tinygemm.harness import tune
    from tinygemm.kernel.configs import PLAIN, LaunchConfig, write_table

    asked = []

    def search(problems, forms, key, path, about, workers, partial, kept, others, in_formats):
        asked.append((len(problems), len(others), in_formats, forms, key, partial.name, kept and kept.name))
        config = LaunchConfig("splitk", 8, 64, 256, 4, 2, 1)
        row = {"M": 1, "K": 4096, "N": 1024, "latency_us": 3.7, "format": PLAIN, "config": config}
        write_table(path, [row], "table", about)

    monkeypatch.setattr(tune, "tune", search)
    monkeypatch.setattr(hardware, "snapshot", lambda: {"driver": "580.159"})
    succeed("tune", "--out", tmp_path / "h200.json")
    searched = (["splitk", "ring", "load-only", "fp16"], "h200", "h200.json.partial")
    assert asked == [(45, 309, STUDY_SHAPES, *searched, None)]
    table = json.loads((tmp_path / "h200.json").read_text(encoding="utf-8"))
    assert re.search(r"NVIDIA H200, driver 580.159, torch .*`tinygemm tune`", table["about"])
    assert [file.name for file in tmp_path.iterdir()] == ["h200.json"]
    succeed("tune", "--out", tmp_path / "h200.json", "--shapes", "1,4096,512;1,14336,4096")
    assert asked[1] == (10, 0, [(4096, 512), (14336, 4096)], *searched, "h200.json"), "the first is not of the study"
    succeed("tune", "--out", tmp_path / "h200.json", "--model", "llama-3-8b", "--tp", "2")
    assert asked[2] == (0, 12, (), *searched, "h200.json"), "four projections for 1, 8 and 16 tokens"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "llama-3-8b"), "t.json is none"),
        (("--model", "llama-3-8b", "--shapes", "1,4096,512"), "--model and --shapes"),
        (("--tp", "2"), "--tp cuts the projections of --model"),
        (("--model", "llama-9"), "llama-9"),
        (("--model", "llama-3-8b", "--tp", "3"), "tensor-parallel degree 3"),
    ],
)
def test_what_tune_cannot_search_is_named(gpu, capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(hardware, "snapshot", lambda: {"driver": "580.159"})
    if "t.json" not in words:
        (tmp_path / "t.json").write_text("{}", encoding="utf-8")
    assert words in refuse(capsys, "tune", "--out", tmp_path / "t.json", *arguments)


def test_counters_prints_the_commands_it_would_run(capsys, tmp_path):
    succeed(
        "counters", "--shape_list", SHAPES, "--backend", "fp16-cublas,int4", "--out_dir", tmp_path / "D", "--dry_run"
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("LC_ALL=C ncu --csv") for line in lines)
    assert not (tmp_path / "D").exists()


def test_tune_searches_a_weight_once_however_often_it_is_named(gpu, tmp_path, monkeypatch):
    from tinygemm.harness import tune

    asked = []
    monkeypatch.setattr(tune, "tune", lambda problems, forms, key, path, *_: path.touch() or asked.append(problems))
    monkeypatch.setattr(hardware, "snapshot", lambda: {"driver": "580.159"})
    succeed("tune", "--out", tmp_path / "h200.json", "--shapes", "1,4096,1024;8,4096,1024")
    assert [(p.M, p.K, p.N) for p in asked[0]] == [(M, 4096, 1024) for M in (1, 2, 4, 8, 16)]


def test_counters_keeps_ncus_own_csvs_beside_the_table(gpu, tmp_path, monkeypatch):
    from tinygemm.harness import ncu

    text = (NCU / "wide_int4.csv").read_text(encoding="utf-8")

    def collect(targets, say, **settings):
        (target,) = targets
        return ncu.read_text(text, "x", target.case_id), {ncu.log_name(target): text}

    monkeypatch.setattr(ncu, "collect", collect)
    succeed("counters", "--shape_list", "1,4096,1024", "--backend", "int4", "--out_dir", tmp_path / "D")
    table = pd.read_csv(tmp_path / "D" / "counters.csv")
    assert table.columns.tolist() == columns_of(runs.Counter)
    raw = tmp_path / "D" / "int4_M1-K4096-N1024-g128_graph-cold.csv"
    assert raw.read_text(encoding="utf-8") == text
    succeed("plot", "peak-compute", "--fp16_csv", NCU / "long_fp16.csv", "--int4_csv", raw, "--out", tmp_path / "B.png")


def test_static_cost_is_of_the_gpu_that_a_name_stands_for(tmp_path, monkeypatch, capsys):
    """Configs and the file's name go by the key: under the name as typed, both would be another GPU's."""
    from tinygemm.harness import static_table
    from tinygemm.report.limits import tables as limiters

    monkeypatch.setattr(static_table, "static_rows", lambda key: [{"gpu": key}])
    monkeypatch.setattr(limiters, "static_file", lambda key: tmp_path / f"{key}.csv")
    succeed("static-cost", "--gpu", "H100 SXM")
    assert (tmp_path / "h100-80gb-hbm3.csv").read_text(encoding="utf-8") == "gpu\nh100-80gb-hbm3\n"
    assert "unknown GPU 'H100 CNX'" in refuse(capsys, "static-cost", "--gpu", "H100 CNX")


def test_tune_on_a_gpu_whose_peaks_are_not_known_says_so(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hardware, "live_gpu_key", lambda: "h200-mig-1g-18gb")
    assert "none are known of h200-mig-1g-18gb" in refuse(capsys, "tune", "--out", tmp_path / "t.json")
    assert not list(tmp_path.iterdir())


# --- plots ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")])
def test_the_ending_of_the_file_decides_what_is_drawn(breakdown_csv, tmp_path, ending, start):
    succeed("plot", "breakdown", "--csv", breakdown_csv, "--out", tmp_path / f"P.{ending}")
    assert (tmp_path / f"P.{ending}").read_bytes().startswith(start)


def test_peak_compute_reads_both_layouts(tmp_path):
    for fp16, int4 in (("long_fp16", "wide_int4"), ("wide_int4", "long_fp16")):
        out = tmp_path / f"{fp16}.svg"
        succeed(
            "plot", "peak-compute", "--fp16_csv", NCU / f"{fp16}.csv", "--int4_csv", NCU / f"{int4}.csv", "--out", out
        )
        assert out.is_file()


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ("1,4096", "shape '1,4096' is not M,K,N"),
        ("1,4096,4096;a,b,c", "shape 'a,b,c' is not M,K,N"),
        ("0,4096,4096", "M must be a positive integer, got 0"),
        ("1,4100,4096", "K=4100 must be divisible by group_size=128"),
        ("", "the shape list is empty; expected M,K,N"),
    ],
)
@pytest.mark.parametrize("command", ["bench", "breakdown"])
def test_a_shape_that_is_none_is_refused(gpu, tmp_path, capsys, command, shapes, message):
    assert message in refuse(capsys, command, "--shape_list", shapes, "--csv", tmp_path / "F.csv")
    assert not gpu
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench",), "Missing option '--csv'"),
        (("bench", "--csv", "{tmp}/F.csv", "--rep", "x"), "'x' is not a valid integer range"),
        (("bench", "--csv", "{tmp}/F.csv", "--rep", "0"), "0 is not in the range x>=1"),
        (("bench", "--csv", "{tmp}/F.csv", "--group_size", "100"), "'100' is not one of"),
        (("bench", "--csv", "{tmp}/F.csv", "--backend", "int5"), "unknown backend int5; known: fp16-cublas"),
        (("bench", "--csv", "{tmp}/F.csv", "--backend", ","), "backends is empty: choose from"),
        (("bench", "--csv", "{tmp}/nowhere/F.csv"), "the folder {tmp}/nowhere does not exist"),
        (("breakdown", "--csv", "{tmp}/nowhere/F.csv"), "the folder {tmp}/nowhere does not exist"),
        (("profile", "--backend", "int5"), "unknown backend 'int5'; known: fp16-cublas"),
        (("profile", "--k", "100"), "K=100 must be divisible by group_size=128"),
        (("counters", "--backend", "copy", "--out_dir", "{tmp}/D"), "unknown backend copy"),
        (("record", "-f", "{tmp}/p.yaml"), "{tmp}/p.yaml"),
        (("record", "--allow_dirty", "--resume", "{tmp}/nowhere.partial"), "not an unfinished run"),
        (("nonsense",), "No such command 'nonsense'"),
    ],
)
def test_bad_input_is_refused_with_the_constraint_in_words(gpu, tmp_path, capsys, arguments, message, monkeypatch):
    monkeypatch.setattr(hardware, "snapshot", lambda: {"key": "h200"})
    told = refuse(capsys, *(str(argument).format(tmp=tmp_path) for argument in arguments))
    assert message.format(tmp=tmp_path) in told
    assert not gpu
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m_list: [1", "p.yaml:1: not YAML"),
        ("- 1\n", "p.yaml:1: expected `name: value` lines"),
        ("rep: 3\ngpu: h200\nrep: 4\n", "p.yaml:3: rep was already given in line 1"),
        ("reps: 3\n", "unknown parameter reps; known: m_list"),
        ('m_list: "1,two"\n', "m_list must be positive integers"),
        ("gpu: a10g\n", "is for a10g, but this machine's GPU is h200"),
        ("gpu: h100\n", "is for h100-80gb-hbm3, but this machine's GPU is h200"),
        ("rep: many\n", "rep must be an integer of at least 1, got 'many'"),
        ("m_list: 1\nshapes: 4096,1024\nrep: 0\n", "rep must be an integer of at least 1"),
    ],
)
def test_a_parameter_file_that_cannot_be_is_refused(gpu, tmp_path, capsys, text, message):
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    assert message in refuse(capsys, "record", "-f", tmp_path / "p.yaml", "--data_root", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["p.yaml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "--csv", "{tmp}/F.csv"),
        ("breakdown", "--csv", "{tmp}/F.csv"),
        ("record", "--data_root", "{tmp}"),
        ("tune", "--out", "{tmp}/h200.json"),
        ("profile",),
        ("counters", "--out_dir", "{tmp}/D"),
    ],
)
def test_without_a_gpu_what_measures_says_so(no_gpu, tmp_path, capsys, arguments):
    told = refuse(capsys, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert told == "Error: this command measures on a CUDA GPU, and torch sees no CUDA GPU in this machine"
    assert not list(tmp_path.iterdir())


def test_without_permission_for_counters_it_says_how_to_allow_them(gpu, tmp_path, capsys, monkeypatch):
    from tinygemm.harness import ncu

    def collect(targets, **settings):
        raise ncu.CountersUnavailableError(ncu.PERMISSION_HELP)

    monkeypatch.setattr(ncu, "collect", collect)
    assert "NVreg_RestrictProfilingToAdminUsers=0" in refuse(capsys, "counters", "--out_dir", tmp_path / "D")
    assert not (tmp_path / "D").exists()


PLOTS = {
    "decode": ("plot", "decode", "--csv", "{csv}", "--out_dir", "{out}"),
    "breakdown": ("plot", "breakdown", "--csv", "{csv}", "--out", "{out}.png"),
}


def plot(kind: str, csv, out):
    return [part.format(csv=csv, out=out) for part in PLOTS[kind]]


@pytest.mark.parametrize("kind", list(PLOTS))
def test_a_csv_that_comes_out_of_a_pipe_is_plotted(kind, bench_csv, breakdown_csv, tmp_path):
    """As a shell's `--csv <(cat bench.csv)` gives it."""
    source = {"decode": bench_csv, "breakdown": breakdown_csv}[kind]
    with subprocess.Popen(["cat", source], stdout=subprocess.PIPE) as cat:
        succeed(*plot(kind, f"/dev/fd/{cat.stdout.fileno()}", tmp_path / "out"))
    assert list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("kind", list(PLOTS))
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: None, "does not exist"),
        (lambda text: "", "no rows below the header; was the file cut off?"),
        (lambda text: text.splitlines(keepends=True)[0], "no rows below the header"),
        (lambda text: text[:-40], "was the file cut off?"),
        (lambda text: text.rstrip("\n"), "the last line does not end; was the file cut off?"),
        (lambda text: text.replace(",M,", ",m,", 1), ":1: the column M is missing"),
        (lambda text: "\x00\ufffd" * 9, "spoilt.csv"),
        (lambda text: text.replace(",", ";"), "the separator is a comma, not ';'"),
        (lambda text: text.replace(",", "\t"), "the separator is a comma, not '\\t'"),
        (lambda text: text + text.splitlines()[0] + "\n", "M must be a number, got 'M'"),
        (lambda text: text + text.partition("\n")[2], "give one table per file"),
        (lambda text: text.splitlines()[0] + "\n\n\n", "no rows below the header"),
        (lambda text: text.replace(",K,", ",M,", 1), ":1: the column M stands there twice"),
    ],
    ids=[
        "missing",
        "empty",
        "header",
        "cut",
        "unended",
        "column",
        "binary",
        "semicolons",
        "tabs",
        "header twice",
        "rows twice",
        "blank",
        "column twice",
    ],
)
def test_a_csv_that_cannot_be_plotted_is_refused(kind, spoil, message, bench_csv, breakdown_csv, tmp_path, capsys):
    source = {"decode": bench_csv, "breakdown": breakdown_csv}[kind]
    text = spoil(source.read_text(encoding="utf-8"))
    spoilt = tmp_path / "spoilt.csv"
    if text is not None:
        spoilt.write_text(text, encoding="utf-8")
    before = set(tmp_path.iterdir())
    told = refuse(capsys, *plot(kind, spoilt, tmp_path / "out"))
    assert message in told
    assert "spoilt.csv" in told
    assert set(tmp_path.iterdir()) == before


def test_text_in_a_column_of_numbers_is_refused_with_its_line(bench_csv, tmp_path, capsys):
    table = pd.read_csv(bench_csv).astype({"latency_us_p50": object})
    table.loc[4, "latency_us_p50"] = "fast"
    table.to_csv(bench_csv, index=False)
    told = refuse(capsys, *plot("decode", bench_csv, tmp_path / "out"))
    assert "bench.csv:6: latency_us_p50 must be a number, got 'fast'" in told


@pytest.mark.parametrize("number", ["inf", "-Inf", "nan", "-3.5", "1e999", "n/a", "1,5"])
@pytest.mark.parametrize(
    ("kind", "column"),
    [("decode", "latency_us_p50"), ("decode", "speedup_vs_fp16_high"), ("decode", "floor_us"), ("decode", "N"),
     ("breakdown", "fused_us"), ("breakdown", "load_only_us"), ("breakdown", "M")],
)  # fmt: skip
def test_a_number_that_no_measurement_has_is_refused_with_its_line(
    kind, column, number, bench_csv, breakdown_csv, tmp_path, capsys
):
    file = {"decode": bench_csv, "breakdown": breakdown_csv}[kind]
    table = pd.read_csv(file).astype({column: object})
    table.loc[3, column] = number
    file.write_text(
        "\n" + table.to_csv(index=False), encoding="utf-8"
    )  # a blank line before the header counts as a line
    told = refuse(capsys, *plot(kind, file, tmp_path / "out"))
    assert re.search(rf"{file.name}:6: {column} must be .*'{re.escape(number)}'", told)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("kind", list(PLOTS))
def test_what_stands_twice_is_named_with_both_lines(kind, bench_csv, breakdown_csv, tmp_path, capsys):
    file = {"decode": bench_csv, "breakdown": breakdown_csv}[kind]
    header, *rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join([header, *rows[:4], "\n", rows[2], *rows[4:]]), encoding="utf-8")
    assert "stands in lines 4 and 7" in refuse(capsys, *plot(kind, file, tmp_path / "out"))


@pytest.mark.parametrize("kind", list(PLOTS))
@pytest.mark.parametrize("value", [0, None])
def test_a_table_without_a_product_says_so(kind, value, bench_csv, breakdown_csv, tmp_path, capsys):
    file = {"decode": bench_csv, "breakdown": breakdown_csv}[kind]
    pd.read_csv(file).assign(M=value).to_csv(file, index=False)
    assert "no product in this table" in refuse(capsys, *plot(kind, file, tmp_path / "out"))


@pytest.mark.parametrize("kind", list(PLOTS))
def test_harmless_oddities_of_a_csv_leave_the_table_as_it_is(kind, bench_csv, breakdown_csv, tmp_path):
    """Marks and line ends of other programs, and blank lines."""
    source, read = {
        "decode": (bench_csv, bench_csv_reader.read_bench),
        "breakdown": (breakdown_csv, bench_csv_reader.read_breakdown),
    }[kind]
    text = source.read_text(encoding="utf-8")
    blank = "," * text.partition("\n")[0].count(",")
    odd = (
        text.encode("utf-8-sig"),
        text.encode("utf-16"),
        text.replace("\n", "\r\n").encode(),
        text.replace("\n", "\r").encode(),
        (text + "\n\n  \n").encode(),
        f"{text}{blank}\n".encode(),
    )
    for data in odd:
        (tmp_path / "odd.csv").write_bytes(data)
        pd.testing.assert_frame_equal(read(tmp_path / "odd.csv"), pd.read_csv(source))
    succeed(*plot(kind, tmp_path / "odd.csv", tmp_path / "out"))


@pytest.mark.parametrize("ending", ["pdf", "jpg", "csv", ""])
@pytest.mark.parametrize("kind", ["breakdown", "peak-compute"])
def test_another_ending_than_png_or_svg_is_refused(breakdown_csv, tmp_path, capsys, kind, ending):
    inputs = {
        "breakdown": ("--csv", breakdown_csv),
        "peak-compute": ("--fp16_csv", NCU / "long_fp16.csv", "--int4_csv", NCU / "wide_int4.csv"),
    }[kind]
    out = tmp_path / ("P." + ending if ending else "P")
    assert "a figure ends in .png or .svg" in refuse(capsys, "plot", kind, *inputs, "--out", out)
    assert not out.exists()


def test_an_ncu_csv_that_cannot_be_read_is_refused_with_its_line(tmp_path, capsys):
    cut = tmp_path / "cut.csv"
    cut.write_text((NCU / "wide_int4.csv").read_text(encoding="utf-8")[:-9], encoding="utf-8")
    out = tmp_path / "B.png"
    told = refuse(capsys, "plot", "peak-compute", "--fp16_csv", NCU / "long_fp16.csv", "--int4_csv", cut, "--out", out)
    assert re.search(r"cut\.csv:9: .*cut off", told)
    assert not out.exists()


def test_a_figure_that_fails_leaves_the_old_file_as_it_was(breakdown_csv, tmp_path, capsys, monkeypatch):
    from tinygemm.report.base import style

    def torn(figure, path):
        path.write_text("half", encoding="utf-8")
        raise OSError("No space left on device")

    out = tmp_path / "P.svg"
    out.write_text("old", encoding="utf-8")
    monkeypatch.setattr(style, "save", torn)
    assert "No space left" in refuse(capsys, "plot", "breakdown", "--csv", breakdown_csv, "--out", out)
    assert out.read_text(encoding="utf-8") == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["P.svg", "breakdown.csv"]
