"""What DELTAS learns from: points, matches, triangulated points, smooth and dense depth.

Sinha et al., DELTAS, ECCV 2020, section 3.5. Every loss is a mean over what can be judged, and 0
with a graph where nothing can, so that a batch without a valid pixel stops no run. Sizes: B
anchors, V other views of each, N points of an anchor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.data.sequences import within
from deltas.detector.adaptation import adapted_scores, point_labels
from deltas.detector.superpoint import SuperPoint, grey_of, load_detector
from deltas.epipolar import carry_points
from deltas.interest import CELL
from deltas.model import DeltasPrediction, anchor_to_views
from dust3r.criterion import Criterion, Details, masked_mean
from dust3r.utils.spec import LOSSES

# A point that another surface hides is no match: where the view's own depth differs by more.
_HIDDEN = 0.05
_SCALE_WEIGHTS = (1.0, 0.5, 0.25, 0.125)


@LOSSES.register()
class DeltasLoss(Criterion):
    """Weighted sum of the five losses, and of the evidence about depth where the model states it.

    ``DeltasLoss(...)(batch, prediction)``, of what ``Sequences`` gives and ``Deltas`` predicts, is
    the loss and its unweighted terms: ``loss_ip`` (nats), ``loss_2d`` (in cells of 8 pixels),
    ``loss_3d`` and ``loss_d`` (metres), ``loss_sm`` (metres a pixel), ``loss_evi`` (nats), and
    ``abs_rel`` of the depth, which is no part of the loss.

    Args:
        w_ip: of the detector's cross entropy with a teacher's points; needs ``teacher``.
        w_2d: of the distance of matches from where the anchor's depth puts them.
        w_3d: of the distance of triangulated points from the true ones, of points that are
            triangulated to within the depth range, which the others are led to by ``w_2d``.
        w_sm: of the depth's slope where the image has none.
        w_d: of the error of depth at full size, a half, a quarter and an eighth, which count 1,
            1/2, 1/4 and 1/8.
        w_evi: of the likelihood of the depth, and ``lambda_evi`` of its evidence penalty (Amini et
            al., Deep Evidential Regression, 2020).
        mindepth, maxdepth: true depths in metres that count.
        teacher: file of the detector that marks points to learn.
        homographies: views of an image that the teacher's marks are averaged over; see
            ``adapted_scores``.
        threshold: score from which a pixel is a point of the teacher.

    Raises:
        ValueError: a weight is below 0, or there is no teacher for ``w_ip``.
        FileNotFoundError, CheckpointError: of the teacher, see ``load_detector``.
    """

    def __init__(
        self,
        w_ip: float = 0.1,
        w_2d: float = 1.0,
        w_3d: float = 1.0,
        w_sm: float = 0.1,
        w_d: float = 1.0,
        w_evi: float = 0.1,
        lambda_evi: float = 1e-3,
        mindepth: float = 0.5,
        maxdepth: float = 10.0,
        teacher: str | None = None,
        homographies: int = 4,
        threshold: float = 0.015,
    ) -> None:
        super().__init__()
        weights = {"ip": w_ip, "2d": w_2d, "3d": w_3d, "sm": w_sm, "d": w_d, "evi": w_evi}
        wrong = [f"w_{name}={weight}" for name, weight in weights.items() if not weight >= 0]
        if wrong:
            raise ValueError(f"weights of losses are 0 or more, not {', '.join(wrong)}")
        if not 0 <= mindepth < maxdepth:
            raise ValueError(f"mindepth={mindepth} must be less than maxdepth={maxdepth}")
        if w_ip and teacher is None:
            raise ValueError(
                "w_ip needs teacher='FILE', a detector whose points are learnt: make one with "
                "python -m deltas.detector.train, give SuperPoint's weights, or set w_ip=0"
            )
        self.weights = weights
        self.lambda_evi = lambda_evi
        self.depth_range = mindepth, maxdepth
        self.teacher = Teacher(teacher, homographies, threshold) if w_ip else None

    def forward(
        self, batch: Mapping[str, Any], prediction: DeltasPrediction
    ) -> tuple[Tensor, Details]:
        with torch.autocast(batch["img"].device.type, enabled=False):
            return self.compute(batch, prediction)

    def compute(
        self, batch: Mapping[str, Any], prediction: DeltasPrediction
    ) -> tuple[Tensor, Details]:
        depth, valid = anchor_depth(batch, self.depth_range)
        truth = true_matches(batch, prediction.points, self.depth_range)
        terms = {
            "2d": match_loss(prediction, truth),
            "3d": point_loss(prediction, truth),
            "sm": smoothness_loss(prediction.depth[0], batch["img"][:, 0]),
            "d": depth_loss(prediction.depth, depth, valid),
        }
        if self.teacher is not None:
            terms["ip"] = F.cross_entropy(
                prediction.logits.float(), self.teacher.labels(batch["img"][:, 0])
            )
        if prediction.evidence is not None:
            nig = prediction.evidence
            surprise = nig.nll(depth) + self.lambda_evi * nig.evidence_penalty(depth)
            terms["evi"] = masked_mean(surprise, valid)
        # A term of weight zero is left out, not multiplied: it may be infinite.
        weighted = [self.weights[name] * term for name, term in terms.items() if self.weights[name]]
        if not weighted:
            raise ValueError("all of the weights --w_... are zero")
        total = sum(weighted) + _nothing_of(prediction)
        details = {f"loss_{name}": term.detach() for name, term in terms.items()}
        miss = (prediction.depth[0].detach().float() - depth).abs() / depth.clamp_min(1e-6)
        return total, details | {"abs_rel": masked_mean(miss, valid)}


class Teacher:
    """Marks the points of images that a student is to find.

    Args:
        path: of the detector.
        homographies: see ``adapted_scores``; 1 for the detector's own scores.
        threshold: score from which a pixel is a point.
    """

    def __init__(self, path: str, homographies: int, threshold: float) -> None:
        self.network: SuperPoint = load_detector(path)
        self.homographies = homographies
        self.threshold = threshold

    @torch.no_grad()
    def labels(self, images: Tensor) -> Tensor:
        """(B, H/8, W/8), rounded up: 0 to 63 for a cell's pixel, 64 for none; of images (B, 3, H,
        W) in [-1, 1]. The same for the same images."""
        self.network.to(images.device)
        generator = torch.Generator().manual_seed(0)
        scores = adapted_scores(self.network, grey_of(images), self.homographies, generator)
        return point_labels(scores, self.threshold)


@dataclass(frozen=True)
class TrueMatches:
    """Where an anchor's points really are.

    Attributes:
        points3d: (B, N, 3) in the anchor's camera; meaningless where not ``known``.
        known: (B, N) bool: there is a true depth.
        pixels: (B, V, N, 2) in the views.
        visible: (B, V, N) bool: known, in the image, and not behind another surface.
    """

    points3d: Tensor
    known: Tensor
    pixels: Tensor
    visible: Tensor


def anchor_depth(
    batch: Mapping[str, Tensor], depth_range: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """True depth (B, 1, H, W) of the anchors, 0 where not valid, and where it is valid."""
    depth = batch["depthmap"][:, :1].float()
    valid = within(depth, batch["valid_mask"][:, :1], depth_range)
    # The 0 keeps a depth of NaN out of the gradient, which a mask on the result would not.
    return torch.where(valid, depth, 0.0), valid


def true_matches(
    batch: Mapping[str, Tensor], points: Tensor, depth_range: tuple[float, float]
) -> TrueMatches:
    """The truth about points (B, N, 2), whole pixels of the anchors."""
    depth, valid = anchor_depth(batch, depth_range)
    z, known = (_at_pixels(image, points[:, None])[:, 0] for image in (depth, valid))
    to_views = anchor_to_views(batch["camera_pose"]).to(points.dtype)
    intrinsics = batch["camera_intrinsics"].float()
    points3d, pixels, z = carry_points(points, z, to_views, intrinsics)
    height, width = depth.shape[-2:]
    bound = pixels.new_tensor([width, height]) - 0.5
    inside = ((pixels >= -0.5) & (pixels < bound)).all(-1) & (z > 1e-3)
    seen = _at_pixels(
        torch.where(batch["valid_mask"], batch["depthmap"], 0.0)[:, 1:].flatten(0, 1)[:, None],
        torch.where(inside[..., None], pixels, 0.0).flatten(0, 1)[:, None],
    ).view_as(z)
    clear = (seen > 0) & ((seen - z).abs() < _HIDDEN * z)
    return TrueMatches(points3d, known, pixels, known[:, None] & inside & clear)


def match_loss(prediction: DeltasPrediction, truth: TrueMatches) -> Tensor:
    """Huber's distance of matches from the truth, in cells, of visible points that were searched"""
    judged = prediction.matches.segments.seen & truth.visible
    wanted = torch.where(judged[..., None], truth.pixels, 0.0) / CELL
    found = prediction.matches.pixels / CELL
    distance = F.smooth_l1_loss(found, wanted, reduction="none").sum(-1)
    return masked_mean(distance, judged)


def point_loss(prediction: DeltasPrediction, truth: TrueMatches) -> Tensor:
    """Huber's distance (m) of triangulated points from the truth, of what the densifier is given"""
    judged = prediction.valid & truth.known
    # Points that are not judged may be anywhere, and 0 times an infinite slope is no number.
    kept = [torch.where(judged[..., None], x, 0.0) for x in (prediction.points3d, truth.points3d)]
    return masked_mean(F.smooth_l1_loss(*kept, reduction="none").sum(-1), judged)


def smoothness_loss(depth: Tensor, images: Tensor) -> Tensor:
    """Slope of depth (B, 1, H, W) in metres a pixel, less where the image (B, 3, H, W) has one.

    Godard et al., Unsupervised Monocular Depth Estimation, CVPR 2017, eq. 5, on depth itself.
    """
    total = depth.new_zeros(())
    for axis in (-1, -2):
        edge = images.diff(dim=axis).abs().mean(1, keepdim=True)
        total = total + (depth.float().diff(dim=axis).abs() * (-edge).exp()).mean()
    return total


def depth_loss(depths: Sequence[Tensor], truth: Tensor, valid: Tensor) -> Tensor:
    """Huber's error (m) of depth at all scales against the truth (B, 1, H, W) of the full size.

    A coarse pixel is compared with one of those it covers, since a mean would lie between surfaces.
    """
    total = truth.new_zeros(())
    for weight, depth in zip(_SCALE_WEIGHTS, depths, strict=True):
        step = round(truth.shape[-1] / depth.shape[-1])
        here, known = (image[..., step // 2 :: step, step // 2 :: step] for image in (truth, valid))
        depth = depth[..., : here.shape[-2], : here.shape[-1]].float()
        error = F.smooth_l1_loss(depth, here, reduction="none")
        total = total + weight * masked_mean(error, known)
    return total


def _nothing_of(prediction: DeltasPrediction) -> Tensor:
    """0 with a graph through all parts: processes that share gradients wait for those of each."""
    evidence = prediction.evidence
    outputs = [prediction.logits, prediction.matches.pixels, *prediction.depth]
    outputs += [] if evidence is None else [evidence.nu, evidence.alpha, evidence.beta]
    return sum((0 * output).nan_to_num().sum() for output in outputs)


def _at_pixels(images: Tensor, pixels: Tensor) -> Tensor:
    """Values (B, C, N) of images (B, C, H, W) at the nearest of their pixels to (B, 1, N, 2)."""
    height, width = images.shape[-2:]
    x = pixels[..., 0].round().long().clamp(0, width - 1)
    y = pixels[..., 1].round().long().clamp(0, height - 1)
    return images.flatten(2).gather(2, (y * width + x).expand(-1, images.shape[1], -1))
