"""What data sets share whose views are a JPEG, an EXR depth map and an NPZ of the camera.

Such a data set is a folder ROOT with an index of pairs and, for each view, three files beside each
other: ``<view>.jpg``, ``<view>.exr`` (depth z in the data set's unit, 0 = none) and ``<view>.npz``
with ``intrinsics`` (3, 3) and ``cam2world`` (4, 4), or ``R_cam2world`` (3, 3) and ``t_cam2world``
(3,). This is the form that DUSt3R's preprocessing of BlendedMVS, MegaDepth, StaticThings3D and
Waymo has made known.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dust3r.datasets.bad_samples import naming_sample
from dust3r.datasets.base import BaseStereoViewDataset, RawView
from dust3r.datasets.cropping import Size
from dust3r.datasets.held_out import held_out_scenes
from dust3r.datasets.resolution import Resolution
from dust3r.datasets.transforms import Transform
from dust3r.utils.exr import read_exr_depth
from dust3r.utils.image import ImgNorm
from dust3r.utils.npz import load_arrays


@dataclass(frozen=True)
class ViewFiles:
    """Where the three files of a view are, and its name for people."""

    image: Path
    depth: Path
    camera: Path
    label: str


class IndexedPairs(BaseStereoViewDataset):
    """Pairs of a folder ROOT with an index; a subclass reads the index and names the files.

    Args:
        split: 'train', or 'val' or 'test', which are the same held-out pairs; 'all', the default,
            for every pair, as published commands have it that name no split.
        ROOT: folder of the processed data set.
        is_metric_scale: None for what the data set is known to be.
        Others as ``BaseStereoViewDataset``.

    Raises:
        FileNotFoundError: ``ROOT`` or its index is not there.
        ValueError: the index is damaged or incomplete, or the split has no pair.
    """

    INDEX: ClassVar[str]
    PREPROCESS: ClassVar[str]
    METRIC: ClassVar[bool] = False

    def __init__(
        self,
        split: str = "all",
        *,
        ROOT: str | Path,
        resolution: Resolution,
        transform: Transform | type[Transform] = ImgNorm,
        aug_crop: int = 0,
        seed: int | None = None,
        is_metric_scale: bool | None = None,
        **options: Any,
    ) -> None:
        metric = self.METRIC if is_metric_scale is None else is_metric_scale
        super().__init__(
            split, resolution, transform, aug_crop, seed, is_metric_scale=metric, **options
        )
        self.root = Path(ROOT)
        self.pairs = self._pairs_of_split(self._read_pairs(self._index_path()))

    @abstractmethod
    def _read_pairs(self, path: Path) -> np.ndarray:
        """All pairs, one in each row, of the index in ``path``."""

    @abstractmethod
    def _held_out(self, pairs: np.ndarray) -> np.ndarray:
        """Mask (P,) of the pairs that are kept from training."""

    @abstractmethod
    def _files(self, idx: int) -> tuple[ViewFiles, ViewFiles]:
        """The files of the two views of pair ``idx``."""

    def __len__(self) -> int:
        return len(self.pairs)

    def _get_paths(self, idx: int) -> list[Path]:
        return [files.image for files in self._files(idx)]

    def _get_views(self, idx: int, resolution: Size, rng: np.random.Generator) -> list[RawView]:
        return [self._view(files, idx) for files in self._files(idx)]

    def _view(self, files: ViewFiles, idx: int) -> RawView:
        image = self.read_image(files.image, idx)
        with naming_sample(files.depth, idx):
            depth = read_exr_depth(files.depth)
        with naming_sample(files.camera, idx):
            intrinsics, pose = read_camera(files.camera)
        return RawView(
            image=image,
            depthmap=depth,
            camera_pose=pose,
            camera_intrinsics=intrinsics,
            dataset=self.root.name,
            label=files.label,
            instance=str(files.image),
        )

    def _index_path(self) -> Path:
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"ROOT={str(self.root)!r} is not a folder; give a processed data set"
            )
        path = self.root / self.INDEX
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.root} has no {self.INDEX}; it is written by "
                f"datasets_preprocess/{self.PREPROCESS}"
            )
        return path

    def _pairs_of_split(self, pairs: np.ndarray) -> np.ndarray:
        chosen = pairs
        if self.split != "all":
            held_out = self._held_out(pairs)
            chosen = pairs[~held_out if self.split == "train" else held_out]
        if len(chosen) == 0:
            raise ValueError(
                f"{self.root / self.INDEX} has no pair for split={self.split!r} among its "
                f"{len(pairs)} pairs; preprocess more scenes or take split='all'"
            )
        return chosen


class ScenePairs(IndexedPairs):
    """Pairs whose index is an NPZ of scenes (S,), images (N,) and pairs (P, 3 or more).

    A pair's first three numbers are its scene and its two images, counted from 0; what follows,
    such as a score, is not read. ``pairs`` may also be a structured array of the same fields.
    """

    IMAGES_KEY: ClassVar[str] = "images"

    def _read_pairs(self, path: Path) -> np.ndarray:
        self.scenes, self.images, pairs, _ = load_scene_pairs(path, self.IMAGES_KEY)
        return pairs

    def _held_out(self, pairs: np.ndarray) -> np.ndarray:
        return held_out_scenes(self.scenes.tolist())[pairs[:, 0]]

    def _files(self, idx: int) -> tuple[ViewFiles, ViewFiles]:
        scene, *images = self.pairs[idx].tolist()
        folder = self.root / self._folder(str(self.scenes[scene]))
        first, second = (view_files(folder, str(self.images[i]), self.root) for i in images)
        return first, second

    def _folder(self, scene: str) -> str:
        """The folder in ROOT of a scene's name."""
        return scene


def view_files(folder: Path, name: str, root: Path, image: str = "") -> ViewFiles:
    """The files of view ``name`` in ``folder``; the image's name goes on with ``image``."""
    return ViewFiles(
        folder / f"{name}{image}.jpg",
        folder / f"{name}.exr",
        folder / f"{name}.npz",
        f"{folder.relative_to(root).as_posix()}/{name}",
    )


def read_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (3, 3) and pose (4, 4) camera-to-world, float32, of a view's NPZ.

    Raises FileNotFoundError where it is missing, ValueError where it is damaged or incomplete.
    """
    arrays = load_arrays(path, ("intrinsics",), ("cam2world", "R_cam2world", "t_cam2world"))
    if "cam2world" in arrays:
        pose = arrays["cam2world"]
    elif {"R_cam2world", "t_cam2world"} <= arrays.keys():
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = arrays["R_cam2world"], arrays["t_cam2world"].ravel()
    else:
        raise ValueError(f"{path} has neither cam2world nor R_cam2world and t_cam2world")
    return arrays["intrinsics"].astype(np.float32), pose.astype(np.float32)


def load_scene_pairs(
    path: Path, images_key: str = "images"
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scenes (S,), images (N,), pairs (P, 3) and scores (P,) of the index that ``ScenePairs`` has.

    A score is a pair's fourth number, or stands in an array ``scores``, or is 1. Raises ValueError
    where the index is damaged or its numbers are out of range.
    """
    arrays = load_arrays(path, ("scenes", images_key, "pairs"), ("scores",))
    scenes, images = arrays["scenes"], arrays[images_key]
    columns = _as_columns(path, arrays["pairs"])
    pairs = columns[:, :3].astype(int)
    for column, bound in enumerate((len(scenes), len(images), len(images))):
        outside = np.flatnonzero((pairs[:, column] < 0) | (pairs[:, column] >= bound))
        if len(outside):
            row = int(outside[0])
            raise ValueError(
                f"{path}: pair {row} is {pairs[row].tolist()}, out of range for {len(scenes)} "
                f"scenes and {len(images)} images"
            )
    scores = arrays.get("scores", columns[:, 3] if columns.shape[1] > 3 else np.ones(len(pairs)))
    return scenes, images, pairs, scores


def load_records(path: Path, fields: Sequence[str]) -> np.ndarray:
    """A structured array (P,) of an NPY file with these fields among its own.

    Raises ValueError where the file is damaged, pickled, or lacks a field.
    """
    try:
        records = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}; preprocess the data again") from error
    names = records.dtype.names if isinstance(records, np.ndarray) else None
    if not names or set(fields) - set(names) or records.ndim != 1:
        raise ValueError(
            f"{path} is no list of pairs: expected a structured array with the fields "
            f"{', '.join(fields)}, got {', '.join(names) if names else 'none'}"
        )
    return records


def _as_columns(path: Path, pairs: np.ndarray) -> np.ndarray:
    """An array of pairs, structured or not, as columns (P, 3 or more)."""
    if pairs.dtype.names and len(pairs.dtype.names) >= 3:
        return np.stack([pairs[name].astype(float) for name in pairs.dtype.names], 1)
    if pairs.ndim != 2 or pairs.shape[1] < 3:
        raise ValueError(
            f"{path}: 'pairs' must be rows of a scene and two images, got {pairs.shape} "
            f"{pairs.dtype}"
        )
    return pairs
