"""Sets of overlapping images of a processed data set, and what is true of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dust3r.datasets.scannetpp import METADATA, ScanNetpp
from dust3r.utils.npz import load_arrays

_ATTEMPTS = 1000


@dataclass(frozen=True)
class Truth:
    """Cameras and depth of N images of one size.

    Attributes:
        poses: (N, 4, 4) camera-to-world.
        intrinsics: (N, 3, 3).
        depths: (N, H, W) z, 0 where unknown.
    """

    poses: np.ndarray
    intrinsics: np.ndarray
    depths: np.ndarray

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def focals(self) -> np.ndarray:
        """(N,) pixels."""
        return self.intrinsics[:, (0, 1), (0, 1)].mean(1)


def chain(
    dataset: ScanNetpp, scene: int, count: int, min_overlap: float, rng: np.random.Generator
) -> list[int]:
    """Numbers of ``count`` images of a scene, each a pair of the data set with the one before.

    Raises:
        ValueError: no such chain was found.
    """
    pairs = overlapping(dataset, min_overlap)
    pairs = pairs[dataset.sceneids[pairs[:, 0]] == scene]
    partners: dict[int, list[int]] = {}
    for a, b in pairs.tolist():
        partners.setdefault(a, []).append(b)
        partners.setdefault(b, []).append(a)
    starts = sorted(partners)
    for _ in range(_ATTEMPTS if starts else 0):
        found = [int(rng.choice(starts))]
        while len(found) < count:
            further = [n for n in partners[found[-1]] if n not in found]
            if not further:
                break
            found.append(int(rng.choice(further)))
        if len(found) == count:
            return found
    raise ValueError(
        f"scene {dataset.scenes[scene]} has no chain of {count} images of which each overlaps the "
        f"next by {min_overlap}: lower --images or --min_overlap"
    )


def overlapping(dataset: ScanNetpp, least: float) -> np.ndarray:
    """(P, 2) pairs of images; all where the data set states no overlap."""
    stated = load_arrays(dataset.root / METADATA, ("pairs",))["pairs"]
    if stated.shape[1] < 3:
        return dataset.pairs
    overlap = {(int(a), int(b)): share for a, b, share in stated[:, :3]}
    kept = [overlap[a, b] >= least for a, b in dataset.pairs.tolist()]
    return dataset.pairs[kept]


def paths(dataset: ScanNetpp, image: int) -> tuple[Path, Path]:
    """Files of an image and of its depth."""
    folder = dataset.root / str(dataset.scenes[dataset.sceneids[image]])
    name = dataset.images[image]
    return folder / "images" / f"{name}.jpg", folder / "depth" / f"{name}.png"


def read_truth(
    dataset: ScanNetpp, chosen: Sequence[int], images: Sequence[dict[str, Any]]
) -> Truth:
    """Cameras, and depth at the pixels of the network's images, of ``load_images``."""
    depths, intrinsics = [], []
    for n, image in zip(chosen, images, strict=True):
        to_original = image["source"].to_original
        height, width = image["true_shape"][0].tolist()
        depth = dataset.read_depth(paths(dataset, n)[1], n)
        # Nearest: the mean of two depths at an edge is where nothing is.
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        depths.append(cv2.warpAffine(depth, to_original[:2], (width, height), flags=flags))
        intrinsics.append(np.linalg.inv(to_original) @ dataset.intrinsics[n])
    poses = dataset.trajectories[list(chosen)].astype(float)
    return Truth(poses, np.stack(intrinsics), np.stack(depths))
