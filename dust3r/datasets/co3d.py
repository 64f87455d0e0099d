"""Common Objects in 3D, version 2 (Reizenstein et al., ICCV 2021)."""

from pathlib import Path

import numpy as np

from dust3r.datasets.bad_samples import naming_sample
from dust3r.datasets.object_sequences import ObjectSequences
from dust3r.utils.spec import DATASETS

_MOST_STEPS = 65535


@DATASETS.register()
class Co3d(ObjectSequences):
    """Videos around everyday objects; depth and poses are a reconstruction's, of no known scale.

    A sequence ``ROOT/<category>/<sequence>`` has ``images/frameNNNNNN.jpg`` and ``.npz``
    (``camera_pose`` camera-to-world, ``camera_intrinsics``, ``maximum_depth``),
    ``depths/frameNNNNNN.jpg.geometric.png`` (uint16, 65535 steps to ``maximum_depth``, 0 = none)
    and ``masks/frameNNNNNN.png``.
    """

    PREPROCESS = "preprocess_co3d.py"
    METRIC = False

    def _image_path(self, folder: Path, frame: int) -> Path:
        return folder / "images" / f"frame{frame:06d}.jpg"

    def _mask_path(self, folder: Path, frame: int) -> Path:
        return folder / "masks" / f"frame{frame:06d}.png"

    def _depth_and_camera(self, folder: Path, frame: int, idx: int) -> tuple[np.ndarray, ...]:
        camera = folder / "images" / f"frame{frame:06d}.npz"
        intrinsics, pose, maximum_depth = self._read_camera(camera, idx, "maximum_depth")
        with naming_sample(camera, idx):
            if not 0 < maximum_depth < np.inf:
                raise ValueError(f"its maximum_depth is {maximum_depth}; leave the frame out")
        path = folder / "depths" / f"frame{frame:06d}.jpg.geometric.png"
        depth = self.read_depth(path, idx, unit=_MOST_STEPS / float(maximum_depth))
        return depth, intrinsics, pose
