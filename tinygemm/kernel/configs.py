"""Launch configs: one static table per GPU, and the rule for shapes outside it. Plain data; no device is asked."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, fields
from importlib import resources

from tinygemm.hardware import GPUS
from tinygemm.problem import GemmProblem

FORMS = ("static", "splitk", "gemv")  # kernels that compute the product
YARDSTICKS = ("load-only", "fp16")  # twins that splitk is measured against, cut into programs as it is
M_BUCKETS = (1, 2, 4, 8, 16)
TUNED_GROUP_SIZE = 128


@dataclass(frozen=True, order=True)
class LaunchConfig:
    """How a kernel is cut into programs.

    form:       which kernel: static (the obvious one), splitk (tensor cores, block_m tokens a tile), gemv (M = 1);
                or a yardstick that is cut like splitk: load-only, fp16
    block_m:    rows of x in one tile
    block_n:    output features in one tile, a multiple of 16
    block_k:    input features walked at a time; splitk: a multiple of 128 per warp, all requested at once
    split_k:    programs that share one tile along K
    num_warps, num_stages: warps of a program, depth of its software pipeline
    raises:     ValueError naming the field and the constraint
    """

    form: str
    block_m: int
    block_n: int
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int

    def __post_init__(self):
        if self.form not in FORMS + YARDSTICKS:
            raise ValueError(f"form must be one of {', '.join(FORMS + YARDSTICKS)}, got {self.form!r}")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{field.name} must be a positive integer, got {value!r}")
        for name in ("block_m", "block_n", "num_warps"):
            if getattr(self, name).bit_count() != 1:
                raise ValueError(f"{name}={getattr(self, name)} must be a power of two")
        if self.block_n < 16:
            raise ValueError(f"block_n={self.block_n} must be at least 16, the rows of a packed tile")
        if self._cut_by_warps and self.block_k % (128 * self.num_warps):
            raise ValueError(
                f"block_k={self.block_k} must be a multiple of 128 * num_warps={128 * self.num_warps}: whole blocks"
            )
        if self._cut_by_warps and self.num_stages != 1:
            raise ValueError(f"num_stages={self.num_stages} must be 1: {self.form} has no software pipeline")
        if self._cut_by_warps and self.block_m % 8:
            raise ValueError(f"block_m={self.block_m} must be a multiple of 8, the columns of a tensor-core tile")
        if self.form == "gemv" and (self.block_m != 1 or self.block_k % 128):
            raise ValueError(
                f"gemv needs block_m=1 and block_k a multiple of 128, got {self.block_m} and {self.block_k}"
            )
        if self.form == "static" and (self.split_k != 1 or self.block_k != 128):
            raise ValueError(f"static needs split_k=1 and block_k=128, got {self.split_k} and {self.block_k}")

    @property
    def _cut_by_warps(self) -> bool:
        return self.form in ("splitk", *YARDSTICKS)


STATIC = LaunchConfig("static", 16, 64, 128, 1, 4, 3)


def select(problem: GemmProblem, gpu: str, form: str | None = None) -> tuple[LaunchConfig, str]:
    """The launch config of a problem on a GPU.

    problem: M may be anything; above 16 the tiles repeat along M
    gpu:     key of `hardware.GPUS`; a GPU without a table uses the table of the nearest compute capability
    form:    only configs of this kernel; None: the fastest form
    returns: (config, source); source is `table` (this problem was tuned), `predicted` (from the static model),
             `rule` (the nearest tuned problem: nearest M bucket, then nearest K x N on a log scale), or `default`
    raises:  ValueError for a form that cannot compute the problem, or that the table has no config of
    """
    if form == "static":
        return STATIC, "default"
    if form not in (None, *FORMS, *YARDSTICKS):
        raise ValueError(f"form must be one of {', '.join(FORMS + YARDSTICKS)}, got {form!r}")
    if form == "gemv" and not _gemv_serves(problem):
        raise ValueError(f"gemv serves M = 1, even K and groups of 128 or the whole K, not {problem}")
    rows, source = table(gpu)
    bucket = next((m for m in M_BUCKETS if problem.M <= m), M_BUCKETS[-1])
    forms = FORMS if form is None else (form,)
    usable = [row for row in rows if row["config"].form in forms]
    if not _gemv_serves(problem):
        usable = [row for row in usable if row["config"].form != "gemv"]
    if not usable:
        raise ValueError(f"the table of {gpu} has no config of form {form or 'splitk'}")
    row = min(usable, key=lambda row: (abs(math.log(row["M"] / bucket)), _distance(row, problem), row["latency_us"]))
    tuned = GemmProblem(row["M"], row["N"], row["K"], TUNED_GROUP_SIZE) == problem
    return row["config"], source if tuned else "rule"


@functools.cache
def table(gpu: str) -> tuple[list[dict], str]:
    """The tuned rows of a GPU as (rows, source): M, K, N, latency_us (0 where predicted) and a LaunchConfig each."""
    name = gpu if (_folder() / f"{gpu}.json").is_file() else _nearest_table(gpu)
    content = json.loads((_folder() / f"{name}.json").read_text())
    rows = [row | {"config": LaunchConfig(**row["config"])} for row in content["rows"]]
    return rows, content["source"] if name == gpu else "rule"


def tables() -> list[str]:
    """Keys of the GPUs that have a table."""
    return sorted(file.name.removesuffix(".json") for file in _folder().iterdir() if file.name.endswith(".json"))


def write_table(path, rows: list[dict], source: str, about: str) -> None:
    """Write a table file: one row per line, so that a new tuning reads well as a diff."""
    lines = ",\n".join("  " + json.dumps(row | {"config": asdict(row["config"])}) for row in rows)
    path.write_text(
        f'{{\n "source": {json.dumps(source)},\n "about": {json.dumps(about)},\n "rows": [\n{lines}\n ]\n}}\n'
    )


def _gemv_serves(problem: GemmProblem) -> bool:
    return problem.M == 1 and problem.K % 2 == 0 and problem.group_length >= 128


def _folder():
    return resources.files("tinygemm.kernel") / "configs"


def _nearest_table(gpu: str) -> str:
    spec = GPUS.get(gpu)
    major, minor = spec.compute_capability if spec else (8, 0)

    def distance(key: str) -> tuple[int, int]:
        """Generations differ by more than their members: 8.9 is nearer to 8.6 than to 9.0."""
        other_major, other_minor = GPUS[key].compute_capability
        return abs(other_major - major), abs(other_minor - minor)

    return min(tables(), key=distance)


def _distance(row: dict, problem: GemmProblem) -> float:
    """How far two shapes are apart: K and N count alike, on a log scale."""
    return abs(math.log(row["K"] / problem.K)) + abs(math.log(row["N"] / problem.N))
