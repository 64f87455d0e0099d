"""Devices, and moving batches to them."""

from typing import Any

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


def view_to_device(view: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The view with its tensors on ``device``, without waiting where memory is pinned."""
    return {
        key: value.to(device, non_blocking=True)
        if isinstance(value, Tensor) and key not in STAYS_ON_HOST
        else value
        for key, value in view.items()
    }
