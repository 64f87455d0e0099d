"""One recording to one scene of the processed layout, with a report and a contact sheet."""

import json
import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets_preprocess.layout import (
    SceneData,
    depth_path,
    image_path,
    new_scene,
    read_depth,
    save_scene,
    write_depth,
    write_image,
)
from datasets_preprocess.overlap import score_pairs, select_pairs
from datasets_preprocess.rgbd.frames import (
    ColorCamera,
    align,
    find_color_camera,
    limit_size,
    load_files,
)
from datasets_preprocess.rgbd.pixels import filled, read_color
from datasets_preprocess.rgbd.recording import (
    RawFrame,
    Recording,
    RgbdFrame,
    intrinsics_matrix,
)
from datasets_preprocess.rgbd.report import REPORT_FILE, SHEET_FILE, Report
from datasets_preprocess.rgbd.settings import Settings
from dust3r.utils.files import atomic_path
from dust3r.utils.reprojection import reprojection_errors, shrink
from dust3r.utils.spread import spread

LOGGER = logging.getLogger(__name__)

_OVERLAP_SIDE = 80
_MIN_VALID = 0.01
_SHEET_FRAMES, _SHEET_PAIRS = 12, 8


class Workers:
    """``map`` over frames in ``number`` processes, or in this one where that is 1."""

    def __init__(self, number: int) -> None:
        if number < 1:
            raise ValueError(f"num_workers must be at least 1, got {number}")
        # Forking a process in which OpenCV or torch have threads can hang: start fresh ones.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(number, mp_context=context) if number > 1 else None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: partial, items: Sequence) -> Iterable:
        return self._pool.map(function, items, chunksize=4) if self._pool else map(function, items)


def convert(root: Path, recording: Recording, settings: Settings, workers: Workers) -> Report:
    """Write ``recording`` as the scene ``root/<its name>``, whole or not at all; return the report.

    Raises ValueError as ``write_scene``.
    """
    with new_scene(root, recording.name) as folder:
        report = write_scene(folder, recording, settings, workers, progress=True)
        with atomic_path(folder / REPORT_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(report), indent=1))
    return report


def write_scene(
    folder: Path,
    recording: Recording,
    settings: Settings,
    workers: Workers,
    *,
    progress: bool = False,
) -> Report:
    """Write ``recording`` into ``folder``, which is to become a scene; return the report.

    Raises ValueError where fewer than two frames are usable or no pair's overlap is in the range.
    """
    report = Report(str(recording.folder), recording.format, asdict(settings))
    camera, report.color_camera = _color_camera(recording, settings)
    frames = _write_frames(folder, recording, settings, camera, workers, report, progress)
    pairs = _choose(frames, settings, report, progress)
    scene = SceneData(
        recording.name,
        [frame.name for frame in frames],
        np.stack([frame.intrinsics for frame in frames]),
        np.stack([frame.pose for frame in frames]),
        pairs,
        recording.depth_unit,
        recording.split,
    )
    _draw_sheet(folder, scene, report)
    save_scene(folder, scene)
    return report


@dataclass(frozen=True)
class _Written:
    """A frame that is now in the scene's folder, and its depth, small, to measure overlaps with."""

    name: str
    pose: np.ndarray
    intrinsics: np.ndarray
    small_depth: np.ndarray
    small_intrinsics: np.ndarray


@dataclass(frozen=True)
class _LeftOut:
    """Why a frame cannot be used, and which it is."""

    reason: str
    example: str


def _write_frames(
    folder: Path,
    recording: Recording,
    settings: Settings,
    camera: ColorCamera | None,
    workers: Workers,
    report: Report,
    progress: bool,
) -> list[_Written]:
    load = recording.load or partial(
        load_files,
        intrinsics=recording.intrinsics,
        depth_unit=settings.depth_unit,
        rotated_bits=recording.rotated_bits,
    )
    write = partial(
        _write_frame,
        folder=folder,
        load=load,
        camera=camera,
        max_side=settings.max_side,
        depth_unit=recording.depth_unit,
        sparse=recording.sparse,
    )
    outcomes = list(
        tqdm(
            workers.map(write, recording.frames),
            desc=recording.name,
            total=len(recording.frames),
            unit="frame",
            disable=not progress,
        )
    )
    for outcome in outcomes:
        if isinstance(outcome, _LeftOut):
            recording.skip(outcome.reason, outcome.example)
    frames = [item for item in outcomes if isinstance(item, _Written)]
    sizes = Counter(frame.small_depth.shape for frame in frames)
    if len(sizes) > 1 and recording.one_camera:
        usual = sizes.most_common(1)[0][0]
        for frame in frames:
            if frame.small_depth.shape != usual:
                recording.skip("depth of another size", frame.name)
                image_path(folder.parent, folder.name, frame.name).unlink()
                depth_path(folder.parent, folder.name, frame.name).unlink()
        frames = [frame for frame in frames if frame.small_depth.shape == usual]
    report.frames = len(frames)
    report.skipped, report.examples = dict(recording.skipped.most_common()), recording.examples
    if len(frames) < 2:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.skipped.items())
        raise ValueError(
            f"{len(frames)} usable frame(s) in {recording.folder}, at least 2 are needed; left "
            f"out: {reasons or 'none'}"
        )
    return frames


def _write_frame(
    frame: RawFrame,
    *,
    folder: Path,
    load: Callable[[RawFrame], RgbdFrame],
    camera: ColorCamera | None,
    max_side: int | None,
    depth_unit: float,
    sparse: bool,
) -> _Written | _LeftOut:
    """Bring one frame into the scene's folder; the reason where it cannot be used."""
    try:
        loaded = load(frame)
    except ValueError as error:
        LOGGER.warning("left out: %s", error)
        return _LeftOut("unreadable colour or depth", str(error))
    aligned = limit_size(align(loaded.rgb, loaded.depth, loaded.intrinsics, camera), max_side)
    if (aligned.depth > 0).mean() < _MIN_VALID:
        return _LeftOut(f"less than {_MIN_VALID:.0%} with depth", frame.name)
    write_image(image_path(folder.parent, folder.name, frame.name), aligned.rgb)
    write_depth(depth_path(folder.parent, folder.name, frame.name), aligned.depth, depth_unit)
    stride = max(1, round(max(aligned.depth.shape) / _OVERLAP_SIDE))
    # Every so manieth pixel of a laser's depth would be nearly none.
    dense = filled(aligned.depth, stride) if sparse else aligned.depth
    small = shrink(dense, aligned.intrinsics, stride)
    return _Written(frame.name, frame.pose, aligned.intrinsics, *small)


def _color_camera(recording: Recording, settings: Settings) -> tuple[ColorCamera | None, str]:
    if settings.color_intrinsics == "auto":
        return find_color_camera(recording, settings.depth_unit)
    if settings.color_intrinsics == "same":
        return None, "the depth camera's, as asked"
    matrix = intrinsics_matrix(*settings.color_intrinsics)
    return ColorCamera(matrix, np.array(settings.color_offset, np.float64)), "as given"


def _choose(
    frames: list[_Written], settings: Settings, report: Report, progress: bool
) -> np.ndarray:
    """The pairs to keep (P, 3); fills the report's depth and overlap figures."""
    depths = _stacked([frame.small_depth for frame in frames])
    report.median_depth = float(np.median(depths[depths > 0]))
    scored = score_pairs(
        depths,
        np.stack([frame.small_intrinsics for frame in frames]),
        np.stack([frame.pose for frame in frames]),
        min_overlap=settings.min_overlap,
        progress=progress,
    )
    pairs = select_pairs(
        scored,
        len(frames),
        min_overlap=settings.min_overlap,
        max_overlap=settings.max_overlap,
        max_pairs=settings.max_pairs,
    )
    tenths = np.linspace(0, 1, 11)
    report.measured = np.histogram(scored[:, 2], tenths)[0].tolist()
    report.chosen = np.histogram(pairs[:, 2], tenths)[0].tolist()
    report.pairs = len(pairs)
    if not len(pairs):
        unmeasured = len(frames) * (len(frames) - 1) // 2 - len(scored)
        span = (
            f"from {scored[:, 2].min():.2f} to {scored[:, 2].max():.2f} in {len(scored)} pairs"
            if len(scored)
            else "none"
        )
        raise ValueError(
            f"no pair of the {len(frames)} frames has an overlap from {settings.min_overlap} to "
            f"{settings.max_overlap}. Overlaps found: {span}, {unmeasured} pairs certainly below. "
            f"The median depth is {report.median_depth:.3g} m. Change --min_overlap, --max_overlap "
            "or --frame_step, or check the poses (camera-to-world, metres) and --depth_unit."
        )
    return pairs


def _stacked(depths: list[np.ndarray]) -> np.ndarray:
    """Depth maps of any sizes as one (N, h, w); where a map ends there is no depth."""
    height, width = np.max([depth.shape for depth in depths], axis=0)
    return np.stack(
        [np.pad(d, ((0, height - d.shape[0]), (0, width - d.shape[1]))) for d in depths]
    )


def _draw_sheet(folder: Path, scene: SceneData, report: Report) -> None:
    # Loads matplotlib and torch, which every worker would otherwise pay for on starting.
    from datasets_preprocess.contact_sheet import Frame, FramePair, contact_sheet

    def frame(index: int) -> Frame:
        basename = scene.images[index]
        return Frame(
            basename,
            read_color(image_path(folder.parent, folder.name, basename)),
            read_depth(depth_path(folder.parent, folder.name, basename), scene.depth_unit),
            scene.intrinsics[index],
            scene.poses[index],
        )

    by_overlap = scene.pairs[np.argsort(scene.pairs[:, 2], kind="stable")[::-1]]
    shown = [
        FramePair(frame(int(i)), frame(int(j)), score)
        for i, j, score in by_overlap[spread(len(by_overlap), _SHEET_PAIRS)]
    ]
    errors = np.concatenate(
        [
            reprojection_errors(
                *(v for f in (p.first, p.second) for v in (f.depth, f.intrinsics, f.pose))
            )
            for p in shown
        ]
    )
    seen = errors[np.isfinite(errors)]
    report.reprojection_error = float(np.median(seen)) if len(seen) else 1.0
    contact_sheet(
        folder / SHEET_FILE,
        f"{scene.name} ({report.format})",
        [frame(index) for index in spread(len(scene.images), _SHEET_FRAMES)],
        shown,
        caption="\n".join(report.lines()),
    )
