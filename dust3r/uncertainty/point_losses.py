"""Terms of the training stages of point distributions, and the points they are compared with.

A prediction and its truth are both in camera 1's frame. A distribution is in the unit of its
pointmap, and so must its target be: ``add_point_targets`` takes the truth to that unit, as far as
the criterion's ``Regr3D`` leaves the unit open. ``add_aligned_targets`` asks for what is left of an
error after a similarity of the image, which is what rankings of uncertainty are judged by. The
terms are called as those of ``dust3r.uncertainty.losses``.
"""

from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from dust3r.criterion import Criterion, masked_mean, need
from dust3r.losses import PointmapPair, Regr3D
from dust3r.uncertainty.losses import Maps
from dust3r.uncertainty.points import PointGaussian, evidence_of_points

TARGET, TARGET_VALID = "point_target", "point_target_valid"
GATE_PART = "residual_gated"


def regression_of(criterion: Criterion) -> Regr3D:
    """The first pointmap loss within ``criterion``, which says how scale is treated.

    Raises:
        ValueError: there is none.
    """
    for part in criterion.modules():
        if isinstance(part, Regr3D):
            return part
    raise ValueError(
        f"the points of an uncertainty stage are scaled as the criterion's Regr3D says, and "
        f"{criterion!r} has none: add one to --train_criterion, as Regr3D(L21, "
        "norm_mode='?avg_dis')"
    )


def add_point_targets(
    views: tuple[Maps, Maps], preds: tuple[Maps, Maps], regression: Regr3D
) -> tuple[Maps, Maps]:
    """The views with ``point_target`` (B,3,H,W) and ``point_target_valid`` (B,H,W) in addition.

    Targets are the true points of each view in camera 1's frame, sample by sample in the unit of
    the prediction: multiplied by the ratio of predicted to true typical distance with which
    ``regression`` would compare them, which carries no gradient. It is 1 for metric samples under
    a ``norm_mode`` with ``?`` and for all under None, so that distributions are in metres there.
    Shifts that a ``Regr3D`` is invariant to are not removed.
    """
    pair = regression.gather(*views, *preds)
    true_length, predicted_length = regression.lengths(pair)
    truth = pair.truth * (predicted_length / true_length).detach()
    points, valid = pair.per_view(truth), pair.per_view(pair.valid)
    return tuple(
        {**view, TARGET: target.movedim(-1, 1), TARGET_VALID: mask}
        for view, target, mask in zip(views, points, valid, strict=True)
    )


def add_aligned_targets(
    views: tuple[Maps, Maps], preds: tuple[Maps, Maps], regression: Regr3D
) -> tuple[Maps, Maps]:
    """As ``add_point_targets``, with targets that are off by what no similarity explains.

    Each view's prediction is moved onto its truth by the similarity of least squares (Umeyama,
    1991); the target is the prediction plus what then remains of the error, in the truth's unit.
    Distributions so trained state errors of shape, in metres, whatever pose and scale are off by.
    """
    pair = regression.gather(*views, *preds)
    made = []
    for view, target, valid in zip(views, *_of_views(pair), strict=True):
        mask = valid & target.isfinite().all(-1)
        target = torch.where(mask[..., None], target, 0.0)
        made.append({**view, TARGET: target.movedim(-1, 1), TARGET_VALID: mask})
    return tuple(made)


def _of_views(pair: PointmapPair) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """Targets (B,H,W,3) and validity of both views."""
    valid = pair.per_view(pair.valid)
    targets = []
    for truth, predicted, mask in zip(
        pair.per_view(pair.truth), pair.per_view(pair.predicted.detach()), valid, strict=True
    ):
        given, wanted = (points.flatten(1, 2).double() for points in (predicted, truth))
        weights = mask.flatten(1).double()
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
        rotation, shift, scale = roma.rigid_points_registration(
            given, wanted, weights, compute_scaling=True
        )
        moved = scale[:, None, None] * given @ rotation.mT + shift[:, None]
        targets.append((given + wanted - moved).to(truth).view_as(truth))
    return targets, valid


@dataclass(frozen=True)
class PointEvidence:
    """NLL of the points plus ``penalty_weight`` times the evidence penalty.

    A normal-inverse-gamma is averaged over pixels and coordinates, a normal-inverse-Wishart, which
    is of the point as a whole, over pixels.
    """

    penalty_weight: float
    name: str = "loss_uq_xyz"

    def __call__(self, view: Maps, pred: Maps) -> Tensor:
        evidence = evidence_of_points(pred)
        points, valid = _target(view)
        loss = evidence.nll(points)
        if self.penalty_weight:
            loss = loss + self.penalty_weight * evidence.evidence_penalty(points)
        return masked_mean(loss, valid.expand_as(loss))


@dataclass(frozen=True)
class PointLikelihood:
    """Gaussian NLL of the points, of all three coordinates together, averaged over pixels.

    ``beta`` as of ``PointGaussian.nll``: with 0, the likelihood itself, pixels of a small deviation
    pull the geometry along where that trains too.
    """

    beta: float = 0.0
    name: str = "loss_hetero_xyz"

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"--hetero_beta is from 0 to 1, not {self.beta}")

    def __call__(self, view: Maps, pred: Maps) -> Tensor:
        points, valid = _target(view)
        return masked_mean(PointGaussian.from_prediction(pred).nll(points, self.beta), valid)


@dataclass(frozen=True)
class GateVariation:
    """Total variation of the refinement's gate: mean absolute step right plus that down.

    Over all pixels, as the gate needs no ground truth; 0 for a gate that is the same everywhere.
    """

    name: str = "loss_gate_tv"

    def __call__(self, view: Maps, pred: Maps) -> Tensor:
        gate = need(pred, "rg_gate", "the prediction").float()
        steps = gate.diff(dim=-1), gate.diff(dim=-2)
        return sum(step.abs().mean() for step in steps if step.numel())


@dataclass(frozen=True)
class Ramp:
    """A weight that grows linearly from 0 to ``weight`` over ``steps`` batches; at once for 0."""

    weight: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"a warm-up lasts 0 steps or more, not {self.steps}")

    def at(self, step: int) -> float:
        """The weight of batch ``step``, the first being 1."""
        return self.weight * min(1.0, step / self.steps) if self.steps else self.weight


def _target(view: Maps) -> tuple[Tensor, Tensor]:
    """Points (B,3,H,W) and validity (B,1,H,W)."""
    points = need(view, TARGET, "the view (see add_point_targets)")
    return points, need(view, TARGET_VALID, "the view")[:, None]
