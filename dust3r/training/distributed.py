"""One process or many, started by torchrun or not: the same calls."""

import os
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dust3r.training.fsdp import shard

HANG_SECONDS = 1800


class World:
    """This process among those of the run.

    Attributes:
        rank, size: number of this process and how many there are.
        device: where this process computes.
    """

    def __init__(self, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device

    @classmethod
    def join(cls, device: torch.device, hang_seconds: float = HANG_SECONDS) -> "World":
        """Join the processes that torchrun started: NCCL on CUDA, else gloo. Alone without it.

        Args:
            device: where this process computes.
            hang_seconds: how long it waits for the others, now and in every exchange, before it
                fails, so that torchrun can start all of them again.
        """
        if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls(0, 1, device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=hang_seconds)
        )
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def leave(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, model: nn.Module, sharded: bool = False) -> nn.Module:
        """``model`` on the device, its gradients averaged over processes where there are several.

        Args:
            model: on the CPU, or on the device.
            sharded: each process holds its part of every parameter (``fsdp.shard``), instead
                of a copy; one process alone holds all of them anyway.
        """
        if sharded and self.size > 1:
            # Moved block by block, because the whole may not fit on the device.
            return shard(model, self.size, self.device)
        model.to(self.device)
        if self.size == 1 or not any(p.requires_grad for p in model.parameters()):
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        # Gradients as views of the buckets save a copy of all of them.
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def sum(self, values: Tensor) -> Tensor:
        """``values`` summed over processes."""
        if self.size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any process. One message for all."""
        if self.size == 1:
            return list(flags)
        return (self.sum(torch.tensor(flags, dtype=torch.float32)) > 0).tolist()

    def gather(self, value: object) -> list[object]:
        """``value`` of every process, by rank, on every process."""
        if self.size == 1:
            return [value]
        gathered = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def first(self, value: object) -> object:
        """The main process's ``value``, on every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def without_sync(model: nn.Module, active: bool):
    """A context in which gradients stay local, while they are accumulated over several batches."""
    if active and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def unwrap(model: nn.Module) -> nn.Module:
    """The module that was built, under DDP or not."""
    return model.module if isinstance(model, DistributedDataParallel) else model
