"""A recorded run: its schema, how it is written and resumed, and the checks it must pass to be read."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from tinygemm.digest import kernel_digest
from tinygemm.provenance import software_versions
from tinygemm.rows import column, columns_of, read_rows
from tinygemm.step_rows import Step, StepKernel, StepSample

# history: 1 = first schema; 2 = cases.csv has operands and max_registers, L2 may be warm, do_bench is a launch mode;
# 3 = primed is a launch mode, and what was launched before a graph no longer decides about its times
SCHEMA_VERSION = 3
SETTLED_SINCE = 3  # the version from which on every round of graphs starts from one state of the GPU
DATA_ROOT = Path(__file__).resolve().parent.parent / "data"

STATUS = ("ok", "mismatch", "unsupported", "out_of_memory", "error")
L2_STATES = ("cold", "warm", "hot")
LAUNCHES = ("graph", "primed", "eager", "do_bench")
OPERANDS = ("random", "zeros")
PARTIAL = ".partial"
STEPS = "steps"  # folder of runs that hold decode steps alone, which the report does not take for its runs


class RunError(ValueError):
    """A run that cannot be read or written; the message names the file and what was expected."""

    def _render_traceback_(self) -> list[str]:
        """Show one line in a notebook, where the frames would bury it: IPython asks for this."""
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Case:
    """One row of cases.csv: a backend on a problem in one launch mode and cache state. Field order is column order."""

    case_id: str = column("", "backend/problem/launch-l2_state, and -zeros where operands are; unique in the run")
    backend: str = column("", "which implementation computed the product")
    model: str = column("", "model the shape comes from; empty in a sweep")
    layer: str = column("", "projection of that model; empty in a sweep")
    M: int = column("tokens", "rows of x; 0 where there is no product (copy, empty node)")
    N: int = column("features", "output features; 0 where there is no product")
    K: int = column("features", "input features; 0 where there is no product")
    group_size: int = column("weights", "weights along K that share a scale; -1 = the whole K; 0 = not quantised")
    dtype: str = column("", "type of x and out")
    bits_per_weight: float = column("bits", "stored weight, scales and zeros included")
    l2_state: str = column("", "cold: weights rotate far beyond the L2; warm: over 1.5 x L2; hot: one, every call")
    launch: str = column(
        "",
        "graph: one CUDA graph of calls; primed: the same after a kernel with dependent launch; eager: one by one from "
        "Python; do_bench: as Triton does",
    )
    status: str = column("", "ok, mismatch (not timed), unsupported, out_of_memory, error")
    message: str = column("", "why a case is not ok, or which variants were left out and why; empty otherwise", "")
    operands: str = column("", "random: as measured numbers should be; zeros: every bit of x and weight", "random", 2)
    form: str = column("", "kernel form of the launch config; empty for code that is not ours", "")
    block_m: int | None = column("rows", "tile of M", None)
    block_n: int | None = column("features", "tile of N", None)
    block_k: int | None = column("features", "tile of K walked at a time by one program", None)
    split_k: int | None = column("", "programs that share one output tile along K", None)
    num_warps: int | None = column("", "warps of one program", None)
    num_stages: int | None = column("", "software pipeline depth, or blocks under way per warp", None)
    max_registers: int | None = column("registers", "of a thread, as told to the compiler; 0: its own choice", None, 2)
    config_source: str = column(
        "", "origin of the launch config: table, predicted, rule, default; or the variant that won", ""
    )
    n_calls: int = column("calls", "calls in one timed sample", 0)
    n_copies: int = column("", "copies of the weight that the calls rotate over", 0)
    n_samples: int = column("samples", "rows in samples.csv", 0)
    max_err: float | None = column("RMS of reference", "largest error against the float64 reference", None)
    rms_err: float | None = column("RMS of reference", "RMS error against the float64 reference", None)
    flops: int = column("FLOP", "2 M N K", 0)
    bytes_min: int = column("bytes", "every operand read once and the output written once", 0)
    sm_clock_mhz: float | None = column("MHz", "median while timing", None)
    mem_clock_mhz: float | None = column("MHz", "median while timing", None)
    power_w: float | None = column("W", "median while timing", None)
    temp_c: float | None = column("degC", "median while timing", None)


@dataclass(frozen=True)
class Sample:
    """One row of samples.csv: one timed replay, in measured order, nothing removed."""

    case_id: str = column("", "the case")
    sample: int = column("", "0, 1, 2, ... in measured order; sample i of a group is of round i, but for do_bench")
    latency_us: float = column("us", "duration of the sample / n_calls, on the GPU's clock")


@dataclass(frozen=True)
class Counter:
    """One row of counters.csv: one metric of one kernel launch, as Nsight Compute printed it."""

    case_id: str = column("", "the case that was profiled")
    launch: int = column("", "0, 1, ... kernels in launch order; several may make up one call")
    call: int = column("", "which call of the case the kernel belongs to")
    kernel_name: str = column("", "kernel, as ncu names it")
    metric: str = column("", "metric, as ncu names it")
    value: float = column("see unit", "the value, thousands separators removed")
    unit: str = column("", "unit, as ncu printed it")


TABLES = {
    "cases.csv": Case, "samples.csv": Sample, "counters.csv": Counter,
    "steps.csv": Step, "step_samples.csv": StepSample, "step_kernels.csv": StepKernel,
}  # fmt: skip
OPTIONAL = ("counters.csv", "steps.csv", "step_samples.csv", "step_kernels.csv")  # a run may be without
# rows of the first belong to a case of the second; of both, a run that was killed may have half a line
ROWS_OF = {"samples.csv": "cases.csv", "step_samples.csv": "steps.csv", "step_kernels.csv": "steps.csv"}


def case_id(backend: str, problem, launch: str, l2_state: str, operands: str = "random") -> str:
    """The id of a case; `problem` is a GemmProblem, or a plain word where there is no product."""
    return f"{backend}/{problem}/{launch}-{l2_state}" + ("" if operands == "random" else f"-{operands}")


@dataclass(frozen=True)
class Run:
    """A recorded run, checked and loaded.

    cases, samples, counters: DataFrames with the columns of Case, Sample, Counter; counters may be empty
    steps, step_samples, step_kernels: the same of Step, StepSample, StepKernel; empty where no step was measured
    provenance:               the content of provenance.json
    """

    path: Path
    provenance: dict
    cases: pd.DataFrame
    samples: pd.DataFrame
    counters: pd.DataFrame
    steps: pd.DataFrame
    step_samples: pd.DataFrame
    step_kernels: pd.DataFrame

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def gpu(self) -> dict:
        return self.provenance["gpu"]

    @property
    def settled(self) -> bool:
        """Tell whether all graphs were timed in one state of the GPU, whatever ran before: since schema 3."""
        return self.provenance["schema_version"] >= SETTLED_SINCE


# --- reading --------------------------------------------------------------------------------------------------------


def load_run(path: Path | str, *, allow_dirty: bool = False) -> Run:
    """Read a run and refuse it unless every file is what the run wrote.

    raises: RunError naming the file: missing, unfinished, another schema, changed since it was written,
            wrong columns, or measured from a dirty tree (unless allow_dirty)
    """
    path = Path(path)
    if path.name.endswith(PARTIAL):
        raise RunError(f"{path} is an unfinished run; finish it with `tinygemm record --resume {path}`")
    file = path / "provenance.json"
    if not file.is_file():
        raise RunError(f"{path} is not a recorded run: provenance.json is missing")
    provenance = _read_provenance(file)
    if "files" not in provenance:
        raise RunError(f"{path} is an unfinished run: {file.name} lists no files")
    if provenance["dirty"] and not allow_dirty:
        raise RunError(f"{path}: measured from a tree with uncommitted changes; measure again from a clean commit")
    for name, entry in provenance["files"].items():
        if not (path / name).is_file():
            raise RunError(f"{path / name} is missing; provenance.json lists it")
        if sha256(path / name) != entry["sha256"]:
            raise RunError(f"{path / name} differs from what the run wrote (sha256); runs are never edited")
    unlisted = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} - set(provenance["files"])
    if extra := sorted(unlisted - {"provenance.json"}):
        raise RunError(f"{path}: {', '.join(extra)} not listed in provenance.json; runs are never added to")
    tables = {name: read_table(path / name, provenance["schema_version"]) for name in TABLES}
    for name, table in tables.items():
        if name in provenance["files"] and len(table) != provenance["files"][name]["rows"]:
            raise RunError(
                f"{path / name}: {len(table)} rows, provenance.json says {provenance['files'][name]['rows']}"
            )
    return Run(path, provenance, *tables.values())


def read_table(file: Path, version: int = SCHEMA_VERSION) -> pd.DataFrame:
    """Read one table of a run by column name; one that a run may be without is empty where it does not exist.

    version: schema of the run; columns that came later are filled with their default
    """
    row_type = TABLES[file.name]
    if not file.is_file():
        if file.name in OPTIONAL:
            return pd.DataFrame(columns=columns_of(row_type))
        raise RunError(f"{file} is missing")
    return read_rows(row_type, file, version, RunError)


def recorded_runs(gpu: str | None = None, root: Path = DATA_ROOT) -> list[Path]:
    """Finished runs, oldest first; of one GPU, or of all."""
    found = [p.parent for p in root.glob("*/*/provenance.json") if not p.parent.name.endswith(PARTIAL)]
    return sorted((p for p in found if gpu in (None, p.parent.name)), key=lambda p: p.name)


def latest_run(gpu: str | None = None, root: Path = DATA_ROOT, *, allow_dirty: bool = False) -> Run:
    """The newest recorded run of a GPU; raises RunError that says how to record one."""
    runs = [p for p in recorded_runs(gpu, root) if allow_dirty or not p.name.endswith("-dirty")]
    if not runs:
        have = sorted({p.parent.name for p in recorded_runs(root=root)})
        raise RunError(
            f"no recorded run of {gpu or 'any GPU'} in {root}"
            f" (recorded: {', '.join(have) or 'none'}); on a machine with that GPU, run `tinygemm record`"
        )
    return load_run(runs[-1], allow_dirty=allow_dirty)


# --- writing --------------------------------------------------------------------------------------------------------


class RunWriter:
    """Appends to a run in `<root>/<gpu>/<run_id>.partial/` until `finish` seals it under its own name.

    provenance.json is there from the start; the hashes of the files are what sealing adds to it.

    Every group of cases is on disk before the next one starts, so a run that is killed loses only the group in flight;
    opening the folder again drops what that group had half-written.
    """

    def __init__(self, path: Path, header: dict):
        self.path, self.header = path, header

    @classmethod
    def create(cls, gpu: dict, parameters: dict, command: str, root: Path = DATA_ROOT) -> RunWriter:
        """Start a run. gpu: hardware.snapshot(); parameters: what decides which cases are measured."""
        commit, dirty = git_state()
        run_id = f"{datetime.now(UTC):%Y-%m-%dT%H%MZ}-{commit[:7]}" + ("-dirty" if dirty else "")
        path = root / gpu["key"] / (run_id + PARTIAL)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise RunError(f"{path} exists; resume it, or wait a minute for a new run id") from None
        if path.with_name(run_id).exists():
            path.rmdir()
            raise RunError(f"{path.with_name(run_id)} exists; wait a minute for a new run id")
        header = {
            "schema_version": SCHEMA_VERSION,
            "run_id": run_id,
            "command": command,
            "parameters": parameters,
            "commit": commit,
            "dirty": dirty,
            "kernel_sha256": kernel_digest(gpu["key"]),
            "kernel_code_sha256": kernel_digest(),
            "gpu": gpu,
            "software": software_versions(),
            "started": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        _write_atomically(path / "provenance.json", json.dumps(header, indent=1) + "\n")
        return cls(path, header)

    @classmethod
    def resume(cls, path: Path, gpu: dict, parameters: dict) -> RunWriter:
        """Open an unfinished run again; raises RunError where it would mix two GPUs, commits or sets of parameters."""
        path = Path(path)
        if not path.name.endswith(PARTIAL) or not (path / "provenance.json").is_file():
            raise RunError(f"{path} is not an unfinished run: expected a folder *{PARTIAL} with a provenance.json")
        header = _read_provenance(path / "provenance.json")
        for key in ("files", "finished"):  # killed after the last group, while sealing
            header.pop(key, None)
        commit, dirty = git_state()
        now = {"schema_version": SCHEMA_VERSION, "commit": commit, "dirty": dirty, "gpu": gpu}
        now["parameters"] = json.loads(json.dumps(parameters))
        for key, value in now.items():
            if header[key] != value:
                raise RunError(f"{path} cannot be resumed: its {key} was {header[key]!r}, now it is {value!r}")
        writer = cls(path, header)
        writer._drop_torn_rows()
        return writer

    @classmethod
    def unfinished(cls, gpu_key: str, parameters: dict, root: Path = DATA_ROOT) -> Path | None:
        """The newest unfinished run of this GPU, commit and parameters, or None.

        None for a dirty tree, too: two dirty trees of one commit need not hold the same code.
        """
        commit, dirty = git_state()
        if dirty:
            return None
        same = {"schema_version": SCHEMA_VERSION, "commit": commit, "dirty": dirty}
        same["parameters"] = json.loads(json.dumps(parameters))
        for path in sorted((root / gpu_key).glob("*" + PARTIAL), reverse=True):
            if (path / "provenance.json").is_file():
                header = _read_provenance(path / "provenance.json")
                if all(header[key] == value for key, value in same.items()):
                    return path
        return None

    def done(self) -> set[str]:
        """Ids of the cases already written."""
        file = self.path / "cases.csv"
        return set(read_table(file)["case_id"]) if file.is_file() else set()

    def append(self, cases: list[Case], samples: list[Sample]) -> None:
        """Write one group of backends: samples first, so that a case on disk always has its samples."""
        self._append_rows("samples.csv", samples, Sample)
        self._append_rows("cases.csv", cases, Case)

    def done_steps(self) -> set[str]:
        """Ids of the decode steps already written."""
        return set(read_table(self.path / "steps.csv")["case_id"])

    def append_step(self, step: Step, samples: list[StepSample]) -> None:
        """Write one decode step: samples first, so that a case on disk always has its samples."""
        self._append_rows("step_samples.csv", samples, StepSample)
        self._append_rows("steps.csv", [step], Step)

    def append_step_kernels(self, kernels: list[StepKernel]) -> None:
        self._append_rows("step_kernels.csv", kernels, StepKernel)

    def drop(self, case_ids: set[str]) -> None:
        """Forget cases of a group that is only partly on disk, with their samples."""
        for name in ("cases.csv", "samples.csv"):
            self._keep_lines(name, lambda case_id: case_id not in case_ids)

    def write_counters(self, counters: list[Counter], raw: dict[str, str]) -> None:
        """Write counters.csv whole, and beside it under ncu/ each raw CSV: file name -> text."""
        (self.path / "ncu").mkdir(exist_ok=True)
        for name, text in raw.items():
            (self.path / "ncu" / name).write_text(text, encoding="utf-8")
        (self.path / "counters.csv").unlink(missing_ok=True)
        self._append_rows("counters.csv", counters, Counter)

    def finish(self) -> Path:
        """Seal the run: hash every file, write provenance.json, drop the .partial ending. Returns the run's folder."""
        files = {}
        for name in ("cases.csv", "samples.csv"):  # a run of decode steps alone has these empty
            self._append_rows(name, [], TABLES[name])
        for samples, cases in (("samples.csv", "cases.csv"), ("step_samples.csv", "steps.csv")):
            counted = read_table(self.path / samples).groupby("case_id").size()
            claimed = read_table(self.path / cases).set_index("case_id")["n_samples"]
            if not claimed.index.is_unique or dict(claimed[claimed > 0]) != dict(counted):
                raise RunError(f"{self.path}: the samples are not those that {cases} claims; the run cannot be sealed")
        for file in sorted(p for p in self.path.rglob("*") if p.is_file() and p.name != "provenance.json"):
            entry: dict[str, str | int] = {"sha256": sha256(file)}
            if file.name in TABLES:
                entry["rows"] = len(read_table(file))
            files[file.relative_to(self.path).as_posix()] = entry
        provenance = self.header | {"finished": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "files": files}
        _write_atomically(self.path / "provenance.json", json.dumps(provenance, indent=1) + "\n")
        return self.path.rename(self.path.with_name(self.header["run_id"]))

    def _append_rows(self, name: str, rows: list, row_type: type) -> None:
        file = self.path / name
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if new:
                writer.writerow(columns_of(row_type))
            writer.writerows(_cells(row) for row in rows)
            stream.flush()
            os.fsync(stream.fileno())

    def _drop_torn_rows(self) -> None:
        """Cut a half-written last line, then samples whose case was never written."""
        for name in {*ROWS_OF, *ROWS_OF.values()}:
            file = self.path / name
            if file.is_file():
                written = file.read_bytes()  # a line may be torn within a character
                _write_atomically(file, written[: written.rfind(b"\n") + 1].decode("utf-8"))
                if not file.stat().st_size:  # not even the header was whole
                    file.unlink()
        known = {"cases.csv": self.done(), "steps.csv": self.done_steps()}
        for name, cases in ROWS_OF.items():
            self._keep_lines(name, lambda case_id, cases=cases: case_id in known[cases])

    def _keep_lines(self, name: str, keep: Callable[[str], bool]) -> None:
        """Rewrite a table with the rows whose case_id, the first column, passes `keep`."""
        file = self.path / name
        if file.is_file():
            header, *lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            _write_atomically(file, "".join([header, *(line for line in lines if keep(line.split(",", 1)[0]))]))


# --- what both need -------------------------------------------------------------------------------------------------


def _read_provenance(file: Path) -> dict:
    try:
        provenance = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RunError(f"{file}: not UTF-8 text: {error.reason}") from None
    except json.JSONDecodeError as error:
        raise RunError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    version = provenance.get("schema_version") if isinstance(provenance, dict) else None
    if version not in range(1, SCHEMA_VERSION + 1):
        raise RunError(f"{file}: schema version {version!r}, this code reads 1 to {SCHEMA_VERSION}")
    if lacking := {"run_id", "commit", "dirty", "gpu", "parameters"} - set(provenance):
        raise RunError(f"{file}: {', '.join(sorted(lacking))} missing")
    return provenance


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def without_folders(text: str) -> str:
    """Text in which every absolute path is cut down to its last part: a run names no machine and no user."""
    return re.sub(r"(?<![\w:/.])/(?:[\w.+@~-]+/)+", "", text)


def git_state() -> tuple[str, bool]:
    """Commit of this checkout, and whether files outside data/ differ from it; ("unknown", True) outside a checkout.

    data/ does not count: a recorded run that is not committed yet changes nothing about the next measurement.
    """
    root = Path(__file__).resolve().parent.parent

    def git(*arguments):
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, encoding="utf-8", check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip(), bool(git("status", "--porcelain", "--", ".", ":(exclude)data").strip())
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown", True


def require_clean_tree(otherwise: str) -> None:
    """Raise a RunError where a run of this tree could not be traced to a commit, before minutes go into measuring it.

    otherwise: what a user may do who wants that run even so
    """
    if git_state()[1]:
        raise RunError(f"the tree has uncommitted changes, so the run could not be traced; commit them or {otherwise}")


def _cells(row) -> list:
    """The values of a row; one that is not finite is no number that could be read again, and its cell stays empty."""
    return [
        None if isinstance(value, float) and not math.isfinite(value) else value for value in dataclasses.astuple(row)
    ]


def _write_atomically(file: Path, text: str) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
