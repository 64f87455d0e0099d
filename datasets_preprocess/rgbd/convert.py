"""One recording to one scene of the processed layout, with a report and a contact sheet."""

import json
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Sequence
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
from datasets_preprocess.overlap import reprojection_errors, score_pairs, select_pairs, shrink
from datasets_preprocess.rgbd.formats import RawFrame, Recording, intrinsics_matrix
from datasets_preprocess.rgbd.frames import (
    ColorCamera,
    align,
    find_color_camera,
    limit_size,
    read_color,
    read_depth_map,
)
from datasets_preprocess.rgbd.report import REPORT_FILE, SHEET_FILE, Report
from datasets_preprocess.rgbd.settings import Settings
from dust3r.utils.files import atomic_path

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

    Raises ValueError where fewer than two frames are usable or no pair's overlap is in the range.
    """
    report = Report(str(recording.folder), recording.format, asdict(settings))
    camera, report.color_camera = _color_camera(recording, settings)
    with new_scene(root, recording.name) as folder:
        frames = _write_frames(folder, recording, settings, camera, workers, report)
        pairs = _choose(frames, settings, report)
        scene = SceneData(
            recording.name,
            [frame.name for frame in frames],
            np.stack([frame.intrinsics for frame in frames]),
            np.stack([frame.pose for frame in frames]),
            pairs,
        )
        _draw_sheet(folder, scene, report)
        with atomic_path(folder / REPORT_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(report), indent=1))
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


def _write_frames(
    folder: Path,
    recording: Recording,
    settings: Settings,
    camera: ColorCamera | None,
    workers: Workers,
    report: Report,
) -> list[_Written]:
    write = partial(
        _write_frame,
        folder=folder,
        intrinsics=recording.intrinsics,
        camera=camera,
        rotated_bits=recording.rotated_bits,
        depth_unit=settings.depth_unit,
        max_side=settings.max_side,
    )
    outcomes = list(
        tqdm(
            workers.map(write, recording.frames),
            desc=recording.name,
            total=len(recording.frames),
            unit="frame",
        )
    )
    skipped = recording.skipped + Counter(item for item in outcomes if isinstance(item, str))
    frames = [item for item in outcomes if isinstance(item, _Written)]
    sizes = Counter(frame.small_depth.shape for frame in frames)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        for frame in frames:
            if frame.small_depth.shape != usual:
                skipped["depth of another size"] += 1
                image_path(folder.parent, folder.name, frame.name).unlink()
                depth_path(folder.parent, folder.name, frame.name).unlink()
        frames = [frame for frame in frames if frame.small_depth.shape == usual]
    report.frames, report.skipped = len(frames), dict(skipped.most_common())
    if len(frames) < 2:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        raise ValueError(
            f"{len(frames)} usable frame(s) in {recording.folder}, at least 2 are needed; left "
            f"out: {reasons or 'none'}"
        )
    return frames


def _write_frame(
    frame: RawFrame,
    *,
    folder: Path,
    intrinsics: np.ndarray,
    camera: ColorCamera | None,
    rotated_bits: bool,
    depth_unit: float,
    max_side: int | None,
) -> _Written | str:
    """Bring one frame into the scene's folder; the reason where it cannot be used."""
    try:
        depth = read_depth_map(frame.depth, depth_unit, rotated_bits=rotated_bits)
        rgb = read_color(frame.color)
    except ValueError as error:
        LOGGER.warning("left out: %s", error)
        return "unreadable colour or depth"
    aligned = limit_size(align(rgb, depth, intrinsics, camera), max_side)
    if (aligned.depth > 0).mean() < _MIN_VALID:
        return f"less than {_MIN_VALID:.0%} with depth"
    write_image(image_path(folder.parent, folder.name, frame.name), aligned.rgb)
    write_depth(depth_path(folder.parent, folder.name, frame.name), aligned.depth)
    stride = max(1, round(max(aligned.depth.shape) / _OVERLAP_SIDE))
    small = shrink(aligned.depth, aligned.intrinsics, stride)
    return _Written(frame.name, frame.pose, aligned.intrinsics, *small)


def _color_camera(recording: Recording, settings: Settings) -> tuple[ColorCamera | None, str]:
    if settings.color_intrinsics == "auto":
        return find_color_camera(recording, settings.depth_unit)
    if settings.color_intrinsics == "same":
        return None, "the depth camera's, as asked"
    matrix = intrinsics_matrix(*settings.color_intrinsics)
    return ColorCamera(matrix, np.array(settings.color_offset, np.float64)), "as given"


def _choose(frames: list[_Written], settings: Settings, report: Report) -> np.ndarray:
    """The pairs to keep (P, 3); fills the report's depth and overlap figures."""
    depths = np.stack([frame.small_depth for frame in frames])
    report.median_depth = float(np.median(depths[depths > 0]))
    scored = score_pairs(
        depths,
        np.stack([frame.small_intrinsics for frame in frames]),
        np.stack([frame.pose for frame in frames]),
        min_overlap=settings.min_overlap,
        progress=True,
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


def _draw_sheet(folder: Path, scene: SceneData, report: Report) -> None:
    # Loads matplotlib and torch, which every worker would otherwise pay for on starting.
    from datasets_preprocess.contact_sheet import Frame, FramePair, contact_sheet

    def frame(index: int) -> Frame:
        basename = scene.images[index]
        return Frame(
            basename,
            read_color(image_path(folder.parent, folder.name, basename)),
            read_depth(depth_path(folder.parent, folder.name, basename)),
            scene.intrinsics[index],
            scene.poses[index],
        )

    by_overlap = scene.pairs[np.argsort(scene.pairs[:, 2], kind="stable")[::-1]]
    shown = [
        FramePair(frame(int(i)), frame(int(j)), score)
        for i, j, score in by_overlap[_spaced(len(by_overlap), _SHEET_PAIRS)]
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
        [frame(index) for index in _spaced(len(scene.images), _SHEET_FRAMES)],
        shown,
        caption="\n".join(report.lines()),
    )


def _spaced(length: int, number: int) -> list[int]:
    """At most ``number`` indices, evenly spaced, of a list of this length."""
    return np.unique(np.linspace(0, length - 1, min(length, number)).round().astype(int)).tolist()
