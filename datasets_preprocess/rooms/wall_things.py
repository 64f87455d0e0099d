"""Things on walls and ceilings: windows, doors, pictures, wall shelves, radiators, clocks, lamps.

Builders as in ``furniture``; the back, towards +y, lies on the wall.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from datasets_preprocess.rooms.materials import Palette
from datasets_preprocess.rooms.shapes import tilt
from datasets_preprocess.rooms.thing import Thing, Top


@dataclass(frozen=True, eq=False)
class Mounted:
    """A thing and the height above the floor, metres, at which it hangs."""

    thing: Thing
    low: float
    is_window: bool = False


def window(rng: np.random.Generator, palette: Palette) -> Mounted:
    """A bright pane with frame, bars and sill."""
    x, height = rng.uniform(0.35, 1.0), rng.uniform(0.8, 1.4)
    frame = palette.pick("paint", "wood")
    pane = palette.glowing("paint", (0.75, 0.9, 1.0), rng.uniform(0.6, 3.0))
    thing = Thing((x + 0.03, 0.06), height)
    thing.block((0.01 - x, 0.04, 0.01), (x - 0.01, 0.06, height - 0.01), pane)
    width = rng.uniform(0.03, 0.07)
    for side in (-x + width, x - width, *np.linspace(-x, x, rng.integers(2, 5))[1:-1]):
        thing.block((side - width, 0.012, 0.01), (side + width, 0.06, height), frame)
    for level in (width, height - width, *([height * 0.6] if rng.random() < 0.5 else [])):
        thing.block(
            (0.005 - x, 0.02, level - width + 0.005),
            (x - 0.005, 0.06, level + width - 0.005),
            frame,
        )
    thing.block((-x - 0.03, -0.06, 0), (x + 0.03, 0.06, 0.02), frame)
    return Mounted(thing, rng.uniform(0.75, 1.0), is_window=True)


def door(rng: np.random.Generator, palette: Palette) -> Mounted:
    """A leaf with panels, a frame and a handle."""
    x, height = rng.uniform(0.38, 0.5), rng.uniform(1.9, 2.1)
    frame, leaf = palette.pick("paint", "wood"), palette.pick("wood", "paint")
    thing = Thing((x + 0.08, 0.04), height + 0.08)
    for side in (-1, 1):
        thing.box((side * (x + 0.04), 0, height / 2), (0.04, 0.04, height / 2), frame)
    thing.box((0, 0, height + 0.04), (x + 0.08, 0.04, 0.04), frame)
    thing.block((-x, 0.0, 0), (x, 0.04, height), leaf)
    for low, high in ((0.12, 0.45), (0.55, 0.93)) if rng.random() < 0.6 else ():
        thing.block((-x * 0.7, -0.015, low * height), (x * 0.7, 0.0, high * height), leaf)
    thing.sphere((x * 0.82, -0.03, 1.0), 0.03, frame)
    return Mounted(thing, 0.0)


def picture(rng: np.random.Generator, palette: Palette) -> Mounted:
    """A framed picture."""
    x, height = rng.uniform(0.12, 0.6), rng.uniform(0.25, 0.9)
    border = rng.uniform(0.015, 0.06)
    thing = Thing((x, 0.02), height)
    thing.block((-x, -0.02, 0), (x, 0.02, height), palette.pick("wood", "paint"))
    inner = (x - border, -0.019, height - border)
    thing.block((-inner[0], -0.023, border), inner, palette.pick("picture", "picture", "pattern"))
    return Mounted(thing, rng.uniform(1.0, 1.6))


def wall_shelf(rng: np.random.Generator, palette: Palette) -> Mounted:
    """A board with brackets."""
    x, y = rng.uniform(0.25, 0.7), rng.uniform(0.09, 0.16)
    look = palette.pick("wood", "paint")
    thing = Thing((x, y), 0.14)
    thing.block((-x, -y, 0.11), (x, y, 0.14), look)
    for side in (-0.8, 0.8):
        thing.block((side * x - 0.015, -y * 0.3, 0), (side * x + 0.015, y, 0.11), look)
    thing.tops.append(Top((0, 0, 0.14), (x, y)))
    return Mounted(thing, rng.uniform(0.9, 1.6))


def radiator(rng: np.random.Generator, palette: Palette) -> Mounted:
    """Upright ribs between two bars."""
    x, height = rng.uniform(0.3, 0.8), rng.uniform(0.4, 0.7)
    look = palette.pick("paint")
    thing = Thing((x, 0.06), height)
    thing.block((-x, 0.0, 0.03), (x, 0.04, 0.07), look)
    thing.block((-x, 0.0, height - 0.07), (x, 0.04, height - 0.03), look)
    for place in np.linspace(-x + 0.03, x - 0.03, max(3, int(x / 0.06))):
        thing.block((place - 0.022, -0.06, 0), (place + 0.022, 0.05, height), look)
    return Mounted(thing, 0.1)


def clock(rng: np.random.Generator, palette: Palette) -> Mounted:
    """A disc, a face and two hands."""
    radius = rng.uniform(0.1, 0.22)
    thing = Thing((radius, 0.02), 2 * radius)
    rim, hand, facing = palette.pick("paint", "wood"), palette.pick("paint"), tilt(np.pi / 2)
    thing.cylinder((0, 0, radius), radius, 0.02, rim, facing)
    thing.cylinder((0, -0.019, radius), radius * 0.88, 0.004, palette.pick("paint"), facing)
    thing.block((-0.006, -0.028, radius), (0.006, -0.023, radius * 1.7), hand)
    thing.block((0, -0.028, radius - 0.008), (radius * 0.5, -0.023, radius + 0.008), hand)
    return Mounted(thing, rng.uniform(1.4, 1.9))


def hanging(rng: np.random.Generator, palette: Palette) -> Mounted:
    """A picture, wall shelf, radiator or clock."""
    return (picture, picture, wall_shelf, radiator, clock)[rng.integers(5)](rng, palette)


def openings(rng: np.random.Generator) -> list[Callable[[np.random.Generator, Palette], Mounted]]:
    """Builders of up to two windows and up to one door."""
    return [window] * int(rng.integers(0, 3)) + [door] * int(rng.random() < 0.7)


def ceiling_lamp(rng: np.random.Generator, palette: Palette) -> Thing:
    """A lamp on a cord, to be hung with its upper end on the ceiling."""
    cord, radius = rng.uniform(0.05, 0.35), rng.uniform(0.1, 0.28)
    shade = palette.glowing("paint", (1.0, 0.9, 0.7), rng.uniform(0.5, 2.0))
    rise = radius * rng.uniform(0.5, 1.6)
    thing = Thing((radius, radius), cord + rise)
    thing.cylinder((0, 0, rise + cord / 2), 0.008, cord / 2, palette.pick("paint"))
    if rng.random() < 0.5:
        thing.sphere((0, 0, rise / 2), (radius, radius, rise / 2), shade, casts_shadow=False)
    else:
        thing.cylinder((0, 0, rise / 2), radius, rise / 2, shade, casts_shadow=False)
    return thing
