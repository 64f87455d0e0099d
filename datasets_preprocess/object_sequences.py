"""What the preprocessing of walks around an object shares: quality, size, lists of sequences."""

import argparse
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets_preprocess.rgbd.frames import limit_size
from datasets_preprocess.rgbd.recording import RgbdFrame
from datasets_preprocess.scenes import RunReport, SceneError, SceneReport, preprocess_scenes
from dust3r.datasets.object_sequences import ObjectSequences
from dust3r.utils.files import atomic_path

SPLITS = ("train", "test")

_LEAST_SIZE = 32
_MIN_MASK = 0.01
_MIN_DEPTH = 0.01
_FOREGROUND = 25
_INDEX = "selected_seqs_{split}.json"


class FrameError(ValueError):
    """A frame that cannot be used; the message is the reason, the same for all such frames."""


@dataclass(frozen=True)
class ObjectFrame:
    """A frame on one pixel grid: ``rgb`` (H, W, 3) uint8, ``depth`` (H, W) float32 with 0 = none,
    ``mask`` (H, W) uint8 probability of the object in 255 steps, ``intrinsics`` (3, 3) pixels with
    the first pixel's centre at (0, 0), ``pose`` (4, 4) camera-to-world in OpenCV's axes."""

    rgb: np.ndarray
    depth: np.ndarray
    mask: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True)
class Item:
    """A sequence to convert. ``frames`` is what the release's annotations say of them, and
    ``fault`` the reason where the sequence is not to be used."""

    folder: Path
    category: str
    sequence: str
    frames: list = field(default_factory=list)
    fault: str = ""

    @property
    def name(self) -> str:
        return f"{self.category}/{self.sequence}"


@dataclass(frozen=True)
class Category:
    """A category's sequences, and {sequence: frame numbers} of the splits 'train' and 'test'.

    None in the place of frame numbers stands for all that were written.
    """

    items: list[Item]
    splits: dict[str, dict[str, list[int] | None]]


def run(
    options: argparse.Namespace,
    source: Path,
    marker: str,
    read: Callable[[str], Category],
    convert: Callable[[Item, Path], SceneReport],
    dataset: type[ObjectSequences],
    cameras: str,
) -> str:
    """Convert the categories in ``source``, write the lists of sequences, check what was written.

    Args:
        options: those of ``add_arguments``.
        source: folder of the raw release.
        marker: what a category's folder holds.
        read: reads a category; one whose annotations are damaged is left out.
        convert: makes a sequence.
        dataset: the class that reads the result.
        cameras: folder in a sequence of the NPZ files that, named by their number, tell which
            frames there are.

    Returns:
        What to tell the user.

    Raises:
        FileNotFoundError: no category, or a wanted one is not there.
        ValueError: no sequence can be used, or an option makes no sense.
    """
    # Loads matplotlib, which every worker would otherwise pay for on starting.
    from datasets_preprocess.check import check_written

    if options.img_size < _LEAST_SIZE or options.num_sequences_per_object < 0:
        raise ValueError(
            f"--img_size must be at least {_LEAST_SIZE} and --num_sequences_per_object 0 or more, "
            f"got {options.img_size} and {options.num_sequences_per_object}"
        )
    report, resumed, damaged = RunReport(), 0, []
    for name in _categories(source, options.category, marker):
        try:
            category = read(name)
        except (ValueError, OSError, EOFError, KeyError, zlib.error) as error:
            damaged.append(f"category left out: {name}: {type(error).__name__}: {error}")
            continue
        try:
            report = preprocess_scenes(
                category.items,
                partial(_convert_item, convert=convert),
                options.output_dir,
                name=attrgetter("name"),
                num_workers=options.num_workers,
                description=name,
            )
        finally:
            _write_lists(name, category.splits, options.output_dir, cameras)
        resumed += report.resumed
    report.resumed = resumed
    told = [report.summary(), *damaged]
    if not report.scenes:
        raise ValueError("no sequence can be used\n" + "\n".join(told))
    size = (options.img_size // 16 * 16, options.img_size * 3 // 4 // 16 * 16)
    pairs = dataset("all", options.output_dir, size, mask_bg=False, seed=0)
    told += [
        f"warning: {warning}"
        for warning in check_written(pairs, options.output_dir, dataset.__name__)
    ]
    return "\n".join([*told, f"look at {options.output_dir / 'contact_sheet.png'}"])


def add_arguments(parser: argparse.ArgumentParser, source: str) -> None:
    """The options that the scripts share; ``source`` names the one of the raw release's folder."""
    parser.add_argument(f"--{source}", type=Path, required=True, help="folder of the raw release")
    parser.add_argument("--output_dir", type=Path, required=True, help="ROOT of the processed data")
    parser.add_argument("--category", nargs="+", help="categories; all that are there by default")
    parser.add_argument(
        "--num_sequences_per_object",
        "--max_num_sequences_per_object",
        type=int,
        default=50,
        help="most sequences of a category in each split, 0 for all",
    )
    parser.add_argument("--seed", type=int, default=42, help="chooses the sequences")
    parser.add_argument(
        "--img_size",
        type=int,
        default=512,
        help="longest side to scale down to, as far as the shorter keeps three quarters of it",
    )
    parser.add_argument("--num_workers", type=int, default=1, help="processes")


def choose(names: Iterable[str], most: int, seed: int) -> list[str]:
    """At most ``most`` of the names (0 for all), sorted; a larger choice holds a smaller one."""
    names = sorted(names)
    order = np.random.default_rng(seed).permutation(len(names))
    return sorted(names[place] for place in (order[:most] if most else order))


def convert_frames(
    frames: Sequence,
    number: Callable[[object], int],
    load: Callable[[object], ObjectFrame],
    write: Callable[[int, ObjectFrame], None],
    img_size: int,
) -> SceneReport:
    """Load, judge, scale and write every frame of a sequence; ``number(frame)`` is its number.

    A frame is left out, and named in the report, where ``load`` raises FileNotFoundError or
    ValueError (such as ``FrameError``), or too little of it has depth or shows the object. Raises
    SceneError where fewer than two remain.
    """
    report = SceneReport()
    for frame in frames:
        name = f"frame {number(frame)}"
        try:
            loaded = load(frame)
            _check_quality(loaded)
        except FrameError as error:
            report.skip(str(error), name)
        except FileNotFoundError as error:
            report.skip("missing file", f"{name}: {error}")
        except ValueError as error:
            report.skip("cannot be read", f"{name}: {error}")
        else:
            write(number(frame), scaled(loaded, img_size))
            report.frames += 1
    if report.frames < 2:
        why = "; ".join(
            f"{count} {reason} ({report.examples[reason]})"
            for reason, count in report.skipped.items()
        )
        raise SceneError(
            f"{report.frames} usable frame(s) of {len(frames)}, at least 2 are needed"
            + (f"; left out: {why}" if why else "")
        )
    return report


def scaled(frame: ObjectFrame, img_size: int) -> ObjectFrame:
    """The frame scaled down, never up, as far as its sides still cover (img_size, 3/4 img_size)."""
    height, width = frame.depth.shape
    factor = max(img_size / max(height, width), 0.75 * img_size / min(height, width))
    if factor >= 1:
        return frame
    longest = int(np.ceil(factor * max(height, width) - 1e-6))
    small = limit_size(RgbdFrame(frame.rgb, frame.depth, frame.intrinsics), longest)
    size = small.depth.shape[::-1]
    mask = cv2.resize(frame.mask, size, interpolation=cv2.INTER_AREA)
    return ObjectFrame(small.rgb, small.depth, mask, small.intrinsics, frame.pose)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) uint8 as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(mask).save(temporary)


def write_camera(path: Path, frame: ObjectFrame, **more: float) -> None:
    """Write a frame's pose and intrinsics, and ``more``, as NPZ, whole or not at all."""
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            camera_pose=frame.pose.astype(np.float32),
            camera_intrinsics=frame.intrinsics.astype(np.float32),
            **{key: np.float32(value) for key, value in more.items()},
        )


def _categories(source: Path, wanted: Sequence[str] | None, marker: str) -> list[str]:
    """The categories in ``source``: folders that hold ``marker``.

    Raises FileNotFoundError where there is none, or a wanted one is not there.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder; give that of the raw release")
    found = sorted(path.parent.name for path in source.glob(f"*/{marker}"))
    missing = sorted(set(wanted or []) - set(found))
    if missing or not found:
        raise FileNotFoundError(
            f"{source} has no {', '.join(missing) or 'category'}: expected <category>/{marker}; "
            f"found {', '.join(found) or 'none'}"
        )
    return sorted(set(wanted)) if wanted else found


def _convert_item(
    item: Item, folder: Path, *, convert: Callable[[Item, Path], SceneReport]
) -> SceneReport:
    if item.fault:
        raise SceneError(item.fault)
    return convert(item, folder)


def _check_quality(frame: ObjectFrame) -> None:
    if frame.mask.shape != frame.depth.shape or frame.rgb.shape[:2] != frame.depth.shape:
        raise FrameError("image, depth and mask differ in size")
    turn = frame.pose[:3, :3]
    if not (np.isfinite(frame.pose).all() and np.isfinite(frame.intrinsics).all()):
        raise FrameError("pose or intrinsics are not finite")
    if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-2) or np.linalg.det(turn) < 0:
        raise FrameError("the pose holds no rotation")
    shown = frame.mask > _FOREGROUND
    if shown.mean() < _MIN_MASK:
        raise FrameError(f"the object covers less than {_MIN_MASK:.0%}")
    if ((frame.depth > 0) & shown).mean() < _MIN_DEPTH:
        raise FrameError(f"depth on the object covers less than {_MIN_DEPTH:.0%}")


def _write_lists(
    category: str, splits: dict[str, dict[str, list[int] | None]], output_dir: Path, cameras: str
) -> None:
    """Lists of a category's finished sequences, and the folder's lists over all categories."""
    for split in SPLITS:
        listed = {}
        for sequence, frames in sorted(splits[split].items()):
            there = _written_frames(output_dir / category / sequence / cameras)
            chosen = sorted(there if frames is None else there.intersection(frames))
            if chosen:
                listed[sequence] = chosen
        # Each category keeps its own, so that runs on different ones may go side by side.
        file = _INDEX.format(split=split)
        if (output_dir / category).is_dir():
            _write_json(output_dir / category / file, listed)
        # Others stay listed, made by whichever program.
        known = json.loads((output_dir / file).read_text()) if (output_dir / file).is_file() else {}
        whole = {name: listed for name, listed in known.items() if (output_dir / name).is_dir()}
        for part in output_dir.glob(f"*/{file}"):
            whole[part.parent.name] = json.loads(part.read_text())
        _write_json(output_dir / file, dict(sorted(whole.items())))


def _written_frames(folder: Path) -> set[int]:
    if not folder.is_dir():
        return set()
    stems = (Path(entry.name).stem for entry in os.scandir(folder) if entry.name.endswith(".npz"))
    return {int(stem.removeprefix("frame")) for stem in stems}


def _write_json(path: Path, content: object) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))
