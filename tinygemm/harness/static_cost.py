"""The cost of a kernel on a GPU that need not be here, read from its machine code.

Triton compiles for any target, and the disassembler comes in its wheel. Launches are recorded from the product's own
launchers, so what is costed is what would run. Compiling and Triton's interpreter cannot share a process.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from tinygemm.hardware import GpuSpec
from tinygemm.kernel import launch, launches, reference
from tinygemm.kernel.configs import LaunchConfig
from tinygemm.kernel.quant import TILE_K, TILE_N, WORDS, PackedInt4
from tinygemm.problem import GemmProblem

DEPENDENT_LAUNCH = (9, 0)  # the compute capability from which on a kernel may be launched before the last one ends
# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"
MAX_CTAS_PER_SM = {(8, 0): 32, (8, 6): 16, (8, 9): 24, (9, 0): 32, (10, 0): 32, (12, 0): 24}
REGISTERS_PER_SM = 65536
SM_PARTITIONS = 4  # each has a quarter of the registers, and a warp lives in one of them
REGISTER_UNIT = 256  # registers are given to a warp in multiples of this
SHARED_UNIT = 128  # bytes
SHARED_RESERVED = 1024  # bytes of each CTA that the system keeps, from compute capability 8.0 on
RESERVED_IN_KERNEL = (9, 0)  # from here on the assembler counts them as the kernel's own

POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Launch:
    """A kernel launch as the product would make it.

    arguments: by name; a torch dtype stands for a tensor (16-byte aligned)
    options:   num_warps, num_stages and the like
    """

    kernel: triton.JITFunction
    grid: tuple[int, ...]
    arguments: dict
    options: dict


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: `LDG.E.128 R4, [R2.64]` at byte 0x120 of the kernel."""

    address: int
    opcode: str
    operands: str


@dataclass(frozen=True)
class StaticCost:
    """The cost of one compiled kernel on one GPU.

    registers:     per thread
    spills:        loads and stores of local memory in the whole kernel
    shared_bytes:  per CTA, what the system reserves not counted
    ctas_per_sm:   CTAs that fit into one SM at a time; 0: the kernel cannot be launched
    warps_per_sm:  the same in warps
    body, loop:    how often each opcode occurs, in the kernel and in one pass of its main loop (per thread); the main
                   loop is the longest of the innermost ones, and empty where everything is unrolled
    loop_weights:  weights that a thread handles in one pass of the main loop; 0 where that is not known
    """

    kernel: str
    gpu: str
    num_warps: int
    registers: int
    spills: int
    shared_bytes: int
    ctas_per_sm: int
    warps_per_sm: int
    body: Counter
    loop: Counter
    loop_weights: float = 0

    def per_weight(self, opcode: str = "", *modifiers: str) -> float:
        """Instructions of the main loop per weight, per thread: of one opcode, or of all."""
        return (self.loop_count(opcode, *modifiers) if opcode else self.loop.total()) / self.loop_weights

    def loop_count(self, opcode: str, *modifiers: str) -> int:
        """Occurrences in the main loop: loop_count("LDG", "128") counts LDG.E.128 and LDG.E.128.CONSTANT."""
        return count(self.loop, opcode, *modifiers)


def count(opcodes: Counter, opcode: str, *modifiers: str) -> int:
    """The number of `opcodes` that are `opcode` and carry all `modifiers`."""
    wanted = set(modifiers)
    return sum(n for name, n in opcodes.items() if name.split(".")[0] == opcode and wanted <= set(name.split(".")))


def config_cost(
    config: LaunchConfig,
    problem: GemmProblem,
    spec: GpuSpec,
    symmetric: bool = True,
    dtype: torch.dtype = torch.float16,
) -> StaticCost:
    """The cost of the kernel of a launch config on a GPU: of one that computes the product, or of a reference.

    dtype: of x, float16 or bfloat16
    """
    w = _packed_without_data(problem, symmetric)
    x = torch.empty(problem.M, problem.K, dtype=dtype, device="meta")
    weight = torch.empty(problem.N, problem.K, dtype=torch.float16, device="meta")
    calls = {
        "load-only": lambda: reference.load_only(w, config),
        "fp16": lambda: reference.fp16_gemm(x, weight, config),
    }
    first, *_ = record_launches(calls.get(config.form, lambda: launch_product(x, w, config)))
    threads = 32 * config.num_warps
    return replace(launch_cost(first, spec), loop_weights=config.block_n * config.block_k / threads)


def launch_product(x: torch.Tensor, w: PackedInt4, config: LaunchConfig) -> torch.Tensor:
    """`gemm` with a config, for tensors that may be of device "meta"."""
    described = launches.product(config, x.shape[0], w, x.stride(0), launches.dependent_launch(x.device))
    work = launch.Work((x.shape[0], w.N), x.dtype, described)
    return launch.start((), (x, *launches.stored(w)), work)


def record_launches(call: Callable) -> list[Launch]:
    """The launches of `call`, in order; nothing is run, so its tensors may be of device "meta".

    raises: RuntimeError under Triton's interpreter
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels cannot be compiled while TRITON_INTERPRET is set; start a process without it")
    recorded = []

    def record(kernel, *arguments, grid, warmup, **keywords):
        options = {name: keywords.pop(name) for name in keywords.keys() - set(kernel.arg_names)}
        named = kernel.signature.bind(*arguments, **keywords).arguments
        values = {name: value.dtype if isinstance(value, torch.Tensor) else value for name, value in named.items()}
        recorded.append(Launch(kernel, grid, values, options))

    with mock.patch.object(triton.JITFunction, "run", record):
        call()
    return recorded


def launch_cost(launch: Launch, spec: GpuSpec) -> StaticCost:
    """Compile a recorded launch for a GPU and count."""
    if "PDL" in launch.arguments:  # a launcher asks the GPU at hand; here the one that is costed decides
        dependent = spec.compute_capability >= DEPENDENT_LAUNCH
        options = launch.options | ({"launch_pdl": True} if dependent else {})
        launch = replace(launch, arguments=launch.arguments | {"PDL": dependent}, options=options)
    return read_cost(compile_launch(launch, spec.arch), spec)


def compile_launch(launch: Launch, arch: int) -> CompiledKernel:
    """Compile for any NVIDIA GPU what Triton's launcher would compile there: integers are specialised by 1 and by 16.

    arch:   86 for compute capability 8.6
    raises: ValueError naming an argument that the kernel does not have, or that is missing
    """
    kernel = launch.kernel
    if wrong := sorted(set(kernel.arg_names) ^ set(launch.arguments)):
        raise ValueError(f"{kernel.__name__}: arguments unknown or missing: {', '.join(wrong)}")
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = launch.arguments[parameter.name]
        aligned = False
        specialised = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialised and isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.dtype):
            signature[parameter.name], aligned = POINTERS[value], True
        elif isinstance(value, int):
            signature[parameter.name], aligned = "i32" if abs(value) < 2**31 else "i64", specialised and value % 16 == 0
        else:
            signature[parameter.name] = "fp32"
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)


def read_cost(compiled: CompiledKernel, spec: GpuSpec) -> StaticCost:
    """Disassemble a compiled kernel and count."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        sass = _run(triton.knobs.nvidia.nvdisasm.path, "-c", cubin)
        usage = _run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin)
    registers = _declared("REG", usage)
    num_warps = compiled.metadata.num_warps
    # what the kernel itself declares, from 9.0 on with what the system keeps of every CTA that has any
    reserved = SHARED_RESERVED if spec.compute_capability >= RESERVED_IN_KERNEL else 0
    declared = max(0, _declared("SHARED", usage) - reserved)
    shared_bytes = compiled.metadata.shared + declared
    instructions, labels = parse_sass(sass)
    body = Counter(instruction.opcode for instruction in instructions)
    ctas = ctas_per_sm(spec, registers, num_warps, shared_bytes)
    return StaticCost(
        kernel=compiled.metadata.name,
        gpu=spec.key,
        num_warps=num_warps,
        registers=registers,
        spills=count(body, "LDL") + count(body, "STL"),
        shared_bytes=shared_bytes,
        ctas_per_sm=ctas,
        warps_per_sm=ctas * num_warps,
        body=body,
        loop=Counter(instruction.opcode for instruction in main_loop(instructions, labels)),
    )


def _declared(resource: str, usage: str) -> int:
    """A number of cuobjdump's table of resources; raises ValueError where it is missing."""
    found = re.search(rf"\b{resource}:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump says nothing about {resource}: {usage.strip()[:200]}")
    return int(found[1])


def ctas_per_sm(spec: GpuSpec, registers: int, num_warps: int, shared_bytes: int) -> int:
    """CTAs resident in one SM, as NVIDIA's occupancy calculator (cuda_occupancy.h) counts them.

    registers:    per thread
    shared_bytes: per CTA
    returns:      0 where one CTA alone asks for more than an SM has
    """
    per_warp = _round_up(registers * 32, REGISTER_UNIT)
    warps_by_registers = REGISTERS_PER_SM // SM_PARTITIONS // per_warp * SM_PARTITIONS
    return min(
        MAX_CTAS_PER_SM[spec.compute_capability],
        spec.max_warps_per_sm // num_warps,
        warps_by_registers // num_warps,
        spec.smem_per_sm // _round_up(shared_bytes + SHARED_RESERVED, SHARED_UNIT),
    )


def parse_sass(sass: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of nvdisasm's listing, fillers that never execute left out; and the addresses of its labels."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in sass.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            waiting.append(label[1])
        elif code := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:(@\S+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", line):
            address = int(code[1], 16)
            labels |= dict.fromkeys(waiting, address)
            waiting.clear()
            if code[2] != "@!PT":
                instructions.append(Instruction(address, code[3], code[4]))
    return instructions, labels


def main_loop(instructions: list[Instruction], labels: dict[str, int]) -> list[Instruction]:
    """The longest of the innermost loops; empty without a loop. A loop ends in a branch backwards."""
    spans = []
    for instruction in instructions:
        target = re.search(r"`\((\.L_\w+)\)", instruction.operands)
        # the branch to itself behind every kernel's end is no loop
        if instruction.opcode.startswith("BRA") and target and labels[target[1]] < instruction.address:
            spans.append((labels[target[1]], instruction.address))
    innermost = [
        (first, last)
        for first, last in spans
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans)
    ]
    if not innermost:
        return []
    first, last = max(innermost, key=lambda span: span[1] - span[0])
    return [instruction for instruction in instructions if first <= instruction.address <= last]


def _packed_without_data(problem: GemmProblem, symmetric: bool) -> PackedInt4:
    """A weight of this shape whose tensors have no storage."""
    N, K = problem.N, problem.K
    groups = K // problem.group_length
    return PackedInt4(
        torch.empty(-(-N // TILE_N), -(-K // TILE_K), TILE_N, WORDS, dtype=torch.int32, device="meta"),
        torch.empty(groups, N, dtype=torch.float16, device="meta"),
        None if symmetric else torch.empty(groups, N, dtype=torch.uint8, device="meta"),
        N,
        K,
        problem.group_size,
    )


def _run(*command) -> str:
    result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if result.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {result.stderr.strip()}")
    return result.stdout


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
