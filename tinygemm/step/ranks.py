"""The processes that share a decode step, one per GPU, and the layers in which they exchange what they computed."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn


class Alone:
    """One process that holds the whole model."""

    rank, world = 0, 1

    def same(self, value):
        """A value as the first process has it."""
        return value

    def agree(self, work: Callable[[], object]) -> object:
        """The result of some work without exchange; raises on every process where it failed on one."""
        return work()

    def meet(self) -> None:
        """Let the GPUs wait for each other."""


class Ranks(Alone):
    """The processes of `torch.distributed`; every one goes through the same steps in the same order."""

    def __init__(self, device: str):
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.ones = torch.ones(1, device=device)

    def same(self, value):
        held = [value]
        dist.broadcast_object_list(held)
        return held[0]

    def agree(self, work):
        result, fault = None, None
        try:
            result = work()
        except Exception as error:
            fault = error
        faults: list = [None] * self.world
        dist.all_gather_object(faults, fault and f"{type(fault).__name__}: {fault}")
        if fault is not None:
            raise fault
        for rank, other in enumerate(faults):
            if other:
                raise RuntimeError(f"rank {rank}: {other}")
        return result

    def meet(self) -> None:
        dist.all_reduce(self.ones, dist.ReduceOp.MAX)


def started(tp: int) -> int:
    """The number of this process among `tp` that torchrun started.

    raises: ValueError where it started another number, or none
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world != tp:
        command = f"torchrun --nproc-per-node {tp} -m tinygemm.cli step --tp {tp} ..."
        if world > 1:
            raise ValueError(f"torchrun started {world} processes, and --tp is {tp}: they must be as many")
        raise ValueError(f"--tp {tp} needs {tp} processes; start them with: {command}")
    return int(os.environ.get("RANK", 0))


def ranks_of_this_machine(tp: int) -> Alone:
    """The processes that share this machine's GPUs, one each.

    raises: ValueError where there are fewer GPUs, or torchrun has not started as many processes
    """
    if tp == 1:
        return Alone()
    if (found := torch.cuda.device_count()) < tp:
        raise ValueError(f"--tp {tp} needs {tp} GPUs, and this machine has {found}")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    return Ranks("cuda")


class Summed(nn.Module):
    """A product whose inputs are spread over the ranks: [B, K / ranks] -> [B, N], the same on every rank."""

    def __init__(self, product: nn.Module):
        super().__init__()
        self.product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.product(x)
        dist.all_reduce(y)
        return y


class Gathered(nn.Module):
    """A product whose outputs are spread over the ranks: [B, K] -> [B, N], the same on every rank."""

    def __init__(self, product: nn.Module, world: int):
        super().__init__()
        self.product, self.world = product, world

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.product(x)
        shares = y.new_empty(self.world * len(y), y.shape[1])
        dist.all_gather_into_tensor(shares, y)
        return torch.cat(shares.chunk(self.world), 1)
