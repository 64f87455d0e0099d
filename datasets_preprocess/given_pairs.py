"""Lists of pairs that somebody else chose, such as those published for DUSt3R."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets_preprocess.layout import SceneData
from datasets_preprocess.rgbd.recording import Recording
from dust3r.utils.npz import load_arrays

_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class GivenPairs:
    """Pairs of a scene by name: ``images`` (N names without suffix), ``pairs`` (P, 3) of two
    positions in them and a score, 1 where none is given."""

    images: tuple[str, ...]
    pairs: np.ndarray

    @classmethod
    def of_scene(cls, root: Path, scene: str) -> "GivenPairs | None":
        """What ``root`` lists for ``scene``: the arrays ``images`` and ``pairs`` of
        ``<scene>.npz`` or of a .npz file in the folder ``<scene>``; None where there is neither.

        Raises ValueError for a file without these arrays.
        """
        files = [root / f"{scene}.npz", *sorted((root / scene).glob("*.npz"))]
        files = [file for file in files if file.is_file()]
        if not files:
            return None
        stored = load_arrays(files[0], ("images", "pairs"), mend="give another list of pairs")
        images, pairs = stored["images"], np.asarray(stored["pairs"], np.float64)
        if pairs.ndim != 2 or pairs.shape[1] < 2:
            raise ValueError(f"{files[0]}: pairs must be (P, 2 or more), got {pairs.shape}")
        score = pairs[:, 2:3] if pairs.shape[1] > 2 else np.ones((len(pairs), 1))
        if (pairs[:, :2] < 0).any() or (pairs[:, :2] >= len(images)).any():
            raise ValueError(f"{files[0]}: pairs name images beyond the {len(images)} listed")
        names = tuple(_stem(str(image)) for image in images)
        return cls(names, np.concatenate([pairs[:, :2], score], 1))

    def keep_listed(self, recording: Recording) -> None:
        """Leave only the frames of the list in ``recording``, and count those it lacks."""
        used = {self.images[int(i)] for i in np.unique(self.pairs[:, :2])}
        recording.frames = [frame for frame in recording.frames if frame.name in used]
        found = {frame.name for frame in recording.frames}
        for name in sorted(used - found):
            recording.skip("in the list of pairs, but not usable", name)

    def among(self, scene: SceneData) -> SceneData:
        """The scene with those of the listed pairs whose frames it has.

        Raises ValueError where there is none.
        """
        place = {name: number for number, name in enumerate(scene.images)}
        ends = [[place.get(self.images[int(i)], -1) for i in row] for row in self.pairs[:, :2]]
        known = np.array(ends, int).reshape(-1, 2)
        kept = (known >= 0).all(1)
        if not kept.any():
            raise ValueError(
                f"none of the {len(self.pairs)} pairs listed for the scene is of frames it has"
            )
        return replace(scene, pairs=np.concatenate([known, self.pairs[:, 2:]], 1)[kept])


def _stem(name: str) -> str:
    """A name without an image's suffix; other dots, as in a time, stay."""
    path = Path(name)
    return path.stem if path.suffix.lower() in _SUFFIXES else path.name


def listed_scenes(root: Path | None, scenes: Sequence[str]) -> dict[str, GivenPairs] | None:
    """The lists in ``root`` for those of the scenes that it has; None for no ``root``.

    Raises FileNotFoundError where ``root`` has no list for any of them.
    """
    if root is None:
        return None
    found = {scene: GivenPairs.of_scene(root, scene) for scene in scenes}
    found = {scene: pairs for scene, pairs in found.items() if pairs is not None}
    if not found:
        raise FileNotFoundError(
            f"--precomputed_pairs {root} has no list for any of the {len(scenes)} scenes: expected "
            "<scene>.npz, or a .npz file in a folder <scene>"
        )
    return found
