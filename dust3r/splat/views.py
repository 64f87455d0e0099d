"""Photographs with cameras, as exports hold them, and which of them are held out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from dust3r.utils.pixels import read_rgb

# SSIM's window has 11 pixels, and torchmetrics leaves out those of the border.
LEAST_SIDE = 16


@dataclass(frozen=True)
class View:
    """A photograph and its camera; axes are OpenCV's.

    Attributes:
        name: of the photograph within its export.
        path: its file.
        size: (width, height) in pixels of ``intrinsics``.
        intrinsics: (3, 3), no skew, with the centre of the first pixel at (0, 0).
        pose: (4, 4) camera-to-world.
        file_size: (width, height) that the file must have; as ``size`` until it is resized.
    """

    name: str
    path: Path
    size: tuple[int, int]
    intrinsics: np.ndarray
    pose: np.ndarray
    file_size: tuple[int, int]

    @property
    def key(self) -> str:
        """What tells photographs apart in exports that spell their names differently."""
        return photograph_key(self.name)

    def resized(self, longest: int) -> View:
        """With the longer side at most ``longest`` pixels.

        Raises ValueError where a side would be shorter than the window of SSIM needs.
        """
        scale = min(1.0, longest / max(self.size))
        size = tuple(round(side * scale) for side in self.size)
        if min(size) < LEAST_SIDE:
            raise ValueError(
                f"{self.name} would have {size[0]}x{size[1]} pixels, and {LEAST_SIDE} a side are "
                "needed for SSIM; give a larger --image_size, or leave the image out"
            )
        across, down = (new / old for new, old in zip(size, self.size, strict=True))
        # Corners of the two images coincide, centres of their first pixels do not.
        to_new = np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5], [0, 0, 1]])
        return replace(self, size=size, intrinsics=to_new @ self.intrinsics)

    def read(self) -> np.ndarray:
        """RGB (H, W, 3) uint8 in ``size``.

        Raises:
            FileNotFoundError: the photograph is gone.
            ValueError: it cannot be read, or has not the size that its camera is of.
        """
        image = read_rgb(self.path)
        found = image.shape[1::-1]
        if found != self.file_size:
            raise ValueError(
                "{} has {}x{} pixels and its camera {}x{}; give the images that the export was "
                "made of".format(self.path, *found, *self.file_size)
            )
        if found == self.size:
            return image
        return cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)


def photograph_key(name: str) -> str:
    """Letters and digits of a file name without folders and suffix.

    Exports write names in ASCII and photographs in formats that all programs read, so that
    'room 1.HEIC' of one is 'room_1.jpg' of another.
    """
    stem = PurePosixPath(name.replace("\\", "/")).stem
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "", plain.lower()) or stem


def hold_out(exports: Sequence[Sequence[View]], every: int) -> frozenset[str]:
    """Keys of the views to leave out of training: each ``every``-th that all exports have.

    The first one in the order of names is held out, then each ``every``-th after it, as is common
    (Barron et al., Mip-NeRF 360, 2022).

    Raises:
        ValueError: two photographs of an export cannot be told apart by their names, exports have
            no photograph in common, nothing would be left to train on, or a held-out photograph
            has another size in another export.
    """
    by_key = [_by_key(views) for views in exports]
    common = sorted(set.intersection(*(set(views) for views in by_key)))
    if not common:
        raise ValueError(
            "the exports have no photograph in common by name: "
            + " and ".join(f"{views[0].name}, ..." for views in exports)
            + "; make them of the same files"
        )
    held_out = frozenset(common[::every])
    for views in by_key:
        if len(views) - len(held_out) < 2:
            raise ValueError(
                f"of {len(views)} images {len(held_out)} would be held out, and two or more are "
                "needed to train on; give a larger --test_every, or more images"
            )
    for key in sorted(held_out):
        sizes = {"{}x{}".format(*views[key].size) for views in by_key}
        if len(sizes) > 1:
            raise ValueError(
                f"{by_key[0][key].name} has {' and '.join(sorted(sizes))} "
                "pixels in the exports, so that their renderings do not compare; make all of them "
                "of the same images"
            )
    return held_out


def _by_key(views: Sequence[View]) -> dict[str, View]:
    found: dict[str, View] = {}
    for view in views:
        other = found.setdefault(view.key, view)
        if other is not view:
            raise ValueError(
                f"{other.name} and {view.name} have the same letters and digits, by which "
                "photographs are told apart; rename one and export again"
            )
    return found
