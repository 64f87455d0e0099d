"""WildRGB-D: RGB-D objects in the wild (Xia et al., CVPR 2024)."""

from pathlib import Path

import numpy as np

from dust3r.datasets.object_sequences import ObjectSequences
from dust3r.utils.spec import DATASETS


@DATASETS.register()
class WildRGBD(ObjectSequences):
    """Videos around objects from a phone with a depth sensor; metres.

    A scene ``ROOT/<category>/<scene>`` has ``rgb/NNNNN.jpg``, ``depth/NNNNN.png`` (uint16
    millimetres, 0 = none), ``masks/NNNNN.png`` and ``metadata/NNNNN.npz`` (``camera_pose``
    camera-to-world, ``camera_intrinsics``).
    """

    PREPROCESS = "preprocess_wildrgbd.py"
    METRIC = True

    def _image_path(self, folder: Path, frame: int) -> Path:
        return folder / "rgb" / f"{frame:05d}.jpg"

    def _mask_path(self, folder: Path, frame: int) -> Path:
        return folder / "masks" / f"{frame:05d}.png"

    def _depth_and_camera(self, folder: Path, frame: int, idx: int) -> tuple[np.ndarray, ...]:
        intrinsics, pose = self._read_camera(folder / "metadata" / f"{frame:05d}.npz", idx)
        return self.read_depth(folder / "depth" / f"{frame:05d}.png", idx), intrinsics, pose
