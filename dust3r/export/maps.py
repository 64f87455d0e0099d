"""Maps of every image as NumPy archives."""

from pathlib import Path

import numpy as np

from dust3r.export.folders import whole_folder
from dust3r.export.frames import stems_of
from dust3r.reconstruction import Reconstruction

MAPS = "maps"

_README = """\
One NumPy archive per image: numpy.load("NAME.npz") gives

  name                 file name of the photograph, as it was given
  depth                (H, W) float32, z along the camera's axis, in scene units
  sigma                (H, W) float32, standard deviation of that depth, in scene units
                       (absent where the model states none)
  radius90             (H, W) float32, the true depth is within so much of ``depth`` with a
                       probability of 90%, in scene units (absent without a calibration)
  sigma_of             'depth'; or 'point', where sigma is the root of the point's expected squared
                       error, and radius90 that of a ball around it (absent without sigma)
  confidence           (H, W) float32, of the model; only its order means something
  valid                (H, W) bool, what may be used as a point
  intrinsics           (3, 3) in pixels of these maps
  pose                 (4, 4) camera-to-world
  original_size        (width, height) of the upright photograph
  original_intrinsics  (3, 3) in pixels of the upright photograph
  to_original          (3, 3) from (u, v, 1) of these maps to (u, v, 1) of the upright photograph:
                       undoes scale and crop

Axes are OpenCV's: x right, y down, z forward. The centre of the first pixel is at (0, 0).
A world point of pixel (u, v) is pose @ [depth * inv(intrinsics) @ (u, v, 1), 1].
"""


def write_maps(reconstruction: Reconstruction, folder: str | Path) -> Path:
    """``folder/NAME.npz`` for every image, and a README.txt that says what the keys are.

    Keys: ``depth``, ``confidence``, ``valid``, where the model states it ``sigma`` and what that is
    of, ``sigma_of``, where it is calibrated ``radius90``, ``intrinsics`` and ``pose``, all of the
    network's image; ``original_size``, ``original_intrinsics`` and ``to_original`` of the upright
    original; ``name`` as it was given.

    Raises FileExistsError where the folder holds other files.
    """
    originals = reconstruction.original_intrinsics()
    with whole_folder(folder) as temporary:
        (temporary / "README.txt").write_text(_README, encoding="utf-8")
        for index, stem in enumerate(stems_of(reconstruction)):
            source = reconstruction.sources[index]
            maps = {
                "name": np.array(source.name),
                "depth": reconstruction.depthmaps[index],
                "confidence": reconstruction.confidences[index],
                "valid": reconstruction.valid[index],
                "intrinsics": reconstruction.intrinsics[index],
                "pose": reconstruction.poses[index],
                "original_size": np.array(source.size),
                "original_intrinsics": originals[index],
                "to_original": source.to_original,
            }
            if reconstruction.deviations is not None:
                maps["sigma"] = reconstruction.deviations[index]
                maps["sigma_of"] = np.array(reconstruction.deviations_of)
            if reconstruction.radii90 is not None:
                maps["radius90"] = reconstruction.radii90[index]
            np.savez(temporary / f"{stem}.npz", **maps)
    return Path(folder)
