"""Tuning and compiling ahead: what stopped goes on, what spills or fails is dropped in words."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import FakeClock, fake_backend

from tinygemm.hardware import gpu_spec
from tinygemm.harness import candidates, compile, progress, suites, tune, verify
from tinygemm.harness.plan import Group, SweepPlan, groups
from tinygemm.harness.progress import Progress, Task
from tinygemm.harness.suites import HELD_OUT_SHAPES
from tinygemm.harness.weights import Weights
from tinygemm.kernel import launches, quant
from tinygemm.kernel.configs import PLAIN, Format, LaunchConfig, apart, fitted, read_table, write_table
from tinygemm.kernel.triton import reference, splitk
from tinygemm.models import Model, known_model
from tinygemm.problem import REPORT_SHAPES, STUDY_SHAPES, GemmProblem

SHAPES = ((4096, 1024), (4096, 4096))
PROBLEMS = tuple(GemmProblem(M, N, K) for K, N in SHAPES for M in (1, 2, 8))
FORMS = ("splitk", "fp16")
CONFIG = LaunchConfig("splitk", 8, 32, 256, 4, 2, 1)
RING = LaunchConfig("ring", 1, 32, 256, 4, 2, 5)
BF16, ZEROS, G32 = Format(half=False), Format(symmetric=False), Format(32)
TASKS_REFINED = tune._tasks_refined
TERMS = {"gpu": "h200", "software": {"triton": "3.6.0"}, "code": "abc"}


@pytest.fixture
def lab(monkeypatch):
    """A GPU on which a race is decided by a rule, and none is run again; what was raced and compiled is kept.

    raced: tasks in order    configs: of each task    compiled: what each phase wanted    stop_after: races
    """
    log = SimpleNamespace(raced=[], configs={}, compiled=[], stop_after=None)

    def race(task, configs, x, weights, clock):
        if log.stop_after is not None and len(log.raced) == log.stop_after:
            raise KeyboardInterrupt
        problem = task.problem
        log.raced.append(task)
        log.configs[task] = configs
        best = sorted(configs, key=lambda config: (config.split_k * config.num_warps, config))[:3]
        return [(problem.M + problem.N / 1000 + i, config) for i, config in enumerate(best)]

    properties = SimpleNamespace(multi_processor_count=132, L2_cache_size=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(tune, "_race", race)
    monkeypatch.setattr(tune, "_compile", lambda configs, workers: log.compiled.append(configs) or set())
    monkeypatch.setattr(tune, "_weight", lambda *_: None)
    monkeypatch.setattr(tune, "_x", lambda *_: None)
    monkeypatch.setattr(tune, "_tasks_refined", lambda *_: [])
    return log


@pytest.fixture
def refining(lab, monkeypatch):
    """What won is raced again, and in two more formats."""
    monkeypatch.setattr(tune, "_tasks_refined", TASKS_REFINED)
    monkeypatch.setattr(tune, "OTHER_FORMATS", (BF16, G32))


def search(tmp_path, problems=PROBLEMS, forms=FORMS, **settings):
    arguments = (problems, forms, "h200", tmp_path / "t.json", "about")
    return tune.tune(*arguments, partial=tmp_path / "t.json.partial", **settings)


def stop(lab, tmp_path, stop_after, **settings):
    lab.raced[:], lab.stop_after = [], stop_after
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, **settings)
    lab.stop_after = None


@pytest.mark.parametrize(
    ("stop_after", "phase", "format"),
    [
        (0, "full", PLAIN),
        (1, "full", PLAIN),
        (5, "full", PLAIN),
        (11, "between", PLAIN),
        (12, "refined", PLAIN),
        (17, "refined", PLAIN),
        (25, "refined", BF16),
        (27, "refined", G32),
    ],
)
def test_a_search_that_was_stopped_goes_on_where_it_was(lab, refining, tmp_path, stop_after, phase, format):
    (tmp_path / "whole").mkdir()
    whole = search(tmp_path / "whole", in_formats=SHAPES)
    raced = list(lab.raced)
    assert (raced[stop_after].phase, raced[stop_after].format) == (phase, format), "the one that is stopped"
    stop(lab, tmp_path, stop_after, in_formats=SHAPES)
    assert not (tmp_path / "t.json").exists()
    assert search(tmp_path, in_formats=reversed(SHAPES)) == whole
    assert lab.raced == raced, "nothing is measured twice, and in the same order"
    assert (tmp_path / "t.json").read_text(encoding="utf-8") == (tmp_path / "whole" / "t.json").read_text(
        encoding="utf-8"
    )
    assert [file.name for file in tmp_path.glob("t.*")] == ["t.json"], "the partial file is gone"


OTHERS = (GemmProblem(1, 2048, 4096), GemmProblem(8, 2048, 4096))


@pytest.mark.parametrize(
    "other",
    [
        {"problems": OTHERS, "others": ()},
        {"problems": PROBLEMS[:3]},
        {"forms": FORMS[:1]},
        {"others": OTHERS[:1]},
        {"in_formats": SHAPES[:1]},
    ],
)
def test_a_search_does_not_go_on_where_one_for_something_else_was_stopped(lab, refining, tmp_path, other):
    """Not even with what both would race: the first one's partial file is replaced."""
    asked = {"others": OTHERS, "in_formats": SHAPES}
    (tmp_path / "whole").mkdir()
    whole = search(tmp_path / "whole", **asked | other)
    raced = list(lab.raced)
    stop(lab, tmp_path, 15, **asked)
    lab.raced[:] = []
    assert search(tmp_path, **asked | other) == whole
    assert lab.raced == raced, "everything is measured"


def test_a_race_of_what_promises_most_is_not_one_in_full(lab, refining, tmp_path):
    """The task of a weight says among which configs it was: the same weight may be raced among others another time."""
    search(tmp_path, others=OTHERS, in_formats=SHAPES)
    phases = {"full": {1, 8}, "between": {2}, "refined": {1, 2, 8}}
    assert {(task.phase, task.problem.N, task.problem.M) for task in lab.raced} == {
        *((phase, N, M) for phase, tokens in phases.items() for N in (1024, 4096) for M in tokens),
        *(("promising", 2048, M) for M in (1, 8)),
    }
    promising = set(lab.raced)
    lab.raced[:] = []
    search(tmp_path, problems=OTHERS)
    assert {task.problem for task in lab.raced} == set(OTHERS)
    assert not promising & set(lab.raced)


def test_progress_knows_among_which_configs_a_race_was(tmp_path):
    """What was refined, or is of another format, is no finalist to start from."""
    file, task = tmp_path / "p", Task("splitk", PROBLEMS[0])
    kept = Progress.open(file, TERMS)
    won = [(task, 1), (replace(task, phase="promising"), 2), (replace(task, problem=PROBLEMS[1], phase="between"), 3)]
    not_won = [(replace(task, phase="refined"), 4), (replace(task, format=BF16, phase="refined"), 5)]
    not_won += [
        (replace(task, form="fp16"), 6),
        (replace(task, problem=PROBLEMS[-1]), 7),
        (replace(task, format=G32), 8),
    ]
    for each, split_k in (*won, *not_won):
        kept.add(each, [(1.0, replace(CONFIG, split_k=split_k))])
    again = Progress.open(file, TERMS)
    assert list(again.ranked) == [each for each, _ in (*won, *not_won)]
    assert again.finalists("splitk", SHAPES[0]) == [replace(CONFIG, split_k=split_k) for split_k in (1, 2, 3)]


def test_only_what_is_still_to_be_measured_is_compiled(lab, tmp_path):
    """Of 8 races in full and 4 between, the last one is left: two tokens of the second weight, by the fp16 twin."""
    lab.stop_after = 11
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path)
    full, between = [{config for config, *_ in wanted} for wanted in lab.compiled]
    assert {config.form for config in full} == {config.form for config in between} == {"splitk", "fp16"}
    assert between < full, "what was compiled for the searches in full serves the token counts between"
    lab.stop_after = None
    search(tmp_path)
    *_, nothing, last, others, formats = lab.compiled
    assert nothing == others == formats == set()
    assert {config.form for config, *_ in last} == {"fp16"}


def test_a_search_of_single_weights_keeps_the_rows_and_crossovers_of_others(lab, tmp_path, monkeypatch):
    before, after = tmp_path / "before.json", tmp_path / "t.json"
    same = {"K": 4096, "latency_us": 99.0, "format": PLAIN, "config": CONFIG}
    old = [same | {"M": M, "N": N} for N in (1024, 512) for M in (1, 3)]
    crossed = [{"K": 4096, "N": N, "M": 77} for N in (1024, 512)]
    write_table(before, old, "table", "before", crossed)
    monkeypatch.setattr(tune, "_crossovers", lambda *_: [{"K": 4096, "N": 1024, "M": 48}])
    found = search(tmp_path, kept=before)
    rows, source, crossovers = read_table(after)
    assert (rows, source) == (found, "table")
    assert [row for row in rows if row["N"] == 512] == old[2:]
    assert all(row["latency_us"] < 99 for row in rows if row["N"] != 512)
    assert crossovers == [crossed[1], {"K": 4096, "N": 1024, "M": 48}]


def test_of_one_model_only_what_promises_most_and_what_won_nearby_is_raced(lab, tmp_path):
    """Without a search of its own shapes, the neighbours are those of the table, and all of its rows stay."""
    far = replace(CONFIG, block_n=16, block_k=128 * 16, num_warps=16, split_k=1)
    weights = [*((4096, 1024 + 16 * i) for i in range(tune.NEIGHBOURS)), (64, 64)]
    same = {"M": 1, "latency_us": 99.0, "format": PLAIN}
    old = [same | {"K": K, "N": N, "config": CONFIG if K == 4096 else far} for K, N in weights]
    write_table(tmp_path / "before.json", old, "table", "before")
    asked = tune.of_model(known_model("llama-3-8b"), 1)
    search(tmp_path, problems=(), forms=("splitk",), others=asked[:3], kept=tmp_path / "before.json")
    assert {(task.phase, task.problem) for task in lab.raced} == {("promising", each) for each in asked[:3]}
    (few_tokens, *_) = lab.configs.values()
    assert CONFIG in few_tokens, "what won at the nearest weights"
    assert len(few_tokens) <= tune.PROMISING + 1
    rows, _, _ = read_table(tmp_path / "t.json")
    assert [row for row in rows if (row["K"], row["N"]) in weights] == old


def test_of_a_model_without_groups_of_the_tuned_size_nothing_can_be_searched():
    with pytest.raises(ValueError, match="no projection of odd at tp=1 can be quantised in groups of 128"):
        tune.of_model(Model("odd", 96, 96, 1, 2, 2, 48, 100, ""), 1)


def test_crossovers_are_searched_with_the_config_that_won_in_the_end(lab, refining, tmp_path, monkeypatch):
    """What was refined is marked by its limit of registers. A weight that no config fits has no crossover."""
    race, received = tune._race, []

    def marked(task, *arguments):
        ranked = race(task, *arguments)
        return [(us, replace(config, max_registers=96 if task.phase == "refined" else 0)) for us, config in ranked]

    monkeypatch.setattr(tune, "_race", marked)
    monkeypatch.setattr(tune, "_crossovers", lambda fused, _: received.append(fused) or [])
    tiny = GemmProblem(16, 16, 128)
    assert not candidates.candidates_of("splitk", tiny, 132)
    problems = [tiny, *(GemmProblem(M, N, K) for K, N in SHAPES for M in (1, 8, 16))]
    rows = search(tmp_path, problems=problems, in_formats=SHAPES)
    last = {(row["K"], row["N"]): row["config"] for row in rows if row["M"] == 16 and row["config"].form == "splitk"}
    assert received == [last]
    assert set(last) == set(SHAPES)
    assert {(config.max_registers, config.block_m) for config in last.values()} == {(96, 16)}
    search(tmp_path, forms=["fp16"], problems=problems)
    assert received[1] == {}, "nothing fused was searched"


@pytest.mark.parametrize(
    ("knows_dependent_launch", "best"),
    [pytest.param(True, "steady", id="overlap: both places count"), pytest.param(False, "first", id="no overlap")],
)
def test_a_config_is_judged_overlapping_and_alone(monkeypatch, knows_dependent_launch, best):
    """The first is a little faster among calls of its own kind, and much slower behind any other kernel."""
    first, steady, slow = configs = [replace(CONFIG, split_k=split_k) for split_k in (1, 2, 4)]
    overlapping_us, behind_another_us = {first: 4.0, steady: 4.5, slow: 9.0}, {first: 3.0, steady: 1.0, slow: 1.0}
    clock, calls = FakeClock(primes=knows_dependent_launch), []

    def bind(config, x, weight):
        def call():
            behind = calls[-1:] == ["empty"]
            calls.append("product")
            clock.spend(overlapping_us[config] + (behind_another_us[config] if behind else 0.0))
            return x.double() @ weight.double().t()

        return call

    packed = quant.random_packed(32, 256, 128)
    weight = quant.dequantize(packed)
    weights = SimpleNamespace(packed=packed, copies=lambda *_: [weight, weight])
    monkeypatch.setattr(tune, "_bind", bind)
    monkeypatch.setattr("tinygemm.kernel.reference.empty_kernel", lambda: calls.append("empty"))
    x = torch.randn(1, 256, dtype=torch.float16)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    ranked = tune._race(Task("splitk", GemmProblem(1, 32, 256)), configs, x, weights, clock)
    assert ranked[0] == {"steady": (4.5, steady), "first": (4.0, first)}[best]
    assert {config: us for us, config in ranked} == overlapping_us, "the table holds the time of overlapping calls"


def test_predicted_rows_do_not_stay_beside_measured_ones(lab, tmp_path):
    write_table(tmp_path / "before.json", [], "predicted", "nobody has timed it")
    with pytest.raises(ValueError, match=r"before\.json is predicted, its rows cannot stay beside measured ones"):
        search(tmp_path, kept=tmp_path / "before.json")
    assert not lab.raced


def test_the_token_counts_between_come_after_those_that_are_searched_in_full_for_every_weight(lab, tmp_path):
    search(tmp_path)
    tokens = [task.problem.M for task in lab.raced]
    first = next(i for i, M in enumerate(tokens) if M not in tune.FULL_M)
    assert set(tokens[:first]) == {1, 8}
    assert set(tokens[first:]) == {2}
    assert len(lab.raced) == len(PROBLEMS) * len(FORMS)


def test_between_the_token_counts_that_are_searched_in_full_only_the_finalists_run(lab, tmp_path, monkeypatch):
    sizes = {}
    race = tune._race
    monkeypatch.setattr(tune, "_race", lambda *a: sizes.update({(a[0].form, a[0].problem.M): len(a[1])}) or race(*a))
    search(tmp_path)
    assert sizes["splitk", 1] > 20
    assert 3 <= sizes["splitk", 2] <= 6


def test_of_other_weights_only_what_promises_most_is_raced(lab, tmp_path, monkeypatch):
    """The best of the rough model and the finalists of the nearest weight, cut to the K there is."""
    monkeypatch.setattr(tune, "PROMISING", 10)  # few, so that a finalist is not among them
    raced = {}
    race = tune._race
    monkeypatch.setattr(tune, "_race", lambda *a: raced.update({(a[0].form, a[0].problem): a[1]}) or race(*a))
    others = tune.projections([(4096, 1024)])[:6]
    found = search(tmp_path, others=others)
    assert {(p.K, p.N) for p in others} <= {(row["K"], row["N"]) for row in found}
    spec, nearest = gpu_spec("h200"), (4096, 1024)  # of the two weights that are searched in full
    tried = [configs for (form, each), configs in raced.items() if form == "splitk" and (each.K, each.N) == nearest]
    for problem in others:
        configs = raced["splitk", problem]
        every = candidates.candidates_of("splitk", problem, 132)
        ranked = sorted(every, key=lambda c: candidates.predicted_us(c, problem, spec))[: tune.PROMISING]
        assert configs[: len(ranked)] == ranked
        won = configs[len(ranked) :]
        assert set(won) <= {fitted(config, problem) for configs in tried for config in configs}
        assert all(problem.N % config.block_n == 0 for config in won)
    assert any(len(raced["splitk", problem]) > tune.PROMISING for problem in others), "a finalist of the nearest weight"
    assert lab.raced[-1].problem == others[-1], "they come last"


def test_what_won_is_raced_again_with_every_limit_of_registers_and_in_other_formats(lab, refining, tmp_path):
    """After everything else, the FP16 twin as well; other formats where they are asked for and weights are packed."""
    rows = search(tmp_path, in_formats=SHAPES)
    again = [task for task in lab.raced if task.phase == "refined"]
    assert again == lab.raced[-len(again) :]
    assert {(task.form, task.format, task.problem.M, task.problem.group_size) for task in again} == {
        *((form, PLAIN, M, 128) for form in FORMS for M in (1, 2, 8)),
        *(("splitk", format, M, size) for format, size in ((BF16, 128), (G32, 32)) for M in (1, 8)),
    }  # fmt: skip
    for task in again:
        plain = {config for M in (1, 2, 8) for _, config in lab_ranked(lab.configs, task, M)}
        tried = lab.configs[task]
        assert plain < set(tried)
        assert {config.max_registers for config in tried} == {0, 128, 168}
        steps = {launches.steps(config) for config in plain}
        assert {launches.steps(config) for config in tried} == steps | {s // 2 for s in steps if s > 1}
    written = [(row["M"], row["K"], row["N"], row["format"]) for row in rows if row["format"] != PLAIN]
    assert sorted(written) == sorted((M, 4096, N, f) for M in (1, 8) for N in (1024, 4096) for f in (BF16, G32))
    assert read_table(tmp_path / "t.json")[0] == rows
    plain = [row for row in rows if row["format"] == PLAIN and row["config"].form == "splitk"]
    assert len(plain) == len(PROBLEMS), "one row for a problem, though it was raced twice"
    assert {row["config"].max_registers for row in plain} == {0}, "the one that won again"


def lab_ranked(raced, task, M):
    """The finalists that the fixture's race makes of what was raced in the plain format."""
    phase = "full" if M in tune.FULL_M else "between"
    configs = raced[Task(task.form, GemmProblem(M, task.problem.N, task.problem.K), phase=phase)]
    best = sorted(configs, key=lambda config: (config.split_k * config.num_warps, config))[:3]
    return [(0.0, config) for config in best]


@pytest.mark.parametrize("in_formats", [(), ((4096, 512),), ((4096, 4096),), ((4096, 512), (4096, 4096))])
def test_other_formats_are_raced_at_the_weights_they_are_asked_for(lab, refining, tmp_path, in_formats):
    """Whether they are the study's or not, and whatever else is tuned; rows of weights that are not searched stay."""
    assert ((4096, 512) in STUDY_SHAPES, (4096, 4096) in STUDY_SHAPES) == (False, True)
    problems = [GemmProblem(M, N, 4096) for N in (512, 4096) for M in (1, 2, 8)]
    before = tmp_path / "before.json"
    same = {"M": 1, "K": 4096, "latency_us": 99.0, "config": CONFIG}
    write_table(before, [same | {"N": N, "format": f} for N in (512, 1024) for f in (PLAIN, BF16)], "table", "before")
    rows = search(tmp_path, problems=problems, in_formats=[*in_formats, (4096, 8192)], kept=before)
    assert {(row["M"], row["K"], row["N"], row["format"]) for row in rows if row["format"] != PLAIN} == {
        (1, 4096, 1024, BF16),
        *((M, *shape, format) for shape in in_formats for format in (BF16, G32) for M in (1, 8)),
    }
    assert read_table(tmp_path / "t.json")[0] == rows
    assert all(task.problem.group_size == task.format.group_size for task in lab.raced)


@pytest.mark.parametrize("format", [PLAIN, BF16, ZEROS, G32])
def test_operands_of_a_search_are_stored_in_its_format(format, monkeypatch):
    monkeypatch.setattr(tune.registry, "operands", on_cpu(tune.registry.operands))
    monkeypatch.setattr(tune.registry, "activations", on_cpu(tune.registry.activations))
    problem = GemmProblem(2, 32, 128, format.group_size)
    weight, x = tune._weight(problem, format), tune._x(problem, format)
    assert (weight.group_size, weight.zeros is None) == (format.group_size, format.symmetric)
    assert (x.dtype, x.shape) == (torch.float16 if format.half else torch.bfloat16, (2, 128))


def on_cpu(make):
    return lambda *arguments, **named: make(*(a if a != "cuda" else "cpu" for a in arguments), **named)


def test_projections_are_of_models_and_leave_out_what_is_searched_in_full():
    found = tune.projections(REPORT_SHAPES)
    assert len(found) == len(set(found))
    assert {problem.M for problem in found} == {1, 8, 16}
    assert not {(problem.K, problem.N) for problem in found} & {*REPORT_SHAPES, *HELD_OUT_SHAPES}
    assert GemmProblem(8, 4096, 512) in found, "o_proj of Llama-3-8B on one of eight GPUs"


def test_no_point_of_the_map_is_far_from_all_that_is_tuned_and_none_is_tuned_that_is_near():
    known = {(p.K, p.N) for p in tune.projections(REPORT_SHAPES)} | set(REPORT_SHAPES)
    found = tune.far_points(known)
    points = {(p.K, p.N) for p in found}
    assert {(p.K, p.N, p.M) for p in found} == {(K, N, M) for K, N in points for M in (1, 8, 16)}
    assert (28672, 256) in points
    assert not points & (known | set(HELD_OUT_SHAPES))
    for K, N in itertools.product(suites.REGIME_K, suites.REGIME_N):
        nearest = min(apart(*weight, GemmProblem(1, N, K)) for weight in known | points)
        assert nearest <= tune.FAR
        if (K, N) in points:
            others = (known | points) - {(K, N)}
            assert min(apart(*weight, GemmProblem(1, N, K)) for weight in others) > tune.FAR


@pytest.mark.parametrize(("M", "rows"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, None), (12, None), (20, None)])
def test_a_ring_between_has_as_many_rows_of_x_as_there_are_tokens(M, rows):
    """The finalists of 1 and 8 tokens serve 3 in tiles of 4, and no ring serves 9; other forms keep their tiles."""
    finalists = [replace(RING, block_m=1), replace(RING, block_m=8), CONFIG, replace(CONFIG, block_m=16)]
    rings = [replace(RING, block_m=rows)] if rows else []
    assert candidates.for_tokens(M, finalists) == [*rings, replace(CONFIG, block_m=8 if M <= 8 else 16)]


@pytest.mark.parametrize("M", [1, 3, 8])
def test_candidates_of_the_ring_fit_into_shared_memory_and_are_as_long_as_they_can_be(M):
    found = candidates.candidates("ring", M)
    assert len(found) > 20
    w = quant.random_packed(64, 128)
    most = {}
    for config in found:
        assert config.block_m >= M
        assert config.block_m < 2 * M
        bytes_needed = config.num_stages * config.num_warps * launches.stage_bytes(config, w)
        assert bytes_needed <= launches.SHARED_BYTES
        loop = replace(config, num_stages=1)
        most[loop] = max(most.get(loop, 0), bytes_needed)
    for config, longest in most.items():
        assert longest > launches.SHARED_BYTES - config.num_warps * launches.stage_bytes(config, w), (
            "one more stage fits"
        )
    assert candidates.candidates("ring", 9) == []


def test_registers_are_limited_only_where_many_words_wait_in_them():
    """Counted after a config was cut to K: at K = 4864 the most that a warp of 16 requests is three blocks."""
    limits = {}
    problems = [GemmProblem(1, N, K) for K, N in ((4096, 4096), (4096, 512), (512, 4096), (4864, 896))]
    for config in (c for problem in problems for c in candidates.candidates_of("splitk", problem, 132)):
        words = config.block_n * launches.steps(config) // 2
        limits.setdefault(words, set()).add(config.max_registers)
    assert limits == {8: {0}, 16: {0}, 24: {96, 128, 168}, 32: {96, 128, 168}}


@pytest.mark.parametrize("num_warps", [1, 2, 4, 8, 16])
def test_a_program_fits_into_an_sm_under_every_limit_of_registers(num_warps):
    """An SM has 65,536 registers, on every GPU since Volta."""
    assert all(32 * num_warps * limit <= 65536 for limit in candidates.limits(num_warps))
    assert {config.num_warps for config in candidates.candidates("splitk", 1)} == {1, 2, 4, 8, 16}


def test_variants_of_what_won_begin_with_what_won():
    """Under whatever limit of registers that was: a config is only replaced by one that is faster in the same race."""
    won = [replace(CONFIG, max_registers=64), replace(CONFIG, block_k=512), RING]
    found = candidates.variants(won)
    assert found[:3] == won
    assert len(set(found)) == len(found)
    assert {config.max_registers for config in found} == {0, 64, 128, 168}
    assert {config.block_k for config in found} == {256, 512}, "never less than a block for every warp"


@pytest.mark.parametrize(("steps", "halves"), [(1, {1}), (2, {2, 1}), (3, {3, 1}), (4, {4, 2})])
def test_half_as_much_at_once_is_whole_blocks(steps, halves):
    """A config that was cut to its K may request three blocks at once."""
    won = replace(CONFIG, block_k=128 * CONFIG.num_warps * steps)
    assert {config.block_k // (128 * CONFIG.num_warps) for config in candidates.variants([won])} == halves


def test_whatever_wins_at_a_weight_that_is_tuned_has_variants():
    weights = dict.fromkeys((p.K, p.N) for p in tune.others(REPORT_SHAPES)) | dict.fromkeys(REPORT_SHAPES)
    for (K, N), form, M in itertools.product(weights, ("splitk", "ring", "fp16"), (1, 8)):
        found = candidates.candidates_of(form, GemmProblem(M, N, K), 132)
        assert set(found) <= set(candidates.variants(found))


def ranked(n: int) -> list:
    return [(1.0 + i, replace(CONFIG, split_k=i + 1)) for i in range(n)]


def test_progress_of_other_terms_is_not_gone_on_with(tmp_path):
    file = tmp_path / "p"
    Progress.open(file, TERMS).add(Task("splitk", PROBLEMS[0]), ranked(2))
    assert Progress.open(file, TERMS).ranked == {Task("splitk", PROBLEMS[0]): ranked(2)}
    for other in ({"gpu": "a10g"}, {"code": "abd"}, {"software": {"triton": "3.7.1"}}):
        Progress.open(file, TERMS).add(Task("splitk", PROBLEMS[0]), ranked(2))
        assert Progress.open(file, TERMS | other).ranked == {}
        assert Progress.open(file, TERMS).ranked == {}, "begun anew, the file is of the other terms"


def test_progress_survives_a_line_cut_short(tmp_path):
    file = tmp_path / "p"
    kept = Progress.open(file, TERMS)
    for problem in PROBLEMS[:2]:
        kept.add(Task("splitk", problem), ranked(3))
    file.write_text(file.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    again = Progress.open(file, TERMS)
    assert again.ranked == {Task("splitk", PROBLEMS[0]): ranked(3)}
    again.add(Task("splitk", PROBLEMS[1], Format(64), "refined"), ranked(1))
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[0]) == TERMS
    tasks = [Task("splitk", PROBLEMS[0]), Task("splitk", PROBLEMS[1], Format(64), "refined")]
    assert list(Progress.open(file, TERMS).ranked) == tasks, "a format is part of what was searched for"


def test_the_terms_of_a_search_change_with_the_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(progress.runs, "software_versions", lambda: {"triton": "3.6.0", "torch": "2.11.0"})
    package = tmp_path / "tinygemm"
    for name in ("kernel/triton/splitk.py", "harness/tune.py", "harness/candidates.py", "harness/progress.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("a = 1\n", encoding="utf-8")
    monkeypatch.setattr(progress, "__file__", str(package / "harness" / "progress.py"))
    before = progress.terms()
    assert progress.terms() == before
    (package / "kernel" / "triton" / "splitk.py").write_text("a = 2\n", encoding="utf-8")
    assert progress.terms() != before


# --- races ----------------------------------------------------------------------------------------------------------


def test_a_config_that_is_broken_in_one_format_is_missing_only_there(lab, monkeypatch):
    configs = [CONFIG, replace(CONFIG, split_k=8)]
    tasks = [Task("splitk", PROBLEMS[0], format, "refined") for format in (PLAIN, BF16, ZEROS)]
    wanted = []
    monkeypatch.setattr(tune, "_compile", lambda jobs, _: wanted.extend(jobs) or {(CONFIG, BF16), (configs[1], G32)})
    kept = Progress(None)
    alone = Task("splitk", PROBLEMS[1], BF16, "refined")
    tune._race_all(dict.fromkeys(tasks, configs) | {alone: [CONFIG]}, kept, 1000, 0)
    assert sorted(wanted) == sorted((config, True, task.format) for task in tasks for config in configs)
    assert lab.configs == {tasks[0]: configs, tasks[1]: configs[1:], tasks[2]: configs}
    assert list(kept.ranked) == tasks, "where every config is broken, nothing is raced"


@pytest.mark.parametrize(("format", "tolerance"), [(PLAIN, verify.FP16_TOLERANCE), (BF16, verify.BF16_TOLERANCE)])
def test_a_race_is_won_by_the_fastest_that_is_right_by_the_tolerance_of_its_format(monkeypatch, format, tolerance):
    clock, compare, tolerances = FakeClock(), verify.compare, []
    fast, slow, wrong = (replace(CONFIG, split_k=split_k) for split_k in (2, 3, 1))  # and as many us

    def bind(config, x, weight):
        out = quant.reference_gemm(x, weight).to(x.dtype) * (2 if config == wrong else 1)
        return lambda: clock.spend(config.split_k) or out

    def record(out, reference, tolerance):
        tolerances.append(tolerance)
        return compare(out, reference, tolerance)

    monkeypatch.setattr(tune, "_bind", bind)
    monkeypatch.setattr(tune.timing, "MIN_COLD_BYTES", 0)
    monkeypatch.setattr(verify, "compare", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    problem = GemmProblem(2, 32, 256)
    x = torch.randn(2, 256, dtype=torch.float16 if format.half else torch.bfloat16)
    weights = Weights(quant.random_packed(32, 256), l2_bytes=1)
    found = tune._race(Task("splitk", problem, format), [slow, wrong, fast], x, weights, clock)
    assert found == [(2.0, fast), (3.0, slow)]
    assert tolerances == [tolerance] * 3


# --- compiling ------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads(monkeypatch):
    """Threads in place of processes."""
    monkeypatch.setattr(compile, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))


class FakeFunction:
    """A Triton function with what it has compiled."""

    def __init__(self):
        self.device_caches = {0: ({}, {}, None, None, None)}

    def compile(self, key, n_spills):
        self.device_caches[0][0][key] = SimpleNamespace(n_spills=n_spills)


def test_spills_are_those_of_what_a_launch_compiles(monkeypatch):
    first, second = FakeFunction(), FakeFunction()
    monkeypatch.setattr(splitk, "kernel_fake_first", first, raising=False)
    monkeypatch.setattr(reference, "kernel_fake_second", second, raising=False)
    second.compile("old", 7)
    assert compile.spills_of(lambda: first.compile("a", 0)) == 0
    assert compile.spills_of(lambda: (first.compile("b", 12), second.compile("c", 3))) == 15
    assert compile.spills_of(lambda: None) == 0, "compiled before"


def test_a_config_that_fails_or_spills_is_dropped_with_a_word(monkeypatch, threads, capsys):
    reasons = {1: "OutOfResources: shared memory", 2: "it spills 40 registers", 4: None}
    monkeypatch.setattr(tune, "_compile_one", lambda wanted: reasons[wanted[0].split_k])
    wanted = {(replace(CONFIG, split_k=split), True, PLAIN) for split in reasons}
    assert tune._compile(wanted, 2) == {(replace(CONFIG, split_k=split), PLAIN) for split in (1, 2)}
    said = capsys.readouterr().out
    assert "split_k=1" in said
    assert "shared memory" in said
    assert "it spills 40 registers" in said
    assert tune._compile(set(), 2) == set()


@pytest.mark.parametrize("format", [PLAIN, BF16, ZEROS, G32])
def test_a_config_whose_launch_fails_or_spills_says_so(monkeypatch, format):
    """It is launched on operands of the format it is to be used for."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(tune, "COMPILE_K", 256)
    random_packed, randn = quant.random_packed, torch.randn
    monkeypatch.setattr(quant, "random_packed", lambda *a, device, **k: random_packed(*a, device="cpu", **k))
    monkeypatch.setattr(torch, "randn", lambda *a, device, **k: randn(*a, **k))
    function, operands = FakeFunction(), []
    monkeypatch.setattr(splitk, "kernel_fake", function, raising=False)

    def bind(config, x, w):
        operands.append((x.dtype, x.shape, w.group_size, w.zeros is not None))
        return lambda: function.compile(config, config.split_k - 1)

    monkeypatch.setattr(tune, "_bind", bind)
    assert tune._compile_one((replace(CONFIG, split_k=1), True, format)) is None
    assert tune._compile_one((replace(CONFIG, split_k=9), False, format)) == "it spills 8 registers"
    dtype = torch.bfloat16 if format == BF16 else torch.float16
    stored = (32 if format == G32 else 128, format == ZEROS)
    assert operands == [(dtype, (8, K), *stored) for K in (256, 384)], "the second does not fill its tiles"
    monkeypatch.setattr(tune, "_bind", lambda config, x, w: lambda: 1 / 0)
    assert tune._compile_one((CONFIG, True, format)) == "ZeroDivisionError: division by zero"


def test_work_is_spread_and_its_results_come_back_in_order(threads):
    assert list(compile.in_processes(abs, range(-20, 0), workers=3)) == list(range(20, 0, -1))


def test_every_kernel_of_the_report_is_compiled_once_on_the_smallest_weight_that_needs_it():
    todo = groups(SweepPlan.from_parameters(suites="decode"))
    jobs = compile.jobs_of(todo, "h200", True)
    assert len(set(jobs)) == len(jobs)
    assert {"int4", "fp16-triton", "int4-static", "int4-load-only"} <= {job.backend for job in jobs}
    assert not {"fp16-cublas", "aten-int4mm", "copy"} & {job.backend for job in jobs}, "nothing of ours compiles there"
    static = [job for job in jobs if job.backend == "int4-static"]
    assert [job.problem for job in static] == [GemmProblem(1, 512, 4096)]


def test_kernels_differ_by_what_triton_compiles_into_them():
    def job_count(*problems):
        todo = [Group(problem, str(problem), "graph", "cold", ("int4-static",)) for problem in problems]
        return len(compile.jobs_of(todo, "h200", True))

    base = GemmProblem(1, 4096, 4096)
    assert job_count(base, GemmProblem(8, 4096, 4096), GemmProblem(1, 1024, 8192)) == 1
    assert job_count(base, GemmProblem(1, 4096, 4096, 64)) == 2, "another group size"
    assert job_count(base, GemmProblem(1, 4090, 4096)) == 2, "16 does not divide N, and its last tile is not full"
    assert job_count(base, GemmProblem(1, 4096, 1024)) == 2, "16 does not divide the number of blocks of K"


def test_what_is_unsupported_or_has_no_config_is_not_compiled():
    clock = FakeClock()

    def no_config(*_):
        raise ValueError("no config")

    refused = replace(fake_backend("refused", clock), unsupported_reason=lambda *_: "not here")
    without = replace(fake_backend("without", clock), variants=no_config)
    group = Group(PROBLEMS[0], "word", "graph", "cold", ("refused", "without"))
    assert compile.jobs_of([group], "h200", True, {"refused": refused, "without": without}) == []


def test_a_sweep_goes_on_where_compiling_ahead_fails(monkeypatch, threads):
    todo = groups(SweepPlan.from_parameters(suites="decode"))
    said, launched = [], []
    monkeypatch.setattr(compile, "launch", lambda job: launched.append(job) or f"int4 {job.problem}: ptxas failed")
    compile.ahead(todo, "h200", True, said.append)
    assert set(launched) == set(compile.jobs_of(todo, "h200", True))
    assert said == [f"{len(launched)} of {len(launched)} kernels did not compile ahead, the first: "
                    f"int4 {launched[0].problem}: ptxas failed"]  # fmt: skip

    def broken(*_):
        raise BrokenProcessPool("a process ended")

    monkeypatch.setattr(compile, "in_processes", broken)
    compile.ahead(todo, "h200", True, said.append)
    assert said[1].startswith("compiling ahead stopped (a process ended)")


def test_a_few_kernels_are_left_to_the_measurement(monkeypatch):
    monkeypatch.setattr(compile, "in_processes", lambda *_: pytest.fail("processes were started"))
    compile.ahead(groups(SweepPlan(PROBLEMS, backends=("int4-static", "copy"))), "h200", True)


@pytest.mark.gpu
def test_a_job_compiles_its_kernel_on_the_gpu_and_a_second_launch_compiles_nothing():
    key = compile.hardware.live_gpu_key()
    todo = [Group(PROBLEMS[0], str(PROBLEMS[0]), "graph", "cold", ("int4", "int4-static", "fp16-triton"))]
    for job in compile.jobs_of(todo, key, True):
        assert compile.launch(job) is None
        assert compile._compiled()
        assert compile.spills_of(lambda job=job: compile.launch(job)) == 0
    compiled = len(compile._compiled())
    assert [compile.launch(job) for job in compile.jobs_of(todo, key, True)] == [None] * 3
    assert len(compile._compiled()) == compiled


def test_a_job_that_fails_says_which_and_why(monkeypatch):
    monkeypatch.setattr("tinygemm.hardware.live_gpu_key", lambda: "h200")
    monkeypatch.setattr(compile.registry, "operands", lambda *_, **__: 1 / 0)
    job = compile.Job("int4-static", "default", PROBLEMS[0], True)
    assert compile.launch(job) == f"int4-static {PROBLEMS[0]}: ZeroDivisionError: division by zero"
