"""Samples a second that a core delivers for training, and where the time of one goes.

python scripts/bench_loader.py ["1000 @ Co3d(split='train', ROOT='...', resolution=224)" ...]
    [--samples 8] [--repeats 5]

Without a specification it makes up trees in the processed layout at the sizes of real ones. Times
are of the processor (user and system) in one process, so that others on the machine count little,
with files in the page cache; a sample is a pair. Every data set is read in three ways, in turns:

as trained        what ``get_data_loader`` does
full decoding     the same with all pixels of the images decoded
straightforward   Pillow decodes images in full to arrays, OpenCV depth maps; Lanczos, nearest
                  (of shards as "full decoding": their files are read in one way only)

"difference" is that of the images to those of the last way, in grey levels of 255, in the mean.
"""

import argparse
import io
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import CodeType, FrameType
from unittest import mock

import cv2
import numpy as np
from PIL import Image

import dust3r.datasets  # noqa: F401  (registers what specifications may name)
from datasets_preprocess.layout import (
    SceneData,
    depth_path,
    image_path,
    new_scene,
    rebuild_metadata,
    save_scene,
    write_depth,
)
from dust3r.datasets.base import BaseStereoViewDataset
from dust3r.datasets.combine import Draw, StereoDataset
from dust3r.datasets.cropping import crop_and_resize
from dust3r.datasets.shards import read_range
from dust3r.datasets.transforms import ColorJitter
from dust3r.utils.exr import read_exr_depth
from dust3r.utils.pixels import EncodedImage, ImgNorm, decode_depth_png, read_file
from dust3r.utils.spec import DATASETS, build

MADE_UP_SIZES = ((1752, 1168), (1920, 1440))
MADE_UP = "ScanNetpp(split='all', ROOT={root!r}, resolution={resolution}, seed=0)"
MADE_UP_RESOLUTIONS = (224, (512, 384))
COLUMNS = ("read", "decode", "resize", "geometry", "colour", "other")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specifications", nargs="*", help="of data sets, with their resolution")
    parser.add_argument("--samples", type=int, default=8, help="in each measurement")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median counts")
    args = parser.parse_args(arguments)
    if args.samples < 1 or args.repeats < 1:
        parser.error("--samples and --repeats must be 1 or more")
    cv2.setNumThreads(0)  # as a worker of the loader
    heading = [
        "data set",
        "way",
        "samples/s",
        "ratio",
        "difference",
        *(f"{name} (ms)" for name in COLUMNS),
    ]
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}")
    with tempfile.TemporaryDirectory() as folder:
        for name, dataset in given(args.specifications) or made_up(Path(folder)):
            for row in rows(dataset, args.samples, args.repeats):
                print(f"| {name} | {' | '.join(row)} |", flush=True)


def rows(dataset: StereoDataset, samples: int, repeats: int) -> list[list[str]]:
    """Of each way: its name, samples/s, ratio and difference to the last, milliseconds by stage."""
    chosen = np.linspace(0, len(dataset) - 1, samples).round().astype(int).tolist()

    def run() -> list[np.ndarray]:
        samples = [dataset.load(Draw(index, 0, (0, 0))) for index in chosen]
        return [view["img"].numpy() for views in samples for view in views]

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(repeats + 1):
        for way, entered in WAYS.items():
            with entered():
                elapsed = processor_seconds(run)
            if repeat:
                seconds[way].append(elapsed)
    rates = {way: samples / statistics.median(times) for way, times in seconds.items()}
    images, splits = {}, {}
    for way, entered in WAYS.items():
        with entered():
            images[way] = run()
            splits[way] = stages_of(run)
    last = list(WAYS)[-1]
    table = []
    for way, rate in rates.items():
        split = splits[way]
        pairs = zip(images[way], images[last], strict=True)
        difference = 127.5 * np.mean([np.abs(one - other).mean() for one, other in pairs])
        shares = (f"{1000 * split.get(name, 0) / samples:.1f}" for name in COLUMNS)
        table.append(
            [way, f"{rate:.1f}", f"{rate / rates[last]:.2f}", f"{difference:.2f}", *shares]
        )
    return table


def processor_seconds(run: Callable[[], object]) -> float:
    """User and system seconds of this process during one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def stages_of(run: Callable[[], object]) -> dict[str, float]:
    """Processor seconds of one call by stage; of nested stages the innermost counts."""
    spent: dict[str, float] = dict.fromkeys(COLUMNS, 0.0)
    stack = ["other"]
    since = time.process_time()

    def charge(frame: FrameType, event: str, _: object) -> None:
        nonlocal since
        stage = _STAGES.get(frame.f_code)
        if stage is None or event not in ("call", "return"):
            return
        now = time.process_time()
        spent[stack[-1]] += now - since
        since = now
        if event == "call":
            stack.append(stage)
        else:
            stack.pop()

    sys.setprofile(charge)
    try:
        run()
    finally:
        sys.setprofile(None)
    spent["other"] += time.process_time() - since
    return spent


def given(specifications: list[str]) -> list[tuple[str, StereoDataset]]:
    """The data sets that the command line names."""
    named = []
    for text in specifications:
        dataset = build(text, DATASETS)
        if not isinstance(dataset, StereoDataset):
            raise SystemExit(f"{text!r} describes {dataset!r}, which is no data set")
        named.append((text.replace("|", "/"), dataset))
    return named


def made_up(folder: Path) -> Iterator[tuple[str, StereoDataset]]:
    """Trees of six frames at each of the usual sizes and resolutions."""
    for width, height in MADE_UP_SIZES:
        root = folder / f"{width}x{height}"
        make_tree(root, width, height)
        for resolution in MADE_UP_RESOLUTIONS:
            text = MADE_UP.format(root=str(root), resolution=resolution)
            yield f"{width}x{height} to {resolution}", build(text, DATASETS)


def make_tree(root: Path, width: int, height: int, frames: int = 6) -> None:
    """Photograph-like JPEG files of quality 90, and depth of boxes before a wall."""
    rng = np.random.default_rng(0)
    names = [f"frame_{number:04d}" for number in range(frames)]
    intrinsics = np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]])
    pairs = [(number, number + 1, 0.7) for number in range(frames - 1)]
    with new_scene(root, "scene") as scene:
        for name in names:
            for path in (image_path(root, scene.name, name), depth_path(root, scene.name, name)):
                path.parent.mkdir(parents=True, exist_ok=True)
            photograph = Image.fromarray(_photograph(width, height, rng))
            photograph.save(image_path(root, scene.name, name), quality=90)
            write_depth(depth_path(root, scene.name, name), _depth(width, height, rng))
        poses = np.tile(np.eye(4), (frames, 1, 1))
        matrices = np.tile(intrinsics, (frames, 1, 1))
        save_scene(scene, SceneData("scene", names, matrices, poses, np.array(pairs)))
    rebuild_metadata(root)


def plain_image(dataset: BaseStereoViewDataset, path: Path, idx: int) -> np.ndarray:
    """As ``read_image``: all pixels, by Pillow."""
    return np.asarray(Image.open(io.BytesIO(read_file(path, "image"))).convert("RGB"))


def plain_depth(
    dataset: BaseStereoViewDataset, path: Path, idx: int, unit: float = 1000
) -> np.ndarray:
    """As ``read_depth``, by OpenCV."""
    steps = cv2.imdecode(np.frombuffer(read_file(path, "depth"), np.uint8), cv2.IMREAD_UNCHANGED)
    return steps.astype(np.float32) / np.float32(unit)


@contextmanager
def _full_decoding() -> Iterator[None]:
    with mock.patch.object(BaseStereoViewDataset, "oversampling", math.inf):
        yield


@contextmanager
def _straightforward() -> Iterator[None]:
    plain = {"read_image": plain_image, "read_depth": plain_depth}
    with mock.patch.multiple(BaseStereoViewDataset, **plain):
        yield


WAYS = {
    "as trained": nullcontext,
    "full decoding": _full_decoding,
    "straightforward": _straightforward,
}

_STAGES: dict[CodeType, str] = {
    function.__code__: stage
    for stage, functions in {
        "read": (read_file, read_range),
        "decode": (
            EncodedImage.__init__,
            EncodedImage.decoded,
            decode_depth_png,
            read_exr_depth,
            plain_image,
            plain_depth,
        ),
        "resize": (crop_and_resize,),
        "geometry": (BaseStereoViewDataset._finish,),
        "colour": (ImgNorm, ColorJitter.__call__),
    }.items()
    for function in functions
}


def _photograph(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Noise whose amplitude falls with its frequency, as in photographs; (H, W, 3) uint8."""
    pixels = np.full((height, width, 3), 128, np.float32)
    for octave in range(9):
        cells = (max(2, height >> octave), max(2, width >> octave), 3)
        noise = rng.normal(0, 4 * 1.5**octave, cells).astype(np.float32)
        pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return pixels.clip(0, 255).astype(np.uint8)


def _depth(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A slanted wall, boxes before it, and a tenth without depth; (H, W) metres."""
    v, u = np.mgrid[:height, :width].astype(np.float32)
    depth = 4 + u / width + 0.5 * v / height
    for _ in range(30):
        left, top = rng.integers(0, (width, height))
        box = np.s_[top : top + height // 5, left : left + width // 6]
        depth[box] = rng.uniform(1, 3) + 0.4 * u[box] / width + 0.3 * v[box] / height
    depth += rng.normal(0, 0.001, depth.shape)
    hole = rng.integers(0, width - width // 10)
    depth[:, hole : hole + width // 10] = 0
    return depth


if __name__ == "__main__":
    main()
