"""3-D Gaussians: their parameters, how they start from points, and what the parameters mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional as F

# The harmonic of degree 0, and the colour that has no harmonics (Kerbl et al., 2023).
SH_C0 = 0.28209479177387814
GREY = 0.5

_NEIGHBOURS = 3
# Points in one place would make splats of no size.
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians as a rasteriser takes them.

    Attributes:
        means: (N, 3).
        quats: (N, 4) unit quaternions, w first: from a Gaussian's axes to the world's.
        scales: (N, 3) standard deviations along its axes.
        opacities: (N,) in (0, 1).
        sh: (N, K, 3) harmonics of R, G, B; K is (degree + 1)^2.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    sh: Tensor

    @classmethod
    def of(cls, params: nn.ParameterDict) -> Gaussians:
        return cls(
            means=params["means"],
            quats=F.normalize(params["quats"], dim=-1),
            scales=params["scales"].exp(),
            opacities=params["opacities"].sigmoid(),
            sh=torch.cat([params["sh0"], params["shN"]], dim=1),
        )

    def __len__(self) -> int:
        return len(self.means)


@dataclass(frozen=True)
class Normalisation:
    """From a scene's world to one whose cameras are within about 1 of the origin, and back.

    Learning rates and limits of size are of lengths, and reconstructions have any unit.

    Attributes:
        centre: (3,) of the world.
        unit: a length of 1 of the normalised world, in the scene's unit.
        near: nearest depth that is drawn, normalised.
    """

    centre: np.ndarray
    unit: float
    near: float

    @classmethod
    def of(cls, centres: np.ndarray, points: np.ndarray) -> Normalisation:
        """By the extent of the cameras, as Kerbl et al.: 1.1 times the largest distance from their
        mean; or a tenth of the points' median distance from it where that is more, for cameras that
        only turn.

        Args:
            centres: (N, 3) of the cameras.
            points: (P, 3).
        """
        centre = centres.mean(0)
        extent = 1.1 * float(np.linalg.norm(centres - centre, axis=-1).max())
        away = float(np.median(np.linalg.norm(points - centre, axis=-1)))
        unit = max(extent, 0.1 * away)
        if not (math.isfinite(unit) and unit > 0):
            raise ValueError("cameras and points are all in one place, so that nothing can be seen")
        return cls(centre, unit, 0.01 * min(1.0, away / unit))

    def points(self, xyz: np.ndarray) -> np.ndarray:
        return (xyz - self.centre) / self.unit

    def pose(self, pose: np.ndarray) -> np.ndarray:
        moved = pose.copy()
        moved[:3, 3] = self.points(pose[:3, 3])
        return moved

    def undone(self, params: nn.ParameterDict) -> nn.ParameterDict:
        """A copy of the parameters in the scene's world."""
        centre = torch.as_tensor(self.centre, dtype=torch.float64)
        means = params["means"].detach().cpu().double() * self.unit + centre
        scales = params["scales"].detach().cpu() + math.log(self.unit)
        others = {
            name: value.detach().cpu().clone()
            for name, value in params.items()
            if name not in ("means", "scales")
        }
        return make_parameters(means=means.float(), scales=scales, **others)


def initialise(
    xyz: np.ndarray, rgb: np.ndarray, sh_degree: int, opacity: float = 0.1, scale: float = 1.0
) -> nn.ParameterDict:
    """A round Gaussian at each point, as large as its three nearest are far on average.

    Args:
        xyz: (P, 3).
        rgb: (P, 3) uint8.
        sh_degree: 0 to 3; harmonics above degree 0 start at 0.
        opacity: of all.
        scale: factor of the sizes.

    Returns:
        ``means`` (P, 3), ``scales`` (P, 3) as logarithms, ``quats`` (P, 4), ``opacities`` (P,)
        before the sigmoid, ``sh0`` (P, 1, 3), ``shN`` (P, K - 1, 3); float32.

    Raises ValueError for fewer than four points, or another degree.
    """
    if len(xyz) <= _NEIGHBOURS:
        raise ValueError(
            f"splats need {_NEIGHBOURS + 1} points to start from, there are {len(xyz)}"
        )
    if sh_degree not in range(4):
        raise ValueError(f"sh_degree is 0, 1, 2 or 3, not {sh_degree}")
    distances, _ = cKDTree(xyz).query(xyz, k=_NEIGHBOURS + 1)
    size = scale * np.maximum(distances[:, 1:].mean(-1), _SMALLEST)
    count = len(xyz)
    colours = torch.from_numpy(rgb.astype(np.float32) / 255)
    return make_parameters(
        means=torch.from_numpy(xyz.astype(np.float32)),
        scales=torch.from_numpy(np.log(size).astype(np.float32))[:, None].repeat(1, 3),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        opacities=torch.full((count,), math.log(opacity / (1 - opacity))),
        sh0=((colours - GREY) / SH_C0)[:, None],
        shN=torch.zeros(count, (sh_degree + 1) ** 2 - 1, 3),
    )


def make_parameters(
    means: Tensor, scales: Tensor, quats: Tensor, opacities: Tensor, sh0: Tensor, shN: Tensor
) -> nn.ParameterDict:
    """Parameters under the names and in the shapes that gsplat's strategies know."""
    named = dict(means=means, scales=scales, quats=quats, opacities=opacities, sh0=sh0, shN=shN)
    return nn.ParameterDict({k: nn.Parameter(v.float().contiguous()) for k, v in named.items()})


def rotations(quats: Tensor) -> Tensor:
    """Matrices (N, 3, 3) of unit quaternions (N, 4), w first."""
    w, x, y, z = quats.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def harmonic_basis(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics (N, (degree + 1)^2) of unit directions (N, 3), degree 0 to 3.

    Order and signs are those of splat files: by degree, then by order from -l to l, with the sign
    (-1)^m of the Condon-Shortley phase.
    """
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    columns = [torch.full_like(x, SH_C0)]
    if degree > 0:
        c = math.sqrt(3 / (4 * math.pi))
        columns += [-c * y, c * z, -c * x]
    if degree > 1:
        c = math.sqrt(15 / (4 * math.pi))
        columns += [c * x * y, -c * y * z, c / math.sqrt(12) * (2 * zz - xx - yy)]
        columns += [-c * x * z, c / 2 * (xx - yy)]
    if degree > 2:
        c = math.sqrt(35 / (32 * math.pi))
        d = math.sqrt(21 / (32 * math.pi))
        e = math.sqrt(105 / (4 * math.pi))
        columns += [-c * y * (3 * xx - yy), e * x * y * z, -d * y * (4 * zz - xx - yy)]
        columns += [math.sqrt(7 / (16 * math.pi)) * z * (2 * zz - 3 * xx - 3 * yy)]
        columns += [-d * x * (4 * zz - xx - yy), e / 2 * z * (xx - yy), -c * x * (xx - 3 * yy)]
    return torch.stack(columns, -1)
