"""Decode steps measured case by case: built, compared with the reference, captured, timed, profiled, written."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

import torch

from tinygemm.harness import registry, timing
from tinygemm.harness.choose import SweepStoppedError
from tinygemm.kernel import fastpath
from tinygemm.step import build, cases, profile
from tinygemm.step.cases import BASELINE, StepCase
from tinygemm.step.products import BACKENDS
from tinygemm.step.ranks import Alone
from tinygemm.step.weights import Weights, random_cache
from tinygemm.step_rows import COPY, Step, StepKernel, StepSample

REP, WARMUP = 25, 3
STEPS_PER_SAMPLE = 4  # back to back, as a model decodes
# norm of the logits' error over their norm. With 24 layers and a context of 64, rounding costs 0.0017 in FP16 and 0.015
# in BF16. Faults of one layer cost, in the first and in the last: two KV heads' values swapped 0.070 and 0.048, their
# keys 0.054 and 0.036, two groups' scales of o_proj 0.068 and 0.044, of qkv_proj 0.055 and 0.038, of down_proj 0.20 and
# 0.14; a position off by one 0.061. A fault of a kernel is one of all layers, and costs more
MAX_REL_ERR = {torch.float32: 0.01, torch.float16: 0.01, torch.bfloat16: 0.06}
TOKENS_SEED = 3
NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass
class Captured:
    """A step that is ready to be timed."""

    replay: Callable[[], object]
    model: object
    addresses: tuple[object, ...]  # tokens, position and results: a graph knows their addresses, and keeps none alive
    rel_err: float
    argmax_agreement: float
    compiled: bool
    message: str
    setup_s: float
    memory_bytes: int | None

    @property
    def for_timing(self) -> timing.Replay:
        def run() -> None:
            for _ in range(STEPS_PER_SAMPLE):
                self.replay()

        return timing.Replay(run, STEPS_PER_SAMPLE, 1)


class StepMismatchError(ValueError):
    """A step whose logits are not those of the reference; not timed.

    errors: relative error, agreement of argmax; None where there is no such number
    """

    def __init__(self, message: str, errors: tuple[float | None, float | None] = (None, None)):
        super().__init__(message)
        self.errors = errors


@dataclass
class Bench:
    """The clock and memory of measured steps, and what is kept from one case to the next.

    clock:        timing.CudaClock
    device:       of the weights
    memory_bytes: of the GPU
    profiler:     replay -> launches, see profile.profiled; None: no profile
    ranks:        the processes that share a step
    profile_fault: why steps are not profiled, once that has failed
    """

    clock: object
    device: str = "cuda"
    memory_bytes: int = 0
    profiler: Callable | None = profile.profiled
    rep: int = REP
    now: Callable[[], float] = time.monotonic
    ranks: Alone = field(default_factory=Alone)
    weights: Weights | None = None
    caches: dict = field(default_factory=dict)
    reference: torch.Tensor | None = None
    held: tuple[object, ...] = (None,) * 2  # what the cache belongs to; what the baseline belongs to
    baseline: Captured | None = None
    profile_fault: str = ""


def measure(bench: Bench, case: StepCase) -> Iterator[tuple[Step, list[StepSample]] | list[StepKernel]]:
    """Measure one case; yields its row and samples as soon as there are any, then the kernels of its profile.

    A case that fails is a row that says so. raises: SweepStoppedError when the GPU no longer answers, after that row
    """
    try:
        captured, row, samples = _timed(bench, case)
    except Exception as error:  # of a peer, a compiler or the machine: recorded, and the next case goes on
        _release(bench, error)
        yield _failed(bench, case, error), []
        _require_a_working_gpu(bench, case)
        return
    yield row, samples
    if bench.profiler is not None and not bench.profile_fault:
        try:
            found = bench.ranks.agree(lambda: bench.profiler(captured.replay))
            yield profile.kernels_of(case.case_id, found, profile.REPLAYS)
        except Exception as error:  # the times are worth keeping; what fails once fails for every case
            bench.profile_fault = first_line(error)


def measure_copy(bench: Bench) -> tuple[Step, list[StepSample]]:
    """The copy, whose bandwidth is what the bytes of a step are compared with."""
    copy = registry.CEILINGS[COPY]
    call = copy.make()
    copy.check(call)
    replay = timing.prepare([call], "graph", bench.clock, copy.min_calls)
    times, readings = timing.interleave({COPY: replay}, "graph", bench.rep, WARMUP, bench.clock)
    samples = [StepSample(COPY, i, us) for i, us in enumerate(times[COPY])]
    row = Step(
        case_id=COPY, model="", backend=COPY, host="", batch=0, context=0, tp=1, lm_head="", attention="",
        compiled="no", compiler_overlap="no", status="ok", n_samples=len(samples), n_steps=replay.n_calls,
        weight_bytes=copy.bytes_min, **_readings(readings),
    )  # fmt: skip
    return row, samples


def _timed(bench: Bench, case: StepCase) -> tuple[Captured, Step, list[StepSample]]:
    bench.ranks.agree(lambda: _refuse(bench, case))
    bench.ranks.agree(lambda: _turn_to(bench, case))
    alone = case.backend == BASELINE or not fits_beside_baseline(bench, case)
    if alone:
        _drop_baseline(bench)
        bench.weights.drop_all_but({BACKENDS[case.backend].form})
    elif bench.held[1] != case.baseline.case_id:
        _drop_baseline(bench)
        bench.held = (bench.held[0], case.baseline.case_id)
        try:
            bench.baseline = bench.ranks.agree(lambda: capture(bench, case.baseline))
        except Exception:  # its own case says why; the others are timed alone
            bench.baseline = None
            _collect(bench)
    captured = bench.ranks.agree(lambda: capture(bench, case))
    if case.backend == BASELINE:
        bench.baseline, bench.held = captured, (bench.held[0], case.case_id)
    replays = {case.backend: captured.for_timing}
    if bench.baseline is not None and case.backend != BASELINE:
        replays[BASELINE] = bench.baseline.for_timing
    if case.tp > 1:  # most rounds of a step then begin together on all GPUs
        replays["meet"] = timing.Replay(bench.ranks.meet, 1, 1)
    times, readings = timing.interleave(replays, "graph", bench.rep, WARMUP, bench.clock)
    alone = case.backend == BASELINE or BASELINE not in replays
    beside = [None] * bench.rep if alone else times[BASELINE]
    pairs = enumerate(zip(times[case.backend], beside, strict=True))
    samples = [StepSample(case.case_id, i, us, fp16) for i, (us, fp16) in pairs]
    row = _row(
        bench, case, "ok", captured.message, compiled=captured.compiled, n_samples=len(samples),
        n_steps=STEPS_PER_SAMPLE, rel_err=captured.rel_err, argmax_agreement=captured.argmax_agreement,
        memory_bytes=captured.memory_bytes, setup_s=captured.setup_s, **_readings(readings),
    )  # fmt: skip
    return captured, row, samples


def fits_beside_baseline(bench: Bench, case: StepCase) -> bool:
    """Tell whether the FP16 model fits into memory beside a case, so that both can be timed round by round."""
    both = cases.needed_bytes(case) + cases.weight_bytes(case.arch, BASELINE)
    if case.backend == "fp16-triton":  # the same weights
        both = cases.needed_bytes(case)
    return both <= bench.memory_bytes


def _refuse(bench: Bench, case: StepCase) -> None:
    """Raise before anything is allocated where a case cannot be."""
    if reason := BACKENDS[case.backend].unsupported(case.batch):
        raise NotImplementedError(reason)
    if case.tp != bench.ranks.world:
        raise NotImplementedError(f"tp={case.tp} needs {case.tp} processes, and there are {bench.ranks.world}")
    if (needed := cases.needed_bytes(case)) > bench.memory_bytes:
        raise MemoryError(
            f"{case.model} with {case.backend}, batch {case.batch} and context {case.context} needs about "
            f"{needed / 1e9:.0f} GB, and this GPU has {bench.memory_bytes / 1e9:.0f} GB"
        )


def _turn_to(bench: Bench, case: StepCase) -> None:
    """Let go of what belongs to another model, batch or context, and compute the reference of this one."""
    if bench.weights is None or (bench.weights.arch, bench.weights.world) != (case.whole, case.tp):
        _drop_baseline(bench)
        bench.weights, bench.caches, bench.held = None, {}, (None, None)
        _collect(bench)
        bench.weights = Weights(case.whole, bench.device, rank=bench.ranks.rank, world=case.tp)
    key = (case.model, case.batch, case.context)
    if bench.held[0] != key:
        _drop_baseline(bench)
        bench.caches, bench.reference, bench.held = {}, None, (key, None)
        _collect(bench)
        if not fits_beside_baseline(bench, case):
            bench.weights.drop_all_but(set())
        one, cache = bench.weights, _cache(bench, case, torch.float16)
        if case.tp > 1:  # the model as one GPU holds it
            one = Weights(case.whole, bench.device)
            cache = random_cache(case.whole, case.batch, case.context, torch.float16, bench.device)
        model = build.reference_model(one, cache)
        bench.reference = model(*_inputs(bench, case))[0].float()


def capture(bench: Bench, case: StepCase) -> Captured:
    """Build a step, compile it, compare its logits with the reference and capture it.

    raises: StepMismatchError where they differ by more than rounding
    """
    began = bench.now()
    model = _model(bench, case)
    inputs, held = _inputs(bench, case), {}

    def call() -> None:
        held["logits"], held["tokens"] = model(*inputs)

    before = _start_of_peak(bench)
    compiled, message = case.compiled, ""
    if case.compiled:
        try:
            model.compile(options=fastpath.compiler_options(_overlaps(bench, case)))
            call()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler has many ways to fail: the eager step is measured, and says so
            compiled, message = False, f"eager, since compiling failed: {first_line(error)}"
            model = _model(bench, case)
    call()
    errors = _check(bench, case, held["logits"])  # before it is captured, and after: a graph overlaps more
    replay = bench.clock.capture([call])
    for _ in range(2):
        replay()
    bench.clock.synchronize()
    errors = max(errors, _check(bench, case, held["logits"]))
    addresses, took = (*inputs, held), bench.now() - began
    return Captured(replay, model, addresses, *errors, compiled, message, took, _memory(bench, case, before))


def _model(bench: Bench, case: StepCase) -> torch.nn.Module:
    backend = BACKENDS[case.backend]
    return build.model_of(bench.weights, backend, _cache(bench, case, backend.dtype), case.host, case.attention)


def _check(bench: Bench, case: StepCase, logits: torch.Tensor) -> tuple[float, float]:
    """Relative error of logits and agreement of argmax with the reference."""
    logits, dtype = logits.float(), BACKENDS[case.backend].dtype
    for name, values in (("the reference's logits", bench.reference), ("logits", logits)):
        if wrong := int((~values.isfinite()).sum()):
            raise StepMismatchError(f"{wrong} of {values.numel()} of {name} are not finite")
    error = float((logits - bench.reference).norm() / bench.reference.norm())
    agreement = float((logits.argmax(-1) == bench.reference.argmax(-1)).float().mean())
    if not error < MAX_REL_ERR[dtype]:
        raise StepMismatchError(
            f"logits differ from those of the reference by {error:.2%} of their norm, where rounding to "
            f"{NAMES[dtype]} costs less than {MAX_REL_ERR[dtype]:.0%}; {agreement:.0%} of the next tokens agree",
            (error, agreement),
        )
    return error, agreement


def _overlaps(bench: Bench, case: StepCase) -> bool:
    return case.compiled and case.compiler_overlap and bench.clock.can_prime()


def _inputs(bench: Bench, case: StepCase) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [batch] and the position [1] that makes the context full."""
    generator = torch.Generator("cpu").manual_seed(TOKENS_SEED)
    tokens = torch.randint(0, case.arch.model.vocab, (case.batch,), generator=generator)
    return tokens.to(bench.device), torch.tensor([case.context - 1], device=bench.device)


def _cache(bench: Bench, case: StepCase, dtype: torch.dtype) -> list[tuple]:
    if dtype not in bench.caches:
        share = (bench.ranks.rank, case.tp)
        bench.caches[dtype] = random_cache(case.whole, case.batch, case.context, dtype, bench.device, *share)
    return bench.caches[dtype]


def _start_of_peak(bench: Bench) -> int:
    if bench.device != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _memory(bench: Bench, case: StepCase, before: int) -> int | None:
    """Weights, cache, and the most that compiling, running and capturing allocated beside them."""
    if bench.device != "cuda":
        return None
    tables = 2 * case.arch.model.vocab * case.arch.model.hidden + cases.lm_head_bytes(case)
    held = cases.weight_bytes(case.arch, case.backend) + tables + cases.kv_bytes(case)
    return held + torch.cuda.max_memory_allocated() - before


# --- rows -------------------------------------------------------------------------------------------------------------


def _row(bench: Bench, case: StepCase, status: str, message: str, compiled: bool | None = None, **measured) -> Step:
    backend = BACKENDS[case.backend]
    compiled = case.compiled if compiled is None else compiled
    return Step(
        case_id=case.case_id, model=case.model, backend=case.backend, host=case.host, batch=case.batch,
        context=case.context, tp=case.tp, lm_head="int4" if backend.int4_lm_head else NAMES[backend.dtype],
        attention=case.attention, compiled="yes" if compiled else "no",
        compiler_overlap="yes" if compiled and _overlaps(bench, case) else "no", status=status, message=message,
        weight_bytes=cases.weight_bytes(case.arch, case.backend), kv_bytes=cases.kv_bytes(case),
        lm_head_bytes=cases.lm_head_bytes(case), **measured,
    )  # fmt: skip


def _failed(bench: Bench, case: StepCase, error: Exception) -> Step:
    if isinstance(error, StepMismatchError):
        rel_err, agreement = error.errors
        return _row(bench, case, "mismatch", str(error), rel_err=rel_err, argmax_agreement=agreement)
    status = "error"
    if isinstance(error, NotImplementedError):
        status = "unsupported"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        status = "out_of_memory"
    named = "" if status != "error" else f"{type(error).__name__}: "
    return _row(bench, case, status, named + first_line(error))


def first_line(error: Exception) -> str:
    """The first line that an exception says, short enough for a cell."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _readings(readings: list[timing.Reading]) -> dict:
    def middle(name: str) -> float | None:
        values = [value for reading in readings if (value := getattr(reading, name)) is not None]
        return median(values) if values else None

    return {name: middle(name) for name in ("sm_clock_mhz", "power_w")}


# --- what is held -----------------------------------------------------------------------------------------------------


def _drop_baseline(bench: Bench) -> None:
    bench.baseline, bench.held = None, (bench.held[0], None)
    _collect(bench)


def _collect(bench: Bench) -> None:
    gc.collect()
    if bench.baseline is None:
        registry.forget_graphs()
    bench.clock.release_memory()


def _release(bench: Bench, error: Exception) -> None:
    """Let go of what a failed case had allocated: its frames hold on to it."""
    error.__traceback__ = None
    error.__context__ = None
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        bench.baseline, bench.held = None, (bench.held[0], None)
    gc.collect()


def _require_a_working_gpu(bench: Bench, case: StepCase) -> None:
    try:
        bench.clock.synchronize()
    except RuntimeError as error:
        raise SweepStoppedError(f"{case.case_id}: the GPU no longer answers: {first_line(error)}") from None
