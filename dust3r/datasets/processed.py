"""Pairs from the processed layout, which every RGB-D preprocessor of the project writes.

``ROOT/all_metadata.npz`` holds ``scenes`` (S names), ``images`` (N basenames), ``sceneids`` (N,),
``intrinsics`` (N, 3, 3), ``trajectories`` (N, 4, 4) camera-to-world and ``pairs`` (P, 2 or more:
image indices first); images are ``ROOT/<scene>/images/<basename>.jpg``, depths
``ROOT/<scene>/depth/<basename>.png`` (16 bits, millimetres, 0 = none). It may hold ``depth_unit``
(S,), steps a metre of a scene's depth where that is not 1000, and ``splits`` (S,), 'train', 'val',
'test' or '': the part of the official split that a scene belongs to.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from dust3r.datasets.base import BaseStereoViewDataset, RawView
from dust3r.datasets.cropping import Size
from dust3r.datasets.held_out import first_held_out, held_out_scenes
from dust3r.datasets.resolution import Resolution
from dust3r.datasets.transforms import Transform
from dust3r.utils.image import ImgNorm
from dust3r.utils.npz import load_arrays

METADATA = "all_metadata.npz"

_MILLIMETRES = 1000.0
_KEYS = ("scenes", "sceneids", "images", "intrinsics", "trajectories", "pairs")
_OPTIONAL_KEYS = ("depth_unit", "splits")


class ProcessedPairs(BaseStereoViewDataset):
    """Pairs of a processed data set, split as its metadata says, or else 90/10.

    Where scenes carry the official split, ``split`` is the scenes of that name. Else the split is
    by a hash of the scene's name, so that adding scenes leaves the others where they are; of two
    scenes or more at least one is on either side. With a single scene the last tenth of its frames
    is held out, and pairs across the border are left out.

    Args:
        split: 'train', or 'val' or 'test', which are the same held-out pairs where there is no
            official split; 'all' for every pair.
        ROOT: folder of the processed data set.
        metadata: file in ``ROOT`` to take in place of ``all_metadata.npz``, such as the one that
            ``datasets_preprocess.pairs_apart`` writes, of pairs without an overlap.
        Others as ``BaseStereoViewDataset``.

    Raises:
        FileNotFoundError: ``ROOT`` or its metadata is not there.
        ValueError: the metadata is damaged, incomplete or inconsistent, or the split has no pair.
    """

    def __init__(
        self,
        split: str,
        ROOT: str | Path,
        resolution: Resolution,
        transform: Transform | type[Transform] = ImgNorm,
        aug_crop: int = 0,
        seed: int | None = None,
        metadata: str = METADATA,
        **options: Any,
    ) -> None:
        super().__init__(split, resolution, transform, aug_crop, seed, **options)
        self.root = Path(ROOT)
        self.metadata = metadata
        stored = read_metadata(self.root, metadata)
        self.scenes = stored["scenes"]
        self.sceneids = stored["sceneids"]
        self.images = stored["images"]
        self.intrinsics = stored["intrinsics"].astype(np.float32)
        self.trajectories = stored["trajectories"].astype(np.float32)
        self.depth_units = stored["depth_unit"]
        self.pairs = self._pairs_of_split(stored["pairs"], stored["splits"])

    def __len__(self) -> int:
        return len(self.pairs)

    def read_depth(self, path: Path, idx: int, unit: float | None = None) -> np.ndarray:
        """As the base class, with the unit of the scene that ``path`` lies in by default."""
        if unit is None:
            scene = path.parents[1].relative_to(self.root).as_posix()
            unit = self._unit_of_scene.get(scene, _MILLIMETRES)
        return super().read_depth(path, idx, unit)

    @functools.cached_property
    def _unit_of_scene(self) -> dict[str, float]:
        return dict(zip(self.scenes.tolist(), self.depth_units.tolist(), strict=True))

    def _get_paths(self, idx: int) -> list[Path]:
        return [self._path(image, "images", ".jpg") for image in self.pairs[idx]]

    def _get_views(self, idx: int, resolution: Size, rng: np.random.Generator) -> list[RawView]:
        return [self._view(idx, image) for image in self.pairs[idx]]

    def _view(self, idx: int, image: int) -> RawView:
        image_path = self._path(image, "images", ".jpg")
        return RawView(
            image=self.read_image(image_path, idx),
            depthmap=self.read_depth(self._path(image, "depth", ".png"), idx),
            camera_pose=self.trajectories[image],
            camera_intrinsics=self.intrinsics[image],
            dataset=self.root.name,
            label=f"{self.scenes[self.sceneids[image]]}/{self.images[image]}",
            instance=str(image_path),
        )

    def _path(self, image: int, kind: str, suffix: str) -> Path:
        scene = self.scenes[self.sceneids[image]]
        return self.root / str(scene) / kind / f"{self.images[image]}{suffix}"

    def _pairs_of_split(self, pairs: np.ndarray, splits: np.ndarray) -> np.ndarray:
        official = sorted(set(splits.tolist()) - {""})
        if self.split == "all":
            chosen, where = pairs, "pairs"
        else:
            if official:
                wanted = (splits == self.split)[self.sceneids]
            else:
                held_out = _held_out_images(self.scenes, self.sceneids)
                wanted = held_out if self.split != "train" else ~held_out
            chosen = pairs[wanted[pairs].all(1)]
            where = f"pairs within the {wanted.sum()} images of this split"
        if len(chosen) == 0:
            stated = f" (its scenes are of {', '.join(official)})" if official else ""
            raise ValueError(
                f"{self.root / self.metadata} has no {where}: its {len(pairs)} pairs over "
                f"{len(self.images)} images and {len(self.scenes)} scenes{stated} leave nothing "
                f"for split={self.split!r}; preprocess more frames or scenes, or choose pairs with "
                "less overlap"
            )
        return chosen


def _held_out_images(scenes: np.ndarray, sceneids: np.ndarray) -> np.ndarray:
    """Mask (N,) of the images that are not to be trained on."""
    num_images = len(sceneids)
    if len(scenes) == 1:
        return np.arange(num_images) >= first_held_out(num_images)
    return held_out_scenes(scenes.tolist())[sceneids]


def read_metadata(root: Path, name: str = METADATA) -> dict[str, np.ndarray]:
    """The arrays of ``ROOT/<name>``, the optional ones with their defaults, checked.

    Raises FileNotFoundError where it is missing, ValueError where it is damaged or inconsistent.
    """
    path = root / name
    if not root.is_dir():
        raise FileNotFoundError(f"ROOT={str(root)!r} is not a folder; give a processed data set")
    if not path.is_file():
        raise FileNotFoundError(
            f"{root} has no {name}; it is written by datasets_preprocess, from raw recordings "
            "by preprocess_rgbd.py, of pairs without an overlap by pairs_apart.py"
        )
    metadata = load_arrays(path, _KEYS, _OPTIONAL_KEYS)
    metadata["sceneids"] = metadata["sceneids"].astype(int)
    pairs = metadata["pairs"]
    if pairs.ndim != 2 or pairs.shape[1] < 2:
        raise ValueError(f"{path}: 'pairs' must have shape (P, 2 or more), got {pairs.shape}")
    metadata["pairs"] = pairs[:, :2].astype(int)
    count = len(metadata["scenes"])
    metadata.setdefault("depth_unit", np.full(count, _MILLIMETRES))
    metadata.setdefault("splits", np.full(count, "", np.str_))
    _check_consistent(path, metadata)
    return metadata


def _check_consistent(path: Path, metadata: dict[str, np.ndarray]) -> None:
    num_images, num_scenes = len(metadata["images"]), len(metadata["scenes"])
    expected = {
        "sceneids": (num_images,),
        "intrinsics": (num_images, 3, 3),
        "trajectories": (num_images, 4, 4),
        "depth_unit": (num_scenes,),
        "splits": (num_scenes,),
    }
    for key, shape in expected.items():
        if metadata[key].shape != shape:
            counted = f"{num_images} images and {num_scenes} scenes"
            raise ValueError(
                f"{path}: {key!r} has shape {metadata[key].shape}, but {counted} need {shape}"
            )
    units = metadata["depth_unit"]
    if not ((units > 0) & np.isfinite(units)).all():
        raise ValueError(f"{path}: 'depth_unit' is steps a metre, above 0; got {units.tolist()}")
    for key, bound, things in (("sceneids", num_scenes, "scenes"), ("pairs", num_images, "images")):
        outside = np.argwhere((metadata[key] < 0) | (metadata[key] >= bound))
        if len(outside):
            row = int(outside[0, 0])
            raise ValueError(
                f"{path}: row {row} of {key!r} is {metadata[key][row].tolist()}, out of range for "
                f"{bound} {things}"
            )
