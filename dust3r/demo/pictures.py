"""Pictures of a reconstruction: image, depth, confidence and standard deviation side by side."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dust3r.reconstruction import Reconstruction
from dust3r.utils.plots import Block, Colours, Map, save_png, sheet
from dust3r.utils.spread import spread

ROW_INCHES = 10.0
MOST_IN_OVERVIEW = 40


def write_gallery(
    reconstruction: Reconstruction,
    folder: Path,
    names: Sequence[str],
    kept: Sequence[np.ndarray] | None = None,
) -> list[Path]:
    """A PNG for each image, ``picture_000.png`` and so on in ``folder``; their paths.

    Colours mean the same in all of them, and bars tell the numbers; what is not ``kept`` is grey.

    Args:
        names: what to call the images.
        kept: (H, W) bool per image; ``reconstruction.valid`` where None.
    """
    blocks = _blocks(reconstruction, names, kept)
    paths = [folder / f"picture_{number:03d}.png" for number in range(len(blocks))]
    for block, path in zip(blocks, paths, strict=True):
        save_png(sheet([block]), path)
    return paths


def write_overview(
    reconstruction: Reconstruction,
    path: Path,
    names: Sequence[str],
    kept: Sequence[np.ndarray] | None = None,
) -> None:
    """One PNG of all images, or of 40 spread evenly over them; arguments as of write_gallery."""
    count = len(reconstruction)
    chosen = spread(count, MOST_IN_OVERVIEW)
    blocks = _blocks(reconstruction, names, kept)
    save_png(sheet([blocks[number] for number in chosen], f"{count} images"), path)


def _blocks(
    reconstruction: Reconstruction, names: Sequence[str], kept: Sequence[np.ndarray] | None
) -> list[Block]:
    kept = reconstruction.valid if kept is None else kept

    def shown(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.where(keep, values, np.nan) for values, keep in zip(maps, kept, strict=True)]

    depths, confidences = shown(reconstruction.depthmaps), shown(reconstruction.confidences)
    columns = [
        [Map("image", image) for image in reconstruction.images],
        _maps("depth", depths, Colours.linear(depths)),
        _maps("confidence", confidences, Colours.logarithmic(confidences)),
    ]
    if reconstruction.deviations is not None:
        deviations = shown(reconstruction.deviations)
        colours = Colours.logarithmic(deviations)
        title = f"standard deviation of {reconstruction.deviations_of}"
        columns.append(_maps(title, deviations, colours))
    if reconstruction.radii90 is not None:
        radii = shown(reconstruction.radii90)
        title = "radius that holds 90% of the points"
        columns.append(_maps(title, radii, Colours.logarithmic(radii)))
    return [
        Block([row], _panel_size(row[0].values, len(columns)), name)
        for row, name in zip(zip(*columns, strict=True), names, strict=True)
    ]


def _maps(title: str, maps: Sequence[np.ndarray], colours: Colours) -> list[Map]:
    return [Map(title, values, colours) for values in maps]


def _panel_size(image: np.ndarray, columns: int) -> tuple[float, float]:
    """Inches, of one area whatever the shape of the image."""
    side, shape = ROW_INCHES / columns, math.sqrt(image.shape[1] / image.shape[0])
    return side * shape, side / shape
