"""A walk through a synthetic house in the processed layout: images, exact depth, poses, pairs.

    python -m datasets_preprocess.make_house --output_dir ROOT --num_frames 200 --rooms 5

Furnished rooms joined by doorways, ray cast in numpy; the walk goes through all of them and comes
back to where it began. The same arguments give the same files.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from datasets_preprocess.layout import write_metadata
from datasets_preprocess.make_rooms import write_contact_sheet
from datasets_preprocess.rooms.house import HouseRecipe, plan_house
from datasets_preprocess.rooms.house_plan import draw_plan
from datasets_preprocess.rooms.produce import write_shoot

LOGGER = logging.getLogger(__name__)


def make_house(
    root: str | Path, recipe: HouseRecipe, *, pictures: bool = True, progress: bool = True
) -> Path:
    """Render one house; ``ROOT/all_metadata.npz`` lists its frames in the order of the walk.

    With ``pictures`` there are ``ROOT/contact_sheet_<scene>.png`` and ``ROOT/plan_<scene>.png``.
    Returns the path of the metadata. Raises ValueError for too few frames.
    """
    start = time.monotonic()
    name = recipe.scene_name(0)
    shoot = plan_house(recipe)
    scene = write_shoot(root, name, shoot, recipe, progress=progress)
    path = write_metadata(root, [scene])
    LOGGER.info(
        "%d rooms, %d images, %d pairs in %s: %.0f s",
        recipe.rooms,
        len(scene.images),
        len(scene.pairs),
        root,
        time.monotonic() - start,
    )
    if pictures:
        write_contact_sheet(root, scene)
        draw_plan(Path(root) / f"plan_{name}.png", shoot.room, shoot.poses)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see ``--help``."""
    defaults = HouseRecipe()
    parser = argparse.ArgumentParser(
        description="Render a walk through a synthetic house with exact depth and poses.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="ROOT of the data set")
    parser.add_argument("--num_frames", type=int, default=defaults.images_per_scene)
    parser.add_argument("--rooms", type=int, default=defaults.rooms, help="4 to 8")
    parser.add_argument(
        "--resolution",
        type=int,
        nargs=2,
        default=defaults.resolution,
        metavar=("WIDTH", "HEIGHT"),
        help="pixels; multiples of 16",
    )
    parser.add_argument(
        "--fov",
        type=float,
        nargs=2,
        default=defaults.fov,
        metavar=("LOW", "HIGH"),
        help="degrees along the longer side: a range to draw from",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_pairs", type=int, default=None, help="all that overlap if left out")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        recipe = HouseRecipe(
            images_per_scene=options.num_frames,
            resolution=tuple(options.resolution),
            fov=tuple(options.fov),
            seed=options.seed,
            max_pairs=options.max_pairs,
            rooms=options.rooms,
        )
        make_house(options.output_dir, recipe)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
