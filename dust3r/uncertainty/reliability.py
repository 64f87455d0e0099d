"""Errors of predictions against what was stated of them, before and after calibration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dust3r.uncertainty.alignment import misfits
from dust3r.uncertainty.calibration import UNALIGNED, Calibration, Coverage, coverage
from dust3r.uncertainty.calibration_samples import ErrorCollector, ErrorSamples
from dust3r.uncertainty.estimates import FEAT, GEO, POINTS, uncertainty_heads
from dust3r.uncertainty.families import FAMILIES
from dust3r.uncertainty.stated import (
    DEPTH_SUFFIXES,
    ELLIPSOID_SIGMA,
    mahalanobis,
    stated,
)
from dust3r.utils.geometry import geotrf, inv
from dust3r.utils.view import points_key

# In order of preference, as of alignments.
HEAD_OF_FAMILY = {"feat": FEAT, "geom": GEO} | {
    name: POINTS for name, family in FAMILIES.items() if family.points is not None
}

# Of the curve: 100 images hold radii up to 99%.
CURVE = tuple(np.arange(1, 20) / 20)


@dataclass(frozen=True)
class ViewErrors:
    """Errors of one batched view and what was stated of them, each (B,H,W).

    Nothing is aligned or scaled, unless ``view_errors`` was told to: predictions are held against
    the truth as they are.

    Attributes:
        errors: predicted less true depth in the view's own camera; of points the distance of the
            predicted from the true one, in camera 1's frame, or its Mahalanobis length. Metres for
            a metric model, no unit for a Mahalanobis length.
        sigmas, df: as of ``dust3r.uncertainty.stated.Stated``; constant for Mahalanobis lengths.
        depths: predicted depth, or distance of the predicted point from camera 1.
        true_depths: the same of the truth.
    """

    errors: Tensor
    sigmas: Tensor
    df: Tensor | None
    depths: Tensor
    true_depths: Tensor

    def add_to(
        self, collector: ErrorCollector, valid: Tensor, name: str, *, with_depths: bool = False
    ) -> None:
        """Add the pixels of ``valid`` (B,H,W) bool to a collector, an image for each of B.

        Args:
            name: of this batch and view; images are told apart by their place in it.
            with_depths: add depths as well, for groups of relative sigma. Pixels whose depth is
                not above 0 are then left out, and counted.
        """
        for index, mask in enumerate(valid.cpu()):
            collector.add(
                self.errors[index],
                self.sigmas[index],
                f"{name}/{index}",
                df=None if self.df is None else self.df[index],
                depths=self.depths[index] if with_depths else None,
                mask=mask,
            )

    def scale(self, valid: Tensor) -> float:
        """Median ratio of true to predicted depths within ``valid`` (B,H,W); NaN without any.

        1 for a metric model; errors hold what the scale of others is off by.
        """
        good = valid & self.depths.isfinite() & (self.depths > 0)
        return (self.true_depths[good] / self.depths[good]).median().item()


def view_errors(
    view: Mapping[str, Any],
    prediction: Mapping[str, Tensor],
    family: str,
    pose1: Tensor,
    region: str | None = None,
    alignment: str = UNALIGNED,
) -> ViewErrors:
    """Errors of a family's own depths or points.

    Args:
        view: with ground truth (DESIGN 2).
        prediction: of the same view.
        family: a name of ``FAMILIES``.
        pose1: camera 1's pose (B,4,4), camera-to-world.
        region: ``'ellipsoid'`` for Mahalanobis lengths; by default intervals of depth or balls,
            as the family has it.
        alignment: of each image's points to its true ones before errors count, in metres: one of
            ``alignment.POINT_ALIGNMENTS``, or ``'none'``. Where it is undefined errors are NaN.

    Raises:
        ValueError: the prediction is of another family, or this one states no such region, or
            intervals of depth were to be aligned.
    """
    said = stated(prediction, family)
    region = said.region if region is None else region
    if region != said.region and (region, said.region) != ("ellipsoid", "ball"):
        raise ValueError(
            f"family {family!r} states {said.region}s, no {region}s; leave the region out"
        )
    if region == "interval":
        if alignment != UNALIGNED:
            raise ValueError(
                f"family {family!r} states intervals of depth, which are of depths as they are: "
                f"alignment={alignment!r} is for balls and ellipsoids of points"
            )
        heads = {head.name: head for head in uncertainty_heads(prediction)}
        mean = heads[HEAD_OF_FAMILY[family]].mean
        truth = view["depthmap"].float()
        return ViewErrors(mean - truth, said.sigma, said.df, mean, truth)
    points = predicted_points(prediction, family)
    truth = geotrf(inv(pose1.float()), view["pts3d"].float())
    depths = points.norm(dim=-1), truth.norm(dim=-1)
    if alignment != UNALIGNED:
        truth = points + misfits(points, truth, view["valid_mask"], alignment)
    if region == "ellipsoid":
        lengths = mahalanobis(prediction, truth, family)
        # A covariance that is not finite gives no length, whatever the error.
        sigmas = torch.full_like(lengths, ELLIPSOID_SIGMA)
        return ViewErrors(lengths, sigmas, said.df, *depths)
    return ViewErrors((points - truth).norm(dim=-1), said.sigma, said.df, *depths)


def predicted_points(prediction: Mapping[str, Tensor], family: str) -> Tensor:
    """Points (B,H,W,3) that a family's uncertainty is about, in camera 1's frame, float32.

    The mean of its distribution, or the model's points where it has none.
    """
    read = FAMILIES[family].points
    if read is not None:
        return read(prediction).mean.movedim(1, -1).float()
    return prediction[points_key(prediction)].float()


class Reliability:
    """How well a calibration of depth, or of balls around points, holds on the pairs it is shown.

    Raises:
        ValueError: the calibration is of another family, or of ellipsoids.
    """

    def __init__(self, calibration: Calibration) -> None:
        if calibration.family not in HEAD_OF_FAMILY or calibration.region == "ellipsoid":
            raise ValueError(
                f"a calibration of the family {calibration.family!r} ({calibration.region}) has no "
                "deviations to draw; give one of intervals of "
                f"{' or '.join(DEPTH_SUFFIXES)}, or of balls of a family with distributions of "
                "points"
            )
        self.calibration = calibration
        self._collector = ErrorCollector()
        self._batches = 0

    @property
    def head(self) -> str:
        """Name of the estimate that is calibrated."""
        return HEAD_OF_FAMILY[self.calibration.family]

    def update(self, views: tuple[Mapping, Mapping], predictions: tuple[Mapping, Mapping]) -> None:
        """Add a batch of pairs; raises as ``view_errors``."""
        pose1, by_depth = views[0]["camera_pose"], self.calibration.binned_by == "relative"
        for number, (view, prediction) in enumerate(zip(views, predictions, strict=True), 1):
            family, alignment = self.calibration.family, self.calibration.alignment
            found = view_errors(view, prediction, family, pose1, alignment=alignment)
            name = f"{self._batches:08d}/{number}"
            found.add_to(self._collector, view["valid_mask"], name, with_depths=by_depth)
        self._batches += 1

    def curves(self) -> dict[str, Coverage]:
        """Observed shares at ``CURVE``, ``'as stated'`` and ``'calibrated'``.

        Raises ValueError where no pixel was usable.
        """
        samples: ErrorSamples = self._collector.samples()
        return {
            "as stated": coverage(samples, None, CURVE, region=self.calibration.region),
            "calibrated": coverage(samples, None, CURVE, self.calibration),
        }
