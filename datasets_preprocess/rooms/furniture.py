"""Furniture put together from boxes, cylinders and spheres.

Every builder takes a random generator and a palette, draws sizes and materials itself and returns a
``Thing``.
"""

from collections.abc import Callable

import numpy as np

from datasets_preprocess.rooms.materials import Palette
from datasets_preprocess.rooms.shapes import tilt, turn
from datasets_preprocess.rooms.thing import Thing, Top
from datasets_preprocess.rooms.trinkets import ball, plant

Builder = Callable[[np.random.Generator, Palette], Thing]


def table(rng: np.random.Generator, palette: Palette) -> Thing:
    """A rectangular table or desk on four legs, or a round one on a foot."""
    height, thick = rng.uniform(0.4, 0.8), rng.uniform(0.012, 0.03)
    top, leg = palette.pick("wood", "pattern", "paint"), palette.pick("wood", "paint")
    if rng.random() < 0.3:
        radius = rng.uniform(0.3, 0.6)
        thing = Thing((radius, radius), height)
        thing.cylinder((0, 0, height - thick), radius, thick, top)
        thing.cylinder((0, 0, height / 2 - thick), 0.04, height / 2 - thick, leg)
        thing.cylinder((0, 0, 0.015), radius * 0.6, 0.015, leg)
        thing.tops.append(Top((0, 0, height), (radius * 0.65, radius * 0.65)))
        return thing
    x, y, w = rng.uniform(0.4, 1.0), rng.uniform(0.3, 0.5), rng.uniform(0.02, 0.045)
    thing = Thing((x, y), height)
    thing.box((0, 0, height - thick), (x, y, thick), top)
    for sx in (-1, 1):
        for sy in (-1, 1):
            foot = (sx * (x - 2 * w), sy * (y - 2 * w), height / 2 - thick)
            thing.box(foot, (w, w, height / 2 - thick), leg)
    if rng.random() < 0.4:
        thing.box((0, y - 2 * w, height * 0.7), (x - 3 * w, 0.01, height * 0.22), leg)
    thing.tops.append(Top((0, 0, height), (x, y)))
    return thing


def chair(rng: np.random.Generator, palette: Palette) -> Thing:
    """Seat, back and four legs."""
    x, y, seat = rng.uniform(0.18, 0.25), rng.uniform(0.18, 0.25), rng.uniform(0.4, 0.5)
    height = seat + rng.uniform(0.3, 0.55)
    frame, cushion = palette.pick("wood", "paint"), palette.pick("fabric", "wood", "paint")
    thing = Thing((x, y), height)
    thing.box((0, 0, seat - 0.02), (x, y, rng.uniform(0.015, 0.035)), cushion)
    thing.box(
        (0, y - 0.02, (height + seat + 0.1) / 2),
        (x - 0.01, 0.012, (height - seat - 0.1) / 2),
        cushion,
    )
    for sx in (-1, 1):
        thing.block(
            *_ordered(sx * (x - 0.01), sx * (x - 0.05), -y + 0.01, -y + 0.05, 0, seat - 0.03), frame
        )
        thing.block(
            *_ordered(sx * (x + 0.003), sx * (x - 0.04), y - 0.04, y, 0, height - 0.05), frame
        )
    return thing


def dining(rng: np.random.Generator, palette: Palette) -> Thing:
    """A table with two to four chairs around it."""
    desk, seat = table(rng, palette), chair(rng, palette)
    gap = seat.half[1] + 0.08
    thing = Thing(
        (desk.half[0] + 2 * gap, desk.half[1] + 2 * gap),
        max(desk.height, seat.height),
        list(desk.parts),
        list(desk.tops),
    )
    x, y = desk.half[0] + gap, desk.half[1] + gap
    spots = [(0, y, 0), (0, -y, np.pi), (x, 0, -np.pi / 2), (-x, 0, np.pi / 2)]
    for spot in rng.permutation(4)[: rng.integers(2, 5)]:
        px, py, yaw = spots[spot]
        thing.include(seat, (px, py, 0.0), yaw + rng.normal(0, 0.1))
    return thing


def sofa(rng: np.random.Generator, palette: Palette) -> Thing:
    """An armchair or sofa with cushions."""
    x, y, seat = rng.uniform(0.4, 1.1), rng.uniform(0.38, 0.5), rng.uniform(0.35, 0.45)
    height, arm = seat + rng.uniform(0.3, 0.5), rng.uniform(0.08, 0.16)
    body, soft = palette.pick("fabric", "paint"), palette.pick("fabric", "pattern")
    thing = Thing((x, y), height)
    thing.block((0.01 - x, 0.01 - y, 0.06), (x - 0.01, y - 0.01, seat - 0.12), body)
    thing.block((0.02 - x, y - 0.18, 0.06), (x - 0.02, y - 0.005, height), body)
    arm_height = seat + rng.uniform(0.08, 0.25)
    for sx in (-1, 1):
        thing.block(*_ordered(sx * x, sx * (x - arm), -y, y, 0.0, arm_height), body)
    seats = max(1, round(x / 0.4))
    width = (x - arm) / seats
    for n in range(seats):
        middle = -x + arm + (2 * n + 1) * width
        thing.box((middle, -0.09, seat - 0.06), (width - 0.008, y - 0.1, 0.06), soft)
        if rng.random() < 0.5:
            thing.sphere((middle, y - 0.28, seat + 0.17), (0.2, 0.1, 0.17), palette.pick("fabric"))
    thing.tops.append(Top((0, -0.1, seat), (x - arm, y - 0.15)))
    return thing


def bed(rng: np.random.Generator, palette: Palette) -> Thing:
    """Frame, mattress, pillows, blanket and headboard."""
    x, y, height = rng.uniform(0.45, 0.9), rng.uniform(0.9, 1.05), rng.uniform(0.35, 0.55)
    frame, sheet, blanket = palette.pick("wood"), palette.pick("fabric"), palette.pick("fabric")
    head = height + rng.uniform(0.2, 0.6)
    thing = Thing((x, y), head)
    thing.block((0.01 - x, 0.01 - y, 0), (x - 0.01, y, height - 0.2), frame)
    thing.block((-x + 0.02, -y + 0.02, height - 0.2), (x - 0.02, y - 0.06, height), sheet)
    thing.block((-x, -y, height - 0.22), (x, y * rng.uniform(-0.3, 0.4), height + 0.02), blanket)
    thing.block((-x, y - 0.05, 0), (x, y, head), frame)
    for middle in (-x / 2, x / 2) if x > 0.6 else (0.0,):
        thing.sphere((middle, y - 0.35, height + 0.06), (0.28, 0.18, 0.09), sheet)
    thing.tops.append(Top((0, -0.3 * y, height + 0.02), (x * 0.8, y * 0.4)))
    return thing


def shelf(rng: np.random.Generator, palette: Palette) -> Thing:
    """Open shelves with books, boxes and vases."""
    x, y, height = rng.uniform(0.3, 0.7), rng.uniform(0.13, 0.2), rng.uniform(0.8, 2.0)
    board = palette.pick("wood", "paint")
    thing = Thing((x, y), height)
    thing.block((-x, -y, 0), (-x + 0.02, y, height), board)
    thing.block((x - 0.02, -y, 0), (x, y, height), board)
    if rng.random() < 0.7:
        thing.block(
            (0.01 - x, y - 0.01, 0.01),
            (x - 0.01, y - 0.002, height - 0.01),
            palette.pick("wood", "paint"),
        )
    levels = np.linspace(0.06, height, max(3, round(height / rng.uniform(0.28, 0.45)) + 1))
    spines = [palette.pick("paint", "fabric", "pattern") for _ in range(4)]
    for level, above in zip(levels, [*levels[1:], height], strict=True):
        thing.block((0.02 - x, 0.004 - y, level - 0.02), (x - 0.02, y - 0.01, level), board)
        if above > level:
            _fill_level(rng, thing, spines, level, above - level - 0.03)
    thing.tops.append(Top((0, 0, height), (x, y)))
    return thing


def cupboard(rng: np.random.Generator, palette: Palette) -> Thing:
    """A closed cupboard, chest or wardrobe with doors or drawers and knobs."""
    x, y, height = rng.uniform(0.25, 0.8), rng.uniform(0.2, 0.32), rng.uniform(0.5, 2.1)
    body, front = palette.pick("wood", "paint"), palette.pick("wood", "paint", "pattern")
    knob = palette.pick("paint")
    thing = Thing((x, y), height)
    thing.block((-x, -y + 0.02, 0.05), (x, y, height), body)
    thing.block((-x + 0.03, -y + 0.05, 0), (x - 0.03, y, 0.05), knob)
    doors = rng.random() < 0.5 or height > 1.3
    across, along = (max(1, round(x / 0.25)), 1) if doors else (1, max(2, round(height / 0.25)))
    wide, tall = 2 * x / across, (height - 0.09) / along
    for n in range(across):
        for m in range(along):
            left, low = -x + n * wide, 0.07 + m * tall
            thing.block(
                (left + 0.01, -y, low + 0.008),
                (left + wide - 0.01, -y + 0.02, low + tall - 0.008),
                front,
            )
            grip = left + wide * (0.88 if n % 2 == 0 else 0.12) if doors else left + wide / 2
            thing.sphere((grip, -y - 0.012, low + tall / 2), 0.018, knob)
    thing.tops.append(Top((0, 0, height), (x, y)))
    return thing


def stool(rng: np.random.Generator, palette: Palette) -> Thing:
    """A pouffe, barrel or round stool."""
    radius, height = rng.uniform(0.15, 0.35), rng.uniform(0.3, 0.7)
    thing = Thing((radius, radius), height)
    rim = rng.uniform(0.03, 0.1)
    waist = radius * rng.uniform(0.3, 1.0)
    body = palette.pick("wood", "pattern", "paint")
    thing.cylinder((0, 0, (height - rim) / 2), waist, (height - rim) / 2, body)
    thing.cylinder((0, 0, height - rim / 2), radius, rim / 2, palette.pick("fabric", "wood"))
    thing.tops.append(Top((0, 0, height), (radius * 0.6, radius * 0.6)))
    return thing


def crate(rng: np.random.Generator, palette: Palette) -> Thing:
    """One to three boxes stacked, each turned a little."""
    x, y = rng.uniform(0.12, 0.4, 2)
    thing = Thing((x, y), 0.0)
    for _ in range(rng.integers(1, 4)):
        half = rng.uniform(0.08, 0.3)
        thing.box(
            (0, 0, thing.height + half),
            (x, y, half),
            palette.pick("pattern", "wood", "paint", "fabric"),
            turn(rng.normal(0, 0.1) if thing.height else 0.0),
        )
        thing.height += 2 * half
        x, y = x * rng.uniform(0.5, 0.95), y * rng.uniform(0.5, 0.95)
    thing.tops.append(Top((0, 0, thing.height), (x * 0.8, y * 0.8)))
    return thing


def floor_lamp(rng: np.random.Generator, palette: Palette) -> Thing:
    """Foot, pole and a glowing shade."""
    height, radius = rng.uniform(1.1, 1.7), rng.uniform(0.12, 0.22)
    metal = palette.pick("paint")
    shade = palette.glowing("paint", (1.0, 0.85, 0.6), rng.uniform(0.2, 1.8))
    thing = Thing((radius, radius), height)
    thing.cylinder((0, 0, 0.015), radius * 0.85, 0.015, metal)
    thing.cylinder((0, 0, height / 2), 0.016, height / 2 - 0.02, metal)
    half = rng.uniform(0.1, 0.18)
    thing.cylinder((0, 0, height - half), radius, half, shade, casts_shadow=False)
    return thing


def column(rng: np.random.Generator, palette: Palette) -> Thing:
    """A waist-high pillar with base and capital, for busts and vases."""
    radius, height = rng.uniform(0.1, 0.2), rng.uniform(0.7, 1.2)
    stone = palette.pick("pattern", "paint")
    thing = Thing((radius * 1.4, radius * 1.4), height)
    thing.box((0, 0, 0.04), (radius * 1.4, radius * 1.4, 0.04), stone)
    thing.cylinder((0, 0, height / 2), radius, height / 2 - 0.08, stone)
    thing.box((0, 0, height - 0.04), (radius * 1.3, radius * 1.3, 0.04), stone)
    thing.tops.append(Top((0, 0, height), (radius, radius)))
    return thing


def carpet_roll(rng: np.random.Generator, palette: Palette) -> Thing:
    """A lying cylinder."""
    radius, half = rng.uniform(0.06, 0.25), rng.uniform(0.3, 0.8)
    thing = Thing((radius, half), 2 * radius)
    thing.cylinder((0, 0, radius), radius, half, palette.pick("fabric", "pattern"), tilt(np.pi / 2))
    return thing


def leaning_board(rng: np.random.Generator, palette: Palette) -> Thing:
    """A board or large picture that leans on the wall."""
    x, length, thick = rng.uniform(0.2, 0.6), rng.uniform(0.35, 0.8), rng.uniform(0.01, 0.04)
    angle = rng.uniform(0.12, 0.4)
    reach = length * np.sin(angle) + thick * np.cos(angle)
    rise = length * np.cos(angle) + thick * np.sin(angle)
    thing = Thing((x, reach), 2 * rise)
    look = palette.pick("picture", "wood", "pattern")
    thing.box((0, 0, rise), (x, thick, length), look, tilt(-angle))
    return thing


def partition(rng: np.random.Generator, palette: Palette) -> Thing:
    """A block of masonry up to the ceiling of any room: makes rooms L-shaped in a corner."""
    thing = Thing((rng.uniform(0.2, 1.2), rng.uniform(0.2, 1.0)), 3.5)
    thing.block((-thing.half[0], -thing.half[1], 0), (*thing.half, 3.5), palette.pick("wall"))
    return thing


AGAINST_WALL: tuple[Builder, ...] = (
    shelf,
    cupboard,
    cupboard,
    sofa,
    bed,
    table,
    leaning_board,
    shelf,
    chair,
)
FREE_STANDING: tuple[Builder, ...] = (
    table,
    dining,
    chair,
    sofa,
    stool,
    crate,
    ball,
    floor_lamp,
    plant,
    column,
    carpet_roll,
)


def _ordered(x0: float, x1: float, y0: float, y1: float, z0: float, z1: float) -> tuple:
    return (min(x0, x1), min(y0, y1), z0), (max(x0, x1), max(y0, y1), z1)


def _fill_level(
    rng: np.random.Generator, thing: Thing, looks: list[int], level: float, room: float
) -> None:
    """Books, boxes, bowls or nothing on one board of a shelf, with ``room`` metres of headroom."""
    x, y = thing.half[0] - 0.04, thing.half[1] - 0.02
    kind = rng.integers(4)
    if kind == 0 or room < 0.12:
        return
    left = -x
    while left < x - 0.1 and len(thing.parts) < 60:
        look = looks[rng.integers(len(looks))]
        if kind == 3:
            radius = min(rng.uniform(0.04, 0.12), room / 2, y)
            thing.sphere((left + radius, 0, level + radius), radius, look)
            left += 2 * radius + rng.uniform(0.03, 0.2)
            continue
        wide = rng.uniform(0.03, 0.12) if kind == 1 else rng.uniform(0.1, 0.3)
        right, tall = min(left + wide, x), room * rng.uniform(0.55, 0.95)
        thing.block((left, -y * rng.uniform(0.3, 1), level), (right, y * 0.9, level + tall), look)
        left = right + (rng.uniform(0, 0.01) if kind == 1 else rng.uniform(0.02, 0.2))
        if rng.random() < 0.12:
            left += rng.uniform(0.05, 0.25)
