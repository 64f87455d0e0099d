"""Posed RGB-D recordings to draw sequences of frames from, processed or as they were downloaded.

A folder is a processed data set (``dust3r.datasets.processed``), or else a raw recording, or holds
recordings up to three folders below: ScanNet's exports and ``.sens`` files, SUN3D, TUM RGB-D and
7-Scenes by the readers that preprocessing has (``datasets_preprocess.rgbd``, which is why this
package imports it), and what ``deltas.data.timed`` reads. Nothing is written.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from datasets_preprocess.preprocess_scannet import read_splits
from datasets_preprocess.rgbd.formats import FORMATS
from datasets_preprocess.rgbd.frames import ColorCamera, align, find_color_camera, load_files
from datasets_preprocess.rgbd.pixels import resample_depth
from datasets_preprocess.rgbd.recording import Recording, RgbdFrame, pose_fault
from deltas.data import timed
from dust3r.datasets.processed import METADATA, read_metadata
from dust3r.utils.geometry import resized_intrinsics
from dust3r.utils.image import read_depth_png, read_rgb

logger = logging.getLogger(__name__)

# Where frames' numbers jump this much further than they usually do, filming was interrupted.
_JUMP = 10
_DEPTH_OF_SEARCH = 3


@dataclass(frozen=True)
class Scene:
    """Frames of one place in the order of their recording; only those that have a pose.

    ``names`` and ``images`` are N basenames and files, ``poses`` (N, 4, 4) camera-to-world,
    ``read`` gives the n-th frame with colour on the grid of its depth, and raises ValueError or
    OSError for a damaged one. ``skipped`` counts frames left out, by reason; ``split`` is the part
    of the official split, '' for none.
    """

    name: str
    names: list[str]
    images: list[Path]
    poses: np.ndarray
    read: Callable[[int], RgbdFrame]
    skipped: Counter[str] = field(default_factory=Counter)
    split: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def stretches(self) -> list[range]:
        """Frames filmed without an interruption: cut where the numbers in the names jump.

        A jump is more than ten usual steps. Names without numbers, or whose numbers do not grow,
        are one stretch.
        """
        steps = np.diff([_number(name) for name in self.names])
        whole = not len(steps) or not (steps > 0).all()
        cuts = [] if whole else np.flatnonzero(steps > _JUMP * np.median(steps)) + 1
        ends = [0, *(int(cut) for cut in cuts), len(self)]
        return [range(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]


def find_scenes(root: Path, depth_unit: float = 1000.0) -> list[Scene]:
    """The scenes in ``root``, by name; frames whose pose is missing or no pose are left out.

    ``depth_unit`` is steps a metre of raw recordings whose format does not state it. Scenes of
    ScanNet have the official split where ``root`` holds its lists ``scannetv2_train.txt`` etc.

    Raises:
        FileNotFoundError: ``root`` is no folder, or a recording lacks a file for all its frames.
        ValueError: there is no recording in it, or one is damaged.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"ROOT={str(root)!r} is not a folder; give a processed data set or RGB-D recordings"
        )
    if (root / METADATA).is_file():
        return list(_processed(root))
    splits = read_splits(root)
    return [_raw(recording, depth_unit, splits) for recording in _recordings(root)]


def resize_frame(frame: RgbdFrame, size: tuple[int, int]) -> RgbdFrame:
    """The whole frame at ``size`` (width, height): each axis scaled by itself, nothing cropped.

    Colour is averaged when it shrinks; depth is interpolated within surfaces and picked at their
    edges, at the very places that the new pixels' centres have in the old grid. Intrinsics follow,
    with the half pixel that a first pixel centred at (0, 0) needs.
    """
    height, width = frame.depth.shape
    if (width, height) == size:
        return frame
    scale = np.array(size) / (width, height)
    intrinsics = resized_intrinsics(frame.intrinsics, scale)
    how = cv2.INTER_AREA if (scale < 1).all() else cv2.INTER_CUBIC
    places = ((np.arange(new) + 0.5) / by - 0.5 for new, by in zip(size, scale, strict=True))
    x, y = (grid.astype(np.float32) for grid in np.meshgrid(*places))
    depth = resample_depth(frame.depth.astype(np.float32), x, y)
    return RgbdFrame(cv2.resize(frame.rgb, size, interpolation=how), depth, intrinsics)


@dataclass(frozen=True)
class _ProcessedFrames:
    """Reads frames of a scene in the processed layout, which are on one grid already."""

    images: list[Path]
    depths: list[Path]
    intrinsics: np.ndarray
    depth_unit: float

    def __call__(self, number: int) -> RgbdFrame:
        rgb, depth = (
            read_rgb(self.images[number]),
            read_depth_png(self.depths[number], self.depth_unit),
        )
        if rgb.shape[:2] != depth.shape:
            raise ValueError(
                f"{self.depths[number]}: depth of {depth.shape} for an image of {rgb.shape[:2]}; "
                "in the processed layout both have one size"
            )
        return RgbdFrame(rgb, depth, self.intrinsics[number])


@dataclass(frozen=True)
class _RawFrames:
    """Reads frames of a raw recording, colour brought onto depth's grid."""

    recording: Recording
    depth_unit: float
    camera: ColorCamera | None

    def __call__(self, number: int) -> RgbdFrame:
        recording = self.recording
        load = recording.load or partial(
            load_files,
            intrinsics=recording.intrinsics,
            depth_unit=1 / self.depth_unit,
            rotated_bits=recording.rotated_bits,
        )
        frame = load(recording.frames[number])
        return align(frame.rgb, frame.depth, frame.intrinsics, self.camera)


def _processed(root: Path) -> Iterator[Scene]:
    stored = read_metadata(root)
    for sceneid, name in enumerate(stored["scenes"].tolist()):
        skipped: Counter[str] = Counter()
        places = []
        for place in np.flatnonzero(stored["sceneids"] == sceneid):
            fault = pose_fault(stored["trajectories"][place])
            if fault:
                skipped[fault] += 1
            else:
                places.append(place)
        names = stored["images"][places].tolist()
        images = [root / name / "images" / f"{image}.jpg" for image in names]
        depths = [root / name / "depth" / f"{image}.png" for image in names]
        unit = float(stored["depth_unit"][sceneid])
        read = _ProcessedFrames(images, depths, stored["intrinsics"][places], unit)
        poses = stored["trajectories"][places].astype(np.float64)
        yield Scene(name, names, images, poses, read, skipped, str(stored["splits"][sceneid]))


def _raw(recording: Recording, depth_unit: float, splits: dict[str, str]) -> Scene:
    camera, _ = find_color_camera(recording, 1 / depth_unit)
    frames = recording.frames
    return Scene(
        recording.name,
        [frame.name for frame in frames],
        [frame.color for frame in frames],
        np.array([frame.pose for frame in frames], np.float64).reshape(-1, 4, 4),
        _RawFrames(recording, depth_unit, camera),
        recording.skipped,
        splits.get(recording.folder.name, ""),
    )


def _recordings(root: Path) -> Iterator[Recording]:
    """The recordings at the first level, from ``root`` down, where there are any."""
    level = [root]
    for _ in range(_DEPTH_OF_SEARCH + 1):
        found = [(folder, read) for folder in level if (read := _reader(folder)) is not None]
        if found:
            for folder, read in found:
                name = "_".join(folder.relative_to(root).parts) or folder.resolve().name
                yield read(folder, name)
            return
        level = sorted(path for folder in level for path in folder.iterdir() if path.is_dir())
    known = "; ".join(f"{name}: {one.looks_like}" for name, one in FORMATS.items())
    raise ValueError(
        f"{root} holds neither {METADATA} (a processed data set) nor a recording, there or up to "
        f"{_DEPTH_OF_SEARCH} folders below. Looked for {known}; {timed.LOOKS_LIKE}"
    )


def _reader(folder: Path) -> Callable[[Path, str], Recording] | None:
    """What reads the recording in ``folder``; None where there is none."""
    if timed.fits(folder):
        return timed.read_timed
    for name, known in FORMATS.items():
        if known.fits(folder):
            return partial(_read_known, format_name=name)
    return None


def _read_known(folder: Path, name: str, *, format_name: str) -> Recording:
    recording = FORMATS[format_name].read(folder, name, None, 1)
    if recording.rotated_bits:
        recording.rotated_bits = timed.has_rotated_bits(recording)
    return recording


def _number(name: str) -> float:
    """The last number of a name; NaN where it has none."""
    numbers = re.findall(r"\d+(?:\.\d+)?", name)
    return float(numbers[-1]) if numbers else np.nan
