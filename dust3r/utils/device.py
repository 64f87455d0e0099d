"""Devices, and moving batches to them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Read by the host to choose shapes; on a GPU each look would wait for everything queued there.
STAYS_ON_HOST = ("true_shape",)


def best_device(local_rank: int = 0) -> torch.device:
    """CUDA device number ``local_rank`` where there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def chosen_device(name: str | None, dtype: torch.dtype = torch.float32) -> torch.device:
    """The device of ``--device NAME``, or the best one here that holds numbers of ``dtype``.

    Raises:
        ValueError: there is no such device, or it does not know ``dtype``.
    """
    if name is None:
        device = best_device()
        knows = device.type != "mps" or dtype != torch.float64
        return device if knows else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device, dtype=dtype)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}); choose cpu, or "
            "leave it out to take the GPU where there is one"
        ) from error
    return device


def view_to_device(view: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The view with its tensors on ``device``, without waiting where memory is pinned."""
    return {
        key: value.to(device, non_blocking=True)
        if isinstance(value, Tensor) and key not in STAYS_ON_HOST
        else value
        for key, value in view.items()
    }


def to_cpu(nested: Any) -> Any:
    """Dictionaries, lists and tuples of tensors with every tensor on the CPU, free of its graph."""
    return _map_tensors(nested, lambda tensor: tensor.detach().cpu())


def to_numpy(nested: Any) -> Any:
    """Dictionaries, lists and tuples of tensors with every tensor as an array; others as they are.

    bf16, which numpy has not, becomes float32.
    """
    return _map_tensors(nested, _array)


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _map_tensors(nested: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(nested, Tensor):
        return change(nested)
    if isinstance(nested, Mapping):
        return {key: _map_tensors(value, change) for key, value in nested.items()}
    if isinstance(nested, list | tuple):
        return type(nested)(_map_tensors(value, change) for value in nested)
    return nested
