"""Recognising RGB-D recordings on disk, and listing their frames with poses and cameras.

- **7-Scenes** (Shotton et al., "Scene coordinate regression forests", CVPR 2013; the page of the
  data set at Microsoft Research): ``frame-XXXXXX.color.png`` or ``.jpg``, ``.depth.png`` (uint16
  millimetres, 65535 = none), ``.pose.txt`` (4x4 camera-to-world, metres), one pinhole camera for
  all frames (585 585 320 240 in the data set itself; its colour camera is another, not given).
- **ScanNet** (Dai et al., "ScanNet", CVPR 2017; what the SensReader of its repository exports):
  ``color/0.jpg``, ``depth/0.png`` (uint16 millimetres, 0 = none), ``pose/0.txt`` (4x4
  camera-to-world, all -inf where tracking failed), ``intrinsic/intrinsic_{color,depth}.txt`` (4x4).
- **SUN3D** (Xiao et al., "SUN3D", ICCV 2013; the reader that the data set's page offers):
  ``image/<id>-<time>.jpg``, ``depth/<id>-<time>.png`` (millimetres, the 16 bits rotated by 3),
  ``intrinsics.txt`` (3x3), ``extrinsics/<date>.txt`` (3x4 camera-to-world, one for every image; the
  newest file counts), frames of the two streams belong together by their time.
- **TUM RGB-D** and **ScanNet's .sens files**: see ``tum`` and ``sens``.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets_preprocess.rgbd.recording import (
    RawFrame,
    Recording,
    intrinsics_matrix,
    pose_fault,
)
from datasets_preprocess.rgbd.sens import read_sens
from datasets_preprocess.rgbd.tum import read_tum

LOGGER = logging.getLogger(__name__)

SEVEN_SCENES_INTRINSICS = (585.0, 585.0, 320.0, 240.0)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def find_recordings(
    inputs: list[Path],
    format_name: str = "auto",
    *,
    intrinsics: np.ndarray | None = None,
    frame_step: int = 1,
) -> list[Recording]:
    """The recordings in the folders ``inputs``, each of them one recording or holding several.

    ``intrinsics`` (3, 3) replace those found; every ``frame_step``-th frame is listed. A recording
    is named after its folder; one called ``seq-NN`` also after its parent, and so are those whose
    folders have the same name. Raises FileNotFoundError for a folder that is not there, and
    ValueError for one that no format fits, saying what was looked for, or for equal names.
    """
    folders: list[tuple[Path, str]] = []
    for folder in inputs:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; --input takes recordings' folders")
        folders.extend(_recognise(folder.resolve(), format_name))
    names = _names([folder for folder, _ in folders])
    return [
        FORMATS[kind].read(folder, name, intrinsics, frame_step)
        for (folder, kind), name in zip(folders, names, strict=True)
    ]


@dataclass(frozen=True)
class Format:
    """How to tell a format by a folder's content, in code and in words, and how to read it."""

    fits: Callable[[Path], bool]
    looks_like: str
    read: Callable[[Path, str, np.ndarray | None, int], Recording]


def _read_seven_scenes(
    folder: Path, name: str, intrinsics: np.ndarray | None, frame_step: int
) -> Recording:
    if intrinsics is None:
        found = [p / "camera-intrinsics.txt" for p in (folder, folder.parent)]
        file = next((path for path in found if path.is_file()), None)
        if file is not None:
            intrinsics = _read_intrinsics(file)
        else:
            intrinsics = intrinsics_matrix(*SEVEN_SCENES_INTRINSICS)
            LOGGER.warning(
                "%s: no camera-intrinsics.txt; taking 7-Scenes' fx fy cx cy = 585 585 320 240. "
                "Other cameras need --intrinsics.",
                name,
            )
    recording = Recording(name, folder, "7scenes", intrinsics, [])
    colours = sorted(p for p in folder.glob("*.color.*") if p.suffix.lower() in _IMAGE_SUFFIXES)
    for colour in colours[::frame_step]:
        stem = colour.name.rsplit(".color.", 1)[0]
        pose = _read_pose(folder / f"{stem}.pose.txt")
        _add(recording, stem, colour, folder / f"{stem}.depth.png", pose)
    return recording


def _read_scannet(
    folder: Path, name: str, intrinsics: np.ndarray | None, frame_step: int
) -> Recording:
    colour_file = folder / "intrinsic" / "intrinsic_color.txt"
    depth_file = folder / "intrinsic" / "intrinsic_depth.txt"
    if intrinsics is None:
        if not depth_file.is_file():
            raise FileNotFoundError(
                f"{depth_file} does not exist; export the recording with --export_intrinsics, or "
                "give --intrinsics fx fy cx cy of the depth camera"
            )
        intrinsics = _read_intrinsics(depth_file)
    recording = Recording(name, folder, "scannet", intrinsics, [])
    if colour_file.is_file():
        recording.color_intrinsics = _read_intrinsics(colour_file)
    for colour in sorted(_images(folder / "color"), key=_by_number)[::frame_step]:
        pose = _read_pose(folder / "pose" / f"{colour.stem}.txt")
        _add(recording, colour.stem, colour, folder / "depth" / f"{colour.stem}.png", pose)
    return recording


def _read_sun3d(
    folder: Path, name: str, intrinsics: np.ndarray | None, frame_step: int
) -> Recording:
    if intrinsics is None:
        intrinsics = _read_intrinsics(folder / "intrinsics.txt")
    recording = Recording(name, folder, "sun3d", intrinsics, [], rotated_bits=True)
    images = sorted(_images(folder / "image"), key=lambda path: _sun3d_stamp(path)[0])
    stamps = [_sun3d_stamp(path) for path in images]
    poses = _sun3d_poses(folder, [number for number, _ in stamps])
    depths = sorted((folder / "depth").glob("*.png"), key=lambda path: _sun3d_stamp(path)[1])
    times = np.array([_sun3d_stamp(path)[1] for path in depths], np.float64)
    # Streams run at one rate but not in step: the right partner is at most half a frame's duration
    # away, and a little more where frames jitter.
    streams = (times, np.array([time for _, time in stamps], np.float64))
    frame_time = min((np.median(np.diff(each)) for each in streams if len(each) > 1), default=0)
    for index in range(0, len(images), frame_step):
        gaps = np.abs(times - stamps[index][1])
        if not len(gaps) or gaps.min() > 0.6 * frame_time:
            recording.skip("no depth at that time", images[index].name)
            continue
        _add(recording, images[index].stem, images[index], depths[gaps.argmin()], poses[index])
    return recording


FORMATS = {
    "7scenes": Format(
        lambda folder: any(folder.glob("*.color.*")) and any(folder.glob("*.depth.png")),
        "frame-XXXXXX.color.jpg (or .png), .depth.png and .pose.txt",
        _read_seven_scenes,
    ),
    "scannet": Format(
        lambda folder: all((folder / part).is_dir() for part in ("color", "depth", "pose")),
        "folders color/, depth/, pose/ and intrinsic/",
        _read_scannet,
    ),
    "sun3d": Format(
        lambda folder: all((folder / part).is_dir() for part in ("image", "depth", "extrinsics")),
        "folders image/, depth/, extrinsics/ and a file intrinsics.txt",
        _read_sun3d,
    ),
    "tum": Format(
        lambda folder: all(
            (folder / part).is_file() for part in ("rgb.txt", "depth.txt", "groundtruth.txt")
        ),
        "files rgb.txt, depth.txt and groundtruth.txt",
        read_tum,
    ),
    "sens": Format(lambda folder: any(folder.glob("*.sens")), "a file <scene>.sens", read_sens),
}


def _recognise(folder: Path, format_name: str) -> list[tuple[Path, str]]:
    """The folder, or else those right below it, that a format fits, with the format's name."""
    kinds = list(FORMATS) if format_name == "auto" else [format_name]
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    for candidates in ([folder], below):
        # A ScanNet folder may hold the .sens file and what was exported from it: the first counts.
        fitting = [(path, [k for k in kinds if FORMATS[k].fits(path)]) for path in candidates]
        found = [(path, fits[0]) for path, fits in fitting if fits]
        if found:
            return found
    looked_for = "; ".join(f"{kind}: {FORMATS[kind].looks_like}" for kind in kinds)
    content = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    raise ValueError(
        f"{folder}: no RGB-D recording there or in the folders right below it. Looked for "
        f"{looked_for}. The folder holds {', '.join(content[:6]) or 'nothing'}"
        f"{f' and {len(content) - 6} more' if len(content) > 6 else ''}."
    )


def _names(folders: list[Path]) -> list[str]:
    own = [
        f"{path.parent.name}_{path.name}" if re.fullmatch(r"seq-?\d+", path.name) else path.name
        for path in folders
    ]
    longer = [
        f"{path.parent.name}_{path.name}" if own.count(name) > 1 else name
        for path, name in zip(folders, own, strict=True)
    ]
    for path, name in zip(folders, longer, strict=True):
        if longer.count(name) > 1:
            raise ValueError(
                f"two inputs would both become the scene {name!r}, one of them {path}; rename a "
                "folder, or give each input once"
            )
    return longer


def _add(
    recording: Recording, name: str, colour: Path, depth: Path, pose: np.ndarray | str
) -> None:
    """List the frame, or count why it cannot be used."""
    if isinstance(pose, str):
        fault: str | None = pose
    elif not depth.is_file():
        fault = "no depth file"
    else:
        fault = pose_fault(pose)
    if fault:
        recording.skip(fault, colour.name)
    else:
        recording.frames.append(RawFrame(name, colour, depth, pose))


def _read_pose(path: Path) -> np.ndarray | str:
    """The (4, 4) matrix in a text file, or why there is none."""
    if not path.is_file():
        return "no pose file"
    try:
        values = np.array(path.read_text().split(), np.float64)
    except ValueError:
        return "pose unreadable"
    return values.reshape(4, 4) if values.size == 16 else "pose unreadable"


def _read_intrinsics(path: Path) -> np.ndarray:
    """(3, 3) intrinsics from a text file of 3x3 or 4x4 values, or of fx fy cx cy."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; add it, or give --intrinsics fx fy cx cy")
    try:
        values = np.array(path.read_text().replace(",", " ").split(), np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: not a matrix of numbers ({error})") from error
    side = {9: 3, 16: 4}.get(values.size)
    if side is None and values.size != 4:
        raise ValueError(f"{path}: expected 3x3, 4x4 or fx fy cx cy, got {values.size} numbers")
    matrix = intrinsics_matrix(*values) if side is None else values.reshape(side, side)[:3, :3]
    if not (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise ValueError(f"{path}: focal lengths must be positive, got {matrix.tolist()}")
    return matrix


def _images(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES]


def _by_number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else -1, path.stem)


def _sun3d_stamp(path: Path) -> tuple[int, int]:
    """Frame number, from 1, and time stamp of ``0000001-000000012345.jpg``."""
    match = re.fullmatch(r"(\d+)-(\d+)", path.stem)
    if not match:
        raise ValueError(f"{path}: SUN3D names frames <number>-<time>, as 0000001-000000012345")
    return int(match[1]), int(match[2])


def _sun3d_poses(folder: Path, numbers: list[int]) -> list[np.ndarray | str]:
    """The pose of each image: by its place, or by its number where images were taken out."""
    files = sorted((folder / "extrinsics").glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"{folder / 'extrinsics'}: no .txt file with the poses there")
    values = np.array(files[-1].read_text().split(), np.float64)
    if not values.size or values.size % 12:
        raise ValueError(f"{files[-1]}: expected 3x4 matrices, got {values.size} numbers")
    stored = values.reshape(-1, 3, 4)
    poses = np.concatenate([stored, np.tile([[[0.0, 0, 0, 1]]], (len(stored), 1, 1))], axis=1)
    places = range(len(numbers))
    if len(poses) != len(numbers):
        places = [number - 1 for number in numbers]
        if max(places) >= len(poses):
            raise ValueError(
                f"{files[-1]}: holds {len(poses)} poses for {len(numbers)} images numbered up to "
                f"{max(numbers)}; expected one for every image ever recorded"
            )
    return [poses[place] if place >= 0 else "no pose" for place in places]
