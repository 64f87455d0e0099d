"""Depth maps as OpenEXR files, the form in which DUSt3R's processed data sets keep them.

One 32-bit float channel ``Y``, losslessly compressed: what ``cv2.imwrite`` makes of a float32
(H, W) array where OpenCV is built with OpenEXR. Wheels of OpenCV 5 are not, and those of OpenCV 4
want ``OPENCV_IO_ENABLE_OPENEXR`` set before they are imported, so files are read and written by
the format's own library (https://openexr.com), whose files either understands.
"""

import errno
import os
from pathlib import Path

import numpy as np
import OpenEXR

from dust3r.utils.files import atomic_path

_CHANNELS = ("Y", "Z", "R")


def read_exr_depth(path: str | Path) -> np.ndarray:
    """Depth map (H, W) float32 of an EXR file, in the file's unit; values are as stored.

    Of a file with several channels the first of Y, Z and R is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no EXR file, is cut short, or has no such channel.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        # The channels live as long as the file is open.
        with OpenEXR.File(str(path), separate_channels=True) as file:
            maps = {name: channel.pixels.copy() for name, channel in file.channels().items()}
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or no EXR file ({error}); preprocess the scene again"
        ) from error
    names = [name for name in _CHANNELS if name in maps] or (list(maps) if len(maps) == 1 else [])
    if not names:
        raise ValueError(
            f"{path} has the channels {', '.join(maps) or '(none)'}; a depth map is one of "
            f"{', '.join(_CHANNELS)}"
        )
    return np.ascontiguousarray(maps[names[0]], dtype=np.float32)


def write_exr_depth(path: str | Path, depth: np.ndarray) -> None:
    """Write a depth map (H, W) as 32-bit floats, whole or not at all; 0 stands for no depth.

    Values that are not finite or not positive become 0.

    Raises:
        ValueError: ``depth`` is no array of two dimensions, or is empty.
        OSError: the file cannot be written; ``errno`` is ENOSPC where the disk is full.
    """
    depth = np.asarray(depth)
    if depth.ndim != 2 or depth.size == 0:
        raise ValueError(f"{path}: a depth map is (H, W) and not empty, got {depth.shape}")
    stored = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32, order="C")
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with atomic_path(path) as temporary:
        try:
            with OpenEXR.File(header, {"Y": stored}) as file:
                file.write(str(temporary))
        except RuntimeError as error:
            # The library's errors have no number, but end with the system's words for it.
            full = os.strerror(errno.ENOSPC) in str(error)
            reason = errno.ENOSPC if full else errno.EIO
            message = f"the depth map could not be written ({error})"
            raise OSError(reason, message, str(path)) from error
