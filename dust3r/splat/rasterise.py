"""What draws Gaussians, and what adds and removes them: the contracts, and who fulfils them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dust3r.splat.gaussians import Gaussians

RasteriserName = Literal["gsplat", "reference"]
StrategyName = Literal["default", "mcmc", "none"]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; axes are OpenCV's.

    Attributes:
        world_to_camera: (4, 4).
        intrinsics: (3, 3), with the centre of the first pixel at (0, 0).
        size: (width, height).
    """

    world_to_camera: Tensor
    intrinsics: Tensor
    size: tuple[int, int]

    @classmethod
    def of(
        cls,
        pose: np.ndarray,
        intrinsics: np.ndarray,
        size: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> Camera:
        """Of a camera-to-world pose (4, 4)."""
        to_camera = torch.as_tensor(np.linalg.inv(pose), dtype=torch.float32, device=device)
        matrix = torch.as_tensor(intrinsics, dtype=torch.float32, device=device)
        return cls(to_camera, matrix, size)


@dataclass(frozen=True)
class Rendered:
    """An image (H, W, 3) on black, its opacity (H, W), and what a ``Densifier`` asks for."""

    image: Tensor
    opacity: Tensor
    info: dict[str, Any] = field(default_factory=dict)


class Rasteriser(Protocol):
    """Draws Gaussians, differentiably."""

    def __call__(
        self, gaussians: Gaussians, camera: Camera, *, sh_degree: int, near: float = 0.01
    ) -> Rendered:
        """The image of the Gaussians beyond depth ``near``, harmonics up to ``sh_degree``."""


class Densifier(Protocol):
    """Adds, moves and removes Gaussians while they are trained, in place."""

    @property
    def state(self) -> Mapping[str, Any]:
        """Tensors and numbers that a checkpoint keeps."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the ``state`` of another run."""

    def before_backward(
        self,
        params: nn.ParameterDict,
        optimisers: dict[str, torch.optim.Optimizer],
        step: int,
        info: dict[str, Any],
    ) -> None:
        """With what was rendered in step ``step``, from 1."""

    def after_step(
        self,
        params: nn.ParameterDict,
        optimisers: dict[str, torch.optim.Optimizer],
        step: int,
        info: dict[str, Any],
    ) -> None:
        """After the optimisers' step, once gradients are known."""


class FixedNumber:
    """The densifier that does nothing."""

    state: Mapping[str, Any] = {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass

    def before_backward(self, params, optimisers, step, info) -> None:
        pass

    def after_step(self, params, optimisers, step, info) -> None:
        pass


def make_rasteriser(name: RasteriserName, device: torch.device) -> Rasteriser:
    """The rasteriser of a name.

    Raises ValueError where gsplat is asked for and cannot run here.
    """
    if name == "reference":
        from dust3r.splat.reference import render

        return render
    from dust3r.splat.gsplat_backend import GsplatRasteriser, require_gsplat

    return GsplatRasteriser(require_gsplat(device))


def make_densifier(
    name: StrategyName, steps: int, max_splats: int, seed: int, device: torch.device
) -> Densifier:
    """The densifier of a name, for a run of ``steps``.

    Raises ValueError where gsplat's strategies are asked for and gsplat cannot run here.
    """
    if name == "none":
        return FixedNumber()
    from dust3r.splat.gsplat_backend import GsplatDensifier, require_gsplat

    return GsplatDensifier(require_gsplat(device), name, steps, max_splats, seed)
