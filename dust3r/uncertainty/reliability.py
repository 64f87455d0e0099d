"""Errors of predicted depths against what was stated of them, before and after calibration."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from dust3r.uncertainty.calibration import Calibration, Coverage, coverage
from dust3r.uncertainty.calibration_samples import ErrorCollector, ErrorSamples
from dust3r.uncertainty.estimates import FEAT, GEO, uncertainty_heads
from dust3r.uncertainty.stated import DEPTH_SUFFIXES, stated

HEAD_OF_FAMILY = {"geom": GEO, "feat": FEAT}

# Of the curve: 100 images hold radii up to 99%.
CURVE = tuple(np.arange(1, 20) / 20)


def add_depth(
    collector: ErrorCollector,
    view: Mapping[str, Any],
    prediction: Mapping[str, Tensor],
    family: str,
    name: str,
    *,
    with_depths: bool = False,
) -> None:
    """Add the depth errors of the images of one batched view (DESIGN 2), of its valid pixels.

    Args:
        collector: what is added to, with degrees of freedom.
        view: with ground truth.
        prediction: of the same view.
        family: ``'geom'`` or ``'feat'``, whose error is of its own mean.
        name: of this batch and view; images are told apart by their place in it.
        with_depths: add the predicted depths as well, for groups of relative sigma. Pixels whose
            depth is not above 0 are then left out, and counted.

    Raises:
        ValueError: the family is not of depth, or the prediction is of another.
    """
    if family not in DEPTH_SUFFIXES:
        raise ValueError(
            f"family {family!r} states no deviation of depth; give {' or '.join(DEPTH_SUFFIXES)}"
        )
    said = stated(prediction, family)
    heads = {head.name: head for head in uncertainty_heads(prediction)}
    mean = heads[HEAD_OF_FAMILY[family]].mean
    errors = mean - view["depthmap"].float()
    for index, valid in enumerate(view["valid_mask"]):
        collector.add(
            errors[index],
            said.sigma[index],
            f"{name}/{index}",
            df=said.df[index],
            depths=mean[index] if with_depths else None,
            mask=valid.cpu(),
        )


class Reliability:
    """How well a calibration of depth holds on the pairs it is shown.

    Raises:
        ValueError: the calibration is of another family.
    """

    def __init__(self, calibration: Calibration) -> None:
        if calibration.family not in DEPTH_SUFFIXES or calibration.region != "interval":
            raise ValueError(
                f"a calibration of the family {calibration.family!r} ({calibration.region}) says "
                "nothing of depth; give one of intervals of "
                f"{' or '.join(DEPTH_SUFFIXES)}"
            )
        self.calibration = calibration
        self._collector = ErrorCollector()
        self._batches = 0

    @property
    def head(self) -> str:
        """Name of the estimate that is calibrated."""
        return HEAD_OF_FAMILY[self.calibration.family]

    def update(self, views: tuple[Mapping, Mapping], predictions: tuple[Mapping, Mapping]) -> None:
        """Add a batch of pairs; raises as ``add_depth``."""
        for number, (view, prediction) in enumerate(zip(views, predictions, strict=True), 1):
            add_depth(
                self._collector,
                view,
                prediction,
                self.calibration.family,
                f"{self._batches:08d}/{number}",
                with_depths=self.calibration.binned_by == "relative",
            )
        self._batches += 1

    def curves(self) -> dict[str, Coverage]:
        """Observed shares at ``CURVE``, ``'as stated'`` and ``'calibrated'``.

        Raises ValueError where no pixel was usable.
        """
        samples: ErrorSamples = self._collector.samples()
        return {
            "as stated": coverage(samples, None, CURVE),
            "calibrated": coverage(samples, None, CURVE, self.calibration),
        }
