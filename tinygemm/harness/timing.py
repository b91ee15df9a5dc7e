"""The clock: times calls as CUDA-graph replays or eager launches, and returns samples; it knows no statistics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)

MIN_CALLS = 50
# the rotation of many benchmarks: more than the cache holds, but a cache that keeps what is reused holds part of it
WARM_L2_MULTIPLE = 1.5
# a call finds nothing of its own in L2 if the copies between two visits of one copy exceed the cache several times over
MIN_COLD_BYTES = 512_000_000
MIN_COLD_L2_MULTIPLE = 5
# about half a millisecond on any recent GPU: longer than Python needs to queue one round of graph launches behind it
SPACER_CYCLES = 1_000_000
READINGS_PER_GROUP = 5
GRAPHS = ("graph", "primed")  # launch modes in which a sample is one replay
# twice what it takes to undo what a launch before has left behind; see CudaClock.time_round
SETTLING_LAUNCHES = 16


@dataclass(frozen=True)
class Replay:
    """A backend that is ready to be timed: `run()` queues `n_calls` calls that rotate over `n_copies` weights."""

    run: Callable[[], object]
    n_calls: int
    n_copies: int


@dataclass(frozen=True)
class Reading:
    """The readings of NVML while replays were in flight; None where this GPU does not tell."""

    sm_clock_mhz: float | None
    mem_clock_mhz: float | None
    power_w: float | None
    temp_c: float | None


def copies_needed(weight_bytes: int, l2_bytes: int, l2_state: str) -> int:
    """The number of copies of a weight that the calls must rotate over.

    weight_bytes: stored bytes of one weight
    l2_bytes:     size of the GPU's L2 cache
    l2_state:     "hot": one copy; "warm": copies of together 1.5 x L2, "cold": max(5 x L2, 512 MB); at least two
    """
    if l2_state == "hot":
        return 1
    if l2_state == "warm":
        return max(2, math.ceil(WARM_L2_MULTIPLE * l2_bytes / weight_bytes))
    return max(2, math.ceil(max(MIN_COLD_L2_MULTIPLE * l2_bytes, MIN_COLD_BYTES) / weight_bytes))


def prepare(calls: Sequence[Callable], launch: str, clock: CudaClock, min_calls: int = MIN_CALLS) -> Replay:
    """Make one backend ready to be timed.

    calls:     one callable per copy of the weight
    launch:    "graph", "primed": one CUDA graph of max(min_calls, copies) calls: every replay visits every copy;
               "eager": min_calls calls launched from Python, the rotation going on from sample to sample;
               "do_bench": one call, for triton.testing.do_bench
    clock:     CudaClock
    """
    if launch == "do_bench":
        return Replay(calls[0], 1, 1)
    if launch in GRAPHS:
        n_calls = max(min_calls, len(calls))
        return Replay(clock.capture(list(itertools.islice(itertools.cycle(calls), n_calls))), n_calls, len(calls))
    endless = itertools.cycle(calls)

    def run():
        for call in itertools.islice(endless, min_calls):
            call()

    return Replay(run, min_calls, len(calls))


def interleave(
    replays: Mapping[Name, Replay], launch: str, rep: int, warmup: int, clock: CudaClock
) -> tuple[dict[Name, list[float]], list[Reading]]:
    """Time backends against each other, round by round: sample i of every backend is taken in round i.

    replays: by name of the backend; each round starts with another one, so that none always follows the same pause
    rep:     samples per backend, after `warmup` rounds that are not kept; do_bench decides for itself and knows no
             rounds: every backend gets as many of its samples as the one with the fewest
    returns: per backend its samples in microseconds per call, in measured order; the readings of the group
    """
    names = list(replays)
    samples: dict[Name, list[float]] = {name: [] for name in names}
    readings: list[Reading] = []
    if not names:
        return samples, readings
    if launch == "do_bench":
        with clock.reader() as read:
            for name in names:
                samples[name] = clock.do_bench(replays[name].run)
                readings.append(read())
        shortest = min(map(len, samples.values()))
        return {name: times[:shortest] for name, times in samples.items()}, readings
    every = max(1, rep // READINGS_PER_GROUP)
    with clock.reader() as read:
        for round_ in range(-warmup, rep):
            start = round_ % len(names)
            order = names[start:] + names[:start]
            wants_reading = round_ >= 0 and round_ % every == 0
            during = (lambda: readings.append(read())) if wants_reading else None
            runs = [replays[name].run for name in order]
            durations = clock.time_round(runs, queued=launch in GRAPHS, primed=launch == "primed", during=during)
            if round_ >= 0:
                for name, duration_us in zip(order, durations, strict=True):
                    samples[name].append(duration_us / replays[name].n_calls)
    return samples, readings


@dataclass(frozen=True)
class CudaClock:
    """Times work on torch's current CUDA device with CUDA events."""

    streams: list = field(default_factory=list)

    def can_prime(self) -> bool:
        """Tell whether this GPU knows dependent launch, so that there are two states to time in."""
        import torch

        from tinygemm.kernel import launches

        return launches.dependent_launch(torch.device("cuda", torch.cuda.current_device()))

    def capture(self, calls: Sequence[Callable]) -> Callable[[], None]:
        """Record the calls as one CUDA graph; their kernels must have run once before, so that none compiles now."""
        import torch

        if not self.streams:
            self.streams.append(torch.cuda.Stream())
        stream = self.streams[0]
        # libraries set up their workspace per stream: let it happen outside the graph's own memory
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            calls[0]()
        graph = torch.cuda.CUDAGraph()
        # the threads of torch.distributed look at their events meanwhile, which would end a global capture
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for call in calls:
                call()
        return graph.replay

    def time_round(
        self, runs: Sequence[Callable], *, queued: bool, primed: bool = False, during: Callable | None = None
    ) -> list[float]:
        """Microseconds of each run on the GPU's clock.

        The time of a node of a graph depends on the launches before it, whatever the graph holds. On an H100, kernels
        that do not overlap take 0.35 us less after a launch with the attribute of dependent launch in any stream. The
        effect lasts until several launches without it have followed there (tinygemm/kernel/NOTES.md). So every round
        starts from one of two states.

        queued: True lines all runs up behind a spacer, so that no launch from Python is ever waited for;
                False starts each run on an idle GPU, so that the launches from Python count
        primed: False: as in a process that has launched no kernel with the attribute; True: as after such a launch
        during: called while work is in flight
        """
        import torch

        from tinygemm.kernel import fastpath

        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in runs]
        torch.cuda.synchronize()
        self._settle(primed)
        if queued:
            fastpath.spin(SPACER_CYCLES)
        for run, (start, end) in zip(runs, events, strict=True):
            if not queued:
                torch.cuda.synchronize()
            start.record()
            run()
            end.record()
        if during:
            during()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1000 for start, end in events]

    def _settle(self, primed: bool) -> None:
        """Launch, in the stream of the captures and the current one, what leaves one known state behind."""
        import torch

        from tinygemm.kernel import fastpath, reference

        for stream in (*self.streams, torch.cuda.current_stream()):
            with torch.cuda.stream(stream):
                if primed:
                    reference.empty_kernel(dependent_launch=True)
                    continue
                for _ in range(SETTLING_LAUNCHES):
                    fastpath.spin(1)

    def do_bench(self, call: Callable) -> list[float]:
        """Microseconds of each call as triton.testing.do_bench times it: the L2 flushed before, the launch counted."""
        import triton.testing

        return [duration * 1000 for duration in triton.testing.do_bench(call, return_mode="all")]

    def synchronize(self) -> None:
        """Wait for the GPU; raises if an earlier call has broken the CUDA context."""
        import torch

        torch.cuda.synchronize()

    def release_memory(self) -> None:
        """Give memory that nothing uses any more back to the driver."""
        import torch

        torch.cuda.empty_cache()

    @contextmanager
    def reader(self) -> Iterator[Callable[[], Reading]]:
        """A function that reads clocks, power and temperature now."""
        import pynvml

        from tinygemm import hardware

        pynvml.nvmlInit()
        try:
            handle = hardware.nvml_handle()
            readers = (
                lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
                lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
                lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            )
            yield lambda: Reading(*(hardware.reading_or_none(reader) for reader in readers))
        finally:
            pynvml.nvmlShutdown()
