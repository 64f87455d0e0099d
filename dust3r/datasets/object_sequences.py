"""What data sets of walks around an object share: sequences, pairs by offset, masks."""

import functools
import json
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np

from dust3r.datasets.bad_samples import naming_sample
from dust3r.datasets.base import BaseStereoViewDataset, RawView
from dust3r.datasets.cropping import Size
from dust3r.datasets.resolution import Resolution
from dust3r.datasets.transforms import Transform
from dust3r.utils.image import ImgNorm
from dust3r.utils.npz import load_arrays

CAMERA_KEYS = ("camera_intrinsics", "camera_pose")

_INDEX = "selected_seqs_{split}.json"
# A walk is about one turn, of which pairs are multiples of a twentieth apart.
_TURN_DEG = 360.0
_STEP = 1 / 20
# Masks are probabilities of the foreground in 255 steps; generous, as their edges are soft.
_FOREGROUND = 25


class ObjectSequences(BaseStereoViewDataset):
    """Pairs of frames of videos that go around an object; a subclass reads their files.

    ``ROOT/selected_seqs_train.json`` and ``selected_seqs_test.json`` list frame numbers:
    {category: {sequence: [number, ...]}}. The frames of a sequence are taken as one turn around its
    object: pairs are a twentieth of it apart or a multiple, up to ``max_angle``, in any place.

    Args:
        split: 'train'; 'val' and 'test', which are the same; 'all' for both.
        ROOT: folder of the processed data set.
        mask_bg: True: only the object keeps its depth, False: all that has some does, 'rand': a
            coin decides for each pair. Colours are never masked.
        max_angle: largest angle of a pair, in degrees, by its share of the sequence.
        is_metric_scale: None for what the data set is known to be.
        Others as ``BaseStereoViewDataset``.

    Raises:
        FileNotFoundError: ``ROOT`` or its list of sequences is not there.
        ValueError: the list is damaged, no sequence has two frames, or an argument is not one of
            the above.
    """

    PREPROCESS: ClassVar[str]
    METRIC: ClassVar[bool]

    def __init__(
        self,
        split: str,
        ROOT: str | Path,
        resolution: Resolution,
        transform: Transform | type[Transform] = ImgNorm,
        aug_crop: int = 0,
        seed: int | None = None,
        mask_bg: bool | str = True,
        max_angle: float = 180,
        is_metric_scale: bool | None = None,
        **options: object,
    ) -> None:
        metric = self.METRIC if is_metric_scale is None else is_metric_scale
        super().__init__(
            split, resolution, transform, aug_crop, seed, is_metric_scale=metric, **options
        )
        if mask_bg not in (True, False, "rand"):
            raise ValueError(f"mask_bg={mask_bg!r}: expected True, False or 'rand'")
        if not 0 < max_angle <= _TURN_DEG:
            raise ValueError(f"max_angle={max_angle!r}: expected degrees above 0, up to 360")
        self.root = Path(ROOT)
        self.mask_bg = mask_bg
        self.max_angle = max_angle
        self.sequences, self.frames = self._of_split()
        counts = [_pair_starts(len(frames), max_angle)[1][-1] for frames in self.frames]
        self._ends = np.cumsum(counts)
        if not len(self._ends) or self._ends[-1] == 0:
            raise ValueError(
                f"{self.root} has no sequence of two frames or more for split={split!r}; "
                f"preprocess more sequences with datasets_preprocess/{self.PREPROCESS}"
            )

    @abstractmethod
    def _image_path(self, folder: Path, frame: int) -> Path:
        """The image of a frame of the sequence in ``folder``."""

    @abstractmethod
    def _mask_path(self, folder: Path, frame: int) -> Path:
        """The mask of a frame, of whichever the image is known to be there."""

    @abstractmethod
    def _depth_and_camera(self, folder: Path, frame: int, idx: int) -> tuple[np.ndarray, ...]:
        """Depth (H, W) float32 with 0 = none, intrinsics (3, 3) and pose (4, 4) of a frame."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _get_paths(self, idx: int) -> list[Path]:
        folder, frames = self._pair(idx)
        return [self._image_path(folder, frame) for frame in frames]

    def _get_views(self, idx: int, resolution: Size, rng: np.random.Generator) -> list[RawView]:
        folder, frames = self._pair(idx)
        masked = bool(rng.integers(2)) if self.mask_bg == "rand" else self.mask_bg
        return [self._view(folder, frame, idx, masked) for frame in frames]

    def _view(self, folder: Path, frame: int, idx: int, masked: bool) -> RawView:
        path = self._image_path(folder, frame)
        image = self.read_image(path, idx)
        depth, intrinsics, pose = self._depth_and_camera(folder, frame, idx)
        if masked:
            mask_path = self._mask_path(folder, frame)
            mask = self.read_image(mask_path, idx)[..., 0]
            with naming_sample(mask_path, idx):
                if mask.shape != depth.shape:
                    raise ValueError(f"a mask of {mask.shape} for a depth map of {depth.shape}")
            depth = np.where(mask > _FOREGROUND, depth, np.float32(0))
        return RawView(
            image=image,
            depthmap=depth,
            camera_pose=pose,
            camera_intrinsics=intrinsics,
            dataset=self.root.name,
            label=f"{folder.relative_to(self.root).as_posix()}/{path.stem}",
            instance=str(path),
        )

    def _read_camera(self, path: Path, idx: int, *more: str) -> list[np.ndarray]:
        """Arrays ``CAMERA_KEYS`` and ``more`` of a frame's NPZ."""
        with naming_sample(path, idx):
            arrays = load_arrays(path, (*CAMERA_KEYS, *more))
        return [arrays[key] for key in (*CAMERA_KEYS, *more)]

    def _pair(self, idx: int) -> tuple[Path, tuple[int, int]]:
        """The folder of a pair's sequence and its two frame numbers."""
        which = int(np.searchsorted(self._ends, idx, side="right"))
        frames = self.frames[which]
        place = idx - (int(self._ends[which - 1]) if which else 0)
        offsets, starts = _pair_starts(len(frames), self.max_angle)
        nth = int(np.searchsorted(starts, place, side="right")) - 1
        first = place - starts[nth]
        folder = self.root.joinpath(*self.sequences[which])
        return folder, (int(frames[first]), int(frames[first + offsets[nth]]))

    def _of_split(self) -> tuple[list[tuple[str, str]], list[np.ndarray]]:
        """(category, sequence) of the split's sequences, and the frame numbers of each."""
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"ROOT={str(self.root)!r} is not a folder; give a processed data set"
            )
        splits = {"train": ["train"], "all": ["train", "test"]}.get(self.split, ["test"])
        found: dict[tuple[str, str], set[int]] = {}
        for split in splits:
            for category, sequences in self._read_index(split).items():
                for sequence, frames in sequences.items():
                    found.setdefault((category, sequence), set()).update(frames)
        names = sorted(found)
        return names, [np.array(sorted(found[name]), np.int32) for name in names]

    def _read_index(self, split: str) -> dict[str, dict[str, list[int]]]:
        path = self.root / _INDEX.format(split=split)
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.root} has no {path.name}; it is written by "
                f"datasets_preprocess/{self.PREPROCESS}"
            )
        try:
            index = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); preprocess the data again") from error
        if not _is_index(index):
            raise ValueError(
                f"{path} is no list of sequences: expected {{category: {{sequence: [frame number, "
                "...]}}"
            )
        return index


@functools.cache
def _pair_starts(num_frames: int, max_angle: float) -> tuple[list[int], list[int]]:
    """Offsets of a sequence's pairs, and the pairs before each of them, with the total last."""
    steps = np.arange(1, int(max_angle / _TURN_DEG / _STEP + 1e-6) + 1) * _STEP
    offsets = np.unique(np.maximum(1, np.floor(steps * num_frames + 1e-6))).astype(int)
    offsets = offsets[offsets < num_frames]
    return offsets.tolist(), [0, *np.cumsum(num_frames - offsets).tolist()]


def _is_index(index: object) -> bool:
    return isinstance(index, dict) and all(
        isinstance(sequences, dict)
        and all(
            isinstance(frames, list) and all(isinstance(frame, int) for frame in frames)
            for frames in sequences.values()
        )
        for sequences in index.values()
    )
