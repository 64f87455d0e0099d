"""Images of distorting lenses resampled as a pinhole camera would have taken them.

Models and parameters are COLMAP's (https://colmap.github.io/cameras.html), which for those with
OPENCV in their name are OpenCV's: fisheye after Kannala and Brandt, 2006, else Brown-Conrady.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from datasets_preprocess.colmap_text import ColmapCamera

_HALF_PIXEL = 0.5
_BORDER_POINTS = 200
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-10)

# Which of a model's parameters are fx, fy, cx, cy and OpenCV's k1, k2, p1, p2 (or, of a fisheye,
# k1 to k4); None stands for 0.
_PARAMETERS = {
    "SIMPLE_PINHOLE": (0, 0, 1, 2, None, None, None, None),
    "PINHOLE": (0, 1, 2, 3, None, None, None, None),
    "SIMPLE_RADIAL": (0, 0, 1, 2, 3, None, None, None),
    "RADIAL": (0, 0, 1, 2, 3, 4, None, None),
    "OPENCV": (0, 1, 2, 3, 4, 5, 6, 7),
    "OPENCV_FISHEYE": (0, 1, 2, 3, 4, 5, 6, 7),
    "SIMPLE_RADIAL_FISHEYE": (0, 0, 1, 2, 3, None, None, None),
    "RADIAL_FISHEYE": (0, 0, 1, 2, 3, 4, None, None),
}


@dataclass(frozen=True)
class Lens:
    """A lens in OpenCV's terms: ``intrinsics`` (3, 3), the centre of the first pixel at (0, 0),
    ``distortion`` (4,), ``fisheye`` or not, and the image's ``size`` (width, height)."""

    intrinsics: np.ndarray
    distortion: np.ndarray
    fisheye: bool
    size: tuple[int, int]

    @classmethod
    def of_colmap(cls, camera: ColmapCamera) -> "Lens":
        """The lens of a COLMAP camera; ValueError for a model that is not known here."""
        places = _PARAMETERS.get(camera.model)
        if places is None:
            raise ValueError(
                f"camera model {camera.model!r} is unknown here; known: {', '.join(_PARAMETERS)}"
            )
        needed = 1 + max(place for place in places if place is not None)
        if len(camera.params) != needed:
            raise ValueError(
                f"{camera.model} has {needed} parameters, got {len(camera.params)}: {camera.params}"
            )
        fx, fy, cx, cy, *distortion = (
            0.0 if place is None else camera.params[place] for place in places
        )
        intrinsics = np.array([[fx, 0, cx - _HALF_PIXEL], [0, fy, cy - _HALF_PIXEL], [0, 0, 1]])
        fisheye = camera.model.endswith("FISHEYE")
        return cls(intrinsics, np.array(distortion), fisheye, (camera.width, camera.height))

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Where the rays of pixels (N, 2) meet the plane z = 1: (N, 2)."""
        points = np.asarray(pixels, np.float64)[:, None]
        arguments = (points, self.intrinsics, self.distortion)
        if self.fisheye:
            return cv2.fisheye.undistortPoints(*arguments, criteria=_CRITERIA)[:, 0]
        return cv2.undistortPoints(*arguments, criteria=_CRITERIA)[:, 0]


class Undistortion:
    """From the images of a lens to those of a pinhole camera that looks the same way.

    The pinhole image has the shape of the lens's, its longest side ``max_side`` pixels at most, its
    principal point in its middle, and the widest view of which the lens saw every pixel.

    Attributes:
        intrinsics: (3, 3) of the pinhole camera, the centre of the first pixel at (0, 0).
        size: (width, height).
        valid: (H, W) bool, the pixels that the lens saw.
    """

    def __init__(self, lens: Lens, max_side: int | None = None) -> None:
        self.lens = lens
        factor = min(1.0, (max_side or np.inf) / max(lens.size))
        width, height = (max(1, round(factor * side)) for side in lens.size)
        self.size = (width, height)
        half = np.array([width, height]) / 2
        reach = self._reach(half)
        focals = half / reach
        self.intrinsics = np.diag([*focals, 1.0])
        self.intrinsics[:2, 2] = half - _HALF_PIXEL
        # Where the lens resolves more than the pinhole camera, its pixels are averaged.
        self._oversampling = max(1, int(np.ceil(lens.intrinsics[0, 0] / focals[0] - 1e-6)))
        self._maps = self._lens_pixels()
        self.valid = self._averaged(self._inside().astype(np.float32)) > 1 - 1e-3

    def image(self, rgb: np.ndarray) -> np.ndarray:
        """The pinhole camera's image (H, W, 3) of one of the lens's; black where it saw nothing.

        Raises ValueError where the image is of another size than the lens's.
        """
        self._check(rgb)
        resampled = self._averaged(cv2.remap(rgb, *self._maps, cv2.INTER_LINEAR))
        return np.where(self.valid[..., None], resampled, 0)

    def mask(self, keep: np.ndarray) -> np.ndarray:
        """Pixels (H, W) that come from none but the pixels that ``keep`` (h, w) bool says."""
        self._check(keep)
        seen = cv2.remap(keep.astype(np.float32), *self._maps, cv2.INTER_LINEAR)
        return self.valid & (self._averaged(seen) > 1 - 1e-3)

    def _reach(self, half: np.ndarray) -> np.ndarray:
        """Half width and height on the plane z = 1 of the largest view without an empty pixel."""
        last = np.array(self.lens.size) - 1
        along = np.linspace([0, 0], last, _BORDER_POINTS)
        sides = [(along[:, :1], first) for first in (0, last[1])]
        border = [np.column_stack([x, np.full_like(x, y)]) for x, y in sides]
        border += [np.column_stack([np.full(_BORDER_POINTS, x), along[:, 1]]) for x in (0, last[0])]
        rays = self.lens.rays(np.concatenate(border))
        if not np.isfinite(rays).all():
            raise ValueError(f"the lens does not see the border of its own image: {self.lens}")
        # A view holds a ray of the border if the ray is within both of its half sides.
        aspect = half / half[0]
        return aspect * np.min(np.max(np.abs(rays) / aspect, axis=1))

    def _lens_pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the lens's image shows each pixel, oversampled: x and y float32."""
        fine = self.intrinsics.copy()
        fine[:2, 2] += _HALF_PIXEL
        fine[:2] *= self._oversampling
        fine[:2, 2] -= _HALF_PIXEL
        size = tuple(self._oversampling * side for side in self.size)
        module = cv2.fisheye if self.lens.fisheye else cv2
        return module.initUndistortRectifyMap(
            self.lens.intrinsics, self.lens.distortion, np.eye(3), fine, size, cv2.CV_32FC1
        )

    def _inside(self) -> np.ndarray:
        x, y = self._maps
        width, height = self.lens.size
        slack = 1e-2
        return (x >= -slack) & (y >= -slack) & (x <= width - 1 + slack) & (y <= height - 1 + slack)

    def _averaged(self, fine: np.ndarray) -> np.ndarray:
        if self._oversampling == 1:
            return fine
        return cv2.resize(fine, self.size, interpolation=cv2.INTER_AREA)

    def _check(self, pixels: np.ndarray) -> None:
        height, width = pixels.shape[:2]
        if (width, height) != self.lens.size:
            raise ValueError(
                f"the image is {width}x{height}, but its camera {self.lens.size[0]}x"
                f"{self.lens.size[1]}"
            )
