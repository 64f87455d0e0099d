"""Views of Habitat's indoor scenes (Savva et al., ICCV 2019), rendered as DUSt3R's are."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from dust3r.datasets.bad_samples import naming_sample
from dust3r.datasets.base import SPLITS, BaseStereoViewDataset, RawView
from dust3r.datasets.cropping import Size
from dust3r.datasets.resolution import Resolution
from dust3r.datasets.transforms import Transform
from dust3r.utils.exr import read_exr_depth
from dust3r.utils.image import ImgNorm
from dust3r.utils.spec import DATASETS

VIEWS = 5
FIRST_VIEW = 1
INDEX = "Habitat_{size}_scenes_{split}.txt"

_SAME = {"val": "test", "test": "val"}


@DATASETS.register()
class Habitat(BaseStereoViewDataset):
    """Pairs of a central view and each of the four others around it.

    ROOT holds ``Habitat_<size>_scenes_<split>.txt`` with a line ``<folder>/<key>`` for every five
    views, and of each view ``<folder>/<key>_<view>.jpeg``, ``<key>_<view>_depth.exr`` (z, metres)
    and ``<key>_<view>_camera_params.json`` with camera_intrinsics, R_cam2world and t_cam2world.
    Views count from 1 (or from 0, where the first key has a view 0); the first one is the central.

    Args:
        size: the number in the index's name, as published commands begin with it; by default the
            largest that is there.
        split: 'train', 'val' or 'test' (either of the last two stands for the other where that is
            not there); 'all' for every index.
        ROOT: folder of the views.
        Others as ``BaseStereoViewDataset``.

    Raises:
        FileNotFoundError: ``ROOT`` or the split's index is not there.
        ValueError: the index is empty.
    """

    def __init__(
        self,
        size: int | None = None,
        *,
        split: str,
        ROOT: str | Path,
        resolution: Resolution,
        transform: Transform | type[Transform] = ImgNorm,
        aug_crop: int = 0,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(split, resolution, transform, aug_crop, seed, **options)
        self.root = Path(ROOT)
        indices = self._indices(size)
        lines = (line.strip() for index in indices for line in index.read_text().splitlines())
        self.keys = [line for line in lines if line]
        if not self.keys:
            raise ValueError(f"{' and '.join(str(index) for index in indices)}: no key in it")
        self._first = 0 if self._files(self.keys[0], 0)[2].is_file() else FIRST_VIEW

    def __len__(self) -> int:
        return len(self.keys) * (VIEWS - 1)

    def _indices(self, size: int | None) -> list[Path]:
        """The index files of the split."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"ROOT={str(self.root)!r} is not a folder; give one of views")
        if self.split == "all":
            found = [self._index(size, split) for split in SPLITS if split != "all"]
        else:
            found = [self._index(size, self.split)]
            if found[0] is None and self.split in _SAME:
                found = [self._index(size, _SAME[self.split])]
        present = [index for index in found if index is not None]
        if not present:
            expected = INDEX.format(size="<size>" if size is None else size, split=self.split)
            raise FileNotFoundError(
                f"{self.root} has no {expected}; preprocess_habitat.py writes it from views"
            )
        return present

    def _index(self, size: int | None, split: str) -> Path | None:
        if size is not None:
            path = self.root / INDEX.format(size=size, split=split)
            return path if path.is_file() else None
        pattern = re.compile(INDEX.format(size=r"(\d+)", split=split))
        sizes = [
            (int(match[1]), path)
            for path in self.root.iterdir()
            if (match := pattern.fullmatch(path.name))
        ]
        return max(sizes)[1] if sizes else None

    def _get_paths(self, idx: int) -> list[Path]:
        return [self._files(key, view)[0] for key, view in self._pair(idx)]

    def _get_views(self, idx: int, resolution: Size, rng: np.random.Generator) -> list[RawView]:
        return [self._view(idx, key, view) for key, view in self._pair(idx)]

    def _pair(self, idx: int) -> list[tuple[str, int]]:
        place, other = divmod(idx, VIEWS - 1)
        key = self.keys[place]
        return [(key, self._first), (key, self._first + 1 + other)]

    def _view(self, idx: int, key: str, view: int) -> RawView:
        image_path, depth_path, camera_path = self._files(key, view)
        image = self.read_image(image_path, idx)
        with naming_sample(depth_path, idx):
            depth = read_exr_depth(depth_path)
        with naming_sample(camera_path, idx):
            intrinsics, pose = read_camera_params(camera_path)
        return RawView(
            image=image,
            depthmap=depth,
            camera_pose=pose,
            camera_intrinsics=intrinsics,
            dataset=self.root.name,
            label=f"{key}_{view}",
            instance=str(image_path),
        )

    def _files(self, key: str, view: int) -> tuple[Path, Path, Path]:
        return view_files(self.root / key, view)


def view_files(key: Path, view: int) -> tuple[Path, Path, Path]:
    """Image, depth map and camera of a view; ``key`` is a path that their names go on from."""
    names = (f"{view}.jpeg", f"{view}_depth.exr", f"{view}_camera_params.json")
    image, depth, camera = (key.with_name(f"{key.name}_{name}") for name in names)
    return image, depth, camera


def read_camera_params(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (3, 3) and pose (4, 4) camera-to-world, float32, of a view's camera file.

    Raises FileNotFoundError where it is missing, ValueError where it is damaged.
    """
    try:
        return camera_of(json.loads(path.read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected camera_intrinsics (3x3), R_cam2world (3x3) and t_cam2world (3) "
            f"({type(error).__name__}: {error})"
        ) from error


def camera_of(stored: dict) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (3, 3) and pose (4, 4) of a camera file's content."""
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3] = np.reshape(stored["R_cam2world"], (3, 3))
    pose[:3, 3] = np.reshape(stored["t_cam2world"], 3)
    return np.reshape(stored["camera_intrinsics"], (3, 3)).astype(np.float32), pose
