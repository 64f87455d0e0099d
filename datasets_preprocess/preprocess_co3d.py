"""CO3D version 2, as it is downloaded, to the layout that ``Co3d`` reads.

    python -m datasets_preprocess.preprocess_co3d --co3d_dir RAW --output_dir ROOT

The release's format is documented at https://github.com/facebookresearch/co3d (README, "Dataset
format", and ``co3d/dataset/data_types.py``), its cameras at https://pytorch3d.org/docs/cameras: a
category's folder holds ``frame_annotations.jgz`` and ``sequence_annotations.jgz`` (gzipped JSON),
``set_lists`` (which frames belong to which split) and a folder for each sequence. Depth PNGs hold
the bits of half floats, to be multiplied by ``scale_adjustment``. Points are rows, x left, y up:
camera = world R + T. Focal lengths and principal points are in units of half the shorter side
(``ndc_isotropic``) or of half of either side (``ndc_norm_image_bounds``).

Training frames are those of the set list's "train", test frames those of its "test".
``--single_sequence_subset`` says that RAW is the release's small subset: its sequences are those of
the many-view set lists, where it has them, and listed ones that are not in the subset are no fault.
"""

import argparse
import gzip
import json
import sys
from functools import partial
from operator import itemgetter
from pathlib import Path

import cv2
import numpy as np

from datasets_preprocess.layout import write_depth, write_image
from datasets_preprocess.object_sequences import (
    SPLITS,
    Category,
    FrameError,
    Item,
    ObjectFrame,
    add_arguments,
    choose,
    convert_frames,
    run,
    write_camera,
    write_mask,
)
from datasets_preprocess.scenes import SceneReport, run_command
from dust3r.datasets.co3d import Co3d
from dust3r.utils.image import read_depth_png, read_rgb

_FRAMES, _SEQUENCES = "frame_annotations.jgz", "sequence_annotations.jgz"
_FEW_VIEWS, _MANY_VIEWS = "set_lists_fewview_dev.json", "set_lists_manyview_*.json"
# Reconstructions have a few points far behind everything, which would cost the rest its precision.
_FARTHEST = 20.0
_MOST_STEPS = 65535


def main(argv: list[str] | None = None) -> int:
    """Command line entry; 0, or 1 after a user's error."""
    return run_command(_run, _parser(), argv)


def pixel_camera(viewpoint: dict, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (3, 3) in pixels and pose (4, 4) camera-to-world, OpenCV's axes, of a viewpoint.

    Args:
        viewpoint: a frame annotation's, in PyTorch3D's convention.
        size: (width, height) of the image.

    Raises:
        ValueError: the format of the intrinsics is unknown.
    """
    half = np.array(size) / 2
    form = viewpoint.get("intrinsics_format", "ndc_norm_image_bounds")
    if form not in ("ndc_isotropic", "ndc_norm_image_bounds"):
        raise ValueError(
            f"intrinsics_format={form!r} is unknown; expected ndc_isotropic or "
            "ndc_norm_image_bounds"
        )
    unit = np.full(2, half.min()) if form == "ndc_isotropic" else half
    intrinsics = np.eye(3)
    intrinsics[[0, 1], [0, 1]] = np.array(viewpoint["focal_length"]) * unit
    # x and y count leftwards and upwards from the middle, and the first pixel's centre is half a
    # pixel inside the image.
    intrinsics[:2, 2] = half - np.array(viewpoint["principal_point"]) * unit - 0.5
    turn = np.array(viewpoint["R"], float) * [-1, -1, 1]
    pose = np.eye(4)
    pose[:3, :3] = turn
    pose[:3, 3] = -turn @ (np.array(viewpoint["T"]) * [-1, -1, 1])
    return intrinsics, pose


def decode_depth(steps: np.ndarray, scale: float) -> np.ndarray:
    """Depth (H, W) float32, 0 where none, of a PNG's (H, W) uint16: the bits of half floats."""
    depth = steps.astype(np.uint16).view(np.float16).astype(np.float32) * np.float32(scale)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _run(options: argparse.Namespace) -> str:
    return run(
        options,
        options.co3d_dir,
        _FRAMES,
        partial(_read_category, options=options),
        partial(_convert, img_size=options.img_size),
        Co3d,
        "images",
    )


def _read_category(category: str, *, options: argparse.Namespace) -> Category:
    folder = options.co3d_dir / category
    quality = {
        entry["sequence_name"]: entry.get("viewpoint_quality_score")
        for entry in _read_jgz(folder / _SEQUENCES)
    }
    listed = _set_lists(folder / "set_lists", options.single_sequence_subset)
    faults = {}
    for sequence in sorted(set().union(*listed.values())):
        score = quality.get(sequence)
        if not (folder / sequence).is_dir():
            faults[sequence] = "its folder is missing: not downloaded, or not unpacked"
        elif score is None or not score >= options.min_quality:
            faults[sequence] = f"viewpoint quality {score}, below {options.min_quality}"
    splits = {}
    for split, sequences in listed.items():
        usable = set(sequences) - set(faults)
        chosen = choose(usable, options.num_sequences_per_object, options.seed)
        splits[split] = {sequence: sequences[sequence] for sequence in chosen}
    if options.single_sequence_subset:
        faults = {name: fault for name, fault in faults.items() if (folder / name).is_dir()}
    annotated = {}
    for frame in _read_jgz(folder / _FRAMES):
        annotated.setdefault(frame["sequence_name"], {})[frame["frame_number"]] = frame
    items = [Item(folder, category, name, fault=fault) for name, fault in faults.items()]
    for sequence in sorted(set().union(*splits.values())):
        numbers = sorted({n for chosen in splits.values() for n in chosen.get(sequence, [])})
        known = annotated.get(sequence, {})
        frames = [known.get(number, {"frame_number": number}) for number in numbers]
        items.append(Item(folder, category, sequence, frames))
    return Category(items, splits)


def _set_lists(folder: Path, subset: bool) -> dict[str, dict[str, list[int]]]:
    """{split: {sequence: frame numbers}} of a category's set lists."""
    few, many = (sorted(folder.glob(pattern)) for pattern in (_FEW_VIEWS, _MANY_VIEWS))
    files = (many or few) if subset else (few or many)
    if not files:
        raise FileNotFoundError(f"{folder} has neither {_FEW_VIEWS} nor {_MANY_VIEWS}")
    listed: dict[str, dict[str, list[int]]] = {split: {} for split in SPLITS}
    for file in files:
        content = json.loads(file.read_text())
        for split in SPLITS:
            for sequence, number, *_ in content.get(split, []):
                listed[split].setdefault(sequence, []).append(number)
    return listed


def _read_jgz(path: Path) -> list[dict]:
    with gzip.open(path) as file:
        return json.load(file)


def _convert(item: Item, folder: Path, *, img_size: int) -> SceneReport:
    return convert_frames(
        item.frames,
        itemgetter("frame_number"),
        partial(_load, root=item.folder.parent),
        partial(_write, folder=folder),
        img_size,
    )


def _load(annotation: dict, *, root: Path) -> ObjectFrame:
    for part in ("image", "viewpoint", "depth", "mask"):
        if not annotation.get(part):
            raise FrameError(f"no {part} in the annotations")
    rgb = read_rgb(root / annotation["image"]["path"])
    height, width = rgb.shape[:2]
    stored = annotation["depth"]
    depth = decode_depth(read_depth_png(root / stored["path"], 1), stored["scale_adjustment"])
    depth = _resized(depth, (width, height))
    if stored.get("mask_path"):
        reliable = read_rgb(root / stored["mask_path"])[..., 0]
        depth = np.where(_resized(reliable, (width, height)) > 0, depth, np.float32(0))
    if not depth.any():
        raise FrameError("no pixel has a depth")
    depth[depth > _FARTHEST * np.median(depth[depth > 0])] = 0
    mask = _resized(read_rgb(root / annotation["mask"]["path"])[..., 0], (width, height))
    intrinsics, pose = pixel_camera(annotation["viewpoint"], (width, height))
    return ObjectFrame(rgb, depth, mask, intrinsics, pose)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if pixels.shape[::-1] == size:
        return pixels
    return cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST_EXACT)


def _write(number: int, frame: ObjectFrame, *, folder: Path) -> None:
    name = f"frame{number:06d}"
    maximum = float(np.float32(frame.depth.max()))
    write_image(folder / "images" / f"{name}.jpg", frame.rgb)
    write_depth(folder / "depths" / f"{name}.jpg.geometric.png", frame.depth, _MOST_STEPS / maximum)
    write_mask(folder / "masks" / f"{name}.png", frame.mask)
    write_camera(folder / "images" / f"{name}.npz", frame, maximum_depth=maximum)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="CO3D version 2 to the layout that Co3d reads.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_arguments(parser, "co3d_dir")
    parser.add_argument(
        "--min_quality", type=float, default=0.5, help="least viewpoint quality of a sequence"
    )
    parser.add_argument(
        "--single_sequence_subset",
        action="store_true",
        help="the raw folder is the release's subset of few sequences",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
