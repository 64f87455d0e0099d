"""What a prediction says about a view's depth, head by head, in one form for plots and tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dust3r.uncertainty.alignment import misfits
from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.uncertainty.families import point_distribution
from dust3r.utils.geometry import geotrf, inv
from dust3r.utils.view import own_depth

GEO, FEAT, POINTS, POINTMAP = "GeoUQ", "FeatUQ", "points", "pointmap"


@dataclass(frozen=True)
class DepthEstimate:
    """One head's depth of a batch of views, each in its own camera.

    Attributes:
        name: ``GEO``, ``FEAT``, ``POINTS`` or ``POINTMAP``.
        mean: (B, H, W), float32, in the unit of the depth maps.
        uncertainty: (B, H, W), float32: the standard deviation, in the unit of ``mean``, where
            ``is_deviation``, else 1 / confidence, or None without a confidence.
        is_deviation: see there.
        distribution: evidence about the depth, maps (B, 1, H, W), or None. FeatUQ learns its mean
            apart from its evidence, so that ``mean`` is not the mean of its distribution.
        error: (B, H, W), errors of what the estimate is about, where that is not ``mean``.
    """

    name: str
    mean: Tensor
    uncertainty: Tensor | None
    is_deviation: bool
    distribution: NormalInverseGamma | None = None
    error: Tensor | None = None

    def errors(self, depth: Tensor) -> Tensor:
        """Absolute errors (B, H, W), where ``depth`` (B, H, W) is the true one."""
        return (self.mean - depth).abs() if self.error is None else self.error

    def errors_at(self, index: int, chosen: Tensor, depth: Tensor) -> Tensor:
        """The same (n,) of ``chosen`` pixels (H, W) of one image, whose true depths are (n,)."""
        if self.error is not None:
            return self.error[index][chosen]
        return (self.mean[index][chosen] - depth).abs()

    def nll(self, depth: Tensor) -> Tensor | None:
        """Negative log-likelihood (B, H, W) of ``depth`` (B, H, W), or None."""
        if self.distribution is None:
            return None
        return self.distribution.nll(depth[:, None])[:, 0]


def uncertainty_heads(prediction: Mapping[str, Tensor]) -> list[DepthEstimate]:
    """The estimates of the uncertainty heads that made ``prediction``, GeoUQ first; maybe none."""
    estimates = []
    if "depth_mu" in prediction:
        estimates.append(_of_head(prediction, GEO, "depth_mu", ""))
    if "depth_mean_feat" in prediction:
        estimates.append(_of_head(prediction, FEAT, "depth_mean_feat", "_feat"))
    return estimates


def stated_depths(
    view: Mapping[str, Any], prediction: Mapping[str, Tensor], pose1: Tensor | None = None
) -> list[DepthEstimate]:
    """``uncertainty_heads``, or else what a distribution of points says of them; maybe none.

    The latter has the depth of ``pointmap_depth``, whose arguments and errors these are. Its errors
    are distances of points after a similarity of each image, or after a scale where that is not
    defined; its deviation is the root of their expected squares, in the unit of a metric model.
    """
    estimates = uncertainty_heads(prediction)
    said = None if estimates else point_distribution(prediction)
    if said is None:
        return estimates
    points, truth, pose1 = _scaled_points(view, prediction, pose1)
    misfit = misfits(points, truth, view["valid_mask"])
    misfit = torch.where(misfit.isfinite().all(-1, keepdim=True), misfit, truth - points)
    depth = own_depth(points, pose1, view["camera_pose"].float())
    deviation = said.total.sum(dim=1).float().sqrt()
    return [DepthEstimate(POINTS, depth, deviation, True, error=misfit.norm(dim=-1))]


def pointmap_depth(
    view: Mapping[str, Any], prediction: Mapping[str, Tensor], pose1: Tensor | None = None
) -> DepthEstimate:
    """Depth of a predicted pointmap, with 1 / confidence as uncertainty.

    The scale of a pointmap is arbitrary, so each is multiplied by the median ratio of true to
    predicted distances from camera 1 over its valid pixels: it knows more than the heads do.

    Args:
        view: with ground truth.
        prediction: of the same view; ``pts3d`` (view 1) or ``pts3d_in_other_view`` (view 2),
            (B, H, W, 3) in camera 1's frame.
        pose1: camera 1's pose (B, 4, 4), camera-to-world; needed for view 2.

    Raises:
        ValueError: there is no pointmap, or ``pose1`` is missing.
    """
    points, _, pose1 = _scaled_points(view, prediction, pose1)
    mean = own_depth(points, pose1, view["camera_pose"].float())
    return DepthEstimate(POINTMAP, mean, inverse_confidence(prediction), False)


def inverse_confidence(prediction: Mapping[str, Tensor]) -> Tensor | None:
    """1 / confidence (B, H, W), as MASt3R ranks pixels; None for models without confidence."""
    return 1 / prediction["conf"].float() if "conf" in prediction else None


def _scaled_points(
    view: Mapping[str, Any], prediction: Mapping[str, Tensor], pose1: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Points (B, H, W, 3) in the truth's unit, the true ones, and camera 1's poses.

    Both in camera 1's frame.
    """
    pose = view["camera_pose"].float()
    if "pts3d" in prediction:
        points, pose1 = prediction["pts3d"].float(), pose
    elif "pts3d_in_other_view" not in prediction:
        raise ValueError(
            f"the prediction has neither pts3d nor pts3d_in_other_view; it has "
            f"{', '.join(prediction)}. Give a pairwise pointmap model"
        )
    elif pose1 is None:
        raise ValueError(
            "view 2's points are in camera 1's frame: give camera 1's poses (B, 4, 4) to get the "
            "depth in its own"
        )
    else:
        points, pose1 = prediction["pts3d_in_other_view"].float(), pose1.to(pose).float()
    truth = geotrf(inv(pose1), view["pts3d"].float())
    scale = _median_ratio(truth.norm(dim=-1), points.norm(dim=-1), view["valid_mask"])
    return scale[:, None, None, None] * points, truth, pose1


def _of_head(prediction: Mapping[str, Tensor], name: str, mean: str, suffix: str) -> DepthEstimate:
    distribution = NormalInverseGamma.from_prediction(prediction, suffix)
    deviation = prediction[f"depth_var{suffix}"].float().sqrt()
    return DepthEstimate(name, prediction[mean].float()[:, 0], deviation[:, 0], True, distribution)


def _median_ratio(wanted: Tensor, given: Tensor, valid: Tensor) -> Tensor:
    """Scales (B,) that take ``given`` to ``wanted``, both (B, H, W); 1 where nothing is valid."""
    ratio = torch.where(valid & (given > 0), wanted / given, torch.nan)
    return ratio.flatten(1).nanmedian(dim=1).values.nan_to_num(1.0)
