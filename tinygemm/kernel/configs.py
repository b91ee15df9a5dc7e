"""Launch configs: one static table per GPU, and the rule for shapes outside it. Plain data; no device is asked."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources

from tinygemm.hardware import GPUS, compute_capability
from tinygemm.problem import GemmProblem

FORMS = ("static", "splitk", "ring")  # kernels that compute the product
YARDSTICKS = ("load-only", "fp16")  # references that splitk is measured against, cut into programs as it is
ROUTE = "dequantise"  # write the weight out in the type of x, then torch's matmul
M_BUCKETS = (1, 2, 4, 8, 16)
TUNED_GROUP_SIZE = 128
OTHER_TILE = 100.0  # further than any two shapes are apart
OTHER_FORMAT = 1.0  # a config tuned for another format counts as of a shape e times as large: a guess, never measured


@dataclass(frozen=True, order=True)
class Format:
    """The storage of a weight and its activations, as far as it decides how many registers a kernel takes.

    group_size: weights along K per scale, 32, 64 or 128; 128 stands for more, too: one scale per block of K or fewer
    symmetric:  no zeros are stored
    half:       x is float16, not bfloat16
    """

    group_size: int = TUNED_GROUP_SIZE
    symmetric: bool = True
    half: bool = True


PLAIN = Format()  # what is tuned in full


@dataclass(frozen=True, order=True)
class LaunchConfig:
    """The cut of a kernel into programs.

    form:       the kernel: static (the simple one), splitk (weights wait in registers), or ring (the pipelined one:
                weights wait in shared memory); or a reference that is cut like splitk: load-only, fp16;
                or dequantise: the kernel that writes the weight out for torch's matmul
    block_m:    rows of x in one tile
    block_n:    output features in one tile, a multiple of 16
    block_k:    input features walked at a time: a multiple of 128 per warp, all requested at once; ring: 128 per warp
    split_k:    programs that share one tile along K
    num_warps:  warps of a program
    num_stages: static: depth of the software pipeline; ring: blocks that a warp has under way, fewer where they do
                not fit
    max_registers: of a thread, for the compiler; 0: its own choice
    raises:     ValueError naming the field and the constraint
    """

    form: str
    block_m: int
    block_n: int
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int
    max_registers: int = 0

    def __post_init__(self):
        if self.form not in (*FORMS, *YARDSTICKS, ROUTE):
            raise ValueError(f"form must be one of {', '.join((*FORMS, *YARDSTICKS, ROUTE))}, got {self.form!r}")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < (field.name != "max_registers"):
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
        if self._cut_by_warps and self.form != "ring" and self.num_stages != 1:
            raise ValueError(f"num_stages={self.num_stages} must be 1: {self.form} has no software pipeline")
        if self._cut_by_warps and self.form != "ring" and self.block_m % 8:
            raise ValueError(f"block_m={self.block_m} must be a multiple of 8, the columns of a tensor-core tile")
        if self.form == "ring" and (self.block_m > 8 or self.block_k != 128 * self.num_warps):
            raise ValueError(
                f"ring needs block_m of at most 8 and block_k of 128 a warp, got {self.block_m} and {self.block_k}"
            )
        if self.form == "static" and (self.split_k != 1 or self.block_k != 128):
            raise ValueError(f"static needs split_k=1 and block_k=128, got {self.split_k} and {self.block_k}")

    @property
    def _cut_by_warps(self) -> bool:
        return self.form in ("splitk", "ring", *YARDSTICKS)


STATIC = LaunchConfig("static", 16, 64, 128, 1, 4, 3)
DEQUANTISE = LaunchConfig(ROUTE, 1, 32, 128, 1, 4, 1)
# Four tiles of 16 tokens read the packed weight four times, about as many bytes as writing it out and reading it back
DEQUANTISE_FROM_M = 64


def select(
    problem: GemmProblem, gpu: str, form: str | None = None, symmetric: bool = True, half: bool = True
) -> tuple[LaunchConfig, str]:
    """The launch config of a problem on a GPU.

    problem:   M may be anything; above 16 the tiles of a fused kernel repeat along M
    gpu:       key of a GPU; one without a table, a MIG slice included, uses that of the nearest compute capability
    form:      only configs of this kernel; "fused": the fastest of the fused kernels; None: that, or dequantise where M
               reaches `dequantise_from`
    symmetric, half: the rest of the weight's and activations' Format
    returns:   (config, source); source is `table` (this problem was tuned), `predicted` (from the static model), `rule`
               (the nearest tuned problem by shape, M and format, its config cut to what K and M need), or `default`
    raises:    ValueError for a kernel that cannot compute the problem, or that the table has no config of
    """
    if form in ("static", ROUTE):
        return {"static": STATIC, ROUTE: DEQUANTISE}[form], "default"
    if form not in (None, "fused", *FORMS, *YARDSTICKS):
        raise ValueError(f"form must be one of fused, {', '.join((*FORMS, *YARDSTICKS, ROUTE))}, got {form!r}")
    if form is None:
        from_m, source = dequantise_from(problem, gpu)
        if problem.M >= from_m:
            return DEQUANTISE, source
    wanted = Format(TUNED_GROUP_SIZE if problem.group_size == -1 else problem.group_size, symmetric, half)
    rows, source = table(gpu)
    forms = FORMS if form in (None, "fused") else (form,)
    rows = [row for row in rows if row["config"].form in forms and row["format"] in (wanted, PLAIN)]

    def rank(row: dict) -> tuple[float, float]:
        other_format = OTHER_FORMAT if row["format"] != wanted else 0.0
        return apart(row["K"], row["N"], problem) + _apart_in_m(row["M"], problem.M) + other_format, row["latency_us"]

    for row in sorted(rows, key=rank):
        config = fitted(row["config"], problem)
        if row["format"] != wanted:
            # limits are tuned with it: more scales, zeros and BF16 take more registers, and would be kept in memory
            config = replace(config, max_registers=0)
        if serves(config, problem):
            tuned = GemmProblem(row["M"], row["N"], row["K"], wanted.group_size) == problem and row["format"] == wanted
            return config, source if tuned else "rule"
    form = form if form in forms else "splitk"
    raise ValueError(f"the table of {gpu} has no config of form {form} for M={problem.M} N={problem.N} K={problem.K}")


def dequantise_from(problem: GemmProblem, gpu: str) -> tuple[int, str]:
    """From how many tokens on dequantising first is faster than the fused kernel, and where that comes from.

    returns: (M, source): `table` or `predicted` where this K x N was timed, `rule` for the nearest one that was, and
             `default` where the table says nothing
    """
    rows, source = crossovers(gpu)
    if not rows:
        return DEQUANTISE_FROM_M, "default"
    row = min(rows, key=lambda row: apart(row["K"], row["N"], problem))
    timed = (row["K"], row["N"], TUNED_GROUP_SIZE) == (problem.K, problem.N, problem.group_size)
    return row["M"], source if timed else "rule"


@functools.cache
def crossovers(gpu: str) -> tuple[list[dict], str]:
    """The measured crossovers of a GPU as (rows, source): from M on, K x N is multiplied after dequantising it."""
    content, source = _content(gpu)
    return content.get("dequantise_from_m", []), source


@functools.cache
def table(gpu: str) -> tuple[list[dict], str]:
    """The tuned rows of a GPU as (rows, source), each as `write_table` takes it; latency_us is 0 where predicted."""
    content, source = _content(gpu)
    return [_parsed(row) for row in content["rows"]], source


def tables() -> list[str]:
    """Keys of the GPUs that have a table."""
    return sorted(file.name.removesuffix(".json") for file in _folder().iterdir() if file.name.endswith(".json"))


def write_table(path, rows: list[dict], source: str, about: str, dequantise_from_m: list[dict] = ()) -> None:
    """Write a table file: one row per line, so that a new tuning reads well as a diff.

    rows:              M, K, N, latency_us, config: LaunchConfig and format: Format, which is left out where it is PLAIN
    dequantise_from_m: K, N and the M from which on dequantising first is faster
    """
    parts = [f'"source": {json.dumps(source)}', f'"about": {json.dumps(about)}']
    if dequantise_from_m:
        parts.append(_lines("dequantise_from_m", dequantise_from_m))
    parts.append(_lines("rows", [_plain_data(row) for row in rows]))
    path.write_text("{\n " + ",\n ".join(parts) + "\n}\n", encoding="utf-8")


def read_table(path) -> tuple[list[dict], str, list[dict]]:
    """The rows of a table file, its source and its crossovers, as `write_table` takes them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [_parsed(row) for row in content["rows"]]
    return rows, content["source"], content.get("dequantise_from_m", [])


def _plain_data(row: dict) -> dict:
    row = row | {"format": asdict(row["format"]), "config": asdict(row["config"])}
    return {name: value for name, value in row.items() if name != "format" or value != asdict(PLAIN)}


def _parsed(row: dict) -> dict:
    return row | {"format": Format(**row.get("format", {})), "config": LaunchConfig(**row["config"])}


def _lines(name: str, rows: list[dict]) -> str:
    return f'"{name}": [\n' + ",\n".join("  " + json.dumps(row) for row in rows) + "\n ]"


def _content(gpu: str) -> tuple[dict, str]:
    """The table file that serves a GPU, and its source: `rule` where it is another GPU's."""
    name = gpu if (_folder() / f"{gpu}.json").is_file() else _nearest_table(gpu)
    content = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    return content, content["source"] if name == gpu else "rule"


def apart(K: int, N: int, problem: GemmProblem) -> float:
    """The distance of a weight [N, K] from a problem's: K and N count alike, on a log scale."""
    return abs(math.log(K / problem.K)) + abs(math.log(N / problem.N))


def fitted(config: LaunchConfig, problem: GemmProblem) -> LaunchConfig:
    """A config of another problem, cut to this one: no warp, share or request without a block of K, no idle row of x.

    The weight-read bound is left as it is: its configs are tuned for what they are used on.
    """
    if config.form not in ("splitk", "ring", "fp16"):
        return config
    blocks = -(-problem.K // 128)
    num_warps = min(config.num_warps, 1 << (blocks - 1).bit_length())
    steps = -(-blocks // num_warps)
    split_k = min(config.split_k, steps)
    at_once = min(config.block_k // (128 * config.num_warps), -(-steps // split_k))
    block_m = config.block_m
    if config.form == "ring" and problem.M <= 8:
        block_m = 1 << (problem.M - 1).bit_length()
    return replace(config, block_m=block_m, block_k=128 * num_warps * at_once, split_k=split_k, num_warps=num_warps)


def serves(config: LaunchConfig, problem: GemmProblem) -> bool:
    """Tell whether a kernel can compute a problem with this config: pipelined and load-only have no masks."""
    if config.form == "ring":
        return problem.M <= config.block_m and problem.N % config.block_n == 0 and problem.K % 128 == 0
    if config.form == "load-only":
        return problem.N % config.block_n == 0 and problem.K % config.block_k == 0
    return True


def _folder():
    return resources.files("tinygemm.kernel") / "configs"


def _nearest_table(gpu: str) -> str:
    major, minor = compute_capability(gpu) or (8, 0)

    def distance(key: str) -> tuple[int, int]:
        """Generations differ by more than their members: 8.9 is nearer to 8.6 than to 9.0."""
        other_major, other_minor = GPUS[key].compute_capability
        return abs(other_major - major), abs(other_minor - minor)

    return min(tables(), key=distance)


def _apart_in_m(tuned_m: int, M: int) -> float:
    """The distance between token counts, in units of the distance between shapes.

    Little, as long as both take a tile of up to 8 rows of x, or both one of 16; from tile to tile nothing carries over.
    """
    bucket = next((m for m in M_BUCKETS if M <= m), M_BUCKETS[-1])
    other_tile = (tuned_m > 8) != (bucket > 8)
    return 0.2 * abs(math.log(tuned_m / bucket)) + (OTHER_TILE if other_tile else 0.0)
