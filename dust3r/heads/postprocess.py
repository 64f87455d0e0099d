"""Activations that turn a head's raw channels into points and confidences."""

import torch
from torch import Tensor

Mode = tuple[str, float, float]


def pointmap(xyz: Tensor, mode: Mode) -> Tensor:
    """Raw (..., 3) to points (..., 3).

    ``mode`` is (kind, low, high): ``'exp'`` keeps the direction and maps the length d to
    exp(d) - 1, ``'square'`` to d^2; ``'linear'`` keeps the coordinates, clipped to [low, high].

    Raises:
        ValueError: the kind is unknown, or limits are given that it does not know.
    """
    kind, low, high = mode
    if kind == "linear":
        return xyz if (low, high) == (-torch.inf, torch.inf) else xyz.clamp(low, high)
    if (low, high) != (-torch.inf, torch.inf):
        raise ValueError(f"depth_mode={mode}: limits are for 'linear' only, give -inf and inf")
    distance = xyz.norm(dim=-1, keepdim=True)
    direction = xyz / distance.clamp(min=1e-8)
    if kind == "exp":
        return direction * distance.expm1()
    if kind == "square":
        return direction * distance.square()
    raise ValueError(f"depth_mode={mode}: the first value is none of 'exp', 'square', 'linear'")


def confidence(raw: Tensor, mode: Mode) -> Tensor:
    """Raw values to confidences in [low, high] of ``mode`` = (kind, low, high).

    ``'exp'`` is low + exp(x), cut at high; ``'sigmoid'`` runs between both.

    Raises:
        ValueError: the kind is unknown.
    """
    kind, low, high = mode
    if kind == "exp":
        return low + raw.exp().clamp(max=high - low)
    if kind == "sigmoid":
        return low + (high - low) * raw.sigmoid()
    raise ValueError(f"conf_mode={mode}: the first value is neither 'exp' nor 'sigmoid'")
