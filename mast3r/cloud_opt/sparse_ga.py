"""Sparse global alignment: many images in one scene through their matches.

Duisterhof et al., "MASt3R-SfM: a Fully-Integrated Solution for Unconstrained
Structure-from-Motion", 2024. Forward passes, verified matches, coarse alignment in 3-D, refinement
in 2-D.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dust3r.cloud_opt.init_poses import moved_to_known
from dust3r.cloud_opt.pinhole import Pinholes, pixel_grid
from dust3r.cloud_opt.scene import Scene
from dust3r.cloud_opt.similarity import rigid_of
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.overlap import connected_groups
from dust3r.utils.image import rgb
from mast3r.cloud_opt.bundle import SLOTS, Bundle, BundleState
from mast3r.cloud_opt.cache import DirectedMatches
from mast3r.cloud_opt.canonical import Canonical, Cells, canonical_of
from mast3r.cloud_opt.coarse import Coarse
from mast3r.cloud_opt.dense import DEPTHS, DenseMaps, dense_maps
from mast3r.cloud_opt.forward import (
    ForwardResults,
    View,
    forward_results,
    images_of,
    masks_of,
)
from mast3r.cloud_opt.matched import PairMatches, verified_matches

log = logging.getLogger(__name__)

_LEAST_SPREAD = 0.005

Progress = Callable[[float], None]


class SparseScene(Scene):
    """Cameras, focals and depth maps of images that matches hold together.

    Use: presets where something is known, ``compute_global_alignment``, then the getters.

    Args:
        results: forward results of the pairs.
        matching_conf_thr: least confidence of a match.
        anchor_size: pixels of the side of a cell, whose depth is one unknown.
        min_conf_thr, shared_intrinsics, verbose: as of ``dust3r.cloud_opt.scene.Scene``, whose
            other options sparse alignment does not have: principal points stay where they are, and
            an image has one focal.

    Attributes:
        matches: verified, of the pairs among the images that are kept.

    Raises:
        ValueError: no two images share enough matches, a mask covers a whole image, or a shared
            camera has images of many sizes.
    """

    def __init__(
        self,
        results: ForwardResults,
        *,
        matching_conf_thr: float = 0.0,
        anchor_size: int = 8,
        min_conf_thr: float = 3.0,
        shared_intrinsics: bool = False,
        verbose: bool = True,
    ):
        masks = masks_of(results.views)
        canonicals, directed = _read(results, masks)
        known = [one.depth > 0 for one in canonicals]
        found = []
        for i, j in results.edges:
            passes = directed[i, j], directed[j, i]
            one = verified_matches((i, j), *passes, (known[i], known[j]), matching_conf_thr)
            if one is not None:
                found.append(one)
        kept, notes = _largest_part(results, found, matching_conf_thr)
        number = {image: n for n, image in enumerate(kept)}
        self.matches = [
            replace(pair, edge=(number[pair.edge[0]], number[pair.edge[1]]))
            for pair in found
            if pair.edge[0] in number
        ]
        views = [results.views[n] for n in kept]
        super().__init__(
            [rgb(view["img"][0]) for view in views],
            [view["source"] for view in views],
            [int(view["idx"]) for view in views],
            [masks[n] for n in kept],
            [pair.edge for pair in self.matches],
            notes,
            min_conf_thr=min_conf_thr,
            shared_intrinsics=shared_intrinsics,
            verbose=verbose,
        )
        self._canonicals = [canonicals[n] for n in kept]
        self._cells = [Cells.of(shape, anchor_size) for shape in self.imshapes]
        self.im_conf = [one.confidence for one in self._canonicals]
        self._state: BundleState | None = None
        self._bundle: Bundle | None = None
        self._maps: DenseMaps | None = None
        self._depth = "network"

    def compute_global_alignment(
        self,
        niter1: int = 100,
        niter2: int = 100,
        opt_depth: bool = True,
        depth: str = "network",
        progress: Progress | None = None,
    ) -> float:
        """Align; the getters give the result.

        Args:
            niter1: most steps of the coarse stage, which makes matched points coincide in 3-D.
            niter2: most steps of the refinement, which makes them coincide in the images; 0 leaves
                it out. Both end by themselves where steps change nothing.
            opt_depth: whether refinement moves depth as well, cell by cell.
            depth: of the maps: ``'network'``, its own, corrected by what refinement changed;
                ``'triangulated'``, the same held by matches alone, and invalid where none are near;
                ``'tsdf'``, ``'network'`` fused along every ray with what the neighbours see.
            progress: called with the fraction that is done.

        Returns:
            the standard deviation of matched pixels from where they project, in pixels.

        Raises:
            ValueError: another ``depth``, or negative numbers of steps.
        """
        _check(niter1, niter2, depth)
        pinholes = self._first_focals()
        points = [
            one.depth[..., None] * pinholes.rays(n, pixel_grid(*shape).view(*shape, 2)).float()
            for n, (one, shape) in enumerate(zip(self._canonicals, self.imshapes, strict=True))
        ]
        coarse = Coarse(self.matches, points)
        scores = torch.tensor([pair.score for pair in self.matches])
        cameras, root = coarse.spanning_tree(scores)
        if self._fixed_poses.any():
            cameras = moved_to_known(cameras, self._known_poses, self._fixed_poses)
        free = self._free_of(root)

        def part(begin: float, end: float, most: int) -> Callable[[int, float], None]:
            def report(done: int, _: float) -> None:
                if progress is not None:
                    progress(begin + (end - begin) * done / max(1, most))

            return report

        cameras, kernel = coarse.align(cameras, free[:, :7], niter1, part(0.0, 0.3, niter1))
        # The residual is the difference of two maps.
        noise = max(_LEAST_SPREAD, kernel.depth_spread / 2**0.5)
        depths = [one.depth for one in self._canonicals]
        bundle = Bundle(self.matches, depths, self._cells, pinholes.focals, noise)
        state = bundle.start(cameras, pinholes)
        if niter2:
            state = bundle.refine(state, free, niter2, opt_depth, part(0.3, 0.9, niter2))
        self._state, self._bundle, self._pinholes = state, bundle, state.pinholes
        self._free, self._opt_depth = free, opt_depth and niter2 > 0
        self._depth, self._maps = depth, None
        if progress is not None:
            progress(1.0)
        return bundle.spread(state).pixels

    @property
    def depth_noise(self) -> float:
        """Standard deviation of an image's canonical depth, relative to it."""
        self._aligned()
        return self._bundle.depth_spread

    def get_im_poses(self) -> Tensor:
        return rigid_of(self._aligned().cameras).float()

    def get_depthmaps(self) -> list[Tensor]:
        return self._dense().depths

    def get_deviations(self) -> list[Tensor]:
        """Standard deviation (H, W) of every image's depth, in scene units: what the canonical
        pointmaps were found to be off by, made smaller by the matches that hold it, and what the
        image's camera may be off by; infinite where depth is not to be shown."""
        return self._dense().deviations

    def get_sparse_pts3d(self) -> list[Tensor]:
        """World points (K, 3) of every image: its matched pixels."""
        return [
            points.flatten(0, 1)[self._matched_pixels(n)]
            for n, points in enumerate(self.get_pts3d())
        ]

    def get_pts3d_colors(self) -> list[np.ndarray]:
        """Colours (K, 3) in [0, 1] of ``get_sparse_pts3d``."""
        return [
            image.reshape(-1, 3)[self._matched_pixels(n).numpy()]
            for n, image in enumerate(self.imgs)
        ]

    def get_dense_pts3d(
        self, clean_depth: bool = True
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """World points (H W, 3), depth (H W,) and confidence (H, W) of every image.

        Args:
            clean_depth: give points that stand in front of what other cameras saw no confidence.
        """
        scene = self.clean_pointcloud(tol=self.clean_tolerance) if clean_depth else self
        points = [one.flatten(0, 1) for one in scene.get_pts3d()]
        return points, [one.flatten() for one in scene.get_depthmaps()], scene.get_conf()

    def get_valid(self) -> list[Tensor]:
        return [
            valid & deviation.isfinite()
            for valid, deviation in zip(super().get_valid(), self.get_deviations(), strict=True)
        ]

    def _aligned(self) -> BundleState:
        if self._state is None:
            raise RuntimeError("nothing is aligned yet: call compute_global_alignment() first")
        return self._state

    def _dense(self) -> DenseMaps:
        state = self._aligned()
        if self._maps is None:
            self._maps = dense_maps(
                self._bundle, state, self._canonicals, self._depth, self._free, self._opt_depth
            )
        return self._maps

    def _matched_pixels(self, n: int) -> Tensor:
        """Flat numbers of the pixels of image ``n`` that have a match, each once."""
        self._aligned()
        columns, rows = self._bundle.hosts[n].pixels.long().unbind(1)
        return (rows * self.imshapes[n][1] + columns).unique()

    def _first_focals(self) -> Pinholes:
        """Focals of the canonical pointmaps where none are known."""
        focals, fixed = self._pinholes.focals.clone(), self._pinholes.fixed_focals
        for n, one in enumerate(self._canonicals):
            if not fixed[n]:
                focals[n] = one.focal
        if self._pinholes.shared and not fixed.any():
            focals = focals.median(dim=0).values.expand_as(focals).clone()
        return replace(self._pinholes, focals=focals)

    def _free_of(self, root: int) -> Tensor:
        """(N, SLOTS) bool: what of each image may move, the world's own freedom taken away."""
        free = torch.ones(self.n_imgs, SLOTS, dtype=torch.bool)
        free[self._fixed_poses, :6] = False
        if not self._fixed_poses.any():
            free[root, :7] = False
        elif self._fixed_poses.sum() == 1:
            free[self._fixed_poses, 6] = False
        free[:, 7] = ~self._pinholes.fixed_focals
        return free


def sparse_global_alignment(
    imgs: Sequence[Any],
    pairs_in: Sequence[tuple[View, View]],
    cache_path: str | Path | None,
    model: AsymmetricCroCo3DStereo,
    *,
    subsample: int = 8,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    matching_conf_thr: float = 0.0,
    shared_intrinsics: bool = False,
    opt_depth: bool = True,
    depth: str = "network",
    niter1: int = 100,
    niter2: int = 100,
    lr1: float | None = None,
    lr2: float | None = None,
    min_conf_thr: float = 3.0,
    verbose: bool = True,
    progress: Progress | None = None,
) -> SparseScene:
    """The aligned scene of pairs of images.

    Args:
        imgs: as in published scripts; the pairs hold the images, so nothing is read here.
        pairs_in: as of ``dust3r.image_pairs.make_pairs``. The network looks at both orders of each
            pair, whether they are given or not.
        cache_path: folder of forward results, which later runs on the same images and weights find
            again, whatever their other settings; None for one that is deleted at the end.
        subsample: pixels between seeds of matches, and the side of cells of one depth.
        device: of the network; the model's own where None.
        batch_size: pairs at a time; halved by itself where memory ends.
        matching_conf_thr, shared_intrinsics, min_conf_thr, opt_depth, depth, niter1, niter2: as
            ``SparseScene`` and its ``compute_global_alignment``.
        lr1, lr2: of the published gradient descent. Accepted and not used: second-order steps find
            their own length.
        verbose: show progress bars.
        progress: called with the fraction that is done.

    Raises:
        ValueError: no pairs, a model without descriptors, impossible settings, or what
            ``SparseScene`` raises.
        mast3r.cloud_opt.cache.CacheError: the cache folder cannot be written.
    """

    def part(begin: float, end: float) -> Progress:
        return lambda done: progress(begin + (end - begin) * done) if progress else None

    # Before the network works for minutes.
    _check(niter1, niter2, depth)
    views, edges = images_of(pairs_in)
    with tempfile.TemporaryDirectory() as passing:
        results = forward_results(
            views,
            edges,
            model,
            cache_path or passing,
            device=device,
            batch_size=batch_size,
            subsample=subsample,
            verbose=verbose,
            progress=part(0.0, 0.6),
        )
        scene = SparseScene(
            results,
            matching_conf_thr=matching_conf_thr,
            anchor_size=subsample,
            min_conf_thr=min_conf_thr,
            shared_intrinsics=shared_intrinsics,
            verbose=verbose,
        )
    scene.compute_global_alignment(niter1, niter2, opt_depth, depth, part(0.75, 1.0))
    return scene


def _check(niter1: int, niter2: int, depth: str) -> None:
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth!r} is none of {DEPTHS}")
    if min(niter1, niter2) < 0:
        raise ValueError(f"niter1={niter1} and niter2={niter2} must be 0 or more")


def _read(
    results: ForwardResults, masks: Sequence[Tensor]
) -> tuple[list[Canonical], dict[tuple[int, int], DirectedMatches]]:
    """Canonical pointmaps of all images and the matches of all passes, each read once."""
    paired: list[list[int]] = [[] for _ in masks]
    for i, j in results.edges:
        paired[i].append(j)
        paired[j].append(i)
    found, directed = [], {}
    for n, (others, mask) in enumerate(zip(paired, masks, strict=True)):
        height, width = mask.shape
        passes = [results.get(n, other) for other in others]
        directed |= {(n, o): one.matches for o, one in zip(others, passes, strict=True)}
        nothing = Canonical(
            torch.zeros(mask.shape), torch.zeros(mask.shape), float(max(mask.shape))
        )
        centre = torch.tensor([width / 2, height / 2])
        found.append(canonical_of(passes, mask, centre) if passes else nothing)
    return found, directed


def _largest_part(
    results: ForwardResults, matches: Sequence[PairMatches], threshold: float
) -> tuple[list[int], list[str]]:
    """Images of the largest part that matches connect, and a note where others are left out."""
    parts = connected_groups([pair.edge for pair in matches], len(results.views))
    if len(parts[0]) < 2:
        lower = ", lower matching_conf_thr" if threshold > 0 else ""
        raise ValueError(
            "no two images share enough mutual matches that one camera motion explains: check that "
            f"they show one place and overlap by half or more{lower}, or use weights that were "
            "trained for matching"
        )
    if len(parts) == 1:
        return parts[0], []
    names = [results.views[n]["source"].name for n in range(len(results.views))]
    left = [names[n] for part in parts[1:] for n in part]
    note = (
        f"matches connect {len(parts[0])} of {len(names)} images; the others are left out: "
        f"{', '.join(left)}. Add photographs between them, or more pairs (another scene_graph)"
    )
    log.warning(note)
    return parts[0], [note]
