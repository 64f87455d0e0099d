"""BlendedMVS, BlendedMVS+ and BlendedMVS++ (Yao et al., CVPR 2020)."""

from pathlib import Path

import numpy as np

from dust3r.datasets.indexed_pairs import IndexedPairs, ViewFiles, load_records, view_files
from dust3r.utils.spec import DATASETS

PAIRS = np.dtype(
    [("seq_low", "u8"), ("seq_high", "u4"), ("img1", "i4"), ("img2", "i4"), ("score", "f4")]
)


@DATASETS.register()
class BlendedMVS(IndexedPairs):
    """Rendered views of reconstructed objects, buildings and landscapes; scales are arbitrary.

    ROOT holds ``blendedmvs_pairs.npy``, records of seq_low, seq_high, img1, img2 and score, and
    ``<scene>/<image>.jpg``, ``.exr`` and ``.npz``, where the scene is the project's 24 hexadecimal
    digits (seq_high is the first 8 of them as a number, seq_low the other 16) and the image has 8
    digits. Scenes whose seq_low is a multiple of ten are held out.
    """

    INDEX = "blendedmvs_pairs.npy"
    PREPROCESS = "preprocess_blendedmvs.py"

    def _read_pairs(self, path: Path) -> np.ndarray:
        return load_records(path, ("seq_low", "seq_high", "img1", "img2"))

    def _held_out(self, pairs: np.ndarray) -> np.ndarray:
        return pairs["seq_low"] % 10 == 0

    def _files(self, idx: int) -> tuple[ViewFiles, ViewFiles]:
        pair = self.pairs[idx]
        folder = self.root / scene_name(int(pair["seq_high"]), int(pair["seq_low"]))
        first, second = (
            view_files(folder, image_name(int(pair[key])), self.root) for key in ("img1", "img2")
        )
        return first, second


def scene_name(seq_high: int, seq_low: int) -> str:
    """The project's name, 24 hexadecimal digits."""
    return f"{seq_high:08x}{seq_low:016x}"


def image_name(number: int) -> str:
    return f"{number:08d}"
