"""Habitat's views: rendered from lists of cameras, indexed, checked.

    python -m datasets_preprocess.preprocess_habitat --output_dir ROOT \\
        --metadata_dir LISTS --scenes_dir SCENES                              render, then index
    python -m datasets_preprocess.preprocess_habitat --output_dir ROOT        index rendered views

``dust3r.datasets.habitat`` says what a view's files and the index are. LISTS holds
``<folder>/metadata.json``: "scene", the scene's file relative to SCENES, where needed
"scene_dataset_config_file", "resolution" [width, height] (512 by 512 by default), and "multiviews",
of each key the list of its five cameras, the central one first, each with camera_intrinsics,
R_cam2world (OpenCV's camera axes in Habitat's world) and t_cam2world in metres. Rendering needs
habitat-sim (https://github.com/facebookresearch/habitat-sim) and scenes that are had under licences
of their own (HM3D, Gibson, ReplicaCAD and others).

The index holds the keys of which all five views are whole. A folder with train, val or test in its
path is of that split; of the others about a tenth, by a hash of their names, are val.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import cv2
import numpy as np

from datasets_preprocess.check import check_written
from datasets_preprocess.habitat_renderer import HabitatRenderer, require_habitat_sim
from datasets_preprocess.indexed_pairs import listed_folder
from datasets_preprocess.scenes import SceneError, SceneReport, preprocess_scenes, run_command
from dust3r.datasets.habitat import (
    FIRST_VIEW,
    INDEX,
    VIEWS,
    Habitat,
    camera_of,
    read_camera_params,
    view_files,
)
from dust3r.datasets.held_out import held_out_scenes
from dust3r.utils.exr import write_exr_depth
from dust3r.utils.files import atomic_path

METADATA = "metadata.json"

_SIZE = (512, 512)
_SPLITS = ("train", "val", "test")
_MIN_VALID = 0.2
_CAMERA_SUFFIX = "_camera_params.json"
_PIXEL = 1.0

Renderer = Callable[..., HabitatRenderer]


@dataclass(frozen=True)
class ViewList:
    """A list of cameras to render: the folder it goes to, its file, and where scenes are."""

    name: str
    path: Path
    scenes: Path


def main(argv: list[str] | None = None) -> int:
    """Command line entry; 1 after a user's error."""
    return run_command(_run, _parser(), argv)


def render_list(item: ViewList, folder: Path, *, renderer: Renderer) -> SceneReport:
    """Render the views of a list into ``folder``; keys whose views see too little are left out.

    ``renderer(scene, size, focal, config)`` gives an object with ``render(pose)``.
    """
    stored = json.loads(item.path.read_text())
    missing = [key for key in ("scene", "multiviews") if key not in stored]
    if missing:
        raise SceneError(
            f"{item.path} lacks {', '.join(missing)}; it has {', '.join(stored)}: see the "
            "description of the lists in preprocess_habitat.py"
        )
    scene = item.scenes / stored["scene"]
    if not scene.is_file():
        raise SceneError(f"the scene {scene} is not there: download it, or check --scenes_dir")
    config = stored.get("scene_dataset_config_file")
    width, height = stored.get("resolution", _SIZE)
    views = {
        key: [camera_of(camera) for camera in cameras]
        for key, cameras in stored["multiviews"].items()
    }
    focal = _one_focal(item, views, (width, height))
    simulator = renderer(scene, (width, height), focal, config and item.scenes / config)
    report = SceneReport()
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    try:
        for key, cameras in views.items():
            _render_key(folder / key, cameras, intrinsics, simulator, report)
    finally:
        simulator.close()
    if not report.frames:
        raise SceneError(f"no key of {len(views)} could be rendered: {report.skipped}")
    return report


def find_views(root: Path) -> tuple[dict[str, list[str]], SceneReport]:
    """Folders in ``root`` with the keys of which all views are whole; and what was left out."""
    numbers: dict[Path, set[int]] = defaultdict(set)
    for path in sorted(root.rglob(f"*{_CAMERA_SUFFIX}")):
        key, _, view = path.name.removesuffix(_CAMERA_SUFFIX).rpartition("_")
        if key and view.isdigit() and not path.relative_to(root).parts[0].startswith("."):
            numbers[path.with_name(key)].add(int(view))
    found: dict[str, list[str]] = defaultdict(list)
    report = SceneReport()
    for key, views in sorted(numbers.items()):
        name = key.relative_to(root).as_posix()
        problem = _problem(key, views)
        if problem:
            report.skip(problem, name)
        else:
            found[key.parent.relative_to(root).as_posix()].append(name)
            report.frames += VIEWS
            report.pairs += VIEWS - 1
    return dict(found), report


def _run(options: argparse.Namespace) -> str:
    root, lines = options.output_dir, []
    if (options.metadata_dir is None) != (options.scenes_dir is None):
        raise ValueError("rendering takes both --metadata_dir and --scenes_dir")
    if options.metadata_dir is not None:
        lines.append(_render(options))
    listed_folder(root, "--output_dir")
    found, report = find_views(root)
    for reason, count in report.skipped.items():
        lines.append(f"left out {count}: {reason} (first: {report.examples[reason]})")
    if not found:
        raise ValueError(
            "\n".join([f"{root} has no key with {VIEWS} whole views <key>_1.jpeg ...", *lines])
        )
    for split, keys in _splits(found).items():
        index = root / INDEX.format(size=len(keys), split=split)
        with atomic_path(index) as temporary:
            temporary.write_text("".join(f"{key}\n" for key in keys))
        lines.append(f"{index}: {len(keys)} keys, {len(keys) * (VIEWS - 1)} pairs")
        for other in sorted(set(root.glob(INDEX.format(size="*", split=split))) - {index}):
            lines.append(f"another index is there too, the largest is read by default: {other}")
    dataset = Habitat(split="all", ROOT=root, resolution=_SIZE, seed=0)
    warnings = check_written(dataset, root, "Habitat")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings)])


def _render(options: argparse.Namespace) -> str:
    require_habitat_sim()
    root = listed_folder(options.metadata_dir, "--metadata_dir")
    scenes = listed_folder(options.scenes_dir, "--scenes_dir")
    lists = [
        ViewList(path.parent.relative_to(root).as_posix(), path, scenes)
        for path in sorted(root.glob(f"*/**/{METADATA}"))
    ]
    if not lists:
        raise FileNotFoundError(f"--metadata_dir {root} has no <folder>/{METADATA}")
    report = preprocess_scenes(
        lists,
        partial(render_list, renderer=HabitatRenderer),
        options.output_dir,
        name=attrgetter("name"),
        num_workers=options.num_workers,
        description="Habitat",
    )
    return report.summary()


def _render_key(
    key: Path,
    cameras: list[tuple[np.ndarray, np.ndarray]],
    intrinsics: np.ndarray,
    simulator: HabitatRenderer,
    report: SceneReport,
) -> None:
    if len(cameras) != VIEWS:
        report.skip(f"not {VIEWS} cameras", key.name)
        return
    seen = [simulator.render(pose) for _, pose in cameras]
    if min((depth > 0).mean() for _, depth in seen) < _MIN_VALID:
        report.skip(f"a view with less than {_MIN_VALID:.0%} of depth", key.name)
        return
    for view, ((rgb, depth), (_, pose)) in enumerate(
        zip(seen, cameras, strict=True), start=FIRST_VIEW
    ):
        image_path, depth_path, camera_path = view_files(key, view)
        with atomic_path(image_path) as temporary:
            if not cv2.imwrite(str(temporary), np.ascontiguousarray(rgb[..., ::-1])):
                raise OSError(f"{image_path}: the image could not be written")
        write_exr_depth(depth_path, depth)
        stored = {
            "camera_intrinsics": intrinsics.tolist(),
            "R_cam2world": pose[:3, :3].tolist(),
            "t_cam2world": pose[:3, 3].tolist(),
        }
        with atomic_path(camera_path) as temporary:
            temporary.write_text(json.dumps(stored))
    report.frames += VIEWS
    report.pairs += VIEWS - 1


def _one_focal(
    item: ViewList, views: dict[str, list[tuple[np.ndarray, np.ndarray]]], size: tuple[int, int]
) -> float:
    """The focal length of all cameras of a list, which habitat-sim has one camera for."""
    stated = np.array([camera for cameras in views.values() for camera, _ in cameras])
    if not len(stated):
        raise SceneError(f"{item.path} lists no camera")
    spread = np.abs(stated - stated[0]).max()
    off_centre = np.abs(stated[0, :2, 2] - np.array(size) / 2).max()
    if spread > 1e-3 or off_centre > _PIXEL or abs(stated[0, 0, 0] - stated[0, 1, 1]) > 1e-3:
        raise SceneError(
            f"{item.path}: habitat-sim renders with one camera, of square pixels and a principal "
            f"point in the middle; got {stated[0].tolist()} for {size[0]}x{size[1]}"
        )
    return float(stated[0, 0, 0])


def _problem(key: Path, views: set[int]) -> str | None:
    """Why the views of a key cannot be used, or None."""
    first = min(views)
    if first > FIRST_VIEW or views != set(range(first, first + VIEWS)):
        return f"not {VIEWS} views"
    for view in sorted(views):
        image, depth, camera = view_files(key, view)
        if not all(path.is_file() and path.stat().st_size for path in (image, depth)):
            return "missing or empty image or depth map"
        try:
            read_camera_params(camera)
        except ValueError:
            return "damaged camera file"
    return None


def _splits(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """The keys of each split that has any."""
    stated = {
        folder: next((part for part in Path(folder).parts if part in _SPLITS), None)
        for folder in found
    }
    free = [folder for folder, split in stated.items() if split is None]
    held_out = dict(zip(free, held_out_scenes(free), strict=True))
    keys: dict[str, list[str]] = defaultdict(list)
    for folder, names in found.items():
        keys[stated[folder] or ("val" if held_out[folder] else "train")] += names
    return dict(keys)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Habitat's views: rendered from lists of cameras, indexed, checked.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="ROOT of the views")
    parser.add_argument("--metadata_dir", type=Path, help=f"folder of <folder>/{METADATA}")
    parser.add_argument("--scenes_dir", type=Path, help="folder of the scenes to render")
    parser.add_argument("--num_workers", type=int, default=1, help="processes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
