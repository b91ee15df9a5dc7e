"""The cases of a decode step: which models, backends, batches and contexts, in the order of their importance."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tinygemm.problem import GemmProblem
from tinygemm.step.architecture import ARCHITECTURES, Architecture, architecture_named
from tinygemm.step_rows import BACKENDS

HOSTS = {"lean": ("fused", "equations"), "transformers": ("sdpa",)}  # and their kinds of attention, the usual first
BASELINE = "fp16-cublas"  # what every other backend is timed against, round by round
COMPARED = (BASELINE, "int4", "int4-lm-head")
BACKENDS_OF = {"lean": BACKENDS, "transformers": COMPARED}
INT4_BITS = GemmProblem(1, 128, 128).int4_bits_per_weight()  # in groups of 128, an FP16 scale each
BITS = {"fp16-cublas": 16.0, "fp16-triton": 16.0, "aten-int4mm": 4.25}  # others: INT4_BITS
BUDGET_S = 600  # for the steps of a recorded run
# room for what a step allocates, for what the libraries set up, and for a weight that is dequantised on the way
WORKING_BYTES = 4 * 10**9


@dataclass(frozen=True)
class StepCase:
    """One decode step to measure. Fields as in step_rows.Step.

    attention: of HOSTS[host]; empty: the usual one
    """

    model: str
    backend: str
    batch: int
    context: int
    host: str = "lean"
    attention: str = ""
    compiled: bool = True
    compiler_overlap: bool = True
    tp: int = 1

    def __post_init__(self):
        architecture_named(self.model)
        for name, known in (("backend", BACKENDS), ("host", tuple(HOSTS))):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        if not self.attention:
            object.__setattr__(self, "attention", HOSTS[self.host][0])
        for name, known in (("backend", BACKENDS_OF[self.host]), ("attention", HOSTS[self.host])):
            if getattr(self, name) not in known:
                raise ValueError(f"host {self.host} has no {name} {getattr(self, name)!r}; it has {', '.join(known)}")
        for name in ("batch", "context", "tp"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)!r}")
        self.arch  # noqa: B018  raises where tp does not divide the model
        if self.tp > 1 and self.host != "lean":
            raise ValueError(f"host {self.host} has no tp {self.tp}; host lean has")

    @property
    def whole(self) -> Architecture:
        return architecture_named(self.model)

    @property
    def arch(self) -> Architecture:
        """The part that one GPU holds."""
        return self.whole.shard(self.tp)

    @property
    def case_id(self) -> str:
        plain = {f.name: f.default for f in fields(StepCase)} | {"attention": HOSTS[self.host][0]}
        unusual = {
            "attention": self.attention,
            "compiled": "" if self.compiled else "eager",
            "compiler_overlap": "" if self.compiler_overlap else "no-compiler-overlap",
            "tp": f"tp{self.tp}",
        }
        words = [word for name, word in unusual.items() if getattr(self, name) != plain[name]]
        parts = (self.model, f"b{self.batch}", f"c{self.context}", self.host, self.backend)
        return "/".join([*parts, *words])

    @property
    def baseline(self) -> StepCase:
        """The FP16 library on the same host, compiled alike."""
        changed = {f.name: getattr(self, f.name) for f in fields(self)} | {"backend": BASELINE}
        return StepCase(**changed)


def weight_bytes(arch: Architecture, backend: str) -> int:
    """Bytes of the layers' weights, scales and biases that one step reads."""
    weights = sum(N * K for N, K in arch.projections().values()) * arch.model.layers
    biases = 2 * arch.qkv_features * arch.model.layers if arch.qkv_bias else 0
    return round(weights * BITS.get(backend, INT4_BITS) / 8) + biases


def lm_head_bytes(case: StepCase) -> int:
    """Bytes of lm_head that one step reads on one GPU."""
    bits = INT4_BITS if case.backend == "int4-lm-head" else 16
    return round(case.arch.model.vocab * case.arch.model.hidden * bits / 8) // case.tp


def kv_bytes(case: StepCase) -> int:
    """Bytes of keys and values that one step reads."""
    m = case.arch.model
    return 2 * 2 * m.layers * m.kv_heads * m.head_dim * case.context * case.batch


def needed_bytes(case: StepCase) -> int:
    """The memory that measuring a case takes: its weights beside the packed ones that it is checked against, embedding
    and lm_head, the cache (in float16 for the reference, too), the logits, and room to work in."""
    arch = case.arch
    table = 2 * arch.model.vocab * arch.model.hidden
    own = 0 if case.backend.startswith("int4") else weight_bytes(arch, case.backend)
    other_dtype = case.backend == "aten-int4mm"
    cache = kv_bytes(case) * (2 if other_dtype else 1)
    logits = 12 * case.batch * arch.model.vocab
    tables = (4 if other_dtype else 2) * table + round(table * INT4_BITS / 16)
    repeated = 0
    if case.host == "transformers":  # copies keys and values of a layer for every head of q
        repeated = 2 * kv_bytes(case) // arch.model.layers * (arch.model.heads // arch.model.kv_heads)
    whole = weight_bytes(case.whole, "int4") if case.tp > 1 else 0  # for the reference, of which a share is cut later
    return own + weight_bytes(arch, "int4") + tables + cache + logits + repeated + whole + WORKING_BYTES


def matrix(tp: int = 1) -> list[StepCase]:
    """The cases of the report, the most important first: a run that ends early has measured that."""
    if tp > 1:
        found = [StepCase("llama-3-8b", name, batch, 512, tp=tp) for batch in (1, 8) for name in COMPARED]
        return found + [StepCase("llama-3-70b", name, batch, 512, tp=tp) for batch in (1, 8) for name in COMPARED]
    llama = [b for b in BACKENDS if b != "gemlite"]
    found = [StepCase("llama-3-8b", name, batch, 512) for batch in (1, 8) for name in llama]
    found += [  # what a token gains by one kernel of attention, and by overlap of the compiler's kernels
        StepCase("llama-3-8b", name, batch, 512, **change)
        for batch in (1, 8)
        for change in ({"attention": "equations"}, {"compiler_overlap": False})
        for name in (BASELINE, "int4")
    ]
    found += [StepCase("llama-3-8b", name, batch, 512) for batch in (16, 2, 4) for name in llama]
    others = [key for key in ("qwen3-0.6b", "qwen3-8b", "qwen2.5-32b") if key in ARCHITECTURES]
    found += [StepCase(key, name, batch, 512) for key in others for batch in (1, 8) for name in COMPARED]
    found += [StepCase("llama-3-70b", name, batch, 512) for batch in (1, 8) for name in COMPARED[1:]]
    hosted = [(name, True) for name in COMPARED] + [(name, False) for name in COMPARED[:2]]
    found += [  # the same steps in the model that people run
        StepCase("llama-3-8b", name, batch, 512, host="transformers", compiled=compiled)
        for batch in (1, 8)
        for name, compiled in hosted
    ]
    found += [StepCase("llama-3-8b", name, batch, 8192) for batch in (1, 8, 16, 2, 4) for name in llama]
    found += [StepCase("llama-3-8b", "gemlite", batch, 512) for batch in (1, 8)]
    return found


def asked_in(parameters: dict) -> float | None:
    """The seconds for decode steps that parameters of a run ask for, None where they ask for none; taken out of them.

    step:        true or false
    step_budget: seconds after which no case starts; 0: no end
    raises:      ValueError naming the parameter and what it must look like
    """
    wanted, budget = parameters.pop("step", False), parameters.pop("step_budget", BUDGET_S)
    if not isinstance(wanted, bool):
        raise ValueError(f"step must be true or false, got {wanted!r}")
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 <= budget < float("inf"):
        raise ValueError(f"step_budget must be a number of seconds, 0 for no end, got {budget!r}")
    return budget if wanted else None


def chosen(
    model: str = "",
    batches: tuple[int, ...] = (),
    contexts: tuple[int, ...] = (),
    backends: tuple[str, ...] = (),
    host: str = "lean",
    **others,
) -> list[StepCase]:
    """The cases that a user asks for: of each of what is given, every combination; of what is not, the usual.

    others: compiled and compiler_overlap of all of them
    raises: ValueError naming what is unknown or not possible
    """
    return [
        StepCase(model, name, batch, context, host, **others)
        for context in contexts or (512,)
        for batch in batches or (1, 8)
        for name in backends or BACKENDS_OF[host]
    ]
