"""Launch configs: what the tables hold, and which config a problem gets."""

import itertools
import json
import re
from dataclasses import replace

import pytest

from tinygemm.hardware import GPUS
from tinygemm.kernel import configs
from tinygemm.kernel.configs import (
    DEQUANTISE,
    DEQUANTISE_FROM_M,
    PLAIN,
    STATIC,
    Format,
    LaunchConfig,
    crossovers,
    fitted,
    select,
    table,
    tables,
    write_table,
)
from tinygemm.problem import DECODE_M, REPORT_SHAPES, STUDY_SHAPES, GemmProblem

SPLITK = LaunchConfig("splitk", 8, 64, 256, 4, 2, 1)
RING = LaunchConfig("ring", 1, 64, 512, 4, 4, 3)


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A folder of tables with one GPU, whose rows the test writes."""
    monkeypatch.setattr(configs, "_folder", lambda: tmp_path)
    forget()

    def write(rows, gpu="h200", source="table", dequantise_from_m=()):
        names = ("M", "K", "N", "latency_us", "config", "format")
        content = [dict(zip(names, (*row, PLAIN)[:6], strict=True)) for row in rows]
        crossover = [{"K": K, "N": N, "M": M} for K, N, M in dequantise_from_m]
        write_table(tmp_path / f"{gpu}.json", content, source, "planted", crossover)
        forget()

    yield write
    forget()


def forget():
    table.cache_clear()
    crossovers.cache_clear()


@pytest.mark.parametrize("gpu", tables())
def test_every_gpu_has_a_config_of_its_own_for_every_problem_of_the_report(gpu):
    own = table(gpu)[1]
    assert own in ("table", "predicted")
    for (K, N), M in itertools.product(REPORT_SHAPES, DECODE_M):
        _, source = select(GemmProblem(M, N, K), gpu)
        assert source == own, (M, K, N)


@pytest.mark.parametrize("gpu", tables())
def test_every_config_of_the_tables_serves_its_problem_in_one_launch(gpu):
    for row in table(gpu)[0]:
        config, problem = row["config"], GemmProblem(row["M"], row["N"], row["K"], row["format"].group_size)
        assert config.form in ("splitk", "ring", "fp16", "load-only")
        assert config.block_m >= problem.M or config.form == "load-only", problem
        assert fitted(config, problem) == config, f"{problem}: warps, shares or requests that would be empty"
        if config.form in ("ring", "load-only"):  # they have no masks
            whole = config.block_k if config.form == "load-only" else 128
            assert problem.N % config.block_n == problem.K % whole == 0, problem


# of the tables: the weights that were searched in full; forms of which nothing fitted there; where other formats were
# raced; for how many tokens the models' projections and far points of the map were searched besides, and up to which
# weight: the search of the H200 was stopped there
SEARCHES = {
    "a10g": (REPORT_SHAPES, {(4096, 28672): {"fp16"}}, (), (), None),
    "h200": (REPORT_SHAPES, {}, STUDY_SHAPES, (1, 8, 16), (2048, 3584)),
    "h100-80gb-hbm3": (REPORT_SHAPES, {}, STUDY_SHAPES, (1, 8), None),
}


@pytest.mark.parametrize("gpu", tables())
def test_every_row_of_a_table_is_of_a_problem_that_the_search_was_asked_for(gpu):
    """And every problem has its row: a typo in a row is one of them too few and one too many."""
    tune = pytest.importorskip("tinygemm.harness.tune")
    weights, without, in_formats, others_for, last = SEARCHES[gpu]
    asked = []
    for (K, N), M in itertools.product(weights, DECODE_M):
        forms = {"splitk", "fp16"} | ({"ring"} if M <= 8 else set()) | ({"load-only"} if M == 1 else set())
        asked += [(M, K, N, form, PLAIN) for form in forms - without.get((K, N), set())]
    others = [each for each in tune.others(weights) if each.M in others_for and (not last or (each.K, each.N) <= last)]
    for each, form in itertools.product(others, ("splitk", "ring", "fp16")):
        if form != "ring" or each.M <= 8:
            asked.append((each.M, each.K, each.N, form, PLAIN))
    for (K, N), M, form in itertools.product(in_formats, (1, 8), ("splitk", "ring")):
        asked += [(M, K, N, form, format) for format in tune.OTHER_FORMATS]
    rows = [(row["M"], row["K"], row["N"], row["config"].form, row["format"]) for row in table(gpu)[0]]
    assert sorted(rows) == sorted(asked)


def test_the_fastest_config_of_the_problem_itself_comes_first(planted):
    faster = replace(SPLITK, split_k=8)
    planted([(1, 4096, 4096, 6.0, SPLITK), (1, 4096, 4096, 5.0, faster), (1, 4096, 1024, 3.0, RING)])
    assert select(GemmProblem(1, 4096, 4096), "h200") == (faster, "table")
    assert select(GemmProblem(1, 1024, 4096), "h200") == (RING, "table")


def test_a_predicted_table_says_so(planted):
    planted([(1, 4096, 4096, 0.0, SPLITK)], gpu="a10g", source="predicted")
    assert select(GemmProblem(1, 4096, 4096), "a10g") == (SPLITK, "predicted")


def test_a_shape_outside_the_table_gets_the_nearest_one_of_its_own_tokens(planted):
    wide, tall, many = (replace(SPLITK, split_k=n) for n in (2, 8, 1))
    planted([(1, 4096, 14336, 9.0, wide), (1, 14336, 4096, 9.0, tall), (4, 4096, 12000, 9.0, many)])
    assert select(GemmProblem(1, 12000, 4096), "h200") == (wide, "rule")
    assert select(GemmProblem(1, 4096, 11008), "h200") == (tall, "rule")
    assert select(GemmProblem(3, 12000, 4096), "h200") == (many, "rule"), "three tokens go where four do"


def test_a_near_shape_counts_more_than_the_same_number_of_tokens(planted):
    """But not across the tiles of 8 and 16 rows of x."""
    near, far, many = SPLITK, replace(SPLITK, split_k=2), replace(SPLITK, block_m=16)
    planted([(1, 4096, 4096, 5.0, near), (4, 4096, 14336, 9.0, far), (16, 14336, 14336, 9.0, many)])
    assert select(GemmProblem(4, 4608, 4096), "h200") == (near, "rule")
    assert select(GemmProblem(9, 4096, 4096), "h200") == (many, "rule")


@pytest.mark.parametrize(("K", "expected"), [
    (4096, (4, 2, 1024)), (1024, (4, 2, 512)), (512, (4, 1, 512)), (384, (4, 1, 512)), (200, (2, 1, 256)),
    (64, (1, 1, 128)),
])  # fmt: skip
def test_a_config_of_another_shape_is_cut_to_the_k_there_is(planted, K, expected):
    """Four warps that request two blocks each, in two programs: less of all where K has fewer blocks."""
    planted([(1, 4096, 4096, 5.0, LaunchConfig("splitk", 8, 16, 1024, 2, 4, 1))])
    config = select(GemmProblem(1, 4000, K, -1), "h200")[0]
    assert (config.num_warps, config.split_k, config.block_k) == expected


def test_a_ring_of_another_shape_holds_as_many_rows_of_x_as_there_are_tokens(planted):
    planted([(8, 4096, 4096, 5.0, replace(RING, block_m=8))])
    assert select(GemmProblem(3, 8192, 8192), "h200") == (replace(RING, block_m=4), "rule")


def test_many_tokens_use_the_largest_bucket(planted):
    planted([(1, 4096, 4096, 5.0, RING), (16, 4096, 4096, 7.0, replace(SPLITK, block_m=16))])
    assert select(GemmProblem(40, 4096, 4096), "h200") == (replace(SPLITK, block_m=16), "rule")
    assert select(GemmProblem(1000, 4096, 4096), "h200", "fused") == (replace(SPLITK, block_m=16), "rule")


def test_from_the_measured_crossover_on_the_weight_is_dequantised_first(planted):
    tuned = [(16, 4096, 4096, 7.0, replace(SPLITK, block_m=16))]
    planted(tuned, dequantise_from_m=[(4096, 4096, 48), (4096, 14336, 96)])
    assert select(GemmProblem(47, 4096, 4096), "h200")[0].form == "splitk"
    assert select(GemmProblem(48, 4096, 4096), "h200") == (DEQUANTISE, "table")
    assert select(GemmProblem(48, 4096, 4096, 64), "h200") == (DEQUANTISE, "rule"), "timed with groups of 128"
    assert select(GemmProblem(48, 12000, 4096), "h200")[0].form == "splitk", "the nearest shape is the wide one"
    assert select(GemmProblem(96, 12000, 4096), "h200") == (DEQUANTISE, "rule")
    assert select(GemmProblem(48, 4096, 4096), "h200", "fused")[0].form == "splitk"


def test_a_table_without_a_crossover_has_a_default_one(planted):
    planted([(16, 4096, 4096, 7.0, replace(SPLITK, block_m=16))])
    assert select(GemmProblem(DEQUANTISE_FROM_M - 1, 4096, 4096), "h200")[0].form == "splitk"
    assert select(GemmProblem(DEQUANTISE_FROM_M, 4096, 4096), "h200") == (DEQUANTISE, "default")
    assert select(GemmProblem(1, 4096, 4096), "h200", "dequantise") == (DEQUANTISE, "default")


def test_a_crossover_lent_by_another_gpu_is_a_rule(planted):
    tuned = [(16, 4096, 4096, 7.0, replace(SPLITK, block_m=16))]
    planted(tuned, gpu="a10g", source="predicted", dequantise_from_m=[(4096, 4096, 48)])
    assert select(GemmProblem(48, 4096, 4096), "a10g") == (DEQUANTISE, "predicted")
    assert select(GemmProblem(48, 4096, 4096), "rtx-3090") == (DEQUANTISE, "rule")


def test_another_group_size_is_not_claimed_to_be_tuned(planted):
    planted([(1, 4096, 4096, 5.0, SPLITK)])
    assert select(GemmProblem(1, 4096, 4096, 64), "h200") == (SPLITK, "rule")


def test_where_only_the_ring_was_tuned_another_m_lends_its_config(planted):
    """One token and an N that leaves a tile half full: the ring has no masks, the config of two tokens is nearest."""
    planted(
        [(1, 4096, 4096, 5.0, RING), (2, 4096, 4096, 6.0, SPLITK), (16, 4096, 4096, 7.0, replace(SPLITK, block_m=16))]
    )
    assert select(GemmProblem(1, 4080, 4096), "h200") == (SPLITK, "rule")
    planted([(1, 4096, 4096, 5.0, RING)], gpu="a10g")
    with pytest.raises(ValueError, match="the table of a10g has no config of form splitk"):
        select(GemmProblem(2, 4080, 4096), "a10g")


def test_what_only_reads_is_never_given_a_tile_that_it_cannot_fill(planted):
    """It has no masks, and its config is not cut to the K there is."""
    small, large = (replace(SPLITK, form="load-only", block_n=n, block_k=k) for n, k in ((16, 256), (64, 2048)))
    planted([(1, 4096, 4096, 4.0, large), (1, 4096, 512, 1.0, small)])
    assert select(GemmProblem(1, 4096, 4096), "h200", "load-only") == (large, "table")
    assert select(GemmProblem(1, 4112, 4096), "h200", "load-only") == (small, "rule")
    assert select(GemmProblem(1, 4096, 4096 + 256), "h200", "load-only") == (small, "rule")
    with pytest.raises(ValueError, match="the table of h200 has no config of form load-only for M=1 N=4096 K=4224"):
        select(GemmProblem(1, 4096, 4224), "h200", "load-only")


def test_a_form_can_be_forced(planted):
    planted([(1, 4096, 4096, 5.0, RING), (1, 4096, 4096, 6.0, SPLITK)])
    problem = GemmProblem(1, 4096, 4096)
    assert select(problem, "h200")[0] == RING
    assert select(problem, "h200", form="splitk")[0] == SPLITK
    assert select(problem, "h200", form="static") == (STATIC, "default")


def test_a_yardstick_is_never_chosen_to_compute_the_product(planted):
    """The kernel that only reads is faster than any that computes."""
    yardstick = replace(SPLITK, form="load-only")
    planted([(1, 4096, 4096, 6.0, SPLITK), (1, 4096, 4096, 4.0, yardstick)])
    assert select(GemmProblem(1, 4096, 4096), "h200") == (SPLITK, "table")
    assert select(GemmProblem(1, 4096, 4096), "h200", form="load-only") == (yardstick, "table")


@pytest.mark.parametrize(
    ("M", "N", "K", "group_size"), [(9, 4096, 4096, 128), (1, 4080, 4096, 64), (1, 4096, 4160, 32), (1, 4096, 64, -1)]
)
def test_the_ring_is_never_chosen_for_what_it_cannot_compute(planted, M, N, K, group_size):
    """More rows of x than it has room for, N that does not fill its tiles, K that is no multiple of 128."""
    planted([(1, 4096, 4096, 5.0, RING), (1, 4096, 4096, 6.0, SPLITK)])
    problem = GemmProblem(M, N, K, group_size)
    assert select(problem, "h200")[0].form == "splitk"
    with pytest.raises(ValueError, match="the table of h200 has no config of form ring"):
        select(problem, "h200", form="ring")


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_the_ring_serves_every_group_size_and_any_whole_tiles(planted, group_size):
    planted([(1, 4096, 4096, 5.0, RING), (1, 4096, 4096, 6.0, SPLITK)])
    assert select(GemmProblem(1, 4160, 8320, group_size), "h200")[0] == RING


@pytest.mark.parametrize(("group_size", "symmetric", "half", "limit"), [
    (128, True, True, 168), (-1, True, True, 168), (64, True, True, 0), (32, True, True, 0), (128, False, True, 0),
    (128, True, False, 0),
])  # fmt: skip
def test_a_limit_of_registers_holds_for_the_format_it_was_tuned_for(planted, group_size, symmetric, half, limit):
    """More scales, zeros and bfloat16 take more registers; under the limit they would wait in memory."""
    planted([(1, 4096, 4096, 5.0, replace(SPLITK, max_registers=168))])
    problem = GemmProblem(1, 4096, 4096, group_size)
    config, source = select(problem, "h200", symmetric=symmetric, half=half)
    assert config == replace(SPLITK, max_registers=limit)
    assert source == ("table" if limit and group_size == 128 else "rule")


FORMATS = {
    "bf16": ({"half": False}, 128, Format(half=False)),
    "asymmetric": ({"symmetric": False}, 128, Format(symmetric=False)),
    "groups of 64": ({}, 64, Format(64)),
}


@pytest.mark.parametrize("latency_us", [4.0, 6.0], ids=["faster", "slower"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_the_format_itself_comes_first_and_serves_nobody_else(planted, name, latency_us):
    """Unless its shape is further away than another format counts."""
    asked, group_size, format = FORMATS[name]
    own = replace(SPLITK, split_k=8, max_registers=128)
    planted([(1, 4096, 4096, 5.0, SPLITK), (1, 4096, 4096, latency_us, own, format), (1, 1024, 512, 2.0, SPLITK)])
    assert select(GemmProblem(1, 4096, 4096, group_size), "h200", **asked) == (own, "table")
    assert select(GemmProblem(1, 6144, 4096, group_size), "h200", **asked) == (own, "rule")
    assert select(GemmProblem(1, 512, 1024, group_size), "h200", **asked) == (SPLITK, "rule")
    for other, (others, size, _) in FORMATS.items():
        if other != name:
            assert select(GemmProblem(1, 4096, 4096, size), "h200", **others) == (SPLITK, "rule")
    assert select(GemmProblem(1, 4096, 4096), "h200") == (SPLITK, "table")
    assert select(GemmProblem(1, 4096, 4096), "h200", symmetric=False, half=False) == (SPLITK, "rule"), "both at once"


def test_every_table_is_of_a_known_gpu():
    assert set(tables()) <= set(GPUS)


@pytest.mark.parametrize(
    ("gpu", "nearest"), [("rtx-3090", "a10g"), ("l4", "a10g"), ("h100-80gb-hbm3", "h200"), ("quadro-x", "a10g")]
)
def test_a_gpu_without_a_table_takes_that_of_the_nearest_compute_capability(planted, gpu, nearest):
    configs_of = {"a10g": SPLITK, "h200": replace(SPLITK, split_k=8)}
    for key, config in configs_of.items():
        planted([(1, 4096, 4096, 5.0, config)], gpu=key)
    assert select(GemmProblem(1, 4096, 4096), gpu) == (configs_of[nearest], "rule")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("form", "magic", "form must be one of static, splitk, ring, load-only, fp16, dequantise, got 'magic'"),
        ("num_stages", 2, "num_stages=2 must be 1"),
        ("block_m", 4, "block_m=4 must be a multiple of 8"),
        ("block_n", 48, "block_n=48 must be a power of two"),
        ("block_n", 8, "block_n=8 must be at least 16"),
        ("block_m", 0, "block_m must be a positive integer, got 0"),
        ("num_stages", 2.0, "num_stages must be a positive integer, got 2.0"),
        ("num_warps", 3, "num_warps=3 must be a power of two"),
        ("block_k", 128, "block_k=128 must be a multiple of 128 * num_warps=256"),
        ("max_registers", -1, "max_registers must be a positive integer, got -1"),
        ("max_registers", 128.0, "max_registers must be a positive integer, got 128.0"),
    ],
)
def test_a_config_that_no_kernel_could_run_is_refused(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(SPLITK, **{field: value})


def test_forms_have_their_own_constraints():
    for wrong in ({"block_m": 16}, {"block_k": 1024}):
        with pytest.raises(ValueError, match="ring needs block_m of at most 8 and block_k of 128 a warp"):
            replace(RING, **wrong)
    with pytest.raises(ValueError, match="block_m=3 must be a power of two"):
        replace(RING, block_m=3)
    with pytest.raises(ValueError, match="static needs split_k=1 and block_k=128"):
        replace(STATIC, split_k=2)
    with pytest.raises(ValueError, match="form must be one of"):
        select(GemmProblem(1, 4096, 4096), "h200", form="magic")


def test_a_written_table_reads_back_and_has_one_row_per_line(planted, tmp_path):
    limited = replace(SPLITK, max_registers=168)
    bf16 = Format(half=False)
    planted([(1, 4096, 4096, 5.25, limited), (2, 4096, 4096, 5.5, RING, bf16)], dequantise_from_m=[(4096, 4096, 48)])
    rows, source = table("h200")
    assert source == "table"
    assert [(row["M"], row["latency_us"], row["config"], row["format"]) for row in rows] == [
        (1, 5.25, limited, PLAIN), (2, 5.5, RING, bf16)
    ]  # fmt: skip
    text = (tmp_path / "h200.json").read_text(encoding="utf-8")
    assert json.loads(text)["about"] == "planted"
    assert json.loads(text)["dequantise_from_m"] == [{"K": 4096, "N": 4096, "M": 48}]
    assert sum('"config"' in line for line in text.splitlines()) == 2
    assert sum('"format"' in line for line in text.splitlines()) == 1, "the plain one goes without saying"
