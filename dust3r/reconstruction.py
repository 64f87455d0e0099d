"""A reconstruction once alignment has ended: plain arrays, for exports, pages and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from dust3r.utils.geometry import geotrf

if TYPE_CHECKING:
    from dust3r.cloud_opt.scene import Scene
    from dust3r.uncertainty.calibration import Calibration


# Of calibrations, by what deviations are of.
_REGION_OF = {"depth": "interval", "point": "ball"}


@dataclass(frozen=True)
class Source:
    """Where an image comes from, and how its pixels lie in the original.

    Attributes:
        name: file name without folders, unique among the images of a reconstruction.
        path: the file; None for an image that was given as pixels.
        size: (width, height) of the upright original, its EXIF rotation applied.
        to_original: (3, 3) affine map from homogeneous pixels (u, v, 1) of the network's image to
            those of the upright original, both with the centre of the first pixel at (0, 0).
    """

    name: str
    path: Path | None
    size: tuple[int, int]
    to_original: np.ndarray


@dataclass(frozen=True)
class Reconstruction:
    """Cameras, depth and points of N images, in the scene's own unit.

    Axes are OpenCV's, poses camera-to-world. Image n is (H_n, W_n), upright as the network saw it.

    Attributes:
        sources: of the images.
        images: (H, W, 3) float32 RGB in [0, 1] each.
        poses: (N, 4, 4) float64, camera-to-world.
        intrinsics: (N, 3, 3) float64, of the network's images.
        depthmaps: (H, W) float32 each, z.
        confidences: (H, W) float32 each, as of the model's ``conf``; only their order means
            something.
        valid: (H, W) bool each: what may become a point. False where a mask, the sky or the
            clean-up took it away, or nothing was predicted.
        deviations: (H, W) float32 each, in scene units: standard deviation of a point's depth, or
            the root of the point's expected squared error; None where the model states none.
        radii90: (H, W) float32 each, in scene units: the true depth lies within so much of a
            point's, or the true point within so much of it, with a probability of 90%; None where
            nothing was calibrated.
        notes: what the person who asked should know, such as images that were left out.
        deviations_of: ``'depth'`` or ``'point'``, what ``deviations`` and ``radii90`` are of.
    """

    sources: tuple[Source, ...]
    images: tuple[np.ndarray, ...]
    poses: np.ndarray
    intrinsics: np.ndarray
    depthmaps: tuple[np.ndarray, ...]
    confidences: tuple[np.ndarray, ...]
    valid: tuple[np.ndarray, ...]
    deviations: tuple[np.ndarray, ...] | None = None
    notes: tuple[str, ...] = ()
    radii90: tuple[np.ndarray, ...] | None = None
    deviations_of: Literal["depth", "point"] = "depth"

    @classmethod
    def from_scene(cls, scene: Scene, notes: Sequence[str] = ()) -> Reconstruction:
        """The state of an aligned scene; ``notes`` come before its own."""

        def arrays(tensors: Sequence) -> tuple[np.ndarray, ...]:
            return tuple(tensor.detach().cpu().numpy() for tensor in tensors)

        deviations = scene.get_deviations()
        return cls(
            sources=scene.sources,
            images=tuple(scene.imgs),
            poses=scene.get_im_poses().detach().double().cpu().numpy(),
            intrinsics=scene.get_intrinsics().detach().double().cpu().numpy(),
            depthmaps=arrays(scene.get_depthmaps()),
            confidences=arrays(scene.im_conf),
            valid=arrays(scene.get_valid()),
            deviations=None if deviations is None else arrays(deviations),
            notes=(*notes, *scene.notes),
            deviations_of=scene.deviations_of,
        )

    def calibrated(self, calibration: Calibration) -> Reconstruction:
        """With ``radii90``; everything else stays as it is.

        Calibrations are of what a model says of one pair. Where many pairs saw a pixel, its
        deviation holds what they differ by as well; where the alignment put a camera is in neither.

        Raises:
            ValueError: no deviations are stated, or the calibration is of something else than
                they are, or goes by metres, which the scene need not be in.
        """
        if self.deviations is None:
            raise ValueError(
                "the model states no deviations, so there is nothing to calibrate; use one whose "
                "head_type is dpt_uq or dpt_uq_feat, or has a distribution of points"
            )
        wanted = _REGION_OF[self.deviations_of]
        if calibration.region != wanted or calibration.binned_by == "sigma":
            raise ValueError(
                f"a calibration of {calibration.region}s with bins by {calibration.binned_by} "
                f"says nothing of deviations of {self.deviations_of}s in a scene's own unit; give "
                f"one of {wanted}s, without bins or with bins by relative sigma"
            )
        radii = tuple(
            calibration.radius(sigma, 0.9, depth=self._far(index)).astype(np.float32)
            for index, sigma in enumerate(self.deviations)
        )
        return replace(self, radii90=radii)

    def _far(self, index: int) -> np.ndarray:
        """What deviations of an image are relative to: depth, or of points distance, (H, W)."""
        if self.deviations_of == "depth":
            return self.depthmaps[index]
        return self.depthmaps[index] * np.linalg.norm(self._rays(index), axis=-1)

    def _rays(self, index: int) -> np.ndarray:
        """Directions (H, W, 3) of an image's pixels in its camera, with z = 1."""
        height, width = self.depthmaps[index].shape
        u, v = np.meshgrid(np.arange(width), np.arange(height))
        pixels = np.stack([u, v, np.ones_like(u)], -1)
        return pixels @ np.linalg.inv(self.intrinsics[index]).T

    def __len__(self) -> int:
        return len(self.sources)

    def pts3d(self, index: int) -> np.ndarray:
        """World points (H, W, 3) float32 of one image."""
        rays = self._rays(index) * self.depthmaps[index][..., None]
        return geotrf(self.poses[index], rays).astype(np.float32)

    def original_intrinsics(self) -> np.ndarray:
        """Intrinsics (N, 3, 3) of the upright originals: crop and scale undone."""
        maps = np.stack([source.to_original for source in self.sources])
        return maps @ self.intrinsics

    def kept(self, min_confidence: float = 0.0, hide: float = 0.0) -> list[np.ndarray]:
        """Which points to show, (H, W) bool per image.

        Args:
            min_confidence: least confidence of a shown point.
            hide: fraction in [0, 1] of the otherwise shown points of the whole scene to leave out,
                the least certain first: by deviation relative to depth where there is one
                (distance alone makes no point doubtful), else by confidence.
        """
        stated = zip(self.valid, self.confidences, strict=True)
        kept = [valid & (confidence >= min_confidence) for valid, confidence in stated]
        if hide <= 0:
            return kept
        doubts = self.doubts()
        shown = np.concatenate([doubt[keep] for doubt, keep in zip(doubts, kept, strict=True)])
        if not shown.size:
            return kept
        limit = np.quantile(shown, 1 - hide) if hide < 1 else -np.inf
        return [keep & (doubt <= limit) for doubt, keep in zip(doubts, kept, strict=True)]

    def doubts(self) -> list[np.ndarray]:
        """How doubtful each point is, (H, W) per image: its deviation over its depth, or distance
        where that is of points; else 1 / confidence.

        Infinite where there is no point.
        """
        if self.deviations is None:
            wholes, parts = [np.ones_like(one) for one in self.confidences], self.confidences
        else:
            wholes, parts = self.deviations, [self._far(n) for n in range(len(self))]
        return [
            np.divide(whole, part, out=np.full_like(whole, np.inf), where=part > 0)
            for whole, part in zip(wholes, parts, strict=True)
        ]
