"""StaticThings3D (Schroeppel et al., 3DV 2022): FlyingThings3D with things that do not move."""

from pathlib import Path

import numpy as np

from dust3r.datasets.base import RawView
from dust3r.datasets.combine import Draw
from dust3r.datasets.cropping import Size
from dust3r.datasets.held_out import held_out_scenes
from dust3r.datasets.indexed_pairs import IndexedPairs, ViewFiles, load_records, view_files
from dust3r.utils.spec import DATASETS

PAIRS = np.dtype(
    [("scene", "S1"), ("seq", "i4"), ("cam1", "S1"), ("im1", "i4"), ("cam2", "S1"), ("im2", "i4")]
)
CAMERAS = {"l": "left", "r": "right"}
# Beyond this depth, in the data set's unit, there is the scene's painted backdrop.
BACKGROUND = 200.0

_PASSES = ("clean", "final")


@DATASETS.register()
class StaticThings3D(IndexedPairs):
    """Rendered heaps of things, each view in a clean and a final pass (with blur and glare).

    ROOT holds ``staticthings_pairs.npy``, records of scene (A, B or C), seq, cam1, im1, cam2 and
    im2 (cameras l and r), and ``TRAIN/<scene>/<seq>/<left|right>/<im>_clean.jpg``,
    ``<im>_final.jpg``, ``<im>.exr`` and ``<im>.npz``, numbers of four digits. A tenth of the
    sequences is held out, by a hash of their names; none of a single one.

    Args:
        mask_bg: take depth beyond 200 units, the backdrop's, away: True, False, or 'rand' for half
            of the samples.
        render_pass: 'clean', 'final', or 'rand' for either by chance in each view.
        Others as ``IndexedPairs``.

    Raises:
        ValueError: ``mask_bg`` or ``render_pass`` is not one of these; others as ``IndexedPairs``.
    """

    INDEX = "staticthings_pairs.npy"
    PREPROCESS = "preprocess_staticthings3d.py"

    def __init__(
        self,
        split: str = "all",
        *,
        mask_bg: bool | str = "rand",
        render_pass: str = "rand",
        **options: object,
    ) -> None:
        if mask_bg not in (True, False, "rand"):
            raise ValueError(f"mask_bg={mask_bg!r}: expected True, False or 'rand'")
        if render_pass not in (*_PASSES, "rand"):
            raise ValueError(f"render_pass={render_pass!r}: expected 'clean', 'final' or 'rand'")
        self.mask_bg = mask_bg
        self.render_pass = render_pass
        super().__init__(split, **options)

    def draw_paths(self, draw: Draw) -> list[Path]:
        # What ``load`` draws first is which passes it reads.
        rng = np.random.default_rng((*self._seeds(draw), draw.index))
        return [files.image for files in self._drawn_files(draw.index, rng)]

    def _read_pairs(self, path: Path) -> np.ndarray:
        return load_records(path, PAIRS.names)

    def _held_out(self, pairs: np.ndarray) -> np.ndarray:
        sequences, where = np.unique(pairs[["scene", "seq"]], return_inverse=True)
        return held_out_scenes([sequence_name(*pair.tolist()) for pair in sequences])[where]

    def _files(self, idx: int) -> tuple[ViewFiles, ViewFiles]:
        render_pass = _PASSES[0] if self.render_pass == "rand" else self.render_pass
        return self._of_passes(idx, [render_pass] * 2)

    def _get_views(self, idx: int, resolution: Size, rng: np.random.Generator) -> list[RawView]:
        files = self._drawn_files(idx, rng)
        masked = bool(rng.integers(2)) if self.mask_bg == "rand" else self.mask_bg
        views = [self._view(one, idx) for one in files]
        if masked:
            for view in views:
                view.depthmap[view.depthmap > BACKGROUND] = 0
        return views

    def _drawn_files(self, idx: int, rng: np.random.Generator) -> tuple[ViewFiles, ViewFiles]:
        if self.render_pass != "rand":
            return self._files(idx)
        return self._of_passes(idx, [_PASSES[i] for i in rng.integers(len(_PASSES), size=2)])

    def _of_passes(self, idx: int, passes: list[str]) -> tuple[ViewFiles, ViewFiles]:
        scene, seq, *cameras_and_numbers = (
            self.pairs[idx][key] for key in ("scene", "seq", "cam1", "im1", "cam2", "im2")
        )
        folder = self.root / sequence_name(scene, seq)
        names = (view_name(*cameras_and_numbers[:2]), view_name(*cameras_and_numbers[2:]))
        first, second = (
            view_files(folder, name, self.root, f"_{render_pass}")
            for name, render_pass in zip(names, passes, strict=True)
        )
        return first, second


def sequence_name(scene: bytes | str, seq: int) -> str:
    """A sequence's folder in ROOT: the pairs are all of the release's training part."""
    return f"TRAIN/{_text(scene)}/{int(seq):04d}"


def view_name(camera: bytes | str, number: int) -> str:
    """What a view's files begin with in its sequence's folder."""
    return f"{CAMERAS[_text(camera)[0]]}/{int(number):04d}"


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
