"""The learning rate of every step, and the groups of parameters it applies to."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from dust3r.training.stages import UQ_HEADS, lies_in

REFERENCE_BATCH = 256


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine from ``peak`` to ``floor`` (Loshchilov and Hutter, 2017).

    Attributes:
        peak, floor: learning rates.
        warmup_steps, total_steps: in batches.
    """

    peak: float
    floor: float
    warmup_steps: int
    total_steps: int

    def learning_rate(self, step: int) -> float:
        """The rate of batch number ``step``, counted from 0 over the whole run."""
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        span = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


def absolute_rate(base_rate: float, effective_batch: int) -> float:
    """Learning rate of a batch, from that of a batch of 256 (Goyal et al., 2017)."""
    return base_rate * effective_batch / REFERENCE_BATCH


def make_optimizer(
    model: nn.Module, weight_decay: float, uq_lr_scale: float = 1.0
) -> torch.optim.AdamW:
    """AdamW over what trains; vectors (norms, biases) do not decay.

    Each group's ``lr_scale`` is what its learning rate is multiplied by: ``uq_lr_scale`` for the
    uncertainty heads, which start from random weights where the rest is pretrained; else 1.

    Raises:
        ValueError: nothing in the model trains.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = uq_lr_scale if lies_in(name, UQ_HEADS) else 1.0
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    if not groups:
        raise ValueError("nothing in the model trains: see --freeze, --uq_mode and --phase")
    described = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(described, lr=0.0, betas=(0.9, 0.95), fused=True)
