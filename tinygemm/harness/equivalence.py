"""The proof that kernels compute what those of an earlier run did: equal source or equal machine code."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tinygemm.digest import CODE, EQUIVALENT, EQUIVALENT_COLUMNS, KERNEL, KERNELS, equivalents, kernel_digest
from tinygemm.harness import machine_code
from tinygemm.kernel.configs import LaunchConfig, select
from tinygemm.problem import GemmProblem
from tinygemm.runs import Run

ROOT = KERNEL.parents[1]


class NotEquivalentError(ValueError):
    """The kernels differ; the message says in what."""


@dataclass(frozen=True)
class Evidence:
    """A row of `data/equivalent.csv`: digests of kernels that compute the same, and the proof in words."""

    old: str
    new: str
    proof: str


def prove(commit: str, digest: str, gpu: str, root: Path = ROOT) -> Evidence:
    """Compare the kernels of a commit with those of this checkout, for one GPU.

    commit, digest: of a recorded run
    gpu:            key of the GPU of the run
    root:           the repository whose history has the commit
    raises:         NotEquivalentError where they compute something else; ValueError where the commit is not here, or
                    cannot be compiled
    """
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder)
        _extract(commit, old, root)
        package = old / "tinygemm" / "kernel"
        if not all((package / name).is_file() for name in CODE):
            how = f"{_equal_machine_code(gpu, old)}, whose files stood elsewhere"
        elif kernel_digest(gpu, package) == kernel_digest(gpu):
            how = "the sources differ in nothing that is computed"
        elif kernel_digest(None, package, KERNELS) == kernel_digest(None, KERNEL, KERNELS):
            how = f"equal kernels and launches; {_equal_tables(gpu, package)}"
        else:
            how = _equal_machine_code(gpu, old)
    return Evidence(digest, kernel_digest(gpu), f"commit {commit[:7]}: {how}")


def same_choices(run: Run) -> int:
    """The number of cases of the tuned kernel in a run, each of which would get the launch config of then.

    raises: NotEquivalentError naming the first case that would run in another config
    """
    names = [field.name for field in dataclasses.fields(LaunchConfig)]
    cases = run.cases[(run.cases["backend"] == "int4") & (run.cases["status"] == "ok")]
    for case in cases.itertuples():
        problem = GemmProblem(case.M, case.N, case.K, case.group_size)
        chosen = select(problem, run.gpu["key"])[0]
        recorded = LaunchConfig(case.form, *(int(getattr(case, name)) for name in names[1:]))
        if chosen != recorded:
            raise NotEquivalentError(f"{case.case_id} was measured in {recorded}, today it would run in {chosen}")
    return len(cases)


def record(evidence: Evidence, file: Path = EQUIVALENT) -> bool:
    """Add a row to a table of equivalent digests; False where it stands there already."""
    if (evidence.old, evidence.new) in equivalents(file) or evidence.old == evidence.new:
        return False
    new = not file.is_file()
    with file.open("a", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        if new:
            writer.writerow(EQUIVALENT_COLUMNS)
        writer.writerow((evidence.old, evidence.new, evidence.proof))
    equivalents.cache_clear()
    return True


def _extract(commit: str, folder: Path, root: Path) -> None:
    if not re.fullmatch(r"[0-9a-f]{7,40}|HEAD", commit):
        raise ValueError(f"{commit!r} is not the name of a commit: expected 7 to 40 hexadecimal digits")
    command = ("git", "-C", str(root), "archive", commit, "tinygemm")
    result = subprocess.run(command, capture_output=True)
    if result.returncode:
        why = result.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
        raise ValueError(
            f"commit {commit} cannot be read from this checkout's history ({why}); a shallow clone gets it with "
            "`git fetch --unshallow`"
        )
    with tarfile.open(fileobj=io.BytesIO(result.stdout), encoding="utf-8") as archive:
        archive.extractall(folder, filter="data")


def _equal_tables(gpu: str, old: Path) -> str:
    name = f"{gpu}.json"
    files = [folder / "configs" / name for folder in (old, KERNEL)]
    if not all(file.is_file() for file in files):
        raise NotEquivalentError(f"one of both has no table {name}: other launch configs may be chosen")
    before, now = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    if before["rows"] != now["rows"] or before.get("dequantise_from_m") != now.get("dequantise_from_m"):
        raise NotEquivalentError(f"the table {name} has other rows: other launch configs may be chosen")
    return f"{len(now['rows'])} equal rows of {name}"


def _equal_machine_code(gpu: str, old: Path) -> str:
    before, now = _listing(gpu, old), _listing(gpu, ROOT)
    if changed := sorted(row for row in before.keys() | now.keys() if before.get(row) != now.get(row)):
        raise NotEquivalentError(
            f"{len(changed)} of {len(before.keys() | now.keys())} rows of the table compile to other machine code or "
            f"stand in one table only, the first: {changed[0]}"
        )
    return f"equal machine code of all {len(now)} rows of the table of {gpu}"


def _listing(gpu: str, checkout: Path) -> dict[str, str]:
    """The machine code of a GPU's table in a checkout, compiled by the checkout's own code."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= machine_code.ENVIRONMENT | {"PYTHONPATH": str(checkout)}
    command = (sys.executable, "-P", machine_code.__file__, gpu)
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, cwd=checkout)
    if result.returncode:
        why = (result.stderr.strip().splitlines() or ["?"])[-1]
        raise ValueError(f"the kernels of {checkout.name or checkout} could not be compiled for {gpu}: {why}")
    return json.loads(result.stdout)
