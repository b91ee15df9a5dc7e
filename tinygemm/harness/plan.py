"""What a sweep measures: problems, backends, launch modes and cache states, and the groups they fall into."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tinygemm import problem, runs
from tinygemm.harness import backends as registry
from tinygemm.problem import GemmProblem

REPORT_BACKENDS = (
    "fp16-cublas",
    "fp16-triton",
    "dequant-fp16",
    "dequant-only",
    "int4-static",
    "int4",
    "int4-serial",
    "int4-no-dequant",
    "int4-load-only",
    "aten-int4mm",
    "copy",
    "empty-node",
)
NARROW, WIDE = (4096, 1024), (4096, 14336)  # the two (K, N) that the counters compare


@dataclass(frozen=True)
class SweepPlan:
    """What to measure, as plain values.

    problems:            what to multiply
    symmetric:           symmetric quantisation (zero = 8)
    backends:            names from backends.BACKENDS and backends.CEILINGS
    launches, l2_states: which of runs.LAUNCHES and runs.L2_STATES
    rep, warmup:         samples per case, and rounds before them that are not kept
    seed:                of weights and activations
    verify:              compare with float64 before timing; a recorded run always does
    counters:            profile counter_backends at counter_problems afterwards, where ncu may read counters
    raises:              ValueError naming the field
    """

    problems: tuple[GemmProblem, ...] = tuple(
        GemmProblem(M, N, K) for K, N in problem.REPORT_SHAPES for M in problem.DECODE_M
    )
    symmetric: bool = True
    backends: tuple[str, ...] = REPORT_BACKENDS
    launches: tuple[str, ...] = runs.LAUNCHES
    l2_states: tuple[str, ...] = runs.L2_STATES
    rep: int = 25
    warmup: int = 3
    seed: int = 0
    verify: bool = True
    counters: bool = True
    counter_backends: tuple[str, ...] = ("fp16-cublas", "int4-static", "int4")
    counter_problems: tuple[GemmProblem, ...] = (GemmProblem(1, NARROW[1], NARROW[0]), GemmProblem(1, WIDE[1], WIDE[0]))

    def __post_init__(self):
        if not self.problems:
            raise ValueError("problems is empty: a sweep needs at least one")
        known = registry.known_names()
        for name in ("backends", "counter_backends"):
            if unknown := sorted(set(getattr(self, name)) - set(known)):
                raise ValueError(f"unknown backend {', '.join(unknown)}; known: {', '.join(known)}")
        if not self.backends:
            raise ValueError(f"backends is empty: choose from {', '.join(known)}")
        for name, allowed in (("launches", runs.LAUNCHES), ("l2_states", runs.L2_STATES)):
            values = getattr(self, name)
            if not values or not set(values) <= set(allowed):
                raise ValueError(f"{name} must be some of {', '.join(allowed)}, got {', '.join(values) or 'none'}")
        for name, least in (("rep", 1), ("warmup", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")

    @classmethod
    def from_parameters(
        cls, m_list: str = "", shapes: str = "", group_size: int = 128, backends: str = "", **others
    ) -> SweepPlan:
        """A plan from the parameters of a notebook or a YAML file; "" stands for what the report measures.

        m_list:   token counts, "1,2,4"
        shapes:   weights as K,N pairs, "4096,1024;4096,4096"
        backends: names, "fp16-cublas,int4"
        others:   rep, warmup, counters
        raises:   ValueError naming the parameter and what it must look like
        """
        if unknown := sorted(set(others) - {"rep", "warmup", "counters"}):
            raise ValueError(
                f"unknown parameter {', '.join(unknown)}; known: m_list, shapes, "
                "group_size, backends, rep, warmup, counters"
            )
        tokens = _integers(str(m_list), "m_list") if m_list else problem.DECODE_M
        pairs = _pairs(shapes) if shapes else problem.REPORT_SHAPES
        names = tuple(name.strip() for name in backends.split(",") if name.strip()) or REPORT_BACKENDS
        problems = tuple(GemmProblem(M, N, K, group_size) for K, N in pairs for M in tokens)
        return cls(problems, backends=names, counter_problems=_narrow_and_wide(problems), **others)

    def parameters(self) -> dict:
        """The plan as it stands in provenance.json; problems as lists of M,K,N by group size."""
        return dataclasses.asdict(self) | {
            "problems": _shape_lists(self.problems),
            "counter_problems": _shape_lists(self.counter_problems),
        }


@dataclass(frozen=True)
class Group:
    """One unit of work: cases that are timed interleaved and written together.

    problem: None for a group that is no product
    word:    stands for the problem in the case ids
    """

    problem: GemmProblem | None
    word: str
    launch: str
    l2_state: str
    backends: tuple[str, ...]

    @property
    def case_ids(self) -> list[str]:
        return [runs.case_id(name, self.word, self.launch, self.l2_state) for name in self.backends]


def groups(plan: SweepPlan) -> list[Group]:
    """All groups of a plan in the order they are measured: copy and empty node, then weight by weight, M by M."""
    found = []
    if "graph" in plan.launches and "cold" in plan.l2_states:
        ceilings = [registry.CEILINGS[name] for name in plan.backends if name in registry.CEILINGS]
        found += [Group(None, ceiling.word, "graph", "cold", (ceiling.name,)) for ceiling in ceilings]
    products = tuple(name for name in plan.backends if name in registry.BACKENDS)
    modes = [(launch, l2_state) for launch in plan.launches for l2_state in plan.l2_states]
    if products:
        for each in sorted(set(plan.problems), key=lambda p: (p.K, p.N, p.group_size, p.M)):
            found += [Group(each, str(each), launch, l2_state, products) for launch, l2_state in modes]
    return found


def _narrow_and_wide(problems: tuple[GemmProblem, ...]) -> tuple[GemmProblem, ...]:
    """What to profile at the fewest tokens: the report's narrow and wide shape, or the smallest and largest weight."""
    fewest = min(p.M for p in problems)
    candidates = sorted((p for p in problems if fewest == p.M), key=lambda p: p.N * p.K)
    chosen = [p for p in candidates if (p.K, p.N) in (NARROW, WIDE)] or [candidates[0], candidates[-1]]
    return tuple(dict.fromkeys(chosen))


def _shape_lists(problems: tuple[GemmProblem, ...]) -> dict[str, str]:
    lists: dict[str, list[str]] = {}
    for each in problems:
        lists.setdefault(str(each.group_size), []).append(f"{each.M},{each.K},{each.N}")
    return {group_size: ";".join(shapes) for group_size, shapes in lists.items()}


def _integers(text: str, name: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{name} must be positive integers separated by commas, got {text!r}")
    return numbers


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    """Pairs K,N of `K,N;K,N`."""
    pairs = []
    for item in filter(None, (part.strip() for part in text.split(";"))):
        numbers = _integers(item, "shapes")
        if len(numbers) != 2:
            raise ValueError(f"shapes: {item!r} is not K,N (two integers separated by a comma)")
        pairs.append(numbers)
    if not pairs:
        raise ValueError(f"shapes must be K,N;K,N;..., got {text!r}")
    return tuple(dict.fromkeys(pairs))
