"""What all methods of the comparison get and give: posed frames in, metric depth of the first out.

A method sees images, poses and intrinsics, and never a true depth.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, StudentT

from deltas.model import Deltas


@dataclass(frozen=True)
class Frames:
    """F posed images of one size, the anchor first; axes and pixels as in DESIGN 2.

    Attributes:
        images: (F, 3, H, W) float32 in [-1, 1].
        poses: (F, 4, 4) float64, camera-to-world, metres.
        intrinsics: (F, 3, 3) float64, of this very grid.
    """

    images: Tensor
    poses: np.ndarray
    intrinsics: np.ndarray

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> "Frames":
        """Those of a sample of ``deltas.data.sequences.Sequences``, without its depth.

        Raises:
            ValueError: fewer than two frames, or shapes that do not fit.
        """
        images = torch.as_tensor(sample["img"])
        poses, intrinsics = (
            np.asarray(sample[key], np.float64) for key in ("camera_pose", "camera_intrinsics")
        )
        if images.ndim != 4 or len(images) < 2:
            raise ValueError(
                f"img is {tuple(images.shape)}, expected (F, 3, H, W) of F >= 2 frames, the anchor "
                "first: one sample of deltas.data.sequences.Sequences"
            )
        if poses.shape != (len(images), 4, 4) or intrinsics.shape != (len(images), 3, 3):
            raise ValueError(
                f"camera_pose is {poses.shape} and camera_intrinsics {intrinsics.shape}, expected "
                f"a (4, 4) and a (3, 3) for each of the {len(images)} frames"
            )
        return cls(images, poses, intrinsics)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return tuple(self.images.shape[-2:])

    def from_anchor(self) -> np.ndarray:
        """(F - 1, 4, 4) from the anchor's camera to each neighbour's."""
        return np.linalg.inv(self.poses[1:]) @ self.poses[0]


@dataclass(frozen=True)
class Depth:
    """What a method says about the anchor.

    Attributes:
        depth: (H, W) float32, metres along z; NaN where the images say nothing.
        uncertainty: (H, W) float32, larger where the depth is worse, in any unit; None where the
            method has no opinion.
        distribution: of the depth, (H, W), where the method states one; ``uncertainty`` then is its
            standard deviation.
    """

    depth: np.ndarray
    uncertainty: np.ndarray | None = None
    distribution: Distribution | None = None

    @property
    def stated(self) -> np.ndarray:
        """(H, W) bool: where there is a depth."""
        return np.isfinite(self.depth)

    def filled(self, prior_depth: float) -> np.ndarray:
        """(H, W) with ``prior_depth`` where the images say nothing."""
        return np.where(self.stated, self.depth, np.float32(prior_depth))


class DepthMethod(ABC):
    """A way from posed frames to the depth of the first one."""

    name: str

    @abstractmethod
    def predict(self, frames: Frames) -> Depth: ...


class MedianDepth(DepthMethod):
    """One depth for everything, such as the training set's median: what knowing nothing costs."""

    name = "median"

    def __init__(self, depth: float) -> None:
        self.depth = depth

    def predict(self, frames: Frames) -> Depth:
        return Depth(np.full(frames.size, self.depth, np.float32))


class DeltasDepth(DepthMethod):
    """DELTAS, with the variance of its evidential head where it has one."""

    name = "deltas"

    def __init__(self, model: Deltas) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def predict(self, frames: Frames) -> Depth:
        # Half of the points are random: the same ones in every run.
        chance = torch.Generator().manual_seed(0)
        poses, intrinsics = (
            torch.from_numpy(given)[None] for given in (frames.poses, frames.intrinsics)
        )
        said = self.model(frames.images[None], poses, intrinsics.float(), generator=chance)
        depth = said.depth[0][0, 0].numpy()
        if said.evidence is None:
            return Depth(depth)
        uncertainty = said.evidence.variance.sqrt()[0, 0].numpy()
        student = said.evidence.predictive()
        maps = (part[0, 0] for part in (student.df, student.loc, student.scale))
        return Depth(depth, uncertainty, StudentT(*maps, validate_args=False))
