"""From the GPU that was measured to one that was not: what is assumed of it, and how far each assumption may be off."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from tinygemm.backends import with_serial
from tinygemm.hardware import GpuSpec
from tinygemm.report.predict.terms import ECC_SHARE, Fitted, device_us, eager_us, usable_gb_s

DEPENDENT_LAUNCH = (9, 0)  # the compute capability from which on a kernel may start before the one ahead has ended
DEPENDENT = tuple(with_serial())  # backends that do so where they can
KNOBS = ("bandwidth", "ecc", "clock", "start", "serial", "work", "dependent", "host")


@dataclass(frozen=True)
class Assumption:
    """One thing that a projection takes for granted.

    knob:      which factor of `scaled` it moves, 1 at its central value
    value:     what is assumed, in words and numbers
    low, high: factors between which the knob is thought to lie
    """

    knob: str
    assumption: str
    value: str
    low: float
    high: float
    why: str


def assumptions(model, spec: GpuSpec) -> pd.DataFrame:
    """Everything that a projection from the model's GPU to another one assumes; no rows for the model's own GPU.

    returns: assumption, value, low, high (factors on the quantity named), why
    """
    rows = [(a.assumption, a.value, a.low, a.high, a.why) for a in assumed(model, spec)]
    return pd.DataFrame(rows, columns=["assumption", "value", "low", "high", "why"])


def band(model, fitted: Fitted, shapes: dict, bits, launch: str, spec: GpuSpec):
    """A prediction and how far it may be off, as natural logarithms: (latency_us, down, up).

    The error at left-out shapes and the effect of each assumption alone are independent, so their squares add up.
    """
    middle, effects = _effects(model, fitted, shapes, bits, launch, spec)
    low, high = np.log(fitted.spread[launch])
    return middle, np.sqrt(low**2 + _down(effects)), np.sqrt(high**2 + _up(effects))


def ratio_band(model, left: Fitted, right: Fitted, shapes: dict, bits, launch: str, spec: GpuSpec):
    """left / right of two backends, with the band of the ratio: an assumption moves both sides at once.

    bits:    of (left, right)
    returns: (ratio, low, high)
    """
    above, effects = _effects(model, left, shapes, bits[0], launch, spec)
    below, others = _effects(model, right, shapes, bits[1], launch, spec)
    effects = effects - others
    (left_low, left_high), (right_low, right_high) = (np.log(side.spread[launch]) for side in (left, right))
    down = np.sqrt(left_low**2 + right_high**2 + _down(effects))
    up = np.sqrt(left_high**2 + right_low**2 + _up(effects))
    return above / below, above / below * np.exp(-down), above / below * np.exp(up)


def scaled(model, fitted: Fitted, spec: GpuSpec, knobs: dict[str, float] | None = None) -> Fitted:
    """The terms of a backend as expected on another GPU: cycles stay, clocks, bandwidth and SMs change."""
    if spec.key == model.spec.key:
        return fitted
    knob, terms = {name: (knobs or {}).get(name, 1.0) for name in KNOBS}, fitted.terms
    slower = model.clock_mhz / (spec.boost_clock_mhz * knob["clock"])
    waits = model.overlap_us * slower * knob["dependent"] if _loses_overlap(model, fitted.backend, spec) else 0.0
    return replace(
        fitted,
        terms=replace(
            terms,
            start_us=terms.start_us * slower * knob["start"] + waits,
            token_us=terms.token_us * slower * knob["start"],
            serial_ns=terms.serial_ns * slower * knob["serial"],
            weight_ps=terms.weight_ps * slower * knob["work"],
            tile_ps=terms.tile_ps * slower * knob["work"],
            efficiency=terms.efficiency * knob["bandwidth"] * knob["ecc"],
            host_us=terms.host_us * knob["host"],
        ),
    )


def assumed(model, spec: GpuSpec) -> list[Assumption]:
    """Everything that a projection to a GPU assumes; nothing for the model's own."""
    base = model.spec
    if spec.key == base.key:
        return []
    rows = [
        Assumption("bandwidth", "share of the usable DRAM bandwidth that a well-fed kernel reaches",
                   f"as on the {base.name}; {usable_gb_s(spec):,.0f} GB/s usable", 0.85, 1.05,
                   "other memory, other controllers; launch configs tuned as well as there"),
        Assumption("clock", "SM clock", f"boost clock, {spec.boost_clock_mhz:,} MHz", 0.8, 1.05,
                   "power and temperature may hold it below"),
        Assumption("start", "cycles of starting, filling and draining", f"as on the {base.name}", 0.7, 1.5,
                   "fewer SMs to fill, other latencies"),
        Assumption("serial", "cycles of one step of a serial walk over K", f"as on the {base.name}", 0.7, 1.4,
                   "latencies of DRAM and of tensor cores differ"),
        Assumption("work", "SM cycles per weight", f"as on the {base.name}; {spec.sm_count} SMs", 0.8, 1.6,
                   "the same instructions, but older tensor cores and fewer resident warps"),
        Assumption("host", "host time of a launch from Python", f"as beside the {base.name}", 0.5, 1.6,
                   "another processor, another driver"),
    ]  # fmt: skip
    if spec.inline_ecc and not base.inline_ecc:
        rows.insert(1, Assumption(
            "ecc", "bandwidth that ECC takes", f"{ECC_SHARE:.1%}, included in the usable bandwidth",
            0.85 / (1 - ECC_SHARE), 1 / (1 - ECC_SHARE), "10 to 15 % on an A10 (README of Marlin); none if off",
        ))  # fmt: skip
    if any(_loses_overlap(model, name, spec) for name in model.backends):
        rows.append(Assumption(
            "dependent", "time lost because a kernel cannot start before the one ahead ends",
            f"{model.overlap_us:.2f} µs at the clock of the {base.name}, as timed there without overlap", 0.5, 2.0,
            "compute capabilities before 9.0 have no dependent launch",
        ))  # fmt: skip
    return rows


def _loses_overlap(model, backend: str, spec: GpuSpec) -> bool:
    had, has = (gpu.compute_capability >= DEPENDENT_LAUNCH for gpu in (model.spec, spec))
    return backend in DEPENDENT and had and not has and model.overlap_us > 0


def _effects(model, fitted: Fitted, shapes: dict, bits, launch: str, spec: GpuSpec):
    """The prediction, and the logarithm by which the ends of each assumption move it: [assumptions, 2, problems]."""

    def latency(knobs):
        here = scaled(model, fitted, spec, knobs)
        device = device_us(here, shapes["M"], shapes["K"], shapes["N"], bits, spec)
        return eager_us(here.terms, device) if launch == "eager" else device

    middle = latency({})
    ends = [[np.log(latency({a.knob: end}) / middle) for end in (a.low, a.high)] for a in assumed(model, spec)]
    return middle, np.array(ends).reshape(len(ends), 2, len(middle))


def _down(effects: np.ndarray) -> np.ndarray:
    """Sum over assumptions of the square of the larger move down."""
    return (np.clip(effects.min(axis=1, initial=0), None, 0) ** 2).sum(axis=0)


def _up(effects: np.ndarray) -> np.ndarray:
    return (np.clip(effects.max(axis=1, initial=0), 0, None) ** 2).sum(axis=0)
