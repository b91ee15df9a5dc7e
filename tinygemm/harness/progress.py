"""The measurements of a search for launch configs, kept in a file so that a search that was stopped can go on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tinygemm import runs
from tinygemm.kernel.configs import PLAIN, Format, LaunchConfig
from tinygemm.problem import GemmProblem

# finalists with the latency in us of overlapping calls; the first is the fastest where it is used, see tune.places
Ranked = list[tuple[float, LaunchConfig]]


@dataclass(frozen=True)
class Task:
    """The target of one search: a kernel on a problem, its operands stored in a format.

    phase: among which configs, so that a race of some is never taken for one of others:
           "full":      all that are worth trying
           "between":   the finalists of the same weight at other token counts
           "promising": those that the rough model ranks first, and the finalists of the nearest weight
           "refined":   variants of the finalists of the same weight, in any format
    """

    form: str
    problem: GemmProblem
    format: Format = PLAIN
    phase: str = "full"


@dataclass(frozen=True)
class Progress:
    """Finalists of every task; each is on disk before the next one is measured.

    file: one JSON object per line, the first says on what terms the others were measured, and in search of what; None
          keeps nothing
    """

    file: Path | None
    ranked: dict[Task, Ranked] = field(default_factory=dict)

    @classmethod
    def open(cls, file: Path | None, terms: dict) -> Progress:
        """Go on with a file of equal terms; anything else is begun anew, a line cut short is left out.

        terms: plain data that JSON gives back as it was: lists, no tuples
        """
        progress = cls(file)
        lines = file.read_text(encoding="utf-8").splitlines() if file and file.is_file() else []
        found = [entry for line in lines if (entry := _parsed(line)) is not None]
        if found[:1] == [terms]:
            for entry in found[1:]:
                ranked = [(us, LaunchConfig(**config)) for us, config in entry.pop("ranked")]
                typed = {"problem": GemmProblem(**entry["problem"]), "format": Format(**entry["format"])}
                progress.ranked[Task(**entry | typed)] = ranked
        if file:  # what was read is written again, without the line that was cut short
            file.write_text(json.dumps(terms) + "\n", encoding="utf-8")
            for task, ranked in progress.ranked.items():
                progress.add(task, ranked)
        return progress

    def add(self, task: Task, ranked: Ranked) -> None:
        self.ranked[task] = ranked
        if self.file:
            entry = asdict(task) | {"ranked": [(us, asdict(config)) for us, config in ranked]}
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")

    def finalists(self, form: str, shape: tuple[int, int]) -> list[LaunchConfig]:
        """The finalists of a kernel at every M of a shape (K, N), in the plain format and not yet refined."""
        of_shape = [
            ranked
            for task, ranked in self.ranked.items()
            if (task.form, task.format, task.problem.K, task.problem.N) == (form, PLAIN, *shape)
            and task.phase != "refined"
        ]
        return list(dict.fromkeys(config for ranked in of_shape for _, config in ranked))

    def close(self) -> None:
        """Forget the file: the table holds what it was for."""
        if self.file:
            self.file.unlink(missing_ok=True)


def terms() -> dict:
    """The conditions of a search beside the GPU: compiler, framework, and the source of kernels and search."""
    package = Path(__file__).resolve().parent.parent
    searching = (package / "harness" / name for name in ("candidates.py", "tune.py"))
    sources = [*sorted((package / "kernel").rglob("*.py")), *searching]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    software = runs.software_versions()
    return {"software": {name: software.get(name) for name in ("torch", "triton", "cuda")}, "code": digest}


def _parsed(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
