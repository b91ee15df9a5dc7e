"""The clock: what it rotates over, in which order it samples, and that it hands out samples untouched."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from fake_gpu import FakeClock

from tinygemm import runs
from tinygemm.harness import timing
from tinygemm.harness.timing import SETTLING_LAUNCHES, copies_needed, interleave, prepare

H200_L2, A10G_L2 = 60 * 2**20, 6 * 2**20


@pytest.mark.parametrize("l2_bytes", [A10G_L2, H200_L2, 200 * 2**20])
@pytest.mark.parametrize("weight_bytes", [66_000, 1_081_344, 30_277_632, 234_881_024, 10**9])
def test_cold_copies_together_exceed_the_cache_five_times_and_half_a_gigabyte(weight_bytes, l2_bytes):
    copies = copies_needed(weight_bytes, l2_bytes, "cold")
    needed = max(5 * l2_bytes, 512_000_000)
    assert copies * weight_bytes >= needed
    assert copies >= 2, "a call must never find what the call before it left behind"
    assert copies == 2 or (copies - 1) * weight_bytes < needed


def test_a_hot_weight_is_one_copy():
    assert copies_needed(66_000, H200_L2, "hot") == 1


def test_a_warm_rotation_is_one_and_a_half_caches():
    for weight_bytes in (1_081_344, 30_277_632):
        copies = copies_needed(weight_bytes, H200_L2, "warm")
        assert copies * weight_bytes >= 1.5 * H200_L2 > (copies - 1) * weight_bytes
    assert copies_needed(10**9, H200_L2, "warm") == 2, "one copy would be a hot weight"


def numbered(n: int, seen: list) -> list:
    return [lambda i=i: seen.append(i) for i in range(n)]


def test_a_graph_holds_at_least_fifty_calls_that_take_turns_over_the_copies():
    seen = []
    replay = prepare(numbered(3, seen), "graph", FakeClock())
    replay.run()
    assert (replay.n_calls, replay.n_copies) == (50, 3)
    assert seen == [i % 3 for i in range(50)]


def test_a_graph_of_many_copies_visits_each_exactly_once():
    seen = []
    replay = prepare(numbered(120, seen), "graph", FakeClock())
    replay.run()
    assert (replay.n_calls, replay.n_copies) == (120, 120)
    assert seen == list(range(120))


def test_eager_calls_go_on_over_the_copies_from_sample_to_sample():
    """Starting again at the first copy would leave the rest untouched, and the first fifty would be warm."""
    seen = []
    clock = FakeClock()
    replay = prepare(numbered(70, seen), "eager", clock)
    replay.run()
    replay.run()
    assert (replay.n_calls, replay.n_copies) == (50, 70)
    assert seen == [i % 70 for i in range(100)]
    assert not clock.log, "an eager contender is not captured"


def contenders(clock: FakeClock, order: list) -> dict[str, timing.Replay]:
    def replay(name, us, n_calls):
        def run():
            order.append(name)
            clock.spend(us * n_calls)

        return timing.Replay(run, n_calls, 1)

    return {"a": replay("a", 3.0, 50), "b": replay("b", 5.0, 100), "c": replay("c", 7.0, 50)}


def test_a_sample_is_the_time_of_one_call():
    clock = FakeClock()
    samples, _ = interleave(contenders(clock, []), "graph", rep=4, warmup=2, clock=clock)
    assert samples == {"a": [3.0] * 4, "b": [5.0] * 4, "c": [7.0] * 4}


def test_sample_i_of_every_contender_is_taken_in_round_i():
    clock, order = FakeClock(), []
    interleave(contenders(clock, order), "graph", rep=6, warmup=3, clock=clock)
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert len(rounds) == 9
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)


def test_every_contender_takes_its_turn_at_the_start_of_a_round():
    clock, order = FakeClock(), []
    interleave(contenders(clock, order), "graph", rep=6, warmup=0, clock=clock)
    assert order[::3] == ["a", "b", "c"] * 2


def test_samples_of_a_drifting_clock_stay_in_measured_order_and_none_is_removed():
    clock, calls = FakeClock(), iter(range(100))
    replay = timing.Replay(lambda: clock.spend(1000.0 if (i := next(calls)) == 7 else float(i)), 1, 1)
    samples, _ = interleave({"a": replay}, "graph", rep=10, warmup=2, clock=clock)
    assert samples["a"] == [2.0, 3.0, 4.0, 5.0, 6.0, 1000.0, 8.0, 9.0, 10.0, 11.0]


@pytest.mark.parametrize(
    ("launch", "queued", "primed"), [("graph", True, False), ("primed", True, True), ("eager", False, False)]
)
def test_graphs_queue_up_and_eager_calls_start_on_an_idle_gpu(launch, queued, primed):
    clock = FakeClock()
    interleave(contenders(clock, []), launch, rep=2, warmup=0, clock=clock)
    assert {(entry[2], entry[4]) for entry in clock.log} == {(queued, primed)}


def test_a_primed_contender_is_the_same_graph():
    seen = []
    replay = prepare(numbered(120, seen), "primed", FakeClock())
    replay.run()
    assert (replay.n_calls, replay.n_copies, seen) == (120, 120, list(range(120)))


@pytest.mark.parametrize("primed", [False, True])
def test_every_stream_that_kernels_were_launched_in_is_settled_before_a_round(monkeypatch, primed):
    """The last launches before the timed runs are those that leave the wanted state behind, in all of the streams."""
    import torch

    from tinygemm.kernel import reference

    log, current = [], ["default"]

    @contextmanager
    def in_stream(name):
        current.append(name)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", in_stream)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append((current[-1], "plain")))
    monkeypatch.setattr(
        reference, "empty_kernel", lambda dependent_launch: log.append((current[-1], "dependent" * dependent_launch))
    )
    timing.CudaClock(["capture"])._settle(primed)
    if primed:
        assert log == [("capture", "dependent"), ("default", "dependent")]
    else:
        assert log == [("capture", "plain")] * SETTLING_LAUNCHES + [("default", "plain")] * SETTLING_LAUNCHES


def test_readings_are_taken_in_flight_in_some_of_the_kept_rounds():
    clock = FakeClock()
    _, readings = interleave(contenders(clock, []), "graph", rep=25, warmup=3, clock=clock)
    assert len(readings) == 5
    taken = [entry[3] for entry in clock.log]
    assert not any(taken[:3]), "warm-up rounds are not read"
    assert sum(taken) == 5


def test_do_bench_times_one_call_again_and_again_and_every_contender_gets_as_many_samples():
    clock = FakeClock()
    calls = {name: [lambda us=us: clock.spend(us), lambda: 1 / 0] for name, us in (("a", 4.0), ("b", 20.0))}
    replays = {name: prepare(each, "do_bench", clock) for name, each in calls.items()}
    assert {(replay.n_calls, replay.n_copies) for replay in replays.values()} == {(1, 1)}
    samples, readings = interleave(replays, "do_bench", rep=25, warmup=3, clock=clock)
    assert samples == {"a": [6.0] * 5, "b": [22.0] * 5}
    assert len(readings) == 2


def test_no_contender_is_no_round():
    clock = FakeClock()
    assert interleave({}, "graph", rep=5, warmup=1, clock=clock) == ({}, [])
    assert interleave({}, "do_bench", rep=5, warmup=1, clock=clock) == ({}, [])
    assert not clock.log


@pytest.mark.parametrize("launch", runs.LAUNCHES)
def test_a_known_duration_is_the_same_number_of_microseconds_in_every_launch_mode(launch, monkeypatch):
    """The clock asks torch and Triton, who count in milliseconds."""
    import torch
    import triton.testing

    now = [0.0]

    class Event:
        def __init__(self, enable_timing):
            self.at = None

        def record(self):
            self.at = now[0]

        def elapsed_time(self, end):
            return (end.at - self.at) / 1000

    def call():
        now[0] += 7.0

    def do_bench(call, return_mode):
        start = now[0]
        call()
        return [(now[0] - start) / 1000] * 5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    monkeypatch.setattr(timing.CudaClock, "_settle", lambda self, primed: None)
    monkeypatch.setattr(timing.CudaClock, "capture", lambda self, calls: lambda: [each() for each in calls])
    monkeypatch.setattr(timing.CudaClock, "reader", FakeClock.reader)
    clock = timing.CudaClock()
    monkeypatch.setattr(timing.CudaClock, "log", [], raising=False)
    monkeypatch.setattr(timing.CudaClock, "readings", [None], raising=False)
    samples, _ = interleave({"a": prepare([call, call], launch, clock)}, launch, rep=5, warmup=1, clock=clock)
    assert samples["a"] == pytest.approx([7.0] * 5)


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock():
    return timing.CudaClock()


def busy(us: float):
    """A call that keeps one SM busy for about `us` at 1.5 to 2 GHz."""
    import torch

    return lambda: torch.cuda._sleep(int(us * 1750))


@pytest.mark.gpu
@pytest.mark.parametrize("launch", ["graph", "eager"])
def test_a_planned_duration_is_measured(clock, launch):
    replays = {name: prepare([busy(us)], launch, clock) for name, us in (("short", 20), ("long", 80))}
    samples, readings = interleave(replays, launch, rep=10, warmup=2, clock=clock)
    short, long = (sorted(samples[name])[5] for name in ("short", "long"))
    assert 15 < short < 40
    assert 3 < (long - 1) / short < 4.5
    assert max(samples["long"]) / min(samples["long"]) < 1.5
    assert readings
    assert all(300 < reading.sm_clock_mhz < 3000 for reading in readings)


@pytest.mark.gpu
def test_do_bench_counts_the_launch_that_a_graph_hides(clock):
    samples = {}
    for launch in ("graph", "do_bench"):
        samples |= {launch: interleave({"a": prepare([busy(20)], launch, clock)}, launch, 10, 2, clock)[0]["a"]}
    graph, do_bench = (sorted(times)[len(times) // 2] for times in samples.values())
    assert graph < do_bench < graph + 50
    assert len(samples["do_bench"]) > 10


@pytest.mark.gpu
def test_a_copy_of_a_weight_that_fits_in_l2_is_faster_hot_than_cold(clock):
    import torch

    from tinygemm.harness.weights import replicate

    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    weight = torch.randn(l2_bytes // 16, device="cuda")  # a quarter of L2
    copies = replicate(weight, copies_needed(weight.nbytes, l2_bytes, "cold"))
    out = torch.empty((), device="cuda")
    calls = [lambda c=c: torch.sum(c, 0, out=out) for c in copies]
    calls[0]()
    replays = {"cold": prepare(calls, "graph", clock), "hot": prepare(calls[:1], "graph", clock)}
    samples, _ = interleave(replays, "graph", rep=10, warmup=3, clock=clock)
    cold, hot = (sorted(samples[name])[5] for name in ("cold", "hot"))
    assert hot < 0.9 * cold
    assert weight.nbytes / (cold * 1e-6) < 5e12, "no GPU of today reads DRAM faster: the copies were not cold"


@pytest.mark.gpu
def test_an_empty_graph_node_takes_about_a_microsecond(clock):
    from tinygemm.harness.registry import CEILINGS

    call = CEILINGS["empty-node"].make()
    call()
    samples, _ = interleave({"empty": prepare([call], "graph", clock, 200)}, "graph", rep=10, warmup=3, clock=clock)
    assert 0.3 < sorted(samples["empty"])[5] < 5


def test_a_round_settles_first_then_sleeps_then_runs(monkeypatch):
    """The spacer is a launch, too; nothing may stand between it and the runs that queue up behind."""
    import torch

    log = []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            log.append("event")

        def elapsed_time(self, end):
            return 0.004

    clock = timing.CudaClock()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("spacer"))
    monkeypatch.setattr(timing.CudaClock, "_settle", lambda self, primed: log.append(("settle", primed)))
    assert clock.time_round([lambda: log.append("run")], queued=True, primed=True) == [4.0]
    assert log == [("settle", True), "spacer", "event", "run", "event"]


@pytest.mark.parametrize(
    ("knows", "asked", "attribute"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_dependent_launch_carries_the_attribute_on_gpus_that_know_it(monkeypatch, knows, asked, attribute):
    import torch

    from tinygemm.kernel import reference

    asked_for = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda **options: asked_for.append(options)

    monkeypatch.setattr(reference.kernels, "kernel_empty", Kernel())
    monkeypatch.setattr(reference.launches, "dependent_launch", lambda device: knows)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    reference.empty_kernel(asked)
    assert asked_for == [{"num_warps": 1, "enable_fp_fusion": True} | ({"launch_pdl": True} if attribute else {})]


@pytest.mark.gpu
def test_what_was_launched_before_does_not_change_a_graph(clock):
    """Both states that a launch may leave behind, in either stream, are gone when the next round begins."""
    import torch

    from tinygemm.harness.registry import CEILINGS
    from tinygemm.kernel import reference

    replay = prepare([CEILINGS["empty-node"].make()], "graph", clock, 200)
    medians = []
    for stream in (clock.streams[0], torch.cuda.current_stream()):
        for dependent_launch in (True, False):
            with torch.cuda.stream(stream):
                for _ in range(20):
                    reference.empty_kernel(dependent_launch)
            samples, _ = interleave({"empty": replay}, "graph", rep=10, warmup=0, clock=clock)
            medians.append(sorted(samples["empty"])[5])
    assert max(medians) < 1.1 * min(medians), "on an H100 the states are 0.8 and 1.15 us"
