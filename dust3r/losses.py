"""Training criteria on pairs of pointmaps (Wang et al., DUSt3R, CVPR 2024, "Training Objective").

How a criterion is called and combined stands in ``dust3r.criterion``. A new pointmap loss overrides
one of the three steps of :class:`Regr3D`: ``gather``, ``align`` or ``distances``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dust3r.criterion import Criterion, Details, Views, masked_mean, need
from dust3r.utils.cloud_scale import (
    SHORTEST,
    NormMode,
    fitted_scale,
    log_lengths,
    masked_median,
    spread,
)
from dust3r.utils.geometry import geotrf
from dust3r.utils.spec import LOSSES

PointCriterion = Callable[[Tensor, Tensor], Tensor]

PREDICTED_SCALES = (1e-3, 1e3)
SKY_LOSS = 2


@LOSSES.register()
class L21:
    """Euclidean distance of points: (..., 3) and (..., 3) to (...). Named in eq. 2 of DUSt3R."""

    def __call__(self, predicted: Tensor, truth: Tensor) -> Tensor:
        return torch.linalg.vector_norm(predicted - truth, dim=-1)

    def __repr__(self) -> str:
        return "L21"


@dataclass(frozen=True)
class PointmapPair:
    """Both pointmaps of a batch of pairs, truth and prediction, as one cloud per sample.

    N = H1 W1 + H2 W2, view 1's pixels first, row by row. Everything is in camera 1's frame.

    Attributes:
        truth, predicted: (B,N,3); zero, and without gradient, where not valid.
        valid: (B,N) bool.
        sky: (B,N) bool, never where ``valid``.
        metric: (B,1,1) bool, whether the truth is in metres and the prediction has to be.
        unit: (B,1,1), how long one unit of ``truth`` is in the unit the ground truth came in.
        sizes: (H,W) of view 1 and of view 2.
    """

    truth: Tensor
    predicted: Tensor
    valid: Tensor
    sky: Tensor
    metric: Tensor
    unit: Tensor
    sizes: tuple[tuple[int, int], tuple[int, int]]

    def in_original_unit(self) -> "PointmapPair":
        """The same pair, measured in the unit of the data set again."""
        return replace(
            self,
            truth=self.truth * self.unit,
            predicted=self.predicted * self.unit,
            unit=torch.ones_like(self.unit),
        )

    def per_view(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values per point (B,N) as two maps, (B,H1,W1) and (B,H2,W2)."""
        (height1, width1), (height2, width2) = self.sizes
        first, second = values.split((height1 * width1, height2 * width2), dim=1)
        return first.unflatten(1, (height1, width1)), second.unflatten(1, (height2, width2))


@dataclass(frozen=True)
class PixelLoss:
    """Loss of every pixel of one view, (B,H,W), and which of them count, (B,H,W) bool."""

    values: Tensor
    valid: Tensor

    def mean(self) -> Tensor:
        """Mean over the pixels of the whole batch that count; 0 with a graph when none does."""
        return masked_mean(self.values, self.valid)


@LOSSES.register()
class Regr3D(Criterion):
    """Distance of predicted to true points, each cloud in its own unit (DUSt3R, eq. 1 to 3).

    Both pointmaps of a pair are brought to camera 1's frame, and truth and prediction are each
    divided, sample by sample, by the typical distance of all valid points of both views from the
    origin. The loss is the mean over valid pixels, of view 1 plus of view 2.

    Only the ground truth decides what is valid: ``valid_mask``, and its points must be finite. A
    prediction that is not finite at a valid pixel makes the loss not finite, on purpose: a run
    that diverges has to show.

    Args:
        criterion: distance of points, ``L21`` or ``L21()``; anything that maps two (...,3) tensors
            to (...).
        norm_mode: the typical distance, ``avg_dis`` for the mean (eq. 3) or ``median_dis`` (also
            ``avg``, ``median``); with ``_log1p`` instead of ``_dis`` the statistic is that of
            log(1 + distance), taken back to a length, which tames far points. With ``?`` in front
            (MASt3R) the prediction of a sample whose views say ``is_metric_scale`` (B,) is divided
            by the truth's typical distance, so that its own scale has to be right. None or False:
            no normalisation.
        gt_scale: state distances in the unit of the ground truth: the normalised prediction is
            taken to the truth's scale instead of both to 1.
        opt_fit_gt: take predictions to the truth's scale by the factor that fits them best, not by
            their own typical distance; those that ``?`` exempts stay exempt.
        sky_loss_value: loss of the pixels of ``sky_mask`` (B,H,W), a key that views may have, where
            they have no valid point: it does not depend on the point, and tells a confidence to
            be low there. 0: such pixels do not count.
        max_metric_scale: samples with a valid point farther than this from camera 1 are not taken
            as metric; False for no limit.
        loss_in_log: compare after a distance d from camera 1 became log(1 + d), last of all.

    Raises:
        ValueError: ``criterion`` cannot be called, ``norm_mode`` is none of the above, or
            ``sky_loss_value`` is negative. On calling, a key of views or predictions is missing.
    """

    def __init__(
        self,
        criterion: PointCriterion | type[PointCriterion],
        norm_mode: str | None = "avg_dis",
        gt_scale: bool = False,
        opt_fit_gt: bool = False,
        sky_loss_value: float = SKY_LOSS,
        max_metric_scale: float | bool = False,
        loss_in_log: bool = False,
    ) -> None:
        super().__init__()
        criterion = criterion() if isinstance(criterion, type) else criterion
        if not callable(criterion) or isinstance(criterion, Criterion):
            raise ValueError(
                f"{type(self).__name__} measures points with a criterion such as L21, and was "
                f"given {criterion!r}"
            )
        self.criterion = criterion
        if sky_loss_value < 0:
            raise ValueError(f"sky_loss_value is {sky_loss_value!r}; give 0 or more")
        self.norm_mode = NormMode.parse(norm_mode)
        self.gt_scale = bool(gt_scale)
        self.opt_fit_gt = bool(opt_fit_gt)
        self.sky_loss_value = float(sky_loss_value)
        self.max_metric_scale = float(max_metric_scale or math.inf)
        self.loss_in_log = bool(loss_in_log)

    def compute(
        self, view1: Views, view2: Views, pred1: Views, pred2: Views
    ) -> tuple[Tensor, Details]:
        return self.summarise(self.pixel_losses(view1, view2, pred1, pred2))

    def summarise(self, pixels: tuple[PixelLoss, PixelLoss]) -> tuple[Tensor, Details]:
        """Loss and details of what ``pixel_losses`` gave."""
        means = [view.mean() for view in pixels]
        name = type(self).__name__
        return sum(means), {f"{name}_pts3d_{i}": m.detach() for i, m in enumerate(means, start=1)}

    def pixel_losses(
        self, view1: Views, view2: Views, pred1: Views, pred2: Views
    ) -> tuple[PixelLoss, PixelLoss]:
        """Loss per pixel of view 1 and of view 2, before any mean."""
        pair = self.align(self.gather(view1, view2, pred1, pred2))
        if self.gt_scale:
            pair = pair.in_original_unit()
        if self.loss_in_log:
            pair = replace(
                pair, truth=log_lengths(pair.truth), predicted=log_lengths(pair.predicted)
            )
        distances = torch.where(pair.sky, self.sky_loss_value, self.distances(pair))
        values = pair.per_view(distances)
        valid = pair.per_view(pair.valid | pair.sky)
        return PixelLoss(values[0], valid[0]), PixelLoss(values[1], valid[1])

    def gather(self, view1: Views, view2: Views, pred1: Views, pred2: Views) -> PointmapPair:
        """First step: truth in camera 1's frame, the prediction, and what is valid."""
        # Unlike torch.linalg.inv, inv_ex does not make the host wait to learn of singular matrices;
        # those give points that are not finite, hence not valid.
        world_to_camera1 = torch.linalg.inv_ex(need(view1, "camera_pose", "view 1").float())[0]
        clouds, sizes = [], []
        for number, view, pred, key in (
            (1, view1, pred1, "pts3d"),
            (2, view2, pred2, "pts3d_in_other_view"),
        ):
            truth = geotrf(world_to_camera1, need(view, "pts3d", f"view {number}").float())
            predicted = need(pred, key, f"prediction {number}").float()
            valid = need(view, "valid_mask", f"view {number}") & truth.isfinite().all(-1)
            if predicted.shape != truth.shape:
                raise ValueError(
                    f"prediction {number} has points {tuple(predicted.shape)} and view {number} "
                    f"{tuple(truth.shape)}; both must be (B, H, W, 3) of one image size"
                )
            sizes.append((truth.shape[1], truth.shape[2]))
            sky = torch.zeros_like(valid)
            if self.sky_loss_value and "sky_mask" in view:
                sky = view["sky_mask"] & ~valid
            maps = truth, predicted, valid, sky
            clouds.append([pixels.flatten(1, 2) for pixels in maps])
        truth, predicted, valid, sky = (
            torch.cat(both, dim=1) for both in zip(*clouds, strict=True)
        )
        return PointmapPair(
            truth=torch.where(valid[..., None], truth, 0.0),
            predicted=torch.where(valid[..., None], predicted, 0.0),
            valid=valid,
            sky=sky,
            metric=self._metric(view1, truth, valid),
            unit=truth.new_ones(len(truth), 1, 1),
            sizes=(sizes[0], sizes[1]),
        )

    def align(self, pair: PointmapPair) -> PointmapPair:
        """Second step: remove what the loss is invariant to."""
        if self.norm_mode is None:
            return pair
        true_length, predicted_length = self.lengths(pair)
        return replace(
            pair,
            truth=pair.truth / true_length,
            predicted=pair.predicted / predicted_length,
            unit=pair.unit * true_length,
        )

    def lengths(self, pair: PointmapPair) -> tuple[Tensor, Tensor]:
        """What truth and prediction are divided by to be compared, (B,1,1) each."""
        if self.norm_mode is None:
            return torch.ones_like(pair.unit), torch.ones_like(pair.unit)
        true_length = self.norm_mode.length(pair.truth, pair.valid)
        if self.opt_fit_gt:
            fit = fitted_scale(pair.predicted, pair.truth, pair.valid)
            predicted_length = true_length / fit
        else:
            predicted_length = self.norm_mode.length(pair.predicted, pair.valid)
        return true_length, torch.where(pair.metric, true_length, predicted_length)

    def distances(self, pair: PointmapPair) -> Tensor:
        """Third step: loss of every point (B,N); what it says of invalid ones is ignored."""
        return self.criterion(pair.predicted, pair.truth)

    def _metric(self, view1: Views, truth: Tensor, valid: Tensor) -> Tensor:
        """Samples (B,1,1) whose predictions have to be in metres."""
        if self.norm_mode is None or not self.norm_mode.keeps_metric:
            return torch.zeros(len(truth), 1, 1, dtype=torch.bool, device=truth.device)
        farthest = torch.where(valid, torch.linalg.vector_norm(truth, dim=-1), 0.0).amax(1)
        metric = need(view1, "is_metric_scale", "view 1") & (farthest <= self.max_metric_scale)
        return metric[:, None, None]

    def __repr__(self) -> str:
        mode = None if self.norm_mode is None else str(self.norm_mode)
        given = f"{self.criterion!r}, norm_mode={mode!r}"
        given += "".join(
            f", {name}=True"
            for name in ("gt_scale", "opt_fit_gt", "loss_in_log")
            if getattr(self, name)
        )
        if self.sky_loss_value != SKY_LOSS:
            given += f", sky_loss_value={self.sky_loss_value:g}"
        if self.max_metric_scale != math.inf:
            given += f", max_metric_scale={self.max_metric_scale:g}"
        return f"{type(self).__name__}({given})"


@LOSSES.register()
class Regr3D_ShiftInv(Regr3D):
    """Regr3D after subtracting from each cloud the median depth z of both its views together.

    The depth shift that a single image leaves open (Yin et al., LeReS, CVPR 2021).
    """

    def align(self, pair: PointmapPair) -> PointmapPair:
        pair = super().align(pair)
        truth, predicted = (
            points - F.pad(masked_median(points[..., 2:], pair.valid), (2, 0))[:, None]
            for points in (pair.truth, pair.predicted)
        )
        return replace(pair, truth=truth, predicted=predicted)


@LOSSES.register()
class Regr3D_ScaleInv(Regr3D):
    """Regr3D after dividing each cloud by the median distance from its own median point.

    Both are taken over both views together; that of the prediction is held within
    ``PREDICTED_SCALES`` so that a collapsed cloud is not blown up.
    """

    def align(self, pair: PointmapPair) -> PointmapPair:
        pair = super().align(pair)
        true_scale = spread(pair.truth, pair.valid).clamp(min=SHORTEST)
        predicted_scale = spread(pair.predicted, pair.valid).clamp(*PREDICTED_SCALES)
        return replace(
            pair,
            truth=pair.truth / true_scale,
            predicted=pair.predicted / predicted_scale,
            unit=pair.unit * true_scale,
        )


@LOSSES.register()
class Regr3D_ScaleShiftInv(Regr3D_ScaleInv, Regr3D_ShiftInv):
    """Regr3D invariant to depth shift, removed first, and to scale."""


@LOSSES.register()
class ConfLoss(Criterion):
    """Confidence-weighted pointmap loss, mean of conf * l - alpha * log(conf) (DUSt3R, eq. 4).

    The mean is over the valid pixels of each view, the two views add up. It goes below zero once
    the pixel loss l is small enough, since each pixel's minimum is alpha (1 - log(alpha / l)).

    Args:
        pixel_loss: a ``Regr3D`` of some kind, which gives l per pixel.
        alpha: weight of the reward for confidence, above 0.

    Raises:
        ValueError: ``pixel_loss`` has no loss per pixel, or ``alpha`` is not above 0. On calling,
            a prediction without ``conf``.
    """

    def __init__(self, pixel_loss: Regr3D, alpha: float = 1) -> None:
        super().__init__()
        if not isinstance(pixel_loss, Regr3D):
            raise ValueError(
                f"ConfLoss weights a loss per pixel such as Regr3D(L21), and was given "
                f"{pixel_loss!r}; weight sums from outside: ConfLoss(Regr3D(L21)) + 0.1 * ..."
            )
        if not alpha > 0:
            raise ValueError(f"alpha of ConfLoss must be above 0, and is {alpha!r}")
        self.pixel_loss = pixel_loss
        self.alpha = alpha

    def compute(
        self, view1: Views, view2: Views, pred1: Views, pred2: Views
    ) -> tuple[Tensor, Details]:
        pixels = self.pixel_loss.pixel_losses(view1, view2, pred1, pred2)
        first, second = (
            self._weighted_mean(view, need(pred, "conf", f"prediction {number}"))
            for number, view, pred in ((1, pixels[0], pred1), (2, pixels[1], pred2))
        )
        _, unweighted = self.pixel_loss.summarise(pixels)
        # The published logs call the second one by this name, without an underscore.
        names = {"conf_loss_1": first.detach(), "conf_loss2": second.detach()}
        return first + second, names | unweighted

    def _weighted_mean(self, pixels: PixelLoss, conf: Tensor) -> Tensor:
        conf = torch.where(pixels.valid, conf.float(), 1.0)
        return masked_mean(conf * pixels.values - self.alpha * conf.log(), pixels.valid)

    def __repr__(self) -> str:
        return f"ConfLoss({self.pixel_loss!r}, alpha={self.alpha!r})"
