"""Hardware counters: the ncu command as a list, its run, and the import of its CSV by column name."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinygemm.metrics import BASIC_METRICS, DURATION, METRICS
from tinygemm.problem import GemmProblem
from tinygemm.runs import Counter, without_folders
from tinygemm.text import read_unicode

PROFILED_CALLS = 3
KERNEL_NAME, METRIC_NAME = "Kernel Name", "Metric Name"
# torch's own helpers that fill, copy, convert and draw random operands; a split-K reduction of cuBLAS is none of them
SETUP_KERNEL = re.compile(
    r"elementwise\w*_kernel|distribution_|FillFunctor|CatArrayBatchedCopy|\breduce_kernel\b|random_|philox|spin_kernel"
)

NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?([eE][+-]?\d+)?")
NOT_AVAILABLE = re.compile(r"|n/a|[+-]?(nan(\(\w+\))?|inf(inity)?)", re.IGNORECASE)
# ncu's mark of a value that it could not collect, and behind a value those of the metric's instances
MARK_AND_INSTANCES = re.compile(r"^\(!\)\s*|\s+\(.*\)$")
C_LOCALE = {"LC_ALL": "C"}  # numbers as NUMBER reads them, whatever the language of this machine

RAW_PAGE_HELP = f"export it with --page raw, of a profile with at least --metrics {','.join(BASIC_METRICS)}"

PERMISSION_HELP = (
    "this user may not read GPU counters (ERR_NVGPUCTRPERM). Either run as root (in a container: with "
    "--cap-add=SYS_ADMIN), or allow every user: write `options nvidia NVreg_RestrictProfilingToAdminUsers=0` into "
    "/etc/modprobe.d/nvidia.conf and reload the driver or reboot"
)


class CountersUnavailableError(RuntimeError):
    """ncu is missing or may not read counters here; the message says what to do."""


class CounterFileError(ValueError):
    """A CSV that is not what ncu writes; the message names file and line."""


@dataclass(frozen=True)
class Target:
    """A case of a run that is to be profiled.

    variant: config_source of the case, where the backend has several variants; "" takes the first
    """

    case_id: str
    backend: str
    problem: GemmProblem
    symmetric: bool = True
    variant: str = ""


@dataclass(frozen=True)
class KernelLaunch:
    """One profiled kernel and the line it starts in: metric -> (value or None, unit)."""

    name: str
    line: int
    metrics: dict[str, tuple[float | None, str]] = field(default_factory=dict)


# --- running ncu ----------------------------------------------------------------------------------------------------


def ncu_command(
    target: Target, log_file: Path, metrics: Sequence[str] = METRICS, kernel_name: str | None = None, ncu: str = "ncu"
) -> list[str]:
    """The command that profiles a target: only the calls between cudaProfilerStart and Stop, at the clocks as they are.

    kernel_name: profile only kernels of this function name
    """
    each = target.problem
    chosen = ["--kernel-name-base", "function", "--kernel-name", kernel_name] if kernel_name else []
    # fmt: off
    return [
        ncu, "--csv", "--print-units", "base", "--metrics", ",".join(metrics),
        "--profile-from-start", "off", "--clock-control", "none", *chosen, "--log-file", str(log_file),
        sys.executable, "-m", "tinygemm.cli", "profile", "--backend", target.backend,
        "--m", str(each.M), "--k", str(each.K), "--n", str(each.N), "--group_size", str(each.group_size),
        "--calls", str(PROFILED_CALLS), *([] if target.symmetric else ["--asymmetric"]),
        *(["--variant", target.variant] if target.variant else []),
    ]
    # fmt: on


def log_name(target: Target) -> str:
    """File name of the raw CSV of a target."""
    return target.case_id.replace("/", "_") + ".csv"


def collect(
    targets: Sequence[Target],
    say: Callable = print,
    metrics: Sequence[str] = METRICS,
    kernel_name: str | None = None,
) -> tuple[list[Counter], dict[str, str]]:
    """Profile targets one after the other; one whose output cannot be read is left out, and `say` tells why.

    metrics: those that ncu does not know here are left out, too
    returns: rows for counters.csv; raw CSVs by file name, without the machine's folders
    raises:  CountersUnavailableError; CounterFileError where no target could be read
    """
    ncu = shutil.which("ncu")
    if ncu is None:
        raise CountersUnavailableError("ncu is not on the PATH; it comes with Nsight Compute and the CUDA toolkit")
    rows, raw, failed = [], {}, None
    for target in targets:
        say(f"profiling {target.case_id}")
        text, metrics = _profile(ncu, target, tuple(metrics), kernel_name, say)
        name = log_name(target)
        try:
            rows += read_text(without_folders(text), name, target.case_id, PROFILED_CALLS)
            raw[name] = without_folders(text)
        except CounterFileError as error:
            failed = failed or error
            say(f"no counters of {target.case_id}: {error}")
    if failed and not rows:
        raise failed
    return rows, raw


def _profile(ncu: str, target: Target, metrics: tuple[str, ...], kernel_name: str | None, say: Callable):
    """The output of ncu about a target, and the metrics that it knows; those it refuses are not asked for again."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        command = ncu_command(target, log, metrics, kernel_name, ncu)
        done = subprocess.run(
            command, capture_output=True, env=os.environ | C_LOCALE, encoding="utf-8", errors="replace", check=False
        )
        text = read_unicode(log, errors="replace") if log.is_file() else ""
    output = text + done.stdout + done.stderr
    if done.returncode and "ERR_NVGPUCTRPERM" not in output:
        known = tuple(metric for metric in metrics if not _refused(metric, output))
        if known and known != metrics:
            say(f"ncu does not know {', '.join(metric for metric in metrics if metric not in known)} here")
            return _profile(ncu, target, known, kernel_name, say)
        if set(BASIC_METRICS) < set(metrics):
            say(f"ncu ended with code {done.returncode}; asking for the {len(BASIC_METRICS)} basic metrics only")
            return _profile(ncu, target, BASIC_METRICS, kernel_name, say)
    check_output(done.returncode, output)
    return text, metrics


def _refused(metric: str, output: str) -> bool:
    """Tell whether a message of ncu names the metric."""
    messages = [line for line in output.splitlines() if line.startswith("==") or "metric" in line.lower()]
    return any(re.search(rf"(?<![\w.]){re.escape(metric)}(?![\w.])", line) for line in messages)


def check_output(returncode: int, output: str) -> None:
    """Raise CountersUnavailableError with what to do if ncu could not profile."""
    if "ERR_NVGPUCTRPERM" in output:
        raise CountersUnavailableError(PERMISSION_HELP)
    if returncode:
        telling = [line for line in output.splitlines() if "==ERROR==" in line or line.startswith("Error")]
        last = (telling or output.strip().splitlines() or ["it printed nothing"])[0 if telling else -1]
        raise CountersUnavailableError(f"ncu ended with code {returncode}: {without_folders(last)}")


def run_profiled(target: Target, gpu_key: str, calls: int, seed: int = 0) -> None:
    """Call a backend with the profiler on, after one call that compiles; without ncu around it, just runs it."""
    import torch

    from tinygemm.harness import registry

    backend, each = registry.BACKENDS[target.backend], target.problem
    if reason := backend.unsupported_reason(each, target.symmetric):
        raise ValueError(reason)
    variants = {variant.source: variant for variant in backend.variants(each, gpu_key, target.symmetric)}
    if target.variant and target.variant not in variants:
        raise ValueError(f"{target.backend} has no variant {target.variant!r}; it has {', '.join(variants)}")
    variant = variants[target.variant] if target.variant else next(iter(variants.values()))
    x = registry.activations(each, "cuda", seed + 1).to(getattr(torch, backend.dtype))
    call = variant.bind(x, variant.build(registry.operands(each, target.symmetric, "cuda", seed)))
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


# --- reading what ncu wrote -----------------------------------------------------------------------------------------


def read_file(file: Path | str, case_id: str, calls: int | None = None) -> list[Counter]:
    """Rows for counters.csv from a CSV that ncu wrote, in the long layout or the wide one of `--page raw`.

    calls:  how many calls were profiled; None: as many as the first kernel was launched
    raises: CounterFileError naming file and line
    """
    try:
        text = read_unicode(Path(file))
    except (OSError, ValueError) as error:
        raise CounterFileError(f"{file}: cannot be read: {error}") from None
    return read_text(text, str(file), case_id, calls)


def read_text(text: str, name: str, case_id: str, calls: int | None = None) -> list[Counter]:
    """As read_file; `name` stands for the file in errors."""
    launches = [launch for launch in read_launches(text, name) if not SETUP_KERNEL.search(launch.name)]
    if not launches:
        raise CounterFileError(f"{name}: every profiled kernel is a setup kernel (fill, copy, random numbers)")
    per_call = _kernels_per_call(launches, name, calls)
    rows = []
    for first in range(0, len(launches), per_call):
        kernels = launches[first : first + per_call]
        there = _available(kernels)
        rows += [
            Counter(case_id, index, first // per_call, launch.name, metric, value, unit)
            for index, launch in enumerate(kernels, start=first)
            for metric, (value, unit) in launch.metrics.items()
            if metric in there and value is not None
        ]
    if not rows:
        raise CounterFileError(f"{name}: no metric is available in any call; {RAW_PAGE_HELP}")
    return rows


def _available(kernels: list[KernelLaunch]) -> set[str]:
    """Metrics of a call that every kernel of it has: a sum over some of them would be too small.

    Of a call whose kernels have no duration, only what adds up counts, since nothing else could weight the rest.
    """
    lacking = {metric for launch in kernels for metric, (value, _) in launch.metrics.items() if value is None}
    there = set.intersection(*(set(launch.metrics) for launch in kernels)) - lacking
    if len(kernels) > 1 and DURATION in lacking:
        there = {metric for metric in there if metric.endswith(".sum")}
    return there


def read_launches(text: str, name: str) -> list[KernelLaunch]:
    """Every kernel of an ncu CSV, in launch order."""
    (header_line, columns), *rows = _table(text, name)
    if METRIC_NAME in columns:
        launches = _long_layout(rows, columns, name, header_line)
    else:
        launches = _wide_layout(rows, columns, name, header_line)
    if not launches:
        raise CounterFileError(f"{name}:{header_line}: no kernel stands below the header")
    for launch in launches:
        if missing := sorted(launches[0].metrics.keys() - launch.metrics.keys()):
            raise CounterFileError(f"{name}:{launch.line}: {launch.name} has no {missing[0]}; is the file cut off?")
    return launches


def _table(text: str, name: str) -> list[tuple[int, list[str]]]:
    """The header and its rows, each with its line number; ncu quotes every cell of both.

    Whatever starts without a quote is a message of ncu (`==PROF==`) or of the profiled program; it may stand anywhere.
    """
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.lstrip("\ufeff")  # of a report that was appended to another
        if not line.startswith('"'):
            continue
        try:
            cells = next(csv.reader([line], strict=True))
        except csv.Error as error:
            raise CounterFileError(f"{name}:{number}: not CSV ({error}); is the file cut off?") from None
        is_header = {"ID", KERNEL_NAME} <= set(cells)
        if rows and is_header:
            raise CounterFileError(f"{name}:{number}: a second header in line {number}; give one report per file")
        if rows and len(cells) != len(rows[0][1]):
            width = len(rows[0][1])
            raise CounterFileError(f"{name}:{number}: {len(cells)} cells, the header has {width}; is the file cut off?")
        if rows or is_header:
            rows.append((number, cells))
    if not rows:
        if "ERR_NVGPUCTRPERM" in text:
            raise CounterFileError(f"{name}: {PERMISSION_HELP}")
        if "No kernels were profiled" in text:
            raise CounterFileError(f"{name}: ncu profiled no kernel; does --kernel-name match one?")
        raise CounterFileError(f'{name}:1: no ncu CSV header (a line with "ID" and "{KERNEL_NAME}") in this file')
    return rows


def _long_layout(rows: list, columns: list[str], name: str, header_line: int) -> list[KernelLaunch]:
    """One row per kernel and metric; a kernel goes by its process and ID."""
    for column in ("Metric Unit", "Metric Value"):
        if column not in columns:
            raise CounterFileError(f"{name}:{header_line}: the column {column!r} is missing")
    launches: dict[tuple, KernelLaunch] = {}
    lines: dict[tuple, int] = {}
    for line, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        key, metric = (row.get("Process ID"), row["ID"]), row[METRIC_NAME]
        launch = launches.setdefault(key, KernelLaunch(row[KERNEL_NAME], line))
        if _is_metric(metric):  # empty in a row that carries the advice of a rule
            _refuse_repeat(lines, (*key, metric), name, line, f"{metric} of launch {row['ID']}")
            launch.metrics[metric] = _number(row["Metric Value"], name, line, metric), row["Metric Unit"]
    if launches and not any(launch.metrics for launch in launches.values()):
        raise CounterFileError(f"{name}:{header_line}: the details page names no metrics; {RAW_PAGE_HELP}")
    return list(launches.values())


def _wide_layout(rows: list, columns: list[str], name: str, header_line: int) -> list[KernelLaunch]:
    """One row per kernel, one column per metric, and a first row with the units."""
    metrics = [(i, column) for i, column in enumerate(columns) if _is_metric(column)]
    if not metrics:
        raise CounterFileError(f"{name}:{header_line}: no column is a metric; {RAW_PAGE_HELP}")
    (units_line, units), *rows = rows or [(header_line, columns)]
    if units[columns.index("ID")]:
        raise CounterFileError(f"{name}:{units_line}: the row of units below the header is missing")
    launches: list[KernelLaunch] = []
    lines: dict[tuple, int] = {}
    for line, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        _refuse_repeat(lines, (row.get("Process ID"), row["ID"]), name, line, f"launch {row['ID']}")
        values = {metric: (_number(cells[i], name, line, metric), units[i]) for i, metric in metrics}
        launches.append(KernelLaunch(row[KERNEL_NAME], line, values))
    return launches


def _is_metric(text: str) -> bool:
    """Tell whether a name is a metric's, such as dram__bytes_read.sum; `Memory Throughput` is a label of a section."""
    return "__" in text


def _refuse_repeat(lines: dict[tuple, int], key: tuple, name: str, line: int, what: str) -> None:
    """Keep the line of a key; raise where it has one: the later row would replace the earlier one unseen."""
    if key in lines:
        raise CounterFileError(f"{name}:{line}: {what} stands in line {lines[key]} already")
    lines[key] = line


def _number(text: str, name: str, line: int, metric: str) -> float | None:
    """A number as ncu prints it, without commas between thousands and the values of instances: 13,504 (1: 13,504).

    None for what is not available here, such as n/a or (!) nan, and for a property in words: a counter's name ends in a
    roll-up such as `.sum`, a property's (`launch__func_cache_config`) does not.
    """
    total = MARK_AND_INSTANCES.sub("", text.strip())
    if NUMBER.fullmatch(total):
        value = float(total.replace(",", ""))
        if value < 0 and ("." in metric or metric in METRICS):  # a property may be -1, for none
            raise CounterFileError(f"{name}:{line}: {metric} is {total}; a counter is not negative")
        return value if math.isfinite(value) else None
    if NOT_AVAILABLE.fullmatch(total) or "." not in metric:
        return None
    raise CounterFileError(f"{name}:{line}: {metric} is {text!r}, not a number")


def _kernels_per_call(launches: list[KernelLaunch], name: str, calls: int | None) -> int:
    names = [launch.name for launch in launches]
    if calls is None:
        calls = names.count(names[0])
    per_call, rest = divmod(len(names), calls)
    if rest or names != names[:per_call] * calls:
        raise CounterFileError(
            f"{name}:{launches[-1].line}: {len(names)} kernels are not {calls} calls of the same kernels: "
            f"{', '.join(sorted(set(names)))}"
        )
    return per_call
