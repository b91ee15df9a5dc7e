"""Instructions per weight of the kernels that get profiled, counted in their machine code: the table of a GPU."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import triton

from tinygemm.hardware import gpu_spec
from tinygemm.harness.static_cost import StaticCost, config_cost
from tinygemm.kernel.configs import STATIC, LaunchConfig, select
from tinygemm.problem import STUDY_SHAPES, GemmProblem

PROBLEMS = tuple(GemmProblem(M, N, K) for K, N in STUDY_SHAPES for M in (1, 8))
# by the pipe that executes them; what is in none of them is integer, logic, moves and control
OPCODES = {
    "tensor": ("HMMA",),
    "float": ("HADD2", "HFMA2", "HMUL2", "FADD", "FFMA", "FMUL"),
    "convert": ("I2F", "I2FP", "F2F", "F2FP", "I2I"),
    "memory": ("LDG", "LDGSTS", "LDS", "LDSM", "STS", "STSM", "STG", "RED", "REDG", "ATOM", "ATOMG"),
}


def static_rows(gpu: str) -> list[dict]:
    """One row per kernel and problem: what is launched, and thread instructions per weight.

    gpu:     key of hardware.GPUS; it need not be here
    returns: backend, M, K, N, group_size, the launch config, registers, spills, shared_bytes, warps_per_sm, per_weight
             (the main loop alone), per_weight_high (all the rest executed once by every program besides), then of the
             main loop tensor, float, convert, memory, other per weight, and the versions that compiled it
    raises:  ValueError for an unknown GPU
    """
    spec = gpu_spec(gpu)
    rows = []
    for problem in PROBLEMS:
        configs = {"int4-static": STATIC, "int4": select(problem, gpu)[0]}
        for backend, config in configs.items():
            rows.append(static_row(backend, problem, config, config_cost(config, problem, spec)))
    return rows


def static_row(backend: str, problem: GemmProblem, config: LaunchConfig, cost: StaticCost) -> dict:
    """The row of one compiled kernel."""
    passes = math.ceil(problem.K / config.split_k / config.block_k)
    threads = 32 * config.num_warps
    per_program = config.block_n * problem.K / config.split_k  # weights
    once = cost.body.total() - cost.loop.total()
    high = threads * (passes * cost.loop.total() + once) / per_program
    row = {"backend": backend, "M": problem.M, "K": problem.K, "N": problem.N, "group_size": problem.group_size}
    row |= dataclasses.asdict(config)
    row |= {name: getattr(cost, name) for name in ("registers", "spills", "shared_bytes", "warps_per_sm")}
    row |= {"per_weight": round(cost.per_weight(), 4), "per_weight_high": round(high, 4)}
    return row | _mix(cost) | {"triton": triton.__version__}


def _mix(cost: StaticCost) -> dict[str, float]:
    """Instructions of the main loop per weight, by class; they add up to per_weight."""
    kinds = {opcode: kind for kind, opcodes in OPCODES.items() for opcode in opcodes}
    counted = Counter()
    for name, n in cost.loop.items():
        counted[kinds.get(name.split(".")[0], "other")] += n
    return {kind: round(counted[kind] / cost.loop_weights, 4) for kind in (*OPCODES, "other")}
