"""MegaDepth (Li and Snavely, CVPR 2018): photographs of landmarks from the internet."""

from pathlib import Path

import numpy as np

from dust3r.datasets.indexed_pairs import ScenePairs
from dust3r.utils.spec import DATASETS

# The two landmarks on which descriptors are commonly validated.
HELD_OUT_LANDMARKS = ("0015", "0022")


@DATASETS.register()
class MegaDepth(ScenePairs):
    """Tourists' photographs, many of them upright, with multi-view stereo depth of free scale.

    ROOT holds ``all_metadata.npz`` with ``scenes`` ("0015 0": landmark and its reconstruction),
    ``images`` and ``pairs`` (rows of scene, image, image, score), and
    ``<landmark>/<reconstruction>/<image>.jpg``, ``.exr`` and ``.npz``. Landmarks 0015 and 0022 are
    held out.
    """

    INDEX = "all_metadata.npz"
    PREPROCESS = "preprocess_megadepth.py"

    def _read_pairs(self, path: Path) -> np.ndarray:
        pairs = super()._read_pairs(path)
        bare = Path(str(self.images[0])).stem if len(self.images) else ""
        if len(pairs) and bare != self.images[0]:
            # Some lists name the photographs' files, others what the views' files begin with.
            scene, first, _ = pairs[0].tolist()
            folder = self.root / self._folder(str(self.scenes[scene]))
            if not (folder / f"{self.images[first]}.npz").exists():
                self.images = np.array([Path(name).stem for name in self.images.tolist()])
        return pairs

    def _held_out(self, pairs: np.ndarray) -> np.ndarray:
        landmarks = np.array([name.startswith(HELD_OUT_LANDMARKS) for name in self.scenes.tolist()])
        return landmarks[pairs[:, 0]]

    def _folder(self, scene: str) -> str:
        return "/".join(scene.split())
