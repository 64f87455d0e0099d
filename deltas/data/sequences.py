"""Short sequences of posed RGB-D frames: what DELTAS trains and is tested on.

``Sequences`` is a data set like those of ``dust3r.datasets``, and under the same names in
specification strings, so that sums, ``1000 @ Sequences(...)``, loaders, shares of ranks and exact
resumption are theirs; only a sample is another: one dictionary of stacked frames in the place of
two views.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from deltas.data.checks import check_scenes
from deltas.data.recordings import Scene, find_scenes, resize_frame
from dust3r.datasets.bad_samples import SampleError, naming_sample
from dust3r.datasets.base import SPLITS
from dust3r.datasets.combine import Draw, StereoDataset
from dust3r.datasets.cropping import Size
from dust3r.datasets.held_out import first_held_out, held_out_scenes
from dust3r.datasets.transforms import Transform
from dust3r.utils.image import ImgNorm
from dust3r.utils.spec import DATASETS

logger = logging.getLogger(__name__)

Array = TypeVar("Array", np.ndarray, torch.Tensor)


@DATASETS.register()
class Sequences(StereoDataset):
    """An anchor frame and its neighbours, at multiples of ``seq_gap`` before and after it.

    ``dataset[index]`` gives F = ``seq_length`` frames, the anchor first, then its neighbours from
    the earliest to the latest: a dictionary of ``img`` (F, 3, H, W) float32 in [-1, 1];
    ``depthmap`` (F, H, W) float32 metres along z, 0 where there is none; ``valid_mask`` (F, H, W)
    bool; ``camera_pose`` (F, 4, 4) float32 camera-to-world, OpenCV axes; ``camera_intrinsics``
    (F, 3, 3) float32 of this very grid, the first pixel's centre at (0, 0); ``idx`` int;
    ``dataset`` str; ``label`` and ``instance`` lists of F str: scene/frame, and the image's path.
    In a batch all arrays are stacked, and those lists hold F tuples of B.

    Whole frames are resized to ``width`` x ``height``, each axis by its own factor, and nothing is
    cropped: all that was seen stays, and intrinsics stay exact. Frames count as they are kept:
    those without a valid pose or without a depth file are left out and counted in ``skipped``. No
    sequence reaches over an interruption of the recording (``Scene.stretches``).

    Chance (jitter) is the same for all frames of a sample, and a function of (``seed``, index)
    where ``seed`` is given, else of the index and the draw's key, which holds the loader's seed and
    the epoch.

    Args:
        ROOT: a processed data set, a raw recording, or a folder of these; see ``find_scenes``.
        split: 'train', 'val', 'test' or 'all'. By scene: the official split where scenes have one,
            else a hash of the name keeps a tenth of them for 'val' and 'test', which are the same
            then. A single scene keeps its last tenth of frames.
        seq_length: frames of a sample, 2 or more; of an even number one more follows the anchor
            than comes before.
        seq_gap: frames from one of a sample to the next.
        width, height: of the images given, in pixels.
        transform: (image, rng) -> tensor, or a class of such with defaults for all arguments.
        seed: makes every sample the same in all epochs.
        depth_unit: steps a metre of raw recordings' depth where the format does not state it.
        anchor_gap: take the anchors that this larger ``seq_gap`` would have, so that several gaps
            can be compared on the same frames; None for all.
        check: look for wrong units and poses in some frames, see ``check_scenes``.

    Raises:
        FileNotFoundError: ``ROOT`` is not there.
        ValueError: an argument is not one of the above, there is no recording, the split has no
            sequence of this length, or units or poses are wrong, see ``check_scenes``.
        SampleError: (on indexing) a file cannot be read, or the anchor has no depth.

    Attributes:
        scenes: those of the split; ``skipped``: frames left out of them, by reason.
    """

    def __init__(
        self,
        ROOT: str | Path,
        split: str = "all",
        seq_length: int = 3,
        seq_gap: int = 10,
        width: int = 320,
        height: int = 240,
        transform: Transform | type[Transform] = ImgNorm,
        seed: int | None = None,
        depth_unit: float = 1000.0,
        anchor_gap: int | None = None,
        check: bool = True,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; choose one of {', '.join(SPLITS)}")
        counts = {"seq_length": seq_length, "seq_gap": seq_gap, "width": width, "height": height}
        for name, value in counts.items():
            least = 2 if name == "seq_length" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: expected a whole number of {least} or more")
        if anchor_gap is not None and not anchor_gap >= seq_gap:
            raise ValueError(f"anchor_gap={anchor_gap!r}: expected seq_gap={seq_gap} or more")
        if not 0 < depth_unit < float("inf"):
            raise ValueError(f"depth_unit={depth_unit!r} is steps a metre; expected above 0")
        if not callable(transform):
            raise ValueError(f"transform={transform!r}: expected ImgNorm, ColorJitter or the like")
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise ValueError(f"seed={seed!r}: expected a whole number >= 0, or None")
        self.root = Path(ROOT)
        self.split = split
        self.seq_length, self.seq_gap = seq_length, seq_gap
        self.size: Size = (width, height)
        self.transform = transform() if isinstance(transform, type) else transform
        self.seed = seed
        found = find_scenes(self.root, depth_unit)
        self.scenes, allowed = _of_split(found, split)
        self.skipped = sum((scene.skipped for scene in self.scenes), Counter())
        self._offsets = _offsets(seq_length, seq_gap)
        reach = _offsets(seq_length, anchor_gap or seq_gap)
        self._reach = -min(reach), max(reach)
        self._anchors = self._anchors_of(allowed)
        logger.info("%s", self.summary())
        if not len(self._anchors):
            raise ValueError(self._no_sequence(found, allowed))
        if check:
            check_scenes(self.scenes, self.size)

    @property
    def resolutions(self) -> tuple[Size, ...]:
        return (self.size,)

    def __len__(self) -> int:
        return len(self._anchors)

    def __repr__(self) -> str:
        return (
            f"Sequences(ROOT={str(self.root)!r}, split={self.split!r}, seq_length="
            f"{self.seq_length}, seq_gap={self.seq_gap}, {len(self)} sequences)"
        )

    def summary(self) -> str:
        """What there is and what was left out, in a line."""
        kept = sum(len(scene) for scene in self.scenes)
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
        return (
            f"{self.root}: {len(self)} sequences of {self.seq_length} frames {self.seq_gap} apart; "
            f"{len(self.scenes)} scenes, {kept} frames kept, {self.skipped.total()} left out"
            + (f" ({left_out})" if left_out else "")
        )

    def load(self, draw: Draw) -> dict[str, object]:
        scene, numbers = self._frames(draw.index)
        seeds = (*(draw.key if self.seed is None else (self.seed,)), draw.index)
        images, depths, intrinsics = [], [], []
        for number in numbers:
            with naming_sample(scene.images[number], draw.index):
                frame = resize_frame(scene.read(number), self.size)
                # Each frame's chance begins anew, which makes it the same for all of them.
                images.append(self.transform(frame.rgb, np.random.default_rng(seeds)))
            depths.append(frame.depth)
            intrinsics.append(frame.intrinsics)
        depth = np.stack(depths).astype(np.float32)
        valid = np.isfinite(depth) & (depth > 0)
        if not valid[0].any():
            raise SampleError(
                f"sample {draw.index}: the anchor {scene.images[numbers[0]]} has no valid depth; "
                "check its depth file, or leave the frame out",
                str(scene.images[numbers[0]]),
                draw.index,
            )
        return {
            "img": torch.stack(images),
            "depthmap": np.where(valid, depth, np.float32(0)),
            "valid_mask": valid,
            "camera_pose": scene.poses[numbers].astype(np.float32),
            "camera_intrinsics": np.stack(intrinsics).astype(np.float32),
            "idx": draw.index,
            "dataset": self.root.name,
            "label": [f"{scene.name}/{scene.names[number]}" for number in numbers],
            "instance": [str(scene.images[number]) for number in numbers],
        }

    def draw_paths(self, draw: Draw) -> list[Path]:
        scene, numbers = self._frames(draw.index)
        return [scene.images[number] for number in numbers]

    def _frames(self, index: int) -> tuple[Scene, list[int]]:
        """The scene of a sample and its frames there, the anchor's first."""
        place, anchor = self._anchors[index].tolist()
        return self.scenes[place], [anchor + offset for offset in self._offsets]

    def _anchors_of(self, allowed: list[range]) -> np.ndarray:
        """(N, 2): scene and frame of every anchor whose neighbours are there."""
        before, after = self._reach
        found = [
            (place, anchor)
            for place, (scene, within) in enumerate(zip(self.scenes, allowed, strict=True))
            for stretch in scene.stretches()
            for anchor in range(
                max(stretch.start, within.start) + before, min(stretch.stop, within.stop) - after
            )
        ]
        return np.array(found, int).reshape(-1, 2)

    def _no_sequence(self, found: list[Scene], allowed: list[range]) -> str:
        lengths = [
            min(stretch.stop, within.stop) - max(stretch.start, within.start)
            for scene, within in zip(self.scenes, allowed, strict=True)
            for stretch in scene.stretches()
        ]
        stated = sorted({scene.split for scene in found} - {""})
        return (
            f"{self.summary()}. A sequence reaches over {sum(self._reach) + 1} frames, and the "
            f"longest stretch without an interruption has {max(lengths, default=0)}"
            f" in the {len(self.scenes)} of {len(found)} scenes that split={self.split!r} leaves"
            + (f" (there are official splits: {', '.join(stated)})" if stated else "")
            + "; choose a smaller seq_gap, anchor_gap or seq_length, or another split"
        )


def within(depth: Array, valid: Array, depth_range: tuple[float, float]) -> Array:
    """Where depth is ``valid`` (bool) and from the nearest to the farthest that counts."""
    nearest, farthest = depth_range
    return valid & (depth >= nearest) & (depth <= farthest)


def _offsets(seq_length: int, seq_gap: int) -> tuple[int, ...]:
    """Of a sample's frames from its anchor, whose own comes first."""
    before = (seq_length - 1) // 2
    others = [n for n in range(-before, seq_length - before) if n]
    return (0, *(seq_gap * n for n in others))


def _of_split(scenes: list[Scene], split: str) -> tuple[list[Scene], list[range]]:
    """The scenes of a split, and which of their frames are; by rules of ``ProcessedPairs``."""
    if split == "all":
        chosen = scenes
    elif any(scene.split for scene in scenes):
        chosen = [scene for scene in scenes if scene.split == split]
    elif len(scenes) == 1:
        border = first_held_out(len(scenes[0]))
        return scenes, [range(border) if split == "train" else range(border, len(scenes[0]))]
    else:
        held_out = held_out_scenes([scene.name for scene in scenes])
        chosen = [s for s, out in zip(scenes, held_out, strict=True) if out != (split == "train")]
    return chosen, [range(len(scene)) for scene in chosen]
