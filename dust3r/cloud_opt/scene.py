"""What every aligner has: images, presets, cameras, maps, and the getters people know."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dust3r.cloud_opt.cleaning import points_in_front, sky_of
from dust3r.cloud_opt.pinhole import Pinholes
from dust3r.reconstruction import Source
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf

_LEAST_TOLERANCE = 0.001


class Scene:
    """Images in one world, with what is known of their cameras beforehand.

    Aligners derive from it, set ``im_conf``, and give poses and depth.

    Args:
        imgs: (H, W, 3) float32 in [0, 1] per image.
        sources: of the images, as ``load_images`` found them.
        image_ids: ``idx`` of each image.
        masks: (H, W) bool per image: which pixels are used.
        edges: (i, j) per pair of images that are compared.
        notes: what the user should know.
        min_conf_thr: confidence above which ``get_masks`` says yes.
        shared_intrinsics: one camera took all images.
        optimize_pp: fit principal points as well; they are in the middle otherwise.
        fx_and_fy: fit two focals an image.
        verbose: show progress.

    Attributes:
        imshapes: (height, width) per image.
        im_conf: (H, W) confidence of each pixel, per image.
        deviations_of: what ``get_deviations`` is of, ``'depth'`` or ``'point'``.

    Raises:
        ValueError: a mask that covers a whole image, or a shared camera of images of many sizes.
    """

    im_conf: list[Tensor]
    deviations_of: str = "depth"

    def __init__(
        self,
        imgs: Sequence[np.ndarray],
        sources: Sequence[Source],
        image_ids: Sequence[int],
        masks: Sequence[Tensor],
        edges: Sequence[tuple[int, int]],
        notes: Sequence[str] = (),
        *,
        min_conf_thr: float = 3.0,
        shared_intrinsics: bool = False,
        optimize_pp: bool = False,
        fx_and_fy: bool = False,
        verbose: bool = True,
    ):
        self.imgs, self.sources, self.image_ids = list(imgs), tuple(sources), tuple(image_ids)
        self.masks, self.edges = tuple(masks), list(edges)
        self.notes: tuple[str, ...] = tuple(notes)
        self.imshapes = tuple(tuple(mask.shape) for mask in self.masks)
        self.n_imgs, self.n_edges = len(self.imshapes), len(self.edges)
        self.min_conf_thr = min_conf_thr
        self.verbose = verbose
        for mask, name in zip(self.masks, self.image_ids, strict=True):
            if not mask.any():
                raise ValueError(
                    f"the mask of image {name} covers all of it: leave the image out, or mend the "
                    "mask (nonzero pixels are used, zero ones are not)"
                )
        if shared_intrinsics and len(set(self.imshapes)) > 1:
            raise ValueError(
                f"shared_intrinsics needs images of one size, and these are {set(self.imshapes)} "
                "(height, width): one camera's portrait and landscape images differ too"
            )
        sizes = torch.tensor(self.imshapes).double()
        self._known_poses = torch.eye(4).double().repeat(self.n_imgs, 1, 1)
        self._fixed_poses = torch.zeros(self.n_imgs, dtype=torch.bool)
        no = torch.zeros(self.n_imgs, dtype=torch.bool)
        # A focal as long as the longer side sees it at 53 degrees; only a start.
        self._pinholes = Pinholes(
            focals=sizes.max(dim=1).values[:, None].repeat(1, 2),
            centres=sizes.flip(1) / 2,
            fixed_focals=no,
            fixed_centres=no.clone() if optimize_pp else ~no,
            shared=shared_intrinsics,
            fx_and_fy=fx_and_fy,
        )

    def preset_pose(self, known_poses: Sequence[Tensor | np.ndarray], pose_msk: Any = None) -> None:
        """Fix camera-to-world poses (4, 4), of all images or those that ``pose_msk`` chooses.

        Raises:
            ValueError: not one pose for each chosen image, or not a rigid motion.
        """
        for n, pose in self._for_chosen(known_poses, pose_msk, "pose"):
            pose = torch.as_tensor(np.asarray(pose), dtype=torch.float64)
            if pose.shape != (4, 4) or not _is_rigid(pose):
                raise ValueError(
                    f"the pose of image {n} is no rigid camera-to-world matrix (4, 4): {pose}"
                )
            self._known_poses[n], self._fixed_poses[n] = pose, True

    def preset_focal(self, known_focals: Sequence[float], msk: Any = None) -> None:
        """Fix focals in pixels of the network's images, of all images or those ``msk`` chooses.

        With ``shared_intrinsics`` what is known of one image is known of all.

        Raises:
            ValueError: not one focal for each chosen image, one that is not positive, or different
                ones of a shared camera.
        """
        for n, focal in self._for_chosen(known_focals, msk, "focal"):
            focal = torch.as_tensor(focal, dtype=torch.float64).reshape(-1)
            if len(focal) not in (1, 2) or not ((focal > 0) & focal.isfinite()).all():
                raise ValueError(
                    f"the focal of image {n} is {focal.tolist()}: give one positive number of "
                    "pixels, or two, (fx, fy)"
                )
            self._pinholes.focals[n] = focal
            self._pinholes.fixed_focals[n] = True
        self._share(self._pinholes.focals, self._pinholes.fixed_focals, "focals")

    def preset_principal_point(self, known_pp: Sequence[Any], msk: Any = None) -> None:
        """Fix principal points (cx, cy) in pixels of the network's images, as focals are."""
        chosen = torch.zeros(self.n_imgs, dtype=torch.bool)
        for n, centre in self._for_chosen(known_pp, msk, "principal point"):
            centre = torch.as_tensor(np.asarray(centre), dtype=torch.float64)
            if centre.shape != (2,) or not centre.isfinite().all():
                raise ValueError(
                    f"the principal point of image {n} is {centre.tolist()}: give (cx, cy) in "
                    "pixels of the network's image"
                )
            self._pinholes.centres[n] = centre
            chosen[n] = True
        self._share(self._pinholes.centres, chosen, "principal points")
        self._pinholes.fixed_centres[chosen] = True

    def preset_intrinsics(self, known_intrinsics: Sequence[Any], msk: Any = None) -> None:
        """Fix intrinsics (3, 3) of the network's images."""
        chosen = [np.asarray(k) for k in known_intrinsics]
        for k in chosen:
            if k.shape != (3, 3):
                raise ValueError(f"intrinsics are (3, 3), not {k.shape}")
        self.preset_focal([(k[0, 0], k[1, 1]) for k in chosen], msk)
        self.preset_principal_point([k[:2, 2] for k in chosen], msk)

    def get_im_poses(self) -> Tensor:
        """Camera-to-world poses (N, 4, 4)."""
        raise NotImplementedError

    def get_depthmaps(self) -> list[Tensor]:
        """Depth (H, W) of every image, z, in scene units; 0 where nothing is known."""
        raise NotImplementedError

    def get_deviations(self) -> list[Tensor] | None:
        """Standard deviation (H, W) of every image's depth, in scene units; of models that state
        a distribution of points, the root of each point's expected squared error. None without a
        model that states variances."""
        raise NotImplementedError

    def get_focals(self) -> Tensor:
        """Focals (N, 1) in pixels, (N, 2) with ``fx_and_fy`` or where two known ones differ."""
        focals = self._pinholes.focals
        alike = not self._pinholes.fx_and_fy and torch.allclose(focals[:, 0], focals[:, 1])
        return (focals[:, :1] if alike else focals).float()

    def get_principal_points(self) -> Tensor:
        """Principal points (N, 2) in pixels."""
        return self._pinholes.centres.float()

    def get_intrinsics(self) -> Tensor:
        """Intrinsics (N, 3, 3) of the network's images."""
        return self._pinholes.matrices().float()

    def get_pts3d(self) -> list[Tensor]:
        """World points (H, W, 3) of every image."""
        intrinsics, poses = self.get_intrinsics(), self.get_im_poses()
        return [
            depthmap_to_pts3d(depth, k, pose)
            for depth, k, pose in zip(self.get_depthmaps(), intrinsics, poses, strict=True)
        ]

    def get_conf(self) -> list[Tensor]:
        """Confidence (H, W) of every image's points, as the model stated it."""
        return self.im_conf

    def get_valid(self) -> list[Tensor]:
        """(H, W) bool per image: pixels that are points: depth known, not masked, not cleaned."""
        maps = zip(self.get_depthmaps(), self.masks, self.im_conf, strict=True)
        return [(depth > 0) & depth.isfinite() & mask & (conf > 0) for depth, mask, conf in maps]

    def get_masks(self) -> list[Tensor]:
        """(H, W) bool per image: points with a confidence above ``min_conf_thr``."""
        return [
            valid & (conf > self.min_conf_thr)
            for valid, conf in zip(self.get_valid(), self.im_conf, strict=True)
        ]

    def clean_pointcloud(self, tol: float = 0.001, max_bad_conf: float = 0.0) -> Scene:
        """A copy without points that hide what other cameras saw with more confidence.

        A point that another image of its pairs would have seen in front of its own surface, by
        more than the fraction ``tol`` of depth, while that surface is more certain, gets at most
        the confidence ``max_bad_conf``; 0 makes it invalid.
        """
        cleaned = self._copy()
        poses, intrinsics = self.get_im_poses(), self.get_intrinsics()
        points, depths = self.get_pts3d(), self.get_depthmaps()
        cleaned.im_conf = list(self.im_conf)
        neighbours: dict[int, set[int]] = {n: set() for n in range(self.n_imgs)}
        for a, b in self.edges:
            neighbours[a].add(b)
            neighbours[b].add(a)
        for n, others in neighbours.items():
            bad = torch.zeros(self.imshapes[n], dtype=torch.bool)
            for other in sorted(others):
                camera_points = geotrf(torch.linalg.inv(poses[other]), points[n])
                bad |= points_in_front(
                    camera_points,
                    self.im_conf[n],
                    intrinsics[other],
                    depths[other],
                    self.im_conf[other],
                    tol,
                )
            conf = self.im_conf[n]
            cleaned.im_conf[n] = torch.where(bad, conf.clamp_max(max_bad_conf), conf)
        return cleaned

    def mask_sky(self) -> Scene:
        """A copy in which the sky has no confidence: bright or blue, smooth, from the top."""
        masked = self._copy()
        masked.im_conf = [
            torch.where(torch.from_numpy(sky_of(image)), 0.0, conf)
            for image, conf in zip(self.imgs, self.im_conf, strict=True)
        ]
        return masked

    @property
    def clean_tolerance(self) -> float:
        """A ``tol`` for ``clean_pointcloud`` of an aligned scene, by its ``depth_noise``.

        Closer than their own noise, points contradict nobody.
        """
        return max(_LEAST_TOLERANCE, 2 * self.depth_noise)

    def _copy(self) -> Scene:
        """One whose presets and confidences are its own."""
        copied = copy.copy(self)
        copied._known_poses, copied._fixed_poses, copied._pinholes = copy.deepcopy(
            (self._known_poses, self._fixed_poses, self._pinholes)
        )
        return copied

    def _share(self, values: Tensor, known: Tensor, what: str) -> None:
        """Give what is known of some images of a shared camera to all of them, in place."""
        if not self._pinholes.shared or not known.any():
            return
        if (values[known] != values[known][0]).any():
            raise ValueError(
                f"shared_intrinsics is one camera, and the known {what} of its images differ: "
                f"{values[known].tolist()}"
            )
        values[:] = values[known][0]
        known[:] = True

    def _for_chosen(self, values: Sequence, chosen: Any, what: str) -> list[tuple[int, Any]]:
        numbers = np.arange(self.n_imgs)
        if chosen is not None:
            try:
                numbers = np.atleast_1d(numbers[np.asarray(chosen)])
            except IndexError:
                raise ValueError(
                    f"{chosen} chooses none of the {self.n_imgs} images of this scene: give a mask "
                    "of so many, or numbers from 0; they count the images in scene.image_ids"
                ) from None
        if len(values) != len(numbers):
            raise ValueError(
                f"{len(values)} known {what}(s) were given for {len(numbers)} image(s): give one "
                "for each, or choose images with a mask or their numbers"
            )
        return list(zip(numbers.tolist(), values, strict=True))


def _is_rigid(pose: Tensor) -> bool:
    turn = pose[:3, :3]
    orthogonal = torch.allclose(turn @ turn.T, torch.eye(3).double(), atol=1e-3)
    return bool(orthogonal and torch.linalg.det(turn) > 0 and pose.isfinite().all())
