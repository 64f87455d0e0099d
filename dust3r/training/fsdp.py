"""Weights, gradients and moments shared out over processes, and put together again.

FSDP2, after Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", 2023:
every parameter is cut along its first axis into a part for each process; a block's parts are
gathered when it runs, and let go after it. Names stay; parameters become ``DTensor``.
"""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, device, nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from croco.blocks import Block, DecoderBlock

BLOCKS = (Block, DecoderBlock)


def shard(model: nn.Module, size: int, target: device) -> nn.Module:
    """Share the main process's ``model`` out over ``size`` processes, in place, on ``target``.

    Encoder and decoder blocks are gathered one by one. All the rest (patch embedding, norms,
    heads) is one group, gathered once a step: a batch of landscape and portrait images runs a head
    twice, one of landscape images once, and processes whose exchanges differ in number would wait
    for each other for ever.
    """
    mesh = init_device_mesh(target.type, (size,))
    _take_from_main(model, target)
    for module in model.modules():
        if isinstance(module, BLOCKS):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def whole(value: Tensor) -> Tensor:
    """A tensor put together from its parts; every process takes part. Others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_weights(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The state dict as of a model that is not sharded; every process takes part.

    Args:
        model: sharded or not.
        keep: whether this process gets those of a sharded model, on the CPU; else it is empty.
    """
    state = model.state_dict()
    return _whole(state, keep) if is_sharded(model) else state


def whole_moments(optimizer: optim.Optimizer, keep: bool) -> dict[str, Any]:
    """``optimizer.state_dict()`` as of parameters that are not sharded, as ``whole_weights``."""
    state = optimizer.state_dict()
    if not any(isinstance(p, DTensor) for g in optimizer.param_groups for p in g["params"]):
        return state
    return state | {
        "state": {number: _whole(values, keep) for number, values in state["state"].items()}
    }


def load_moments(optimizer: optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load a state dict of ``whole_moments`` into an optimiser of parameters, sharded or not.

    Raises:
        ValueError: it is of other parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: _part_for(parameters[number], value) for name, value in values.items()}
        for number, values in saved["state"].items()
        if number < len(parameters)
    }
    optimizer.load_state_dict({**saved, "state": state})


def _take_from_main(model: nn.Module, target: device) -> None:
    # Each process drew random weights of its own. One tensor at a time is on the device.
    for tensor in (*model.parameters(), *model.buffers()):
        value = tensor.detach().to(target)
        dist.broadcast(value, 0)
        tensor.detach().copy_(value)


def _whole(values: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        # One at a time: all of them at once would not fit where the shards do.
        gathered = whole(value) if isinstance(value, Tensor) else value
        if keep:
            kept[name] = gathered.cpu() if isinstance(gathered, Tensor) else gathered
    return kept


def _part_for(parameter: Tensor, value: Any) -> Any:
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.ndim == 0:
        return value
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements)
