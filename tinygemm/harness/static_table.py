"""The kernels of the report in their machine code, instructions counted: the table of a GPU."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter

import torch
import triton

from tinygemm.hardware import gpu_spec
from tinygemm.harness.static_cost import StaticCost, config_cost
from tinygemm.kernel.configs import STATIC, LaunchConfig, select
from tinygemm.problem import STUDY_SHAPES, GemmProblem

PROBLEMS = tuple(GemmProblem(M, N, K) for K, N in STUDY_SHAPES for M in (1, 8))
# (backend, group size, symmetric, type of x): what the tuned kernel serves besides, in the configs that are selected
FORMATS = (
    ("int4-bf16", 128, True, torch.bfloat16),
    ("int4-asymmetric", 128, False, torch.float16),
    ("int4", 64, True, torch.float16),
    ("int4", 32, True, torch.float16),
)
MORE_TOKENS = 16
# by the pipe that executes them; what is in none of them is integer, logic, moves and control
OPCODES = {
    "tensor": ("HMMA",),
    "float": ("HADD2", "HFMA2", "HMUL2", "FADD", "FFMA", "FMUL"),
    "convert": ("I2F", "I2FP", "F2F", "F2FP", "I2I"),
    "memory": ("LDG", "LDGSTS", "LDS", "LDSM", "STS", "STSM", "STG", "RED", "REDG", "ATOM", "ATOMG"),
}


def static_rows(gpu: str) -> list[dict]:
    """One row per kernel and problem: what is launched, and thread instructions per weight.

    First the kernels that get profiled, then the tuned one in its other formats and for 16 tokens.

    gpu:     name of a known GPU; it need not be here
    returns: backend, M, K, N, group_size, the launch config, registers, spills, shared_bytes, warps_per_sm, per_weight
             (the main loop alone), per_weight_high (all the rest executed once by every program besides), then of the
             main loop tensor, float, convert, memory, other per weight, and the versions that compiled it
    raises:  ValueError for an unknown GPU
    """
    spec = gpu_spec(gpu)
    gpu, rows = spec.key, []
    for problem in PROBLEMS:
        configs = {"int4-static": STATIC, "int4": select(problem, gpu)[0]}
        for backend, config in configs.items():
            rows.append(static_row(backend, problem, config, config_cost(config, problem, spec)))
    plain = ("int4", 128, True, torch.float16)
    more = [dataclasses.replace(problem, M=MORE_TOKENS) for problem in PROBLEMS if problem.M == 1]
    for problem, kind in [*itertools.product(PROBLEMS, FORMATS), *((problem, plain) for problem in more)]:
        backend, group_size, symmetric, dtype = kind
        problem = dataclasses.replace(problem, group_size=group_size)
        config = select(problem, gpu, symmetric=symmetric, half=dtype == torch.float16)[0]
        rows.append(static_row(backend, problem, config, config_cost(config, problem, spec, symmetric, dtype)))
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
    counted: Counter[str] = Counter()
    for name, n in cost.loop.items():
        counted[kinds.get(name.split(".")[0], "other")] += n
    return {kind: round(counted[kind] / cost.loop_weights, 4) for kind in (*OPCODES, "other")}
