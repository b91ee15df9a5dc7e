"""A reader of compiled PTX: which tensor each access touches, in which order, and whether its offset can overflow.

ptx.py runs blocks of inline assembly; this one takes a whole kernel as the compiler left it. An address is worked out
for one thread in exact integers, from parameters that are given values: each pointer lies in a region of its own, so
the address says whose it is, and a 32-bit result that does not fit is an offset that would be wrong.
"""

from __future__ import annotations

import contextlib
import functools
import re
from dataclasses import dataclass
from unittest import mock

from tinygemm.harness import static_cost

POINTER_BITS = 56  # each pointer's region is that large


class PtxError(Exception):
    """Something in an address that this reader does not know; the message quotes it."""


@dataclass(frozen=True)
class Instruction:
    """`@guard opcode operands`; braces of a vector stay in its operand."""

    guard: str
    opcode: str
    operands: tuple[str, ...]

    @property
    def target(self) -> str:
        return self.operands[0] if self.operands else ""


@dataclass(frozen=True)
class Access:
    """An access to global memory: at which instruction, to which parameter, and its opcode.

    kind: load (copies to shared memory, too), store, atomic, or prefetch
    """

    at: int
    kind: str
    pointer: str
    opcode: str


KINDS = {"ld": "load", "cp": "load", "st": "store", "atom": "atomic", "red": "atomic", "prefetch": "prefetch"}


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel's instructions in the order of the text.

    parameters: names of those that the compiled kernel takes, in order; the compiler may add more
    """

    instructions: tuple[Instruction, ...]
    parameters: tuple[str, ...]

    def positions(self, opcode: str) -> list[int]:
        """The places of instructions whose opcode begins so."""
        return [at for at, instruction in enumerate(self.instructions) if instruction.opcode.startswith(opcode)]

    @functools.cached_property
    def definitions(self) -> dict[str, Instruction]:
        """The first instruction that writes each register: on the way into a loop, not around it."""
        first = {}
        for instruction in self.instructions:
            if not instruction.opcode.startswith(("st.", "bra", "cp.", "prefetch", "red.")):
                for register in re.findall(r"%\w+", instruction.target):
                    first.setdefault(register, instruction)
        return first

    def addresses(self) -> list[tuple[int, Instruction, str, int]]:
        """(position, instruction, register, bytes behind it) of every address in global memory."""
        found = []
        for at, instruction in enumerate(self.instructions):
            if re.match(r"(ld|st|atom|red|prefetch|cp\.async)\b.*\bglobal\b", instruction.opcode):
                # a copy names its target in shared memory first
                operand = [text for text in instruction.operands if text.startswith("[")][-1]
                register, offset = re.fullmatch(r"\[\s*(%\w+)\s*(?:\+\s*(\d+)\s*)?\]", operand).groups()
                found.append((at, instruction, register, int(offset or 0)))
        return found

    def accesses(self, values: dict[str, int]) -> list[Access]:
        """Every access to global memory. values: as for `narrow`."""
        thread = Thread(self, values)
        return [
            Access(at, KINDS[instruction.opcode.split(".")[0]], thread.pointer(register), instruction.opcode)
            for at, instruction, register, _ in self.addresses()
        ]

    def narrow(self, values: dict[str, int]) -> list[tuple[Access, str]]:
        """Accesses whose address holds a 32-bit result that does not fit, each with the first such instruction.

        values: of the integer parameters by name, and of the special registers such as %ctaid.x
        """
        found = []
        for access, (_, _, register, _) in zip(self.accesses(values), self.addresses(), strict=True):
            thread = Thread(self, values)
            thread.value(register)
            if thread.overflows:
                found.append((access, thread.overflows[0]))
        return found


def parse(ptx: str, parameters: tuple[str, ...] = ()) -> Kernel:
    """Read the one kernel that a module holds."""
    body = ptx[ptx.index("{", ptx.index(".entry")) + 1 :]
    body = body.split("\n}\n")[0]
    body = re.sub(r"//[^\n]*|/\*.*?\*/|^\s*\.(loc|file|pragma)\b[^\n]*|^\s*\$\w+:", "", body, flags=re.DOTALL | re.M)
    instructions = []
    for statement in body.split(";"):
        text = re.sub(r"^[{}\s]+", "", " ".join(statement.split()))
        match = re.match(r"(?:(@!?\S+)\s+)?([a-z][\w.:]*)\s*(.*)$", text)
        if match:
            operands = [operand.strip() for operand in re.split(r",(?![^{]*\})", match[3])] if match[3] else []
            instructions.append(Instruction(match[1] or "", match[2], tuple(operands)))
    return Kernel(tuple(instructions), parameters)


# --- one thread's integers --------------------------------------------------------------------------------------------


def _signed(value: int, bits: int) -> int:
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def _cut(value: int, bits: int) -> int:
    return value % (1 << bits)


def _field(value: int, start: int, length: int, signed: bool) -> int:
    field = _cut(_cut(value, 64) >> start, length)
    return _signed(field, length) if signed else field


COMPARE = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip
BITWISE = {"and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b}


class Thread:
    """Values of registers, exact integers, in one thread on its way into every loop; see `Kernel.narrow`."""

    def __init__(self, kernel: Kernel, values: dict[str, int]):
        self.kernel, self.given = kernel, values
        self.known: dict[str, int] = {}
        self.overflows: list[str] = []

    def pointer(self, register: str) -> str:
        """The name of the parameter in whose region an address lies."""
        index = (self.value(register) + (1 << POINTER_BITS - 1)) // (1 << POINTER_BITS) - 1
        if not 0 <= index < len(self.kernel.parameters):
            raise PtxError(f"{register} is in no parameter's region")
        return self.kernel.parameters[index]

    def value(self, operand: str) -> int:
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand):
            return int(operand.rstrip("U"), 0)
        if operand in self.given:
            return self.given[operand]
        if operand not in self.known:
            if operand not in self.kernel.definitions:
                raise PtxError(f"{operand} is never written")
            self.known[operand] = self._compute(self.kernel.definitions[operand])
        return self.known[operand]

    def _parameter(self, operand: str) -> int:
        index = int(re.search(r"_param_(\d+)\]", operand)[1])
        name = self.kernel.parameters[index]
        return self.given[name] if name in self.given else (index + 1) << POINTER_BITS

    def _compute(self, instruction: Instruction) -> int:
        name, *modifiers = instruction.opcode.split(".")
        kind = modifiers[-1] if modifiers else ""
        if instruction.opcode.startswith("ld.param"):
            return self._parameter(instruction.operands[1])
        if instruction.guard or "{" in instruction.target:
            raise PtxError(f"{instruction} stands in an address")
        sources = [self.value(operand) for operand in instruction.operands[1:]]
        if kind == "pred":
            return {**BITWISE, "not": lambda a: not a, "mov": lambda a: a}[name](*sources)
        bits = int(re.search(r"\d+", kind)[0])
        if kind.startswith("u"):
            narrow = 2 if "wide" in modifiers else len(sources)  # what a wide product is added to has 64 bits
            sources = [_cut(source, bits) for source in sources[:narrow]] + sources[narrow:]
        if name == "setp":
            return COMPARE[modifiers[0]](*sources)
        exact = self._exact(name, modifiers, sources, instruction)
        if "wide" in modifiers or name == "cvt":
            return exact
        if bits == 64:  # regions of pointers are wider than a machine's addresses
            return exact
        result = _signed(exact, bits)
        if result != exact and name in ("add", "sub", "mul", "mad", "shl") and not (kind == "u32" and exact >= 0):
            self.overflows.append(f"{instruction.opcode} {', '.join(instruction.operands)}")
        return result

    def _exact(self, name: str, modifiers: list[str], sources: list[int], instruction: Instruction) -> int:
        a, b, c = (*sources, 0, 0, 0)[:3]
        if name == "cvt":  # the value is what its own type says: cvt.u64.u32 reads 32 bits as unsigned
            read, wide = modifiers[-1], modifiers[-2]
            value = _cut(a, int(read[1:])) if read[0] == "u" else _signed(a, int(read[1:]))
            return _signed(value, int(wide[1:])) if int(wide[1:]) < int(read[1:]) else value
        if name == "mul" and "hi" in modifiers:
            return a * b >> int(modifiers[-1][1:])
        table = {
            "mov": lambda: a, "add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b, "neg": lambda: -a,
            "mad": lambda: a * b + c, "shl": lambda: a << b, "min": lambda: min(a, b), "max": lambda: max(a, b),
            "shr": lambda: a >> b, "selp": lambda: a if c else b, "not": lambda: ~a,
            "div": lambda: abs(a) // abs(b) * (1 if a * b >= 0 else -1) if b else 0,
            "rem": lambda: abs(a) % abs(b) * (1 if a >= 0 else -1) if b else 0,
            "bfe": lambda: _field(a, b, c, signed=modifiers[-1].startswith("s")),
            **{op: functools.partial(function, a, b) for op, function in BITWISE.items()},
        }  # fmt: skip
        if name not in table:
            raise PtxError(f"{instruction} stands in an address")
        return table[name]()


# --- what a kernel must do --------------------------------------------------------------------------------------------

# Offsets of 32 bits, by choice: up to 2^31 scales, and as many partial sums of what all shares have in common.
SCALES = {("load", "scales_ptr"), ("load", "zeros_ptr")}
NARROW = {
    "kernel_gemm_packed_int4_splitk": {*SCALES, ("load", "partial_ptr")},
    "kernel_gemm_packed_int4_pipelined": {("load", "partial_ptr")},
    "kernel_gemm_packed_int4_static": SCALES,
    "kernel_dequantize_int4": SCALES,
    "kernel_load_only_int4": {*SCALES, ("store", "checksum_ptr")},
    "kernel_gemm_fp16_splitk": {("load", "partial_ptr")},
}


def kernel_faults(compiled) -> list[str]:
    """The faults of a kernel that Triton compiled, by its PTX; see the checks below."""
    constants = {compiled.src.fn.arg_names[path[0]]: value for path, value in compiled.src.constants.items()}
    parameters = tuple(name for name, kind in compiled.src.signature.items() if kind != "constexpr")
    kernel = parse(compiled.asm["ptx"], parameters)
    if not parameters:
        return []
    name = compiled.metadata.name
    modest, large = (sizes(constants, compiled.metadata.num_warps, much) for much in (False, True))
    dependent = bool(constants.get("PDL"))
    faults = order_faults(kernel, modest, dependent, waits_first=name != "kernel_load_only_int4")
    faults += counter_faults(kernel, modest, constants.get("SPLIT_K", 1) > 1 and "counter_ptr" in parameters)
    return faults + narrow_faults(kernel, modest) + narrow_faults(kernel, large, NARROW[name])


@contextlib.contextmanager
def noting_faults(faults):
    """Add to `faults` what is wrong with the PTX of every kernel that is costed inside the block."""
    read_cost = static_cost.read_cost

    def noting(compiled, spec):
        faults.extend(kernel_faults(compiled))
        return read_cost(compiled, spec)

    with mock.patch.object(static_cost, "read_cost", noting):
        yield


def inspected(config, problem, spec, symmetric, dtype):
    """The StaticCost of a config, and what is wrong with its PTX, from one compilation."""
    faults = []
    with noting_faults(faults):
        return static_cost.config_cost(config, problem, spec, symmetric, dtype), faults


def sizes(constants: dict, num_warps: int, large: bool) -> dict[str, int]:
    """Values of a large problem for the last thread of the last program, by name.

    large: dimensions such that whatever has 32 bits overflows; else the largest weights that anybody has
    """
    if "WARPS_K" in constants:  # cut along K, and a few rows
        (N, K), M = (2**30, 2**19) if large else (2**20, 2**14), constants.get("BLOCK_M", 1)
        last = constants["SPLIT_K"] - 1
    else:  # the compiler drops bits of n from 2^28 on where it takes n % 16
        N, K, M = (2**27, 2**22, 2**12) if large else (2**20, 2**14, 2**12)
        last = (M // constants["BLOCK_M"] if "BLOCK_M" in constants else K // 128) - 1
    return {
        "M": M, "N": N, "K": K, "KB": K // 128, "stride_xm": 2**31 - 16 if large else K,
        "%ctaid.x": N // constants.get("BLOCK_N", 1) - 1, "%ctaid.y": last, "%tid.x": 32 * num_warps - 1,
        "global_smem": 0,
    }  # fmt: skip


def order_faults(kernel: Kernel, values: dict[str, int], dependent: bool, waits_first: bool = True) -> list[str]:
    """The faults of the wait for the kernel before, and about letting the next one start.

    dependent:   the kernel is launched before the one in front of it has finished
    waits_first: the next one must not start before this one has waited
    """
    waits, triggers = kernel.positions("griddepcontrol.wait"), kernel.positions("griddepcontrol.launch_dependents")
    if not dependent:
        return ["griddepcontrol without dependent launch"] if waits + triggers else []
    if not waits or not triggers:
        return [f"{len(waits)} waits and {len(triggers)} triggers"]
    accesses = kernel.accesses(values)
    faults = ["the next kernel starts before the wait"] if waits_first and min(triggers) < min(waits) else []
    for access in accesses:
        early = access.at < min(waits) and access.kind != "prefetch"
        if early and (access.kind != "load" or access.pointer in SHARED_WITH_OTHERS):
            faults.append(f"{access.kind} of {access.pointer} before the wait")
    if not any(access.kind == "load" and access.at < min(waits) for access in accesses):
        faults.append("no weight is requested before the wait")
    return faults


SHARED_WITH_OTHERS = ("x_ptr", "partial_ptr", "counter_ptr", "out_ptr")  # the kernel before may still write these


def narrow_faults(kernel: Kernel, values: dict[str, int], allowed=()) -> list[str]:
    """Offsets that overflow. allowed: (kind, pointer) of accesses that may."""
    return [
        f"{access.kind} of {access.pointer}: {text} overflows"
        for access, text in kernel.narrow(values)
        if (access.kind, access.pointer) not in allowed
    ]


def counter_faults(kernel: Kernel, values: dict[str, int], split: bool) -> list[str]:
    """The faults in how programs that share K hand each other their sums.

    Store the share, barrier, count with acquire and release for the whole GPU, barrier, read past L1, zero the counter.
    """
    steps = [access for access in kernel.accesses(values) if access.pointer in ("partial_ptr", "counter_ptr")]
    steps = [access for access in steps if access.kind != "prefetch"]
    if not split:
        return ["partial sums without a split of K"] if steps else []

    def at(kind: str, pointer: str) -> list[int]:
        return [access.at for access in steps if (access.kind, access.pointer) == (kind, pointer)]

    stores, counts = at("store", "partial_ptr"), at("atomic", "counter_ptr")
    loads, zeroed = at("load", "partial_ptr"), at("store", "counter_ptr")
    if not (stores and loads and zeroed) or len(counts) != 1:
        return [
            f"{len(stores)} stores of sums, {len(counts)} counts, {len(loads)} loads, {len(zeroed)} counters zeroed"
        ]
    faults, (count,) = [], counts
    if not max(stores) < count < min(loads) or count > min(zeroed):
        faults.append("sums, counter and sums again are out of order")
    barriers = kernel.positions("bar.sync") + kernel.positions("barrier.sync")
    if not any(max(stores) < barrier < count for barrier in barriers):
        faults.append("no barrier between the sums and the counter")
    if not any(count < barrier < min(loads) for barrier in barriers):
        faults.append("no barrier between the counter and the sums of the others")
    if not {"acq_rel", "gpu"} <= set(kernel.instructions[count].opcode.split(".")):
        faults.append(f"the counter is {kernel.instructions[count].opcode}")
    for access in steps:
        if (access.kind, access.pointer) == ("load", "partial_ptr") and "cg" not in access.opcode.split("."):
            faults.append(f"sums of other programs are read through L1: {access.opcode}")
    return faults
