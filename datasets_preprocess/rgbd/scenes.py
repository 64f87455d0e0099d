"""What the scripts of single data sets share: scenes, found by them, to the processed layout."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import cv2

from datasets_preprocess.layout import complete_scenes, image_path, load_scene, rebuild_metadata
from datasets_preprocess.rgbd.convert import Workers, write_scene
from datasets_preprocess.rgbd.recording import Recording
from datasets_preprocess.rgbd.settings import Settings, add_choice_arguments, chosen
from datasets_preprocess.scenes import SceneReport, preprocess_scenes

# A minute of video has millions of pairs, more than anybody evaluates.
DEFAULT_MAX_PAIRS = 2000
_CHECKED_SIDE = 512


@dataclass(frozen=True)
class Source:
    """A scene to make: its name, where it is read from, and its part of the official split."""

    name: str
    folder: Path
    split: str = ""


ReadScene = Callable[[Source, Settings], Recording]


def scene_parser(description: str, defaults: Settings | None = None) -> argparse.ArgumentParser:
    """A parser with the arguments that all these scripts have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="ROOT of the data set made")
    parser.add_argument("--num_workers", type=int, default=2, help="processes")
    add_choice_arguments(parser, defaults or Settings(max_pairs=DEFAULT_MAX_PAIRS))
    return parser


def preprocess_sources(
    sources: Sequence[Source],
    read: ReadScene,
    options: argparse.Namespace,
    dataset: Callable[..., object],
) -> str:
    """Make every source a scene of ``options.output_dir``, index them, look at what came out.

    Scenes that are there are kept. ``read`` lists a scene's frames and is picklable; what it raises
    as ValueError or OSError is why that scene is left out. ``dataset`` is the class of
    ``dust3r.datasets`` that reads the result. Returns the report to print.

    Raises:
        ValueError: there is no source, an option cannot be, or no scene could be made.
        OSError: the disk is full.
    """
    if not sources:
        raise ValueError("found no scene to preprocess; see --help for the folders that are read")
    root = options.output_dir
    report = preprocess_scenes(
        sources,
        partial(_convert, read=read, settings=chosen(options)),
        root,
        name=attrgetter("name"),
        num_workers=options.num_workers,
        description=root.name,
    )
    if not complete_scenes(root):
        raise ValueError(f"no scene could be made. {report.summary()}")
    index = rebuild_metadata(root)
    lines = [report.summary(), f"{root}: {len(index.scenes)} scenes, {len(index.pairs)} pairs"]
    # Loads matplotlib and torch, which would keep --help waiting.
    from datasets_preprocess.check import check_written

    written = dataset(split="all", ROOT=root, resolution=_resolution(root), seed=0)
    lines += [f"warning: {text}" for text in check_written(written, root, root.name)]
    return "\n".join(lines)


def require_folder(folder: Path, argument: str, holds: str) -> Path:
    """``folder``, made absolute; FileNotFoundError where it is none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument} {folder} is no folder; expected one with {holds}")
    return folder.resolve()


def _convert(source: Source, folder: Path, *, read: ReadScene, settings: Settings) -> SceneReport:
    recording = read(source, settings)
    recording.split = source.split
    with Workers(1) as workers:
        report = write_scene(folder, recording, settings, workers)
    return SceneReport(report.frames, report.pairs, report.skipped, report.examples)


def _resolution(root: Path) -> tuple[int, int]:
    """A (width, height) to look at the data in, of about the shape of its images."""
    scene = load_scene(root / complete_scenes(root)[0])
    height, width = cv2.imread(str(image_path(root, scene.name, scene.images[0]))).shape[:2]
    long, short = max(height, width), min(height, width)
    scale = min(_CHECKED_SIDE, long) / long
    long, short = (max(16, int(scale * side) // 16 * 16) for side in (long, short))
    return long, short
