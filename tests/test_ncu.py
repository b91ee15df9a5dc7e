"""Counters: the ncu command, its failures in words, and the import of real and damaged CSVs."""

from __future__ import annotations

import csv
import functools
import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fake_gpu import FakeClock, fake_backend

from tinygemm import metrics
from tinygemm.harness import ncu, registry
from tinygemm.harness.ncu import CounterFileError, CountersUnavailableError, Target, ncu_command, read_file
from tinygemm.metrics import BASIC_METRICS, COLUMNS, METRICS
from tinygemm.problem import GemmProblem
from tinygemm.report.limits import counters as report_counters
from tinygemm.report.limits.counters import summarize_counters
from tinygemm.runs import DATA_ROOT, Counter, load_run

# long_fp16.csv and wide_int4.csv are written by hand after the documented layouts of `--csv` and `--csv --page raw`
NCU = Path(__file__).parent / "data" / "ncu"
RECORDED = sorted(DATA_ROOT.glob("*/*/ncu/*.csv"))  # as ncu wrote them, on a GPU
LONG, WIDE = NCU / "long_fp16.csv", NCU / "wide_int4.csv"
# of one kernel a call, with every metric that this project asks for
REAL = max((file for file in RECORDED if file.name.startswith("int4_M1-")), key=lambda file: file.stat().st_size)
SOURCES, LAYOUTS = [REAL, LONG, WIDE], ["real", "long", "wide"]
TARGET = Target("int4/M2-K4096-N1024-g64/graph-cold", "int4", GemmProblem(2, 1024, 4096, 64))


def table(rows: list[Counter]) -> pd.DataFrame:
    return pd.DataFrame(rows)


def value(rows, launch, metric):
    return next(row.value for row in rows if row.launch == launch and row.metric == metric)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_profiles_only_the_calls_at_the_clocks_as_they_are():
    command = ncu_command(TARGET, Path("log.csv"))
    joined = " ".join(command)
    assert command[0] == "ncu"
    assert "--csv --print-units base" in joined
    assert "--profile-from-start off" in joined, "operands are made and kernels compiled outside the profiled range"
    assert "--clock-control none" in joined, "this project never changes a GPU's clocks"
    assert joined.endswith(
        f"{sys.executable} -m tinygemm.cli profile --backend int4 --m 2 --k 4096 --n 1024 --group_size 64 --calls 3"
    )


def test_the_command_takes_metrics_a_kernel_name_and_the_variant_that_was_timed():
    target = Target("x", "fp16-cublas", GemmProblem(1, 1024, 4096), symmetric=False, variant="layout=nk")
    joined = " ".join(ncu_command(target, Path("log"), metrics=("a.sum", "b.avg"), kernel_name="kernel_x"))
    assert "--metrics a.sum,b.avg" in joined
    assert "--kernel-name-base function --kernel-name kernel_x" in joined
    assert "--asymmetric --variant layout=nk" in joined


def test_the_profiled_config_is_the_one_of_the_format_that_was_timed(monkeypatch):
    asked = []
    backend = fake_backend("int4", FakeClock())
    backend = replace(backend, variants=lambda *how: asked.append(how) or [])
    monkeypatch.setitem(registry.BACKENDS, "int4", backend)
    for symmetric in (True, False):
        with pytest.raises(ValueError, match="int4 has no variant 'table'"):
            ncu.run_profiled(replace(TARGET, symmetric=symmetric, variant="table"), "h200", 1)
    assert asked == [(TARGET.problem, "h200", True), (TARGET.problem, "h200", False)]


def test_every_metric_has_one_column_with_a_unit_and_a_meaning():
    assert len({metric.name for metric in metrics.ALL}) == len(metrics.ALL)
    assert all(metric.what and metric.unit in ("us", "bytes", "fraction", "count") for metric in metrics.ALL)
    assert set(BASIC_METRICS) < set(METRICS) < set(COLUMNS)
    names = [COLUMNS[metric] for metric in METRICS]
    assert len(set(names)) == len(names), "two metrics of one name could not be told apart"
    assert {"frac_dram", "frac_l2", "frac_tensor", "frac_warps", "instructions_alu", "stalled_wait"} <= set(names)


FAKE_NCU = """#!{python}
import sys
log = sys.argv[sys.argv.index("--log-file") + 1]
open(log, "w").write({text!r})
print({stdout!r})
sys.exit({code})
"""


def fake_ncu(tmp_path, monkeypatch, text="", stdout="", code=0):
    program = tmp_path / "bin" / "ncu"
    program.parent.mkdir()
    program.write_text(FAKE_NCU.format(python=sys.executable, text=text, stdout=stdout, code=code), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_what_ncu_writes_is_collected_per_target(tmp_path, monkeypatch):
    text = WIDE.read_text(encoding="utf-8").replace("(python3.12)", "(/usr/bin/python3.12)", 1)
    fake_ncu(tmp_path, monkeypatch, text)
    said = []
    rows, raw = ncu.collect([TARGET], say=said.append)
    assert said == ["profiling int4/M2-K4096-N1024-g64/graph-cold"]
    assert {row.case_id for row in rows} == {TARGET.case_id}
    assert len(rows) == 3 * len(BASIC_METRICS)
    assert list(raw) == ["int4_M2-K4096-N1024-g64_graph-cold.csv"]
    (kept,) = raw.values()
    assert "(python3.12)" in kept
    assert "/usr/bin" not in kept


def test_ncu_prints_numbers_as_they_are_read_whatever_the_language_of_the_machine(tmp_path, monkeypatch):
    """An ncu that writes 13.504 for 13,504 where the environment asks for German."""
    fake_ncu(tmp_path, monkeypatch, WIDE.read_text(encoding="utf-8"))
    program = (
        (tmp_path / "bin" / "ncu")
        .read_text(encoding="utf-8")
        .replace(".write(", ".write(german(", 1)
        .replace(")\nprint", "))\nprint")
    )
    german = (
        "import os\ngerman = lambda text: text if os.environ.get('LC_ALL') == 'C' else text.replace(',504', '.504')\n"
    )
    (tmp_path / "bin" / "ncu").write_text(program.replace("import sys\n", f"import sys\n{german}"), encoding="utf-8")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    rows, _ = ncu.collect([TARGET], say=lambda text: None)
    assert value(rows, 0, "gpu__time_duration.sum") == 13504


PICKY_NCU = """#!{python}
import sys
log = sys.argv[sys.argv.index("--log-file") + 1]
asked = sys.argv[sys.argv.index("--metrics") + 1].split(",")
if unknown := [metric for metric in asked if metric in {unknown!r}]:
    print("==ERROR== " + {message!r}.format(unknown[0]))
    sys.exit(9)
open(log, "w").write({text!r})
"""


def picky_ncu(tmp_path, monkeypatch, unknown, message):
    """An ncu that refuses some metrics, and profiles the rest."""
    fake_ncu(tmp_path, monkeypatch)
    program = PICKY_NCU.format(
        python=sys.executable, unknown=unknown, message=message, text=WIDE.read_text(encoding="utf-8")
    )
    (tmp_path / "bin" / "ncu").write_text(program, encoding="utf-8")


def test_metrics_that_ncu_does_not_know_are_left_out_and_named(tmp_path, monkeypatch):
    unknown = [METRICS[-1], "sm__inst_executed_pipe_fp16.sum"]
    picky_ncu(tmp_path, monkeypatch, unknown, "Failed to find metric {0}")
    said = []
    rows, _ = ncu.collect([TARGET, replace(TARGET, case_id="other")], say=said.append)
    assert {row.case_id for row in rows} == {TARGET.case_id, "other"}
    told = [text for text in said if "does not know" in text]
    assert sorted(told) == sorted(f"ncu does not know {metric} here" for metric in unknown), "and each is told once"


def test_an_ncu_that_refuses_without_a_name_is_asked_for_the_basic_metrics(tmp_path, monkeypatch):
    picky_ncu(tmp_path, monkeypatch, list(METRICS[10:]), "Option '--metrics' cannot be parsed")
    said = []
    rows, _ = ncu.collect([TARGET], say=said.append)
    assert rows
    assert said[-1] == "ncu ended with code 9; asking for the 7 basic metrics only"


def test_a_target_that_cannot_be_read_leaves_the_others_alone(tmp_path, monkeypatch):
    read = ncu.read_text

    def some(text, name, case_id, calls):
        if case_id == "bad":
            raise CounterFileError(f"{name}:3: cut off")
        return read(text, name, case_id, calls)

    fake_ncu(tmp_path, monkeypatch, WIDE.read_text(encoding="utf-8"))
    monkeypatch.setattr(ncu, "read_text", some)
    said = []
    rows, raw = ncu.collect([replace(TARGET, case_id="bad"), TARGET], say=said.append)
    assert {row.case_id for row in rows} == {TARGET.case_id}
    assert list(raw) == [ncu.log_name(TARGET)]
    assert "no counters of bad: bad.csv:3: cut off" in said
    with pytest.raises(CounterFileError, match="cut off"):
        ncu.collect([replace(TARGET, case_id="bad")], say=said.append)


def test_a_machine_without_ncu_is_told_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CountersUnavailableError, match="ncu is not on the PATH; it comes with Nsight Compute"):
        ncu.collect([TARGET], say=lambda text: None)


def test_a_user_without_permission_is_told_how_to_get_it(tmp_path, monkeypatch):
    message = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"
    fake_ncu(tmp_path, monkeypatch, f"==PROF== Connected to process 1\n{message} on the target device 0.\n", code=1)
    with pytest.raises(CountersUnavailableError, match=r"NVreg_RestrictProfilingToAdminUsers=0.*") as caught:
        ncu.collect([TARGET], say=lambda text: None)
    assert "CAP_SYS_ADMIN" in str(caught.value).replace("cap-add=SYS_ADMIN", "CAP_SYS_ADMIN")
    assert "root" in str(caught.value)


@pytest.mark.parametrize(
    ("log", "stdout", "message"),
    [
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded\n", "", "LibraryNotLoaded"),
        ("==PROF== Connected\n", "Error: unknown backend 'int5'", "Error: unknown backend 'int5'"),
        ("", "", "it printed nothing"),
    ],
)
def test_a_failing_ncu_is_quoted(tmp_path, monkeypatch, log, stdout, message):
    fake_ncu(tmp_path, monkeypatch, log, stdout, code=9)
    with pytest.raises(CountersUnavailableError, match=rf"ncu ended with code 9: .*{re.escape(message)}"):
        ncu.collect([TARGET], say=lambda text: None)


# --- reading --------------------------------------------------------------------------------------------------------


def test_the_long_layout_is_read_by_name():
    rows = read_file(LONG, "fp16")
    assert value(rows, 0, "dram__bytes_read.sum") == 8404992
    assert value(rows, 1, "gpu__time_duration.sum") == 2000
    assert next(row.unit for row in rows if row.metric == "gpu__time_duration.sum") == "ns"
    assert {row.metric for row in rows} == set(BASIC_METRICS)


def test_the_wide_layout_is_read_by_name():
    rows = read_file(WIDE, "int4")
    assert [value(rows, i, "dram__bytes_read.sum") for i in range(3)] == [30298112, 30299136, 30300160]
    assert {row.unit for row in rows if row.metric == "gpu__time_duration.sum"} == {"nsecond"}
    assert {row.metric for row in rows} == set(BASIC_METRICS)
    assert {row.kernel_name for row in rows} == {"kernel_gemm_packed_int4_splitk"}


def test_setup_kernels_are_left_out_by_name():
    names = {row.kernel_name for row in read_file(LONG, "fp16")}
    assert len(names) == 2
    assert any("nvjet_hsh" in name for name in names)
    assert any("splitKreduce_kernel" in name for name in names), "a split-K reduction is part of the product"


@pytest.mark.parametrize(
    "name",
    [
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, std::array<char *, 1>>(int)",
        "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(...)>(int)",
        "void at::native::<unnamed>::distribution_elementwise_grid_stride_kernel<float, 4>(long)",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>(T3)",
        "void at::native::<unnamed>::CatArrayBatchedCopy<at::native::<unnamed>::OpaqueType<2>, unsigned int>(T1 *)",
        "at::cuda::<unnamed>::spin_kernel(long)",
    ],
)
def test_a_setup_kernel_is_known(name):
    assert ncu.SETUP_KERNEL.search(name)


@pytest.mark.parametrize(
    "name",
    [
        "kernel_gemm_packed_int4_static",
        "kernel_gemm_packed_int4_ring",
        "nvjet_hsh_64x8_64x16_4x1_v_bz_splitK_TNT",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __half, float, __half, 1, 0, 0>(T4)",
        "void gemv2T_kernel_val<int, int, __half, __half, __half, float, 128, 16, 4, 4, 0, 0>(T13, T6, T6)",
        "void at::native::tinygemm_m16n8k16_chunk_kernel<at::native::ALayout_RM<0>, at::native::BLayout_TC_int4<8>>",
        "void dot_kernel<float, 128, 0, cublasDotParams<cublasGemvTensorStridedBatched<__half const>>>(T4)",
    ],
)
def test_a_kernel_of_a_product_is_no_setup_kernel(name):
    assert not ncu.SETUP_KERNEL.search(name)


def test_kernels_are_counted_into_calls():
    rows = read_file(LONG, "fp16")
    assert sorted({(row.launch, row.call) for row in rows}) == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert sorted({(row.launch, row.call) for row in read_file(LONG, "fp16", calls=3)})[-1] == (5, 2)
    assert sorted({(row.launch, row.call) for row in read_file(LONG, "fp16", calls=1)})[-1] == (5, 0)


def test_a_call_of_two_kernels_adds_up_time_and_bytes_and_weights_percentages():
    """The numbers of the second call, which is the median one, worked out by hand from the fixture."""
    summary = summarize_counters(table(read_file(LONG, "fp16"))).iloc[0]
    gemm_ns, reduce_ns = 6064, 2000
    assert summary["n_kernels"] == 2
    assert summary["counter_us"] == pytest.approx((gemm_ns + reduce_ns) / 1000)
    assert summary["dram_read_bytes"] == 8404992 + 512 + 66048
    assert summary["frac_dram"] == pytest.approx((37.5 * gemm_ns + 1.25 * reduce_ns) / (gemm_ns + reduce_ns) / 100)


def test_both_layouts_give_one_summary_each_in_base_units():
    summary = summarize_counters(table(read_file(WIDE, "int4"))).iloc[0]
    assert summary["counter_us"] == pytest.approx(13.472)
    assert summary["frac_dram"] == pytest.approx(0.4725)
    assert summary["frac_issue"] == pytest.approx(0.4525)


def test_units_other_than_base_are_kept_as_printed_and_converted_later(tmp_path):
    text = WIDE.read_text(encoding="utf-8").replace('"nsecond"', '"usecond"').replace('"byte"', '"Mbyte"')
    for whole, scaled in (("13,504", "13.50"), ("13,472", "13.47"), ("13,440", "13.44")):
        text = text.replace(whole, scaled)
    text = re.sub(r'"30,(\d)\d\d,\d\d\d"', r'"30.\1"', text)
    file = tmp_path / "w.csv"
    file.write_text(text, encoding="utf-8")
    summary = summarize_counters(table(read_file(file, "int4"))).iloc[0]
    assert summary["counter_us"] == pytest.approx(13.47)
    assert summary["dram_read_bytes"] == pytest.approx(30.2e6)


def test_columns_in_another_order_mean_the_same(tmp_path):
    """Import by name, never by position."""
    rows = [line.split('","') for line in WIDE.read_text(encoding="utf-8").splitlines() if line.startswith('"')]
    swapped = ['"' + '","'.join(cell.strip('"') for cell in reversed(row)) + '"' for row in rows]
    quoted = [re.sub(r'"\((\d+), (\d+), (\d+)\)"', r'"(\1; \2; \3)"', line) for line in swapped]
    (tmp_path / "r.csv").write_text("\n".join(quoted), encoding="utf-8")
    key = lambda row: (row.launch, row.metric)  # noqa: E731
    assert sorted(read_file(tmp_path / "r.csv", "int4"), key=key) == sorted(read_file(WIDE, "int4"), key=key)


def test_lines_of_ncu_and_of_the_program_may_stand_anywhere(tmp_path):
    lines = WIDE.read_text(encoding="utf-8").splitlines()
    noisy = []
    for line in lines:
        noisy += [line, "loading weights ...", "==WARNING== something", ""]
    (tmp_path / "n.csv").write_text("\n".join(noisy), encoding="utf-8")
    assert read_file(tmp_path / "n.csv", "int4") == read_file(WIDE, "int4")


def test_rows_of_rules_properties_in_words_and_counters_a_gpu_lacks_are_passed_over(tmp_path):
    text = WIDE.read_text(encoding="utf-8").replace(
        '"sm__warps_active', '"launch__func_cache_config","lts__x.sum","sm__warps_active'
    )  # two columns more
    lines = []
    for line in text.splitlines():
        if line.startswith('"') and "Kernel Name" not in line:
            cells = line.split('","')
            at = len(cells) - 2
            cells[at:at] = ["", "byte"] if cells[1] == "" else ["CachePreferNone", "n/a"]
            line = '","'.join(cells)
        lines.append(line)
    (tmp_path / "p.csv").write_text("\n".join(lines), encoding="utf-8")
    assert read_file(tmp_path / "p.csv", "int4") == read_file(WIDE, "int4")

    rule = '"2","4711","python3.12","127.0.0.1","k","1","7","(1, 1, 1)","(1, 1, 1)","0","9.0","SpeedOfLight","","",""\n'
    (tmp_path / "l.csv").write_text(LONG.read_text(encoding="utf-8") + rule, encoding="utf-8")
    assert read_file(tmp_path / "l.csv", "fp16") == read_file(LONG, "fp16")


# --- what cannot be read --------------------------------------------------------------------------------------------


def damaged(tmp_path, source: Path, old: str, new: str) -> Path:
    text = source.read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / source.name
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return file


def line_of(file: Path, text: str) -> int:
    return next(i for i, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1) if text in line)


@pytest.mark.parametrize(
    ("source", "old", "new", "message"),
    [
        (WIDE, '"13,472"', '"fast"', r"wide_int4.csv:8: gpu__time_duration.sum is 'fast', not a number"),
        (WIDE, '"13,472"', '"13,47"', r"wide_int4.csv:8: gpu__time_duration.sum is '13,47', not a number"),
        (WIDE, ',"13,472"', "", r"wide_int4.csv:8: 17 cells, the header has 18; is the file cut off\?"),
        (WIDE, '"Kernel Name"', '"Kernel"', r"wide_int4.csv:1: no ncu CSV header"),
        (
            WIDE,
            '"","","","","","","","","","","","byte"',
            '"9","","","","","","","","","","","byte"',
            r":6: the row of units",
        ),
        (LONG, '"Metric Value"', '"Value"', r"long_fp16.csv:12: the column 'Metric Value' is missing"),
        (LONG, '"36.50"', '"36.5.0"', r"long_fp16.csv:29: dram__throughput.* is '36.5.0', not a number"),
    ],
)
def test_what_cannot_be_read_is_said_with_file_and_line(tmp_path, source, old, new, message):
    with pytest.raises(CounterFileError, match=message):
        read_file(damaged(tmp_path, source, old, new), "x")


@pytest.mark.parametrize("source", [LONG, WIDE], ids=["long", "wide"])
@pytest.mark.parametrize("lost", [1, 2, 3, 5, 9, 40, 150, 333])
def test_a_file_that_was_cut_off_never_passes_for_a_whole_one(tmp_path, source, lost):
    file = tmp_path / "cut.csv"
    file.write_text(source.read_text(encoding="utf-8").rstrip("\n")[:-lost], encoding="utf-8")
    with pytest.raises(CounterFileError, match=r"cut\.csv:\d+: .*(cut off|not a number|not 3 calls)"):
        read_file(file, "x", calls=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no ncu CSV header"),
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n", "NVreg_RestrictProfilingToAdminUsers=0"),
        ("==WARNING== No kernels were profiled.\n", "profiled no kernel; does --kernel-name match one"),
        ('"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n', "no kernel stands below the header"),
        ('"ID","Kernel Name","Grid Size"\n', "no column is a metric"),
        ('"ID","Kernel Name","a__b.sum"\n', "the row of units below the header is missing"),
    ],
)
def test_a_file_without_kernels_says_what_it_lacks(tmp_path, text, message):
    file = tmp_path / "e.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CounterFileError, match=message):
        read_file(file, "x")


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(CounterFileError, match=r"nowhere.csv: cannot be read"):
        read_file(tmp_path / "nowhere.csv", "x")
    for spoilt in (b"\xff\xfe\x00\x80\x41", b"\x80\x81", '"ID"'.encode("utf-16-le")):
        (tmp_path / "b.csv").write_bytes(spoilt)
        with pytest.raises(CounterFileError, match=r"b.csv: cannot be read: .*save it as UTF-8"):
            read_file(tmp_path / "b.csv", "x")


@pytest.mark.parametrize("source", SOURCES, ids=LAYOUTS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_file_is_read_in_every_encoding_that_programs_on_windows_write(tmp_path, source, encoding, ending):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    file = tmp_path / source.name
    file.write_bytes((mark + source.read_text(encoding="utf-8").replace("\n", ending)).encode(encoding))
    assert read_file(file, "x") == read_file(source, "x")


LABELS = {"gpu__time_duration.sum": "Duration", "dram__bytes_read.sum": "DRAM Read"}


@pytest.mark.parametrize("source", [REAL, LONG], ids=["real", "by hand"])
def test_the_details_page_is_refused_with_the_page_and_metrics_that_are_needed(tmp_path, source):
    """The page has the same columns, and labels where metrics would be, some of them several times."""
    page = re.sub(
        r'"\w+__[\w.]+"',
        lambda name: f'"{LABELS.get(name[0][1:-1], "Memory Throughput")}"',
        source.read_text(encoding="utf-8"),
    )
    (tmp_path / "d.csv").write_text(page, encoding="utf-8")
    with pytest.raises(CounterFileError, match=r"d\.csv:\d+: .*details.*--page raw.*gpu__time_duration\.sum"):
        read_file(tmp_path / "d.csv", "x")


def test_labels_beside_metrics_that_were_asked_for_are_passed_over(tmp_path):
    row = next(line for line in REAL.read_text(encoding="utf-8").splitlines() if '"dram__bytes_read.sum"' in line)
    label = row.replace("dram__bytes_read.sum", "Memory Throughput").replace('"byte"', '"Gbyte/s"')
    (tmp_path / "m.csv").write_text(REAL.read_text(encoding="utf-8") + f"{label}\n{label}\n", encoding="utf-8")
    assert read_file(tmp_path / "m.csv", "x") == read_file(REAL, "x")


@pytest.mark.parametrize("source", SOURCES, ids=LAYOUTS)
def test_a_row_that_repeats_a_launch_is_refused_with_both_lines(tmp_path, source):
    lines = source.read_text(encoding="utf-8").splitlines()
    first = line_of(source, '"Kernel Name"') + (2 if source == WIDE else 1)
    (tmp_path / "r.csv").write_text("\n".join([*lines, lines[first - 1]]), encoding="utf-8")
    with pytest.raises(CounterFileError, match=rf"r\.csv:{len(lines) + 1}: .* line {first} already"):
        read_file(tmp_path / "r.csv", "x")


@pytest.mark.parametrize("source", SOURCES, ids=LAYOUTS)
@pytest.mark.parametrize("appended", SOURCES, ids=LAYOUTS)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "bom"])
def test_a_report_that_was_appended_to_another_is_refused_at_its_header(tmp_path, source, appended, mark):
    text = source.read_text(encoding="utf-8")
    text += mark + appended.read_text(encoding="utf-8")[appended.read_text(encoding="utf-8").index('"ID"') :]
    (tmp_path / "c.csv").write_text(text, encoding="utf-8")
    second = len(source.read_text(encoding="utf-8").splitlines()) + 1
    with pytest.raises(CounterFileError, match=rf"a second header in line {second}"):
        read_file(tmp_path / "c.csv", "x")


def planted(tmp_path, metric: str, text: str, launch: int = 0, unit: str | None = None) -> Path:
    """A real file of one kernel a call, in which a metric of a launch was printed so."""
    lines = REAL.read_text(encoding="utf-8").splitlines()
    at = [i for i, line in enumerate(lines) if f'"{metric}"' in line][launch]
    *before, old_unit, _ = next(csv.reader([lines[at]]))
    lines[at] = ",".join(f'"{cell}"' for cell in (*before, old_unit if unit is None else unit, text))
    file = tmp_path / "planted.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


NOTHING = ["n/a", "N/A", "nan", "NaN", "-nan", "-nan(ind)", "inf", "-Inf", "", "(!) nan", "(!) n/a", "1e999"]


@pytest.mark.parametrize("nothing", NOTHING)
def test_what_is_not_available_is_no_number_and_refuses_nothing(tmp_path, nothing):
    metric, rows = "dram__bytes_read.sum", read_file(REAL, "x")
    rest = read_file(planted(tmp_path, metric, nothing), "x")
    assert rest == [row for row in rows if (row.launch, row.metric) != (0, metric)]
    others = [value(rows, launch, metric) for launch in (1, 2)]
    assert summarize_counters(table(rest))["dram_read_bytes"].iloc[0] == pytest.approx(sum(others) / 2)


def test_what_no_call_has_is_missing_in_the_table_and_not_zero(tmp_path):
    text = re.sub(r'("dram__bytes_read.sum","byte",)"[^"]*"', r'\1"(!) nan"', REAL.read_text(encoding="utf-8"))
    (tmp_path / "n.csv").write_text(text, encoding="utf-8")
    both = [*read_file(tmp_path / "n.csv", "gone"), *read_file(REAL, "there")]
    summary = summarize_counters(table(both)).set_index("case_id")
    assert summary["dram_read_bytes"].isna().to_dict() == {"gone": True, "there": False}
    (tmp_path / "n.csv").write_text(
        re.sub(r'^("\d+",.*)"[^"]*"$', r'\1"n/a"', REAL.read_text(encoding="utf-8"), flags=re.MULTILINE),
        encoding="utf-8",
    )
    with pytest.raises(CounterFileError, match="no metric is available in any call"):
        read_file(tmp_path / "n.csv", "x")


def test_a_call_of_two_kernels_has_no_sum_where_one_kernel_has_none(tmp_path):
    """A sum over the other kernel alone would be too small, and percentages need the duration of both."""
    lines = LONG.read_text(encoding="utf-8").splitlines()
    whole = read_file(LONG, "x")
    for metric in ("dram__bytes_read.sum", "gpu__time_duration.sum"):
        at = next(i for i, line in enumerate(lines) if "splitKreduce" in line and f'"{metric}"' in line)
        spoilt = [*lines[:at], re.sub(r'"[^"]*"$', '"n/a"', lines[at]), *lines[at + 1 :]]
        (tmp_path / "s.csv").write_text("\n".join(spoilt) + "\n", encoding="utf-8")
        rows = read_file(tmp_path / "s.csv", "x")
        assert [row for row in rows if row.call] == [row for row in whole if row.call]
        ratios = {row.metric for row in whole if not row.metric.endswith(".sum")}
        gone = {metric, *(ratios if metric == "gpu__time_duration.sum" else ())}
        assert {row.metric for row in rows if row.call == 0} == {row.metric for row in whole} - gone
        summarize_counters(table(rows))


@pytest.mark.parametrize("printed", ["13,504 (1: 13,504)", "13504 (13504)", "13,504 (6,752; 6,752)", "(!) 13,504"])
def test_the_values_of_instances_behind_a_value_are_passed_over(tmp_path, printed):
    assert (
        value(read_file(planted(tmp_path, "smsp__inst_executed.sum", printed), "x"), 0, "smsp__inst_executed.sum")
        == 13504
    )
    text = WIDE.read_text(encoding="utf-8").replace('"13,504"', f'"{printed}"')
    (tmp_path / "w.csv").write_text(text, encoding="utf-8")
    assert value(read_file(tmp_path / "w.csv", "x"), 0, "gpu__time_duration.sum") == 13504


@pytest.mark.parametrize("metric", ["smsp__inst_executed.sum", "lts__t_sector_hit_rate.pct", "launch__grid_size"])
def test_a_negative_count_is_refused_with_its_line(tmp_path, metric):
    file = planted(tmp_path, metric, "-1", launch=1)
    line = [
        i for i, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1) if f'"{metric}"' in line
    ][1]
    with pytest.raises(CounterFileError, match=rf"planted\.csv:{line}: {metric} is -1"):
        read_file(file, "x")


def test_a_property_may_be_negative(tmp_path):
    row = next(line for line in REAL.read_text(encoding="utf-8").splitlines() if '"launch__grid_size"' in line)
    for number in range(3):
        row_of_launch = re.sub(r'^"\d+"', f'"{number}"', row).replace("launch__grid_size", "device__attribute_numa_id")
        with (tmp_path / "p.csv").open("a", encoding="utf-8") as file:
            file.write(
                (REAL.read_text(encoding="utf-8") if number == 0 else "")
                + re.sub(r'"[^"]*"$', '"-1"', row_of_launch)
                + "\n"
            )
    assert value(read_file(tmp_path / "p.csv", "x"), 2, "device__attribute_numa_id") == -1


TIME_UNITS = {
    "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "nsecond": 1e-9, "usecond": 1e-6, "msecond": 1e-3, "second": 1.0
}  # fmt: skip
BYTE_UNITS = {
    "byte": 1, "Kbyte": 10**3, "Mbyte": 10**6, "Gbyte": 10**9, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9
}  # fmt: skip


@pytest.mark.parametrize("unit", TIME_UNITS)
def test_a_duration_is_the_same_in_every_unit(tmp_path, unit):
    """12.5 us, printed in a unit and read into us."""
    file = planted(tmp_path, "gpu__time_duration.sum", f"{12.5e-6 / TIME_UNITS[unit]:.12g}", unit=unit)
    rows = table([row for row in read_file(file, "x") if row.call == 0])
    assert summarize_counters(rows)["counter_us"].iloc[0] == pytest.approx(12.5)


@pytest.mark.parametrize("unit", BYTE_UNITS)
def test_bytes_are_the_same_in_every_unit(tmp_path, unit):
    file = planted(tmp_path, "dram__bytes_read.sum", f"{30e6 / BYTE_UNITS[unit]:.12g}", unit=unit)
    rows = table([row for row in read_file(file, "x") if row.call == 0])
    assert summarize_counters(rows)["dram_read_bytes"].iloc[0] == pytest.approx(30e6)


def test_no_unit_is_converted_that_no_test_plants():
    assert set(report_counters.TIME_TO_US) == set(TIME_UNITS)
    assert set(report_counters.BYTES) == set(BYTE_UNITS)


@pytest.mark.parametrize(("metric", "unit"), [("gpu__time_duration.sum", "minute"), ("dram__bytes_read.sum", "sector")])
def test_a_unit_that_is_not_known_is_named_and_not_taken_for_another(tmp_path, metric, unit):
    with pytest.raises(ValueError, match=rf"x: {metric} is in '{unit}'"):
        summarize_counters(table(read_file(planted(tmp_path, metric, "7", unit=unit), "x")))


def test_calls_that_do_not_launch_the_same_kernels_are_refused(tmp_path):
    with pytest.raises(CounterFileError, match="6 kernels are not 4 calls of the same kernels"):
        read_file(LONG, "fp16", calls=4)
    with pytest.raises(CounterFileError, match="6 kernels are not 2 calls of the same kernels"):
        read_file(LONG, "fp16", calls=2)


def test_a_file_of_setup_kernels_alone_is_refused(tmp_path):
    text = WIDE.read_text(encoding="utf-8").replace("kernel_gemm_packed_int4_splitk", "vectorized_elementwise_kernel")
    (tmp_path / "s.csv").write_text(text, encoding="utf-8")
    with pytest.raises(CounterFileError, match="every profiled kernel is a setup kernel"):
        read_file(tmp_path / "s.csv", "x")


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["fp16-cublas", "int4"])
def test_real_counters_agree_with_the_bytes_that_must_move(backend):
    problem = GemmProblem(1, 14336, 4096)
    target = Target(f"{backend}/{problem}/graph-cold", backend, problem)
    try:
        rows, _ = ncu.collect([target])
    except CountersUnavailableError as error:
        pytest.skip(f"no counters on this machine: {error}")
    summary = summarize_counters(table(rows)).iloc[0]
    least = problem.bytes_min(16.0 if backend == "fp16-cublas" else problem.int4_bits_per_weight())
    assert 0.95 < summary["dram_read_bytes"] / least < 1.3
    assert 0.05 < summary["frac_dram"] < 1


counters_of = functools.cache(lambda folder: load_run(folder).counters)  # of one run for all its files


@pytest.mark.skipif(not RECORDED, reason="no recorded run has counters")
@pytest.mark.parametrize("file", RECORDED, ids=lambda file: f"{file.parent.parent.name}/{file.stem}")
def test_a_real_ncu_file_is_imported_as_the_run_that_kept_it_did(file):
    counters = counters_of(file.parents[1])
    case_id = file.stem.replace("_", "/")
    rows = table(read_file(file, case_id, ncu.PROFILED_CALLS))
    kept = counters[counters["case_id"] == case_id].reset_index(drop=True)
    assert len(kept) > 0
    pd.testing.assert_frame_equal(rows, kept, check_dtype=False)
