"""Terms of the uncertainty training stages, on each view's own depth map.

A term is called with one view, ``depthmap`` and ``valid_mask`` (B,H,W), and its prediction, maps
(B,1,H,W), and gives its mean over the valid pixels of the batch: a scalar, 0 with a graph when no
pixel is valid. The teacher of the distillation terms is GeoUQ, detached.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from dust3r.criterion import masked_mean, need
from dust3r.uncertainty.evidential import NormalInverseGamma

Maps = Mapping[str, Tensor]


class Term(Protocol):
    """What a training stage adds up: a name for logs, and a loss of one view."""

    @property
    def name(self) -> str: ...

    def __call__(self, view: Maps, pred: Maps) -> Tensor: ...


def average_over_views(term: Term, views: tuple[Maps, Maps], preds: tuple[Maps, Maps]) -> Tensor:
    """``term`` averaged over the valid pixels of each view, then over the views (scalar)."""
    values = [term(view, pred) for view, pred in zip(views, preds, strict=True)]
    return sum(values) / len(values)


@dataclass(frozen=True)
class EvidentialTerm:
    """NLL of the depth plus ``penalty_weight`` times the evidence penalty (Amini et al., 2020).

    Args:
        suffix: whose evidence, "" for GeoUQ or "_feat" for FeatUQ.
        penalty_weight: lambda of their eq. 10.
    """

    suffix: Literal["", "_feat"]
    penalty_weight: float

    def __post_init__(self) -> None:
        if self.suffix not in _EVIDENTIAL_NAMES:
            raise ValueError(f"suffix is {self.suffix!r}; use '' for GeoUQ, '_feat' for FeatUQ")

    @property
    def name(self) -> str:
        return _EVIDENTIAL_NAMES[self.suffix]

    def __call__(self, view: Maps, pred: Maps) -> Tensor:
        nig = NormalInverseGamma.from_prediction(pred, self.suffix)
        depth, valid = _depth(view)
        return masked_mean(
            nig.nll(depth) + self.penalty_weight * nig.evidence_penalty(depth), valid
        )


@dataclass(frozen=True)
class MeanToDepth:
    """Squared error of FeatUQ's mean against the depth."""

    name: str = "loss_mean_gt"

    def __call__(self, view: Maps, pred: Maps) -> Tensor:
        depth, valid = _depth(view)
        mean = _map(pred, "depth_mean_feat", like=depth)
        return masked_mean((mean - depth).square(), valid)


@dataclass(frozen=True)
class MeanToTeacher:
    """Squared error of FeatUQ's mean against the teacher's, where the depth is valid."""

    name: str = "loss_mean_distill"

    def __call__(self, view: Maps, pred: Maps) -> Tensor:
        depth, valid = _depth(view)
        mean = _map(pred, "depth_mean_feat", like=depth)
        teacher = _map(pred, "depth_mu", like=depth).detach()
        return masked_mean((mean - teacher).square(), valid)


@dataclass(frozen=True)
class VarianceToTeacher:
    """Absolute difference of FeatUQ's predictive variance and the teacher's, or of their logs.

    Args:
        space: "linear", as published, where the few pixels of huge variance dominate, or "log".
    """

    space: Literal["linear", "log"] = "linear"
    name: str = "loss_var_distill"

    def __post_init__(self) -> None:
        if self.space not in ("linear", "log"):
            raise ValueError(f"variance distillation is 'linear' or 'log', not {self.space!r}")

    def __call__(self, view: Maps, pred: Maps) -> Tensor:
        depth, valid = _depth(view)
        variance = _map(pred, "depth_var_feat", like=depth)
        teacher = _map(pred, "depth_var", like=depth).detach()
        if self.space == "log":
            smallest = torch.finfo(variance.dtype).tiny
            variance, teacher = (v.clamp(min=smallest).log() for v in (variance, teacher))
        return masked_mean((variance - teacher).abs(), valid)


_EVIDENTIAL_NAMES = {"": "loss_uq_geom", "_feat": "loss_uq_feat"}


def _depth(view: Maps) -> tuple[Tensor, Tensor]:
    """Depth (B,1,H,W), 0 where not valid, and validity.

    The 0 keeps a depth of NaN out of the gradient, which a mask on the result would not.
    """
    depth = need(view, "depthmap", "the view").float()[:, None]
    valid = need(view, "valid_mask", "the view")[:, None] & depth.isfinite()
    return torch.where(valid, depth, 0.0), valid


def _map(pred: Maps, key: str, like: Tensor) -> Tensor:
    found = need(pred, key, "the prediction").float()
    if found.shape != like.shape:
        raise ValueError(
            f"{key} is {tuple(found.shape)}; the view's depth asks for {tuple(like.shape)}"
        )
    return found
