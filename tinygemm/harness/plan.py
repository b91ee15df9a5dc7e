"""The plan of a sweep: its suites, their settings in common, and the groups of cases that they fall into."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from tinygemm import problem, runs
from tinygemm.harness import registry, timing
from tinygemm.harness import suites as catalogue
from tinygemm.harness.suites import COUNTER_BACKENDS, COUNTER_PROBLEMS, REP, REPORT_BACKENDS, Suite
from tinygemm.problem import GemmProblem
from tinygemm.text import integers

PARAMETERS = ("m_list", "shapes", "group_size", "backends", "suites", "rep", "warmup", "counters")


@dataclass(frozen=True)
class SweepPlan:
    """A plan as plain values: a sweep of the user's own, or the suites of a recorded run, or both.

    problems:            of the user's own sweep: what to multiply
    symmetric:           symmetric quantisation (zero = 8)
    backends:            of the user's own sweep: names from registry.BACKENDS and registry.CEILINGS
    launches, l2_states: of the user's own sweep: which of runs.LAUNCHES and runs.L2_STATES
    rep:                 samples per case of it
    suites:              what else to measure; a case that several ask for is measured once
    warmup:              rounds before the samples that are not kept
    seed:                of weights and activations
    verify:              compare with float64 before timing; a recorded run always does
    counters:            profile counter_backends at counter_problems afterwards, where ncu may read counters
    raises:              ValueError naming the field
    """

    problems: tuple[GemmProblem, ...] = ()
    symmetric: bool = True
    backends: tuple[str, ...] = REPORT_BACKENDS
    launches: tuple[str, ...] = ("graph",)
    l2_states: tuple[str, ...] = ("cold",)
    rep: int = REP
    suites: tuple[Suite, ...] = ()
    warmup: int = 3
    seed: int = 0
    verify: bool = True
    counters: bool = True
    counter_backends: tuple[str, ...] = COUNTER_BACKENDS
    counter_problems: tuple[GemmProblem, ...] = COUNTER_PROBLEMS

    def __post_init__(self):
        _ = self.parts  # raises where the user's own sweep cannot be
        known = registry.known_names()
        if unknown := sorted(set(self.counter_backends) - set(known)):
            raise ValueError(f"unknown backend {', '.join(unknown)}; known: {', '.join(known)}")
        if type(self.warmup) is not int or self.warmup < 0:
            raise ValueError(f"warmup must be an integer of at least 0, got {self.warmup!r}")

    @property
    def parts(self) -> tuple[Suite, ...]:
        """The user's own sweep as a suite, then the others."""
        if self.suites and not self.problems:
            return self.suites
        modes = tuple(itertools.product(self.launches, self.l2_states))
        for name, allowed in (("launches", runs.LAUNCHES), ("l2_states", runs.L2_STATES)):
            if not getattr(self, name):
                raise ValueError(f"{name} must be some of {', '.join(allowed)}, got none")
        return (Suite("own", self.problems, self.backends, modes, rep=self.rep), *self.suites)

    @classmethod
    def from_parameters(
        cls,
        m_list: str = "",
        shapes: str = "",
        group_size: int = 128,
        backends: str = "",
        suites: str = "",
        rep: int = REP,
        **others,
    ) -> SweepPlan:
        """A plan of suites from the parameters of a notebook or a YAML file; "" stands for what the report measures.

        m_list:   token counts of the suite `decode`, "1,2,4"
        shapes:   its weights as K,N pairs, "4096,1024;4096,4096"
        backends: names, "fp16-cublas,int4"
        suites:   names, "decode,models"
        rep:      samples per case of `decode`; no suite takes more
        others:   warmup, counters
        raises:   ValueError naming the parameter and what it must look like
        """
        if unknown := sorted(set(others) - set(PARAMETERS)):
            raise ValueError(f"unknown parameter {', '.join(unknown)}; known: {', '.join(PARAMETERS)}")
        tokens = integers(str(m_list), "m_list") if m_list else problem.DECODE_M
        pairs = _pairs(shapes) if shapes else problem.REPORT_SHAPES
        decode = catalogue.decode_suites(tokens, pairs, group_size, _names(backends) or REPORT_BACKENDS, rep)
        parts = catalogue.chosen(_names(suites) if suites else catalogue.NAMES, decode, rep)
        return cls(suites=parts, counter_problems=_profiled(parts, group_size), **others)

    def parameters(self) -> dict:
        """The plan as it stands in provenance.json; problems as lists of M,K,N by group size."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("problems", "backends", "launches", "l2_states", "rep"):
            del shared[name]
        suites = [dataclasses.asdict(part) | {"problems": _shape_lists(part.problems)} for part in self.parts]
        return shared | {"suites": suites, "counter_problems": _shape_lists(self.counter_problems)}


@dataclass(frozen=True)
class Group:
    """One unit of work: cases that are timed interleaved and written together.

    problem: None for a group that is no product
    word:    stands for the problem in the case ids
    rep:     samples per case
    """

    problem: GemmProblem | None
    word: str
    launch: str
    l2_state: str
    backends: tuple[str, ...]
    rep: int = REP
    operands: str = field(default="random", kw_only=True)

    @property
    def case_ids(self) -> list[str]:
        return [runs.case_id(name, self.word, self.launch, self.l2_state, self.operands) for name in self.backends]

    @property
    def rotation(self) -> str:
        """The cache state whose copies of the weight the calls rotate over; do_bench flushes the L2 by itself."""
        return "hot" if self.launch == "do_bench" else self.l2_state

    @property
    def product(self) -> GemmProblem:
        """The problem of a group that has one; raises ValueError for the copy and the empty node."""
        if self.problem is None:
            raise ValueError(f"{self.word} is no product")
        return self.problem

    @property
    def weight(self) -> tuple | None:
        """The key that groups with the same weight have in common."""
        each = self.problem
        return None if each is None else (each.K, each.N, each.group_size, self.operands)


def groups(plan: SweepPlan) -> list[Group]:
    """All groups of a plan in the order they are measured: copy and empty node, then weight by weight, M by M.

    What several suites ask for is one group: their backends together, and the highest of their numbers of samples.
    """
    found: dict[tuple, dict] = {}
    for part in plan.parts:
        for key, names in _keys(part):
            entry = found.setdefault(key, {"names": {}, "rep": part.rep})
            entry["names"] |= dict.fromkeys(names)
            entry["rep"] = max(entry["rep"], part.rep)
    return [
        Group(each, word, launch, l2_state, tuple(found[key]["names"]), found[key]["rep"], operands=operands)
        for key in sorted(found, key=_order)
        for each, word, launch, l2_state, operands in [key]
    ]


def _keys(part: Suite) -> Iterable[tuple[tuple, tuple[str, ...]]]:
    """The keys that tell the groups of a suite apart, with the backends of each."""
    graphs = [launch for launch in timing.GRAPHS if (launch, "cold") in part.modes and part.operands == "random"]
    if graphs:  # what is compared with an ideal is compared with the primary one
        graphs = list(dict.fromkeys(["graph", *graphs]))
    for launch, name in itertools.product(graphs, part.backends):
        if name in registry.CEILINGS:
            yield (None, registry.CEILINGS[name].word, launch, "cold", "random"), (name,)
    products = tuple(name for name in part.backends if name in registry.BACKENDS)
    if products:
        for each, (launch, l2_state) in itertools.product(part.problems, part.modes):
            yield (each, str(each), launch, l2_state, part.operands), products


def _order(key: tuple) -> tuple:
    each, word, launch, l2_state, operands = key
    mode = runs.LAUNCHES.index(launch), runs.L2_STATES.index(l2_state)
    if each is None:
        words = [ceiling.word for ceiling in registry.CEILINGS.values()]
        return (0, words.index(word), *mode)
    return (1, each.K, each.N, each.group_size, runs.OPERANDS.index(operands), each.M, *mode)


def _profiled(parts: tuple[Suite, ...], group_size: int) -> tuple[GemmProblem, ...]:
    """The timed problems to profile: the report's choice, with the fewest tokens there are in place of M = 1; where
    none of it is timed, the smallest and the largest weight."""
    timed = dict.fromkeys(each for part in parts for each in part.problems)
    fewest = min(each.M for each in timed)
    wanted = [GemmProblem(fewest if p.M == 1 else p.M, p.N, p.K, group_size) for p in COUNTER_PROBLEMS]
    if chosen := tuple(each for each in dict.fromkeys(wanted) if each in timed):
        return chosen
    candidates = sorted((each for each in timed if each.M == fewest), key=lambda each: each.N * each.K)
    return tuple(dict.fromkeys((candidates[0], candidates[-1])))


def _shape_lists(problems: tuple[GemmProblem, ...]) -> dict[str, str]:
    lists: dict[str, list[str]] = {}
    for each in problems:
        lists.setdefault(str(each.group_size), []).append(f"{each.M},{each.K},{each.N}")
    return {group_size: ";".join(shapes) for group_size, shapes in lists.items()}


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    """Pairs K,N of `K,N;K,N`."""
    pairs = []
    for item in filter(None, (part.strip() for part in text.split(";"))):
        numbers = integers(item, "shapes")
        if len(numbers) != 2:
            raise ValueError(f"shapes: {item!r} is not K,N (two integers separated by a comma)")
        pairs.append(numbers)
    if not pairs:
        raise ValueError(f"shapes must be K,N;K,N;..., got {text!r}")
    return tuple(dict.fromkeys(pairs))
