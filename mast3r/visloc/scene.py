"""What localisation works on: a map of posed images that know their points, and queries."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from dust3r.export.colmap import HALF_PIXEL


@dataclass(frozen=True)
class Camera:
    """A camera model with its distortion, by pycolmap, in the project's pixels.

    Attributes:
        model: pycolmap's, of the upright original image.
    """

    model: pycolmap.Camera

    @classmethod
    def pinhole(cls, intrinsics: np.ndarray, size: tuple[int, int]) -> "Camera":
        """Of intrinsics (3, 3), the centre of the first pixel at (0, 0), and (width, height)."""
        fx, fy, cx, cy = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
        return cls(
            pycolmap.Camera(
                model="PINHOLE",
                width=size[0],
                height=size[1],
                params=[fx, fy, cx + HALF_PIXEL, cy + HALF_PIXEL],
            )
        )

    @property
    def size(self) -> tuple[int, int]:
        return self.model.width, self.model.height

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Directions (K, 3), z = 1, of pixels (K, 2); not finite where the model has no inverse."""
        seen = np.asarray(self.model.cam_from_img(np.asarray(pixels, float) + HALF_PIXEL))
        return np.concatenate([seen, np.ones_like(seen[:, :1])], 1)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels (K, 2) of points (K, 3) in the camera's frame; not finite behind it."""
        return np.asarray(self.model.img_from_cam(np.asarray(points, float))) - HALF_PIXEL


@dataclass(frozen=True)
class Landmarks:
    """K places of an image whose world points are known.

    Attributes:
        pixels: (K, 2) of the upright original.
        points: (K, 3) world.
    """

    pixels: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class MapImage:
    """A posed image that knows its points, by a depth map, by landmarks, or by a scan.

    Exactly one of ``depth``, ``landmarks`` and ``points`` is there; each reads when it is called,
    since maps of thousands of images do not fit into memory.

    Attributes:
        name: unique in the map.
        path: image file.
        pose: (4, 4) camera-to-world.
        camera: None only where points come without one.
        depth: gives (H, W) float32 z in metres, 0 where unknown, of an image of any size that
            shows the same as the original.
        landmarks: gives a COLMAP model's points.
        points: gives world points (H, W, 3) float32 of every pixel, not finite where unknown.
    """

    name: str
    path: Path
    pose: np.ndarray
    camera: Camera | None
    depth: Callable[[], np.ndarray] | None = None
    landmarks: Callable[[], Landmarks] | None = None
    points: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True)
class Query:
    """An image to localise.

    Attributes:
        name: unique among the queries.
        path: image file.
        camera: None where intrinsics are unknown, which is an error once it is localised.
        pose: (4, 4) camera-to-world, the truth where it is known.
        group: part of the table it counts in, such as "day" and "night"; "" where there is one.
    """

    name: str
    path: Path
    camera: Camera | None
    pose: np.ndarray | None = None
    group: str = ""


@dataclass(frozen=True)
class LocalisationScene:
    """A map and its queries.

    Attributes:
        name: of the scene.
        images: of the map.
        queries: to localise.
        pairs: map images, best first, to compare with a query, by its name, where the data set
            gives them; retrieval finds them otherwise.
        result_name: what evaluation servers call a query in a result file, by its name, where that
            is not the name itself.
    """

    name: str
    images: tuple[MapImage, ...]
    queries: tuple[Query, ...]
    pairs: dict[str, list[str]] | None = None
    result_name: dict[str, str] | None = None
