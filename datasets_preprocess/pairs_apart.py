"""Pairs of a processed data set that show nothing in common, to see what a model makes of them.

    python -m datasets_preprocess.pairs_apart --root ROOT --max_pairs 20

Writes ``ROOT/pairs_apart.npz``: the metadata of ``ROOT`` with other pairs, which
``ScanNetpp(..., metadata='pairs_apart.npz')`` reads. Both images of a pair are of one scene.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from datasets_preprocess.layout import depth_path, read_depth, read_metadata
from dust3r.utils.files import atomic_path
from dust3r.utils.reprojection import reprojection_errors

NAME = "pairs_apart.npz"

LOGGER = logging.getLogger(__name__)

# Depths that differ by less, as a fraction, are of one surface, as in ``overlap.overlap``.
_TOLERANCE = 0.05
_DEPTHS_KEPT = 256

View = tuple[np.ndarray, np.ndarray, np.ndarray]


def write_pairs_apart(
    root: str | Path, max_pairs: int = 20, *, max_overlap: float = 0.0, seed: int = 0
) -> Path:
    """Choose pairs of every scene of ``ROOT`` and write ``ROOT/pairs_apart.npz``; its path.

    Args:
        max_pairs: of a scene.
        max_overlap: share of the pixels of either image that may be seen in the other.
        seed: of the choice.

    Raises:
        FileNotFoundError: ``ROOT`` is not in the processed layout.
        ValueError: a number that cannot be, or there is no such pair.
    """
    if max_pairs < 1 or not 0 <= max_overlap < 1:
        raise ValueError(
            f"max_pairs must be 1 or more and max_overlap from 0 to below 1, got {max_pairs} and "
            f"{max_overlap}"
        )
    root = Path(root)
    metadata = read_metadata(root)

    @lru_cache(_DEPTHS_KEPT)
    def view(image: int) -> View:
        place = metadata.sceneids[image]
        path = depth_path(root, str(metadata.scenes[place]), str(metadata.images[image]))
        depth = read_depth(path, metadata.depth_unit[place])
        return depth, metadata.intrinsics[image], metadata.trajectories[image]

    rows = []
    for number, scene in enumerate(metadata.scenes):
        images = np.flatnonzero(metadata.sceneids == number)
        rng = np.random.default_rng((seed, number))
        found = apart(view, images, max_pairs, max_overlap, rng)
        LOGGER.info("%s: %d pairs", scene, len(found))
        rows += found
    if not rows:
        raise ValueError(
            f"{root}: no two images of a scene overlap by {max_overlap} or less; take recordings "
            "that look around, or raise max_overlap"
        )
    path = root / NAME
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **{**vars(metadata), "pairs": np.array(rows, np.float64)})
    return path


def apart(
    view: Callable[[int], View],
    images: Sequence[int],
    max_pairs: int,
    max_overlap: float,
    rng: np.random.Generator,
) -> list[tuple[int, int, float]]:
    """Up to ``max_pairs`` sorted rows (i, j, overlap) of ``images``, drawn at random.

    The overlap is the larger of the two directions': a close-up within a wide view has a common
    part, however small it is in that one. Images without any depth, of which nobody can tell, are
    in no pair.

    Args:
        view: depth (H, W) in metres, intrinsics (3, 3) and camera-to-world pose (4, 4) of an image.
    """
    count = len(images)
    first, second = np.triu_indices(count, 1)
    rows: list[tuple[int, int, float]] = []
    for place in rng.permutation(len(first)):
        i, j = int(images[first[place]]), int(images[second[place]])
        share = float(np.max([_common(view(i), view(j)), _common(view(j), view(i))]))
        if share <= max_overlap:
            rows.append((i, j, share))
        if len(rows) == max_pairs:
            break
    return sorted(rows)


def _common(one: View, other: View) -> float:
    """Share of the pixels of one view that the other sees too; NaN without any depth."""
    errors = reprojection_errors(*one, *other)
    return float((errors <= _TOLERANCE).mean()) if len(errors) else np.nan


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        description="Choose pairs of a processed data set that have no overlap.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="ROOT of the data set")
    parser.add_argument("--max_pairs", type=int, default=20, help="of each scene")
    parser.add_argument(
        "--max_overlap", type=float, default=0.0, help="share of either image that both may show"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        path = write_pairs_apart(
            options.root, options.max_pairs, max_overlap=options.max_overlap, seed=options.seed
        )
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    LOGGER.info("%s", path)


if __name__ == "__main__":
    main()
