"""Two images: nothing to optimise, only cameras to read off."""

from typing import Any

import torch
from torch import Tensor

from dust3r.cloud_opt.base_opt import BaseOptimizer
from dust3r.cloud_opt.init_poses import solve_pnp
from dust3r.cloud_opt.similarity import apply
from dust3r.post_process import fit_focal


class PairViewer(BaseOptimizer):
    """The cameras and depth of two images from their more confident pair, as they are.

    Raises:
        ValueError: there are not exactly two images, or PnP finds no second camera.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.n_imgs != 2:
            raise ValueError(
                f"PairViewer shows two images, and these pairs have {self.n_imgs}: use "
                "GlobalAlignerMode.PointCloudOptimizer"
            )
        data = self.observations
        self._pair = pair = int(data.scores().argmax())
        first, second = data.edges[pair].tolist()
        sizes = torch.tensor(self.imshapes)
        offsets = [
            _pixel_grid(*self.imshapes[n]) - self._pinholes.centres[n].float() for n in (0, 1)
        ]
        maps, votes = ([f(side, pair) for side in (0, 1)] for f in (data.maps, data.vote))
        # The first image's focal from its own map; the second's from the other pair where there is
        # one, else from PnP.
        own = {int(a): p for p, (a, _) in enumerate(self.edges)}
        for n in (first, second):
            if n in own and not self._pinholes.fixed_focals[n]:
                cloud, vote = data.maps(0, own[n]), data.vote(0, own[n])
                vote = torch.where(cloud[:, 2] > 1e-6, vote, 0.0)
                self._pinholes.focals[n] = fit_focal(cloud[None], offsets[n][None], vote[None])
        known = second in own or self._pinholes.fixed_focals[second]
        focal = float(self._pinholes.focals[second].mean()) if known else None
        pose, focal = solve_pnp(maps[1], offsets[second], votes[1], sizes[second], focal)
        self._pinholes.focals[second] = focal
        poses = torch.eye(4).double().repeat(2, 1, 1)
        poses[second] = pose
        depths = [None, None]
        depths[first] = maps[0][:, 2]
        depths[second] = apply(torch.linalg.inv(pose), maps[1])[:, 2]
        if self._fixed_poses.any():
            raise ValueError("PairViewer takes no poses: use PointCloudOptimizer")
        self._poses = poses
        self._depthmaps = [
            depth.view(shape) for depth, shape in zip(depths, self.imshapes, strict=True)
        ]
        self._sides = {first: 0, second: 1}

    def compute_global_alignment(self, *args: Any, **kwargs: Any) -> float:
        """Nothing is left to do; here so that scripts need not ask which aligner they have."""
        return 0.0

    def get_im_poses(self) -> Tensor:
        return self._poses.float()

    def get_depthmaps(self) -> list[Tensor]:
        return self._depthmaps

    def get_deviations(self) -> list[Tensor] | None:
        sigmas = self.observations.sigmas
        if sigmas is None:
            return None
        return [
            sigmas[self._sides[n]][self._pair] * depth for n, depth in enumerate(self._depthmaps)
        ]


def _pixel_grid(height: int, width: int) -> Tensor:
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([u, v], -1).flatten(0, 1).float()
