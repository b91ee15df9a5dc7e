"""Times of one group of a sweep: its backends interleaved, and one row for each, timed or not."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping

from tinygemm import problem
from tinygemm.harness import registry, timing
from tinygemm.harness.choose import Bench, Ready, Refused, guarded
from tinygemm.harness.plan import Group
from tinygemm.harness.variant import Backend
from tinygemm.harness.weights import Weights
from tinygemm.runs import Case, Sample

NOTHING_TO_PRIME = Refused("unsupported", "this GPU has no dependent launch, and so no other state to time graphs in")


def measure_group(
    bench: Bench, group: Group, ready: Mapping[str, Ready | Refused], weights: Weights | Refused
) -> tuple[list[Case], list[Sample]]:
    """Time the backends of a group that are ready, interleaved; one Case for each, timed or not."""
    can_launch = _can_launch(bench, group)
    outcomes = {name: ready[name] if can_launch else NOTHING_TO_PRIME for name in group.backends}
    for name, state in list(outcomes.items()):
        if isinstance(state, Ready):
            outcomes[name] = guarded(bench.clock, _replay, bench, group, state, weights)
    outcomes, samples, readings = _interleave(bench, group, outcomes)
    cases = [
        Case(
            case_id=case_id,
            **_describe(bench.backends[name], group, bench.plan.symmetric),
            **_describe_config(ready[name]),
            **_describe_outcome(outcomes[name], samples.get(name, []), readings, ready[name].message),
            **dataclasses.asdict(ready[name].errors),
        )
        for name, case_id in zip(group.backends, group.case_ids, strict=True)
    ]
    return cases, _sample_rows(group, samples)


def measure_ceiling(bench: Bench, group: Group) -> tuple[list[Case], list[Sample]]:
    """Time the copy or the empty node."""
    (name,) = group.backends
    ceiling = registry.CEILINGS[name]

    def replay():
        call = ceiling.make()
        ceiling.check(call)
        return timing.prepare([call], group.launch, bench.clock, ceiling.min_calls)

    outcome = guarded(bench.clock, replay) if _can_launch(bench, group) else NOTHING_TO_PRIME
    outcomes, samples, readings = _interleave(bench, group, {name: outcome})
    case = Case(
        case_id=group.case_ids[0], backend=name, model="", layer="", M=0, N=0, K=0, group_size=0, dtype="",
        bits_per_weight=0, l2_state=group.l2_state, launch=group.launch, bytes_min=ceiling.bytes_min,
        **_describe_outcome(outcomes[name], samples.get(name, []), readings),
    )  # fmt: skip
    return [case], _sample_rows(group, samples)


def _can_launch(bench: Bench, group: Group) -> bool:
    return group.launch != "primed" or bench.clock.can_prime()


# --- time -----------------------------------------------------------------------------------------------------------


def _replay(bench: Bench, group: Group, state: Ready, weights: Weights) -> timing.Replay:
    copies = weights.copies(state.variant.layout, state.variant.build, group.rotation)
    return timing.prepare([state.variant.bind(state.x, weight) for weight in copies], group.launch, bench.clock)


def _interleave(bench: Bench, group: Group, outcomes: dict) -> tuple[dict, dict, list[timing.Reading]]:
    """Time what is a Replay: outcomes, samples, readings. A failure here is nobody's own: it is everybody's."""
    replays = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, timing.Replay)}
    warmup = bench.plan.warmup
    result = guarded(bench.clock, timing.interleave, replays, group.launch, group.rep, warmup, bench.clock)
    if isinstance(result, Refused):
        failed = dataclasses.replace(result, message=f"while timing the group: {result.message}")
        return outcomes | dict.fromkeys(replays, failed), {}, []
    return outcomes, *result


# --- describe -------------------------------------------------------------------------------------------------------


def _describe(backend: Backend, group: Group, symmetric: bool) -> dict:
    each = group.product
    bits = backend.bits_per_weight(each, symmetric)
    layer = problem.LAYER_OF_SHAPE.get((each.K, each.N))
    return {
        "backend": backend.name,
        "model": layer.model if layer else "",
        "layer": layer.layer if layer else "",
        "M": each.M,
        "N": each.N,
        "K": each.K,
        "group_size": each.group_size if backend.quantised else 0,
        "dtype": backend.dtype,
        "bits_per_weight": bits,
        "l2_state": group.l2_state,
        "launch": group.launch,
        "operands": group.operands,
        "flops": backend.flops(each),
        "bytes_min": backend.bytes_min(each, bits),
    }


def _describe_config(state: Ready | Refused) -> dict:
    if isinstance(state, Refused):
        return {}
    config = dataclasses.asdict(state.variant.config) if state.variant.config else {}
    return {**config, "config_source": state.variant.source}


def _describe_outcome(outcome, latencies: list[float], readings: list[timing.Reading], message: str = "") -> dict:
    """message: of a case that was timed"""
    if isinstance(outcome, Refused):
        return {"status": outcome.status, "message": outcome.message}
    names = [f.name for f in dataclasses.fields(timing.Reading)]
    medians = {name: _median_or_none([getattr(reading, name) for reading in readings]) for name in names}
    counts = {"n_calls": outcome.n_calls, "n_copies": outcome.n_copies, "n_samples": len(latencies)}
    return {"status": "ok", "message": message, **counts, **medians}


def _sample_rows(group: Group, samples: dict[str, list[float]]) -> list[Sample]:
    """Rows of samples.csv; 0.1 ns is far below what a CUDA event resolves."""
    ids = dict(zip(group.backends, group.case_ids, strict=True))
    return [
        Sample(ids[name], i, round(latency_us, 4))
        for name, latencies in samples.items()
        for i, latency_us in enumerate(latencies)
    ]


def _median_or_none(values: list) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
