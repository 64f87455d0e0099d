"""Cameras for COLMAP to start from: known ones, and first guesses."""

import logging
import math
from pathlib import Path

import numpy as np
import pycolmap

from dust3r.export.colmap import HALF_PIXEL

log = logging.getLogger(__name__)

Size = tuple[int, int]

# COLMAP's own: the model, and the focal of a photograph that tells none as a multiple of its longer
# side.
CAMERA_MODEL = "SIMPLE_RADIAL"
FOCAL_FACTOR = 1.2


def pinhole_camera(intrinsics: np.ndarray, size: Size) -> pycolmap.Camera:
    """A camera whose focals are known.

    Args:
        intrinsics: (3, 3) with the centre of the first pixel at (0, 0).
        size: (width, height).
    """
    (fx, _, cx), (_, fy, cy) = np.asarray(intrinsics, np.float64)[:2]
    camera = pycolmap.Camera(
        model="PINHOLE",
        width=size[0],
        height=size[1],
        params=[fx, fy, cx + HALF_PIXEL, cy + HALF_PIXEL],
    )
    camera.has_prior_focal_length = True
    return camera


def guessed_camera(
    size: Size,
    *,
    focal: float | None = None,
    photograph: str | Path | None = None,
    model: str = CAMERA_MODEL,
) -> pycolmap.Camera:
    """A camera to start from, with its principal point in the middle.

    Args:
        size: (width, height) of the upright image.
        focal: in pixels, where it is known.
        photograph: file whose EXIF data tell the focal, else; 1.2 times the longer side where there
            is none.
        model: of COLMAP's, such as ``'SIMPLE_RADIAL'`` or ``'PINHOLE'``.

    Raises:
        ValueError: a focal that is not above 0, or an unknown model.
    """
    if focal is not None and not 0 < focal < math.inf:
        raise ValueError(f"a focal of {focal} pixels is none: it must be above 0")
    if model not in pycolmap.CameraModelId.__members__ or model == "INVALID":
        known = ", ".join(name for name in pycolmap.CameraModelId.__members__ if name != "INVALID")
        raise ValueError(f"the camera model {model!r} is unknown to COLMAP; it knows {known}")
    known_focal = focal if focal is not None or photograph is None else _exif_focal(photograph)
    camera = pycolmap.Camera.create_from_model_name(
        0, model, known_focal or FOCAL_FACTOR * max(size), *size
    )
    camera.has_prior_focal_length = known_focal is not None
    return camera


def _exif_focal(photograph: str | Path) -> float | None:
    try:
        camera = pycolmap.infer_camera_from_image(Path(photograph))
    except (RuntimeError, ValueError) as error:
        # Formats that COLMAP does not read; a focal is a help and no need.
        log.debug("no focal of %s: %s", photograph, error)
        return None
    return camera.mean_focal_length() if camera.has_prior_focal_length else None
