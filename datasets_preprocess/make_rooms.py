"""Synthetic rooms in the processed layout: images, exact depth, poses along a walk, pairs.

    python -m datasets_preprocess.make_rooms --output_dir ROOT --num_scenes 20

Each scene is a furnished room of its own, ray cast in numpy. The same arguments give the same
files, whatever the number of workers; scene k does not depend on how many there are.
"""

import argparse
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import cv2
from tqdm import tqdm

from datasets_preprocess.layout import (
    SceneData,
    depth_path,
    image_path,
    read_depth,
    write_metadata,
)
from datasets_preprocess.rooms.produce import Recipe, make_scene

Number = TypeVar("Number", int, float)

LOGGER = logging.getLogger(__name__)

_FRAMES_SHOWN, _PAIRS_SHOWN = 12, 6


def make_rooms(
    root: str | Path,
    num_scenes: int,
    recipe: Recipe,
    *,
    num_workers: int = 2,
    contact_sheets: int = 1,
    first_scene: int = 0,
) -> Path:
    """Render ``num_scenes`` scenes of the recipe from number ``first_scene`` on.

    Returns the path of the metadata.

    ``ROOT/all_metadata.npz`` lists exactly these scenes. The first ``contact_sheets`` scenes get a
    picture ``ROOT/contact_sheet_<scene>.png``. Raises ValueError for numbers that cannot be.
    """
    _check_counts(num_scenes, num_workers, contact_sheets, first_scene)
    numbers = range(first_scene, first_scene + num_scenes)
    Path(root).mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    scenes: dict[int, SceneData] = {}
    total = num_scenes * recipe.images_per_scene
    with tqdm(total=total, desc="rooms", unit="image") as bar:
        for number, scene in _scenes(root, recipe, numbers, num_workers):
            scenes[number] = scene
            bar.update(len(scene.images))
    elapsed = time.monotonic() - start
    ordered = [scenes[number] for number in numbers]
    path = write_metadata(root, ordered)
    pairs = sum(len(scene.pairs) for scene in ordered)
    LOGGER.info(
        "%d scenes, %d images, %d pairs in %s: %.0f s, %.0f images a minute with %d workers",
        num_scenes,
        total,
        pairs,
        root,
        elapsed,
        60 * total / elapsed,
        num_workers,
    )
    if not pairs:
        LOGGER.warning("no two images overlap by 0.2 to 0.9: raise --images_per_scene")
    for scene in ordered[:contact_sheets]:
        write_contact_sheet(root, scene)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        description="Render synthetic rooms with exact depth and poses in the processed layout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="ROOT of the data set")
    parser.add_argument("--num_scenes", type=int, default=20)
    parser.add_argument(
        "--first_scene",
        type=int,
        default=0,
        help="number of the first scene: several runs, or machines, share out one seed's scenes",
    )
    parser.add_argument("--images_per_scene", type=int, default=25)
    parser.add_argument(
        "--resolution",
        type=int,
        nargs="+",
        default=[224],
        metavar="PIXELS",
        help="side of a square, or width and height; multiples of 16",
    )
    parser.add_argument(
        "--fov",
        type=float,
        nargs="+",
        default=[50.0, 75.0],
        metavar="DEGREES",
        help="field of view along the longer side: one value, or a range to draw from",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=2, help="processes, one scene each")
    parser.add_argument(
        "--max_pairs", type=int, default=None, help="pairs a scene; all that overlap if left out"
    )
    parser.add_argument(
        "--plain_walls",
        action="store_true",
        help="the same rooms without textures on walls and ceilings",
    )
    parser.add_argument(
        "--contact_sheets", type=int, default=1, help="scenes to make an overview PNG of"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        recipe = Recipe(
            images_per_scene=options.images_per_scene,
            resolution=_one_or_two(options.resolution, "--resolution"),
            fov=_one_or_two(options.fov, "--fov"),
            seed=options.seed,
            max_pairs=options.max_pairs,
            plain_walls=options.plain_walls,
        )
        _check_counts(
            options.num_scenes, options.num_workers, options.contact_sheets, options.first_scene
        )
    except ValueError as error:
        parser.error(str(error))
    make_rooms(
        options.output_dir,
        options.num_scenes,
        recipe,
        num_workers=options.num_workers,
        contact_sheets=options.contact_sheets,
        first_scene=options.first_scene,
    )


def _check_counts(
    num_scenes: int, num_workers: int, contact_sheets: int, first_scene: int = 0
) -> None:
    if num_scenes < 1:
        raise ValueError(f"num_scenes must be 1 or more, got {num_scenes}")
    if num_workers < 1:
        raise ValueError(f"num_workers must be 1 or more, got {num_workers}")
    if contact_sheets < 0:
        raise ValueError(f"contact_sheets must be 0 or more, got {contact_sheets}")
    if first_scene < 0:
        raise ValueError(f"first_scene must be 0 or more, got {first_scene}")


def _one_or_two(values: list[Number], name: str) -> tuple[Number, Number]:
    if len(values) > 2:
        raise ValueError(f"{name} takes one or two values, got {len(values)}")
    return (values[0], values[-1])


def _scenes(
    root: str | Path, recipe: Recipe, numbers: range, num_workers: int
) -> Iterator[tuple[int, SceneData]]:
    """Scenes with their numbers, as they get done."""
    if num_workers == 1:
        for number in numbers:
            yield number, make_scene(root, recipe, number)
        return
    # Forking a process that has run threads (torch, OpenCV, a test runner) can hang its children.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(num_workers, len(numbers)), mp_context=context)
    try:
        with _single_threaded_children():
            submitted = {
                executor.submit(make_scene, root, recipe, number): number for number in numbers
            }
        for future in as_completed(submitted):
            yield submitted[future], future.result()
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Processes started inside do linear algebra on one thread: the scenes fill the cores."""
    name = "OMP_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def write_contact_sheet(root: str | Path, scene: SceneData) -> Path:
    """Write the overview ``ROOT/contact_sheet_<scene>.png`` of a rendered scene; its path."""
    # Loads matplotlib and torch, which every worker would otherwise pay for on starting.
    from datasets_preprocess.contact_sheet import Frame, FramePair, contact_sheet

    def frame(index: int) -> Frame:
        basename = scene.images[index]
        bgr = cv2.imread(str(image_path(root, scene.name, basename)), cv2.IMREAD_COLOR)
        return Frame(
            basename,
            cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB),
            read_depth(depth_path(root, scene.name, basename)),
            scene.intrinsics[index],
            scene.poses[index],
        )

    step = max(1, len(scene.images) // _FRAMES_SHOWN)
    shown = range(0, len(scene.images), step)[:_FRAMES_SHOWN]
    spaced = scene.pairs[:: max(1, len(scene.pairs) // _PAIRS_SHOWN)][:_PAIRS_SHOWN]
    path = Path(root) / f"contact_sheet_{scene.name}.png"
    contact_sheet(
        path,
        f"{scene.name}: {len(scene.images)} images, {len(scene.pairs)} pairs",
        [frame(index) for index in shown],
        [FramePair(frame(int(i)), frame(int(j)), score) for i, j, score in spaced],
    )
    return path


if __name__ == "__main__":
    main()
