"""The committed counts of machine code: they are those of this commit's kernels."""

import itertools
from dataclasses import replace

import pandas as pd
import pytest
import torch
import triton

from tinygemm.cli import main
from tinygemm.hardware import gpu_spec
from tinygemm.harness.static_cost import config_cost
from tinygemm.harness.static_table import FORMATS, MORE_TOKENS, OPCODES, PROBLEMS, static_row
from tinygemm.kernel.configs import STATIC, LaunchConfig, select
from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report.base.tables import LAUNCH_CONFIG
from tinygemm.report.limits.tables import STATIC as STATIC_COLUMNS
from tinygemm.report.limits.tables import static_file

pytestmark = pytest.mark.aot
HINT = "run `tinygemm static-cost --gpu {}`"
FILES = sorted(static_file("h200").parent.glob("*.csv"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_committed_table_is_of_the_configs_that_are_selected_today(file):
    table = pd.read_csv(file)
    assert len(table) == (2 + len(FORMATS)) * len(PROBLEMS) + len(STUDY_SHAPES)
    table = table.set_index(["backend", "M", "K", "N", "group_size"])
    plain = ("int4", 128, True, torch.float16)
    for problem, (backend, group_size, symmetric, dtype) in itertools.product(PROBLEMS, (plain, *FORMATS)):
        problem = replace(problem, group_size=group_size)
        row = table.loc[(backend, problem.M, problem.K, problem.N, group_size)]
        config = select(problem, file.stem, symmetric=symmetric, half=dtype == torch.float16)[0]
        found = {name: row[name] for name in LAUNCH_CONFIG}
        assert found == {name: getattr(config, name) for name in LAUNCH_CONFIG}, HINT.format(file.stem)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("backend", ["int4", "int4-static"])
def test_a_row_of_the_committed_table_is_what_compiling_gives(file, backend):
    table = pd.read_csv(file)
    (K, N), M = STUDY_SHAPES[2], 1
    problem = GemmProblem(M, N, K)
    config = select(problem, file.stem)[0] if backend == "int4" else STATIC
    check(file, table, backend, problem, config, config_cost(config, problem, gpu_spec(file.stem)))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_row_of_another_format_is_what_compiling_gives(file):
    """Asymmetric weights at the wide projection: more registers and instructions than the tuned format takes."""
    (K, N), M = STUDY_SHAPES[2], 8
    problem = GemmProblem(M, N, K)
    config = select(problem, file.stem, symmetric=False)[0]
    cost = config_cost(config, problem, gpu_spec(file.stem), symmetric=False)
    check(file, pd.read_csv(file), "int4-asymmetric", problem, config, cost)


def check(file, table, backend, problem, config, cost):
    """The row of the table is that of the cost."""
    expected = static_row(backend, problem, config, cost)
    keys = ["backend", "M", "K", "N", "group_size"]
    (row,) = [row for _, row in table.iterrows() if all(row[key] == expected[key] for key in keys)]
    assert row["triton"] == triton.__version__, HINT.format(file.stem)
    assert row.to_dict() == pytest.approx(expected), HINT.format(file.stem)


def test_the_command_writes_a_table_that_the_report_can_read(tmp_path, monkeypatch):
    monkeypatch.setattr("tinygemm.harness.static_table.PROBLEMS", PROBLEMS[:1])
    with pytest.raises(SystemExit) as ended:
        main(["static-cost", "--gpu", "h200", "--csv", str(tmp_path / "counts.csv")])
    assert ended.value.code == 0
    written = pd.read_csv(tmp_path / "counts.csv")
    assert list(written["backend"][:2]) == ["int4-static", "int4"]
    assert written["M"].iloc[-1] == MORE_TOKENS
    assert {*STATIC_COLUMNS, "per_weight", "per_weight_high"} <= set(written.columns)


def test_the_classes_add_up_and_the_whole_is_more_than_the_loop():
    problem = GemmProblem(1, 1024, 4096)
    config = LaunchConfig("splitk", block_m=8, block_n=32, block_k=256, split_k=16, num_warps=1, num_stages=1)
    row = static_row("int4", problem, config, config_cost(config, problem, gpu_spec("h200")))
    assert sum(row[kind] for kind in (*OPCODES, "other")) == pytest.approx(row["per_weight"], abs=1e-3)
    assert row["tensor"] == pytest.approx(1 / 8), "one mma.m16n8k16 takes eight weights of each thread"
    assert row["per_weight_high"] > row["per_weight"]
