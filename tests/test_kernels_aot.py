"""Launch configs of the tables, compiled for their GPU on any machine: their cost, and what they must not do.

A sample of them covers every kernel, GPU and format; with TINYGEMM_AOT=all it is every config.
"""

import hashlib
import itertools
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from ptx_order import inspected, noting_faults

from tinygemm.hardware import gpu_spec
from tinygemm.harness import predicted_table
from tinygemm.harness.static_cost import (
    SHARED_RESERVED,
    config_cost,
    launch_cost,
    launch_product,
    record_launches,
)
from tinygemm.kernel import gemm, launches, reference
from tinygemm.kernel.configs import M_BUCKETS, STATIC, YARDSTICKS, LaunchConfig, select, table, tables
from tinygemm.kernel.quant import random_packed
from tinygemm.problem import GemmProblem

pytestmark = pytest.mark.aot


def distinct_configs():
    """(gpu, config, problem, symmetric, dtype): the configs of each GPU's table, with a problem they are chosen for.

    Configs that differ only in how many programs share K have the same loop: the one with most shares stands for all.
    Of the yardsticks, the one with the largest tile of tokens stands for all of the same width.
    """
    distinct = {}
    for gpu in tables():
        for row in sorted(table(gpu)[0], key=lambda row: row["config"], reverse=True):
            config, format = row["config"], row["format"]
            loop = replace(config, split_k=1)
            if config.form in YARDSTICKS:
                loop = replace(loop, block_m=8)
            problem = GemmProblem(row["M"], row["N"], row["K"], format.group_size)
            dtype = torch.float16 if format.half else torch.bfloat16
            distinct.setdefault((gpu, loop, format), (gpu, config, problem, format.symmetric, dtype))
        distinct[gpu, STATIC] = (gpu, STATIC, GemmProblem(1, 4096, 4096), True, torch.float16)
    return list(distinct.values())


SPLITK = LaunchConfig("splitk", block_m=8, block_n=32, block_k=1024, split_k=4, num_warps=4, num_stages=1)
RING = LaunchConfig("ring", block_m=4, block_n=32, block_k=512, split_k=4, num_warps=4, num_stages=3)


def formats():
    """(gpu, config, problem, symmetric, dtype): all that the two fast forms multiply, tuned for or not."""
    groups = [GemmProblem(1, 4096, 4096, group_size) for group_size in (32, 64, 128, -1)]
    return list(itertools.product(tables(), (SPLITK, RING), groups, (True, False), (torch.float16, torch.bfloat16)))


def sample(keys):
    """A few of many configs: every kernel, group size, zeros and type for every GPU, and for every kernel.

    The digest of a config decides which, so that the choice is the same on every machine and has no favourites.
    """
    if os.environ.get("TINYGEMM_AOT") == "all":
        return keys
    chosen, covered = [], set()
    for key in sorted(keys, key=lambda key: hashlib.sha256(repr(key).encode()).digest()):
        gpu, config, problem, symmetric, dtype = key
        traits = (problem.group_size, (symmetric, dtype))
        shows = {(gpu, config.form), *itertools.product((gpu, config.form), traits)}
        if not shows <= covered:
            chosen.append(key)
            covered |= shows
    return chosen


def compared():
    """Keys of `formats` whose costs are compared with each other below."""
    return [
        key
        for key in formats()
        if key[3] and (key[2].group_size == -1 or (key[2].group_size == 128 and key[4] == torch.float16))
    ]


CONFIGS, FORMATS = sample(distinct_configs()), sample(formats())


def name(parameter):
    if isinstance(parameter, LaunchConfig):
        numbers = (parameter.block_m, parameter.block_n, parameter.block_k, parameter.split_k)
        return f"{parameter.form}-{'x'.join(map(str, numbers))}-w{parameter.num_warps}s{parameter.num_stages}"
    return str(parameter)


@pytest.fixture(scope="module")
def all_compiled():
    """(gpu, config, problem, symmetric, dtype of x) -> (StaticCost, faults), compiled two at a time."""
    keys = list(dict.fromkeys([*CONFIGS, *FORMATS, *compared()]))
    gpus, *others = zip(*keys, strict=True)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        results = pool.map(inspected, *others[:2], map(gpu_spec, gpus), *others[2:], chunksize=4)
        return dict(zip(keys, results, strict=True))


@pytest.fixture(scope="module")
def costs(all_compiled):
    return {key: cost for key, (cost, _) in all_compiled.items()}


# yardsticks are no products: the clock alone chose their configs, and the fastest for two shapes keeps a register or
# two in memory
YARDSTICK_SPILLS = 4
# a search drops what spills with the compiler that it has; with another version a config may put a pair of registers
# aside: under Triton 3.7 one ring of the H100's table does, which was searched with 3.6
OTHER_COMPILER_SPILLS = 2
# the most scales and zeros, untuned: in a pass over 256 weights of a thread the assembler of Triton 3.7 puts two values
# aside rather than exceed 168 registers, and reads one of them twice; that of 3.6 takes 185 and puts none aside
MOST_VALUES_SPILLS = 5


def assert_fits(cost, spills=0):
    spec = gpu_spec(cost.gpu)
    assert cost.spills <= spills, "registers spill to memory"
    assert cost.shared_bytes + SHARED_RESERVED <= spec.smem_per_sm
    assert cost.ctas_per_sm >= 1
    assert cost.registers * 32 * cost.warps_per_sm <= 65536


def assert_intended_loop(cost, config):
    """What the main loop of a fast kernel was built for, whatever the format."""
    assert cost.loop_count("I2F") + cost.loop_count("I2FP") == 0, "codes are converted one by one"
    # four LOP3 unpack a word of eight codes; twice as many would mean that two warps dequantise the same word
    assert 0.5 <= cost.per_weight("LOP3") < 0.8
    # one mma.m16n8k16 takes 8 weights of each thread and 8 tokens
    assert cost.loop_count("HMMA", "16816") == cost.loop_weights / 8 * max(1, config.block_m / 8)
    if config.form == "ring":
        assert cost.loop_count("LDGSTS", "BYPASS", "128") == cost.loop_weights / 32, "words are not copied in 16 bytes"
        assert cost.loop_count("LDG") == 0, "something waits in registers"
    else:
        assert cost.loop_count("LDG", "128") >= cost.loop_weights / 32, "words are not read 16 bytes at a time"
    assert cost.loop_count("STS") + cost.loop_count("SHFL") == 0, "something is moved from thread to thread"
    # two turn the walk and the ring around; more would choose between weights that lie in the wrong lanes
    assert cost.loop_count("SEL") <= 2, "weights are put into place one by one"
    assert cost.loop_count("BAR") == 0, "warps wait for each other"


@pytest.mark.parametrize(("gpu", "config", "problem", "symmetric", "dtype"), CONFIGS, ids=name)
def test_every_config_of_the_tables_fits_its_gpu_and_compiles_to_the_intended_loop(
    costs, gpu, config, problem, symmetric, dtype
):
    cost = costs[gpu, config, problem, symmetric, dtype]
    assert_fits(cost, YARDSTICK_SPILLS if config.form in YARDSTICKS else OTHER_COMPILER_SPILLS)
    wide_loads = cost.loop_count("LDGSTS", "128") + cost.loop_count("LDG", "128")
    if config.form == "load-only":
        passes, rest = divmod(wide_loads, cost.loop_weights / 32)  # the assembler may unroll this one
        assert passes >= 1
        assert rest == 0, "the words are not read once, 16 bytes at a time"
        assert cost.loop_count("HFMA2") + cost.loop_count("HADD2") == 0, "something is unpacked"
    elif config.form == "fp16":
        assert wide_loads >= cost.loop_weights / 8, "weights are not read 16 bytes at a time"
        assert cost.loop_count("HMMA", "16816") == cost.loop_weights / 8 * (config.block_m / 8)
    elif config.form != "static":
        assert_intended_loop(cost, config)
        # PRMT moves halves of x and of scales; putting the weights into place, too, would take half of one for each
        x_registers = 16 * max(config.block_m, 8) / 8
        assert cost.loop_count("PRMT") < 2 * x_registers + 0.2 * cost.loop_weights, "weights are shuffled into place"
        assert cost.per_weight() < 4, "more instructions than an H200 has time for at full bandwidth"


@pytest.mark.parametrize(("gpu", "config", "problem", "symmetric", "dtype"), [*CONFIGS, *FORMATS], ids=name)
def test_the_order_of_accesses_the_counter_and_the_width_of_offsets(
    all_compiled, gpu, config, problem, symmetric, dtype
):
    """In the PTX: wait, then x, then sums and outputs; no offset that overflows. See ptx_order.py."""
    _, faults = all_compiled[gpu, config, problem, symmetric, dtype]
    assert faults == []


@pytest.mark.parametrize(("gpu", "config", "problem", "symmetric", "dtype"), FORMATS, ids=name)
def test_every_format_compiles_to_the_same_loop(costs, gpu, config, problem, symmetric, dtype):
    """Whatever the group size, zeros and type of x: no weight moves to another lane, is converted or waits."""
    cost = costs[gpu, config, problem, symmetric, dtype]
    assert_fits(cost, MOST_VALUES_SPILLS if problem.group_size == 32 and not symmetric else 0)
    assert_intended_loop(cost, config)


@pytest.mark.parametrize("config", [SPLITK, RING], ids=name)
@pytest.mark.parametrize("gpu", tables())
def test_bfloat16_takes_two_shifts_more_per_word(costs, gpu, config):
    """Its codes fit the mantissa in the low bits only, so that every pair but the first is shifted there: 3, not 1."""
    problem = GemmProblem(1, 4096, 4096, -1)
    half, cost = (costs[gpu, config, problem, True, dtype] for dtype in (torch.float16, torch.bfloat16))
    assert cost.loop_count("HMMA", "BF16") == cost.loop_count("HMMA")
    assert cost.per_weight("SHF") == pytest.approx(half.per_weight("SHF") + 2 / 8, abs=0.05)


@pytest.mark.parametrize("gpu", tables())
def test_the_shared_memory_of_a_ring_is_counted_where_the_kernel_declares_it(costs, gpu):
    """48 KiB at the most are given without asking; a program's stages for every warp lie in them."""
    problem = GemmProblem(1, 4096, 4096, -1)
    ring = RING.num_stages * RING.num_warps * launches.stage_bytes(RING, random_packed(64, 4096, -1))
    assert ring <= costs[gpu, RING, problem, True, torch.float16].shared_bytes <= ring + 16, (
        "what the last share tells the others"
    )
    sums = 4 * SPLITK.num_warps * SPLITK.block_n * SPLITK.block_m
    assert sums <= costs[gpu, SPLITK, problem, True, torch.float16].shared_bytes <= sums + 16


def test_the_obvious_kernel_pays_for_its_shifts_and_conversions(costs):
    """What the fast forms save: the report's claim about dequantisation work rests on these two counts."""
    problem = GemmProblem(1, 4096, 4096)
    for gpu in tables():
        static = costs[gpu, STATIC, problem, True, torch.float16]
        assert static.per_weight() > 3 * costs[gpu, SPLITK, problem, True, torch.float16].per_weight()
        assert static.loop_count("I2FP") + static.loop_count("I2F") >= static.loop_weights


@pytest.mark.parametrize("gpu", tables())
def test_the_dequantisation_and_the_empty_kernel_fit(gpu):
    w = random_packed(4096, 4096).to("meta")
    launches = record_launches(lambda: (gemm.dequantize_fp16(w), reference.empty_kernel()))
    assert len(launches) == 2
    faults = []
    for launch in launches:
        with noting_faults(faults):
            assert_fits(launch_cost(launch, gpu_spec(gpu)))
    assert faults == []


@pytest.mark.parametrize("keys", [distinct_configs(), formats()], ids=["tables", "formats"])
def test_the_sample_shows_every_kernel_gpu_and_format(monkeypatch, keys):
    monkeypatch.delenv("TINYGEMM_AOT", raising=False)
    traits = (
        lambda key: (key[0], key[1].form),
        lambda key: (key[0], key[2].group_size),
        lambda key: (key[0], *key[3:]),
        lambda key: (key[1].form, key[2].group_size),
        lambda key: (key[1].form, *key[3:]),
    )
    few = sample(keys)
    assert len(few) < len(keys) / 2
    for trait in traits:
        assert set(map(trait, few)) == set(map(trait, keys))
    monkeypatch.setenv("TINYGEMM_AOT", "all")
    assert sample(keys) == keys


def test_a_call_with_more_tokens_than_a_tile_is_several_launches():
    w = random_packed(64, 256).to("meta")
    x = torch.empty(20, 256, dtype=torch.float16, device="meta")
    launches = record_launches(lambda: launch_product(x, w, SPLITK))
    assert [launch.arguments["M"] for launch in launches] == [8, 8, 4]
    assert [launch.grid for launch in launches] == [(2, 4, 1)] * 3


@pytest.mark.parametrize("gpu", tables())
@pytest.mark.parametrize(("K", "N"), [(4096, 4096), (4096, 1024), (11008, 4096)])
def test_any_number_of_tokens_is_served_by_few_binaries(gpu, K, N):
    """Triton compiles once for each kernel, constants, options and integers, but those it is told not to look at."""
    w = random_packed(N, 128).to("meta")
    w = replace(w, qweight=w.qweight.repeat(1, K // 128, 1, 1), scales=w.scales.repeat(K // 128, 1), K=K)
    binaries = set()
    for M in range(1, 300):
        config, _ = select(GemmProblem(M, N, K), gpu, "fused")
        for one in launches.product(config, M, w, K, pdl=True):
            run_time = [parameter for parameter in one.kernel.params if not parameter.is_constexpr]
            numbers = zip(run_time[-len(one.numbers) :], one.numbers, strict=True)
            seen = tuple(value for parameter, value in numbers if not parameter.do_not_specialize)
            binaries.add((one.kernel, seen, *one.constants.items(), *one.options.items()))
    assert len(binaries) <= len(M_BUCKETS)


def test_a_predicted_table_holds_what_keeps_its_registers(tmp_path, monkeypatch):
    """For 16 tokens the rough model's favourites spill on an A10G."""
    problem, spec = GemmProblem(16, 4096, 4096), gpu_spec("a10g")
    monkeypatch.setattr(predicted_table, "REPORT_SHAPES", ((problem.K, problem.N),))
    monkeypatch.setattr(predicted_table, "DECODE_M", (problem.M,))
    rows = predicted_table.predict_table("a10g", tmp_path / "a10g.json")
    assert json.loads((tmp_path / "a10g.json").read_text(encoding="utf-8"))["source"] == "predicted"
    assert {"splitk", "fp16"} >= {row["config"].form for row in rows} > {"fp16"}
    for row in rows:
        assert config_cost(row["config"], problem, spec).spills == 0
