"""A memory guard for Triton's interpreter: what a GPU might silently get away with raises here.

Every active lane of a load, store or atomic must lie inside the storage of a tensor argument, at a multiple of its own
size, and every alignment hint (tl.multiple_of, tl.max_contiguous) must be true of the values it is given.
"""

from __future__ import annotations

import contextlib

import numpy as np
import ptx
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle, interpreter_builder


class OutOfBoundsError(AssertionError):
    """An active lane touches memory that belongs to no argument of the kernel."""


class MisalignedError(AssertionError):
    """An active lane's address is no multiple of what it loads or stores: on a GPU that ends the process's context."""


class FalseHintError(AssertionError):
    """A value breaks the alignment the kernel promises the compiler."""


@contextlib.contextmanager
def guarded():
    """Check every kernel that the interpreter runs inside the block."""
    storages: list[tuple[int, int]] = []
    replaced = {
        (InterpreterBuilder, "create_masked_load"): _checked("load", storages, pointers_at=0, mask_at=1),
        (InterpreterBuilder, "create_masked_store"): _checked("store", storages, pointers_at=0, mask_at=2),
        (InterpreterBuilder, "create_atomic_rmw"): _checked("atomic", storages, pointers_at=1, mask_at=3),
        (InterpreterBuilder, "create_atomic_cas"): _checked("atomic", storages, pointers_at=0, mask_at=None),
        (GridExecutor, "_init_args_hst"): _noting_storages(storages),
        (TensorHandle, "set_attr"): _checked_hint,
    }
    originals = {(owner, name): getattr(owner, name) for owner, name in replaced}
    for (owner, name), wrap in replaced.items():
        setattr(owner, name, wrap(originals[owner, name]))
    ptx.SHARED.check = lambda addresses, size: _check_addresses("copy", addresses, size, storages)
    try:
        yield
    finally:
        ptx.SHARED.check = None
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


def _noting_storages(storages):
    """Remember where the tensors of the kernel that is about to run lie."""

    def wrap(original):
        def init_args(self, arguments, keywords):
            on_host = original(self, arguments, keywords)
            tensors = [a for a in (*on_host[0], *on_host[1].values()) if hasattr(a, "data_ptr")]
            parts = [getattr(tensor, "base", tensor).untyped_storage() for tensor in tensors]
            storages[:] = [(part.data_ptr(), part.data_ptr() + part.nbytes()) for part in parts]
            return on_host

        return init_args

    return wrap


def _checked(what, storages, pointers_at, mask_at):
    def wrap(original):
        def access(self, *arguments):
            active = np.array(True) if mask_at is None else arguments[mask_at].data
            _check_lanes(what, arguments[pointers_at], active, storages)
            return original(self, *arguments)

        return access

    return wrap


def _check_lanes(what, pointers, mask, storages):
    size = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
    addresses, active = np.broadcast_arrays(pointers.data.astype(np.uint64), mask.astype(bool))
    _check_addresses(what, addresses[active], size, storages)


def _check_addresses(what, addresses, size, storages):
    size = np.uint64(size)
    inside = np.zeros(addresses.shape, bool)
    for start, end in storages:
        inside |= (addresses >= np.uint64(start)) & (addresses + size <= np.uint64(end))
    if not inside.all():
        raise OutOfBoundsError(
            f"{what}: {(~inside).sum()} of {inside.size} active lanes lie outside every argument, "
            f"in program {interpreter_builder.grid_idx}"
        )
    if (addresses % size).any():
        raise MisalignedError(
            f"{what}: addresses are no multiple of {size} bytes, in program {interpreter_builder.grid_idx}"
        )


def _checked_hint(original):
    def set_attr(self, key, value):
        values = list(value) if isinstance(value, list | tuple) else [value]
        if key == "tt.divisibility" and len(values) == 1 and self.data.size and (self.data.flat[0] % values[0]):
            raise FalseHintError(f"multiple_of({values[0]}): the first value is {self.data.flat[0]}")
        if key == "tt.contiguity" and len(values) == 1:
            runs = self.data.reshape(-1, values[0]).astype(np.int64)
            if (np.diff(runs, axis=1) != 1).any():
                raise FalseHintError(f"max_contiguous({values[0]}): the values do not run in steps of one")
        return original(self, key, value)

    return set_attr
