"""First guess of all cameras: along a maximum spanning tree of pairs."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import roma
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import Tensor

from dust3r.cloud_opt.observations import Samples
from dust3r.cloud_opt.pinhole import Pinholes, focal_in_view
from dust3r.cloud_opt.similarity import (
    apply,
    from_parts,
    register,
    rigid_of,
    scale_of,
    weighted_median,
)
from dust3r.cloud_opt.solver import State

_FOCAL_CANDIDATES = 15
_FOCAL_RANGE = 0.4, 3.0
_PNP_INLIER_SHARE = 0.01
_LEAST_PNP_POINTS, _MOST_PNP_POINTS = 6, 2000


def initialise(samples: Samples, scores: Tensor, pinholes: Pinholes, sizes: Tensor) -> State:
    """Cameras, pairs and points from closed-form similarities along the strongest pairs.

    Every image's pointmap is taken to the world by the pair that joins it to the tree. Images that
    are first in a pair get their camera by registering that pair's own map to it (roma); the others
    by PnP (OpenCV), which tries focals where it is unknown.

    Args:
        scores: (P,) of the pairs; the tree takes the best.
        pinholes: known intrinsics count, the others are replaced.
        sizes: (N, 2) height, width.
    """
    world = _grow(samples, scores)
    votes = _image_votes(samples)
    own = _best_own_pair(samples, scores)
    focals = pinholes.focals.clone()
    cameras = torch.eye(4).double().repeat(samples.n_images, 1, 1)
    points = world.clone()
    for n, pair in enumerate(own):
        offsets = samples.pixels[n] - pinholes.centres[n].float()
        if pair is not None:
            cloud, vote = samples.points[0][pair], samples.votes[0][pair]
            camera = register(cloud[None], world[None, n], vote[None])[0]
            if not pinholes.fixed_focals[n]:
                focals[n] = focal_in_view(cloud, offsets, vote, focals[n])
            cameras[n] = rigid_of(camera)
            points[n] = cloud * scale_of(camera).float()
        else:
            known = float(focals[n].mean()) if pinholes.fixed_focals[n] else None
            camera, focal = solve_pnp(world[n], offsets, votes[n], sizes[n], known)
            cameras[n] = camera
            if known is None:
                focals[n] = focal
            points[n] = apply(torch.linalg.inv(camera), world[n])
    pinholes = replace(pinholes, focals=focals)
    if pinholes.shared and not pinholes.fixed_focals.any():
        # The focal relative to the size is what images of one camera share.
        pinholes = replace(pinholes, focals=focals.median(dim=0).values.expand_as(focals).clone())
    depth = points[..., 2].clamp_min(1e-6)
    rays = torch.stack([pinholes.rays(n, p) for n, p in enumerate(samples.pixels)])
    points = depth[..., None] * rays
    first = samples.edges[:, 0]
    own_points = samples.points[0]
    ratios = (own_points * points[first]).sum(-1) / own_points.square().sum(-1).clamp_min(1e-12)
    scales = weighted_median(ratios, samples.votes[0]).double()
    return State(cameras, torch.where(scales > 1e-9, scales, 1.0), points, pinholes)


def align_to_known(state: State, known: Tensor, fixed: Tensor) -> State:
    """The state moved as a whole onto the known poses: ``moved_to_known``."""
    return replace(state, cameras=moved_to_known(state.cameras, known, fixed))


def moved_to_known(cameras: Tensor, known: Tensor, fixed: Tensor) -> Tensor:
    """Cameras (N, 4, 4), similarities, moved as a whole onto the known poses (N, 4, 4) where
    ``fixed`` (N,), and then exactly these.

    One known pose sets the world, and leaves the scale; more set the scale by their distances.
    """
    rigid, wanted = rigid_of(cameras[fixed]), known[fixed]
    centres, targets = rigid[:, :3, 3], wanted[:, :3, 3]
    spread = (centres - centres.mean(0)).norm(dim=1).mean()
    goal = (targets - targets.mean(0)).norm(dim=1).mean()
    scale = goal / spread if min(spread, goal) > 1e-9 else torch.ones(()).double()
    # Orientation from the cameras' own axes, which also serve one camera or centres in a line.
    turn = _mean_rotation(wanted[:, :3, :3] @ rigid[:, :3, :3].mT)
    shift = targets.mean(0) - scale * (turn @ centres.mean(0))
    moved = from_parts(turn, shift, scale) @ cameras
    moved[fixed] = from_parts(wanted[:, :3, :3], targets, scale_of(moved)[fixed])
    return moved


def solve_pnp(
    points: Tensor, offsets: Tensor, votes: Tensor, size: Tensor, focal: float | None = None
) -> tuple[Tensor, float]:
    """Camera-to-world pose (4, 4) and focal of points (M, 3) seen at ``offsets`` (M, 2) from the
    principal point, of an image of ``size`` (height, width). Without a focal, the one of a range
    that the most points agree with.

    Raises:
        ValueError: no camera sees these points so.
    """
    chosen = (votes > 0).nonzero()[:, 0]
    if len(chosen) > _MOST_PNP_POINTS:
        chosen = chosen[torch.linspace(0, len(chosen) - 1, _MOST_PNP_POINTS).long()]
    object_points = points[chosen].double().numpy()
    image_points = offsets[chosen].double().numpy()
    longer = float(size.max())
    known = focal is not None
    candidates = [focal] if known else np.geomspace(*_FOCAL_RANGE, _FOCAL_CANDIDATES) * longer
    best: _Pnp | None = None
    for candidate in candidates if len(chosen) >= _LEAST_PNP_POINTS else ():
        # The sampling of RANSAC would otherwise depend on what ran before.
        cv2.setRNGSeed(0)
        found, turn, shift, inliers = cv2.solvePnPRansac(
            object_points,
            image_points,
            np.diag([candidate, candidate, 1.0]),
            None,
            iterationsCount=100,
            reprojectionError=max(1.0, _PNP_INLIER_SHARE * longer),
            flags=cv2.SOLVEPNP_SQPNP,
        )
        if found and inliers is not None and (best is None or len(inliers) > len(best.inliers)):
            best = _Pnp(candidate, turn, shift, inliers[:, 0])
    if best is None:
        raise ValueError(
            "no camera could be placed for an image that is second in all of its pairs: its points "
            "fit no pinhole camera. Use make_pairs(..., symmetrize=True)"
        )
    if not known and len(best.inliers) >= _LEAST_PNP_POINTS:
        best = _refined(best, object_points, image_points)
    rotation = cv2.Rodrigues(best.turn)[0]
    pose = torch.eye(4).double()
    pose[:3, :3] = torch.from_numpy(rotation.T.copy())
    pose[:3, 3] = torch.from_numpy(-rotation.T @ best.shift[:, 0])
    return pose, best.focal


@dataclass(frozen=True)
class _Pnp:
    """A focal, world-to-camera rotation vector and translation (3, 1), and who agrees (K,)."""

    focal: float
    turn: np.ndarray
    shift: np.ndarray
    inliers: np.ndarray


def _refined(pnp: _Pnp, points: np.ndarray, pixels: np.ndarray) -> _Pnp:
    """Focal and pose of least squares over the inliers of points (M, 3) at pixels (M, 2).

    Taken in turns they would hardly move: a step back looks much like a longer focal.
    """
    size = tuple(int(side) for side in 2 * np.abs(pixels).max(0) + 1)
    flags = (
        cv2.CALIB_USE_INTRINSIC_GUESS
        | cv2.CALIB_FIX_PRINCIPAL_POINT
        | cv2.CALIB_FIX_ASPECT_RATIO
        | cv2.CALIB_ZERO_TANGENT_DIST
        | cv2.CALIB_FIX_K1
        | cv2.CALIB_FIX_K2
        | cv2.CALIB_FIX_K3
    )
    # OpenCV wants the principal point inside the image.
    middle = np.array([[size[0] / 2, size[1] / 2]])
    k = np.array([[pnp.focal, 0, middle[0, 0]], [0, pnp.focal, middle[0, 1]], [0, 0, 1]])
    seen = (pixels[pnp.inliers] + middle).astype(np.float32)
    there = points[pnp.inliers].astype(np.float32)
    _, k, _, turns, shifts = cv2.calibrateCamera([there], [seen], size, k, None, flags=flags)
    if not (np.isfinite(k[0, 0]) and k[0, 0] > 0):
        return pnp
    return _Pnp(float(k[0, 0]), turns[0], shifts[0], pnp.inliers)


def _grow(samples: Samples, scores: Tensor) -> Tensor:
    """World points (N, M, 3) of all images, the strongest pair's frame being the world."""
    best: dict[tuple[int, int], int] = {}
    for pair, (a, b) in enumerate(samples.edges.tolist()):
        key = min(a, b), max(a, b)
        if key not in best or scores[pair] > scores[best[key]]:
            best[key] = pair
    keys = list(best)
    strength = np.array([float(scores[best[key]]) for key in keys])
    rows, columns = zip(*keys, strict=True)
    shape = (samples.n_images,) * 2
    # scipy's tree is minimal and takes 0 for no edge.
    costs = strength.max() - strength + 1.0
    tree = minimum_spanning_tree(coo_matrix((costs, (rows, columns)), shape))
    start = best[keys[int(strength.argmax())]]
    root = int(samples.edges[start, 0])
    order, parents = breadth_first_order(tree, root, directed=False)
    world = torch.zeros(samples.n_images, samples.points[0].shape[1], 3)
    world[root] = samples.points[0][start]
    for child in order[1:].tolist():
        parent = int(parents[child])
        pair = best[min(parent, child), max(parent, child)]
        side = 0 if int(samples.edges[pair, 0]) == parent else 1
        similarity = register(
            samples.points[side][pair][None], world[None, parent], samples.votes[side][pair][None]
        )[0]
        world[child] = apply(similarity, samples.points[1 - side][pair])
    return world


def _best_own_pair(samples: Samples, scores: Tensor) -> list[int | None]:
    own: list[int | None] = [None] * samples.n_images
    for pair in scores.argsort().tolist():
        if samples.votes[0][pair].any():
            own[int(samples.edges[pair, 0])] = pair
    return own


def _image_votes(samples: Samples) -> Tensor:
    """(N, M) largest vote of each pixel over all pairs."""
    votes = torch.zeros(samples.n_images, samples.points[0].shape[1])
    for side in (0, 1):
        for pair, n in enumerate(samples.edges[:, side].tolist()):
            votes[n] = torch.maximum(votes[n], samples.votes[side][pair])
    return votes


def _mean_rotation(rotations: Tensor) -> Tensor:
    return roma.special_procrustes(rotations.mean(0))
