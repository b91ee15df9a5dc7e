"""The workspace of a split K: partial sums and arrival counters."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tinygemm.kernel import fastpath


@dataclass(frozen=True, eq=False)
class Workspace:
    """Partial sums float32 and arrival counters int32, as tensors and by their addresses; None where not needed."""

    tensors: tuple[torch.Tensor | None, ...]
    addresses: tuple[int | None, ...]


NOT_NEEDED = Workspace((None, None), (None, None))
POOL_COUNTERS = 1 << 20  # 4 MB: a thousand graphs, however many calls each captures
POOL_RESERVE = 1 << 17  # with less than this left, the next eager call starts another pool
_stream_workspaces: dict[tuple[int, int], Workspace] = {}
_pools: dict[int, list[torch.Tensor]] = {}  # device -> what is left of its pool, then the pools that are used up
_captures: dict[tuple[int, int], tuple[int, torch.Tensor]] = {}  # (device, stream) -> its last capture, its counters


def reserve(partials: int, counters: int, device: torch.device) -> Workspace:
    """Room for partial sums, and arrival counters that are zero now and that the kernel leaves at zero.

    Calls that may overlap never share it. Eager calls on one stream run one after the other and share a workspace that
    grows to the need of the largest of them. Captured calls take their partial sums from their graph's memory. Their
    counters come out of a pool for good, since the graph may be replayed at any time beside anything else. Calls of one
    capture on one stream run one after the other and share them. Eager calls refill the pool. Where there is none yet
    (the first call of all is a captured one), the graph zeroes its counters itself: one node more.
    """
    if not partials:
        return NOT_NEEDED
    if device.type != "cuda":
        return _new_workspace(partials, _zeros(counters, device))
    counters += -counters % 4  # every set starts 16-byte aligned: another alignment would be another compiled kernel
    key = (device.index, fastpath.current_stream(device.index))
    if torch.cuda.is_current_stream_capturing():
        return _new_workspace(partials, _captured_counters(key, counters, device))
    pool = _pools.setdefault(device.index, [])
    if not pool or pool[0].numel() < POOL_RESERVE:
        pool.insert(0, _zeros(POOL_COUNTERS, device))
        torch.cuda.synchronize(device)  # once in a thousand graphs: every stream must see the zeros
    held = _stream_workspaces.get(key)
    sizes = [0, 4096] if held is None else [tensor.numel() for tensor in held.tensors if tensor is not None]
    if held is not None and sizes[0] >= partials and sizes[1] >= counters:
        return held
    held = _new_workspace(max(partials, sizes[0]), _zeros(max(counters, sizes[1]), device))
    _stream_workspaces[key] = held
    return held


def forget_captured_counters() -> None:
    """Start new pools of counters, with the next eager call on each GPU.

    For a caller who knows that no graph captured so far will be replayed again.
    """
    _pools.clear()
    _captures.clear()


def _captured_counters(stream: tuple[int, int], count: int, device: torch.device) -> torch.Tensor:
    """Counters for a call that is being captured: those of the calls before it in the same capture and stream."""
    capture = fastpath.capture_id(stream[1])
    known, held = _captures.get(stream, (None, None))
    if held is not None and known == capture and held.numel() >= count:
        return held
    pool = _pools.get(device.index)
    if not pool or pool[0].numel() < count:
        held = _zeros(count, device)  # of the graph's memory; kept, for later calls of the capture rely on its zeros
    else:
        held, pool[0] = pool[0][:count], pool[0][count:]
    if capture is not None:
        _captures[stream] = (capture, held)
    return held


def _new_workspace(partials: int, counters: torch.Tensor) -> Workspace:
    sums = torch.empty(partials, dtype=torch.float32, device=counters.device)
    return Workspace((sums, counters), (sums.data_ptr(), counters.data_ptr()))


def _zeros(count: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)
