"""DELTAS from posed frames to dense depth (Sinha et al., ECCV 2020)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltas.densify import Densification, sparse_depth
from deltas.evidence import EvidentialDepth, depth_variance
from deltas.folding import fold_batch_norms
from deltas.interest import InterestPoints, point_scores, select_points
from deltas.resnet import DEPTHS
from deltas.triangulation import Matches, Triangulation
from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.utils.geometry import inv
from dust3r.utils.spec import MODELS

# Sides that are multiples of this run as they are. The coarsest maps, at 1/32, may be rounded up:
# the published size, 240 x 320, needs it.
MULTIPLE = 16


@dataclass(frozen=True)
class DeltasPrediction:
    """What DELTAS says of the first of F frames, the anchor; (x, y) pixels, z in the poses' unit.

    Attributes:
        points: (B, N, 2) interest points, by score, then random pixels.
        scores: (B, N), 0 for random pixels.
        logits: (B, 65, H/8, W/8), rounded up: the detector's, of the anchor.
        descriptors: (B, F, C, H'/8, W'/8) of all frames, of sides rounded up to multiples of 16.
        matches: pixels (B, F - 1, N, 2) in the other frames, their confidence (B, N, F) with the
            anchor's own, and the epipolar segments that were searched.
        points3d: (B, N, 3) triangulated, in the anchor's camera.
        valid: (B, N) bool: searched for in at least one view, and z within the depth range.
        depth: (B, 1, H, W), then at 1/2, 1/4 and 1/8 of the size, rounded up.
        evidence: about the depth at full size, maps (B, 1, H, W); None of a model without it.
    """

    points: Tensor
    scores: Tensor
    logits: Tensor
    descriptors: Tensor
    matches: Matches
    points3d: Tensor
    valid: Tensor
    depth: tuple[Tensor, Tensor, Tensor, Tensor]
    evidence: NormalInverseGamma | None = None

    @property
    def confidence(self) -> Tensor:
        """(B, N, F) in [0, 1.001]: of the anchor (1) and of each match."""
        return self.matches.confidence

    @property
    def z(self) -> Tensor:
        """(B, N) depth of the points in the anchor."""
        return self.points3d[..., 2]


@MODELS.register()
class Deltas(nn.Module):
    """Interest points, matching with triangulation, and densification, one after the other.

    Args:
        num_kps: points of an anchor, N.
        detection_threshold: score from which a pixel is a point.
        frac_superpoint: part of the points that may be chosen by score; the others are random.
        mindepth, maxdepth: range of z, in the poses' unit, in which points are searched for.
        width, depths: of the image's encoder; the published ones are a ResNet-50's. All other
            widths follow it.
        evidential: state evidence about the depth, see ``EvidentialDepth``; published weights have
            none.
    """

    def __init__(
        self,
        num_kps: int = 512,
        detection_threshold: float = 0.0005,
        frac_superpoint: float = 0.5,
        mindepth: float = 0.5,
        maxdepth: float = 10.0,
        width: int = 64,
        depths: Sequence[int] = DEPTHS,
        evidential: bool = False,
    ):
        super().__init__()
        if num_kps < 1 or not 0 <= frac_superpoint <= 1:
            raise ValueError(
                f"num_kps={num_kps} must be at least 1, frac_superpoint={frac_superpoint} in [0, 1]"
            )
        if not 0 < mindepth < maxdepth:
            raise ValueError(
                f"mindepth={mindepth} must be positive and less than maxdepth={maxdepth}"
            )
        self.num_kps = num_kps
        self.detection_threshold = detection_threshold
        self.frac_superpoint = frac_superpoint
        self.depth_range = mindepth, maxdepth
        self.interest = InterestPoints(width, depths)
        self.triangulation = Triangulation()
        # Halfway between nearest and farthest, as ratios go.
        self.densification = Densification(width, depths, math.sqrt(mindepth * maxdepth))
        self.evidence = EvidentialDepth(width // 2) if evidential else None
        self.folded = False

    def forward(
        self,
        images: Tensor,
        poses: Tensor,
        intrinsics: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        points: Tensor | None = None,
    ) -> DeltasPrediction:
        """Depth of the first frame of each sequence.

        Args:
            images: (B, F, 3, H, W) in [-1, 1], F >= 2, the anchor first.
            poses: (B, F, 4, 4), camera-to-world.
            intrinsics: (B, 3, 3), or (B, F, 3, 3) where they differ from frame to frame.
            generator: of the random points, one for all sequences or one for each; torch's default
                one if None.
            points: (B, N, 2) to use instead of the detector's.

        Raises:
            ValueError: shapes that do not fit, points outside the image, poses or intrinsics that
                are not finite.
        """
        intrinsics = _checked(images, poses, intrinsics)
        batch, frames, _, height, width = images.shape
        maps = self.interest.encode(_padded(images.flatten(0, 1)))
        anchor_maps = [x.unflatten(0, (batch, frames))[:, 0] for x in maps]
        logits = _cropped(self.interest.detect(anchor_maps), (height, width), 8)
        scores = point_scores(logits)[:, :height, :width]
        if points is None:
            points, best = select_points(
                scores.detach(),
                self.num_kps,
                self.detection_threshold,
                self.frac_superpoint,
                generator,
            )
        else:
            points, best = points.to(scores), _scores_at(scores, points)
        descriptors = self.interest.describe(maps).unflatten(0, (batch, frames))
        to_view = anchor_to_views(poses).to(scores.dtype)
        matches, points3d = self.triangulation(
            points, descriptors, to_view, intrinsics, (height, width), self.depth_range
        )
        z = points3d[..., 2]
        valid = matches.segments.seen.any(1) & (z > self.depth_range[0]) & (z < self.depth_range[1])
        sparse = sparse_depth(points, z, valid, (height, width))
        features = self.densification.decode(_padded(sparse, "constant"), anchor_maps)
        depth = self.densification.depths(features)
        depth = tuple(
            _cropped(x, (height, width), scale)
            for x, scale in zip(depth, (1, 2, 4, 8), strict=True)
        )
        evidence = None
        if self.evidence is not None:
            variance = depth_variance(points, matches, points3d, to_view, intrinsics)
            evidence = self.evidence(
                _cropped(features[0], (height, width), 1), depth[0], points, z, variance, valid
            )
        return DeltasPrediction(
            points=points,
            scores=best,
            logits=logits,
            descriptors=descriptors,
            matches=matches,
            points3d=points3d,
            valid=valid,
            depth=depth,
            evidence=evidence,
        )

    def fold_batch_norms(self) -> int:
        """Put batch norms into convolutions, for faster inference; no weights load afterwards.

        Returns:
            how many were folded.

        Raises:
            ValueError: in training mode.
        """
        count = fold_batch_norms(self)
        self.folded = True
        return count

    def load_state_dict(self, state_dict: Mapping[str, Tensor], **kwargs: Any) -> Any:
        """As ``nn.Module``'s; ValueError after ``fold_batch_norms``, which changed the names."""
        if self.folded:
            raise ValueError(
                "this model's batch norms are folded into its convolutions, so that weights do not "
                "fit any more: load them before fold_batch_norms(), or into a new model"
            )
        return super().load_state_dict(state_dict, **kwargs)


def anchor_to_views(poses: Tensor) -> Tensor:
    """Transforms (B, F - 1, 4, 4) from camera-to-world poses (B, F, 4, 4)."""
    # In double precision, which autocast leaves alone: the world's origin may be far away.
    poses = poses.double()
    return inv(poses[:, 1:]) @ poses[:, :1]


def _checked(images: Tensor, poses: Tensor, intrinsics: Tensor) -> Tensor:
    """Intrinsics as (B, F, 3, 3); ValueError for what does not fit together."""
    if images.ndim != 5 or images.shape[1] < 2 or images.shape[2] != 3:
        raise ValueError(
            f"images are {tuple(images.shape)}, expected (B, F, 3, H, W) with F >= 2 frames, the "
            "anchor first"
        )
    batch, frames = images.shape[:2]
    if poses.shape != (batch, frames, 4, 4):
        raise ValueError(
            f"poses are {tuple(poses.shape)}, expected {(batch, frames, 4, 4)}: one "
            "camera-to-world matrix for each image"
        )
    if intrinsics.shape == (batch, 3, 3):
        intrinsics = intrinsics[:, None].expand(-1, frames, -1, -1)
    if intrinsics.shape != (batch, frames, 3, 3):
        raise ValueError(
            f"intrinsics are {tuple(intrinsics.shape)}, expected {(batch, 3, 3)} or "
            f"{(batch, frames, 3, 3)}, in pixels of the images"
        )
    for name, given in (("poses", poses), ("intrinsics", intrinsics)):
        if not given.isfinite().all():
            raise ValueError(f"{name} are not all finite: leave out frames without a pose")
    if not (intrinsics[..., 0, 0] * intrinsics[..., 1, 1] != 0).all():
        raise ValueError("intrinsics have focal lengths of 0: expected fx and fy in pixels")
    return intrinsics.to(torch.float32)


def _padded(x: Tensor, mode: str = "replicate") -> Tensor:
    """(N, C, H, W) with rows below and columns to the right, up to multiples of ``MULTIPLE``."""
    below, right = (-side % MULTIPLE for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, below), mode=mode) if below or right else x


def _cropped(x: Tensor, size: tuple[int, int], scale: int) -> Tensor:
    """The part of a map at 1/``scale`` that lies in images of ``size`` (H, W)."""
    return x[..., : -(-size[0] // scale), : -(-size[1] // scale)]


def _scores_at(scores: Tensor, points: Tensor) -> Tensor:
    """Values (B, N) of maps (B, H, W) at the pixels that points (B, N, 2) lie in."""
    batch, height, width = scores.shape
    if points.ndim != 3 or len(points) != batch or points.shape[2] != 2:
        raise ValueError(f"points are {tuple(points.shape)}, expected (B, N, 2) with B = {batch}")
    if not ((points >= 0) & (points < points.new_tensor([width, height]))).all():
        raise ValueError(
            f"points are in x {points[..., 0].min():.1f} to {points[..., 0].max():.1f} and y "
            f"{points[..., 1].min():.1f} to {points[..., 1].max():.1f}, expected inside the image "
            f"of {width} x {height} pixels"
        )
    x, y = points.long().unbind(-1)
    return scores.flatten(1).gather(1, y * width + x)
