"""Training criteria on pairs of pointmaps (Wang et al., DUSt3R, CVPR 2024, "Training Objective").

How a criterion is called and combined stands in ``dust3r.criterion``. A new pointmap loss overrides
one of the three steps of :class:`Regr3D`: ``gather``, ``align`` or ``distances``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dust3r.criterion import Criterion, Details, Views, masked_mean, need
from dust3r.utils.geometry import geotrf
from dust3r.utils.spec import LOSSES

PointCriterion = Callable[[Tensor, Tensor], Tensor]

NORM_MODES = ("avg_dis", "avg_log1p", "median_dis", "median_log1p")
SHORTEST_NORM = 1e-8
PREDICTED_SCALES = (1e-3, 1e3)


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
        unit: (B,1,1), how long one unit of ``truth`` is in the unit the ground truth came in.
        sizes: (H,W) of view 1 and of view 2.
    """

    truth: Tensor
    predicted: Tensor
    valid: Tensor
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
            log(1 + distance), taken back to a length, which tames far points. None or False: no
            normalisation.
        gt_scale: state distances in the unit of the ground truth: the normalised prediction is
            taken to the truth's scale instead of both to 1.

    Raises:
        ValueError: ``criterion`` cannot be called or ``norm_mode`` is none of the above.
    """

    def __init__(
        self,
        criterion: PointCriterion | type[PointCriterion],
        norm_mode: str | None = "avg_dis",
        gt_scale: bool = False,
    ) -> None:
        super().__init__()
        criterion = criterion() if isinstance(criterion, type) else criterion
        if not callable(criterion) or isinstance(criterion, Criterion):
            raise ValueError(
                f"{type(self).__name__} measures points with a criterion such as L21, and was "
                f"given {criterion!r}"
            )
        self.criterion = criterion
        self.norm_mode = _canonical_norm_mode(norm_mode)
        self.gt_scale = bool(gt_scale)

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
        values = pair.per_view(self.distances(pair))
        valid = pair.per_view(pair.valid)
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
            clouds.append([x.flatten(1, 2) for x in (truth, predicted, valid[..., None])])
        truth, predicted, valid = (torch.cat(both, dim=1) for both in zip(*clouds, strict=True))
        return PointmapPair(
            truth=torch.where(valid, truth, 0.0),
            predicted=torch.where(valid, predicted, 0.0),
            valid=valid[..., 0],
            unit=truth.new_ones(len(truth), 1, 1),
            sizes=(sizes[0], sizes[1]),
        )

    def align(self, pair: PointmapPair) -> PointmapPair:
        """Second step: remove what the loss is invariant to."""
        if self.norm_mode is None:
            return pair
        true_length = _typical_distance(pair.truth, pair.valid, self.norm_mode)
        predicted_length = _typical_distance(pair.predicted, pair.valid, self.norm_mode)
        return replace(
            pair,
            truth=pair.truth / true_length,
            predicted=pair.predicted / predicted_length,
            unit=pair.unit * true_length,
        )

    def distances(self, pair: PointmapPair) -> Tensor:
        """Third step: loss of every point (B,N); what it says of invalid ones is ignored."""
        return self.criterion(pair.predicted, pair.truth)

    def __repr__(self) -> str:
        scale = ", gt_scale=True" if self.gt_scale else ""
        return f"{type(self).__name__}({self.criterion!r}, norm_mode={self.norm_mode!r}{scale})"


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
        true_scale = _spread(pair.truth, pair.valid).clamp(min=SHORTEST_NORM)
        predicted_scale = _spread(pair.predicted, pair.valid).clamp(*PREDICTED_SCALES)
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


def masked_median(points: Tensor, valid: Tensor) -> Tensor:
    """Lower median per sample and channel of (B,N,C) where ``valid`` (B,N); 0 when nowhere.

    The lower one of the two middle values, as ``torch.median``; (B,C).
    """
    median = points.masked_fill(~valid[..., None], torch.nan).nanmedian(dim=1).values
    return torch.where(valid.any(dim=1, keepdim=True), median, 0.0)


def _canonical_norm_mode(norm_mode: str | None) -> str | None:
    if norm_mode is None or norm_mode is False:
        return None
    mode = {"avg": "avg_dis", "median": "median_dis"}.get(str(norm_mode), norm_mode)
    if mode not in NORM_MODES:
        raise ValueError(f"norm_mode is {norm_mode!r}; use one of {', '.join(NORM_MODES)}, or None")
    return mode


def _typical_distance(points: Tensor, valid: Tensor, norm_mode: str) -> Tensor:
    """Typical distance (B,1,1) of valid points (B,N,3) from the origin."""
    statistic, measure = norm_mode.split("_")
    distance = torch.linalg.vector_norm(points, dim=-1)
    distance = distance.log1p() if measure == "log1p" else distance
    if statistic == "median":
        typical = masked_median(distance[..., None], valid)[..., None]
    else:
        total = torch.where(valid, distance, 0.0).sum(dim=1)
        typical = (total / valid.sum(dim=1).clamp(min=1))[:, None, None]
    typical = typical.expm1() if measure == "log1p" else typical
    return typical.clamp(min=SHORTEST_NORM)


def _spread(points: Tensor, valid: Tensor) -> Tensor:
    """Median distance (B,1,1) of valid points (B,N,3) from their coordinate-wise median."""
    from_centre = points - masked_median(points, valid)[:, None]
    distance = torch.linalg.vector_norm(from_centre, dim=-1, keepdim=True)
    return masked_median(distance, valid)[..., None]
