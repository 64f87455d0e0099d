"""Global alignment of many pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dust3r.cloud_opt.base_opt import BaseOptimizer
from dust3r.cloud_opt.fusion import fuse_rays, spread_of
from dust3r.cloud_opt.init_poses import align_to_known, initialise
from dust3r.cloud_opt.observations import POINT
from dust3r.cloud_opt.pinhole import pixel_grid
from dust3r.cloud_opt.residuals import Kernel
from dust3r.cloud_opt.similarity import apply, rigid_of, scale_of, scaling
from dust3r.cloud_opt.solver import State, kernel_of, optimise, second_similarities

INITS = ("mst", "msp", "known_poses", None)
SCHEDULES = ("linear", "cosine")

# Sampled pixels an image, fewer where there are many pairs: 4096 for 500 pairs and less.
_MOST_SAMPLES, _LEAST_SAMPLES, _SAMPLES_OF_ALL_PAIRS = 4096, 512, 2 << 20


class PointCloudOptimizer(BaseOptimizer):
    """Cameras, intrinsics and depth maps that agree best with all pairs.

    Use: ``compute_global_alignment``, then the getters. Arguments are ``BaseOptimizer``'s. How it
    optimises is in ``dust3r.cloud_opt.solver``.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._state: State | None = None
        self._kernel: Kernel | None = None
        self._fused: tuple[list[Tensor], list[Tensor] | None] | None = None

    def compute_global_alignment(
        self,
        init: str | None = "mst",
        niter: int = 300,
        schedule: str = "linear",
        lr: float = 0.01,
        progress: Callable[[float], None] | None = None,
    ) -> float:
        """Align; the getters give the result.

        Args:
            init: ``'mst'`` starts along a maximum spanning tree of pairs; ``'known_poses'`` too,
                but all poses must be preset; None goes on from where the last call ended.
            niter: most steps. It stops by itself where steps change nothing, usually after 10 to
                40; 0 leaves the first guess.
            schedule, lr: of the published gradient descent. Accepted and not used: second-order
                steps find their own length.
            progress: called with the fraction that is done.

        Returns:
            the robust mean squared distance, relative to depth, of the pairs' points to the scene.

        Raises:
            ValueError: an unknown ``init`` or ``schedule``, poses that are not all preset, or
                nothing to align.
        """
        if init not in INITS:
            raise ValueError(f"init={init!r} is none of {INITS}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule={schedule!r} is none of {SCHEDULES}")
        if init == "known_poses" and not self._fixed_poses.all():
            missing = [n for n, fixed in enumerate(self._fixed_poses) if not fixed]
            raise ValueError(
                f"init='known_poses', but images {missing} have none: preset_pose(...)"
            )
        if init is None and self._state is None:
            raise ValueError("init=None goes on from an earlier alignment, and there is none yet")
        most = _SAMPLES_OF_ALL_PAIRS // max(1, self.n_edges)
        samples = self.observations.sample(min(_MOST_SAMPLES, max(_LEAST_SAMPLES, most)))
        state = self._state
        if init is not None:
            sizes = torch.tensor(self.imshapes)
            state = initialise(samples, self.observations.scores(), self._pinholes, sizes)
        if self._fixed_poses.any():
            state = align_to_known(state, self._known_poses, self._fixed_poses)
        bar = tqdm(total=niter, desc="global alignment", disable=not self.verbose)

        def report(done: int, cost: float) -> None:
            bar.update(done - bar.n)
            bar.set_postfix_str(f"distance {cost**0.5:.2e}")
            if progress is not None:
                progress(done / niter)

        with bar:
            state, cost = optimise(samples, state, self._free(), niter, progress=report)
        self._state, self._pinholes = state, state.pinholes
        self._kernel = kernel_of(samples, state)
        self._fused = None
        if progress is not None:
            progress(1.0)
        return cost

    def get_im_poses(self) -> Tensor:
        return rigid_of(self._aligned().cameras).float()

    def get_depthmaps(self) -> list[Tensor]:
        return self._fuse()[0]

    def get_deviations(self) -> list[Tensor] | None:
        return self._fuse()[1]

    @property
    def depth_noise(self) -> float:
        """Standard deviation of one pair's depth against the scene's, relative to depth."""
        self._aligned()
        return self._kernel.depth_spread

    def get_pw_poses(self) -> Tensor:
        """(P, 4, 4) similarities from every pair's frame to the world."""
        state = self._aligned()
        return (state.cameras[self.observations.edges[:, 0]] @ scaling(state.scales)).float()

    def get_pw_scale(self) -> Tensor:
        """(P,) scales of every pair's points in the world."""
        return scale_of(self.get_pw_poses().double()).float()

    def _aligned(self) -> State:
        if self._state is None:
            raise RuntimeError("nothing is aligned yet: call compute_global_alignment() first")
        return self._state

    def _free(self) -> Tensor:
        """(N, 7) bool: what of each camera may move, the world's own freedom taken away."""
        free = torch.ones(self.n_imgs, 7, dtype=torch.bool)
        free[self._fixed_poses, :6] = False
        if not self._fixed_poses.any():
            free[self.observations.edges[0, 0]] = False
        elif self._fixed_poses.sum() == 1:
            free[self._fixed_poses, 6] = False
        return free

    def _fuse(self) -> tuple[list[Tensor], list[Tensor] | None]:
        """Depth, and ``get_deviations``, of every pixel from all pairs that show it."""
        state = self._aligned()
        if self._fused is not None:
            return self._fused
        data = self.observations
        moves = scaling(state.scales), second_similarities(data.edges, state)
        scales = scale_of(state.cameras)
        depthmaps, deviations = [], []
        for n, (height, width) in enumerate(self.imshapes):
            rays = state.pinholes.rays(n, pixel_grid(height, width))
            said = [
                (side, int(pair))
                for side in (0, 1)
                for pair in (data.edges[:, side] == n).nonzero()[:, 0]
            ]
            clouds, votes = zip(*(data.said(side, pair) for side, pair in said), strict=True)
            moves_here = torch.stack([moves[side][pair] for side, pair in said])
            maps = apply(moves_here, torch.stack(clouds))
            votes = torch.stack(votes)
            depth, weights = fuse_rays(maps, votes, rays, self._kernel.width, self._kernel.ratio)
            scale = scales[n].float()
            depthmaps.append((scale * depth).view(height, width))
            if data.sigmas is not None:
                stated = torch.stack([data.sigmas[side][pair].flatten() for side, pair in said])
                depths = (maps * rays).sum(-1) / rays.square().sum(-1)
                far = depth
                if data.sigmas_of == POINT:
                    # Stated of distances from the pair's first camera, wanted of the image's own.
                    size = scale_of(moves_here)[:, None].float()
                    own = maps.norm(dim=-1).clamp_min(1e-9)
                    stated *= size * torch.stack(clouds).norm(dim=-1) / own
                    far = depth * rays.norm(dim=-1)
                relative = spread_of(depths, depth, weights, stated)
                deviations.append((relative * scale * far).view(height, width))
        self._fused = depthmaps, deviations if data.sigmas is not None else None
        return self._fused
