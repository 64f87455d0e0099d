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
    Gaussian of that. Of others the uncertainty is 1 / confidence. NaN everywhere where motion gives
    no scale: cameras stand in one place, points moved against the poses, or the anchor's median
    depth would be out of range.

    Args:
        model: a pairwise model with the interface of ``AsymmetricCroCo3DStereo``.
        long_side: of the images that the network gets, whole frames whose sides are rounded to
            its patches; None for the frames' own.
        mindepth, maxdepth: of that median, metres.
    """

    name = "pointmap"

    def __init__(
        self,
        model: AsymmetricCroCo3DStereo,
        long_side: int | None = None,
        mindepth: float = 0.5,
        maxdepth: float = 10.0,
    ) -> None:
        self.model = model
        self.long_side = long_side
        self.depth_range = mindepth, maxdepth

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
        combined = _combined(said, metric_scales(said, intrinsics[1:], frames.from_anchor()))
        low, high = self.depth_range
        if combined is None or not low <= combined[0].median() <= high:
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


def metric_scales(said: Observations, intrinsics: np.ndarray, to_views: np.ndarray) -> Tensor:
    """Metres a unit of each pair's pointmaps (P,), NaN where motion says nothing about them.

    Pairs have the anchor in common, whose depths bring them to one unit, and its length in metres
    is the median of what all their pixels say: a pair that hardly moved has little weight in it.

    Args:
        said: pairs whose first image is the anchor.
        intrinsics: (P, 3, 3) of their second images.
        to_views: (P, 4, 4), anchor to second camera, metres.
    """
    first, votes = said.said(0, 0)
    ratios, shares, weights = [], [], []
    for pair, (camera, to_view) in enumerate(zip(intrinsics, to_views, strict=True)):
        points, own_votes = said.said(0, pair)
        both = votes * own_votes * (points[:, 2] > 0)
        ratio = first[:, 2] / torch.where(points[:, 2] > 0, points[:, 2], 1)
        ratios.append(weighted_median(ratio[None].double(), both[None].double())[0])
        share, weight = _motion_shares(said, pair, camera, to_view)
        shares.append(ratios[-1] * share)
        weights.append(weight)
    ratio, share, weight = torch.stack(ratios), torch.cat(shares), torch.cat(weights)
    common = weighted_median(share[None], weight[None])[0]
    return ratio / common if (weight > 0).any() and common > 0 else torch.full_like(ratio, math.nan)


def _motion_shares(
    said: Observations, pair: int, intrinsics: np.ndarray, to_view: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Units of a pair's pointmaps in a metre, as each pixel of its second image has it; weights.

    Rotation and direction of the motion are the given ones, and only its length is read off the
    points: PnP, which finds all of the motion, takes part of a small one for a rotation.
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
    usable = (turned[:, 2] > 0) & (motion[:3, 3].norm() >= _SHORTEST_BASELINE)
    weights = torch.where(usable, votes * squared / turned[:, 2].square(), 0.0)
    shares = -(moved * parallax).sum(1) / squared.clamp_min(torch.finfo(squared.dtype).tiny)
    return shares, weights


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
