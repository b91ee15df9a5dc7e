"""Every launch config of the tables, compiled for its GPU on any machine: its cost, and what it must not do."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch

from tinygemm.hardware import gpu_spec
from tinygemm.harness.static_cost import SHARED_RESERVED, config_cost, count, launch_cost, record_launches
from tinygemm.kernel import gemm
from tinygemm.kernel.configs import STATIC, LaunchConfig, table, tables
from tinygemm.kernel.quant import random_packed
from tinygemm.problem import GemmProblem

pytestmark = pytest.mark.aot


def distinct_configs():
    """(gpu, config, problem): each config of a GPU's table once, with the first problem it is chosen for."""
    first = {}
    for gpu in tables():
        for row in table(gpu)[0]:
            first.setdefault((gpu, row["config"]), GemmProblem(row["M"], row["N"], row["K"]))
        first[gpu, STATIC] = GemmProblem(1, 4096, 4096)
    return [(gpu, config, problem) for (gpu, config), problem in first.items()]


SPLITK = LaunchConfig("splitk", block_m=8, block_n=32, block_k=512, split_k=4, num_warps=4, num_stages=3)
GEMV = LaunchConfig("gemv", block_m=1, block_n=32, block_k=256, split_k=4, num_warps=4, num_stages=3)
FORMATS = [(SPLITK, 32), (SPLITK, 64), (SPLITK, 128), (SPLITK, -1), (GEMV, 128), (GEMV, -1)]


def other_formats():
    """(gpu, config, problem, symmetric): the group sizes and zero modes that the tables were not tuned for."""
    return [
        (gpu, config, GemmProblem(1, 4096, 4096, group_size), symmetric)
        for gpu in tables()
        for config, group_size in FORMATS
        for symmetric in (True, False)
        if (group_size, symmetric) != (128, True)
    ]


def name(parameter):
    if isinstance(parameter, LaunchConfig):
        numbers = (parameter.block_m, parameter.block_n, parameter.block_k, parameter.split_k)
        return f"{parameter.form}-{'x'.join(map(str, numbers))}-w{parameter.num_warps}s{parameter.num_stages}"
    return str(parameter)


@pytest.fixture(scope="module")
def costs():
    """(gpu, config, problem, symmetric) -> StaticCost, compiled two at a time."""
    keys = [(*key, True) for key in distinct_configs()] + other_formats()
    specs = [gpu_spec(gpu) for gpu, *_ in keys]
    _, configs, problems, symmetric = zip(*keys, strict=True)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        return dict(zip(keys, pool.map(config_cost, configs, problems, specs, symmetric, chunksize=4), strict=True))


def assert_fits(cost):
    spec = gpu_spec(cost.gpu)
    assert cost.spills == 0
    assert cost.shared_bytes + SHARED_RESERVED <= spec.smem_per_sm
    assert cost.ctas_per_sm >= 1
    assert cost.registers * 32 * cost.warps_per_sm <= 65536


def assert_fast(cost, config):
    """What the fast kernels' main loop was built for."""
    assert count(cost.body, "I2F") + count(cost.body, "I2FP") == 0, "codes are converted one by one"
    assert cost.per_weight("PRMT") < 0.1, "bytes are shuffled into place"
    # four LOP3 unpack a word of eight codes; more would mean that several warps dequantise the same word
    assert 0.5 <= cost.per_weight("LOP3") < 0.6
    assert cost.per_weight() < 4, "more instructions than an H200 has time for at full bandwidth"
    wide_loads = cost.loop_count("LDGSTS", "128") + cost.loop_count("LDG", "128")
    assert wide_loads >= cost.loop_weights / 32, "words are not read 16 bytes at a time"
    if config.form == "splitk":  # one mma.m16n8k16 takes 8 weights of each thread and 8 tokens
        assert cost.loop_count("HMMA", "16816") == cost.loop_weights / 8 * (config.block_m / 8)


@pytest.mark.parametrize(("gpu", "config", "problem"), distinct_configs(), ids=name)
def test_every_config_of_the_tables_fits_its_gpu_and_compiles_to_the_intended_loop(costs, gpu, config, problem):
    cost = costs[gpu, config, problem, True]
    assert_fits(cost)
    if config.form != "static":
        assert_fast(cost, config)


@pytest.mark.parametrize(("gpu", "config", "problem", "symmetric"), other_formats(), ids=name)
def test_other_group_sizes_and_zeros_compile_to_the_same_loop(costs, gpu, config, problem, symmetric):
    cost = costs[gpu, config, problem, symmetric]
    assert_fits(cost)
    assert_fast(cost, config)


def test_the_obvious_kernel_pays_for_its_shifts_and_conversions(costs):
    """What the fast forms save: the report's claim about dequantisation work rests on these two counts."""
    problem = GemmProblem(1, 4096, 4096)
    for gpu in tables():
        static = costs[gpu, STATIC, problem, True]
        assert static.per_weight() > 3 * costs[gpu, SPLITK, replace(problem, group_size=-1), True].per_weight()
        assert static.loop_count("I2FP") + static.loop_count("I2F") >= static.loop_weights


@pytest.mark.parametrize("gpu", tables())
def test_load_only_reads_like_the_fast_kernel_and_does_not_unpack(gpu):
    w = random_packed(4096, 4096).to("meta")
    (launch,) = record_launches(lambda: gemm.load_only(w, SPLITK))
    cost = launch_cost(launch, gpu_spec(gpu))
    assert_fits(cost)
    words_per_thread = SPLITK.block_n * SPLITK.block_k / 8 / 128
    assert cost.loop_count("LDGSTS", "128") + cost.loop_count("LDG", "128") == words_per_thread / 4
    assert cost.loop_count("HFMA2") + cost.loop_count("HADD2") == 0


@pytest.mark.parametrize("gpu", tables())
def test_the_fp16_twin_and_the_dequantisation_fit(gpu):
    half = {"dtype": torch.float16, "device": "meta"}
    x, weight, w = torch.empty(8, 4096, **half), torch.empty(4096, 4096, **half), random_packed(4096, 4096).to("meta")
    launches = record_launches(
        lambda: (gemm.fp16_gemm(x, weight, SPLITK), gemm.dequantize_fp16(w), gemm.empty_kernel())
    )
    assert len(launches) == 3
    for launch in launches:
        assert_fits(launch_cost(launch, gpu_spec(gpu)))


def test_a_call_with_more_tokens_than_a_tile_is_several_launches():
    w = random_packed(64, 256).to("meta")
    x, out = (torch.empty(20, n, dtype=torch.float16, device="meta") for n in (256, 64))
    launches = record_launches(lambda: gemm._launch_splitk(x, w, out, SPLITK))
    assert [launch.arguments["M"] for launch in launches] == [8, 8, 4]
    assert [launch.grid for launch in launches] == [(2, 4)] * 3
