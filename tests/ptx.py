"""An emulator of PTX on numpy arrays: Triton's interpreter runs the text of inline assembly that a GPU would run.

A register is a flat array with one entry per element of the tensor; its bits are viewed as whatever the instruction
works on. What ptxas would refuse is refused here too: unknown instructions, undeclared registers, wrong widths.

Shared memory is that of the one program that runs, poisoned where it is declared. An asynchronous copy arrives no
earlier than its group is waited for, so that a read without the wait sees what was there before.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

# what the suffix of an instruction calls an operand -> how its bits are viewed; a pair of f16 is two entries
VIEWS = {
    "b16": np.uint16, "u16": np.uint16, "b32": np.uint32, "u32": np.uint32, "s32": np.int32,
    "f16": np.float16, "f16x2": np.float16, "f32": np.float32, "bf16x2": np.uint16, "b64": np.uint64,
}  # fmt: skip
WIDTHS = {
    "b16": 2, "u16": 2, "f16": 2, "b32": 4, "u32": 4, "s32": 4, "f16x2": 4, "bf16x2": 4, "f32": 4, "b64": 8,
}  # fmt: skip  # bytes of a register
CONSTRAINTS = {"h": "b16", "r": "b32", "f": "f32", "l": "b64"}
# the interpreter keeps a bf16 as its bits
TRITON_TYPES = {
    "int16": np.int16, "int32": np.int32, "uint32": np.uint32, "fp16": np.float16, "bf16": np.uint16,
    "fp32": np.float32,
}  # fmt: skip
SHARED_AT = 0x400  # where the shared memory of a program begins; address 0 would hide a forgotten base
POISON = 0xFF  # bytes of a NaN, in whatever type


class PtxError(Exception):
    """The assembly is not valid, or uses an instruction that is not emulated; the message quotes it."""


class SharedMemory:
    """The shared memory of the program that runs, and the copies that are on their way into it.

    check: (addresses, bytes) -> None, raises where a program may not read global memory; see guard.py
    """

    def __init__(self):
        self.check: Callable | None = None
        self.allocate(0)

    def allocate(self, size: int) -> None:
        self.bytes = np.full(size, POISON, np.uint8)
        self.open: list[tuple[np.ndarray, np.ndarray]] = []  # copies since the last group: places, bytes
        self.groups: list[list[tuple[np.ndarray, np.ndarray]]] = []

    def places(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Indices of the bytes at each address [n, size]; raises outside and where misaligned."""
        start = addresses.astype(np.int64) - SHARED_AT
        if (start % size).any():
            raise PtxError(f"shared addresses are no multiple of {size}")
        if start.size and (start.min() < 0 or start.max() + size > self.bytes.size):
            raise PtxError(f"shared addresses lie outside the {self.bytes.size} bytes declared")
        return start[:, None] + np.arange(size)

    def copy(self, addresses: np.ndarray, pointers: np.ndarray, sizes: np.ndarray, width: int) -> None:
        """Start copies of `width` bytes; entries of size 0 write zeros. No two of them may write one place."""
        if np.unique(addresses).size < addresses.size:
            raise PtxError("two lanes copy to one place, which of them last is left to chance")
        if not np.isin(sizes, (0, width)).all() or (pointers[sizes > 0] % width).any():
            raise PtxError(f"a copy of {width} bytes takes sizes 0 and {width} and aligned pointers")
        if self.check:
            self.check(pointers[sizes > 0], width)
        data = np.zeros((pointers.size, width), np.uint8)
        for i in np.flatnonzero(sizes):
            data[i] = np.frombuffer(ctypes.string_at(int(pointers[i]), width), np.uint8)
        self.open.append((self.places(addresses, width), data))

    def commit(self) -> None:
        self.groups.append(self.open)
        self.open = []

    def wait(self, pending: int) -> None:
        while len(self.groups) > pending:
            for places, data in self.groups.pop(0):
                self.bytes[places] = data

    def read(self, addresses: np.ndarray, size: int) -> np.ndarray:
        return self.bytes[self.places(addresses, size)]

    def write(self, addresses: np.ndarray, data: np.ndarray) -> None:
        if self.open or any(self.groups):
            raise PtxError("shared memory is written while copies may still arrive there")
        self.bytes[self.places(addresses, data.shape[1])] = data


SHARED = SharedMemory()


@contextlib.contextmanager
def emulated():
    """Let the interpreter run kernels with inline assembly, and with bfloat16 as a GPU has it, inside the block."""
    original = InterpreterBuilder.create_inline_asm, InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    InterpreterBuilder.create_inline_asm = create_inline_asm
    InterpreterBuilder.create_dot = _dot_of_bf16(original[1])
    InterpreterBuilder.cast_impl = _rounded_to_bf16(original[2])
    try:
        yield
    finally:
        InterpreterBuilder.create_inline_asm, InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = original


def _dot_of_bf16(original):
    """The interpreter multiplies the bits of bf16 as integers; here they are the numbers they stand for."""

    def create_dot(self, a, b, d, *others):
        a, b = (_float32(side) if side.dtype.scalar.name == "bf16" else side for side in (a, b))
        return original(self, a, b, d, *others)

    return create_dot


def _rounded_to_bf16(original):
    """The interpreter cuts a float32 to a bf16; a GPU rounds to the nearest, ties to even."""

    def cast_impl(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
            return TensorHandle(_bf16_bits(src.data), tl.bfloat16)
        return original(self, src, dst_type)

    return cast_impl


def _bf16_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> the bits of the nearest bf16."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (np.where(np.isnan(values), bits | np.uint32(0x400000), rounded) >> np.uint32(16)).astype(np.uint16)


def _float32(bits: TensorHandle) -> TensorHandle:
    return TensorHandle((bits.data.astype(np.uint32) << np.uint32(16)).view(np.float32), tl.float32)


def create_inline_asm(builder, asm, constraints, values, result_types, is_pure, pack):
    """Stands in for `InterpreterBuilder.create_inline_asm`, which raises."""
    if pack != 1:
        raise PtxError(f"pack={pack} is not emulated, only 1")
    results = execute(asm, constraints, [value.data for value in values])
    return _Results([
        TensorHandle(bits.view(TRITON_TYPES[kind.scalar.name]), kind.scalar)
        for bits, kind in zip(results, result_types, strict=True)
    ])  # fmt: skip


@dataclass(frozen=True)
class _Results:
    handles: list[TensorHandle]

    def get_result(self, index):
        return self.handles[index]


def execute(asm: str, constraints: str, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Run one asm block for every element.

    asm:         PTX; $0, $1, ... are the outputs, then the inputs, as `constraints` lists them
    constraints: such as "=r,=&r,r,r": h = 16 bits, r = 32 bits, f = float32
    inputs:      arrays of one shape (or broadcastable to it), entries as wide as their constraint
    returns:     one array of bits (uint16 or uint32) per output, in the shape of the inputs
    """
    fields = [field.strip() for field in constraints.split(",")]
    outputs = [CONSTRAINTS[field.lstrip("=&")] for field in fields if field.startswith("=")]
    input_types = [CONSTRAINTS[field] for field in fields if not field.startswith("=")]
    if len(input_types) != len(inputs):
        raise PtxError(f"constraints {constraints!r} list {len(input_types)} inputs, {len(inputs)} given")
    shape = np.broadcast_shapes(*(value.shape for value in inputs)) if inputs else (1,)

    machine = _Machine(size=int(np.prod(shape)))
    for index, kind in enumerate(outputs):
        machine.declare(f"${index}", kind)
    for index, (kind, value) in enumerate(zip(input_types, inputs, strict=True), start=len(outputs)):
        if value.itemsize != WIDTHS[kind]:
            raise PtxError(f"${index} is a {kind} register, its tensor has {8 * value.itemsize}-bit elements")
        machine.declare(f"${index}", kind)
        machine.write(f"${index}", np.ascontiguousarray(np.broadcast_to(value, shape)).ravel().view(VIEWS[kind]))

    for statement in _statements(asm):
        machine.run(statement)
    return [machine.read(f"${index}", kind).view(VIEWS[kind.replace("f", "b")]).reshape(shape)
            for index, kind in enumerate(outputs)]  # fmt: skip


def _statements(asm: str) -> list[str]:
    """Statements without comments and without the braces of a scope; the braces of a vector operand stay."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", asm, flags=re.DOTALL)
    return [statement for part in text.split(";") if (statement := " ".join(part.split()).lstrip("{} "))]


class _Machine:
    """Registers by name; values are flat arrays of bits."""

    def __init__(self, size: int):
        self.size = size
        self.widths: dict[str, int] = {}
        self.bits: dict[str, np.ndarray] = {}
        self.predicates: dict[str, np.ndarray] = {}

    def declare(self, name: str, kind: str) -> None:
        self.widths[name] = WIDTHS[kind]

    def write(self, name: str, value: np.ndarray) -> None:
        if name not in self.widths:
            raise PtxError(f"register {name} is not declared")
        if value.nbytes != self.size * self.widths[name]:
            raise PtxError(f"register {name} has {8 * self.widths[name]} bits, the instruction writes another width")
        self.bits[name] = np.ascontiguousarray(value)

    def read(self, name: str, kind: str) -> np.ndarray:
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", name):
            value = int(name.rstrip("U"), 0) & (1 << 8 * WIDTHS[kind]) - 1
            return np.full(self.size, value, VIEWS[f"b{8 * WIDTHS[kind]}"]).view(VIEWS[kind])
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", name):
            return np.full(self.size, int(name[2:], 16), np.uint32).view(VIEWS[kind])
        if name not in self.widths:
            raise PtxError(f"register {name} is not declared")
        if name not in self.bits:
            raise PtxError(f"register {name} is read before it is written")
        if self.widths[name] != WIDTHS[kind]:
            raise PtxError(f"register {name} has {8 * self.widths[name]} bits, the instruction reads {kind}")
        return self.bits[name].view(VIEWS[kind])

    def run(self, statement: str) -> None:
        try:
            self._run(statement)
        except PtxError as error:
            raise PtxError(f"`{statement}`: {error}") from None

    def _run(self, statement: str) -> None:
        guard, _, guarded = statement.partition(" ") if statement.startswith("@") else ("", "", statement)
        name, _, rest = guarded.partition(" ")
        if guard and not name.startswith(("cp.async.ca.", "cp.async.cg.")):
            raise PtxError("only copies are emulated under a predicate")
        if guard and guard[1:] not in self.predicates:
            raise PtxError(f"predicate {guard[1:]} is not declared")
        operands = [operand.strip() for operand in re.split(r",(?![^{]*\})", rest)]
        if name == ".reg":
            self._declare_registers(rest)
        elif name == ".shared":
            self._declare_shared(rest)
        elif name.startswith(("cp.async.", "ld.shared.", "st.shared.", "bar.warp.sync")):
            self._access_shared(name, operands, self.predicates[guard[1:]] if guard else slice(None))
        elif name == "setp.ne.s32":
            target, left, right = operands
            if target not in self.predicates:
                raise PtxError(f"predicate {target} is not declared")
            self.predicates[target] = self.read(left, "s32") != self.read(right, "s32")
        elif name == "prefetch.global.L2":  # there are no caches here
            self._address(operands[0], "b64")
        elif name.startswith("griddepcontrol."):
            # the interpreter runs programs one after another: nothing to wait for, nobody to wake; $0 is a dummy
            self.write("$0", np.zeros(self.size, np.uint32))
        elif name == "mov.b32" and "{" in rest:
            self._move_pair(*operands)
        elif name in INSTRUCTIONS:
            instruction = INSTRUCTIONS[name]
            destination, *sources = operands
            if len(sources) != len(instruction.sources):
                raise PtxError(f"{name} takes {len(instruction.sources)} sources")
            values = [self.read(source, kind) for source, kind in zip(sources, instruction.sources, strict=True)]
            with np.errstate(all="ignore"):
                self.write(destination, instruction.compute(*values))
        else:
            raise PtxError("not an instruction that tests/ptx.py emulates")

    def _declare_registers(self, text: str) -> None:
        kind, _, names = text.strip().partition(" ")
        if kind == ".pred":
            self.predicates[names.strip()] = np.zeros(self.size, bool)
            return
        if kind.lstrip(".") not in WIDTHS:
            raise PtxError(f"register type {kind} is not emulated")
        for name in names.split(","):
            family = re.fullmatch(r"\s*(\w+)<(\d+)>\s*", name)
            for each in [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [name.strip()]:
                self.declare(each, kind.lstrip("."))

    def _declare_shared(self, text: str) -> None:
        """`.shared .align 16 .b8 name[1024]`: the name stands for its address."""
        name, size = re.fullmatch(r"\.align \d+ \.b8 (\w+)\[(\d+)\]", text.strip()).groups()
        SHARED.allocate(int(size))
        self.declare(name, "b32")
        self.write(name, np.full(self.size, SHARED_AT, np.uint32))

    def _access_shared(self, name: str, operands: list[str], lanes) -> None:
        """lanes: those that take part in a copy."""
        if name == "bar.warp.sync":  # the lanes of a warp run together here
            return
        if name == "cp.async.commit_group":
            SHARED.commit()
        elif name == "cp.async.wait_group":
            SHARED.wait(int(operands[0]))
        elif name in ("cp.async.cg.shared.global", "cp.async.ca.shared.global"):
            target, source, width, size = operands
            if name == "cp.async.cg.shared.global" and width != "16":
                raise PtxError("past L1 a copy has 16 bytes")
            pointers, sizes = self._address(source, "b64"), self.read(size, "u32")
            SHARED.copy(self._address(target, "u32")[lanes], pointers[lanes], sizes[lanes], int(width))
        elif name == "st.shared.f32":
            SHARED.write(self._address(operands[0], "u32"), self.read(operands[1], "b32").view(np.uint8).reshape(-1, 4))
        elif match := re.fullmatch(r"ld\.shared\.(v4\.)?([ubf]\d+)", name):
            count, width = 4 if match[1] else 1, int(match[2][1:]) // 8
            values = SHARED.read(self._address(operands[1], "u32"), count * width)
            for i, register in enumerate(part.strip() for part in operands[0].strip("{}").split(",")):
                part = np.zeros((self.size, max(width, self.widths.get(register, 4))), np.uint8)  # bytes are widened
                part[:, :width] = values[:, i * width : (i + 1) * width]
                self.write(register, part.ravel().view(VIEWS[f"b{8 * part.shape[1]}"]))
        else:
            raise PtxError("not an access that tests/ptx.py emulates")

    def _address(self, operand: str, kind: str) -> np.ndarray:
        """`[$1]` or `[$1+512]`."""
        register, offset = re.fullmatch(r"\[([$\w]+)(?:\+(\d+))?\]", operand).groups()
        return self.read(register, kind) + VIEWS[kind](int(offset or 0))

    def _move_pair(self, destination: str, source: str) -> None:
        """`mov.b32 {lo, hi}, word` and `mov.b32 word, {lo, hi}`."""
        if destination.startswith("{"):
            lo, hi = (part.strip() for part in destination.strip("{}").split(","))
            halves = self.read(source, "b32").view(np.uint16)
            self.write(lo, halves[0::2])
            self.write(hi, halves[1::2])
        else:
            halves = [self.read(part.strip(), "b16") for part in source.strip("{}").split(",")]
            self.write(destination, np.stack(halves, axis=-1).ravel())


@dataclass(frozen=True)
class _Instruction:
    sources: tuple[str, ...]
    compute: callable


def _lop3(a, b, c, table):
    """Any function of three bits: bit 4a + 2b + c of the table is the result."""
    result = np.zeros_like(a)
    for row in range(8):
        minterm = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        result |= np.where(table >> np.uint32(row) & np.uint32(1), minterm, np.uint32(0))
    return result


def _prmt(a, b, selector):
    """Four bytes picked out of the eight of b:a; bit 3 of a selector nibble replicates the byte's sign instead."""
    pool = np.concatenate([a.view(np.uint8).reshape(-1, 4), b.view(np.uint8).reshape(-1, 4)], axis=1)
    nibbles = selector[:, None] >> np.arange(0, 16, 4, dtype=np.uint32) & np.uint32(15)
    picked = np.take_along_axis(pool, (nibbles & 7).astype(np.int64), axis=1)
    signs = np.where(picked & 0x80, 0xFF, 0).astype(np.uint8)
    return np.where(nibbles & 8, signs, picked).ravel().view(np.uint32)


def _shift(operate, fill):
    """PTX shifts by 32 or more give zeros (or copies of the sign); numpy leaves them undefined."""

    def shift(value, amount):
        in_range = operate(value, np.minimum(amount, 31).astype(value.dtype))
        return np.where(amount > 31, fill(value), in_range)

    return shift


def _fma16(a, b, c):
    """One rounding: products of two f16 are exact in float64, and so are the sums that decide the rounding."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float16)


def _fma_bf16(a, b, c):
    """bf16 as bits; one rounding, to nearest even: the sums that decide it are exact in float64."""
    a, b, c = ((bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64) for bits in (a, b, c))
    return _bf16_bits((a * b + c).astype(np.float32))


def _fma32(a, b, c):
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


def _extract(value, start, length):
    """bfe.u32: `length` bits from bit `start`."""
    return (value.astype(np.uint64) >> start & (np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)).astype(
        np.uint32
    )


def _table() -> dict[str, _Instruction]:
    two, three = ("b32",) * 2, ("b32",) * 3
    table = {
        "mov.b32": _Instruction(("b32",), np.copy),
        "mov.u32": _Instruction(("b32",), np.copy),
        "mov.b16": _Instruction(("b16",), np.copy),
        "not.b32": _Instruction(("b32",), np.invert),
        "and.b32": _Instruction(two, np.bitwise_and),
        "or.b32": _Instruction(two, np.bitwise_or),
        "xor.b32": _Instruction(two, np.bitwise_xor),
        "lop3.b32": _Instruction(("b32",) * 4, _lop3),
        "prmt.b32": _Instruction(three, _prmt),
        "shl.b32": _Instruction(two, _shift(np.left_shift, np.zeros_like)),
        "shr.b32": _Instruction(two, _shift(np.right_shift, np.zeros_like)),
        "shr.u32": _Instruction(two, _shift(np.right_shift, np.zeros_like)),
        "shr.s32": _Instruction(("s32", "u32"), _shift(np.right_shift, lambda value: value >> 31)),
        "bfe.u32": _Instruction(three, _extract),
        "add.u32": _Instruction(two, np.add),
        "sub.u32": _Instruction(two, np.subtract),
        "cvt.f32.f16": _Instruction(("f16",), lambda value: value.astype(np.float32)),
        "cvt.rn.f16.f32": _Instruction(("f32",), lambda value: value.astype(np.float16)),
    }
    for kind, fma in (("f16", _fma16), ("f16x2", _fma16), ("f32", _fma32)):
        for rounding in ("", ".rn"):
            table |= {
                f"add{rounding}.{kind}": _Instruction((kind,) * 2, np.add),
                f"sub{rounding}.{kind}": _Instruction((kind,) * 2, np.subtract),
                f"mul{rounding}.{kind}": _Instruction((kind,) * 2, np.multiply),
            }
        table[f"fma.rn.{kind}"] = _Instruction((kind,) * 3, fma)
    table["fma.rn.bf16x2"] = _Instruction(("bf16x2",) * 3, _fma_bf16)
    return table


INSTRUCTIONS = _table()
