"""A GPU that only counts: a clock on which calls spend planned microseconds, and backends whose faults are planted."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from tinygemm.harness import verify
from tinygemm.harness.timing import Reading
from tinygemm.harness.variant import Backend, Variant

GPU = {"key": "h200", "name": "NVIDIA H200", "l2_bytes": 1000}


@dataclass
class FakeClock:
    """Stands in for timing.CudaClock.

    now_us: the time            log: what was done, in order            broken: True once the context is lost
    primes: whether it knows dependent launch
    """

    now_us: float = 0.0
    log: list = field(default_factory=list)
    broken: bool = False
    primes: bool = True
    readings: list = field(default_factory=lambda: [Reading(1980.0, 3201.0, 500.0, 40.0)])

    def spend(self, us: float) -> None:
        self.now_us += us

    def can_prime(self):
        return self.primes

    def capture(self, calls):
        self.log.append(("capture", len(calls)))
        return lambda: [call() for call in calls]

    def time_round(self, runs, *, queued, primed=False, during=None):
        durations = []
        for run in runs:
            start = self.now_us
            run()
            durations.append(self.now_us - start)
        if during:
            during()
        self.log.append(("round", len(runs), queued, during is not None, primed))
        return durations

    def do_bench(self, call):
        """As many samples as fit into 100 us, and 2 us of launch on each."""
        (first,) = self.time_round([call], queued=False)
        self.log.append(("do_bench",))
        return [first + 2.0] * max(1, int(100 // first))

    def synchronize(self):
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def release_memory(self):
        self.log.append(("release",))

    @contextmanager
    def reader(self):
        yield lambda: self.readings[min(len(self.log), len(self.readings) - 1)]


def fake_backend(name: str, clock: FakeClock, us: float = 10.0, product=None, variants=("",), **settings) -> Backend:
    """A backend that multiplies in float64 on the CPU and spends `us` per call (or us[variant]).

    product: (x, weight) -> out in place of the right product, to plant a fault
    """

    def bind(source):
        def bound(x, weight):
            from tinygemm.kernel import quant

            dense = None if product else quant.dequantize(weight, torch.float64).t()

            def call():
                clock.spend(us[source] if isinstance(us, dict) else us)
                return product(x, weight) if product else (x.double() @ dense).to(x.dtype)

            return call

        return bound

    defaults = {
        "unsupported_reason": lambda problem, symmetric: None,
        "variants": lambda problem, gpu, symmetric=True: [
            Variant(s, "packed", lambda packed: packed, bind(s)) for s in variants
        ],
        "bits_per_weight": lambda problem, symmetric: 4.125,
        "check": verify.check_product,
    }
    return Backend(name, **(defaults | settings))
