"""ARKitScenes (Baruch et al., NeurIPS Datasets and Benchmarks 2021): rooms seen by a tablet."""

from pathlib import Path
from typing import Any

import numpy as np

from dust3r.datasets.base import BaseStereoViewDataset, RawView
from dust3r.datasets.cropping import Size
from dust3r.datasets.processed import read_metadata
from dust3r.datasets.resolution import Resolution
from dust3r.datasets.transforms import Transform
from dust3r.utils.image import ImgNorm
from dust3r.utils.spec import DATASETS

TRAINING = "Training"
# The release calls its other part Validation, data prepared by DUSt3R's scripts Test.
HELD_OUT = ("Test", "Validation")

_SUFFIXES = (".png", ".jpg")


@DATASETS.register()
class ARKitScenes(BaseStereoViewDataset):
    """Pairs of ``datasets_preprocess.preprocess_arkitscenes``, with the release's official split.

    ROOT holds ``Training`` and ``Test`` (or ``Validation``), and in each of them
    ``all_metadata.npz``, as in the processed layout, and for each scene
    ``<scene>/vga_wide/<image>.jpg`` and ``<scene>/lowres_depth/<image>.png`` of the same size
    (16 bits, millimetres, 0 = none). Names of images may end in .png.

    Args:
        split: 'train'; 'val' or 'test', which are the same; 'all' for what is there of both.
        ROOT: folder of the processed data set.
        Others as ``BaseStereoViewDataset``.

    Raises:
        FileNotFoundError: ``ROOT``, the split or its metadata is not there.
        ValueError: the metadata is damaged, incomplete or inconsistent, or has no pair.
    """

    def __init__(
        self,
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
        self._parts = [(name, read_metadata(self.root / name)) for name in self._part_names()]
        sizes = [len(metadata["pairs"]) for _, metadata in self._parts]
        self._ends = np.cumsum(sizes)
        if not self._ends[-1]:
            raise ValueError(f"{self.root} has no pair for split={split!r}; preprocess more scenes")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _part_names(self) -> list[str]:
        if not self.root.is_dir():
            raise FileNotFoundError(f"ROOT={str(self.root)!r} is not a folder")
        wanted = {"train": (TRAINING,), "all": (TRAINING, *HELD_OUT)}.get(self.split, HELD_OUT)
        names = [name for name in wanted if (self.root / name).is_dir()]
        if not names:
            raise FileNotFoundError(
                f"{self.root} has no {' or '.join(wanted)}, which split={self.split!r} is read "
                "from; preprocess_arkitscenes.py writes it"
            )
        return names

    def _get_paths(self, idx: int) -> list[Path]:
        part, pair = self._pair(idx)
        return [self._paths(part, image)[0] for image in pair]

    def _get_views(self, idx: int, resolution: Size, rng: np.random.Generator) -> list[RawView]:
        part, pair = self._pair(idx)
        return [self._view(idx, part, image) for image in pair]

    def _view(self, idx: int, part: int, image: int) -> RawView:
        metadata = self._parts[part][1]
        image_path, depth_path = self._paths(part, image)
        return RawView(
            image=self.read_image(image_path, idx),
            depthmap=self.read_depth(depth_path, idx),
            camera_pose=metadata["trajectories"][image],
            camera_intrinsics=metadata["intrinsics"][image],
            dataset=self.root.name,
            label=f"{image_path.parents[1].name}/{image_path.stem}",
            instance=str(image_path),
        )

    def _pair(self, idx: int) -> tuple[int, np.ndarray]:
        """The number of the part that sample ``idx`` is in, and its two images there."""
        part = int(np.searchsorted(self._ends, idx, side="right"))
        pairs = self._parts[part][1]["pairs"]
        return part, pairs[idx - self._ends[part] + len(pairs)]

    def _paths(self, part: int, image: int) -> tuple[Path, Path]:
        name, metadata = self._parts[part]
        folder = self.root / name / str(metadata["scenes"][metadata["sceneids"][image]])
        base = str(metadata["images"][image])
        # Names are times: what follows the last dot need not be a suffix.
        for suffix in _SUFFIXES:
            base = base.removesuffix(suffix)
        return folder / "vga_wide" / f"{base}.jpg", folder / "lowres_depth" / f"{base}.png"
