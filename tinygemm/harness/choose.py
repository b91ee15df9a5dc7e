"""The choice that stands before a time: backends verified on a problem, and the fastest variant of each."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinygemm import runs
from tinygemm.harness import registry, timing, verify
from tinygemm.harness.plan import Group, SweepPlan
from tinygemm.harness.variant import Backend, Variant
from tinygemm.harness.weights import Weights
from tinygemm.problem import GemmProblem

if TYPE_CHECKING:
    import torch

# cold samples that decide between the variants of one backend; the measurement itself is taken afresh
CHOICE_ROUNDS = 7
# of many variants each is timed alone first, and only the best of them against each other
SCREEN_ROUNDS, FINALISTS = 3, 6
REASON_LENGTH = 120  # characters of the reason why a variant is left out


class SweepStoppedError(RuntimeError):
    """The CUDA context is lost, and with it this process; what was measured before is kept."""


@dataclass(frozen=True)
class Bench:
    """The surroundings of a sweep, which stay the same throughout.

    gpu:      hardware.snapshot(), of which `key` and `l2_bytes` are used
    clock:    timing.CudaClock, or what a test puts in its place
    backends: name -> Backend
    """

    plan: SweepPlan
    gpu: Mapping
    clock: timing.CudaClock
    device: str = "cuda"
    backends: Mapping[str, Backend] = field(default_factory=lambda: registry.BACKENDS)


@dataclass(frozen=True)
class Trial:
    """The operands that the backends of one problem are verified with, and the way their variants are compared.

    x:            activations [M, K]
    reference:    the product [M, N] float64; None where nothing is verified
    launch:       how variants are timed against each other
    l2_state:     the cache state whose copies the problem's groups need
    """

    problem: GemmProblem
    x: torch.Tensor
    reference: torch.Tensor | None
    weights: Weights
    launch: str
    l2_state: str


@dataclass(frozen=True)
class Ready:
    """A backend that is right on a problem and may be timed: its variant, its x, and how right it is.

    message: which of its other variants were left out, and why; empty where all are right
    """

    variant: Variant
    x: torch.Tensor
    errors: verify.Errors
    message: str = ""


@dataclass(frozen=True)
class Refused:
    """A backend that is not timed, and why: one of runs.STATUS and a sentence."""

    status: str
    message: str
    errors: verify.Errors = field(default_factory=verify.Errors)


def make_weights(bench: Bench, group: Group) -> Weights | Refused:
    """The weight of a group, which all groups of equal `weight` share."""

    def make():
        packed = registry.operands(group.product, bench.plan.symmetric, bench.device, bench.plan.seed)
        if group.operands == "zeros":
            packed = registry.zeroed(packed)
        return Weights(packed, bench.gpu["l2_bytes"])

    return guarded(bench.clock, make)


def make_ready(bench: Bench, groups: Sequence[Group], weights: Weights | Refused) -> dict[str, Ready | Refused]:
    """Verify the backends of all groups of one problem and choose their variants; serves every one of the groups."""
    names = dict.fromkeys(name for group in groups for name in group.backends)
    if isinstance(weights, Refused):
        return dict.fromkeys(names, weights)
    operands = guarded(bench.clock, _operands, bench, groups[0], weights)
    if isinstance(operands, Refused):
        return dict.fromkeys(names, operands)
    x, reference = operands
    launch = "graph" if any(group.launch in timing.GRAPHS for group in groups) else "eager"
    rotations = [group.rotation for group in groups]
    l2_state = min(rotations, key=runs.L2_STATES.index)  # the most copies that any group rotates over
    trial = Trial(groups[0].product, x, reference, weights, launch, l2_state)
    return {name: guarded(bench.clock, _ready, bench, bench.backends[name], trial) for name in names}


def guarded(clock, work: Callable, *arguments):
    """The result of work(*arguments), or a Refused that says why it failed.

    raises: SweepStoppedError if the failure broke the CUDA context
    """
    import torch

    try:
        return work(*arguments)
    except SweepStoppedError:
        raise
    except verify.MismatchError as error:
        refused = Refused("mismatch", _one_line(error), error.errors)
    except torch.OutOfMemoryError as error:
        refused = Refused("out_of_memory", _one_line(error))
    except Exception as error:
        refused = Refused("error", f"{type(error).__name__}: {_one_line(error)}")
    # after the except clause, where the exception no longer keeps the tensors of the failed call alive
    try:
        clock.synchronize()
    except Exception as error:
        raise SweepStoppedError(
            f"the GPU no longer answers ({_one_line(error)}) after: {refused.message}; "
            "this process can measure nothing more"
        ) from None
    clock.release_memory()
    return refused


# --- is it right, and which variant is fastest ----------------------------------------------------------------------


def _operands(bench: Bench, group: Group, weights: Weights):
    """(x, reference) of a problem."""
    from tinygemm.kernel import quant

    x = registry.activations(group.product, bench.device, bench.plan.seed + 1)
    if group.operands == "zeros":
        x.zero_()
    return x, quant.reference_gemm(x, weights.packed) if bench.plan.verify else None


def _ready(bench: Bench, backend: Backend, trial: Trial):
    """The fastest variant that is right; one that fails is left out and named; if all do, the first one says why."""
    import torch

    if reason := backend.unsupported_reason(trial.problem, bench.plan.symmetric):
        return Refused("unsupported", reason)
    try:
        variants = backend.variants(trial.problem, bench.gpu["key"], bench.plan.symmetric)
    except ValueError as error:
        return Refused("unsupported", _one_line(error))
    trial = dataclasses.replace(trial, x=trial.x.to(getattr(torch, backend.dtype)))
    checked = [(variant, guarded(bench.clock, _check, bench.plan, backend, variant, trial)) for variant in variants]
    right = [(variant, errors) for variant, errors in checked if not isinstance(errors, Refused)]
    if not right:
        return checked[0][1]
    chosen = _fastest(bench, [variant for variant, _ in right], trial) if len(right) > 1 else 0
    variant, errors = right[chosen]
    wrong = [f"{one.source}: {state.message[:REASON_LENGTH]}" for one, state in checked if isinstance(state, Refused)]
    return Ready(variant, trial.x, errors, f"left out: {'; '.join(wrong)}" if wrong else "")


def _check(plan: SweepPlan, backend: Backend, variant: Variant, trial: Trial):
    """Verify with the first and the last copy that will be timed; unverified, call once to compile."""
    x, packed = trial.x, trial.weights.packed
    copies = trial.weights.copies(variant.layout, variant.build, trial.l2_state)
    if not plan.verify:
        variant.bind(x, copies[0])()
        return verify.Errors()
    errors = backend.check(variant.bind, x, copies[0], packed, trial.reference, backend.tolerance)
    if len(copies) > 1:
        backend.check(variant.bind, x, copies[-1], packed, trial.reference, backend.tolerance)
    return errors


def _fastest(bench: Bench, variants: list[Variant], trial: Trial) -> int:
    """Index of the variant with the lowest median with a cold L2, as CUDA graphs where the problem has them."""

    def medians(indices: Sequence[int], rounds: int) -> dict[int, float]:
        registry.forget_graphs()
        replays = {}
        for index in indices:
            variant = variants[index]
            copies = trial.weights.copies(variant.layout, variant.build, "cold")
            replays[index] = timing.prepare(
                [variant.bind(trial.x, weight) for weight in copies], trial.launch, bench.clock
            )
        samples, _ = timing.interleave(replays, trial.launch, rounds, bench.plan.warmup, bench.clock)
        return {index: statistics.median(samples[index]) for index in indices}

    candidates = list(range(len(variants)))
    if len(candidates) > FINALISTS:
        alone = {index: medians([index], SCREEN_ROUNDS)[index] for index in candidates}
        candidates = sorted(alone, key=alone.__getitem__)[:FINALISTS]
    together = medians(candidates, CHOICE_ROUNDS)
    return min(together, key=together.__getitem__)


def _one_line(error: Exception) -> str:
    """First line of a message, without the folders of any path in it: a run names no machine."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return runs.without_folders(text)[:300]
