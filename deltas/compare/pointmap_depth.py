"""Depth of a pairwise pointmap model (DUSt3R, MASt3R) where poses are given: they set the scale.

A pair's pointmaps have a scale of their own. The second image's points, which are in the first
camera's frame, say how far its camera moved in that scale; the given distance over it takes the
pair to metres.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from deltas.compare.methods import Depth, DepthMethod, Frames
from dust3r.cloud_opt.observations import Observations, read_output
from dust3r.cloud_opt.pinhole import pixel_grid
from dust3r.cloud_opt.similarity import weighted_median
from dust3r.inference import inference
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.utils.geometry import resized_intrinsics

# Metres between cameras that set a scale; float32 poses of one camera differ by less.
_SHORTEST_BASELINE = 1e-4


class PointmapDepth(DepthMethod):
    """The anchor's own pointmap from its pair with each neighbour, scaled, averaged by confidence.

    Of models that state a variance of depth (GeoUQ, FeatUQ) the standard deviation relative to
    depth is taken to metres, and the spread between pairs is added; the distribution is the
    Gaussian of that. Of others the uncertainty is 1 / confidence. NaN everywhere where no pair has
    a scale: both cameras stand in one place, or points moved against the poses.

    Args:
        model: a pairwise model with the interface of ``AsymmetricCroCo3DStereo``.
        long_side: of the images that the network gets, whole frames whose sides are rounded to
            its patches; None for the frames' own.
    """

    name = "pointmap"

    def __init__(self, model: AsymmetricCroCo3DStereo, long_side: int | None = None) -> None:
        self.model = model
        self.long_side = long_side

    def predict(self, frames: Frames) -> Depth:
        height, width = frames.size
        grow = (self.long_side or max(frames.size)) / max(frames.size)
        patch = self.model.patch_size
        size = tuple(max(1, round(side * grow / patch)) * patch for side in frames.size)
        views = [_view(image, number, size) for number, image in enumerate(frames.images)]
        output = inference(
            [(views[0], view) for view in views[1:]], self.model, batch_size=1, verbose=False
        )
        said, _ = read_output(*(output[key] for key in ("view1", "view2", "pred1", "pred2")))
        scale = np.array(size[::-1]) / frames.size[::-1]
        intrinsics = resized_intrinsics(frames.intrinsics, scale)
        scales = torch.tensor(
            [
                pair_scale(said, pair, intrinsics[1 + pair], to_view)
                for pair, to_view in enumerate(frames.from_anchor())
            ]
        )
        combined = _combined(said, scales)
        if combined is None:
            return Depth(np.full((height, width), np.nan, np.float32))
        depth, uncertainty = (
            F.interpolate(one[None, None], (height, width), mode="bilinear")[0, 0]
            for one in combined
        )
        if said.sigmas is None:
            return Depth(depth.numpy(), uncertainty.numpy())
        return Depth(
            depth.numpy(), uncertainty.numpy(), Normal(depth, uncertainty, validate_args=False)
        )


def pair_scale(said: Observations, pair: int, intrinsics: np.ndarray, to_view: np.ndarray) -> float:
    """Metres a unit of a pair's pointmaps, by the distance of its cameras; NaN where they say none.

    Rotation and direction of the motion are the given ones, and only its length is read off the
    points: PnP, which finds all of the motion, takes part of a small one for a rotation.

    Args:
        said: pairs whose first image is the anchor.
        pair: which of them.
        intrinsics: (3, 3) of its second image.
        to_view: (4, 4), anchor to second camera, metres.
    """
    points, votes = said.said(1, pair)
    pixels = pixel_grid(*said.shapes[int(said.edges[pair, 1])]).double()
    camera, motion = (torch.from_numpy(matrix) for matrix in (intrinsics, to_view))
    rays = F.pad(pixels, (0, 1), value=1.0) @ torch.linalg.inv(camera).T
    turned = points.double() @ motion[:3, :3].T
    # A point p is seen along the ray where R p + share t has its direction: one share of the
    # motion, that of a unit, from each pixel. Errors of points are in ``moved``, so that dividing
    # by ``parallax``, which has none, leaves their mean at 0. Over z they are those of pixels.
    moved = torch.linalg.cross(turned, rays)
    parallax = torch.linalg.cross(motion[:3, 3].expand_as(rays), rays)
    squared = parallax.square().sum(1)
    weights = torch.where(turned[:, 2] > 0, votes * squared / turned[:, 2].square(), 0.0)
    if motion[:3, 3].norm() < _SHORTEST_BASELINE or not (weights > 0).any():
        return math.nan
    shares = -(moved * parallax).sum(1) / squared.clamp_min(torch.finfo(squared.dtype).tiny)
    share = float(weighted_median(shares[None], weights[None]))
    return 1 / share if share > 0 else math.nan


def _combined(said: Observations, scales: Tensor) -> tuple[Tensor, Tensor] | None:
    """Depth and uncertainty (h, w) of the anchor from all pairs with a scale (P,); None if none."""
    pairs = scales.isfinite().nonzero()[:, 0].tolist()
    if not pairs:
        return None
    shape = said.shapes[int(said.edges[pairs[0], 0])]
    points, votes = (
        torch.stack(one) for one in zip(*(said.said(0, p) for p in pairs), strict=True)
    )
    depths = (points[..., 2] * scales[pairs, None].float()).unflatten(1, shape)
    weights = votes.unflatten(1, shape)
    # Where no pair has a vote its point is not finite, and there is no depth.
    weights = weights / weights.sum(0)
    depth = (weights * depths).sum(0)
    if said.sigmas is None:
        confidence = torch.stack([said.confidences[0][pair].float() for pair in pairs])
        return depth, 1 / (weights * confidence).sum(0)
    variances = (torch.stack([said.sigmas[0][pair] for pair in pairs]) * depths).square()
    return depth, (weights * (variances + (depths - depth).square())).sum(0).sqrt()


def _view(image: Tensor, number: int, size: tuple[int, int]) -> dict[str, Any]:
    """A frame (3, H, W) as the network's view at ``size`` (height, width), whole."""
    if tuple(image.shape[-2:]) != size:
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(-1, 1)
    return {
        "img": image[None],
        "true_shape": np.array([size], np.int32),
        "idx": number,
        "instance": str(number),
    }
