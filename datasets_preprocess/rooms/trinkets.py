"""Small things that stand on furniture or lie on the floor.

Builders as in ``furniture``.
"""

from collections.abc import Callable

import numpy as np

from datasets_preprocess.rooms.materials import Palette
from datasets_preprocess.rooms.shapes import turn
from datasets_preprocess.rooms.thing import Thing


def ball(rng: np.random.Generator, palette: Palette) -> Thing:
    """A ball."""
    radius = rng.uniform(0.06, 0.28)
    thing = Thing((radius, radius), 2 * radius)
    thing.sphere((0, 0, radius), radius, palette.pick("pattern", "paint", "fabric"))
    return thing


def vase(rng: np.random.Generator, palette: Palette) -> Thing:
    """A belly, a neck and a rim."""
    belly, rise = rng.uniform(0.05, 0.13), rng.uniform(0.06, 0.16)
    look = palette.pick("pattern", "paint")
    thing = Thing((belly, belly), 2 * rise + 0.1)
    thing.sphere((0, 0, rise), (belly, belly, rise), look)
    thing.cylinder((0, 0, 2 * rise + 0.03), belly * 0.4, 0.05, look)
    thing.cylinder((0, 0, 2 * rise + 0.09), belly * 0.6, 0.01, look)
    return thing


def books(rng: np.random.Generator, palette: Palette) -> Thing:
    """A pile of books."""
    x, y = rng.uniform(0.1, 0.18), rng.uniform(0.07, 0.13)
    thing = Thing((x, y), 0.0)
    for _ in range(rng.integers(1, 6)):
        half = rng.uniform(0.008, 0.03)
        shape = (x * rng.uniform(0.75, 1), y * rng.uniform(0.75, 1), half)
        look = palette.pick("paint", "fabric", "pattern")
        thing.box((0, 0, thing.height + half), shape, look, turn(rng.normal(0, 0.15)))
        thing.height += 2 * half
    return thing


def parcel(rng: np.random.Generator, palette: Palette) -> Thing:
    """A small box."""
    x, y, z = rng.uniform(0.04, 0.2, 3)
    thing = Thing((x, y), 2 * z)
    thing.box((0, 0, z), (x, y, z), palette.pick("pattern", "paint", "wood", "picture"))
    return thing


def monitor(rng: np.random.Generator, palette: Palette) -> Thing:
    """A screen on a foot."""
    x, z = rng.uniform(0.2, 0.45), rng.uniform(0.14, 0.26)
    case = palette.pick("paint")
    thing = Thing((x, 0.1), 0.1 + 2 * z)
    thing.box((0, 0, 0.01), (0.12, 0.09, 0.01), case)
    thing.cylinder((0, 0.02, 0.08), 0.02, 0.07, case)
    thing.box((0, 0, 0.1 + z), (x, 0.02, z), case)
    thing.box((0, -0.022, 0.1 + z), (x - 0.02, 0.003, z - 0.02), palette.pick("picture"))
    return thing


def table_lamp(rng: np.random.Generator, palette: Palette) -> Thing:
    """A small lamp with a glowing shade."""
    radius, rise = rng.uniform(0.08, 0.15), rng.uniform(0.12, 0.25)
    thing = Thing((radius, radius), rise + 0.18)
    foot = palette.pick("paint", "pattern")
    thing.sphere((0, 0, rise / 2), (0.06, 0.06, rise / 2), foot)
    thing.cylinder((0, 0, rise * 0.9), 0.012, rise * 0.3, foot)
    shade = palette.glowing("paint", (1.0, 0.8, 0.55), rng.uniform(0.2, 1.8))
    thing.cylinder((0, 0, rise + 0.09), radius, 0.09, shade, casts_shadow=False)
    return thing


def plant(rng: np.random.Generator, palette: Palette) -> Thing:
    """A pot with a bush of leaves."""
    pot, size = rng.uniform(0.08, 0.2), rng.uniform(0.12, 0.3)
    rise = rng.uniform(1.2, 2.2) * pot
    thing = Thing((max(pot, size), max(pot, size)), rise + 2.6 * size)
    thing.cylinder((0, 0, rise / 2), pot, rise / 2, palette.pick("paint", "pattern"))
    stem, leaf = palette.pick("wood"), palette.pick("fabric", "pattern")
    thing.cylinder((0, 0, rise + 0.4 * size), 0.1 * pot, 0.5 * size, stem)
    for _ in range(rng.integers(4, 10)):
        offset = rng.uniform(-0.45, 0.45, 3) * size
        half = size * rng.uniform(0.25, 0.55, 3)
        thing.sphere(tuple(offset + [0, 0, rise + 1.3 * size]), tuple(half), leaf)
    return thing


ON_TOP: tuple[Callable[[np.random.Generator, Palette], Thing], ...] = (
    vase,
    books,
    parcel,
    parcel,
    ball,
    monitor,
    table_lamp,
    plant,
)
