"""Two images: nothing to optimise, only cameras to read off."""

from typing import Any

import torch
from torch import Tensor

from dust3r.cloud_opt.base_opt import BaseOptimizer
from dust3r.cloud_opt.init_poses import solve_pnp
from dust3r.cloud_opt.observations import POINT
from dust3r.cloud_opt.pinhole import focal_in_view, pixel_grid
from dust3r.cloud_opt.similarity import apply


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
        self._sides = {n: side for side, n in enumerate(self.edges[pair])}
        first, second = self.edges[pair]
        offsets = [
            pixel_grid(*self.imshapes[n]) - self._pinholes.centres[n].float() for n in (0, 1)
        ]
        # The first image's focal from its own map; the second's from the other pair where there is
        # one, else from PnP.
        own = {n: data.said(0, p) for p, (n, _) in enumerate(self.edges)} | {
            first: data.said(0, pair)
        }
        for n, (cloud, vote) in own.items():
            guess = self._pinholes.focals[n]
            self._pinholes.focals[n] = focal_in_view(cloud, offsets[n], vote, guess)
        focal = float(self._pinholes.focals[second, 0]) if second in own else None
        points, votes = data.said(1, pair)
        size = torch.tensor(self.imshapes[second])
        pose, focal = solve_pnp(points, offsets[second], votes, size, focal)
        self._pinholes.focals[second] = focal
        self._poses = torch.eye(4).double().repeat(2, 1, 1)
        self._poses[second] = pose
        depths = {
            first: data.said(0, pair)[0][:, 2],
            second: torch.where(votes > 0, apply(torch.linalg.inv(pose), points)[:, 2], 0.0),
        }
        self._depthmaps = [depths[n].view(self.imshapes[n]) for n in (0, 1)]
        self.im_conf = [
            data.confidences[self._sides[n]][pair].float().nan_to_num(0.0, 0.0, 0.0) for n in (0, 1)
        ]

    def preset_pose(self, *args: Any, **kwargs: Any) -> None:
        """Not possible: a pair is shown as it is. ``ValueError``, as are the other presets."""
        raise ValueError(
            "PairViewer shows a pair as it is, nothing can be preset: use "
            "GlobalAlignerMode.PointCloudOptimizer"
        )

    preset_focal = preset_principal_point = preset_intrinsics = preset_pose

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
        far = self._depthmaps
        if self.deviations_of == POINT:
            points = self.observations.points
            far = [points[self._sides[n]][self._pair].float().norm(dim=-1) for n in (0, 1)]
        return [sigmas[self._sides[n]][self._pair] * far[n] for n in (0, 1)]
